"""The walks of docs/walks.md, command by command, with the public data that they name."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import re
import shlex
import shutil
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY, distdl
from tests.test_readme import README, commands, serve

PAGE = (REPOSITORY / "docs" / "walks.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
MOST_COMMANDS = 6


def adult(raw: Path, folder: Path) -> None:
    for part in ("train", "test"):
        shutil.copy(raw / "adult" / f"adult-{part}.csv.gz", folder)


def tox21(raw: Path, folder: Path) -> None:
    shutil.copy(raw / "tox21" / "tox21.csv.gz", folder)


def pictures(raw: Path, folder: Path) -> None:
    with zipfile.ZipFile(raw / "cifar10_jpg_subset" / "cifar10_subset.zip") as archive:
        archive.extractall(folder / "pictures")


def recordings(raw: Path, folder: Path) -> None:
    with zipfile.ZipFile(raw / "fsdd" / "recordings.zip") as archive:
        for name in archive.namelist():
            if found := re.search(r"(\d)_\w+_\d\.wav$", name):
                place = folder / "digits" / found[1]
                place.mkdir(parents=True, exist_ok=True)
                (place / Path(name).name).write_bytes(archive.read(name))


def text(raw: Path, folder: Path) -> None:
    shutil.copy(raw / "tinyshakespeare" / "input.txt", folder / "shakespeare.txt")


def result_of(folder: Path, run: str) -> dict[str, float]:
    """The metrics that the run has ended with."""
    return json.loads((folder / "runs" / run / "summary.json").read_text())["metrics"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scikit_learn(folder: Path) -> tuple[float, float, list[bool]]:
    """Accuracy of logistic regression and of boosted trees on adult's test rows, and which of these earn more than 50K."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    numbers = [0, 2, 4, 10, 11, 12]
    words = [i for i in range(14) if i not in numbers]

    def read(part: str) -> tuple[Any, Any]:
        lines = io.StringIO(gzip.decompress((folder / f"adult-{part}.csv.gz").read_bytes()).decode())
        rows = [[value.strip() for value in row] for row in csv.reader(lines) if len(row) == 15]
        table = np.array([row[:14] for row in rows], dtype=object)
        table[:, numbers] = table[:, numbers].astype(float)
        return table, np.array([row[14].startswith(">50K") for row in rows])

    (x, y), (x_test, y_test) = read("train"), read("test")
    columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(handle_unknown="ignore"), words))
    linear = make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(x, y)
    ranks = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    trees = make_pipeline(
        make_column_transformer(("passthrough", numbers), (ranks, words)),
        HistGradientBoostingClassifier(categorical_features=range(6, 14), random_state=0),
    ).fit(x, y)
    return float(linear.score(x_test, y_test)), float(trees.score(x_test, y_test)), y_test.tolist()


def of_adult(folder: Path, _: str) -> None:
    linear, trees, rich = scikit_learn(folder)
    accuracy = result_of(folder, "adult")["accuracy"]
    answers = rows_of(folder / "answers.csv")
    right = [(row["income"] == ">50K") == true for row, true in zip(answers, rich, strict=True)]
    assert sum(right) / len(right) == pytest.approx(accuracy, abs=1e-3), "the answers are those that were measured"
    assert accuracy > linear - 0.01, f"a point of logistic regression: {accuracy:.4f}, {linear:.4f}"
    assert accuracy > trees - 0.02, f"the page says 1.3 points below boosted trees: {accuracy:.4f}, {trees:.4f}"
    assert list(folder.rglob("*.onnx")), "a graph, published where it answers as the run does"
    search = folder / "runs" / "adult-search"
    assert len(rows_of(search / "trials.csv")) == 20 and (search / "best.yaml").is_file()
    for told, found in ((linear, r"logistic regression.*\| ([0-9.]+) \|"), (trees, r"HistGradient.*\| ([0-9.]+) \|")):
        (written,) = re.findall(found, PAGE)
        assert told == pytest.approx(float(written), abs=0.003), "what the page says of scikit-learn"


def of_tox21(folder: Path, _: str) -> None:
    rows = rows_of(folder / "toxic.csv")
    with gzip.open(folder / "tox21.csv.gz", "rt") as file:
        raw = list(csv.DictReader(file))
    assert [row["mol_id"] for row in rows] == [row["mol_id"] for row in raw], (
        "rows without a label, too, in their order"
    )
    from sklearn.metrics import roc_auc_score

    known = [(int(float(a["SR-p53"])), float(b["SR-p53=1"])) for a, b in zip(raw, rows) if a["SR-p53"]]
    assert roc_auc_score(*zip(*known)) > 0.8


def of_pictures(folder: Path, _: str) -> None:
    rows = rows_of(folder / "frogs.csv")
    assert len(rows) == 100 and result_of(folder, "pictures")["accuracy"] > 0.35
    assert sum("frog" in (row["class"], row["class 2"], row["class 3"]) for row in rows) > 40


def of_recordings(folder: Path, _: str) -> None:
    rows = rows_of(folder / "heard.csv")
    assert len(rows) == 60 and sum(row["class"] == "7" for row in rows) > 30


def of_text(folder: Path, said: str) -> None:
    assert result_of(folder, "shakespeare")["loss"] < 2.8, "ln 256 is 5.5"
    assert "ROMEO:" in said


CASES: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path, str], None]]] = {
    "A table of mixed columns": (adult, of_adult),
    "Assays of molecules": (tox21, of_tox21),
    "A folder of pictures": (pictures, of_pictures),
    "A folder of recordings": (recordings, of_recordings),
    "A text": (text, of_text),
}


def test_every_walk_has_a_case_and_few_commands() -> None:
    assert WALKS.keys() == CASES.keys()
    assert all(1 < len(commands(walk)) <= MOST_COMMANDS for walk in WALKS.values())
    assert all(line.startswith("distdl ") for line in commands(PAGE))


def test_the_first_page_has_the_walk_of_the_table() -> None:
    assert "docs/walks.md" in README
    for line in commands(WALKS["A table of mixed columns"]):
        assert line in commands(README), line


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", CASES)
def test_a_walk_is_executed(name: str, data_folder: Path, tmp_path: Path) -> None:
    """Command by command, in a folder that has the files which it names."""
    lay, check = CASES[name]
    lay(data_folder, tmp_path)
    said = ""
    for line in commands(WALKS[name]):
        words = shlex.split(line)[1:]
        if words[0] == "serve":
            serve(words, tmp_path, functools.partial(ask_of_adult, tmp_path))
            continue
        result = distdl(*words, *(["track.enabled=false"] if words[0] in ("train", "tune") else []), cwd=tmp_path)
        assert result.code == 0, f"{line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        said += result.stdout
    check(tmp_path, said)


def ask_of_adult(folder: Path, port: str) -> None:
    """The first test row, as an object of the table's columns: what is served is what was predicted. OSError while nothing
    is served."""
    (names,) = re.findall(r"names=(\S+)", WALKS["A table of mixed columns"])
    with gzip.open(folder / "adult-test.csv.gz", "rt") as file:
        row = dict(zip(names.split(","), (value.strip() for value in file.readline().split(",")), strict=True))
    del row["income"]
    question = urllib.request.Request(f"http://127.0.0.1:{port}/predict", json.dumps(row).encode())
    with urllib.request.urlopen(question, timeout=60) as reply:
        (answer,) = json.loads(reply.read())["answers"]
    first = rows_of(folder / "answers.csv")[0]
    assert answer["income" if "income" in answer else "class"] == first["income"]
    assert answer["probability"] == pytest.approx(float(first["probability"]), abs=1e-4)
