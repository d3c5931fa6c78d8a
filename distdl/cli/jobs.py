"""`distdl jobs`: what was launched, wherever it runs, in the same words."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distdl.errors import DistdlError, InputError

if TYPE_CHECKING:
    from distdl.runtime.records import Record
    from distdl.runtime.target import Job, Target

EPILOG = """\
examples:
  distdl jobs list                              every job that was launched from here, and how it is
  distdl jobs list --on kubernetes              and those of others there
  distdl jobs logs -f gpt                       follow; Ctrl-C leaves the job running
  distdl jobs stop gpt                          end it; `distdl jobs resume gpt` continues from its last checkpoint

ID is the run's name. It may be left out where only one job was launched from here.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "jobs",
        help="list, follow, stop and resume what was launched",
        description="Jobs that `distdl launch` sent somewhere: the same words for every target.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text, act in (
        ("list", "every job and its state", _list),
        ("status", "one job: state, attempt, MLflow run", _status),
        ("logs", "the output of its driver", _logs),
        ("stop", "end it so that it can be resumed", _stop),
        ("resume", "send it again: its run continues from the last checkpoint", _resume),
    ):
        verb = verbs.add_parser(name, help=text)
        if name != "list":
            verb.add_argument("id", metavar="ID", nargs="?", help="the job; may be left out where there is only one")
        if name in ("logs", "resume"):
            verb.add_argument("-f", "--follow", action="store_true", help="follow its output until it ends")
        verb.add_argument("--on", metavar="TARGET", help="where it runs; the default is where it was last sent")
        verb.set_defaults(run=act)


def _list(args: argparse.Namespace) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from distdl.runtime.records import records

    known = [r for r in records() if args.on in (None, r.on)]
    places: dict[tuple[str, str], list[Record]] = {}
    for r in known:
        places.setdefault((r.on, _launch_key(r)), []).append(r)
    if args.on and not places:
        places[(args.on, "")] = []
    with ThreadPoolExecutor(max(1, min(8, len(places)))) as pool:  # one that does not answer delays no other
        found = pool.map(lambda item: _rows(item[0][0], item[1], everything=bool(args.on)), places.items())
        rows = [row for part in found for row in part]
    if not rows:
        there = f" at {args.on}" if args.on else " from here; `distdl launch CONFIG --on TARGET` does"
        print(f"no job was launched{there}")
        return 0
    _print_table([("ID", "STATE", "ATTEMPT", "SENT", "ON", ""), *rows])
    return 0


def _launch_key(record: Record) -> str:
    """Jobs of the same place and the same launch section are asked for together."""
    try:
        return record.config().launch.model_dump_json()
    except DistdlError:
        return ""


def _rows(on: str, known: Sequence[Record], everything: bool) -> list[tuple[str, ...]]:
    """The table's rows of one place; `everything`: also the jobs there that were not launched from here."""
    try:
        there = {job.id: job for job in _target(on, known[0] if known else None).jobs()}
    except DistdlError as error:
        why = str(error).splitlines()[0]
        sent: list[tuple[str, ...]] = [(r.id, "?", "", _ago(r.submitted_s), on, why) for r in known]
        return sent or [("?", "?", "", "", on, why)]
    rows: list[tuple[str, ...]] = []
    for r in known:
        job = there.pop(r.id, None)
        if job is None:
            rows.append(
                (r.id, "lost", "", _ago(r.submitted_s), on, "unknown there; `distdl jobs resume` sends it again")
            )
        else:
            rows.append((r.id, job.state.value, str(job.attempt), _ago(r.submitted_s), on, _shortened(job.message)))
    for job in there.values() if everything else ():
        rows.append((job.id, job.state.value, str(job.attempt), _ago(job.started_s), on, "not launched from here"))
    return rows


def _status(args: argparse.Namespace) -> int:
    target, id, on, record = _found(args)
    _print_job(target.job(id), on, record)
    return 0


def _logs(args: argparse.Namespace) -> int:
    target, id, _, _ = _found(args)
    if args.follow:
        return follow(target, id)
    for line in target.logs(id):
        print(line)
    return 0


def _stop(args: argparse.Namespace) -> int:
    from distdl.runtime.target import State

    target, id, on, record = _found(args)
    print(f"stopping {id} …", flush=True)
    job = target.stop(id)
    _print_job(job, on, record)
    if job.state is not State.FINISHED:
        print(f"  {'resume':<9}distdl jobs resume {id}")
    if not job.state.ended:
        print(f"{id} has not ended yet: ask again")
        return 1
    return 0


def _resume(args: argparse.Namespace) -> int:
    from distdl.cli.launch import print_submitted
    from distdl.runtime.records import record as remember
    from distdl.runtime.records import unknown_job

    target, id, on, record = _found(args)
    if record is None:
        raise unknown_job(id)
    package = record.package()
    job = target.submit(package)
    remember(package, on)
    print_submitted(job, on, package.config.track.uri if package.config.track.enabled else None)
    return follow(target, id) if args.follow else 0


def follow(target: Target, id: str) -> int:
    """Prints a job's output until it ends. Returns 0 if it finished, 1 if not, 130 after Ctrl-C."""
    from distdl.runtime.target import State

    try:
        for line in target.logs(id, follow=True):
            print(line, flush=True)
        job = target.job(id)
    except KeyboardInterrupt:
        print(f"\n{id} goes on: `distdl jobs logs -f {id}` follows it again, `distdl jobs stop {id}` ends it")
        return 130
    print(f"{id}: {job.state.value}{f' ({job.message})' if job.message else ''}")
    return 0 if job.state is State.FINISHED else 1


# -- what they share ---------------------------------------------------------------------------------------------------


def _found(args: argparse.Namespace) -> tuple[Target, str, str, Record | None]:
    """The target of the job that is meant, its id, its place, and what is remembered of it."""
    from distdl.runtime.records import find_record, unknown_job
    from distdl.runtime.target import job_id

    if args.id is None and args.on and args.verb != "resume":
        raise InputError("which job?", fix=f"give its ID; `distdl jobs list --on {args.on}` shows them")
    record = find_record(args.id)
    if record is None and not args.on:
        raise unknown_job(args.id)
    id = record.id if record else job_id(args.id)
    on = args.on or (record.on if record else "")
    return _target(on, record), id, on, record


def _target(on: str, record: Record | None) -> Target:
    from distdl.config import Launch
    from distdl.runtime.targets import target_at

    return target_at(on, record.config().launch if record else Launch())


def _print_job(job: Job, on: str, record: Record | None) -> None:
    print(f"{job.id}: {job.state.value}{f' ({job.message})' if job.message else ''}")
    rows = [("on", on), ("attempt", str(job.attempt))]
    if job.started_s:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_s))
        rows.append(("started", f"{began}, {_ago(job.started_s)}"))
    if record:
        rows.append(("sent", _ago(record.submitted_s)))
    rows.append(("tracking", job.tracking or "no MLflow run yet"))
    for name, text in rows:
        print(f"  {name:<9}{text}")


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[-1]]).rstrip())


def _ago(when_s: float | None) -> str:
    if not when_s:
        return ""
    seconds = max(0, int(time.time() - when_s))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _shortened(text: str, room: int = 100) -> str:
    """A table's last cell: `distdl jobs status` has the whole text."""
    room = max(room, int(os.environ.get("COLUMNS", "0")) - 80)
    return text if len(text) <= room else f"{text[: room - 1]}…"
