"""How far a preparation is."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distdl.data import progress, raw
from distdl.data.generators import digits
from distdl.data.prepare import prepare_dataset
from distdl.data.progress import Pace, Progress, on_stderr, raw_files, share_read


def test_what_was_read_of_a_file_is_seen_from_outside(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(bytes(3000))
    two.write_bytes(bytes(1000))
    files = raw_files({"path": (str(one), str(two)), "test_path": "", "label": "y", "context": 3})
    assert list(files.values()) == [3000, 1000] and share_read(files) is None
    with one.open("rb", buffering=0) as file:
        file.read(600)
        assert share_read(files) == 600 / 4000
    with two.open("rb", buffering=0) as file:
        file.read(500)
        assert share_read(files) == 3500 / 4000


def test_a_zipped_file_is_seen_by_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(np.random.default_rng(0).bytes(16 << 20)))
    with raw.open_raw(path) as file:
        file.read(8 << 20)
        share = share_read(raw_files({"path": str(path)}))
    assert share is not None and 0.4 < share < 0.7


def test_rows_go_before_bytes_where_their_number_is_known() -> None:
    stands = Progress("t", {})
    assert stands.share() is None
    stands.total, stands.rows = 200, 50
    assert stands.share() == 0.25


def test_rate_and_time_left() -> None:
    pace = Pace()
    assert pace.line() == ""
    pace.see(0.0, 0, 0.1)
    pace.see(2.0, 0, 0.5)
    assert pace.line() == "reading | 50 % of a first pass | 2 s left"
    pace.see(3.0, 1000, 0.1)  # the second pass
    assert pace.line() == "1,000 rows | 10 %"
    pace.see(5.0, 5000, 0.3)
    assert pace.line() == "5,000 rows | 2,000 rows/s | 30 % | 7 s left"
    pace.see(6.0, 6000, 0.999)  # the reader is ahead
    assert pace.line() == "6,000 rows | 1,667 rows/s | all is read"
    pace.see(90.0, 6000, None)
    assert "left" not in pace.line() and "rows/s" not in pace.line()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def until(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, word: str, rows: int | None) -> None:
    """The source digits gives rows until a word is shown, however busy this machine is."""

    def chunks() -> Iterator[tuple[str, dict]]:
        for _ in range(600):
            yield "train", {"x": np.zeros(10)}
            time.sleep(0.05)
            if word in out.getvalue():
                return

    prepared = raw.Prepared({"x": raw.Column("float64")}, chunks(), rows=rows)
    monkeypatch.setattr(digits, "prepare", lambda options: prepared)


def test_lines_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    until(monkeypatch, out, " left\n", 100_000)
    prepare_dataset("digits", tmp_path / "set", {}, follow=on_stderr(file=out, interval_s=0.1))
    lines = out.getvalue().splitlines()
    assert lines and all(line.startswith(f"digits to {tmp_path / 'set'}: ") for line in lines)
    assert "rows/s" in lines[-1] and "% | " in lines[-1]


def test_a_bar_in_a_terminal_and_lines_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    until(monkeypatch, out, "rows", 100_000)
    prepare_dataset("digits", tmp_path / "set", {}, follow=on_stderr(file=out, interval_s=0.1))
    assert "━" in out.getvalue() and "rows" in out.getvalue()
    out = Terminal()
    until(monkeypatch, out, "rows/s", None)
    prepare_dataset("digits", tmp_path / "other", {}, follow=on_stderr(True, file=out, interval_s=0.1))
    assert "━" not in out.getvalue() and "rows/s" in out.getvalue()


def test_a_short_one_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 1000.0)  # whatever else this machine does
    prepare_dataset("digits", tmp_path / "set", {}, follow=on_stderr())
    assert capfd.readouterr().err == ""
