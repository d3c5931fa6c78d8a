"""Tables as people have them, against scikit-learn: `distdl init` and `distdl train`, with nothing else said.

    python -m benchmarks.tables [--only NAME ...] [--seeds 3] [--out benchmarks/results/tables.md]

Each table is trained by distdl's first config, and by scikit-learn's multilayer perceptron behind a ColumnTransformer that
knows what each column is: numbers imputed and standardised, categories one-hot, dates as days. Both learn from the same
rows, and are measured on the same held-out ones: the share of right answers, or R2. scikit-learn stops early on a tenth of
its rows. Seven are made here, each with an ill of its own; adult and the twelve assays of Tox21 come from DISTDL_DATA.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 3000
NOISE = 2.0
"""Standard deviations of the difference within which two results are called equal."""


@dataclass(frozen=True)
class Case:
    """A table in a file."""

    path: Path
    answer: str
    """The column to predict, as `distdl init` is told."""
    number: bool
    """Whether it is a number."""
    names: list[str]
    """The columns, in their order, as scikit-learn is told."""
    numbers: list[str]
    categories: list[str]
    dates: list[str]
    say: bool = True
    """Whether `distdl init` must be told the answer; else it finds the last column by itself."""


# -- tables with an ill each -------------------------------------------------------------------------------------------


def scales(folder: Path, rng: np.random.Generator) -> Case:
    """Columns from 1e-3 to 1e6, and a target of 1e5."""
    x = rng.normal(size=(ROWS, 6))
    names = [f"x{i}" for i in range(6)]
    sizes = 10.0 ** np.array([-3, -1, 0, 2, 4, 6])
    y = 3 * x[:, 0] + 2 * np.sin(2 * x[:, 1]) + x[:, 2] * x[:, 3] + x[:, 5] + 0.3 * rng.normal(size=ROWS)
    columns = dict(zip(names, (x * sizes + 5 * sizes).T, strict=True)) | {"price": 250_000 + 60_000 * y}
    return Case(_written(folder / "scales.csv", columns), "price", True, [*names, "price"], names, [], [])


def categories(folder: Path, rng: np.random.Generator) -> Case:
    """Words of 3, 12 and 300 values, and two of a number."""
    colour, city, shop = (rng.integers(n, size=ROWS) for n in (3, 12, 300))
    worth, effect = rng.normal(size=12), 0.5 * rng.normal(size=300)
    age = rng.uniform(18, 90, ROWS)
    score = worth[city] * np.array([-1, 0.5, 2])[colour] + effect[shop] + (age - 54) / 30 + 0.3 * rng.normal(size=ROWS)
    columns = {
        "colour": np.array(["red", "green", "blue"])[colour],
        "city": np.array([f"city {i}" for i in range(12)])[city],
        "shop": np.array([f"S{i:03}" for i in range(300)])[shop],
        "age": age,
        "buys": np.where(score > 0, "yes", "no"),
    }
    return Case(
        _written(folder / "categories.csv", columns),
        "buys",
        False,
        list(columns),
        ["age"],
        ["colour", "city", "shop"],
        [],
    )


def gaps(folder: Path, rng: np.random.Generator) -> Case:
    """A quarter of all cells is empty, in several spellings, and that one is empty tells something."""
    x = rng.normal(size=(ROWS, 5))
    kind = rng.integers(4, size=ROWS)
    score = x @ [1.5, -1, 1, 0.5, 0] + np.array([0, 1, -1, 2])[kind] + 0.3 * rng.normal(size=ROWS)
    empty = rng.random((ROWS, 6)) < np.where(score > 1, 0.35, 0.15)[:, None]
    spelling = np.array(["", "NA", "?", "nan"])[rng.integers(4, size=(ROWS, 6))]
    cells = [np.where(empty[:, i], spelling[:, i], x[:, i].round(4).astype(str)) for i in range(5)]
    columns = {f"x{i}": cells[i] for i in range(5)}
    columns |= {
        "kind": np.where(empty[:, 5], spelling[:, 5], np.array(list("pqrs"))[kind]),
        "label": np.digitize(score, [-1, 1]),
    }
    return Case(
        _written(folder / "gaps.csv", columns), "label", False, list(columns), [f"x{i}" for i in range(5)], ["kind"], []
    )


def dates(folder: Path, rng: np.random.Generator) -> Case:
    """A number that depends on the season and grows with the years."""
    day = np.datetime64("2012-01-01") + rng.integers(4000, size=ROWS)
    years = (day - np.datetime64("2012-01-01")).astype(int) / 365.25
    rooms = rng.integers(1, 9, ROWS)
    rent = 400 + 120 * rooms + 60 * years + 20 * rng.normal(size=ROWS)
    columns = {"signed": day.astype(str), "rooms": rooms, "rent": rent}
    return Case(
        _written(folder / "dates.csv", columns), "rent", True, list(columns), ["rooms"], [], ["signed"], say=False
    )


def no_header(folder: Path, rng: np.random.Generator) -> Case:
    """Numbers, words and the class, and no line with names."""
    x = rng.normal(size=(ROWS, 4)) * [1, 100, 0.01, 5]
    word = rng.integers(3, size=ROWS)
    score = x[:, 0] + x[:, 1] / 100 - x[:, 2] * 100 + np.array([1, 0, -2])[word] + 0.3 * rng.normal(size=ROWS)
    columns = {f"c{i}": x[:, i] for i in range(4)} | {"c4": np.array(["low", "mid", "high"])[word]}
    columns["c5"] = np.where(score > 0, "good", "bad")
    path = _written(folder / "no_header.csv", columns, header=False)
    return Case(path, "c5", False, list(columns), [f"c{i}" for i in range(4)], ["c4"], [], say=False)


def heavy_tails(folder: Path, rng: np.random.Generator) -> Case:
    """Incomes: of each column a few values are a thousand times the others."""
    x = np.exp(1.5 * rng.normal(size=(ROWS, 4)) + 8)
    score = np.log(x) @ [1, -1, 0.5, 0] - 4 + 0.3 * rng.normal(size=ROWS)
    columns = {f"x{i}": x[:, i] for i in range(4)} | {"class": np.where(score > 0, 1, 0)}
    return Case(
        _written(folder / "heavy_tails.csv", columns),
        "class",
        False,
        list(columns),
        [f"x{i}" for i in range(4)],
        [],
        [],
    )


def rows_named(folder: Path, rng: np.random.Generator) -> Case:
    """An id, a constant, free text and a nearly empty column beside what tells something."""
    x = rng.normal(size=(ROWS, 3))
    y = 10 * x[:, 0] - 5 * np.abs(x[:, 1]) + rng.normal(size=ROWS)
    columns = {
        "record_id": np.arange(10_000, 10_000 + ROWS),
        "version": np.full(ROWS, 7),
        "remark": np.array([f"seen at {i * 37 % 991} and then {i}" for i in range(ROWS)]),
        "rare": np.where(rng.random(ROWS) < 0.01, "1.5", ""),
        **{f"x{i}": x[:, i] for i in range(3)},
        "score": y,
    }
    return Case(_written(folder / "rows_named.csv", columns), "score", True, list(columns), ["x0", "x1", "x2"], [], [])


def _written(path: Path, columns: dict[str, Any], header: bool = True) -> Path:
    lines = [",".join(columns)] if header else []
    lines += [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


MADE: dict[str, Callable[[Path, np.random.Generator], Case]] = {
    make.__name__: make for make in (scales, categories, gaps, dates, no_header, heavy_tails, rows_named)
}


def real(folder: Path) -> Iterator[tuple[str, Case]]:
    """adult and Tox21, where DISTDL_DATA has them."""
    data = Path(os.environ.get("DISTDL_DATA", "/nowhere"))
    if (data / "adult").is_dir():
        path = folder / "adult.csv"
        path.write_bytes(gzip.decompress((data / "adult" / "adult-train.csv.gz").read_bytes()))
        names = [f"c{i}" for i in range(15)]
        words = ["c1", "c3", "c5", "c6", "c7", "c8", "c9", "c13"]
        numbers = [name for name in names[:-1] if name not in words]
        yield "adult", Case(path, "c14", False, names, numbers, words, [], say=False)
    if (data / "tox21").is_dir():
        path = folder / "tox21.csv"
        path.write_bytes(gzip.decompress((data / "tox21" / "tox21.csv.gz").read_bytes()))
        with path.open(encoding="utf-8") as file:
            names = file.readline().strip().split(",")
        for assay in names[:12]:
            others = [name for name in names[:12] if name != assay]
            yield f"tox21 {assay}", Case(path, assay, False, names, others, [], [])


# -- the two contenders ------------------------------------------------------------------------------------------------


def by_distdl(case: Case, name: str, seeds: int) -> list[float]:
    """The held-out result of each seed."""
    import distdl
    from distdl.cli.main import main

    key = "target" if case.number else "label"
    told = [f"--{key}", case.answer] if case.say else []
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(["init", str(case.path), *told, "--overwrite"])
    if code:
        raise SystemExit(f"distdl init {case.path} {' '.join(told)} ended with {code}")
    run = {"track.enabled": False, "name": name.replace(" ", "-")}
    metric = "r2" if case.number else "accuracy"
    config = f"{case.path.stem}.yaml"
    runs = [distdl.train(config, overrides={**run, "seed": seed}, fresh=True, show=False) for seed in range(seeds)]
    return [found.metrics[metric] for found in runs]


def by_sklearn(case: Case, seeds: int) -> tuple[list[float], int]:
    """The same of scikit-learn, and the number of held-out rows."""
    import pandas
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    header = {} if case.path.stem not in ("no_header", "adult") else {"header": None, "names": case.names}
    frame = pandas.read_csv(case.path, na_values=["?"], skipinitialspace=True, **header)
    frame = frame[frame[case.answer].notna()].reset_index(drop=True)
    for name in case.dates:
        frame[name] = (pandas.to_datetime(frame[name]) - pandas.Timestamp("1970-01-01")).dt.days
    test = held_out(len(frame))
    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    words = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="empty"), OneHotEncoder(handle_unknown="ignore")
    )
    columns = ColumnTransformer([("n", numbers, [*case.numbers, *case.dates]), ("c", words, case.categories)])
    x = columns.fit(frame[~test]).transform(frame)
    y = frame[case.answer].to_numpy()
    results = []
    for seed in range(seeds):
        settings = {"hidden_layer_sizes": (128, 64), "early_stopping": True, "random_state": seed}
        if case.number:
            mean, deviation = y[~test].mean(), y[~test].std()
            model = MLPRegressor(**settings).fit(x[~test], (y[~test] - mean) / deviation)
            results.append(float(model.score(x[test], (y[test] - mean) / deviation)))
        else:
            results.append(float(MLPClassifier(**settings).fit(x[~test], y[~test]).score(x[test], y[test])))
    return results, int(test.sum())


def held_out(rows: int) -> np.ndarray:
    """(rows,) bool: the rows that distdl holds out."""
    from distdl.data.splits import SplitOptions, Splitter

    test = np.zeros(rows, bool)
    for split, chosen in Splitter(SplitOptions(test_fraction=0.1)).share([{"row": np.arange(rows)}]):
        test[chosen["row"]] = split == "test"
    return test


def noise(ours: list[float], theirs: list[float], number: bool, rows: int) -> float:
    """The standard deviation of the difference of two means: by their seeds, and of shares also by the held-out rows."""
    spread = np.var(ours, ddof=1) + np.var(theirs, ddof=1) if len(ours) > 1 else 0.0
    share = float(np.mean(theirs))
    by_rows = 2 * (1 - share) ** 2 / rows if number else share * (1 - share) / rows
    return float(np.sqrt(spread / len(ours) + by_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="tables whose names begin so")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a Markdown file for the results")
    args = parser.parse_args()
    lines = ["| table | measured | distdl | scikit-learn | difference | noise | |", "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        made = ((name, make(Path(folder), np.random.default_rng(7))) for name, make in MADE.items())
        for name, case in [*made, *real(Path(folder))]:
            if args.only and not name.startswith(tuple(args.only)):
                continue
            theirs, rows = by_sklearn(case, args.seeds)
            ours = by_distdl(case, name, args.seeds)
            apart, sd = float(np.mean(ours) - np.mean(theirs)), noise(ours, theirs, case.number, rows)
            verdict = "better" if apart > NOISE * sd else "worse" if apart < -NOISE * sd else "equal"
            told = f"{np.mean(ours):.4f} | {np.mean(theirs):.4f} | {apart:+.4f} | {sd:.4f} | {verdict}"
            lines.append(f"| {name} | {'R2' if case.number else 'accuracy'} | {told} |")
            print(lines[-1], flush=True)
    if args.out:
        with args.out.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
