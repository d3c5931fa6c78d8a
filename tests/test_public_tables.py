"""benchmarks/public_tables.py: what it makes of a folder of tables; and that a first config learns no noise by heart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import public_tables
from benchmarks.public_tables import initialised, trained


def noisy(rows: int, seed: int) -> str:
    """Twenty numbers of which two tell something, and much noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 20))
    y = 2 * x[:, 0] + x[:, 1] + 3 * rng.normal(size=rows)
    names = ",".join([*(f"x{i}" for i in range(20)), "y"])
    return "\n".join([names, *(",".join(map(str, row)) for row in np.column_stack([x, y]))]) + "\n"


def test_a_small_noisy_table_is_not_learned_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside ridge regression on many new rows."""
    from sklearn.linear_model import Ridge

    monkeypatch.chdir(tmp_path)
    Path("few.csv").write_text(noisy(100, 0))
    Path("new.csv").write_text(noisy(2000, 1))
    config, refused = initialised(Path("few.csv"), ["test_path=new.csv"])
    assert not refused
    found = trained(config, 700, 0)
    few, new = (np.loadtxt(name, delimiter=",", skiprows=1) for name in ("few.csv", "new.csv"))
    right = new[:, -1]
    assert found["true"] == pytest.approx(right, abs=1e-5)
    ridge = Ridge().fit(few[:, :-1], few[:, -1]).predict(new[:, :-1])
    ours, theirs = (1 - np.mean((told - right) ** 2) / right.var() for told in (found["told"], ridge))
    assert theirs > 0.1 and ours > theirs - 0.03


def test_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "csv" / "some"
    folder.mkdir(parents=True)
    (folder / "numbers.csv").write_text(noisy(60, 2))
    words = ["red", "green"]
    lines = [f'"{i}",{words[i % 2]},{i % 2 + i / 100:.2f},{"yes" if i % 2 else "no"}' for i in range(40)]
    (folder / "words.csv").write_text("\n".join(['"","colour","v","is"', *lines]) + "\n")
    (folder / "texts.csv").write_text("a,b\n" + "".join(f"text {i},more of {i}\n" for i in range(40)))
    (folder / "alone.csv").write_text("a\n" + "1\n2\n" * 20)
    (folder / "short.csv").write_text("a,b\n1,2\n")
    kept = tmp_path / "kept.jsonl"
    monkeypatch.setattr(public_tables, "write_bundled", lambda folder: None)
    arguments = [str(tmp_path / "csv"), "--steps", "60", "--kept", str(kept)]
    monkeypatch.setattr(sys, "argv", ["public_tables", *arguments])
    public_tables.main()
    told = capsys.readouterr().out
    assert "2 of 3 tables (66.7%) are prepared and trained; 1 more have one column" in told
    assert "- refused: some/texts: which column of texts.csv" in told and "| **all** |  | 3 | 2 | 2 | " in told
    results = {result["name"]: result for result in map(json.loads, kept.read_text().splitlines())}
    assert results["some/words"]["ours"] == results["some/words"]["linear"] == 1.0 > results["some/words"]["plain"]
    assert results["some/numbers"]["number"] and results["some/numbers"]["plain"] == 0.0
    public_tables.main()  # nothing is left to do
    assert capsys.readouterr().out == told
