"""Files that are packed (gzip, bzip2, xz, zstandard, zip with one file in it), told by their first bytes and read as a
stream: whatever is inside need not fit into memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
from typing import Any, BinaryIO

from distdl.data.inputs import BUFFER_BYTES, Checked, open_bytes
from distdl.data.store import shown
from distdl.errors import InputError

KINDS = {  # kind -> (ending, first bytes)
    "gzip": (".gz", b"\x1f\x8b"),
    "bzip2": (".bz2", b"BZh"),
    "xz": (".xz", b"\xfd7zXZ\0"),
    "zstandard": (".zst", b"\x28\xb5\x2f\xfd"),
    "zip": (".zip", b"PK\x03\x04"),
}
ENDINGS = tuple(ending for ending, _ in KINDS.values())


def without_ending(name: str) -> str:
    """A file's name without the ending that says how it is packed."""
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def open_unpacked(location: str | os.PathLike[str]) -> BinaryIO:
    """What is in a file, unpacked as it is read. InputError: there is no such file, or it is not what its name says; while
    it is read, one that names it where it is damaged."""
    path = os.fspath(location)
    raw = open_bytes(path)
    first = raw.peek(10)[:10] if isinstance(raw, io.BufferedReader) else b""
    kind = next((kind for kind, (_, magic) in KINDS.items() if first.startswith(magic)), "")
    if kind == "bzip2" and first[4:] != b"1AY&SY" and first[4:] != b"\x17rE8P\x90":
        kind = ""  # a text that begins with BZh
    if not kind:
        named = next((kind for kind, (ending, _) in KINDS.items() if path.lower().endswith(ending)), "")
        if named and first:
            raw.close()
            raise InputError(
                f"{shown(path)} is a damaged {named} file: it begins with the bytes {first[:4].hex(' ')}",
                fix="download it again, or give it another ending if it is not packed",
            )
        return raw
    unpacked = _member(raw, path) if kind == "zip" else _stream(raw, kind)
    return io.BufferedReader(Checked(unpacked, path, kind, below=raw), BUFFER_BYTES)


def _stream(raw: BinaryIO, kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")


def _member(raw: BinaryIO, path: str) -> Any:
    """The one file of a zip archive."""
    try:
        archive = zipfile.ZipFile(raw)
        members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            some = ", ".join(member.filename for member in members[:5])
            raise InputError(
                f"{shown(path)} holds {len(members)} files: {some}",
                allowed="a zip archive of one file",
                fix="unpack it and give the file that is meant",
            )
        return archive.open(members[0])
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:  # RuntimeError: a password
        raise InputError(f"{shown(path)} is a damaged zip file: {error}", fix="download it again") from error
