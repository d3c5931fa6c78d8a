"""Plain text files (.gz too) as a corpus of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from distdl.data.advice import BY_ENDING, has_ending
from distdl.data.raw import BYTE_INFO, Prepared, Rows, open_raw, pack_bytes, read_blocks, token_columns
from distdl.data.splits import SplitOptions, check_fraction, hold_out

ENDINGS = (".txt", ".text", ".md", ".rst", ".tex")


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `text`."""

    path: tuple[str, ...]
    """The file or files, separated by commas; they are read one after the other."""
    context: int = 128
    """Bytes that a row predicts; a row holds one more."""
    test_path: tuple[str, ...] = ()
    """Files that become the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`tokens` uint8 (context + 1,)."""
    check_fraction(options.test_fraction)
    for path in (*options.path, *options.test_path):
        open_raw(path).close()  # a missing file is said before the first is read
    return Prepared(token_columns(options.context), _chunks(options), BYTE_INFO)


def _chunks(options: Options) -> Iterator[tuple[str, Rows]]:
    train, test = (
        pack_bytes(chain.from_iterable(map(read_blocks, paths)), options.context)
        for paths in (options.path, options.test_path)
    )
    yield from hold_out(train, 0 if options.test_path else options.test_fraction)
    for rows in test:
        yield "test", rows


def recognise(path: Path) -> float:
    """By the ending; a file of numbers may have it, too, which a source of tables knows better."""
    return 0.6 * BY_ENDING if path.is_file() and has_ending(path, ENDINGS) else 0.0
