"""Conversations in JSON lines, for a model that learns to answer: prompts, turns, a template, and a loss on the answers.

Each line, or each object of one list, holds one of these:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}    (`tools`, too)
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"instruction": "...", "input": "...", "output": "..."}                                        one question, one answer
    {"prompt": "...", "completion": "..."}                      texts as they are, without a template; or lists of messages
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distdl.columns import NO_LABEL
from distdl.data.advice import BY_ENDING, NAMED, SURE, Advice, Wish, has_ending
from distdl.data.bad_rows import BadRows
from distdl.data.corpora import stdlib
from distdl.data.raw import Prepared
from distdl.data.text.documents import OF_JSON, files_of, json_records
from distdl.data.text.learn import KINDS
from distdl.data.text.rows import (
    Encoded,
    RoundTrip,
    TokenOptions,
    array,
    make_layout,
    make_tokenizer,
    prepared,
)
from distdl.data.text.shares import Shares, field_of, value_beside
from distdl.data.text.template import SIMPLE, Template, TemplateError, marked, of_tokenizer, tokens_of
from distdl.data.text.tokens import Tokenizer, half_a_character
from distdl.errors import InputError

ROLES = {"human": "user", "gpt": "assistant"}
"""Roles of other collections -> ours."""
PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.json")
"""Files of a folder."""
LOOKED_AT = 500
"""Conversations that a guess is made from."""
MARK_LETTERS = 4
"""What stands around a message in a template, in tokens."""
ROWS_LETTERS = (64, 1024)
"""Letters of the shortest and the longest rows that are advised."""
FORMS = "messages, conversations, instruction and output, or prompt and completion"


@dataclass(frozen=True)
class Options(TokenOptions):
    """Options of the source `chat`."""

    path: tuple[str, ...] = ()
    """The files of JSON lines (.gz too), or folders of such, separated by commas; none: what functions of this
    machine's Python standard library do, asked and answered."""
    rows: int = 1000
    """Without `path`: so many conversations."""
    context: int = 1024
    """Tokens that a row predicts; a row holds one more."""
    test_path: tuple[str, ...] = ()
    """Files that become the split `test`; then nothing is held out of `path`."""
    template: str = ""
    """A file with a template in Jinja's language, or `simple`; empty: the tokenizer's own, else the simple one."""
    loss_on: Literal["answers", "all"] = "answers"
    """What is learned: the answers alone, or every token."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """best_fit: several conversations share a row. none: a row each."""
    too_long: Literal["cut", "leave_out"] = "cut"
    """What becomes of a conversation that is longer than a row: pieces of it, or nothing; either is told."""
    date: str = ""
    """What a template takes for the date, such as 2026-01-31; empty: a template that asks for it is refused."""


@dataclass(frozen=True)
class _Chat:
    """A conversation as it was read."""

    where: str
    messages: list[dict[str, Any]]
    tools: Any = None
    plain: tuple[str, str] | None = None
    """A prompt and what completes it, where they are texts without a template."""
    beside: Any = None
    """The value of the field that says which split it belongs to."""

    def texts(self) -> Iterator[str]:
        """All that people wrote."""
        yield from self.plain or ()
        for message in self.messages:
            if isinstance(message.get("content"), str):
                yield message["content"]


def prepare(options: Options) -> Prepared:
    """`tokens` uint16 or uint32, `labels` int32 and, with best_fit, `documents`, (context + 1,) each: as
    text/packing.py has them."""
    _check_date(options.date)
    notes: list[str] = []
    chats = _Chats(options, notes)
    tokenizer = make_tokenizer(options, chats.of_training)
    template = _template(options, tokenizer)
    if chats.set_aside(tokenizer, template) and options.tokenizer in KINDS:  # which was learned from others, too
        tokenizer = make_tokenizer(options, chats.of_training)
        template = _template(options, tokenizer)
    tokenizer.template = template.source
    layout = make_layout(options, tokenizer, options.packing, options.context, cut=options.too_long == "cut")
    bad = chats.bad if options.path else None
    made = prepared(options, tokenizer, layout, chats.encoded(tokenizer, template), chats.split, notes, bad)
    if options.date:
        made.preparation["tokens"]["special"]["date"] = options.date
    return made


def _check_date(given: str) -> None:
    try:
        date.fromisoformat(given or "2000-01-01")
    except ValueError:
        raise InputError(f"date={given}", allowed="a date such as 2026-01-31") from None


def _template(options: Options, tokenizer: Tokenizer) -> Template:
    """The template that the options ask for, in use with the tokenizer."""
    source, where = tokenizer.template, "the tokenizer's template"
    if options.template == "simple" or (not options.template and source is None):
        source, where = SIMPLE, "the simple template"
    elif options.template:
        file, where = Path(options.template), f"the template {options.template}"
        if not file.is_file():
            raise InputError(
                f"template={options.template}: there is no such file", allowed="a file in Jinja's language, or simple"
            )
        source = file.read_text(encoding="utf-8")
    tokenizer.template = source
    return of_tokenizer(tokenizer, options.date, where)


class _Chats:
    """The conversations of the splits."""

    def __init__(self, options: Options, notes: list[str]) -> None:
        self.options, self.notes = options, notes
        self.paths, self.test = (files_of(given, PATTERNS, notes.append) for given in (options.path, options.test_path))
        self.bad = BadRows(options)
        self._share_out()
        self._across = self._answers = 0

    def _share_out(self) -> None:
        options = self.options
        tested, where = bool(self.test), ", ".join(options.path)
        self._shares = Shares(options, self.read, where, fields=bool(options.path), tested=tested)
        self.split = self._shares.record()
        """How they are shared out."""

    def of_training(self) -> Iterator[str]:
        """Every text of the training split."""
        return (text for split, chat in self.shared() if split == "train" for text in chat.texts())

    def read(self) -> Iterator[_Chat]:
        """Every conversation that is not of a test file."""
        if not self.options.path:
            return islice(_of_library(), self.options.rows)
        return _read(self.paths, self.bad, field_of(self.options))

    def shared(self) -> Iterator[tuple[str, _Chat]]:
        """Every conversation with its split."""
        yield from self._shares()
        yield from (("test", chat) for chat in _read(self.test, self.bad))

    def encoded(self, tokenizer: Tokenizer, template: Template) -> Iterator[tuple[str, Encoded]]:
        """Every conversation's tokens, with those to be learned. Raises InputError for one that cannot be used."""
        check = RoundTrip(tokenizer, self.options.tokenizer in ("bytes", "bpe", "unigram"), self.notes)
        for split, chat in self.shared():
            ids, learned = self._tokens(tokenizer, template, chat)
            check.look(next(chat.texts(), ""), None, chat.where)
            labels = np.where(learned, ids, NO_LABEL).astype(np.int32)
            yield split, Encoded(array(ids, tokenizer), labels)
        if self._across:
            told = f"{self._across:,} of {self._answers:,} answers begin within a token that their prompt begins, too"
            self.notes.append(f"{told}; it is not learned, and a model that is asked meets another one there")

    def set_aside(self, tokenizer: Tokenizer, template: Template) -> bool:
        """Whether there are conversations that the template does not take, which are set aside."""
        before, good = self.bad.rows, 0
        for chat in chain(self.read(), _read(self.test, self.bad)) if self.bad.wanted else ():
            with self.bad.row(chat.where, chat.messages or chat.plain, "no conversation"):
                self._tokens(tokenizer, template, chat)
                good += 1
        self.bad.check(good)
        self._across = self._answers = 0
        if self.bad.rows > before:
            self._share_out()
        return self.bad.rows > before

    def _tokens(self, tokenizer: Tokenizer, template: Template, chat: _Chat) -> tuple[list[int], list[bool]]:
        try:
            return self._plain(tokenizer, chat) if chat.plain else self._turns(tokenizer, template, chat)
        except (TemplateError, ValueError) as error:
            raise InputError(f"the conversation: {error}", where=chat.where) from None

    def _turns(self, tokenizer: Tokenizer, template: Template, chat: _Chat) -> tuple[list[int], list[bool]]:
        messages: Any = chat.messages if self.options.special_in_text else marked(chat.messages, tokenizer)
        tools = chat.tools if self.options.special_in_text else marked(chat.tools, tokenizer)
        if self.options.loss_on == "all":
            ids, _, _ = tokens_of(tokenizer, template.text(messages, tools=tools), [])
            return ids, [True] * len(ids)
        text, spans = template.answers(messages, tools, list(tokenizer.special))
        ids, learned, across = tokens_of(tokenizer, text, spans)
        self._across += across
        self._answers += len(spans)
        return ids, learned

    def _plain(self, tokenizer: Tokenizer, chat: _Chat) -> tuple[list[int], list[bool]]:
        """Prompt and completion as one text, whose tokens may lie across the border; the end is learned, too."""
        assert chat.plain
        both = [text if self.options.special_in_text else tokenizer.marked(text) for text in chat.plain]
        start = len(both[0]) if self.options.loss_on == "answers" else 0
        ids, learned, across = tokens_of(tokenizer, "".join(both), [(start, len("".join(both)))])
        self._across += across
        self._answers += 1
        begin = list(tokenizer.roles.begin)
        return [*begin, *ids, tokenizer.roles.end], [*([False] * len(begin)), *learned, True]


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(paths: list[str], bad: BadRows, key: str = "") -> Iterator[_Chat]:
    """Every conversation of these files, with the value of the field `key`, if one is asked for."""
    for path in paths:
        for where, record in json_records(path, bad):
            with bad.row(where, record, "no conversation"):
                yield replace(_checked(_chat(where, record)), beside=value_beside(record, key, where))


def _of_library() -> Iterator[_Chat]:
    for where, head, told in stdlib.documented():
        yield _Chat(
            where, [{"role": "user", "content": f"What does {head} do?"}, {"role": "assistant", "content": told}]
        )


def _chat(where: str, record: dict[str, Any]) -> _Chat:
    """The conversation of a line, whichever form it has."""
    tools = record.get("tools") or None
    if "messages" in record:
        return _Chat(where, _messages(where, record["messages"], "role", "content"), tools)
    if "conversations" in record:
        return _Chat(where, _messages(where, record["conversations"], "from", "value"), tools)
    if "prompt" in record and "completion" in record:
        prompt, completion = record["prompt"], record["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return _Chat(where, _messages(where, [*prompt, *completion], "role", "content"), tools)
        return _Chat(where, [], plain=(_text(where, record, "prompt"), _text(where, record, "completion")))
    if "instruction" in record and "output" in record:
        question = _text(where, record, "instruction")
        if record.get("input"):
            question = f"{question}\n\n{_text(where, record, 'input')}"
        system = [{"role": "system", "content": _text(where, record, "system")}] if record.get("system") else []
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": _text(where, record, "output")},
        ]
        return _Chat(where, [*system, *turns])
    raise InputError(f"the fields are {', '.join(record) or 'none'}", where=where, allowed=FORMS)


def _text(where: str, record: dict[str, Any], key: str) -> str:
    if not isinstance(record[key], str):
        raise InputError(f"the field '{key}' holds {record[key]!r:.60}, not text", where=where)
    return record[key]


def _messages(where: str, given: Any, role: str, content: str) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given or not all(isinstance(message, dict) for message in given):
        raise InputError(
            f"the conversation is {given!r:.60}", where=where, allowed=f'[{{"{role}": ..., "{content}": ...}}, ...]'
        )
    out = []
    for number, message in enumerate(given, 1):
        of_message = f"message {number}"
        if not isinstance(message.get(role), str):
            raise InputError(f"{of_message} has no '{role}': it has {', '.join(message) or 'no fields'}", where=where)
        if not re.fullmatch(r"[\w-]+", message[role]):
            raise InputError(
                f"the role of {of_message} is {message[role]!r:.60}", where=where, allowed="letters, digits, _ and -"
            )
        found = message.get(content)
        if isinstance(found, list):
            found = _parts(where, of_message, found)
        elif not isinstance(found, str) and not (found is None and message.get("tool_calls")):
            raise InputError(f"the '{content}' of {of_message} is {found!r:.60}, not text", where=where)
        more = {key: value for key, value in message.items() if key not in (role, content)}
        out.append({"role": ROLES.get(message[role], message[role]), "content": found, **more})
    return out


def _parts(where: str, of_message: str, parts: list[Any]) -> str:
    """The text of content that comes in parts."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            what = f"{of_message} holds {part!r:.60}: pictures and sounds are not read here"
            raise InputError(what, where=where, allowed='{"type": "text", "text": "..."}')
    return "".join(part["text"] for part in parts)


def _checked(chat: _Chat) -> _Chat:
    """InputError for a conversation without an answer, or with an empty one, or that is no text."""
    if half := next(filter(None, map(half_a_character, chat.texts())), ""):
        raise InputError(f"the conversation: {half}", where=chat.where)
    if chat.plain:
        if not chat.plain[1].strip():
            raise InputError(
                "the completion is empty: there is nothing to learn", where=chat.where, fix="leave the line out"
            )
        return chat
    answers = [(n, m) for n, m in enumerate(chat.messages, 1) if m["role"] == "assistant"]
    if not answers:
        roles = ", ".join(message["role"] for message in chat.messages)
        what = f"no message is of the role assistant (roles: {roles}): there is nothing to learn"
        raise InputError(what, where=chat.where, fix="leave the line out")
    for number, message in answers:
        if not (message["content"] or "").strip() and not message.get("tool_calls"):
            what = f"the answer, message {number}, is empty"
            raise InputError(what, where=chat.where, fix="leave the line out, or the messages from there on")
    return chat


def recognise(path: Path) -> float:
    """JSON lines, or a list, whose first object is a conversation; a folder of such."""
    if path.is_file() and not has_ending(path, OF_JSON):
        return 0.0
    with contextlib.suppress(InputError, OSError):
        files = files_of((str(path),), PATTERNS, lambda _: None)
        _, first = next(json_records(files[0]), ("", {}))
        if any(isinstance(first.get(key), list) for key in ("messages", "conversations")):
            return SURE
        texts = {key for key, value in first.items() if isinstance(value, str)}
        asked = {"prompt", "completion"} <= texts or {"instruction", "output"} <= texts
        return BY_ENDING + 0.1 if asked and not any(key.lower() in NAMED for key in first) else 0.0
    return 0.0


def advise(path: str, wish: Wish) -> Advice:
    """How long a row is, for `distdl init`."""
    if wish.options():
        raise InputError(f"{path} holds conversations: their answers are learned, no column is")
    files = files_of((path,), PATTERNS, lambda _: None)
    chats = (_chat(*found) for found in islice(json_records(files[0]), LOOKED_AT))
    lengths = [sum(map(len, chat.texts())) + MARK_LETTERS * len(chat.messages) for chat in chats]
    most = float(np.quantile(lengths, 0.95))
    context = 1 << math.ceil(math.log2(min(max(most, ROWS_LETTERS[0]), ROWS_LETTERS[1])))
    why = f"nineteen of twenty conversations have at most {most:,.0f} letters"
    return Advice({"path": [path], "context": context}, {"context": why})
