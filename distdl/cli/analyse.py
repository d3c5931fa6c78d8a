"""`distdl analyse RUN`: what in its input a trained model's answers hang on, and how firm they are, as one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from distdl.cli.common import add_trust_argument, to_write


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("analyse", help="look inside a trained model: a report of what its answers hang on")
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="rows to look at: whatever `distdl predict` reads (default: the run's held-out split)",
    )
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="rows that are looked at (default: 100)")
    parser.add_argument(
        "--methods",
        default="",
        metavar="A,B",
        help="of saliency, integrated_gradients, gradcam, occlusion, robustness, groups, neighbours, features "
        "(default: all that apply)",
    )
    parser.add_argument(
        "--by",
        default="",
        metavar="COLUMN",
        help="error for each value of a column of FILE, or of the table learned from",
    )
    parser.add_argument(
        "-o", "--output", type=to_write, default="", metavar="DIR", help="folder of the report (default: RUN/analysis)"
    )
    parser.add_argument("--which", default="latest", metavar="latest|best|FOLDER", help="checkpoint to look into")
    parser.add_argument("--split", default="", help="split of a data set (default: the run's data.eval_split)")
    parser.add_argument("--source", default="", help="source that reads the table (default: told from the file)")
    parser.add_argument("--field", default="text", help="field of JSON lines that holds the text (default: text)")
    parser.add_argument("--seed", type=int, default=0, help="of the rows that are drawn, and of the noise (default: 0)")
    parser.add_argument("--batch", type=int, default=256, help="rows at a time (default: 256)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default: cpu)")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: the report is written; 1: it is, and some rows could not be read."""
    from distdl.analyse.analysis import Wish, analysed, looked_at
    from distdl.analyse.attribution import captum
    from distdl.analyse.methods import METHODS, chosen
    from distdl.analyse.report import REPORT, refuse_existing, write
    from distdl.cli.predict import name_bad
    from distdl.data.asking.open import How
    from distdl.errors import InputError
    from distdl.model.model import Model
    from distdl.run.folder import find_run

    methods = chosen(args.methods)
    if args.by and "groups" not in methods:
        raise InputError(f"--by {args.by} is about the method groups", fix="--methods groups, or leave --methods out")
    captum()
    folder = find_run(args.name, args.runs)
    output = Path(args.output) if args.output else folder.path / "analysis"
    refuse_existing(output, args.overwrite)
    model = Model(folder, args.which, args.device, args.batch)
    how = How(args.source, args.split or model.config.data.eval_split or "test", field=args.field, answers=True)
    wish = Wish(methods, args.rows, args.by, how, args.seed)
    look = looked_at(model, args.files, wish)
    found = analysed(look, wish, lambda title: print(f"{title} ...", file=sys.stderr, flush=True))
    write(found, output)
    name_bad(look.sample.told)
    for method, section in found.sections.items():
        if section.refused:
            print(f"{METHODS[method].title} does not apply: {section.refused}")
    print(f"{len(look.rows):,} rows of {', '.join(look.files)} were looked at: {output / REPORT}")
    return 1 if look.sample.told.set_aside else 0
