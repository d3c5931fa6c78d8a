"""A finished data set on its way to where it is to be: by one rename, or file by file into a store."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from distdl.data.bad_rows import FILE as BAD_ROWS
from distdl.data.manifest import FILE_NAME, Manifest
from distdl.data.store import remote_file
from distdl.errors import InputError
from distdl.files import publish, sync_folder


def put_in_place(folder: Path, target: Path, overwrite: bool) -> None:
    """Move the finished folder into place; an older data set that is to be replaced is set aside first and removed last."""
    aside = folder.with_name(folder.name.replace(".tmp-", ".old-"))
    if overwrite and target.exists():
        os.rename(target, aside)
    sync_folder(folder)
    try:
        publish(folder, target)  # fails where a data set has come to be a moment ago
    except OSError as error:
        if aside.exists():
            os.rename(aside, target)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise InputError(f"{target} already exists", fix="choose another target, or pass --overwrite") from None
        raise
    shutil.rmtree(aside, ignore_errors=True)


def upload(folder: Path, target: str, manifest: Manifest) -> None:
    """Copy the shards and last the manifest; an old manifest goes first, so that a mixture is never read as one."""
    filesystem, manifest_path = remote_file(target, FILE_NAME)
    filesystem.create_dir(os.path.dirname(manifest_path), recursive=True)
    if filesystem.get_file_info(manifest_path).is_file:
        filesystem.delete_file(manifest_path)
    listed = remote_file(target, BAD_ROWS)[1]
    if filesystem.get_file_info(listed).is_file:
        filesystem.delete_file(listed)  # of the older data set
    files = [shard.file for split in manifest.splits.values() for shard in split.shards]
    beside = [BAD_ROWS] if (folder / BAD_ROWS).is_file() else []
    for name in [*files, *beside, FILE_NAME]:
        with open(folder / name, "rb") as source, filesystem.open_output_stream(remote_file(target, name)[1]) as sink:
            shutil.copyfileobj(source, sink, 8 << 20)
