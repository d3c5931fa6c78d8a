"""`Name_TRAIN.ts` and `Name_TEST.ts` belong together, as the archives name their files."""

from __future__ import annotations

from pathlib import Path

from distdl.data.unpack import without_ending
from distdl.errors import InputError


def find_pair(path: str, test_path: str, endings: tuple[str, ...]) -> tuple[str, str, list[str]]:
    """The training file; the test file, which is "" where there is none; and what was guessed."""
    named = Path(path)
    if named.is_dir():
        found = sorted(
            p for p in named.iterdir() if without_ending(p.name).endswith(tuple(f"_TRAIN{e}" for e in endings))
        )
        if len(found) != 1:
            raise InputError(
                f"{path} holds {len(found)} files that end in {' or '.join(f'_TRAIN{e}' for e in endings)}",
                fix="name the file: path=" + (str(found[0]) if found else f"{path}/..."),
            )
        named, path = found[0], str(found[0])
    beside = named.with_name(named.name.replace("_TRAIN.", "_TEST."))
    if not test_path and beside != named and beside.is_file():
        return path, str(beside), [f"{beside} is the split test of {named}"]
    return path, test_path, []
