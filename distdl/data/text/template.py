"""A conversation -> a text, by the template of a tokenizer; and which part of that text is the answers.

A template is a program in Jinja's language that comes with a model. It runs in Jinja's sandbox and sees plain values
only. A data set must not depend on the day it was made: a template that asks for the date gets the one that is given,
or is refused.

Which part is an answer: what the template itself calls so (`{% generation %}`), else what the text of the conversation
up to and with the answer has more than that up to the answer. So the one must begin with the other; a template of which
that is not true, such as one that drops earlier thoughts, is refused.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

from distdl.data.text.tokens import MARK, Tokenizer, from_record
from distdl.errors import InputError

SIMPLE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Where a tokenizer has no template of its own."""
OPEN, CLOSE = chr(ord(MARK) - 1), chr(ord(MARK) - 2)
"""Around what a template calls generated."""

Message = Mapping[str, Any]
Span = tuple[int, int]


class TemplateError(Exception):
    """The template cannot be used for a conversation, in words."""


class Template:
    """A template, made ready. `names`: what it knows by name, such as `eos_token`. `today`: what it takes for the date,
    ISO 8601; empty: it may not ask. Raises InputError where it is no template."""

    def __init__(self, source: str, names: Mapping[str, str], today: str = "", where: str = "the template") -> None:
        self.source, self.names, self.where = source, dict(names), where
        self._render: Callable[..., str] = _compiled(source, today, where)

    def text(self, messages: Sequence[Message], prompt: bool = False, tools: Any = None) -> str:
        """The text of a conversation; `prompt`: with the begin of an answer to come. Raises TemplateError."""
        try:
            return self._render(
                messages=messages, add_generation_prompt=prompt, tools=tools, documents=None, **self.names
            )
        except Exception as error:  # whatever its program raises
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise TemplateError(f"{self.where} refuses it: {words}") from error

    def answers(
        self, messages: Sequence[Message], tools: Any = None, special: Sequence[str] = ()
    ) -> tuple[str, list[Span]]:
        """The text, and where in it the answers stand, with the token that ends each. Raises TemplateError."""
        text = self.text(messages, tools=tools)
        if OPEN in text:
            return _apart(text)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.text(messages[:index], True, tools)
                after = self.text(messages[: index + 1], tools=tools)
                if not (after.startswith(before) and text.startswith(after)):
                    what = f"{self.where} writes message {index + 1} another way where more messages follow"
                    raise TemplateError(
                        f"{what}: where the answers are cannot be told from it; loss_on=all, or another template="
                    )
                start = len(before)
                if before == self.text(
                    messages[:index], tools=tools
                ):  # it knows no begin of an answer: the role is in the rest
                    start += _heading(after[start:], message.get("content"))
                spans.append((start, start + len(_ended(after[start:], special))))
        return text, spans


def _heading(text: str, content: Any) -> int:
    """Letters that a template puts before the content of a message."""
    found = text.find(content.strip()) if isinstance(content, str) else 0
    return found if text[: max(found, 0)].strip() else 0


def _ended(text: str, special: Sequence[str]) -> str:
    """An answer without the blank space behind the token that ends it, which nobody will ask a model for."""
    bare = text.rstrip()
    return bare if bare.endswith(tuple(special)) else text


def _apart(text: str) -> tuple[str, list[Span]]:
    """A text without the letters around what was generated, and where that stands."""
    out, spans, at, start = "", [], 0, 0
    for found in re.finditer(f"[{OPEN}{CLOSE}]", text):
        out += text[at : found.start()]
        at = found.end()
        if found[0] == OPEN:
            start = len(out)
        else:
            spans.append((start, len(out)))
    return out + text[at:], spans


@functools.lru_cache(8)
def _compiled(source: str, today: str, where: str) -> Callable[..., str]:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`, as transformers has it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_around"), [], [], body).set_lineno(line)

        def _around(self, caller: Callable[[], str]) -> str:
            return f"{OPEN}{caller()}{CLOSE}"

    class Names(Namespace):
        """A namespace that holds no name of Python's insides."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace may not have the name {name!r}")
            super().__setitem__(name, value)

    def refuse(message: str) -> str:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": refuse, "namespace": Names, "dict": lambda *args, **named: dict(*args, **named)}
    if today:
        made.globals["strftime_now"] = date.fromisoformat(today).strftime
    try:
        render: Callable[..., str] = made.from_string(source).render
    except jinja2.exceptions.TemplateError as error:
        raise InputError(
            f"{where} is no template: {error}", allowed="Jinja, as in a model's chat_template.jinja"
        ) from None
    return render


# -- to tokens ---------------------------------------------------------------------------------------------------------


def of_tokenizer(tokenizer: Tokenizer, today: str = "", where: str = "the template") -> Template:
    """The template that a tokenizer is used with."""
    return Template(tokenizer.template or SIMPLE, _names(tokenizer), today, where)


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    by_number = {number: name for name, number in tokenizer.special.items()}
    end = by_number.get(tokenizer.roles.end, "")
    return {"bos_token": "", "eos_token": end, "unk_token": "", "pad_token": "", **tokenizer.names}


def marked(value: Any, tokenizer: Tokenizer) -> Any:
    """Messages with a mark in each special token that a user's text spells, so that it does not become one."""
    if isinstance(value, str):
        return tokenizer.marked(value)
    if isinstance(value, list):
        return [marked(item, tokenizer) for item in value]
    if isinstance(value, dict):
        return {key: item if key in ("role", "type") else marked(item, tokenizer) for key, item in value.items()}
    return value


def tokens_of(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool], int]:
    """The tokens of a text from a template, which of them begin within a span, and how many lie across the begin of one: a
    model that is asked meets another token there."""
    ids, places = tokenizer.encode_marked(text)
    within = [any(begin <= start < end for begin, end in spans) for start, _ in places]
    across = sum(any(start < begin < stop for begin, _ in spans) for start, stop in places)
    return ids, within, across


def prompt(record: Mapping[str, Any], messages: Sequence[Message]) -> list[int]:
    """The tokens that ask for the next answer of a conversation, as the data set was made. `record`: its preparation of
    the column `tokens`. Raises InputError."""
    tokenizer = from_record(record)
    template = of_tokenizer(tokenizer, record["special"].get("date", ""))
    try:
        text = template.text(marked(list(messages), tokenizer), prompt=True)
        return tokenizer.encode_marked(re.sub(f"[{OPEN}{CLOSE}]", "", text))[0]
    except (TemplateError, ValueError) as error:
        raise InputError(f"the conversation: {error}") from None
