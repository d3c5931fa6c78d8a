"""`distdl ui`: look at the runs in MLflow's pages, or send what a run could not send."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import webbrowser
from pathlib import Path
from types import FrameType
from typing import Any

from distdl import trust
from distdl.errors import InputError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the command to the `distdl` command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "ui",
        help="look at the tracked runs in a browser",
        description="Starts MLflow's pages over the runs of this project, on this machine only. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="the folder that holds the runs (default: runs)"
    )
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open nothing")
    parser.add_argument(
        "--sync",
        type=Path,
        metavar="RUN",
        help="send what still waits in this run folder to its MLflow store, and exit",
    )
    parser.add_argument(
        "--uri",
        metavar="URI",
        help="with --sync: the MLflow store to send to (default: that of the run, if it is yours)",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C (exit code 0), or syncs one run (1 if something still waits).

    Raises InputError for a folder without a store, a taken port or a folder that is no tracked run.
    """
    if args.uri and not args.sync:
        raise InputError("--uri says where --sync sends a run", where="--uri", fix="--sync RUN, or take it out")
    return _sync(args.sync, args.uri) if args.sync else _serve(args.runs, args.host, args.port, not args.no_browser)


def _sync(run_dir: Path, uri: str | None) -> int:
    from distdl.track.uploader import upload_pending

    upload = upload_pending(run_dir, uri=uri)
    if uri:
        trust.remember_server(uri)
    plural = "" if upload.sent == 1 else "s"
    print(f"sent {upload.sent} event{plural} of {run_dir}")
    if upload.waiting or upload.reason:
        print(f"{upload.waiting} still wait: {upload.reason}", file=sys.stderr)
        return 1
    return 0


def has_screen() -> bool:
    """Whether a browser would open a window here, and not take the terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _serve(runs_dir: Path, host: str, port: int, browser: bool) -> int:
    from distdl.cli.common import tell_dead
    from distdl.errors import DistdlError
    from distdl.track.server import UiServer

    if host not in LOCAL_HOSTS:
        print(
            f"warning: everyone who can reach {host}:{port} can read and change these runs: MLflow's pages have no "
            "password",
            file=sys.stderr,
        )
    tell_dead(runs_dir)
    server = UiServer(runs_dir, host, port)
    # A closed terminal must not leave a server behind either; and a shell starts what it puts behind with SIGINT ignored.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        print("starting the MLflow UI ...", flush=True)
        server.start()
        print(f"MLflow UI of {runs_dir}: {server.page}   (Ctrl-C ends it)", flush=True)
        if browser and sys.stdout.isatty() and has_screen():
            webbrowser.open(server.page)
        code = server.wait()
        raise DistdlError(f"the MLflow UI ended by itself (exit code {code}):\n{server.output()}")
    except KeyboardInterrupt:
        print("\nending the MLflow UI", flush=True)
        return 0
    finally:
        server.stop()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
