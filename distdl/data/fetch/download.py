"""One file from the first of its mirrors that gives it whole: resumed where it was broken off, and compared with its
checksum before it has its name.

Whatever arrives goes to `NAME.part`, where the next try and the next mirror go on (HTTP Range), for the checksum says in
the end whether all of it belongs together. Only then it becomes `NAME`.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distdl import __version__
from distdl.data.fetch.classics import File
from distdl.data.store import COPY_BYTES, is_remote, shown
from distdl.errors import DataCorrupt, DistdlError, InputError
from distdl.files import publish, sync

BLOCK_BYTES = 1 << 16
BROKEN = (OSError, http.client.HTTPException, TimeoutError)
"""What a connection ends with that does not end well; of urllib too."""
LATER = (429, 500, 502, 503, 504)
"""What a server answers that may have the file a moment later."""


@dataclass(frozen=True)
class Patience:
    """How long a mirror is waited for."""

    silence_s: float = 30.0
    """Without a byte from it."""
    slow_bytes_per_s: float = 20e3
    """Slower than this, the next mirror is asked, if there is one."""
    slow_after_s: float = 20.0
    tries: int = 4
    """Of one mirror, as long as each brings some bytes."""
    pause_s: float = 1.0
    """Before another try, longer each time."""


class _Given(Exception):
    """A mirror is given up; why is the first argument."""


def download(
    file: File,
    folder: Path,
    mirrors: Sequence[str],
    count: Callable[[int], None],
    say: Callable[[str], None],
    patience: Patience,
) -> None:
    """Brings a file into the folder. `mirrors`: URLs of the file, or paths on this machine. `count` is told how many bytes
    are there. DistdlError: no mirror gives it; what did arrive stays. DataCorrupt: what they give is another file."""
    part, failures = folder / f"{file.name}.part", []
    for i, mirror in enumerate(mirrors):
        other = i + 1 < len(mirrors)
        try:
            _from_mirror(file, part, mirror, count, patience, other)
            publish(part, folder / file.name)
            return
        except _Given as given:
            failures.append((mirror, str(given)))
            if other:
                say(f"{shown(mirror)}: {given}; trying {shown(mirrors[i + 1])}")
    told = "".join(f"\n    {shown(mirror)}: {why}" for mirror, why in failures)
    if all(why.startswith(_Wrong.WHAT) for _, why in failures):
        raise DataCorrupt(
            f"{file.name} is not the file that was published, with the {file.kind} {file.checksum}:{told}\n    fix: try "
            "again later; or --mirror URL, where a folder has the right one"
        )
    have = part.stat().st_size if part.exists() else 0
    kept = f"; {have:,} bytes of it are kept, and the same command goes on behind them" if have else ""
    raise DistdlError(
        f"{file.name} could not be fetched{kept}:{told}\n    fix: check the network (https_proxy=http://HOST:PORT for a "
        "proxy); or --mirror URL, a folder with its files here or elsewhere"
    )


def _from_mirror(
    file: File, part: Path, mirror: str, count: Callable[[int], None], patience: Patience, other: bool
) -> None:
    """The whole file in `part`, proven. Raises _Given."""
    for attempt in range(patience.tries + 1):
        begun = part.stat().st_size if part.exists() else 0
        try:
            if not file.bytes or begun < file.bytes:
                _receive(file, part, mirror, count, patience, other)
            count(part.stat().st_size)
            found = checksum_of(part, file.kind)
            if found == file.checksum:
                sync(part)
                return
            part.unlink()
            if not begun:
                raise _Wrong(file, found)
            # What was there before may have been another's; all of it once more.
        except BROKEN as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in LATER:
                raise _Given(_in_words(error, patience)) from None
            grown = (part.stat().st_size if part.exists() else 0) > begun
            if attempt >= patience.tries - 1 or not (grown or attempt == 0):
                raise _Given(_in_words(error, patience)) from None
            time.sleep(patience.pause_s * 2**attempt)
    raise _Given(f"broken off {patience.tries} times")


class _Wrong(_Given):
    WHAT = "another file"

    def __init__(self, file: File, found: str) -> None:
        super().__init__(f"{self.WHAT}, of the {file.kind} {found}")


def _receive(
    file: File, part: Path, mirror: str, count: Callable[[int], None], patience: Patience, other: bool
) -> None:
    """Appends what a mirror has behind the end of `part`. Raises OSError and others where the connection breaks, _Given."""
    if not is_remote(mirror):
        with open(mirror, "rb") as source, part.open("wb") as copy:
            shutil.copyfileobj(source, copy, COPY_BYTES)
        return
    begin = part.stat().st_size if part.exists() else 0
    with closing(_opened(mirror, begin, patience)) as answer:
        if answer.status == 206 and _first_byte(answer) != begin:
            raise _Given("it answers with another part of the file than was asked for")
        begin = begin if answer.status == 206 else 0
        left = answer.headers.get("Content-Length", "")
        total = begin + int(left) if left.isdecimal() else 0
        if total and file.bytes and total != file.bytes:
            raise _Given(f"{_Wrong.WHAT}, of {total:,} bytes instead of {file.bytes:,}")
        with part.open("ab" if begin else "wb") as copy:
            for block in _blocks(answer, patience, other):
                _append(copy, block)
                begin += len(block)
                count(begin)
                if file.bytes and begin > file.bytes:
                    raise _Given(f"{_Wrong.WHAT}, of more than {file.bytes:,} bytes")
        if total > begin or (file.bytes and begin < file.bytes):
            raise ConnectionError(f"broken off after {begin:,} of {total or file.bytes:,} bytes")


def _append(copy: BinaryIO, block: bytes) -> None:
    try:
        copy.write(block)
        copy.flush()  # so that what is kept is what was counted
    except OSError as error:  # no mirror is to blame
        raise DistdlError(f"{copy.name} cannot be written: {error}; what is there is kept") from error


def _opened(url: str, begin: int, patience: Patience) -> Any:
    if not url.lower().startswith(("http://", "https://")):
        raise InputError(f"{shown(url)} is no place to fetch from", allowed="http:// and https:// URLs, or a folder")
    headers = {"User-Agent": f"distdl/{__version__}", "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=patience.silence_s)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begin:  # 416: there is nothing behind what we have
            raise
        return _opened(url, 0, patience)


def _first_byte(answer: Any) -> int:
    unit, _, told = answer.headers.get("Content-Range", "").partition(" ")
    first = told.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1


def _blocks(answer: BinaryIO, patience: Patience, other: bool) -> Iterator[bytes]:
    """What arrives. Raises _Given where it comes too slowly, and another mirror is there."""
    since, received = time.monotonic(), 0
    while block := answer.read(BLOCK_BYTES) if not hasattr(answer, "read1") else answer.read1(BLOCK_BYTES):
        received += len(block)
        yield block
        passed = time.monotonic() - since
        if passed >= patience.slow_after_s:
            if other and received < patience.slow_bytes_per_s * passed:
                raise _Given(f"slow, {received / passed / 1e3:,.1f} kB/s")
            since, received = time.monotonic(), 0


def checksum_of(path: Path, kind: str) -> str:
    """The hexadecimal digits of a file's sha256 or md5."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _in_words(error: BaseException, patience: Patience) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = getattr(error, "reason", error)  # of urllib
    if isinstance(reason, TimeoutError):
        return f"nothing came for {patience.silence_s:g} s"
    if isinstance(reason, socket.gaierror):
        return "there is no such host, or no network"
    return shown(str(reason) or type(error).__name__)
