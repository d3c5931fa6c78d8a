"""`distdl sample RUN`: what a trained model makes by itself. Texts go on, pictures are drawn, series go on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from distdl.cli.common import add_trust_argument, to_write
from distdl.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("sample", help="let a trained model write, draw, or go on with a series")
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--which", default="latest", metavar="latest|best|FOLDER", help="checkpoint that is drawn from")
    parser.add_argument("--n", type=int, default=0, help="how many (default: 16 pictures or rows, one text)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "-o", "--out", type=to_write, default="", help="picture (.png) of samples that are pictures; .jsonl"
    )
    parser.add_argument("--text", default="", help="text that is gone on with")
    parser.add_argument("--length", type=int, default=200, help="tokens, or steps of a series (default: 200)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token (default: 1)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from those that make up this part")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="nothing is written behind this text"
    )
    parser.add_argument("--data", default="", metavar="PATH", help="raw file or data set whose series are gone on with")
    parser.add_argument("--split", default="test", help="of that data set (default: test)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default: cpu)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl.learner import Learner
    from distdl.model.drawn import makes
    from distdl.model.model import Model
    from distdl.run.folder import find_run

    if args.out and Path(args.out).exists() and not args.overwrite:
        raise InputError(f"{args.out} is there already", fix="--overwrite replaces it")
    model = Model(find_run(args.name, args.runs), args.which, args.device)
    ways = {"text": _texts, "samples": _samples, "series": _series}
    if (kind := makes(model)) not in ways:
        if type(model.learner).draw is not Learner.draw:
            model.learner.sample(1)  # which says why this config draws nothing
        what = f"the family {model.config.family} makes nothing by itself: it answers questions"
        raise InputError(what, fix="distdl predict RUN FILE asks it")
    ways[kind](args, model)
    return 0


def _texts(args: argparse.Namespace, model: Any) -> None:
    from distdl.model.drawn import Writing, written

    how = Writing(args.length, args.temperature, args.top_k, args.top_p, tuple(args.stop), args.seed)
    rows = [{"text": args.text, "more": written(model, args.text, how, i)} for i in range(args.n or 1)]
    if args.out:
        _lines(args.out, rows)
        return
    for i, row in enumerate(rows):
        print(("\n" if i else "") + row["text"] + row["more"])


def _samples(args: argparse.Namespace, model: Any) -> None:
    from distdl.data.asking.told import grid, write_picture
    from distdl.model.drawn import samples

    found = samples(model, args.n or 16, args.seed)
    if found.ndim == 4:
        out = args.out or f"{model.folder.path.name}-samples.png"
        if Path(out).exists() and not args.overwrite:
            raise InputError(f"{out} is there already", fix="--overwrite replaces it, or --out")
        write_picture(Path(out), grid(found))
        print(f"{len(found)} samples of seed {args.seed} are in {out}")
        return
    rows = [{"sample": row.tolist()} for row in found]
    _lines(args.out, rows) if args.out else print("\n".join(map(json.dumps, rows)))


def _series(args: argparse.Namespace, model: Any) -> None:
    from itertools import islice

    from distdl.model.drawn import series_going_on

    if not args.data:
        raise InputError("a series is gone on with, and none is given", fix="--data a raw file, or a prepared data set")
    rows = list(islice(series_going_on(model, args.data, args.split, args.length), args.n or 16))
    _lines(args.out, rows) if args.out else print("\n".join(map(json.dumps, rows)))


def _lines(out: str, rows: list[dict[str, Any]]) -> None:
    Path(out).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows are in {out}")
