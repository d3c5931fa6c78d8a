"""What several commands share: how a config is named, verbs, JSON, and what is said of a job that was sent."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distdl import trust
from distdl.errors import DistdlError, InputError

if TYPE_CHECKING:  # a command that reads no config is not to wait for the schema
    from distdl.config.load import Loaded
    from distdl.data.manifest import Manifest
    from distdl.data.progress import Follow
    from distdl.jobs.records import Record
    from distdl.jobs.target import Job, Package, Target


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG and key=value."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    add_override_arguments(parser)


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """key=value arguments, the last word on any key of the config."""
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="overrides a key of the YAML, such as train.epochs=3"
    )
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """--trust, which main() passes on."""
    parser.add_argument(
        trust.FLAG,
        action="store_true",
        help="run the code that came with a run from elsewhere; remembered by its content",
    )


def to_write(path: str) -> str:
    """A path that a command writes to, as argparse's `type`: a URI is refused."""
    from distdl.config.section import local_path

    try:
        return local_path(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{path!r}: {error}") from None


def add_progress_arguments(parser: argparse.ArgumentParser) -> None:
    """--plain and --quiet, for a command that prepares data."""
    parser.add_argument("--plain", action="store_true", help="plain lines instead of a live progress bar")
    parser.add_argument("--quiet", action="store_true", help="no progress at all")


def followed(args: argparse.Namespace) -> Follow | None:
    """How the progress of a preparation is shown."""
    from distdl.data.progress import on_stderr

    return None if args.quiet else on_stderr(True if args.plain else None)


def tell_prepared(manifest: Manifest) -> None:
    """Prints what a preparation made of each column of a table, and what else it guessed, cut or left out."""
    from distdl.data.table.report import told

    for line in told(manifest.info):
        print(line)


def key_values(arguments: Collection[str]) -> dict[str, str]:
    """key=value arguments as a mapping. InputError for one that is none."""
    values = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not (key and equals):
            raise InputError(f"'{argument}' is not an option", allowed="key=value, such as test_fraction=0.2")
        values[key] = value
    return values


def work_in(args: argparse.Namespace) -> None:
    """Makes the folder of -C, where one is given, the working folder. CONFIG and the RUN to resume were meant from the old
    one. Raises InputError."""
    if not args.directory:
        return
    if args.config and "=" not in args.config:
        args.config = os.path.abspath(args.config)
    if getattr(args, "resume", None) and os.path.exists(args.resume):
        args.resume = os.path.abspath(args.resume)
    try:
        os.chdir(args.directory)
    except OSError as error:
        what = f"cannot work in the folder {args.directory} on {os.uname().nodename}: {error.strerror}"
        raise InputError(what, where="-C", fix="create it, or mount it at this place on every node") from error


def loaded(args: argparse.Namespace, *more: str, cut: Collection[str] = ()) -> Loaded:
    """The checked config of the command line. `cut`: axes that the command itself will cut."""
    from distdl.config.load import load_config

    return load_config(args.config, [*args.overrides, *more], cut)


def add_verbs(parser: argparse.ArgumentParser, *verbs: Verb) -> dict[str, argparse.ArgumentParser]:
    """What stands behind a command of several: `distdl jobs VERB`. Returns the parser of each, by name."""
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    found = {}
    for verb in verbs:
        found[verb.name] = subparsers.add_parser(verb.name, help=verb.text, add_help=verb.add_help)
        found[verb.name].set_defaults(run=verb.run)
    return found


class Verb(NamedTuple):
    """One of a command's verbs."""

    name: str
    text: str
    """What it does, in the help."""
    run: Callable[[argparse.Namespace], int]
    add_help: bool = True
    """False: it has a --help of its own."""


# -- what programs read ------------------------------------------------------------------------------------------------


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """--json, for a command that prints a table."""
    parser.add_argument(
        "--json", action="store_true", help="print JSON for programs (docs/command_line.md has its keys)"
    )


def print_json(value: Any) -> None:
    """What a command found, for a program: one JSON document, and the only thing on stdout."""
    print(json.dumps(value, indent=2, default=str))


def console() -> Any:
    """rich's console for a table. A terminal gets colours, unless NO_COLOR says no; FORCE_COLOR sends them anywhere."""
    from rich.console import Console

    return Console()


def aside(json: bool) -> contextlib.AbstractContextManager[Any]:
    """Within it, with --json, what is told on the way goes to stderr: stdout is the document's alone."""
    return contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext()


def tell_dead(runs: Path) -> None:
    """Closes the MLflow runs of a folder that are RUNNING there and that nobody trains, and says so."""
    from distdl.track.uploader import close_dead_later

    try:
        names = close_dead_later(runs)
    except OSError as error:
        print(f"note: runs in {runs} that ended without a word stay RUNNING in MLflow: {error}", file=sys.stderr)
        return
    for name in names:
        print(f"note: {name} ended without a word; MLflow is told (distdl train --resume {runs / name} continues it)")


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Lines of cells, each column as wide as it needs."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[-1]]).rstrip())


def ago(when_s: float | None) -> str:
    """How long ago that was, in words; '' for never."""
    if not when_s:
        return ""
    seconds = max(0, int(time.time() - when_s))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


# -- jobs that were sent somewhere ---------------------------------------------------------------------------------------


def refuse_twice(package: Package, on: str) -> None:
    """Tells where else a run was sent and is alive, or may be. Raises InputError where that is under another id of the
    same target: ids of earlier versions had no hash."""
    from distdl.jobs.records import place_of, records
    from distdl.jobs.targets import target_at

    place = place_of(on, package.config.launch)
    for r in records():
        if r.run != package.config.name or (r.id, r.place) == (package.id, place):
            continue
        try:
            job = target_at(r.on, r.config().launch).job(r.id)
        except DistdlError as error:
            print(f"note: {r.run} was sent to {r.place}, too, which cannot be asked: {str(error).splitlines()[0]}")
            continue
        if job.state.ended or job.run not in ("", r.run):
            continue
        fix = f"`distdl jobs stop {r.id} --on '{r.place}'` ends it"
        if r.place == place:
            raise InputError(f"the run {r.run} is alive there as the job {r.id}: {job.state.value}", fix=fix)
        print(f"note: {r.run} is {job.state.value} on {r.place}, too; {fix}")


def print_submitted(job: Job, record: Record, tracker: str | None) -> None:
    """What a person needs next, after a job was sent."""
    attempt = f", attempt {job.attempt}" if job.attempt > 1 else ""
    rows = [
        ("follow", command_for("logs -f", job.id, record)),
        ("state", command_for("status", job.id, record)),
        ("stop", command_for("stop", job.id, record)),
    ]
    if job.tracking:
        rows.append(("tracking", job.tracking))
    elif tracker and tracker.startswith("http"):
        rows.append(("tracking", f"{tracker} (`distdl jobs status` links the run once it has begun)"))
    print(f"{job.id} was sent to {record.on}{attempt}: {job.state.value}")
    for name, text in rows:
        print(f"  {name:<9}{text}")


def command_for(verb: str, id: str, record: Record) -> str:
    """A command of `distdl jobs` for a job: with --on where the id alone means several."""
    from distdl.jobs.records import records

    several = sum(r.id == id for r in records()) > 1
    return f"distdl jobs {verb} {id}" + (f" --on '{record.place}'" if several else "")


def job_facts(job: Job) -> dict[str, Any]:
    """A job for a program."""
    return {
        "id": job.id,
        "state": job.state.value,
        "message": job.message,
        "attempt": job.attempt,
        "started_s": job.started_s,
        "run": job.run,
        "owner": job.owner,
        "tracking": job.tracking,
    }


def whose(job: Job) -> str:
    """Of whom a job is, where it is not of whoever asks."""
    from distdl.jobs.records import owner

    return f"of {job.owner}" if job.owner and job.owner != owner() else ""


def refuse_foreign(job: Job, on: str) -> None:
    """Raises InputError for a job that somebody else sent."""
    if of := whose(job):
        fix = f"ask them; DISTDL_OWNER={job.owner} in front of the command ends it in their name"
        raise InputError(f"the job {job.id} on {on} is {job.state.value}, and was sent by {of[3:]}", fix=fix)


def follow(target: Target, id: str) -> int:
    """Prints a job's output until it ends. Returns 0 if it finished, 1 if not, 130 after Ctrl-C."""
    from distdl.jobs.target import State

    try:
        for line in target.logs(id, follow=True):
            print(line, flush=True)
        job = target.job(id)
    except KeyboardInterrupt:
        print(f"\n{id} goes on: `distdl jobs logs -f {id}` follows it again, `distdl jobs stop {id}` ends it")
        return 130
    print(f"{id}: {job.state.value}{f' ({job.message})' if job.message else ''}")
    return 0 if job.state is State.FINISHED else 1
