"""`distdl runs`: what was trained here and what came of it, in the terminal. It reads the runs' own folders."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import Verb, add_json_argument, add_verbs, ago, print_json, print_table
from distdl.config.yaml_file import flatten
from distdl.errors import InputError, did_you_mean
from distdl.files import replace_json
from distdl.run.folder import NOTE, RunFolder, find_run

if TYPE_CHECKING:
    from distdl.track.series import Series

TAIL_BYTES = 1 << 17
"""Of a spool, in which the last evaluation and the end are looked for."""
MOST_CURVES = 3
ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}

EPILOG = """\
examples:
  distdl runs list                         every run below runs/: state, step, its deciding metric, your note
  distdl runs show gpt                     one run, with its curves
  distdl runs compare gpt gpt-2            what differs in the configs and in the results, and the losses in one chart
  distdl runs best                         the best run of each data set and metric
  distdl runs note gpt "with the larger vocabulary"
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "runs",
        help="list, show, compare and delete the runs of a folder",
        description="What was trained here, and what came of it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = add_verbs(
        parser,
        Verb("list", "every run, the newest first", _list),
        Verb("show", "one run, with its curves", _show),
        Verb("compare", "two runs or more beside each other", _compare),
        Verb("best", "the best run of each data set and metric", _best),
        Verb("delete", "remove runs, here and from MLflow", _delete),
        Verb("note", "write down something about a run, or read it", _note),
    )
    for name, verb in verbs.items():
        verb.add_argument("--runs", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
        if name in ("show", "note"):
            verb.add_argument("run_name", metavar="RUN", help="a run's name or folder")
        if name in ("compare", "delete"):
            verb.add_argument("run_names", metavar="RUN", nargs="+", help="a run's name or folder")
        if name in ("show", "compare", "best"):
            verb.add_argument("--metric", metavar="NAME", help="this metric instead of what decides in the run")
        if name != "delete":
            add_json_argument(verb)
    verbs["delete"].add_argument("--yes", action="store_true", help="do not ask")
    verbs["note"].add_argument("text", metavar="TEXT", nargs="?", help="the note; '' takes it away")


@dataclass(frozen=True)
class Row:
    """A run as its folder tells of it."""

    name: str
    state: str
    """running, finished, failed, stopped, or lost (it ended without a word)."""
    step: int
    steps: int
    """As planned."""
    family: str
    data: str
    """The fingerprint of its data set."""
    primary: str
    """The metric that decides."""
    better: str
    metrics: dict[str, float]
    """The held-out metrics of its latest evaluation."""
    began_s: float | None
    note: str
    mlflow_run_id: str | None
    folder: str

    @property
    def value(self) -> float | None:
        return self.metrics.get(self.primary)


def row_of(folder: RunFolder) -> Row:
    """Reads what is needed for it, and no more of the spool than its end."""
    from distdl.errors import DistdlError
    from distdl.track.alive import RUN_LOCK, is_free
    from distdl.track.run import load
    from distdl.track.spool import SpoolReader

    planned, summary = (folder.read_derived(name) or {} for name in ("plan.json", "summary.json"))
    tail: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        tail = SpoolReader(folder.events, max(0, folder.events.stat().st_size - TAIL_BYTES)).poll()
    evaluations = [event for event in tail if event["kind"] == "evaluation"]
    ends = [event for event in tail if event["kind"] == "end"]
    model = planned.get("model") or {}
    with contextlib.suppress(DistdlError):
        info = load(folder.path)
    state = ENDS.get(str(ends[-1].get("status")), "lost") if ends else "lost"
    return Row(
        name=folder.path.name,
        state=state if is_free(folder.path / RUN_LOCK) else "running",
        step=max([int(summary.get("steps", 0)), *(e["step"] for e in tail if isinstance(e.get("step"), int))]),
        steps=int(planned.get("steps", 0)),
        family=str(model.get("family", "?")),
        data=str((planned.get("data") or {}).get("fingerprint", "")),
        primary=str(model.get("primary", "loss")),
        better=str(model.get("better", "lower")),
        metrics=dict(summary.get("metrics") or (evaluations[-1].get("values", {}) if evaluations else {})),
        began_s=(folder.read_derived("launch.json") or {}).get("started"),
        note=note_of(folder),
        mlflow_run_id=info.mlflow_run_id if info else None,
        folder=str(folder.path),
    )


def note_of(folder: RunFolder) -> str:
    """What the user has written down about a run."""
    return str((folder.read_derived(NOTE) or {}).get("text", ""))


def rows_of(runs: str) -> list[Row]:
    """Every run below a folder, the newest first. Raises InputError where there is no such folder."""
    if not Path(runs).is_dir():
        raise InputError(f"there is no folder {runs}", where="--runs", fix="name the folder that your runs lie in")
    found = [row_of(RunFolder(path.parent)) for path in Path(runs).glob("[!.]*/config.json")]
    return sorted(found, key=lambda row: (-(row.began_s or 0), row.name))


def _list(args: argparse.Namespace) -> int:
    rows = rows_of(args.runs)
    if args.json:
        print_json([asdict(row) for row in rows])
    elif not rows:
        print(f"there is no run in {args.runs} yet; `distdl train CONFIG` makes one")
    else:
        print_table([("NAME", "STATE", "STEP", "RESULT", "FAMILY", "BEGAN", "NOTE"), *(_cells(row) for row in rows)])
    return 0


def _cells(row: Row) -> tuple[str, ...]:
    result = "" if row.value is None else f"{row.primary} {row.value:.4g}"
    step = f"{row.step:,}" + (f"/{row.steps:,}" if row.steps and row.steps != row.step else "")
    return (row.name, row.state, step, result, row.family, ago(row.began_s), row.note.partition("\n")[0])


def _show(args: argparse.Namespace) -> int:
    from distdl.track.series import varying

    folder = find_run(args.run_name, args.runs)
    row, series = row_of(folder), _series(folder)
    if args.metric and args.metric not in series:
        raise _no_metric(args.metric, series)
    if args.json:
        print_json({**asdict(row), "series": series})
        return 0
    facts = [("state", f"{row.state}, step {row.step:,} of {row.steps:,}"), ("family", row.family)]
    facts += [(name, f"{value:.6g}") for name, value in row.metrics.items()]
    facts += [("began", ago(row.began_s)), ("data set", row.data[:16]), ("MLflow run", row.mlflow_run_id or "none")]
    facts += [("note", row.note)] if row.note else []
    print(f"{row.name}  ({row.folder})")
    print_table([("  " + name, value) for name, value in facts if value])
    for name in [args.metric] if args.metric else _first(varying(series), row.primary):
        _print_curve({f"{name}, {of}": points for of, points in series[name].items()}, name)
    return 0


def _first(names: Sequence[str], primary: str) -> list[str]:
    """The loss, what decides, and what else is measured, up to a screenful."""
    wanted = [name for name in ("loss", primary) if name in names]
    return list(dict.fromkeys([*wanted, *(n for n in names if n not in ("lr", "epoch", "samples_per_s"))]))[
        :MOST_CURVES
    ]


def _compare(args: argparse.Namespace) -> int:
    folders = [find_run(name, args.runs) for name in args.run_names]
    if len(folders) < 2:
        raise InputError("one run is compared with nothing", where="RUN", fix="name two runs or more")
    rows = [row_of(folder) for folder in folders]
    configs = [{".".join(key): value for key, value in flatten(folder.config_values() or {})} for folder in folders]
    keys = sorted({key for config in configs for key in config} - {"name"})
    differs = {
        key: [config.get(key) for config in configs] for key in keys if len({repr(c.get(key)) for c in configs}) > 1
    }
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    metrics = {name: [row.metrics.get(name) for row in rows] for name in names}
    metric = args.metric or (rows[0].primary if len({row.primary for row in rows}) == 1 else "loss")
    if args.json:
        print_json({"runs": [row.name for row in rows], "config": differs, "metrics": metrics})
        return 0
    print_table([("", *(row.name for row in rows)), ("state", *(row.state for row in rows))])
    if len({row.data for row in rows}) > 1:
        print("note: they learned from different data sets")
    print()
    print_table([("RESULT", *(row.name for row in rows)), *((name, *map(_number, v)) for name, v in metrics.items())])
    print()
    if differs:
        print_table([("CONFIG", *(row.name for row in rows)), *((key, *map(_value, v)) for key, v in differs.items())])
    else:
        print("their configs say the same")
    curves = {}
    for row, folder in zip(rows, folders):
        of = _series(folder).get(metric, {})
        held_out = [points for split, points in of.items() if split != "training"]
        if points := (held_out or list(of.values()) or [{}])[0]:
            curves[row.name] = points
    _print_curve(curves, metric)
    return 0


def _best(args: argparse.Namespace) -> int:
    rows = [row for row in rows_of(args.runs) if (args.metric or row.primary) in row.metrics]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.data, args.metric or row.primary), []).append(row)
    found: list[dict[str, Any]] = []
    for (data, metric), group in groups.items():
        higher = _is_higher_better(metric, group)
        best = (max if higher else min)(group, key=lambda row: row.metrics[metric])
        found.append(
            {"run": best.name, "metric": metric, "value": best.metrics[metric], "of": len(group), "data": data}
        )
    if args.json:
        print_json(found)
    elif not found:
        what = f"told {args.metric}" if args.metric else "been evaluated"
        print(f"no run in {args.runs} has {what} yet")
    else:
        lines = [(f["run"], f"{f['metric']} {f['value']:.6g}", str(f["of"]), f["data"][:16]) for f in found]
        print_table([("BEST", "RESULT", "OF RUNS", "DATA SET"), *lines])
    return 0


def _is_higher_better(metric: str, rows: Sequence[Row]) -> bool:
    """As the families say of what decides; of another metric, by what its name is known for."""
    said = Counter(row.better for row in rows if row.primary == metric)
    if said:
        return said.most_common(1)[0][0] == "higher"
    return not any(word in metric for word in ("loss", "error", "mae", "rmse", "perplexity"))


def _delete(args: argparse.Namespace) -> int:
    from distdl.track.client import forget

    folders = [find_run(name, args.runs) for name in args.run_names]
    for folder in folders:
        if folder.path.is_symlink():
            raise InputError(f"{folder.path} is a link", fix="delete the run where it lies")
    names = ", ".join(folder.path.name for folder in folders)
    if not args.yes:
        if not sys.stdin.isatty():
            raise InputError(f"nobody can be asked whether to delete {names}", fix="--yes")
        if input(f"delete {names}, with all checkpoints? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return 1
    for folder in folders:
        with folder.locked():
            told = forget(folder.path)
            shutil.rmtree(folder.path)
        print(f"deleted {folder.path}{f'; {told}' if told else ''}")
    return 0


def _note(args: argparse.Namespace) -> int:
    from distdl.track.client import retell

    folder = find_run(args.run_name, args.runs)
    told = ""
    if args.text is not None:
        replace_json(folder.path / NOTE, {"text": args.text}, folder.path / f".{NOTE}")
        told = retell(folder.path)
    if args.json:
        print_json({"run": folder.path.name, "note": note_of(folder)})
        return 0
    print(note_of(folder) or f"{folder.path.name} has no note")
    if told:
        print(told)
    return 0


def _series(folder: RunFolder) -> Series:
    from distdl.track.series import series_of
    from distdl.track.spool import SpoolReader

    return series_of(SpoolReader(folder.events).poll())


def _print_curve(curves: Mapping[str, Mapping[int, float]], title: str) -> None:
    from distdl.cli.curves import drawn

    if any(len(points) > 1 for points in curves.values()):
        print()
        print(drawn(curves, title))


def _no_metric(metric: str, series: Mapping[str, Any]) -> InputError:
    return InputError(f"the run has told no {metric!r}", where="--metric", fix=did_you_mean(metric, series))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _value(value: Any) -> str:
    return "null" if value is None else str(value)
