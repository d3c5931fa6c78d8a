"""WebDataset: tars of samples (packed or not), a file for each field, all files of a sample one after another.

    cats/0001.jpg  cats/0001.cls  cats/0002.jpg  cats/0002.cls       samples `cats/0001`, `cats/0002`; fields jpg, cls

What parts key and field is the first dot behind the last slash: `a.b/0001.seg.png` is the field `seg.png` of `a.b/0001`.

The library itself lets a sample pass that lacks a field, takes a tar that was cut for a shorter one, and a damaged header
for its end. Here each is refused, with shard and sample, and nothing is unpacked to the disk: that is why a reader on
top of Python's tarfile stands in its place.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distdl.data.advice import SURE, Advice, Wish
from distdl.data.bad_rows import BadRows
from distdl.data.raw import Prepared, open_raw
from distdl.data.samples.advice import samples_advice
from distdl.data.samples.fields import PICTURES, SampleOptions, prepare_samples
from distdl.data.samples.values import Picture, Sample
from distdl.data.tars import Member
from distdl.errors import InputError

LARGEST_BYTES = 1 << 30
"""Of one file of a sample, which is held in memory."""
TEXT = ("txt", "text", "transcript", "cls", "class", "label")
WHOLE = ("index", "inx", "id", "count")
CODE = ("pyd", "pickle", "pkl", "pth", "pt")
"""Reading them runs what they say."""
FOREIGN = ("ten", "tb", "mp", "msg", "cbor")
META = re.compile(r"__[^/]*__($|/)")
PART = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Options(SampleOptions):
    """Options of the source `webdataset`."""

    path: str
    """The shards: one file, a pattern as `train-*.tar`, or braces as `train-{000000..000003}.tar`."""
    key: Literal["first", "last"] = "first"
    """The dot that parts a sample's key and its field: the first one behind the last slash, as WebDataset has it, or the
    last, for names as `img.0001.jpg`."""


def prepare(options: Options) -> Prepared:
    """Pictures uint8 (C, H, W), `label` int64, numbers and arrays as they are, other text and bytes as bytes."""
    notes: list[str] = []
    bad = BadRows(options)
    train = _Shards(options.path, options.key, notes, bad)
    test = _Shards(options.test_path, options.key, notes, bad).read if options.test_path else None
    info = {"key": f"the {options.key} dot behind the last slash parts key and field"}
    return prepare_samples("webdataset", options, train.read, test, info, notes, bad)


def expand(pattern: str) -> list[str]:
    """`a-{00..02}.tar`, `{a,b}.tar`, `*.tar` -> the files. InputError: there are none."""
    pieces = PART.split(pattern)  # text, inside of braces, text, ...
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    paths: list[str] = []
    for path in map("".join, product(*choices)):
        found = sorted(glob.glob(path)) if "://" not in path and glob.has_magic(path) else [path]
        if not found:
            raise InputError(f"no file is named {path}", fix="check the pattern")
        paths += found
    return paths


def _choices(inside: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not ends:
        return inside.split(",")
    low, high = int(ends[1]), int(ends[2])
    return [str(n).zfill(len(ends[1])) for n in range(low, high + 1)]


class _Shards:
    """Tars that can be read again and again."""

    def __init__(self, pattern: str, key: str, notes: list[str], bad: BadRows) -> None:
        self.paths, self.key, self.notes, self.bad = expand(pattern), key, notes, bad
        self.told = self.dotted = False  # what was left out, and how a name with several dots is parted, is said once
        for path in self.paths:
            open_raw(path).close()  # a missing shard is refused before the first is read

    def read(self, wanted: Sequence[str]) -> Iterator[Sample]:
        """The samples of all shards, of which only the fields that `wanted` names (or holds parts of) are decoded."""
        left_out: list[str] = []
        for path in self.paths:
            yield from self._samples(path, wanted, left_out)
        if left_out and not self.told:
            first = left_out[0]
            self.notes.append(f"{len(left_out):,} files that have no key and field were left out, the first is {first}")
        self.told = True

    def _samples(self, path: str, wanted: Sequence[str], left_out: list[str]) -> Iterator[Sample]:
        current, fields = "", dict[str, Any]()
        seen: set[str] = set()
        for name, content in members(path):
            key, field = split_name(name, self.key)
            where = f"{path}, {name}"
            if not key:
                left_out.append(where)
                continue
            if key != current:
                yield from self._whole(path, current, fields)
                if key in seen:
                    raise InputError(
                        "the files of the sample do not stand together",
                        where=f"{path}, sample {key}",
                        fix="sort the tar by names (tar --sort=name)",
                    )
                seen.add(key)
                current, fields = key, {}
            if "." in field and not self.dotted:
                self.dotted = True
                told = f"{where}: the key is {key}, the field {field} (key=last parts them at the last dot)"
                self.notes.append(told)
            if field in fields:
                raise InputError(f"the sample has the field {field} twice", where=f"{path}, sample {key}")
            if not wanted or any(name == field or name.startswith(f"{field}.") for name in wanted):
                with self.bad.row(f"{path}, sample {key}", content, reason="damaged field"):
                    fields[field] = decoded(content, field, where)
        yield from self._whole(path, current, fields)

    def _whole(self, path: str, key: str, fields: dict[str, Any]) -> Iterator[Sample]:
        """A sample when all its files have gone by, unless it was set aside."""
        where = f"{path}, sample {key}"
        if key and where not in self.bad:
            yield Sample(where, fields)


def split_name(name: str, dot: str = "first") -> tuple[str, str]:
    """A member's key, and its field in lower case; both empty where it has none."""
    slash = name.rfind("/") + 1
    at = name.find(".", slash) if dot == "first" else name.rfind(".", slash)
    return (name[:at], name[at + 1 :].lower()) if at > slash else ("", "")


def members(path: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of a tar, in their order, one at a time. InputError: it is damaged, or cut."""
    name = ""
    with open_raw(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|", tarinfo=Member) as tar:
                for member in tar:
                    name = member.name
                    tar.members = []  # type: ignore[attr-defined]  # which would grow with the archive
                    if member.islnk() or member.issym():
                        raise InputError(
                            f"{name} is a link to {member.linkname}", where=path, fix="store the file itself"
                        )
                    if not member.isreg() or META.match(name):
                        continue
                    if member.size > LARGEST_BYTES:
                        what = f"{name} has {member.size / 2**30:.1f} GiB"
                        raise InputError(what, where=path, allowed=f"{LARGEST_BYTES / 2**30:.0f} GiB for one file")
                    content = tar.extractfile(member)
                    yield name, content.read() if content else b""
                while block := tar.fileobj.read(1 << 20):
                    if block.strip(b"\0"):
                        raise InputError(
                            f"{path} goes on after its end: it is several tars in one file",
                            fix="make them several files",
                        )
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            after = f", after {name}" if name else ""
            raise InputError(
                f"{path} is damaged or was cut{after}: {error}", fix="copy or download it again"
            ) from error


def decoded(content: bytes, field: str, where: str) -> Any:
    """A field as its ending says."""
    ending = field.rpartition(".")[2]
    if ending == "gz" and "." in field:
        return decoded(_gunzipped(content, where), field[:-3], where)
    if ending in CODE:
        raise InputError(f"a .{ending} may run code when it is read", where=where, fix="leave it out by fields=")
    if ending in FOREIGN:
        raise InputError(f"distdl does not read .{ending}", where=where, fix="leave it out by fields=")
    try:
        if ending in TEXT:
            return content.decode()
        if ending in WHOLE:
            return int(content)
        if ending in ("json", "jsn"):
            return json.loads(content)
        if ending in ("npy", "npz"):
            array = np.load(io.BytesIO(content), allow_pickle=False)
            return _arrays(array, where) if ending == "npz" else array
    except (MemoryError, ValueError, RecursionError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"the field is not what .{ending} says: {error}", where=where) from error
    return Picture(content) if ending in PICTURES else content


def _gunzipped(content: bytes, where: str) -> bytes:
    try:
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"the field cannot be unpacked: {error}", where=where) from error
    if len(unpacked) > LARGEST_BYTES:
        raise InputError("the field unpacks to more than is held in memory", where=where, allowed=f"{LARGEST_BYTES:,}")
    return unpacked


def _arrays(archive: Any, where: str) -> dict[str, np.ndarray]:
    """Those of an .npz, which says before how large they become."""
    size = sum(info.file_size for info in archive.zip.infolist())
    if size > LARGEST_BYTES:
        raise InputError(f"the arrays have {size:,} bytes", where=where, allowed=f"{LARGEST_BYTES:,}")
    return {name: archive[name] for name in archive.files}


ENDINGS = (".tar", ".tar.gz", ".tgz")
SURER = (1 + SURE) / 2
"""Than that a tar holds folders of pictures: of those that have a class beside them there are as many."""
SEEN = 20
"""Files of a tar that are looked at."""


def recognise(path: Path) -> float:
    """A tar of several files for each key, or a folder of such."""
    shards = _shards_in(path)
    if not shards:
        return 0.0
    names: list[str] = []
    with contextlib.suppress(InputError):
        names += [name for name, _ in islice(members(str(shards[0])), SEEN)]
    keys = [key for key, _ in map(split_name, names)]
    several = sum(a == b for a, b in pairwise(keys))  # files that go on with the sample of the one before
    return SURER if all(keys) and several >= len(set(keys)) - 1 > 0 else 0.0


def _shards_in(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
    return [path] if path.is_file() and path.name.endswith(ENDINGS) else []


def advise(path: str, wish: Wish) -> Advice:
    """What to learn of each sample, and which of a folder's shards are tested, for `distdl init`."""
    options: dict[str, Any] = {"path": path}
    if Path(path).is_dir():
        shards = _shards_in(Path(path))
        ending = shards[0].name[shards[0].name.index(".tar") :] if ".tar" in shards[0].name else ".tgz"
        options["path"] = f"{path}/*{ending}"
        heads = {name: [s for s in shards if s.name.startswith(name)] for name in ("train", "test", "val")}
        if heads["train"] and sum(map(len, heads.values())) == len(shards) > len(heads["train"]):
            other = "test" if heads["test"] else "val"
            options |= {"path": f"{path}/train*{ending}", "test_path": f"{path}/{other}*{ending}"}
    read = _Shards(options["path"], "first", [], BadRows(Options(path=path))).read
    return samples_advice("webdataset", path, read, wish, options)
