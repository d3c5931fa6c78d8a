"""`distdl serve RUN`: a trained model that answers over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from distdl.cli.common import add_trust_argument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from distdl.serve.app import Asks
    from distdl.serve.replicas import Served


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="answer rows over HTTP with a trained model",
        description="Answers POST /predict, GET /schema, /health and /metrics, on this machine only. Ctrl-C ends it.",
    )
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free one (default: 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="copies of the model, on Ray (default: 1)")
    parser.add_argument(
        "--checkpoint",
        "--which",
        dest="which",
        default="latest",
        metavar="latest|best|STEP|FOLDER",
        help="checkpoint that answers",
    )
    parser.add_argument("--max-batch", type=int, default=256, metavar="B", help="rows at a time (default: 256)")
    parser.add_argument(
        "--wait-ms", type=float, default=0.0, metavar="W", help="how long a batch waits for more rows (default: 0)"
    )
    parser.add_argument(
        "--max-body-mb", type=float, default=16.0, metavar="MB", help="largest request in MiB (default: 16)"
    )
    parser.add_argument(
        "--unknown",
        choices=("refuse", "answer"),
        default="refuse",
        help="rows with a word that training did not see and has no place for (default: refuse)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default: cpu)")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 after Ctrl-C or SIGTERM, when what was under way is answered."""
    from distdl.errors import InputError
    from distdl.run.folder import find_run
    from distdl.serve.app import App
    from distdl.serve.replicas import Served
    from distdl.serve.server import LOCAL, answer, is_local, listen

    wrong = {
        f"--replicas is {args.replicas}": args.replicas < 1,
        f"--max-batch is {args.max_batch}": args.max_batch < 1,
        f"--wait-ms is {args.wait_ms:g}": not 0 <= args.wait_ms <= 60_000,
        f"--max-body-mb is {args.max_body_mb:g}": not 0 < args.max_body_mb <= 4096,
        f"--port is {args.port}": not 0 <= args.port <= 65535,
    }
    if what := [text for text, is_wrong in wrong.items() if is_wrong]:
        raise InputError(
            *what, allowed="1 or more replicas and rows, 0 to 60000 ms, up to 4096 MiB, a port up to 65535"
        )
    folder = find_run(args.name, args.runs)
    served = Served(
        str(folder.path.absolute()),
        checkpoint(folder.checkpoints, args.which),
        args.device,
        args.max_batch,
        args.wait_ms / 1000,
        args.unknown,
    )
    listening = listen(args.host, args.port)  # before the model is loaded, which takes a while
    hosts = [*LOCAL, args.host] if is_local(args.host) else None
    if hosts is None:
        print(
            f"warning: everyone who can reach {args.host}:{args.port} may ask this model: there is no password",
            file=sys.stderr,
        )
    with listening, asks(served, args.replicas) as (asked, schema):
        app = App(asked, schema, int(args.max_body_mb * 2**20), hosts)
        answer(app, listening, lambda url: tell(url, schema, args.replicas))
    print(f"\nended; requests: {app.answered:,}", flush=True)
    return 0


@contextlib.contextmanager
def asks(served: Served, count: int) -> Iterator[tuple[Asks, Mapping[str, Any]]]:
    """Who answers, and what goes in and comes out: one model in this process, several on Ray."""
    from distdl.serve.server import Here

    if count > 1:
        from distdl.serve.replicas import replicas

        print(f"starting {count} replicas on Ray ...", flush=True)
        with replicas(served, count) as several:
            yield several, several.schema()
        return
    answerer = served.answerer()
    here = Here(answerer, served.most_rows, served.wait_s)
    try:
        yield here, answerer.schema()
    finally:
        here.close()


def checkpoint(folder: Any, which: str) -> str:
    """`latest`, `best` or the folder of a checkpoint; that of a step where a number is given. InputError: there is none."""
    from distdl.checkpoint.layout import checkpoints
    from distdl.errors import InputError

    if not which.isdecimal():
        return which
    found = dict(checkpoints(folder))
    if int(which) not in found:
        there = ", ".join(map(str, found)) or "none yet"
        raise InputError(f"there is no checkpoint of step {which}", where="--checkpoint", allowed=there)
    return str(found[int(which)])


def tell(url: str, schema: Mapping[str, Any], count: int) -> None:
    """Where it answers, and how it is asked."""
    copies = f", {count} replicas" if count > 1 else ""
    print(f"{schema['run']} ({schema['family']}, step {schema['step']:,}{copies}) answers on {url}   (Ctrl-C ends it)")
    if (row := schema["example"]) is not None and len(text := json.dumps(row, ensure_ascii=False)) < 500:
        quoted = text.replace("'", "'\\''")
        print(f"    curl {url}/predict -d '{quoted}'")
    print(f"    curl {url}/schema", flush=True)
