"""A tokenizer from texts: byte pairs (BPE), the unigram model, or WordPiece, by Hugging Face's tokenizers.

BPE and unigram work on the bytes of a text, so that any text comes back as it was; WordPiece is BERT's, on words, and
knows letters of the training texts only. Byte pairs and WordPiece come out the same each time. Unigram does not: the
library adds up its probabilities in an order that it draws. The tokenizer is kept with the data set, and can be used
again (`tokenizer=PATH`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distdl.data.text.tokens import END, Roles, Tokenizer, library
from distdl.errors import InputError

KINDS = ("bpe", "unigram", "wordpiece")
PAD, SYSTEM, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "[UNK]"
SPECIAL = (END, PAD, SYSTEM, USER, ASSISTANT)
LEAST = 256 + len(SPECIAL)
"""The bytes, and the special tokens."""
PREFIX = "##"
"""WordPiece: before a piece that does not begin a word."""


def learned(kind: str, texts: Callable[[], Iterable[str]], vocabulary: int) -> Tokenizer:
    """A tokenizer of at most so many tokens. `texts` gives those it is learned from, and is asked once or twice. Raises
    InputError."""
    if vocabulary < LEAST:
        allowed = f"at least {LEAST}: 256 bytes and {len(SPECIAL)} special tokens"
        raise InputError(f"vocabulary is {vocabulary}", allowed=allowed)
    tokenizers = library()
    if kind == "wordpiece":
        text = _wordpiece(tokenizers, texts, vocabulary)
    else:
        text = _of_bytes(tokenizers, kind == "bpe", texts(), vocabulary)
    numbers = {token["content"]: token["id"] for token in json.loads(text)["added_tokens"]}
    return Tokenizer(text, Roles((), numbers[END], numbers[PAD]), names={"eos_token": END, "pad_token": PAD})


def _of_bytes(tokenizers: Any, pairs: bool, texts: Iterable[str], vocabulary: int) -> str:
    by_bytes = tokenizers.pre_tokenizers.ByteLevel
    made = tokenizers.Tokenizer(tokenizers.models.BPE() if pairs else tokenizers.models.Unigram())
    made.pre_tokenizer, made.decoder = by_bytes(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    kind = tokenizers.trainers.BpeTrainer if pairs else tokenizers.trainers.UnigramTrainer
    options = {"special_tokens": list(SPECIAL), "initial_alphabet": by_bytes.alphabet(), "show_progress": False}
    made.train_from_iterator(_some(texts), kind(vocab_size=vocabulary, **options))
    content = json.loads(made.to_str())
    if not pairs:  # the library asks for an unknown piece where a text has a byte that it has not met
        known = {piece for piece, _ in content["model"]["vocab"]}
        lowest = min(score for _, score in content["model"]["vocab"])
        missing = sorted(set(by_bytes.alphabet()) - known)
        content["model"]["vocab"] += [[letter, lowest - 10.0] for letter in missing]
    return json.dumps(content, ensure_ascii=False)


def _wordpiece(tokenizers: Any, texts: Callable[[], Iterable[str]], vocabulary: int) -> str:
    """The library numbers the letters within words in the order of a table that it shuffles, and which of two equally
    frequent pairs it takes first hangs on these numbers. So they are given beforehand, as if they were special."""
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNKNOWN))
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece(prefix=PREFIX, cleanup=False)
    letters = sorted({letter for text in texts() for letter in set(text) if not letter.isspace()})
    special = [UNKNOWN, *SPECIAL]
    within = [PREFIX + letter for letter in letters]
    if len(special) + 2 * len(letters) > vocabulary:
        what = f"vocabulary is {vocabulary}, and the texts have {len(letters):,} different letters"
        raise InputError(what, allowed=f"at least {len(special) + 2 * len(letters):,} for wordpiece", fix="or bpe")
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*special, *within],
        initial_alphabet=letters,
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    made.train_from_iterator(_some(texts()), trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    return json.dumps(content, ensure_ascii=False)


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts; InputError where there is none, for the library would learn from nothing."""
    empty = True
    for text in texts:
        empty = empty and not text
        yield text
    if empty:
        raise InputError("there is no text to learn a tokenizer from", fix="more text, or tokenizer=bytes")
