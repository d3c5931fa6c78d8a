"""Texts to tokens and back, and documents in rows: what is a special token and what only looks like one, nothing lost,
everything told."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from distdl.data.fit import misfits
from distdl.data.manifest import Manifest, read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.text import tokens as tokens_module
from distdl.data.text.documents import PART_LETTERS, Reader
from distdl.data.text.learn import SPECIAL, learned
from distdl.data.text.load import loaded
from distdl.data.text.packing import Layout, Packer, best_fit
from distdl.data.text.tokens import BYTES, END, Tokenizer, decode, encode, from_record
from distdl.errors import InputError
from tests.data.test_prepare import whole

TEXTS = [f"The {i}th of many sentences, and not the last: naïve café, 日本 {i * i}.\n" for i in range(200)]
HARD = "a <|end|> b</s><s>  \n\n\tÜ é 日本 \x00 🙂 [CLS] [UNK] <|pad|><|user|>"


def made(folder: Path, source: str = "text", **options: Any) -> Manifest:
    return prepare_dataset(source, folder, options)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return learned("bpe", lambda: TEXTS, 400)


# -- tokenizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram", BYTES])
def test_any_text_comes_back(kind: str) -> None:
    tokenizer = loaded(BYTES) if kind == BYTES else learned(kind, lambda: TEXTS, 400)
    (ids,) = tokenizer.encode([HARD])
    assert tokenizer.decode(ids) == HARD and max(ids) < tokenizer.vocabulary <= 400
    assert not {*tokenizer.special.values()} & {*ids}, "what a text spells is text"
    record = json.loads(json.dumps(tokenizer.record()))
    assert record["kind"] == "tokens" and record["version"] == 1
    assert encode(record, HARD) == ids and decode(record, np.array(ids, np.uint16)) == HARD


def test_special_tokens_of_a_text_are_meant_only_where_that_is_asked(bpe: Tokenizer) -> None:
    end, user = bpe.special[END], bpe.special["<|user|>"]
    (ids,) = bpe.encode(["a<|end|>b<|user|>"], special=True)
    assert [i for i in ids if i in (end, user)] == [end, user] and bpe.decode(ids) == "a<|end|>b<|user|>"
    assert list(bpe.special) == list(SPECIAL)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    """The library alone gives another WordPiece each time; see learn.py."""
    texts = [f"{word} {word[::-1]} {word[:3]}" for word in map(hex, range(1000, 4000, 7))]
    first = learned(kind, lambda: texts, 500)
    assert all(learned(kind, lambda: texts, 500).text == first.text for _ in range(4))


def test_wordpiece_knows_words_and_says_what_it_does_not_keep(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(TEXTS))
    manifest = made(tmp_path / "d", path=f"{tmp_path}/t.txt", tokenizer="wordpiece", document="line", vocabulary=300)
    (note,) = [note for note in manifest.info["notes"] if "does not keep" in note]
    assert "t.txt:1: " in note and "becomes" in note
    record = manifest.preparation["tokens"]
    assert decode(record, encode(record, "The 1th of many")) == "The 1th of many"
    assert from_record(record).special.keys() == {"[UNK]", *SPECIAL}
    with pytest.raises(InputError, match="different letters"):
        learned("wordpiece", lambda: [chr(i) for i in range(200, 500)], 300)


def test_what_is_learned_is_learned_from_the_training_texts(tmp_path: Path) -> None:
    train, test = "the words that are here are these words\n" * 50, "ZQX9 " * 500
    (tmp_path / "a.txt").write_text(train)
    (tmp_path / "b.txt").write_text(test)
    options = {"path": f"{tmp_path}/a.txt", "test_path": f"{tmp_path}/b.txt", "context": 8, "tokenizer": "bpe"}
    record = made(tmp_path / "d", vocabulary=320, **options).preparation["tokens"]
    pieces = json.loads(from_record(record).text)["model"]["vocab"]
    assert any("words" in piece for piece in pieces) and not any("ZQ" in piece for piece in pieces)


def foreign(folder: Path, model: Any, names: list[str], **more: Any) -> Path:
    """A tokenizer of another maker in a folder."""
    there = tokenizers.Tokenizer(model)
    there.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    there.add_special_tokens(names)
    for name, value in more.items():
        setattr(there, name, value)
    folder.mkdir(exist_ok=True)
    there.save(str(folder / "tokenizer.json"))
    return folder


def test_a_special_token_that_is_a_piece_is_told_from_text(tmp_path: Path) -> None:
    """The library finds it whatever `encode_special_tokens` says: in each of its models."""
    letters = [*"▁<>/s[]CLhi"]
    unigram = tokenizers.models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((a, -5.0) for a in letters)], unk_id=0)
    byte_pairs = {a: i for i, a in enumerate([*letters, "</", "</s", "</s>"])}
    merges = [("<", "/"), ("</", "s"), ("</s", ">")]
    for model, name in (
        (unigram, "</s>"),
        (tokenizers.models.BPE(byte_pairs, merges), "</s>"),
        (tokenizers.models.WordPiece({"[UNK]": 0, "[CLS]": 1, "hi": 2}, unk_token="[UNK]"), "[CLS]"),
        (tokenizers.models.WordLevel({"[UNK]": 0, "[CLS]": 1, "hi": 2}, unk_token="[UNK]"), "[CLS]"),
    ):
        folder = foreign(tmp_path / "t", model, [name])
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        theirs.encode_special_tokens = True
        number = theirs.token_to_id(name)
        assert number in theirs.encode(f"hi {name}").ids, "the library still does it: it could be left to it otherwise"
        ours = loaded(str(folder), end=name)
        assert number not in ours.encode([f"hi {name}"])[0]
        assert ours.encode([f"hi {name}"], special=True)[0][-1] == number == ours.roles.end


KINDS_OF_OTHERS = {
    "spaces first": (None, tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")),
    "spaces always": (tokenizers.normalizers.NFKC(), tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")),
    "a space before": (
        tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
        ),
        None,
    ),
    "bert": (tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer()),
    "bytes": (None, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)),
}


@pytest.mark.parametrize("kind", KINDS_OF_OTHERS)
@pytest.mark.parametrize("model", ["BPE", "Unigram", "WordPiece"])
def test_other_names_of_special_tokens_change_no_other_token(kind: str, model: str) -> None:
    """Where special tokens are meant, all is as the library has it: the same tokens, at the same places."""
    there = tokenizers.Tokenizer(getattr(tokenizers.models, model)())
    there.normalizer, there.pre_tokenizer = KINDS_OF_OTHERS[kind]
    names = ["<s>", "</s>", "[MASK]", "[UNK]"]
    trainer = getattr(tokenizers.trainers, {"BPE": "Bpe"}.get(model, model) + "Trainer")
    more = {"unk_token": "[UNK]"} if model == "Unigram" else {}
    there.train_from_iterator(TEXTS, trainer(vocab_size=300, special_tokens=names, show_progress=False, **more))
    if model != "Unigram":
        there.model.unk_token = "[UNK]"
    normalized = (
        kind != "a space before"
    )  # which the library puts before the token's own name, too, and finds it no more
    mask = tokenizers.AddedToken("[MASK]", lstrip=True, normalized=normalized)
    there.add_special_tokens([mask, tokenizers.AddedToken("<x>", normalized=normalized)])
    ours = Tokenizer(there.to_str(), tokens_module.Roles((), 1, 1))
    assert {*ours.special} >= {*names, "<x>"}
    for text in (
        "<s>The 3th</s> of  many [MASK] x<x>\n\n</s>",
        "no special one",
        "</s>",
        "é</s></s> Ünïcode 日本 <s>",
        "",
    ):
        expected = there.encode(text, add_special_tokens=False)
        ids, places = ours.encode_marked(text)
        assert ids == expected.ids == ours.encode([text], special=True)[0], text
        assert places == expected.offsets or kind == "bytes", text
        assert ours.decode(ids) == there.decode(ids, skip_special_tokens=False)


def test_what_a_file_asks_for_beside_its_tokens_is_left_out(tmp_path: Path, bpe: Tokenizer) -> None:
    """Texts are not cut, filled up or drawn at random."""
    there = tokenizers.Tokenizer.from_str(bpe.text)
    there.enable_truncation(4)
    there.enable_padding(length=64)
    there.model.dropout = 0.5
    there.save(str(tmp_path / "tokenizer.json"))
    ours = loaded(str(tmp_path / "tokenizer.json"))
    assert all(ours.encode([text]) == bpe.encode([text]) for text in [HARD, *TEXTS[:5]])
    assert ours.decode(bpe.encode([HARD])[0]) == HARD


def test_a_folder_of_a_model_says_what_begins_and_ends_a_text(tmp_path: Path) -> None:
    names = ["<s>", "</s>", "<unk>", "<pad>"]
    model = tokenizers.models.WordLevel({**{name: i for i, name in enumerate(names)}, "hi": 4}, unk_token="<unk>")
    around = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = foreign(tmp_path / "m", model, names, post_processor=around)
    assert (loaded(str(folder)).roles.begin, loaded(str(folder)).roles.end) == ((0,), 1)
    told = {
        "eos_token": {"content": "<unk>"},
        "pad_token": "<s>",
        "chat_template": [{"name": "default", "template": "x"}],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    ours = loaded(str(folder))
    assert (ours.roles.end, ours.roles.pad, ours.template) == (2, 0, "x") and ours.names["eos_token"] == "<unk>"
    (folder / "chat_template.jinja").write_text("y")
    assert loaded(str(folder)).template == "y" and loaded(str(folder), end="hi").roles.end == 4
    (tmp_path / "t.txt").write_text("hi\nhi hi\n")
    manifest = made(
        tmp_path / "d",
        path=f"{tmp_path}/t.txt",
        tokenizer=str(folder),
        document="line",
        packing="none",
        context=4,
        test_fraction=0,
    )
    assert whole(tmp_path / "d")["tokens"].tolist() == [[0, 4, 2, 0, 0], [0, 4, 4, 2, 0]]
    assert manifest.info["vocabulary"] == 5


def test_tokenizers_that_cannot_be_used(tmp_path: Path) -> None:
    def refusal(where: Path | str, **more: str) -> str:
        with pytest.raises(InputError) as caught:
            loaded(str(where), **more)
        return str(caught.value)

    assert "did you mean 'unigram'" in refusal("unigrm") and "no such file or folder" in refusal(tmp_path / "none")
    (tmp_path / "vocab.json").write_text("{}")
    assert "save_pretrained" in refusal(tmp_path)
    for text, word in (
        ("[]", "no tokenizer"),
        ("{", "not valid JSON"),
        ('{"model": {"type": "Nope"}}', "no tokenizer"),
    ):
        (tmp_path / "tokenizer.json").write_text(text)
        assert word in refusal(tmp_path)
    folder = foreign(tmp_path / "m", tokenizers.models.WordLevel({"hi": 0, "?": 1}, unk_token="?"), [])
    assert "nothing says which token" in refusal(folder)
    assert "no token '<end>'" in refusal(folder, end="<end>")
    for vocabulary, texts, word in ((100, TEXTS, "at least 261"), (400, [], "no text"), (400, [""], "no text")):
        with pytest.raises(InputError, match=word):
            learned("bpe", lambda texts=texts: texts, vocabulary)  # type: ignore[misc]


def test_a_tokenizer_is_used_again_by_another_data_set(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(TEXTS))
    options = {"path": f"{tmp_path}/t.txt", "vocabulary": 300, "context": 16}
    first = made(tmp_path / "a", tokenizer="unigram", **options)
    again = made(tmp_path / "b", tokenizer=str(tmp_path / "a"), **options)
    assert again.fingerprint == first.fingerprint
    assert again.preparation["tokens"]["tokenizer"] == first.preparation["tokens"]["tokenizer"]
    assert read_manifest(tmp_path / "a").preparation == first.preparation
    assert any("another unigram tokenizer" in note for note in first.info["notes"])


def test_the_file_of_a_tokenizer_comes_back_byte_by_byte(bpe: Tokenizer) -> None:
    record = bpe.record()
    assert from_record(record).text == bpe.text and len(record["tokenizer"]) < len(bpe.text)
    for damage in (record["tokenizer"][:-9], "?", "", record["tokenizer"][:400]):
        with pytest.raises(InputError, match="damaged"):
            from_record({**record, "tokenizer": damage})
    with pytest.raises(InputError, match="kind 'features'"):
        decode({"kind": "features", "version": 1}, [1])


def test_a_private_letter_and_half_a_character_are_refused(tmp_path: Path, bpe: Tokenizer) -> None:
    for text in ("a" + chr(tokens_module.PRIVATE), "a" + tokens_module.MARK):
        with pytest.raises(ValueError, match="private character"):
            bpe.encode([text])
    (tmp_path / "t.jsonl").write_text('{"text": "fine"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(InputError, match=r"t\.jsonl:2: .*U\+D83D"):
        made(tmp_path / "d", path=f"{tmp_path}/t.jsonl", test_fraction=0, packing="none")


# -- documents ---------------------------------------------------------------------------------------------------------


def texts(reader: Reader, *paths: Path) -> list[str]:
    return [text.text for text in reader.documents([str(path) for path in paths])]


def test_what_a_document_is(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one\n\ntwo\nthree\n\n\nfour")
    assert texts(Reader(), path) == [path.read_text()]
    assert texts(Reader(unit="line"), path) == ["one", "two", "three", "four"]
    assert [t.strip() for t in texts(Reader(unit="paragraph"), path)] == ["one", "two\nthree", "four"]
    assert texts(Reader(separator="t"), path) == ["one\n\n", "wo\n", "hree\n\n\nfour"]
    assert [t.where.rpartition(":")[2] for t in Reader(unit="line").documents([str(path)])] == ["1", "3", "4", "7"]
    with gzip.open(tmp_path / "j.jsonl.gz", "wt") as file:
        file.write('{"text": "a\\nb", "n": 1}\n\n{"text": "c"}\n')
    assert texts(Reader(), tmp_path / "j.jsonl.gz") == ["a\nb", "c"]
    with pytest.raises(InputError, match=r"j\.jsonl\.gz:1: the field 'body'"):
        texts(Reader(key="body"), tmp_path / "j.jsonl.gz")


def test_a_large_file_comes_in_parts_that_are_one_document(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("word and word\n" * 9000 + "x" * (3 * PART_LETTERS))
    found = list(Reader().documents([str(path)]))
    assert "".join(text.text for text in found) == path.read_text() and len(found) > 8
    assert {text.document for text in found} == {0} and [text.last for text in found].index(True) == len(found) - 1
    assert [text.part for text in found] == [*range(len(found))]
    assert (
        all(text.text.endswith("\n") for text in found[:7])
        and max(len(text.text) for text in found) <= 2 * PART_LETTERS
    )
    made(
        tmp_path / "d",
        path=str(path),
        tokenizer=BYTES,
        document="file",
        packing="best_fit",
        context=50,
        test_fraction=0,
    )
    rows = whole(tmp_path / "d")
    assert int((rows["labels"] >= 0).sum()) == len(path.read_text()), "each letter but the first, and the end"
    rows = rows["tokens"][(rows["tokens"] < 256).all(1)]
    assert len(rows) > 1000


def test_parts_of_a_file_are_joined_without_a_space(tmp_path: Path) -> None:
    """Of a tokenizer that puts one before every text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "\u2581\nabcdefgh")]
    space = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    model = tokenizers.models.Unigram(pieces, unk_id=0)
    folder = foreign(tmp_path / "m", model, ["</s>"], decoder=tokenizers.decoders.Metaspace(prepend_scheme="always"))
    there = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    there.pre_tokenizer = space
    there.save(str(folder / "tokenizer.json"))
    content = "abc defgh\n" * 400
    (tmp_path / "t.txt").write_text(content)
    options = {"path": f"{tmp_path}/t.txt", "tokenizer": str(folder), "packing": "none", "test_fraction": 0}
    manifest = made(tmp_path / "d", context=5000, **options)
    (row,) = whole(tmp_path / "d")["tokens"]
    assert decode(manifest.preparation["tokens"], row).replace("</s>", "") == content


def test_a_list_of_objects_is_read_as_lines_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distdl.data import raw

    objects = [{"text": f'[{i}] é, "{i}"]', "n": i} for i in range(50)]
    path = tmp_path / "t.json"
    monkeypatch.setattr(raw, "READ_BYTES", 7)
    for indent in (None, 2):
        path.write_text(json.dumps(objects, indent=indent, ensure_ascii=False))
        found = list(Reader().documents([str(path)]))
        assert [text.text for text in found] == [each["text"] for each in objects]
        assert found[3].where == f"{path}, object 4"
    for content, word in (
        ('[{"text": "a"}, 3]', "object 2: the list holds 3"),
        ('[{"text": "a"}, {"text": "b"', "object 2: not valid JSON"),
        ('[{"text": "a"},', "does not end after object 1"),
        ('[{"text": "a"} {"text": "b"}]', "follows it"),
        ('[{"text": "a"}] x', "does not end after object 1"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=word):
            list(Reader().documents([str(path)]))


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (codecs.BOM_UTF8 + b"hello", {}, "byte order mark"),
        (codecs.BOM_UTF16_LE + "hello".encode("utf-16-le"), {}, "read as utf-16"),
        ("hello".encode("utf-16-le"), {"encoding": "utf-16-le"}, ""),
        ("hällo".encode("latin-1"), {"encoding": "latin-1"}, ""),
        (codecs.BOM_UTF8 + b"hello", {"encoding": "utf-8"}, "byte order mark"),
    ],
)
def test_encodings(tmp_path: Path, content: bytes, options: dict, told: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    reader = Reader(**options)
    (text,) = texts(reader, tmp_path / "t.txt")
    assert text in ("hello", "hällo")
    assert told in "".join(reader.told) or options


def test_what_is_no_text_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"fine\n" * 9 + b"bad \xff\n")
    with pytest.raises(InputError, match=r"t\.txt:10: the byte 0xff is no utf-8"):
        texts(Reader(), path)
    path.write_bytes("hello there".encode("utf-16-le"))
    with pytest.raises(InputError, match="UTF-16 without"):
        texts(Reader(), path)
    path.write_bytes(b"fine\n" * 9 + b"cut \xe6\x97")
    with pytest.raises(InputError, match=r"t\.txt:10: .*unexpected end"):
        texts(Reader(), path)
    with pytest.raises(InputError, match="encoding=nope"):
        texts(Reader(encoding="nope"), path)


def test_bytes_are_what_they_were_and_a_mark_is_told(tmp_path: Path) -> None:
    content = codecs.BOM_UTF8 + b"some text " * 30
    (tmp_path / "t.txt").write_bytes(content)
    manifest = made(tmp_path / "d", path=f"{tmp_path}/t.txt", context=9, test_fraction=0)
    rows = whole(tmp_path / "d")["tokens"]
    assert rows.dtype == np.uint8 and rows[:, :-1].tobytes() == content[: len(rows) * 9]
    assert "byte order mark" in manifest.info["notes"][0] and not manifest.preparation


def test_bytes_that_look_like_utf16_are_told_and_a_text_that_fills_no_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("words and more\n".encode("utf-16-le") * 20)
    (note,) = made(tmp_path / "d", path=f"{tmp_path}/t.txt", context=9).info["notes"]
    assert "a zero in every second byte, as UTF-16 has" in note
    (tmp_path / "t.txt").write_bytes(b"ab")
    with pytest.raises(InputError, match="the text has 2 bytes, and a row holds 10"):
        made(tmp_path / "e", path=f"{tmp_path}/t.txt", context=9)


def test_a_folder_and_what_is_left_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.txt", "deep/a.txt", "c.bin"):
        (tmp_path / "in" / name).write_text(name * 20)
    manifest = made(
        tmp_path / "d", path=f"{tmp_path}/in", tokenizer=BYTES, packing="none", context=200, test_fraction=0
    )
    record = manifest.preparation["tokens"]
    found = [decode(record, row[row < 256]) for row in whole(tmp_path / "d")["tokens"]]
    assert found == ["b.txt" * 20, "deep/a.txt" * 20]
    assert "1 of 3 files were left out (.bin)" in manifest.info["notes"][0].replace("files left", "files were left")
    with pytest.raises(InputError, match="no file that fits"):
        made(tmp_path / "e", path=f"{tmp_path}/in", files="*.md")


def test_documents_are_held_out_whole(tmp_path: Path) -> None:
    lines = [f"document {i}: " + "x" * (i % 40) for i in range(300)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    manifest = made(tmp_path / "d", path=f"{tmp_path}/t.jsonl", packing="none", context=12)
    found = {}
    for split in ("train", "test"):
        rows = whole(tmp_path / "d", split)["tokens"]
        found[split] = {
            n for n in range(300) for row in rows if f"document {n}:".encode() in bytes(row[row < 256].tolist())
        }
    assert found["train"] | found["test"] == {*range(300)} and not found["train"] & found["test"]
    assert 15 < len(found["test"]) < 50
    counts = manifest.info["documents"]
    assert counts["train"]["documents"] + counts["test"]["documents"] == 300


# -- rows --------------------------------------------------------------------------------------------------------------


def rows_of(layout: Layout, documents: list[list[int]]) -> tuple[dict[str, np.ndarray], Packer]:
    packer, parts = Packer(layout), []
    for ids in documents:
        parts += packer.add(np.array(ids, layout.dtype))
    parts += packer.end()
    return {name: np.concatenate([part[name] for part in parts]) for name in layout.columns}, packer


def test_best_fit_by_hand() -> None:
    assert best_fit([6, 4, 5, 3, 2, 10], 10) == [[0, 1], [2, 3, 4], [5]]
    assert best_fit([], 4) == [] and best_fit([1, 1, 1], 2) == [[0, 1], [2]]


def test_best_fit_loses_nothing_and_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(2, 65, 3000).tolist()
    bins = best_fit(lengths, 65)
    assert sorted(index for chosen in bins for index in chosen) == [*range(3000)]
    assert max(sum(lengths[i] for i in chosen) for chosen in bins) <= 65
    assert len(bins) < 1.03 * sum(lengths) / 65, "the least that could be"


def test_a_packed_row_by_hand() -> None:
    layout = Layout("best_fit", 7, 100, "uint16", 9, True)
    rows, packer = rows_of(layout, [[1, 2, 3], [4, 5], [6, 7, 8, 1, 2]])
    assert rows["tokens"].tolist() == [[1, 2, 3, 6, 7, 8, 1, 2], [4, 5, 9, 9, 9, 9, 9, 9]]
    assert rows["labels"].tolist() == [[-100, 2, 3, -100, 7, 8, 1, 2], [-100, 5, *[-100] * 6]]
    assert rows["documents"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, *[0] * 6]]
    counts = packer.counts
    assert (counts.documents, counts.tokens, counts.learned, counts.rows, counts.filling) == (3, 10, 7, 2, 6)


@pytest.mark.parametrize("packing", ["best_fit", "none", "stream"])
def test_every_token_is_predicted_once(packing: str) -> None:
    """Documents longer than a row, too: their pieces share a token, which is learned in the one and read in the other."""
    generator = np.random.default_rng(1)
    documents, at = [], 0
    for length in generator.integers(2, 60, 200).tolist():
        documents.append([*range(at, at + length)])
        at += length
    rows, packer = rows_of(Layout(packing, 16, 7, "uint16", 65535, True), documents)
    if packing == "stream":
        assert rows["tokens"][:, 1:].ravel().tolist() == [*range(1, 16 * len(rows["tokens"]) + 1)]
        assert packer.counts.rest == at - 1 - 16 * len(rows["tokens"]) < 16
        return
    labels = rows["labels"][rows["labels"] >= 0]
    first = {document[0] for document in documents}
    assert sorted(labels.tolist()) == sorted({*range(at)} - first)
    there = rows["labels"] >= 0
    assert (rows["tokens"][there] == labels).all() and not there[:, 0].any()
    before = np.roll(rows["tokens"], 1, 1)[there]
    assert (before + 1 == labels).all(), "what stands before it in the row stood before it in the text"
    if packing == "best_fit":
        same = rows["documents"] == np.roll(rows["documents"], 1, 1)
        assert (same[there]).all() and (rows["documents"][rows["tokens"] == 65535] == 0).all()
    assert packer.counts.cut == sum(len(document) > 17 for document in documents)


def test_longer_documents_are_left_out_where_that_is_asked() -> None:
    rows, packer = rows_of(Layout("none", 4, 9, "uint16", 0, False, cut=False), [[1, 2, 3], [1] * 6, [4, 5]])
    assert len(rows["tokens"]) == 2 and (packer.counts.left_out, packer.counts.cut) == (1, 0)


def test_large_vocabularies_have_wider_tokens() -> None:
    names = {"</s>": 0, **{f"w{i}": i for i in range(1, 70_000)}}
    there = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="w1"))
    there.add_special_tokens(["</s>"])
    ours = Tokenizer(there.to_str(), tokens_module.Roles((), 0, 0))
    assert ours.dtype == "uint32" and ours.vocabulary == 70_000 and loaded(BYTES).dtype == "uint16"


def test_a_model_that_would_not_read_what_counts_is_refused(tmp_path: Path) -> None:
    from distdl.families import load_family

    (tmp_path / "t.txt").write_text("".join(TEXTS))
    made(tmp_path / "d", path=f"{tmp_path}/t.txt", document="line", packing="best_fit", context=64)
    manifest, family = read_manifest(tmp_path / "d"), load_family("gpt")

    def problems(**model: Any) -> list[str]:
        columns = family.columns(family.Config(vocabulary=257, context=64, **model))
        return [problem.what + problem.fix for problem in misfits("d", manifest, {"gpt": columns}, {})]

    assert problems(labels=True, documents=True) == []
    (problem,) = problems(labels=True)
    assert "without 'documents'" in problem and "model.documents: true" in problem
    assert len(problems()) == 2


def test_options_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("short")
    for options, word in (
        ({"packing": "best"}, "stream, best_fit, none"),
        ({"packing": "none", "context": 0}, "at least 1"),
        ({"packing": "none", "window": 0}, "at least 1 document"),
        ({"tokenizer": "bpe", "end": "x"}, "leave end= out"),
        ({"stratify": True}, "there is no label"),
        ({"split_group": "author", "packing": "none"}, "leave split_group= out"),
        ({"tokenizer": "bpe", "context": 64, "test_fraction": 0}, "fill no row of 65"),
    ):
        with pytest.raises(InputError, match=word):
            made(tmp_path / "d", path=f"{tmp_path}/t.txt", **options)
