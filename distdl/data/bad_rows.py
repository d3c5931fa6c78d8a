"""Rows that cannot be used (a value that does not parse, a picture that cannot be read): refused, or set aside.

    bad = BadRows(options)
    with bad.row(where, content):      # what is refused within is a bad row; without `bad_rows=set_aside` it is refused
        ...
    if where in bad: continue          # in every further pass the same rows are left out
    bad.check(good)                    # too many of them: the options are wrong rather than the rows

What is set aside is listed in `bad_rows.jsonl` beside the data set's shards, a JSON object for each row. A source looks for
bad rows before it shares rows out or fits anything, so that the data set is a function of the good rows and their order.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import xxhash

from distdl.errors import DistdlError, InputError, Problem

FILE = "bad_rows.jsonl"
LISTED_ROWS, LISTED_BYTES = 100_000, 32 << 20
"""Rows that are listed one by one, and bytes of their list; beyond either they are counted."""
CONTENT = 500
"""Characters of a row's content that are listed."""
READ_AGAIN_BYTES = 64 << 20
"""Files of which a refusal tells other bad rows, too."""
TOLD = 5
"""Bad rows that a message names."""
UNLABELLED = "no label"
CURE = f"bad_rows=set_aside leaves them out and lists them in {FILE}"

_PLACES = (
    ("line", re.compile(r"(?P<file>.+):(?P<at>\d+)")),
    ("row", re.compile(r"(?P<file>.+), row (?P<at>[\d,]+)")),
    ("object", re.compile(r"(?P<file>.+), object (?P<at>\d+)")),
    ("sample", re.compile(r"(?P<file>.+?), sample (?P<at>.+)")),
)


@dataclass(frozen=True, kw_only=True)
class BadRowOptions:
    """What becomes of rows that cannot be used; the options of every source that reads rows or files take these over."""

    bad_rows: Literal["refuse", "set_aside"] = "refuse"
    """A row that cannot be used (a value that does not parse or is not finite, too few values, a damaged line, a picture
    that cannot be read, no label where unlabelled=refuse): refuse stops there, set_aside leaves it out and lists it in
    bad_rows.jsonl."""
    bad_rows_at_most: float = 0.01
    """Part of the rows that may be set aside; where more are bad, the options are wrong rather than the rows."""


NAMES = tuple(each.name for each in fields(BadRowOptions))


class BadRows:
    """The bad rows of a source, each once, however often it is met. `wanted`: they are set aside."""

    def __init__(self, options: BadRowOptions) -> None:
        if not 0 <= options.bad_rows_at_most <= 1:
            raise InputError(
                f"bad_rows_at_most is {options.bad_rows_at_most}", allowed="a part of the rows, from 0 to 1"
            )
        self.wanted, self.at_most = options.bad_rows == "set_aside", options.bad_rows_at_most
        self.rows = 0
        """Rows that are bad."""
        self.good = 0
        """The others, as the source has counted them."""
        self.reasons: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        """Rows that another option leaves out: they are listed, and are not bad."""
        self.problems: list[Problem] = []
        """The first of them."""
        self._seen: set[int] = set()
        self._listed: list[dict[str, Any]] = []
        self._bytes = 0
        self._unlisted = 0

    def __contains__(self, where: str) -> bool:
        """Whether the row there was set aside."""
        return bool(self._seen) and _key(where) in self._seen

    @contextmanager
    def row(self, where: str, content: Any = "", reason: str = "damaged") -> Iterator[None]:
        """Around what is done with one row: an InputError within sets it aside."""
        if not self.wanted:
            yield
            return
        try:
            yield
        except InputError as error:
            self.refused(where, error, content, reason)

    def refused(
        self, where: str, error: InputError, content: Any = "", reason: str = "damaged", column: str = ""
    ) -> None:
        """A row that this error is about."""
        problem = error.problems[0]
        self.add(where, problem.what, reason=reason, column=column, content=content)

    def add(
        self,
        where: str,
        what: str,
        *,
        reason: str,
        column: str = "",
        content: Any = "",
        rows: int = 1,
        asked: bool = False,
    ) -> None:
        """A bad row: where it is, what is wrong in a sentence, and in a few words (`reason`), by which rows are counted.
        `rows`: of the file, where several are lost together. `asked`: another option leaves it out."""
        if (key := _key(where)) in self._seen:
            return
        where, what = _printable(where), _printable(what)
        self._seen.add(key)
        (self.asked if asked else self.reasons)[reason] += rows
        if not asked:
            self.rows += rows
            if len(self.problems) < TOLD:
                self.problems.append(Problem(what, where))
        record = {**_place(where), "column": column, "reason": reason, "what": what, "content": _shortened(content)}
        record = {name: value for name, value in record.items() if value != ""}
        size = sum(len(str(value)) for value in record.values())
        if len(self._listed) >= LISTED_ROWS or self._bytes + size > LISTED_BYTES:
            self._unlisted += rows
            return
        self._bytes += size
        self._listed.append(record)

    def check(self, good: int) -> None:
        """InputError: so large a part of the rows is bad that it is the options that are wrong."""
        self.good = good
        total = good + self.rows
        if not self.wanted or self.rows <= self.at_most * total:
            return
        share = self.rows / total
        what = f"{self.rows:,} of {total:,} rows ({share:.2%}) are bad ({in_words(self.reasons)})"
        what += f", more than bad_rows_at_most={self.at_most:g}: the options are wrong rather than the rows"
        fix = "see what these rows have in common, and say it by an option; or "
        fix += f"bad_rows_at_most={_at_least(share):g} sets that many aside"
        raise InputError(*self.problems, Problem(what, fix=fix))

    def record(self) -> dict[str, Any]:
        """What the manifest says of them."""
        told = [str(problem) for problem in self.problems[:3]]
        record = {"rows": self.rows, "of": self.good + self.rows, "reasons": dict(self.reasons.most_common())}
        if self._listed:
            record |= {"file": FILE, "checksum": xxhash.xxh3_64_hexdigest(self.lines().encode("utf-8"))}
        more = {"asked": dict(self.asked), "first": told, "not_listed": self._unlisted}
        return {**record, **{name: value for name, value in more.items() if value}}

    def lines(self) -> str:
        """The text of `bad_rows.jsonl`: by file and place; empty where nothing was set aside."""
        listed = sorted(self._listed, key=lambda record: (record.get("file", ""), *_in_order(record)))
        if self._unlisted:
            listed.append({"reason": "not listed", "rows": self._unlisted, "what": "so many more rows were set aside"})
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in listed)


def in_words(reasons: Mapping[str, int]) -> str:
    """`3 × number of values, 1 × no label`."""
    return ", ".join(f"{count:,} × {reason}" for reason, count in reasons.items())


def recorded(info: Mapping[str, Any]) -> dict[str, Any]:
    """The record in a manifest's info, which a stranger may have written; {} where there is none of the right form."""
    record = info.get("bad_rows")
    forms = {"rows": int, "of": int, "reasons": dict, "asked": dict, "first": list, "file": str, "checksum": str}
    if not isinstance(record, dict) or not record.keys() >= {"rows", "of", "reasons"}:
        return {}
    if not all(isinstance(record[key], form) for key, form in forms.items() if key in record):
        return {}
    counts = [*record["reasons"].values(), *record.get("asked", {}).values()]
    return record if all(isinstance(count, int) for count in counts) else {}


def told(info: Mapping[str, Any]) -> list[str]:
    """What a person should know of the rows that were set aside, by a manifest's info; [] where nobody asked for it."""
    record = recorded(info)
    if not record:
        return []
    lines = [f"bad rows: none of {record['of']:,}"]
    if record["rows"]:
        share = record["rows"] / max(1, record["of"])
        lines = [
            f"bad rows: {record['rows']:,} of {record['of']:,} ({share:.2%}) are set aside: {in_words(record['reasons'])}"
        ]
    lines += [f"    {str(first).partition(chr(10))[0]}" for first in record.get("first", ())]
    if asked := record.get("asked"):
        lines.append(f"left out as options say: {in_words(asked)}")
    if "file" in record:
        lines.append(f"they are listed in the data set's {FILE}")
    return lines


def several(error: InputError, bad: BadRows) -> InputError:
    """The refusal of a row, with more of them, their number, and the way to go on without them."""
    known = {str(problem).splitlines()[0] for problem in error.problems}
    others = [problem for problem in bad.problems if str(problem).splitlines()[0] not in known]
    others = [other for other in others if other.where not in {problem.where for problem in error.problems}]
    total = bad.good + bad.rows
    count = f"{bad.rows:,} of {total:,} rows are bad" if bad.rows > 1 else f"it is the only bad row of {total:,}"
    enough = "" if bad.rows <= 0.01 * total else f" (with bad_rows_at_most={_at_least(bad.rows / total):g})"
    fix = f"bad_rows=set_aside{enough} leaves them out and lists them in {FILE}"
    return InputError(*error.problems, *others[: TOLD - 1], Problem(f"{count} ({in_words(bad.reasons)})", fix=fix))


def with_others(error: InputError, prepare: Callable[[Any], Any], options: Any) -> InputError:
    """The refusal of a row, with other bad rows of the same files, where reading these again is cheap."""
    paths = [path for name in ("path", "test_path") for path in _paths(getattr(options, name, ""))]
    cheap = all(os.path.isfile(path) for path in paths) and sum(map(os.path.getsize, paths)) <= READ_AGAIN_BYTES
    if getattr(options, "bad_rows", "") != "refuse" or not (paths and cheap) or CURE in str(error):
        return error
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            prepared = prepare(replace(options, bad_rows="set_aside", bad_rows_at_most=1.0))
            for _ in prepared.chunks if prepared.bad else ():
                pass
    except (DistdlError, OSError):
        return error  # rows are not all that is wrong
    return several(error, prepared.bad) if prepared.bad and prepared.bad.rows else error


def _paths(given: Any) -> tuple[str, ...]:
    return tuple(path for path in ((given,) if isinstance(given, str) else given) if path)


def unknown_here(who: str, key: str) -> Problem:
    """The option asked of a source whose rows cannot be told apart."""
    what = f"{who} has no {key}=: none of its rows can be bad while the others are good"
    return Problem(what, fix=f"leave {key}= out: what is damaged there is refused")


def check_heeded(source: str, options: Any, bad: BadRows | None) -> None:
    """InputError where bad rows are to be set aside and the source cannot: it would be ignored in silence."""
    if bad is None and getattr(options, "bad_rows", "refuse") != "refuse":
        raise InputError(unknown_here(f"the source {source}", "bad_rows"))


def _at_least(share: float) -> float:
    """A share as a person would write it, of one digit, not below this one."""
    step = 10.0 ** math.floor(math.log10(share))
    return min(1.0, math.ceil(round(share / step, 6)) * step)


def _key(where: str) -> int:
    return xxhash.xxh3_64_intdigest(where.encode("utf-8", "surrogatepass"))


def _place(where: str) -> dict[str, Any]:
    """`people.csv:17` -> {"file": "people.csv", "line": 17}."""
    for name, pattern in _PLACES:
        if found := pattern.fullmatch(where):
            at = found["at"].replace(",", "")
            return {"file": found["file"], name: int(at) if at.isdigit() and name != "sample" else found["at"]}
    return {"file": where}


def _in_order(record: dict[str, Any]) -> tuple[int, str]:
    at = next((record[name] for name, _ in _PLACES if name in record), 0)
    return (at, "") if isinstance(at, int) else (0, str(at))


def _shortened(content: Any) -> str:
    """What stands in a row, as text of a bounded length."""
    if isinstance(content, bytes):
        content = content[: 4 * CONTENT].decode("utf-8", "backslashreplace")
    elif not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False, default=lambda value: f"{value!s:.100}")
    return _printable(content if len(content) <= CONTENT else f"{content[:CONTENT]}… ({len(content):,} characters)")


def _printable(text: str) -> str:
    """Without halves of characters, which no file of UTF-8 holds."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
