"""What a secret looks like in a text: such a text is written nowhere, and shown to nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from distdl.errors import Problem

QUERY_KEYS = ("password", "passwd", "pwd", "token", "secret", "api_key")
"""Arguments of a URI that are credentials."""
SECRET_TEXT = re.compile(
    r"(?P<URI>://[^/\s:@'\"]*:[^/\s@'\"]+@)"
    rf"|(?P<QUERY>[?&](?i:{'|'.join(QUERY_KEYS)})=)[^&\s'\"{{}}$<]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}|xox[abp]-[0-9A-Za-z-]{10,})\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
)
"""A URI with a password or a token, a private key, and the tokens that tell themselves by their first letters."""


def redacted(text: str) -> str:
    """The text with stars for what looks like a secret: of a URI's password, the user and the place stay."""
    return SECRET_TEXT.sub(_starred, text)


def _starred(found: re.Match[str]) -> str:
    if found["URI"]:
        return f"{found[0].rpartition(':')[0]}:***@"
    return f"{found['QUERY'] or ''}***"


def secrets_in(values: Iterable[tuple[tuple[str, ...], Any]]) -> Iterator[tuple[str, ...]]:
    """Key paths whose value holds a secret."""
    return (path for path, value in values if SECRET_TEXT.search(str(value)))


def secret_problem(key: str, where: str) -> Problem:
    """What is wrong with a config that holds a secret: it is written to the run's folder. The secret is not repeated."""
    fix = "take it out: the environment gives credentials (MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY, …)"
    return Problem(f"the value of {key} holds a password or a key", without_value(where), fix=fix)


def without_value(where: str) -> str:
    """Where a value comes from; of an argument, whose text is the value, the key alone."""
    key, equals, _ = where.partition("=")
    return f"{key}=…'" if equals and key.startswith("argument '") else where
