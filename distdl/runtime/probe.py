"""What every rank sees of its machine, the shared folder and the other ranks; `preflight` judges it.

`look_around` runs as a worker, in the process group that training would have, and trains nothing. Whatever is wrong on
a rank becomes a word in its facts: a rank that raised would leave the others waiting.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import distdl
from distdl.data.manifest import read_manifest
from distdl.errors import DistdlError

PACKAGES = ("torch", "deepspeed", "ray", "pyarrow", "safetensors")
MESSAGE_BYTES = 8 * 2**20
ROUNDS = 3
"""Messages each way, of which the fastest pair of ways counts."""
PINGS = 10
MOST_ROUNDS = 15
"""Partners that a node is measured with: all of up to 16 nodes. A pair that never spoke takes NCCL up to a second."""


@dataclass(frozen=True)
class Question:
    """What the ranks are asked to look at."""

    runs: str
    """Folder of the runs: every rank must see and write it."""
    data: str
    """Data set of the run."""
    token: str
    """Name of what is written below `runs` meanwhile."""


@dataclass
class Facts:
    """What one rank found."""

    rank: int
    node: str
    versions: dict[str, str] = field(default_factory=dict)
    gpus: list[str] = field(default_factory=list)
    """Model and memory of every GPU that this process may use."""
    shared_memory_bytes: int = 0
    free_bytes: int = 0
    """In the folder of the runs, as far as there is one."""
    folder: str = ""
    """'' where the shared folder is one; else what is wrong, as one of the words in `preflight.FOLDER`."""
    fingerprint: str = ""
    """Of the data set; '' where it could not be read, and `data_error` says why."""
    data_error: str = ""
    clock_s: float = 0.0
    """Seconds by which this rank's clock is ahead of the first rank's."""
    links: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Rank of another node -> MB/s and milliseconds one way; told by the lower rank of the two."""


def look_around(question: Question, rank: int, world: int, node: str) -> list[Facts]:
    """The facts of all ranks, on every rank. Collective; torch.distributed must be initialised."""
    facts = Facts(rank, node, versions(), gpus(), _total("/dev/shm"), _free(question.runs))
    nodes = gathered(node, world)
    _share(question, facts, world)
    try:
        facts.fingerprint = read_manifest(question.data).fingerprint
    except (DistdlError, OSError) as error:
        facts.data_error = str(error).splitlines()[0]
    speakers = [nodes.index(name) for name in dict.fromkeys(nodes)]  # the first rank of each node
    if len(speakers) == 1:
        speakers = list(range(min(world, 2)))
    for pairs in clock_rounds(speakers):
        for a, b in pairs:
            if rank in (a, b):
                facts.clock_s += _clock(rank, a, b, facts.clock_s)
    for pairs in rounds(speakers, MOST_ROUNDS):
        for a, b in pairs:
            if rank in (a, b):
                link = _link(rank, a, b)
                if rank == a:
                    facts.links[b] = link
    return gathered(facts, world)


def versions() -> dict[str, str]:
    """What must be the same on every node: Python, the libraries, our own source, the GPU driver."""
    found = {"Python": platform.python_version(), "distdl's source": source_digest()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        file = Path("/proc/driver/nvidia/version")
        found["the GPU driver"] = file.read_text().splitlines()[0] if file.is_file() else "unknown"
    return found


def source_digest() -> str:
    """Twelve digits that change with any line of this package."""
    root = Path(distdl.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:12]


def gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in found]


def rounds(speakers: Sequence[int], most: int | None = None) -> Iterator[list[tuple[int, int]]]:
    """Every pair once, in rounds in which nobody has two partners (the circle method); `most`: so many rounds, in which
    each has as many partners as any other. A node that is slow is slow with all of them."""
    seats: list[int | None] = [*speakers, *([None] if len(speakers) % 2 else [])]
    for _ in range(len(seats) - 1 if most is None else min(len(seats) - 1, most)):
        half = len(seats) // 2
        pairs = [(a, b) for a, b in zip(seats[:half], reversed(seats[half:])) if a is not None and b is not None]
        yield [(min(pair), max(pair)) for pair in pairs]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def clock_rounds(speakers: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Who tells whom the time of the first, in rounds in which twice as many know it: (who knows it, who does not)."""
    known = 1
    while known < len(speakers):
        yield [(speakers[i], speakers[known + i]) for i in range(min(known, len(speakers) - known))]
        known *= 2


def gathered(value: Any, world: int) -> list[Any]:
    """Every rank's value, on every rank. Only our own processes' objects travel here."""
    values: list[Any] = [None] * world
    if world == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


# -- the shared folder -------------------------------------------------------------------------------------------------


def _share(question: Question, facts: Facts, world: int) -> None:
    """The first rank writes, all read that and write, the first rank reads it all."""
    place = Path(question.runs) / f".preflight-{question.token}"
    if facts.rank == 0:
        facts.folder = _tried(place.mkdir) or _tried(lambda: _put(place, 0, question.token))
    gathered(None, world)
    if facts.rank:
        if not Path(question.runs).is_dir():
            facts.folder = "missing"
        elif not place.is_dir():
            facts.folder = "other"
        else:
            facts.folder = _tried(lambda: _put(place, facts.rank, (place / "0").read_text(encoding="utf-8")))
    fine = gathered(not facts.folder, world)
    if facts.rank == 0 and not facts.folder:
        for other in range(1, world):
            text = _tried(lambda other=other: _same((place / str(other)).read_text(encoding="utf-8"), question.token))
            if fine[other] and text:
                facts.folder = f"one way {other}"
        shutil.rmtree(place, ignore_errors=True)


def _put(place: Path, rank: int, text: str) -> None:
    (place / str(rank)).write_text(text, encoding="utf-8")


def _same(a: str, b: str) -> None:
    if a != b:
        raise OSError("other content")


def _tried(action: Any) -> str:
    """'' or the error of the file system in a few words."""
    try:
        action()
    except OSError as error:
        return f"error {error.strerror or error}"
    return ""


def _free(path: str) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def _total(path: str) -> int:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return 0


# -- the other ranks ---------------------------------------------------------------------------------------------------


def _device() -> torch.device:
    return torch.device("cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu")


def _clock(rank: int, knows: int, asks: int, ahead_s: float) -> float:
    """Seconds by which the clock of the rank that asks is ahead of the first rank's; 0 for the one that knows how much its
    own is (`ahead_s`). The exchange with the shortest way there and back tells it best (Cristian 1989)."""
    best = (float("inf"), 0.0)
    told = torch.zeros(1, dtype=torch.float64, device=_device())
    for _ in range(PINGS):
        if rank == knows:
            begin = time.time()
            dist.send(told, asks)
            dist.recv(told, asks)
            theirs, end = told.item(), time.time()
            told[0] = theirs - (begin + end) / 2 + ahead_s  # how far the other is ahead
            dist.send(told, asks)
            dist.send(torch.full_like(told, end - begin), asks)
        else:
            way = torch.zeros_like(told)
            dist.recv(told, knows)
            told[0] = time.time()
            dist.send(told, knows)
            dist.recv(told, knows)
            dist.recv(way, knows)
            best = min(best, (way.item(), told.item()))
    return 0.0 if rank == knows else best[1]


def _link(rank: int, a: int, b: int) -> tuple[float, float]:
    """MB/s and milliseconds one way between ranks a and b, by messages there and back."""
    small = torch.zeros(1, device=_device())
    large = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8, device=_device())
    there, back = (dist.send, dist.recv) if rank == a else (dist.recv, dist.send)
    other = b if rank == a else a

    def fastest(message: torch.Tensor, times: int) -> float:
        seconds = []
        for _ in range(times):
            begin = time.perf_counter()
            there(message, other)
            back(message, other)
            message[0].item()  # waits for a GPU
            seconds.append(time.perf_counter() - begin)
        return min(seconds) / 2

    fastest(small, 2)  # connects
    return MESSAGE_BYTES / 1e6 / max(fastest(large, ROUNDS), 1e-9), 1e3 * fastest(small, PINGS)
