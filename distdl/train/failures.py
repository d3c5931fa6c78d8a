"""What an exception in a worker means: its own failure or that of a peer; and whether it would come again."""

from __future__ import annotations

import contextlib
import re

from distdl.config.schema import Config
from distdl.errors import DistdlError, InputError, line_in

LASTING = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError),
    *(SyntaxError, TypeError, ValueError, RecursionError),
)
"""What a mistake in Python code raises: the same code on the same samples raises it again, and no restart helps."""
OF_A_PEER = re.compile(
    r"\bgloo\b|\bnccl|c10d|TCPStore|ProcessGroup|DistBackend|DistStore|DistNetwork"
    r"|connection (was )?(reset|closed|refused)|closed by peer|broken pipe|socket timeout",
    re.IGNORECASE,
)
"""What a rank's communication says when another rank is gone, or does not come."""


def in_words(error: BaseException, config: Config | None = None) -> str:
    """What it says; of what went through the file of a user's own family, the last line there, too."""
    if isinstance(error, DistdlError):
        return str(error)
    where, code = "", ""
    if config and config.family_name.own:
        with contextlib.suppress(InputError):  # its file is gone
            where, code = line_in(error, config.family_name.source())
    return f"{type(error).__name__}: {error}" + (f" ({where}: `{code}`)" if where else "")


def is_consequence(error: BaseException) -> bool:
    """Whether it only says that another rank is gone or does not come."""
    if is_lasting(error):
        return False
    types = {kind.__name__ for kind in type(error).__mro__}
    return (
        bool(types & {"DistError", "RuntimeError"}) and OF_A_PEER.search(f"{type(error).__name__}: {error}") is not None
    )


def is_lasting(error: BaseException) -> bool:
    """Whether it would come again, so that a restart only takes time. A failure of distdl's own with a message for people
    was decided by what all of them see: the input, a number, a full disk."""
    return isinstance(error, (DistdlError, *LASTING))
