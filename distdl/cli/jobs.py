"""`distdl jobs`: what was launched, wherever it runs, in the same words."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distdl.cli.common import (
    Verb,
    add_json_argument,
    add_verbs,
    ago,
    aside,
    command_for,
    follow,
    job_facts,
    print_json,
    print_submitted,
    print_table,
    refuse_foreign,
    refuse_twice,
    tell_dead,
    whose,
)
from distdl.errors import DistdlError, InputError

if TYPE_CHECKING:
    from distdl.jobs.records import Record
    from distdl.jobs.target import Job, Target

EPILOG = """\
examples:
  distdl jobs list                              every job that was launched from here, and how it is
  distdl jobs list --on kubernetes              and those of others there
  distdl jobs logs -f gpt                       follow; Ctrl-C leaves the job running
  distdl jobs stop gpt                          end it; `distdl jobs resume gpt` continues from its last checkpoint

ID is the run's name, or what `jobs list` calls it. It may be left out where only one job was launched from here; a run that
was sent to several places needs --on as well. A job that somebody else sent ($DISTDL_OWNER, else USER@HOST) is not ended.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "jobs",
        help="list, follow, stop and resume what was launched",
        description="Jobs that `distdl launch` sent somewhere: the same words for every target.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = add_verbs(
        parser,
        Verb("list", "every job and its state", _list),
        Verb("status", "one job: state, attempt, MLflow run", _status),
        Verb("logs", "the output of its driver", _logs),
        Verb("stop", "end it so that it can be resumed", _stop),
        Verb("resume", "send it again: its run continues from the last checkpoint", _resume),
    )
    for name, verb in verbs.items():
        if name != "list":
            verb.add_argument("id", metavar="ID", nargs="?", help="the job; may be left out where there is only one")
        if name in ("logs", "resume"):
            verb.add_argument("-f", "--follow", action="store_true", help="follow its output until it ends")
        if name in ("list", "status"):
            add_json_argument(verb)
        verb.add_argument("--on", metavar="TARGET", help="where it runs; the default is where it was last sent")


class Row(NamedTuple):
    """A job as `jobs list` tells it."""

    id: str
    state: str
    attempt: int | None
    """None where nobody knows it."""
    sent_s: float | None
    on: str
    note: str

    def cells(self) -> tuple[str, ...]:
        attempt = "" if self.attempt is None else str(self.attempt)
        note = self.note if self.attempt is None else _shortened(self.note)  # why a job is lost is told whole
        return (self.id, self.state, attempt, ago(self.sent_s), self.on, note)


def _list(args: argparse.Namespace) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from distdl.jobs.records import records

    _pin(args)
    known = [r for r in records() if args.on in (None, r.on, r.place)]
    with aside(args.json):
        _tell_dead(known)
    places: dict[str, list[Record]] = {}
    for r in known:
        places.setdefault(r.place, []).append(r)
    asked = [(of_place[0].on, of_place) for of_place in places.values()]
    if args.on and not asked:
        asked = [(args.on, [])]
    with ThreadPoolExecutor(max(1, min(8, len(asked)))) as pool:  # one that does not answer delays no other
        found = list(pool.map(lambda item: _rows(*item), asked))
    rows = [row for part, _ in found for row in part]
    if args.on:
        rows += _rows_of_others([(on, job) for (on, _), (_, left) in zip(asked, found) for job in left], known)
    if args.json:
        print_json([row._asdict() for row in rows])
        return 0
    if not rows:
        there = f" at {args.on}" if args.on else " from here; `distdl launch CONFIG --on TARGET` does"
        print(f"no job was launched{there}")
        return 0
    print_table([("ID", "STATE", "ATTEMPT", "SENT", "ON", ""), *(row.cells() for row in rows)])
    return 0


def _rows(on: str, known: Sequence[Record]) -> tuple[list[Row], list[Job]]:
    """The table's rows of one place, which is asked once; and the jobs there that were not launched from here."""
    try:
        there = {job.id: job for job in _target(on, known[0] if known else None).jobs()}
    except DistdlError as error:
        why = str(error).splitlines()[0]
        sent = [Row(r.id, "?", None, r.submitted_s, r.place, why) for r in known]
        return sent or [Row("?", "?", None, None, on, why)], []
    rows: list[Row] = []
    for r in known:
        job = there.get(r.id)
        if job is None or _is_another(job, r):
            why = (
                f"its id there is the run {job.run}'s" if job else "unknown there; `distdl jobs resume` sends it again"
            )
            rows.append(Row(r.id, "lost", None, r.submitted_s, r.place, why))
        else:
            note = _joined(whose(job), job.message)
            rows.append(Row(r.id, job.state.value, job.attempt, r.submitted_s, r.place, note))
    ours = {r.id for r in known}
    return rows, [job for job in there.values() if job.id not in ours]


def _rows_of_others(found: Sequence[tuple[str, Job]], known: Sequence[Record]) -> list[Row]:
    """Rows of the jobs that were not launched from here, each once: Slurm shows a user's jobs whatever folder is asked."""
    rows: dict[tuple[str, str], Row] = {}
    for on, job in found:
        if on != "slurm" or job.id not in {r.id for r in known}:
            note = _joined("not launched from here", whose(job))
            rows.setdefault((on, job.id), Row(job.id, job.state.value, job.attempt, job.started_s, on, note))
    return list(rows.values())


def _tell_dead(known: Sequence[Record]) -> None:
    """`tell_dead` for the folders of runs that this machine sees."""
    folders = set[Path]()
    for r in known:
        try:
            config = r.config()
        except DistdlError:
            continue
        if config.launch.folder or os.path.isabs(config.runs):
            folders.add(Path(config.launch.folder or "/", config.runs))
    for folder in sorted(folders):
        if folder.is_dir():
            tell_dead(folder)


def _is_another(job: Job, record: Record) -> bool:
    """Whether the id that a record has now stands for another run (ids of earlier versions were not one for one)."""
    return bool(job.run and record.run) and job.run != record.run


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _status(args: argparse.Namespace) -> int:
    target, id, on, record = _found(args)
    job = _same_run(target.job(id), record)
    if args.json:
        print_json({**job_facts(job), "on": on, "sent_s": record.submitted_s if record else None})
    else:
        _print_job(job, on, record)
    return 0


def _logs(args: argparse.Namespace) -> int:
    from distdl.jobs.target import job_id

    target, id, _, record = _found(args)
    if record is not None and record.id != job_id(record.run):  # of an earlier version, where two runs could share one
        _same_run(target.job(id), record)
    if args.follow:
        return follow(target, id)
    for line in target.logs(id):
        print(line)
    return 0


def _stop(args: argparse.Namespace) -> int:
    from distdl.jobs.target import State

    target, id, on, record = _found(args)
    job = _same_run(target.job(id), record)
    if job.state is not State.LOST:
        refuse_foreign(job, on)
        print(f"stopping {id} …", flush=True)
        job = target.stop(id)
    _print_job(job, on, record)
    if job.state is State.LOST:
        return 1
    if job.state is not State.FINISHED and record:
        print(f"  {'resume':<9}{command_for('resume', id, record)}")
    if not job.state.ended:
        print(f"{id} has not ended yet: ask again")
        return 1
    return 0


def _resume(args: argparse.Namespace) -> int:
    from distdl.jobs.records import record as remember
    from distdl.jobs.records import unknown_job

    target, id, on, record = _found(args)
    if record is None:
        raise unknown_job(id)
    package = record.package()
    refuse_twice(package, on)
    job = target.submit(package)
    remembered = remember(package, on)
    print_submitted(job, remembered, package.config.track.uri if package.config.track.enabled else None)
    return follow(target, id) if args.follow else 0


# -- what they share ---------------------------------------------------------------------------------------------------


def _found(args: argparse.Namespace) -> tuple[Target, str, str, Record | None]:
    """The target of the job that is meant, its id, its place, and what is remembered of it."""
    from distdl.jobs.records import find_record, unknown_job
    from distdl.jobs.target import job_id

    _pin(args)
    if args.id is None and args.on and args.verb != "resume":
        raise InputError("which job?", fix=f"give its ID; `distdl jobs list --on {args.on}` shows them")
    record = find_record(args.id, args.on)
    if record is None and args.on:  # sent elsewhere only: what its launch section says may hold at this target, too
        record = find_record(args.id)
    if record is None and not args.on:
        raise unknown_job(args.id)
    id = record.id if record else job_id(args.id)
    on = record.on if record and args.on in (None, record.place) else args.on
    return _target(on, record), id, on, record


def _pin(args: argparse.Namespace) -> None:
    """`--on kubernetes` is the context of now; what was launched there by an earlier version has none in its record."""
    from distdl.jobs.records import records
    from distdl.jobs.targets import pinned

    if args.on and args.on not in {r.on for r in records()}:
        args.on = pinned(args.on)


def _same_run(job: Job, record: Record | None) -> Job:
    """The job, unless the id that is remembered of a run is another run's now. Raises InputError."""
    if record is not None and _is_another(job, record):
        what = f"{record.id} on {record.place} is the run {job.run}'s now, not {record.run}'s"
        raise InputError(what, fix=f"`distdl launch CONFIG` sends {record.run} again, under an id of its own")
    return job


def _target(on: str, record: Record | None) -> Target:
    from distdl.config.launch import Launch
    from distdl.jobs.targets import target_at

    return target_at(on, record.config().launch if record else Launch())


def _print_job(job: Job, on: str, record: Record | None) -> None:
    print(f"{job.id}: {job.state.value}{f' ({job.message})' if job.message else ''}")
    rows = [("on", on), ("attempt", str(job.attempt))]
    if job.started_s:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_s))
        rows.append(("started", f"{began}, {ago(job.started_s)}"))
    if record:
        rows.append(("sent", ago(record.submitted_s)))
    if job.run and job.run != job.id:
        rows.append(("run", job.run))
    if job.owner:
        rows.append(("owner", job.owner))
    rows.append(("tracking", job.tracking or "no MLflow run yet"))
    for name, text in rows:
        print(f"  {name:<9}{text}")


def _shortened(text: str, room: int = 100) -> str:
    """A table's last cell: `distdl jobs status` has the whole text."""
    room = max(room, int(os.environ.get("COLUMNS", "0")) - 80)
    return text if len(text) <= room else f"{text[: room - 1]}…"
