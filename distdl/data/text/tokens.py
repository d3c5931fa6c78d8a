"""A text to numbers of tokens, and back: bytes, or a tokenizer of Hugging Face's tokenizers.

Special tokens (the end of a document, the begin of a turn) are told from text that merely looks like them. The library
does not do that: with `encode_special_tokens` a token that is also a piece of the vocabulary is found all the same. So
a second tokenizer reads texts, in which each special token has another name, a character of a private plane: text that
spells the old name is text. Where a special token is meant, that character is put in its place before the text is read.
"""

from __future__ import annotations

import base64
import bisect
import functools
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distdl.errors import InputError

BYTES = "bytes"
END = "<|end|>"
"""What ends a document, where the tokenizer is one of ours."""
PRIVATE = 0x10FFFD
"""The last character of Unicode's last private plane; special token i is called by the i-th before it."""
MOST_SPECIAL = 4096
MOST_BYTES = 1 << 28
"""Of a tokenizer's file."""
MARK = chr(PRIVATE - MOST_SPECIAL)
"""Put into what a user wrote where it spells a special token, until it has been told from one."""


@dataclass(frozen=True)
class Roles:
    """Which tokens do what."""

    begin: tuple[int, ...]
    """What a document begins with; () nothing."""
    end: int
    """What a document ends with."""
    pad: int
    """What fills up a row. It is in no loss."""


def library() -> Any:
    """Hugging Face's tokenizers. Raises InputError where they are not installed."""
    try:
        import tokenizers
    except ImportError as error:
        fix = "pip install 'distdl[text]', or tokenizer=bytes"
        raise InputError(f"this tokenizer needs the package tokenizers: {error}", fix=fix) from None
    return tokenizers


class Tokenizer:
    """A text to tokens and back. `text`: what `tokenizer.json` holds, or `bytes`."""

    def __init__(self, text: str, roles: Roles, template: str | None = None, names: Mapping[str, str] | None = None):
        self.text, self.roles, self.template = text, roles, template
        self.names: dict[str, str] = dict(names or {})
        """Roles as templates know them (`eos_token`) -> the token."""
        self._coder: _Bytes | _Library = _Bytes() if text == BYTES else _Library(text)
        self.vocabulary = self._coder.vocabulary
        """Number of tokens: each is below it."""
        self.special = self._coder.special
        """Name of a special token -> its number."""
        longest_first = sorted(self.special, key=lambda name: (-len(name), name))
        self._named = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._private = {name: chr(PRIVATE - i) for i, name in enumerate(self.special)}

    @property
    def dtype(self) -> str:
        """The smallest type that holds every token."""
        return "uint16" if self.vocabulary <= 1 << 16 else "uint32"

    def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """The tokens of each text. `special`: a text that spells a special token means it. Raises ValueError for a text
        that cannot be read."""
        for text in texts:
            self._check(text)
        if special:
            texts = [self._named.sub(lambda found: self._private[found[0]], text) for text in texts]
        return self._coder.encode(texts)

    def encode_further(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """The same of texts that go on with another one. Some tokenizers put a space before a text: that would stand in
        its middle. So a line feed goes before it, and its tokens are taken off."""
        found = self.encode(texts, special)
        (line,), after = self.encode(["\n"]), self.encode([f"\n{text}" for text in texts], special)
        return [new[len(line) :] if new[: len(line)] == line else ids for ids, new in zip(found, after)]

    def encode_marked(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text whose special tokens are meant, but for those that `marked` has marked, and each token's
        place in it."""
        out, places, shifts, at = [], [0], [0], 0
        for found in re.finditer(f"{MARK}|{self._named.pattern}", text):
            new = self._private.get(found[0], "")
            out += [text[at : found.start()], new]
            at = found.end()
            shifts.append(shifts[-1] + len(found[0]) - len(new))
            places.append(at - shifts[-1])  # from here on, in what is read
        ids, spans = self._coder.encode_with_places("".join([*out, text[at:]]))

        def back(place: int) -> int:
            return place + shifts[bisect.bisect_right(places, place) - 1]

        return ids, [(back(start), back(stop)) for start, stop in spans]

    def marked(self, text: str) -> str:
        """What a user wrote, for a template: with a mark in each special token that it spells."""
        self._check(text)
        return self._named.sub(lambda found: found[0][:1] + MARK + found[0][1:], text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens, special ones by their names."""
        return self._coder.decode([int(i) for i in ids])

    def number_of(self, name: str) -> int | None:
        """The number of the token of that name."""
        return self._coder.number_of(name)

    def around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before a text and behind it."""
        return self._coder.around()

    def record(self) -> dict[str, Any]:
        """What `from_record` reads. A large tokenizer is kept as its file is, byte by byte, but compressed: the
        manifest is read by every worker, and 200,000 entries of 7 MB take it two seconds as JSON, and forty
        milliseconds so."""
        kept = self.text if self.text == BYTES else base64.b64encode(zlib.compress(self.text.encode(), 6)).decode()
        roles = {"begin": list(self.roles.begin), "end": self.roles.end, "pad": self.roles.pad}
        special = {"names": self.names, **roles}
        return {"kind": "tokens", "version": 1, "tokenizer": kept, "template": self.template, "special": special}

    def _check(self, text: str) -> None:
        if half := half_a_character(text):
            raise ValueError(half)
        if max(text, default="") >= MARK:
            raise ValueError(f"the private character U+{ord(max(text)):X}, which stands for a special token here")


def half_a_character(text: str) -> str:
    """What is said of a text in which one half of a pair of surrogates stands alone, as in JSON it may; or ''."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a character, U+{ord(text[error.start]):04X}, at {error.start:,}"
    return ""


class _Bytes:
    """Each byte is its own token; one more ends a document."""

    vocabulary, special = 257, {END: 256}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode_with_places(text)[0] if chr(PRIVATE) in text else [*text.encode()] for text in texts]

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, places = [], []
        for place, letter in enumerate(text):
            found = [256] if ord(letter) == PRIVATE else [*letter.encode()]
            ids += found
            places += [(place, place + 1)] * len(found)
        return ids, places

    def decode(self, ids: list[int]) -> str:
        runs = [bytes(run) if text else END * len([*run]) for text, run in itertools.groupby(ids, lambda i: i < 256)]
        return "".join(run if isinstance(run, str) else run.decode(errors="replace") for run in runs)

    def number_of(self, name: str) -> int | None:
        return self.special.get(name)

    def around(self) -> tuple[list[int], list[int]]:
        return [], []


class _Library:
    """A tokenizer of the library, from the text of its file."""

    def __init__(self, text: str):
        content = json.loads(text)
        added = [token for token in content.get("added_tokens") or [] if token.get("special")]
        if len(added) >= MOST_SPECIAL:
            raise InputError(f"the tokenizer has {len(added):,} special tokens", allowed=f"fewer than {MOST_SPECIAL:,}")
        self.special = {token["content"]: int(token["id"]) for token in added}
        self._plain = _made(_renamed(content, {name: chr(PRIVATE - i) for i, name in enumerate(self.special)}))
        self._whole = _made({**content, "truncation": None, "padding": None})
        self.vocabulary = max(self._whole.get_vocab(with_added_tokens=True).values(), default=0) + 1
        for index, (name, number) in enumerate(self.special.items()):
            if self._plain.token_to_id(chr(PRIVATE - index)) != number:
                raise InputError(f"the tokenizer's special token {name!r} cannot be told from text that spells it")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self._plain.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def decode(self, ids: list[int]) -> str:
        return self._whole.decode(ids, skip_special_tokens=False)

    def number_of(self, name: str) -> int | None:
        return self._whole.token_to_id(name)

    def around(self) -> tuple[list[int], list[int]]:
        bare = self._whole.encode("a", add_special_tokens=False).ids
        whole = self._whole.encode("a", add_special_tokens=True).ids
        first = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:first], whole[first + len(bare) :]


def _made(content: Mapping[str, Any]) -> Any:
    try:
        return library().Tokenizer.from_str(json.dumps(content))
    except InputError:
        raise
    except BaseException as error:  # the library ends its threads by a panic, which is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise InputError(f"this is no tokenizer that can be read: {' '.join(str(error).split())[:300]}") from error


def _renamed(content: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer with other names of its special tokens. What a file asks for beside the tokens is left out: texts
    are neither cut nor filled up, pieces are not drawn at random, and places count the letters that were read."""
    model = dict(content["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if _together(merge) not in names]
    if "dropout" in model:
        model["dropout"] = None
    added = [
        {**token, "content": names[token["content"]], "normalized": False} if token.get("special") else token
        for token in content.get("added_tokens") or []
    ]
    nothing = {"truncation": None, "padding": None, "post_processor": None}
    return {**content, "model": model, "added_tokens": added, **nothing}


def _together(merge: Any) -> str:
    return "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)


# -- what is kept with a data set --------------------------------------------------------------------------------------


@functools.lru_cache(4)
def _of_record(text: str) -> Tokenizer:
    record = json.loads(text)
    special = record["special"]
    roles = Roles(tuple(special["begin"]), special["end"], special["pad"])
    return Tokenizer(_unpacked(record["tokenizer"]), roles, record["template"], special["names"])


def _unpacked(kept: str) -> str:
    """The text of `tokenizer.json`, which a stranger may have packed: not more than `MOST_BYTES` of it."""
    if kept == BYTES:
        return kept
    reader = zlib.decompressobj()
    found = reader.decompress(base64.b64decode(kept, validate=True), MOST_BYTES)
    if not reader.eof:
        raise ValueError(f"it ends before its end, or holds more than {MOST_BYTES:,} bytes")
    return found.decode()


def from_record(record: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a data set, or of a checkpoint, from its preparation of the column `tokens`. Raises InputError."""
    if record.get("kind") != "tokens" or record.get("version") != 1:
        what = f"a record of the kind {record.get('kind')!r}, version {record.get('version')!r}, is no tokenizer"
        raise InputError(what, allowed="kind 'tokens', version 1")
    try:
        return _of_record(json.dumps({key: record[key] for key in ("tokenizer", "template", "special")}))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise InputError(
            f"the record of the tokenizer is damaged: {error!r}", fix="prepare the data set again"
        ) from None


def encode(record: Mapping[str, Any], text: str) -> list[int]:
    """The tokens of a text as the data set was made: what it spells is text. Raises InputError."""
    try:
        return from_record(record).encode([text])[0]
    except ValueError as error:
        raise InputError(f"the text has {error}") from None


def decode(record: Mapping[str, Any], ids: Iterable[int]) -> str:
    """The text of these tokens, special ones by their names. Raises InputError."""
    return from_record(record).decode(ids)
