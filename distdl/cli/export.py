"""`distdl export RUN --to FORMAT`: a trained model as files that other programs run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distdl.cli.common import add_json_argument, add_trust_argument, print_json, to_write
from distdl.errors import InputError

TARGETS = ("safetensors", "huggingface", "torch-export", "onnx", "mlflow")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("export", help="write a trained model in a format that other programs run")
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--to", required=True, choices=TARGETS, help="format")
    parser.add_argument(
        "-o", "--output", type=to_write, default="", metavar="DIR", help="folder (default: exports/RUN-FORMAT)"
    )
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="latest|best|STEP|FOLDER",
        help="checkpoint that is exported (default: latest)",
    )
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "fp16"), help="of the weights in the file (default: fp32)"
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="PATH",
        help="rows that the export is checked on (default: the run's held-out split)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    add_json_argument(parser)
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl.export.export import Wish, export, refuse_missing
    from distdl.model.model import Model
    from distdl.run.folder import find_run

    refuse_missing(args.to)
    folder = find_run(args.name, args.runs)
    model = Model(folder, chosen(folder, args.checkpoint))
    output = Path(args.output or Path("exports") / f"{folder.path.name}-{args.to}")
    done = export(model, Wish(args.to, output, args.precision, args.data, args.overwrite))
    if args.json:
        print_json(done.manifest)
        return 0
    size = sum(file["bytes"] for file in done.manifest["files"].values())
    print(f"{output}: {args.to}, {args.precision}, step {model.step:,}, {size:,} bytes")
    print(f"checked: {done.difference}")
    for note in done.notes:
        print(f"note: {note}")
    return 0


def chosen(folder: Any, which: str) -> str:
    """A step's checkpoint as its folder. InputError: there is none of that step."""
    from distdl.checkpoint.layout import checkpoints

    if not which.isdigit():
        return which
    found = dict(checkpoints(folder.checkpoints))
    if int(which) not in found:
        allowed = ", ".join(["latest", "best", *map(str, found)])
        raise InputError(f"the run has no checkpoint of step {which}", allowed=allowed)
    return str(found[int(which)])
