"""`distdl predict RUN FILE…|-`: what a trained model says of new rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import add_progress_arguments, add_trust_argument, followed, to_write

if TYPE_CHECKING:
    from distdl.model.model import Told


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("predict", help="answer new rows with a trained model")
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="tables, pictures, recordings, texts, folders of them, data sets; - is stdin",
    )
    parser.add_argument("-o", "--out", type=to_write, default="-", help="file of the answers: .csv, .jsonl or .parquet")
    parser.add_argument(
        "--format", default="", metavar="csv|jsonl|parquet", help="where the ending of --out does not say"
    )
    parser.add_argument("--which", default="latest", metavar="latest|best|FOLDER", help="checkpoint that answers")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="the K likeliest classes instead of one")
    parser.add_argument("--probabilities", action="store_true", help="those of every class, a column each")
    parser.add_argument("--embeddings", action="store_true", help="what the last layer sees of a row, too")
    parser.add_argument("--pictures", type=to_write, metavar="FOLDER", help="where answers that are pictures go")
    parser.add_argument("--text", action="append", default=[], help="a text to be gone on with, instead of a file")
    about = "steps of a series that are forecast, a line each (default: what a .tsf file says, 1 of other files)"
    parser.add_argument("--horizon", type=int, metavar="H", help=about)
    parser.add_argument("--keep", default="", metavar="A,B|*", help="columns of a table that go along with the answers")
    parser.add_argument("--source", default="", help="source that reads the table (default: told from the file)")
    parser.add_argument("--split", default="test", help="split of a prepared data set (default: test)")
    parser.add_argument("--field", default="text", help="field of JSON lines that holds the text (default: text)")
    parser.add_argument("--batch", type=int, default=256, help="rows at a time (default: 256)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default: cpu)")
    about = (
        "processes that answer, with a thread each (with --ray: actors, default one a CPU); any number says the same"
    )
    parser.add_argument("--workers", type=int, metavar="N", help=about)
    about = "answer on a Ray cluster that sees the run's folder: HOST:PORT, auto, or local for one of its own"
    parser.add_argument("--ray", metavar="ADDRESS", help=about)
    parser.add_argument("--overwrite", action="store_true", help="replace the file of the answers")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    add_progress_arguments(parser)
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: every row was answered; 1: all but some that could not be read."""
    from distdl.data.asking.open import How
    from distdl.data.asking.told import Wish
    from distdl.data.asking.write import format_of
    from distdl.errors import InputError
    from distdl.model import forecast
    from distdl.model.asked import workers
    from distdl.model.model import Model
    from distdl.run.folder import find_run

    if bool(args.files) == bool(args.text):
        raise InputError(
            "predict answers files, or texts given by --text", fix="distdl predict RUN FILE, or - for stdin"
        )
    if args.top_k < 1:
        raise InputError(f"--top-k is {args.top_k}", allowed="at least 1")
    form = format_of(args.out, args.format)
    here = args.ray is None and (args.workers or 1) == 1
    model = Model(find_run(args.name, args.runs), args.which, args.device, args.batch, here)
    pictures = Path(args.pictures) if args.pictures else None
    wish = Wish(args.top_k, args.probabilities, args.embeddings, pictures)
    keep = tuple(name for name in args.keep.split(",") if name)
    how = How(args.source, args.split, keep, args.field)
    if forecast.forecasts(model, args.files, args.horizon):
        if args.workers is not None or args.ray is not None:
            raise InputError("series are forecast by this process alone", fix="leave --workers and --ray out")
        files = (args.files, args.out, form, how, args.horizon)
        return report(forecast.tell(model, *files, args.overwrite, followed(args)), args.out)
    with workers(args.workers, args.ray, args.device):
        told = model.tell(args.files, args.out, form, wish, how, args.overwrite, followed(args), texts=args.text)
    return report(told, args.out)


def name_bad(told: Told) -> None:
    """Says on stderr what was set aside, and what else a person should know."""
    for bad in told.bad:
        print(f"set aside: {bad.where + ': ' if bad.where else ''}{bad.why}", file=sys.stderr)
    if told.set_aside > len(told.bad):
        print(f"... and {told.set_aside - len(told.bad):,} more", file=sys.stderr)
    for note, times in told.notes.items():
        print(f"note: {times:,} {note}", file=sys.stderr)


def report(told: Told, out: str) -> int:
    """Says on stderr what became of the rows; the exit code."""
    name_bad(told)
    where = "" if out == "-" else f" in {out}"
    if told.set_aside:
        beside = "" if out == "-" else f"; {out}.bad.jsonl names them"
        kept = f"{told.rows - told.set_aside:,} of {told.rows:,} rows are answered{where}"
        empty = [f"{told.set_aside - told.lost:,} could not be read and are empty rows"] * (told.set_aside > told.lost)
        empty += [f"{told.lost:,} lines are damaged and left out"] * (told.lost > 0)
        print(f"{kept}; {'; '.join(empty)}{beside}", file=sys.stderr)
        return 1
    if out != "-":
        print(f"{told.rows:,} rows are answered{where}", file=sys.stderr)
    return 0
