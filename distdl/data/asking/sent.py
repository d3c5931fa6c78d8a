"""What is said of a row of JSON that cannot be read, and files within one."""

from __future__ import annotations

import base64
import binascii
import io
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from distdl.data.pictures import read_header
from distdl.errors import InputError, nearest

FEW = 20
"""Names that a message lists."""
MOST_PIXELS = 64_000_000
"""Of a picture that is sent: a small file may hold a large one."""


def shown(value: Any) -> str:
    """A value in a message."""
    text = reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def object_of(row: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """InputError: a row is no object."""
    if isinstance(row, Mapping):
        return row
    listed = ", ".join(f'"{name}": ...' for name in names[:3]) + (", ..." if len(names) > 3 else "")
    raise InputError(f"the row is {shown(row)}, which is no object", allowed=f"{{{listed}}}")


def missing(name: str, names: Sequence[str], strange: Sequence[str], null: bool = False) -> InputError:
    """The refusal of a row that lacks a column. `strange`: what it has that is none; `null`: values may be unknown."""
    near = nearest(name, strange)
    known = f'"{name}": null says that it is not known' if null else ""
    fix = f"did you mean '{name}' by '{near}'?" if near else known
    return InputError(f"the row has no '{name}', which the model reads", allowed=", ".join(names[:FEW]), fix=fix)


def picture_told(record: Mapping[str, Any]) -> dict[str, Any]:
    """What pictures are brought to."""
    brought = {"size": list(record["size"]), "channels": record["channels"]}
    return {"kind": "picture", "as": "a file in base64", **brought, "null": False}


def file_of(name: str, value: Any) -> bytes:
    """The bytes of a file in base64, or of its data: URL. InputError: it is none; a path would be one of this machine."""
    text = value.partition(",")[2] if isinstance(value, str) and value.startswith("data:") else value
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (AttributeError, ValueError, binascii.Error):
        content = b""
    if not content:
        what = f"'{name}' has the value {shown(value)}, which is no file in base64"
        raise InputError(what, fix="send the bytes of the file, as `base64 -w0 FILE` prints them")
    return content


def picture_of(name: str, value: Any) -> bytes:
    """The same of a picture. InputError for one of more pixels than a server should hold, too."""
    content = file_of(name, value)
    header = read_header(io.BytesIO(content), f"the picture of '{name}'")
    if header.height * header.width > MOST_PIXELS:
        what = f"the picture of '{name}' has {header.height:,} x {header.width:,} pixels"
        raise InputError(what, allowed=f"up to {MOST_PIXELS:,} pixels", fix="send it smaller")
    return content
