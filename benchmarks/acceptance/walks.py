"""The walks of docs/walks.md as they stand there, trained to the end, beside what needs no net.

    python -m benchmarks.acceptance.walks [WALK ...] [--scratch FOLDER]

prints the figures of the page: of each walk the metrics of its validation and its test split, and the same of the largest
class, of linear models and, where they are the ones to beat, of boosted trees and scikit-learn's perceptron. All learn
from the training rows alone. `make acceptance` asks the test figure of each walk for more than its linear model.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.acceptance import REPOSITORY, Absent, Bench

PAGE = (REPOSITORY / "docs" / "walks.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NUMBERS = [0, 2, 4, 10, 11, 12]
"""Columns of adult that hold numbers."""


def commands(walk: str) -> list[str]:
    """The lines of a walk's bash block, as a shell takes them."""
    (block,) = re.findall(r"```bash\n(.*?)```", WALKS[walk], re.DOTALL)
    return [line for line in block.splitlines() if line.strip()]


# -- the files of each walk ----------------------------------------------------------------------------------------------


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


LAID: dict[str, Callable[[Path, Path], None]] = {
    "A table of mixed columns": adult,
    "Assays of molecules": tox21,
    "A folder of pictures": pictures,
    "A folder of recordings": recordings,
    "A text": text,
}


def walked(bench: Bench, walk: str) -> tuple[Path, dict[str, float]]:
    """The folder of a walk in which its first two commands have run, and what the run has ended with. Raises Absent."""
    folder = bench.scratch / "walks" / LAID[walk].__name__
    init, train = commands(walk)[:2]
    name = Path(shlex.split(train)[2]).stem
    if not (folder / "runs" / name / "summary.json").exists():
        raw = Path(os.environ.get("DISTDL_DATA", "/nowhere"))
        if not raw.is_dir():
            raise Absent("DISTDL_DATA names no folder of raw data")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        LAID[walk](raw, folder)
        distdl(folder, init)
        distdl(folder, f"{train} track.enabled=false train.threads_per_worker=2")
    return folder, json.loads((folder / "runs" / name / "summary.json").read_text())["metrics"]


def distdl(folder: Path, line: str) -> str:
    """What a command says. RuntimeError: it has not ended well."""
    words = [sys.executable, "-m", "distdl", *shlex.split(line)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


# -- what needs no net ---------------------------------------------------------------------------------------------------


def split_of(folder: Path, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Split -> column -> values, of a walk's data set."""
    from distdl.data.manifest import read_manifest
    from distdl.data.read import Dataset

    path = folder / "data" / name
    found = {}
    for split in read_manifest(path).splits:
        data = Dataset(path, split)
        found[split] = {key: np.asarray(value) for key, value in data.gather(np.arange(data.rows)).items()}
    return found


def raw_adult(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 14 columns of a file of adult, and which rows earn more than 50K."""
    lines = io.StringIO(gzip.decompress(path.read_bytes()).decode())
    rows = [[value.strip() for value in row] for row in csv.reader(lines) if len(row) == 15]
    table = np.array([row[:14] for row in rows], dtype=object)
    table[:, NUMBERS] = table[:, NUMBERS].astype(float)
    return table, np.array([row[14].startswith(">50K") for row in rows])


def scikit_learn(folder: Path, perceptron: bool = False) -> dict[str, float]:
    """Accuracy on adult's test rows of logistic regression (`linear`), of boosted trees (`trees`) and, if asked for, of a
    `perceptron`, all with scikit-learn's own settings; the perceptron stops by a tenth of the training rows."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    words = [i for i in range(14) if i not in NUMBERS]
    (x, y), (x_test, y_test) = (raw_adult(folder / f"adult-{part}.csv.gz") for part in ("train", "test"))
    columns = make_column_transformer((StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), words))
    ranks = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    models: dict[str, Any] = {
        "linear": make_pipeline(columns, LogisticRegression(max_iter=1000)),
        "trees": make_pipeline(
            make_column_transformer(("passthrough", NUMBERS), (ranks, words)),
            HistGradientBoostingClassifier(categorical_features=range(6, 14), random_state=0),
        ),
    }
    if perceptron:
        models["perceptron"] = make_pipeline(columns, MLPClassifier(early_stopping=True, random_state=0))
    return {name: float(model.fit(x, y).score(x_test, y_test)) for name, model in models.items()}


def linear(splits: dict[str, dict[str, np.ndarray]], column: str) -> Any:
    """Logistic regression on the very columns that the net reads, and the test rows of its kind: (model, x, y)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flat = {split: rows[column].reshape(len(rows["label"]), -1).astype(np.float32) for split, rows in splits.items()}
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=100))
    return model.fit(flat["train"], splits["train"]["label"]), flat["test"], splits["test"]["label"]


def pairs(train: np.ndarray, test: np.ndarray) -> float:
    """Nats a byte of a text by the byte before it alone, counted over the training text."""
    counts = np.full((256, 256), 0.1)
    np.add.at(counts, (train[:, :-1].ravel(), train[:, 1:].ravel()), 1)
    chances = counts / counts.sum(1, keepdims=True)
    return float(-np.log(chances[test[:, :-1].ravel(), test[:, 1:].ravel()]).mean())


# -- the figures ---------------------------------------------------------------------------------------------------------

Figures = dict[str, float]


def of_adult(bench: Bench) -> Figures:
    folder, metrics = walked(bench, "A table of mixed columns")
    rich = raw_adult(folder / "adult-test.csv.gz")[1]
    found = {"validation": metrics["accuracy"], "test": metrics["test_accuracy"], "largest class": 1 - rich.mean()}
    return found | scikit_learn(folder, perceptron=True)


def of_tox21(bench: Bench) -> Figures:
    """Areas under the ROC curve: one molecule in 15 is what is asked for, so that "never" is right for the rest."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    folder, _ = walked(bench, "Assays of molecules")
    said = {
        split: json.loads(distdl(folder, f"distdl evaluate tox21 --data data/tox21 --split {split} --json"))["more"]
        for split in ("validation", "test")
    }
    splits = split_of(folder, "tox21")
    model, x, y = linear(splits, "x")
    trees = HistGradientBoostingClassifier(random_state=0).fit(splits["train"]["x"], splits["train"]["label"])
    areas = {
        name: float(roc_auc_score(y, m.predict_proba(x)[:, 1])) for name, m in (("linear", model), ("trees", trees))
    }
    return {**{split: more["roc_auc"] for split, more in said.items()}, "largest class": 0.5, **areas}


def of_files(bench: Bench, walk: str, name: str, column: str) -> Figures:
    folder, metrics = walked(bench, walk)
    splits = split_of(folder, name)
    model, x, y = linear(splits, column)
    found = {"validation": metrics["accuracy"], "test": metrics["test_accuracy"]}
    return {**found, "largest class": float(np.bincount(y).max() / len(y)), "linear": float(model.score(x, y))}


def of_pictures(bench: Bench) -> Figures:
    return of_files(bench, "A folder of pictures", "pictures", "image")


def of_recordings(bench: Bench) -> Figures:
    return of_files(bench, "A folder of recordings", "digits", "image")


def of_text(bench: Bench) -> Figures:
    """Nats a byte."""
    folder, metrics = walked(bench, "A text")
    splits = split_of(folder, "shakespeare")
    found = {"validation": metrics["loss"], "test": metrics["test_loss"]}
    return {**found, "pairs of bytes": pairs(splits["train"]["tokens"], splits["test"]["tokens"])}


FIGURES: dict[str, Callable[[Bench], Figures]] = {
    "A table of mixed columns": of_adult,
    "Assays of molecules": of_tox21,
    "A folder of pictures": of_pictures,
    "A folder of recordings": of_recordings,
    "A text": of_text,
}


def walk_figure(walk: str) -> Callable[[Bench], float]:
    """What a case of `make acceptance` runs: the walk's figure on its test rows."""
    return lambda bench: FIGURES[walk](bench)["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("walk", nargs="*", help="words of their headings (default: all)")
    parser.add_argument("--scratch", type=Path, help="folder for data sets and runs, kept from time to time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((args.scratch or Path(temporary)).absolute())
        for walk, figures in FIGURES.items():
            if not args.walk or any(word in walk for word in args.walk):
                told = ", ".join(f"{name} {value:.4f}" for name, value in figures(bench).items())
                print(f"{walk}: {told}", flush=True)


if __name__ == "__main__":
    main()
