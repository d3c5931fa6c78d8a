"""Weka's ARFF, read line by line: attributes with a type each, then rows, dense or sparse.

@relation weather                                sparse: {0 sunny, 3 yes}, all others are 0,
@attribute outlook {sunny, 'partly cloudy'}      or the first value of a nominal attribute
@attribute 'temp °C' numeric
@attribute seen date "yyyy-MM-dd"                a missing value is ?
@attribute play {yes, no}
@data                                            a relational attribute's value is quoted, with rows of its own
'partly cloudy',20.5,"2024-05-01",yes            between its quotes that \\n parts
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from distdl.data.series.lines import lines_of
from distdl.errors import InputError, did_you_mean

NUMBERS = ("numeric", "real", "integer")
KINDS = (*NUMBERS, "string", "date", "relational")
DATE = "yyyy-MM-dd'T'HH:mm:ss"
"""Weka's form of a date where an attribute names none."""
DATE_PARTS = {
    "yyyy": "%Y",
    "yy": "%y",
    "MM": "%m",
    "dd": "%d",
    "HH": "%H",
    "mm": "%M",
    "ss": "%S",
    "SSS": "%f",
    "Z": "%z",
}
DATE_TOKEN = re.compile(r"'([^']*)'|([A-Za-z])\2*|([^A-Za-z'])")
NAME = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s{]+))\s*""")
VALUE = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,\t'"]*?))\s*(?:([,\t])|$)""")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True)
class Attribute:
    name: str
    kind: str
    """numeric, string, date, nominal or relational."""
    values: tuple[str, ...] = ()
    """Those of a nominal attribute, as declared."""
    form: str = ""
    """How dates are written, for strptime."""
    inner: tuple[Attribute, ...] = ()
    """The attributes of a relational one."""


class Quoted(str):
    """A value that stood in quotes: '?' in them is a text, without them a missing value."""


def is_missing(value: str) -> bool:
    return value == "?" and not isinstance(value, Quoted)


@dataclass
class ArffFile:
    """A file whose header is read; `rows` may be asked for again and again."""

    path: str
    attributes: list[Attribute] = field(default_factory=list)
    data_line: int = 0

    def __post_init__(self) -> None:
        open_: list[tuple[str, list[Attribute]]] = []  # the relational attribute that is being described
        for n, line in lines_of(self.path):
            where = f"{self.path}:{n}"
            if line.startswith("%"):
                continue
            key, _, rest = (line.replace("\t", " ", 1) if line.startswith("@") else line).partition(" ")
            key = key.lower()
            if key == "@data":
                self.data_line = n
                break
            if key == "@end" and open_:
                name, inner = open_.pop()
                if (told := _name(rest, where)[0]) != name:
                    raise InputError(f"@end {told} ends the attribute {name}", where=where)
                self.attributes.append(Attribute(name, "relational", inner=tuple(inner)))
            elif key == "@attribute":
                attribute = _attribute(rest, where)
                if attribute.kind == "relational":
                    if open_:
                        raise InputError("a relational attribute within another", where=where)
                    open_.append((attribute.name, []))
                else:
                    (open_[-1][1] if open_ else self.attributes).append(attribute)
            elif key != "@relation":
                raise InputError(
                    f"the header has the line {line!r:.60}",
                    where=where,
                    allowed="@relation, @attribute, @end, @data, and comments behind %",
                )
        if not self.data_line or open_ or not self.attributes:
            lacks = f"@end {open_[0][0]}" if open_ else "@attribute lines" if self.data_line else "line @data"
            raise InputError(f"{self.path} has no {lacks}", fix="is this an ARFF file, and complete?")
        names = [attribute.name for attribute in self.attributes]
        if twice := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
            raise InputError(f"{self.path} has two attributes of the same name: {', '.join(twice)}")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number and text of each line that is a row."""
        for n, line in lines_of(self.path):
            if n > self.data_line and not line.startswith("%"):
                yield n, line

    def rows(self, left_out: Container[int] = ()) -> Iterator[tuple[int, list[str]]]:
        """Line and values of each row, one for each attribute; sparse rows are filled up. `left_out`: lines."""
        return ((n, self.row(line, f"{self.path}:{n}")) for n, line in self.lines() if n not in left_out)

    def row(self, line: str, where: str) -> list[str]:
        """The values of a line. InputError: they are not those of the attributes."""
        wanted = len(self.attributes)
        values = self._sparse(line, where) if line.startswith("{") else split_values(line, where)
        if len(values) == wanted + 1 and re.fullmatch(r"\{[^}]*\}", values[-1]):
            raise InputError(
                "the row has a weight, which no column holds", where=where, fix="remove it, or make it an attribute"
            )
        if len(values) != wanted:
            raise InputError(
                f"the row has {len(values):,} values, there are {wanted:,} attributes",
                where=where,
                fix="complete the row; a value with a comma or a quote stands in quotes",
            )
        return values

    def _sparse(self, line: str, where: str) -> list[str]:
        inside = line[1:].rstrip()
        if not inside.endswith("}"):
            raise InputError("the sparse row does not end in '}'", where=where)
        values: list[str | None] = [None] * len(self.attributes)
        inside = inside[:-1].strip()
        for item in _sparse_items(inside, where) if inside else ():
            place, _, text = item.partition(" ")
            if not place.isdecimal() or int(place) >= len(values) or values[int(place)] is not None:
                raise InputError(
                    f"the sparse row has the item {item!r:.60}",
                    where=where,
                    allowed=f"NUMBER VALUE, each number from 0 to {len(values) - 1} once at most",
                )
            (values[int(place)],) = split_values(text, where)
        return [self._left_out(a, where) if value is None else value for value, a in zip(values, self.attributes)]

    def _left_out(self, attribute: Attribute, where: str) -> str:
        """What a sparse row does not name is 0: of a nominal attribute, the first value."""
        if attribute.kind == "numeric":
            return "0"
        if attribute.kind == "nominal":
            return Quoted(attribute.values[0])
        raise InputError(f"the sparse row has no {attribute.name}, and a {attribute.kind} has no 0", where=where)


def _sparse_items(text: str, where: str) -> Iterator[str]:
    """`0 sunny, 3 'a, b'` -> its items."""
    at = 0
    item = re.compile(r"""\s*((?:[^,'"]|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")+?)\s*(?:,|$)""")
    while at < len(text):
        found = item.match(text, at)
        if not found:
            raise InputError(f"the sparse row cannot be read from {text[at:]!r:.40}", where=where)
        yield found[1]
        at = found.end()


def split_values(line: str, where: str) -> list[str]:
    """The values of a dense row, which commas (or tabulators) part."""
    if "'" not in line and '"' not in line:
        return [part.strip() for part in (line.replace("\t", ",") if "\t" in line else line).split(",")]
    values: list[str] = []
    at, more = 0, True
    while more:
        found = VALUE.match(line, at)
        if not found:
            raise InputError(
                f"the row cannot be read from {line[at:]!r:.40}",
                where=where,
                fix="close the quote; \\' is a quote within one",
            )
        single, double, bare, comma = found.groups()
        quoted = single if single is not None else double
        values.append(Quoted(_unescaped(quoted)) if quoted is not None else bare)
        at, more = found.end(), comma is not None
    return values


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 5 else ESCAPES.get(m[1], m[1]), text)


def _name(text: str, where: str) -> tuple[str, str]:
    """A name, quoted or not, and what follows it."""
    found = NAME.match(text)
    if not found:
        raise InputError("the line names no attribute", where=where, allowed="@attribute NAME TYPE")
    single, double, bare = found.groups()
    quoted = single if single is not None else double
    return (bare if quoted is None else _unescaped(quoted)), text[found.end() :]


def _attribute(text: str, where: str) -> Attribute:
    name, kind = _name(text, where)
    if kind.startswith("{"):
        if not kind.rstrip().endswith("}"):
            raise InputError(f"the values of {name} do not end in '}}'", where=where)
        values = tuple(map(str, split_values(kind.strip()[1:-1], where)))
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise InputError(f"the attribute {name} has the value {twice!r} twice", where=where)
        return Attribute(name, "nominal", values)
    word, _, rest = kind.strip().partition(" ")
    word = word.lower()
    if word not in KINDS:
        raise InputError(f"the attribute {name} has the type {kind!r:.60}", where=where, fix=did_you_mean(word, KINDS))
    form = _date_form(_name(rest, where)[0] if rest.strip() else DATE, name, where) if word == "date" else ""
    return Attribute(name, "numeric" if word in NUMBERS else word, form=form)


def _date_form(form: str, name: str, where: str) -> str:
    """`yyyy-MM-dd` -> `%Y-%m-%d`."""
    parts = []
    for found in DATE_TOKEN.finditer(form):
        literal, letter, other = found.groups()
        if letter and found[0] not in DATE_PARTS:
            raise InputError(f"the date {name} is written as {form!r}", where=where, allowed=", ".join(DATE_PARTS))
        parts.append(DATE_PARTS[found[0]] if letter else (literal if literal is not None else other).replace("%", "%%"))
    return "".join(parts)
