"""What NCCL's flight recorder has written of a run whose collective did not end: which one, of which rank, and who had not
come to it.

    runs/NAME/nccl-rank-3       rank 3's last collectives, written by torch's watchdog as it ends the process

The files are pickles. They are not unpickled, which could run code: the dozen instructions of plain data are followed here.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.run.folder import FLIGHTS

LARGEST_BYTES = 64 * 2**20
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
MARK: Any = object()


@dataclass(frozen=True)
class Flight:
    """A collective that a rank has asked for."""

    rank: int
    name: str
    """`all_reduce`"""
    group: str
    number: int
    """Of the collectives of its group, counted alike on all ranks."""
    done: bool
    sizes: tuple[Any, ...] = ()
    place: str = ""
    """Whose call it was: `file.py:12 in function`."""


def in_words(folder: Path, rank: int) -> str:
    """The collective that a rank did not end, and the ranks that had not come to it; '' where nothing was written."""
    files = {int(file.name.removeprefix(FLIGHTS)): file for file in _files(folder)}
    if rank not in files:
        return ""
    try:
        known = {number: read(file, number) for number, file in files.items()}
    except (OSError, ValueError) as error:
        return f"its last collectives are in {files[rank]}, which cannot be read: {error}"
    where = f"the last collectives of all ranks are in {folder / FLIGHTS}* (`torchfrtrace` compares them)"
    waiting = next((flight for flight in known[rank] if not flight.done), None)
    if waiting is None:
        return f"it waited for no collective; {where}"
    lines = [f"it waited in {_named(waiting)}" + (f", asked for in {waiting.place}" if waiting.place else "")]
    for other in sorted(known.keys() - {rank}):
        mine = [flight for flight in known[other] if flight.group == waiting.group]
        there = next((flight for flight in mine if flight.number == waiting.number), None)
        if there and (there.name, there.sizes) != (waiting.name, waiting.sizes):
            lines.append(f"worker {other} was in another one there: {_named(there)}")
        elif mine and mine[-1].number < waiting.number:
            lines.append(f"worker {other} had not come to it; its last: {_named(mine[-1])}")
    return "\n    ".join([*lines, where])


def forget(folder: Path) -> None:
    """What was written of workers that are gone: it says nothing of those that start now."""
    for file in _files(folder):
        file.unlink(missing_ok=True)


def read(file: Path, rank: int) -> list[Flight]:
    """A rank's collectives, first to last. ValueError: that is not what a flight recorder writes."""
    if (size := file.stat().st_size) > LARGEST_BYTES:
        raise ValueError(f"{size:,} bytes are no flight recorder's")
    told = plain_data(file.read_bytes())
    entries = told.get("entries") if isinstance(told, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no entries")
    try:
        return [_flight(entry, rank) for entry in entries if not entry.get("is_p2p")]
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"an entry is none: {error!r}") from error


def plain_data(pickled: bytes) -> Any:
    """What a pickle of dictionaries, lists, tuples, texts and numbers holds. ValueError: it has something else, too."""
    stack: list[Any] = []
    memory: dict[Any, Any] = {}
    try:
        for instruction, argument, _ in pickletools.genops(pickled):
            name = instruction.name
            if name in NUMBERS:
                stack.append(argument)
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name])
            elif name == "STOP":
                return stack.pop()
            elif name in ("BINPUT", "LONG_BINPUT"):
                memory[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memory[argument])
            elif name != "PROTO":
                _build(name, stack)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it is cut off or damaged: {error!r}") from error
    raise ValueError("it is cut off")


def _build(name: str, stack: list[Any]) -> None:
    """Follows an instruction that makes or fills something."""
    if name == "MARK":
        stack.append(MARK)
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        size = int(name[-1])
        stack[-size:] = [tuple(stack[-size:])]
    elif name in ("SETITEMS", "APPENDS", "TUPLE"):
        begin = len(stack) - 1 - next(i for i, value in enumerate(reversed(stack)) if value is MARK)
        values = stack[begin + 1 :]
        del stack[begin:]
        if name == "TUPLE":
            stack.append(tuple(values))
        elif name == "APPENDS":
            stack[-1].extend(values)
        else:
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
    elif name == "APPEND":
        stack[-2].append(stack.pop())
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        stack[-1][key] = value
    else:
        raise ValueError(f"it asks for {name}, which plain data does not")


def _flight(entry: dict[str, Any], rank: int) -> Flight:
    frames = [frame for frame in entry.get("frames") or [] if "/torch/" not in str(frame["filename"])]
    place = f"{Path(frames[0]['filename']).name}:{frames[0]['line']} in {frames[0]['name']}" if frames else ""
    done = bool(entry.get("retired")) or entry.get("state") == "completed"
    name, sizes = str(entry["profiling_name"]).partition(":")[2], tuple(map(tuple, entry.get("input_sizes") or ()))
    return Flight(rank, name, str(entry["process_group"][0]), int(entry["collective_seq_id"]), done, sizes, place)


def _named(flight: Flight) -> str:
    sizes = ", ".join("x".join(map(str, size)) or "one number" for size in flight.sizes[:3])
    return f"{flight.name} number {flight.number:,}" + (f" of {sizes}" if sizes else "")


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.glob(f"{FLIGHTS}*") if file.name.removeprefix(FLIGHTS).isdecimal()]
