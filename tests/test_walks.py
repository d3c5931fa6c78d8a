"""The walks of docs/walks.md, command by command, with the public data that they name.

Every line is executed as it stands there, with what `SHORT` puts behind it. `make acceptance` trains to the end, as the
page does, and measures (benchmarks/acceptance/walks.py).
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.acceptance.walks import LAID, WALKS, commands, raw_adult, scikit_learn
from tests.conftest import distdl, variables
from tests.forks import SERVERS
from tests.test_readme import README

STEPS = ["init", "train", "predict", "export", "serve", "curl", "tune"]
"""What a walk does, in this order: six commands of distdl, and the line of curl that asks what the fifth one serves."""
SIX_STEPS = ["--trials", "2", "train.epochs=null", "train.steps=6"]
SHORT: dict[str, dict[str, list[str]]] = {
    "A table of mixed columns": {},
    "Assays of molecules": {"tune": ["--trials", "2", "train.epochs=1"]},
    "A folder of pictures": {"train": ["train.epochs=2"], "tune": SIX_STEPS},
    "A folder of recordings": {"train": ["train.epochs=6"], "tune": SIX_STEPS},
    "A text": {"train": ["train.steps=150"], "tune": SIX_STEPS},
}
"""Walk -> command -> what makes it short."""


def verb(line: str) -> str:
    """Which of the STEPS a line is. A text is gone on with by `sample`, where rows are answered by `predict`."""
    return "curl" if "curl " in line else {"sample": "predict"}.get(word := line.split()[1], word)


def result_of(folder: Path, run: str) -> dict[str, float]:
    """The metrics that the run has ended with."""
    return json.loads((folder / "runs" / run / "summary.json").read_text())["metrics"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def of_adult(folder: Path, _: str, served: dict[str, Any]) -> None:
    told = scikit_learn(folder)
    accuracy = result_of(folder, "adult")["test_accuracy"]
    answers = rows_of(folder / "answers.csv")
    rich = raw_adult(folder / "adult-test.csv.gz")[1].tolist()
    right = [(row["income"] == ">50K") == true for row, true in zip(answers, rich, strict=True)]
    assert sum(right) / len(right) == pytest.approx(accuracy, abs=1e-3), "the answers are those that were measured"
    assert accuracy > told["linear"], f"logistic regression: {accuracy:.4f}, {told}"
    assert accuracy > told["trees"] - 0.01, f"the page says within a point of boosted trees: {accuracy:.4f}, {told}"
    assert len(rows_of(folder / "runs" / "adult-search" / "trials.csv")) == 20
    for name, found in (
        ("linear", r"logistic regression.*\| ([0-9.]+) \|"),
        ("trees", r"HistGradient.*\| ([0-9.]+) \|"),
    ):
        (written,) = re.findall(found, WALKS["A table of mixed columns"])
        assert told[name] == pytest.approx(float(written), abs=0.003), "what the page says of scikit-learn"
    assert served["income"] == answers[0]["income"]
    assert served["probability"] == pytest.approx(float(answers[0]["probability"]), abs=1e-4)


def of_tox21(folder: Path, _: str, served: dict[str, Any]) -> None:
    rows = rows_of(folder / "toxic.csv")
    with gzip.open(folder / "tox21.csv.gz", "rt") as file:
        raw = list(csv.DictReader(file))
    assert [row["mol_id"] for row in rows] == [row["mol_id"] for row in raw], (
        "rows without a label, too, in their order"
    )
    from sklearn.metrics import roc_auc_score

    known = [(int(float(a["SR-p53"])), float(b["SR-p53=1"])) for a, b in zip(raw, rows) if a["SR-p53"]]
    assert roc_auc_score(*zip(*known)) > 0.8
    first = max(float(rows[0]["SR-p53=0"]), float(rows[0]["SR-p53=1"]))
    assert served["probability"] == pytest.approx(first, abs=1e-4), "the page asks about the first molecule"


def of_pictures(folder: Path, _: str, served: dict[str, Any]) -> None:
    rows = rows_of(folder / "frogs.csv")
    assert len(rows) == 100 and result_of(folder, "pictures")["test_accuracy"] > 0.35
    assert sum("frog" in (row["class"], row["class 2"], row["class 3"]) for row in rows) > 40
    assert served["class"] == rows[0]["class"]
    assert served["probability"] == pytest.approx(float(rows[0]["probability"]), abs=1e-4)


def of_recordings(folder: Path, _: str, served: dict[str, Any]) -> None:
    rows = rows_of(folder / "heard.csv")
    assert len(rows) == 60 and sum(row["class"] == "7" for row in rows) > 30
    (asked,) = (row for row in rows if row["file"].endswith("7_jackson_0.wav"))
    assert served["class"] == asked["class"]
    assert served["probability"] == pytest.approx(float(asked["probability"]), abs=1e-4)


def of_text(folder: Path, said: str, served: dict[str, Any]) -> None:
    assert result_of(folder, "shakespeare")["test_loss"] < 2.8, "ln 256 is 5.5"
    assert "ROMEO:" in said
    assert served.keys() == {"next", "probability"} and 0 < served["probability"] <= 1


CASES: dict[str, Callable[[Path, str, dict[str, Any]], None]] = {
    "A table of mixed columns": of_adult,
    "Assays of molecules": of_tox21,
    "A folder of pictures": of_pictures,
    "A folder of recordings": of_recordings,
    "A text": of_text,
}


def test_every_walk_has_a_case_and_the_same_commands() -> None:
    assert WALKS.keys() == CASES.keys() == LAID.keys() == SHORT.keys()
    for walk in WALKS:
        lines = commands(walk)
        assert [verb(line) for line in lines] == STEPS, walk
        assert sum(line.startswith("distdl ") for line in lines) == 6, walk


def test_the_first_page_has_the_walk_of_the_table() -> None:
    assert "docs/walks.md" in README
    for line in commands("A table of mixed columns"):
        assert line in README or verb(line) == "curl", line


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", CASES)
def test_a_walk_is_executed(name: str, data_folder: Path, tmp_path: Path) -> None:
    """Command by command, in a folder that has the files which it names."""
    LAID[name](data_folder, tmp_path)
    more = {"train": ["track.enabled=false"], "tune": ["track.enabled=false", "search.at_once=1"]}  # one process less
    said, served, serving = "", {}, []
    for line in commands(name):
        step = verb(line)
        words = [*shlex.split(line), *SHORT[name].get(step, []), *more.get(step, [])]
        if step == "serve":
            serving = words[1:]
        elif step == "curl":
            served = asked(line, serving, tmp_path)
        else:
            result = distdl(*words[1:], cwd=tmp_path)
            assert result.code == 0, f"{line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
            said += result.stdout
    CASES[name](tmp_path, said, served)
    assert list((tmp_path / "exports").rglob("*.onnx")), "a graph, published where it answers as the run does"
    (search,) = (tmp_path / "runs").glob("*-search")
    trials = rows_of(search / "trials.csv")
    assert len(trials) >= 2 and {row["state"] for row in trials} <= {"finished", "stopped"}
    assert (search / "best.yaml").is_file()


def asked(line: str, serving: list[str], folder: Path) -> dict[str, Any]:
    """The answer to a line of curl, of a server that is there as long as that takes and ends by Ctrl-C."""
    assert f"localhost:{serving[serving.index('--port') + 1]}/" in line
    out, error = folder / "served.out", folder / "served.error"
    process = SERVERS[0].fork("distdl", serving, variables(), folder, out, error)
    try:
        for _ in range(480):
            done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=folder, capture_output=True, text=True)
            if done.returncode != 7:  # curl's number for a connection that is refused
                break
            assert process.poll() is None, error.read_text()
            time.sleep(0.25)
        assert done.returncode == 0 and '"answers"' in done.stdout, done
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, error.read_text()
    finally:
        process.kill()
    (answer,) = json.loads(done.stdout)["answers"]
    return answer
