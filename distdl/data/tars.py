"""Tars as they should be: Python's tarfile takes a damaged header, or a file that was cut, for the end of the archive."""

from __future__ import annotations

import tarfile


class Torn(tarfile.ReadError):
    """The archive does not go on as it should: a header is damaged, or the end mark is missing."""


class Member(tarfile.TarInfo):
    """The `tarinfo` of a TarFile whose headers must be sound up to a block of zeros. Raises Torn."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # a block of zeros: the end
        except tarfile.HeaderError as error:
            raise Torn(str(error)) from error
