"""Which worker is told of, when several have failed: the one whose failure the others only suffered."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distdl.checkpoint.layout import checkpoints
from distdl.errors import DistdlError, InputError, TrainingFailed
from distdl.run.folder import RunFolder
from distdl.run.heartbeat import ENDED, Beat, dumped_stack, read_beats
from distdl.runtime import flights
from distdl.runtime.watch import named, out_of_step, standing


class WorkersEnded(RuntimeError):
    """Workers have ended before their time. `deaths`: rank -> how its process ended by itself, in words."""

    def __init__(self, deaths: Mapping[int, str], why: str = "") -> None:
        super().__init__(why or "; ".join(f"worker {rank} {how}" for rank, how in sorted(deaths.items())))
        self.deaths = dict(deaths)


@dataclass(frozen=True)
class Failure:
    """What ended the workers."""

    error: DistdlError
    lasting: bool = False
    """It would come again: no restart helps."""
    own: bool = False
    """A worker said what it was, other than that it lost another."""
    cause: tuple[str, int] | None = None
    """Kind of exception and step; the same one twice is lasting, too. None: it was no exception of a worker's own code."""


USUAL = {
    signal.SIGKILL: "out of memory (the kernel's log says so: `dmesg`) and a kill from outside are the usual causes",
    signal.SIGSEGV: "a fault in native code: an extension, a library of the wrong version, or broken memory",
    signal.SIGBUS: "a file that was mapped is shorter now: a data set was changed, a disk or /dev/shm is full",
    signal.SIGABRT: "native code gave up, which it says on stderr: on GPUs mostly NCCL, whose watchdog ends a process "
    "where a collective has not ended within runtime.timeout_s; else collectives that do not match, or broken memory",
    signal.SIGFPE: "a fault in native code: an integer division by zero",
    signal.SIGILL: "native code was built for another processor",
    signal.SIGTERM: "it was asked to end from outside",
}
"""Signal -> the usual causes."""


def ending(code: int) -> str:
    """How a process ended by itself, by its exit code; -N: signal N."""
    if code >= 0:
        return f"exited with code {code} without a word"
    try:
        name = f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        name = f"signal {-code}"
    usual = USUAL.get(-code)  # type: ignore[call-overload]
    return f"was killed by {name}" + (f": {usual}" if usual else "")


def goes_on(folder: RunFolder) -> str:
    """What the same command does now: a sentence that is true where there is no checkpoint yet, too."""
    if checkpoints(folder.checkpoints):
        return "the same command continues from the last checkpoint"
    return "there is no checkpoint yet: the same command starts from the beginning"


def first_failure(folder: RunFolder, error: Exception, hung: str = "") -> Failure:
    """What ended the workers: a hang (in words), else what distdl said of it, a process that died, an exception of a
    worker's own; last, what ranks say that lost another one, which is to blame for that."""
    records = sorted(folder.failure_records(), key=lambda r: r["time"])
    said = {record["rank"] for record in records}
    own = [record for record in records if not record["consequence"]]
    known = [record for record in own if record["known"]]
    done = {beat.rank for beat in _beats(folder) if beat.phase == ENDED}
    died = {rank: how for rank, how in getattr(error, "deaths", {}).items() if not (rank in done and how == ending(0))}
    deaths = {rank: how for rank, how in died.items() if rank not in said}
    if hung:
        return Failure(TrainingFailed(f"{hung}\n    {goes_on(folder)}"))
    if known:
        return Failure(_told(folder, known[0]), lasting=True, own=True)
    if deaths:
        rank, how = min(deaths.items())
        seen = _last_seen(folder, rank) + _recorded(folder, rank)
        return Failure(TrainingFailed(f"worker {rank} {how}{seen}\n    {goes_on(folder)}"))
    if own:
        cause = own[0]["type"], own[0]["step"]
        return Failure(_told(folder, own[0]), lasting=own[0]["lasting"], own=True, cause=cause)
    if records:
        return Failure(_waited_for(folder, records[0], said))
    lines = [line for line in str(error).splitlines() if line.strip("= ")]
    why = lines[-1].strip() if lines else ""
    return Failure(TrainingFailed(f"the workers could not be run: {type(error).__name__}: {why}"))


def _told(folder: RunFolder, record: dict[str, Any]) -> DistdlError:
    if record["exit_code"] == 2:
        return InputError(record["message"])
    if record["known"]:
        return TrainingFailed(record["message"])
    where = folder.failures / f"rank-{record['rank']}.json"
    return TrainingFailed(f"worker {record['rank']} failed: {record['message']}\n    its traceback is in {where}")


def _beats(folder: RunFolder) -> list[Beat]:
    return [beat for beat in read_beats(folder.attempt.ranks, 1 + _last_rank(folder)) if beat]


def _last_rank(folder: RunFolder) -> int:
    return max((int(path.stem[5:]) for path in folder.attempt.ranks.glob("rank-*.beat")), default=-1)


def _last_seen(folder: RunFolder, rank: int) -> str:
    beat = next((beat for beat in _beats(folder) if beat.rank == rank), None)
    why, stack = dumped_stack(folder.attempt.ranks, rank)
    words = f"\n    last seen: {beat.phase} of step {beat.step:,}, process {beat.pid} on {beat.host}" if beat else ""
    if why:
        words += "\n".join([f"\n    {why}; its Python stack, innermost last:", *(f"      {line}" for line in stack)])
    return words


def _recorded(folder: RunFolder, rank: int) -> str:
    """What NCCL's flight recorder has written of a rank's last collectives, if it has."""
    told = flights.in_words(folder.path, rank)
    return f"\n    {told}" if told else ""


def _waited_for(folder: RunFolder, record: dict[str, Any], said: set[int]) -> DistdlError:
    """For a rank that lost another one, or waited for it in vain, where nobody says anything else."""
    where = folder.failures / f"rank-{record['rank']}.json"
    lost = (
        f"worker {record['rank']} only says that it lost another: {record['message']}\n    its traceback is in {where}"
    )
    beats = [beat for beat in _beats(folder) if beat.phase != ENDED]
    missing = [beat for beat in beats if beat.rank not in said and not beat.waits]
    odd = missing or [beat for beat in beats if len(beats) > 1 and beat.rank == out_of_step(beats)]
    if not odd:
        return TrainingFailed(f"{lost}\n    {goes_on(folder)}")
    beat = odd[0]
    gone = missing and not re.search("timed? ?out", record["message"], re.IGNORECASE)
    how = "died without a word: os._exit, a signal, or too little memory" if gone else "kept the others waiting"
    lines = [f"{named(beat)} {how}", f"    where it stood: {standing(beat)}"]
    lines += ["    its Python stack, innermost last:", *(f"      {line}" for line in beat.stack)] if beat.stack else []
    return TrainingFailed("\n".join([*lines, f"    {lost}", f"    {goes_on(folder)}"]))
