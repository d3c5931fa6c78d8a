"""Bad lines of the sources that read line by line: text, conversations, JSON as it is, series, SVMlight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distdl.data.prepare import prepare_dataset
from distdl.errors import InputError
from tests.data.test_bad_rows import ASIDE, at, both, json_file, listed

DAMAGED = "damaged line"


def put(path: Path, bad: dict[int, str], rows: list[str], head: str = "") -> None:
    """A file with these lines (from 1) put between others."""
    lines = [*head.splitlines(), *rows]
    for line in sorted(bad):
        lines.insert(line - 1, bad[line])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


TEXTS = [{"text": f"document {i} " + "of words " * (i % 7 + 3)} for i in range(100)]


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "vocabulary": 300}, {"packing": "best_fit"}])
def test_documents_in_json_lines(tmp_path, options):
    bad = {2: '{"text": ', 5: '{"text": 7}', 9: '"text"', 30: '{"other": "x"}', 40: '{"text": "half \\ud800"}'}
    found, folder = both(
        tmp_path, "text", lambda p, d: json_file(p, bad if d else {}, TEXTS), "t.jsonl", context=16, **options
    )
    assert at(folder) == {2: DAMAGED, 5: "no text", 9: DAMAGED, 30: "no text", 40: "no text"}
    assert found.info["bad_rows"]["of"] == 105


def test_plain_text_has_no_rows_to_set_aside(tmp_path):
    (tmp_path / "t.txt").write_text("words and more words " * 50)
    with pytest.raises(InputError, match="the source text has no bad_rows="):
        prepare_dataset("text", tmp_path / "a", {"path": str(tmp_path / "t.txt"), "context": 8, **ASIDE})


def test_more_bad_documents_than_allowed_leave_nothing_behind(tmp_path):
    json_file(tmp_path / "t.jsonl", {2: "{", 5: "["}, TEXTS)
    options = {"path": str(tmp_path / "t.jsonl"), "context": 16, "bad_rows": "set_aside"}
    with pytest.raises(InputError, match=r"2 of 102 rows \(1.96%\) are bad"):
        prepare_dataset("text", tmp_path / "a", options)
    assert not (tmp_path / "a").exists()


def turns(question: str, answer: str | None) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer": "bpe", "vocabulary": 300}])
def test_conversations(tmp_path, tokenizer):
    rows = [{**turns(f"What is {i}?", f"{i} is a number"), "who": i % 7} for i in range(100)]
    bad = {
        3: '{"messages": []}',
        7: json.dumps(turns("Anything?", "")),
        9: '{"messages": [{"role": "user", "content": "Hello?"}]}',
        12: "no object",
        40: json.dumps(turns("half \ud800", "yes")),
    }
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for message in messages %}{% if message['content'] == 'forbidden' %}{{ raise_exception('no') }}{% endif %}"
        "{{ message['role'] }}: {% generation %}{{ message['content'] }}{% endgeneration %}\n{% endfor %}"
    )
    for extra, more in (
        ({}, {}),
        ({50: json.dumps({**turns("forbidden", "yes"), "who": 3})}, {"template": str(template), "split_group": "who"}),
    ):
        (tmp_path / str(len(more))).mkdir()
        options = {"context": 32, **tokenizer, **more}
        _, folder = both(
            tmp_path / str(len(more)),
            "chat",
            lambda p, d, extra=extra: json_file(p, {**bad, **extra} if d else {}, rows),
            "t.jsonl",
            **options,
        )
        other = dict.fromkeys([3, 7, 9, 40, *extra], "no conversation")
        assert at(folder) == {**other, 12: DAMAGED}


def test_conversations_of_one_list(tmp_path):
    rows: list[Any] = [turns(f"What is {i}?", f"{i} is a number") for i in range(100)]
    dirty = [*rows[:3], "nothing", turns("Anything?", " "), *rows[3:]]
    for name, some in (("dirty", dirty), ("clean", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(some))
    clean = prepare_dataset("chat", tmp_path / "a", {"path": str(tmp_path / "clean.json"), "context": 32})
    found = prepare_dataset("chat", tmp_path / "b", {"path": str(tmp_path / "dirty.json"), "context": 32, **ASIDE})
    assert found.fingerprint == clean.fingerprint
    assert at(tmp_path / "b", "object") == {4: "damaged object", 5: "no conversation"}


def test_json_lines_as_they_are(tmp_path):
    rows = [{"x": [i, i + 1], "label": i % 3} for i in range(100)]
    bad = {2: '{"x": [1], "label": 1}', 5: '{"x": [1, 2]}', 9: "{", 20: '{"x": [1, "two"], "label": 0}'}
    bad[30] = '{"x": [1, 1e99], "label": 0}'
    _, folder = both(tmp_path, "jsonl", lambda p, d: json_file(p, bad if d else {}, rows), "t.jsonl")
    other = "does not fit"
    assert at(folder) == {2: other, 5: other, 9: DAMAGED, 20: other, 30: other}
    assert listed(folder)[0]["content"] == '{"x": [1], "label": 1}'


def test_a_field_of_json_lines_as_text(tmp_path):
    bad = {2: '{"text": 1}', 5: "{"}
    _, folder = both(
        tmp_path, "jsonl", lambda p, d: json_file(p, bad if d else {}, TEXTS), "t.jsonl", text="text", context=16
    )
    assert at(folder) == {2: "no text", 5: DAMAGED}


TS_HEAD = "@problemName p\n@timeStamps false\n@classLabel true a b\n@data\n"


def test_series(tmp_path):
    rows = [f"{i},2,3:4,5,{i}:{'ab'[i % 2]}" for i in range(100)]
    bad = {
        6: "1,2,3:4,5,6",
        8: "1,2,3:4,5:a",
        12: "1,x,3:4,5,6:b",
        20: "1,2,3:4,5,6:c",
        30: "1,2,3:a",
        40: "1,?,3:4,5,6:a",
        41: "1,1e99,3:4,5,6:a",
    }
    _, folder = both(tmp_path, "ts", lambda p, d: put(p, bad if d else {}, rows, TS_HEAD), "t.ts", stratify=True)
    other = "does not fit"
    assert at(folder) == {6: other, 8: DAMAGED, 12: DAMAGED, 20: other, 30: other, 40: other, 41: other}


def test_series_in_tsv(tmp_path):
    rows = [f"{i % 2}\t{i}\t2\t3" for i in range(100)]
    bad = {2: "1\t1\t2", 9: "1\tx\t2\t3", 12: "1\tNaN\tNaN\tNaN", 20: "1"}
    _, folder = both(tmp_path, "ts", lambda p, d: put(p, bad if d else {}, rows), "t.tsv")
    assert at(folder) == dict.fromkeys((2, 9, 12, 20), DAMAGED)


@pytest.mark.parametrize("target", [False, True])
def test_svmlight(tmp_path, target):
    rows = [f"{i % 3} 1:{i} 3:2.5" for i in range(100)]
    bad = {
        2: "1 1:x",
        9: "one 1:2",
        12: "1 3:1 1:2",
        20: "1 1:inf",
        25: "1 99999999:1",
        30: "1 qid:3 1:2",
        40: "1 1:1e99",
    }
    if not target:
        bad[50] = "0.5 1:2"
    found, folder = both(
        tmp_path, "svmlight", lambda p, d: put(p, bad if d else {}, rows, "# a remark\n\n"), "t.svm", target=target
    )
    assert at(folder) == dict.fromkeys(bad, DAMAGED)
    assert found.columns["x"].shape == (3,)


def test_a_class_of_the_test_file_that_training_does_not_have(tmp_path):
    put(tmp_path / "train.svm", {}, [f"{i % 3} 1:{i}" for i in range(100)])
    put(tmp_path / "test.svm", {4: "7 1:1 9:1"}, [f"{i % 3} 1:{i}.5" for i in range(30)])
    options = {"path": str(tmp_path / "train.svm"), "test_path": str(tmp_path / "test.svm"), **ASIDE}
    found = prepare_dataset("svmlight", tmp_path / "a", options)
    assert at(tmp_path / "a") == {4: "no class"} and found.columns["x"].shape == (1,)
    assert found.splits["test"].rows == 30 and found.info["bad_rows"]["of"] == 131
