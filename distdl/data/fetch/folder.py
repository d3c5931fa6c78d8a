"""A classic data set as a folder: fetched beside its place, unpacked, and then moved there as a whole.

`.NAME.fetch` beside the folder holds what has arrived. It stays where a fetch ends early, by whatever, and the next one
goes on with it. `source.json` in the folder says where its files came from.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from distdl.data.fetch.classics import Classic, File, Mend, Unpack
from distdl.data.fetch.download import Patience, checksum_of, download
from distdl.data.folders import open_files
from distdl.data.progress import Follow, Progress
from distdl.data.store import is_remote, shown
from distdl.errors import DistdlError, InputError
from distdl.files import publish, sync, sync_folder

RECORD = "source.json"
PATIENT = Patience()


def fetch(
    classic: Classic,
    target: Path,
    *,
    mirror: str = "",
    follow: Follow | None = None,
    say: Callable[[str], None] = print,
    patience: Patience = PATIENT,
) -> bool:
    """Brings a data set into the new folder `target`; False where it was there already.

    `mirror`: a folder or URL that has its files, asked first. InputError: `target` is something else. DistdlError: it could
    not be fetched; what did arrive is kept for the next time.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        check_there(classic, target)
        return False
    place = target.absolute()
    draft = place.with_name(f".{place.name}.fetch")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        with _alone(draft, place):
            _download_all(classic, draft, mirror, follow, say, patience)
            for step in classic.steps:
                _unpack(step, draft) if isinstance(step, Unpack) else _mend(step, draft)
            for step in classic.steps:  # not before all are done: a fetch that ends here has them to go on with
                (draft / (step.archive if isinstance(step, Unpack) else step.file)).unlink()
            _record(classic, draft)
            sync_folder(draft)
            if place.is_dir():
                place.rmdir()  # it is empty
            publish(draft, place)
    except OSError as error:
        raise DistdlError(f"{target} cannot be written: {error}; what did arrive is kept") from error
    return True


def check_there(classic: Classic, target: Path) -> None:
    """InputError where the folder is not this data set: another's, or damaged."""
    fix = "give another folder: distdl data fetch NAME FOLDER; or remove this one"
    if not target.is_dir():
        raise InputError(f"{target} is no folder", fix=fix)
    gone = {step.archive if isinstance(step, Unpack) else step.file for step in classic.steps}
    recorded = _recorded(target)
    if gone and recorded.get("name") != classic.name:
        raise InputError(f"{target} exists and is not {classic.name} as `distdl data fetch` writes it", fix=fix)
    for file in classic.files:
        path = target / file.name
        if file.name in gone:
            continue
        if not path.is_file():
            raise InputError(f"{target} exists and lacks {file.name} of {classic.name}", fix=fix)
        if checksum_of(path, file.kind) != file.checksum:
            raise InputError(f"{path} is not the file that was published: its {file.kind} differs", fix=fix)
    for name, size in recorded.get("unpacked", {}).items():
        path = target / name
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path} is missing, or not of {size:,} bytes any more", fix=fix)


def _recorded(target: Path) -> dict[str, Any]:
    try:
        found = json.loads((target / RECORD).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


@contextmanager
def _alone(draft: Path, place: Path) -> Iterator[None]:
    """Nobody else fetches to the same place. InputError: somebody does."""
    folder = os.open(draft, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the draft is theirs
            raise InputError(f"another process is fetching to {place}", fix="wait for it, or end it") from None
        try:
            yield
        finally:
            with suppress(OSError):
                draft.rmdir()  # where nothing has arrived
    finally:
        os.close(folder)


def _download_all(
    classic: Classic,
    draft: Path,
    mirror: str,
    follow: Follow | None,
    say: Callable[[str], None],
    patience: Patience,
) -> None:
    here = sum(path.stat().st_size for path in draft.iterdir() if path.is_file())
    if here:
        say(f"going on with {here:,} bytes that are there from an earlier fetch")
    progress = Progress(f"fetching {classic.name}", {}, unit="kB")
    if all(file.bytes for file in classic.files):
        progress.total = classic.bytes // 1000
    before = 0

    def count(size: int) -> None:
        progress.rows = (before + size) // 1000

    for file in classic.files:
        path = draft / file.name
        if not (path.is_file() and checksum_of(path, file.kind) == file.checksum):
            path.unlink(missing_ok=True)
            with follow(progress) if follow else nullcontext():
                download(file, draft, _mirrors(file, mirror), count, say, patience)
        before += path.stat().st_size


def _mirrors(file: File, mirror: str) -> tuple[str, ...]:
    if not mirror:
        return file.urls
    own = f"{mirror.rstrip('/')}/{file.name}"
    if not is_remote(mirror) and not Path(own).is_file():
        raise InputError(f"--mirror: there is no file {own}", fix="put it there, or leave --mirror out")
    return (own, *file.urls)


def _unpack(step: Unpack, draft: Path) -> None:
    """Files of an archive, under their own names. InputError: it holds names that lead out of it, or is damaged."""
    files = open_files(str(draft / step.archive), step.endings)
    into = draft / step.into
    for number, name in enumerate(files.names):
        if not name.startswith(step.below) or name.split("/")[0] in step.without:
            continue
        path = into / name.removeprefix(step.below)  # `open_files` lets no name through that leads out
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.open(number) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def _mend(step: Mend, draft: Path) -> None:
    with (draft / step.file).open("rb") as source, (draft / step.into).open("wb") as copy:
        for number, line in enumerate(source):
            if number >= step.skip_lines and (kept := line.rstrip(b"\r\n")):
                copy.write(kept.removesuffix(step.strip.encode()) + b"\n")


def _record(classic: Classic, draft: Path) -> None:
    """What the folder holds and where it is from."""
    published = {file.name for file in classic.files}
    found = sorted(path for path in draft.rglob("*") if path.is_file())
    for path in found:
        sync(path)
    names = {str(path.relative_to(draft)): path.stat().st_size for path in found}
    record = {
        "name": classic.name,
        "about": classic.about,
        "licence": classic.licence,
        "page": classic.page,
        "files": [
            {"name": file.name, file.kind: file.checksum, "from": [shown(url) for url in file.urls]}
            for file in classic.files
        ],
        "unpacked": {name: size for name, size in names.items() if name not in published and name != RECORD},
    }
    path = draft / RECORD
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sync(path)
