"""A tokenizer that is there already: a file `tokenizer.json`, the folder of a model of Hugging Face's transformers, or
another data set.

Only data is read: no code that comes with a model is run, and nothing is fetched.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from distdl.data.manifest import FILE_NAME, read_manifest
from distdl.data.text.learn import KINDS
from distdl.data.text.tokens import BYTES, END, Roles, Tokenizer, from_record
from distdl.errors import InputError, did_you_mean

FILE = "tokenizer.json"
OTHERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")
"""Tokenizers in another form than the library's."""
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
ENDS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""What ends a text in common tokenizers, where nothing beside them says it; the first that is there."""
PADS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")


def loaded(where: str, end: str = "") -> Tokenizer:
    """`bytes`, or the tokenizer of that file or folder. `end`: the token that ends a document, where it is another one.
    Raises InputError."""
    if where == BYTES:
        return Tokenizer(BYTES, Roles((), 256, 256), names={"eos_token": END, "pad_token": END})
    path = Path(where)
    if (path / FILE_NAME).is_file():
        return _of_dataset(where, end)
    folder = path if path.is_dir() else path.parent
    file = folder / FILE if path.is_dir() else path
    if not file.is_file():
        raise _missing(where, folder)
    text = _read(file)
    _check_form(text, str(file))
    told = _told(folder)
    template = _template(folder, told)
    bare = Tokenizer(text, Roles((), 0, 0))
    names = {key: name for key in NAMES if (name := _name(told.get(key))) is not None}
    before, behind = bare.around()
    last = _number(bare, end or names.get("eos_token") or _first(ENDS, bare), "end")
    if last is None and behind:
        last = behind[-1]
    if last is None:
        what = f"nothing says which token of {where} ends a document"
        raise InputError(what, fix="end=TOKEN", allowed=f"special tokens: {', '.join(bare.special) or 'none'}")
    pad = _number(bare, names.get("pad_token") or _first(PADS, bare), "pad_token")
    return Tokenizer(text, Roles(tuple(before), last, last if pad is None else pad), template, names)


def _of_dataset(where: str, end: str) -> Tokenizer:
    """The tokenizer that another data set was made with."""
    record = read_manifest(where).preparation.get("tokens")
    if record is None:
        what = f"tokenizer={where}: that data set was made without a tokenizer"
        raise InputError(what, fix="tokenizer=bytes, where it holds bytes of text")
    found = from_record(record)
    last = _number(found, end or None, "end")
    roles = found.roles if last is None else replace(found.roles, end=last)
    return Tokenizer(found.text, roles, found.template, found.names)


def _missing(where: str, folder: Path) -> InputError:
    there = [name for name in OTHERS if (folder / name).is_file()] if Path(where).is_dir() else []
    if there:
        what = f"{where} has its tokenizer in another form ({', '.join(there)}), and no {FILE}"
        how = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        return InputError(what, fix=f"write it once with transformers: {how}")
    known = [BYTES, *KINDS]
    allowed = f"{', '.join(known)}, a file {FILE}, or a folder or a data set that has one"
    return InputError(
        f"tokenizer={where}: there is no such file or folder", allowed=allowed, fix=did_you_mean(where, known)
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def _json(file: Path) -> Any:
    try:
        return json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where=str(file)) from None


def _check_form(text: str, where: str) -> None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"not valid JSON: {error}", where=where, allowed="a tokenizer.json of the library tokenizers"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(
            "no tokenizer: there is no `model`", where=where, allowed="a tokenizer.json of the library tokenizers"
        )


def _told(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer say of it."""
    told: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found = _json(folder / name)
            if isinstance(found, dict):
                told |= found
    return told


def _template(folder: Path, told: dict[str, Any]) -> str | None:
    """The template of conversations: of a file of its own, else of the tokenizer's config."""
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja")
    found = told.get("chat_template")
    if found is None and (folder / "chat_template.json").is_file():
        other = _json(folder / "chat_template.json")
        found = other.get("chat_template") if isinstance(other, dict) else None
    if isinstance(found, list):  # several by name
        by_name = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = by_name.get("default")
    return found if isinstance(found, str) else None


def _name(value: Any) -> str | None:
    """A special token in a config: its name, or an object that has it."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _first(names: tuple[str, ...], tokenizer: Tokenizer) -> str | None:
    return next((name for name in names if name in tokenizer.special), None)


def _number(tokenizer: Tokenizer, name: str | None, what: str) -> int | None:
    """The number of a token by its name. Raises InputError where the tokenizer has none of that name."""
    if name is None:
        return None
    number = tokenizer.number_of(name)
    if number is None:
        raise InputError(f"{what}: the tokenizer has no token {name!r}", fix=did_you_mean(name, tokenizer.special))
    return number
