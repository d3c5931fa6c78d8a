"""Rows of JSON get the answers that `distdl predict` gives the same rows of a file, whatever stands beside them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distdl
from distdl.data.prepare import prepare_dataset
from distdl.model.model import Model
from distdl.run.folder import find_run
from distdl.serve.answers import Answerer, Asked, Reply
from tests.cli.test_asked_files import drawing
from tests.cli.test_predict import houses, trained, written
from tests.conftest import Result
from tests.serve.common import all_kinds, as_table

Command = Callable[..., Result]


def answerer(run: str, unknown: str = "refuse", batch: int = 256) -> Answerer:
    return Answerer(Model(find_run(run, "runs"), batch=batch), unknown)


def asked(of: Answerer, rows: list[Any], **wish: Any) -> Reply:
    from distdl.data.asking.told import Wish

    (reply,) = of.together([Asked(rows, Wish(**wish, inline=True))])
    return reply


def predicted(command: Command, run: str, *args: object) -> list[dict[str, Any]]:
    """What `distdl predict` says, without the numbers of the rows."""
    done = command("predict", run, *args, "--format", "jsonl", "--quiet")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [{name: value for name, value in row.items() if name not in ("row", "file", "text")} for row in rows]


def same(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Keys, their order, words and numbers: these but for the rounding of single precision."""
    assert [list(answer) for answer in answers] == [list(answer) for answer in expected]
    for answer, of_file in zip(answers, expected, strict=True):
        for name, value in of_file.items():
            assert answer[name] == (pytest.approx(value, rel=1e-5, abs=1e-6) if not isinstance(value, str) else value)


def test_a_row_gets_the_answer_of_predict_whatever_batch_it_falls_into(place: Path, command: Command) -> None:
    rows = all_kinds(90, seed=5)
    as_table(place / "new.jsonl", rows)
    expected = predicted(command, "houses", "new.jsonl", "--probabilities", "--top-k", 2)
    model = answerer("houses", batch=16)
    wish = {"probabilities": True, "top_k": 2}
    same(asked(model, rows, **wish).answers, expected)
    same([answer for row in rows for answer in asked(model, [row], **wish).answers], expected)
    requests = [Asked(rows[i : i + 7], asked_as(**wish)) for i in range(0, 90, 7)]
    same([answer for reply in model.together(requests) for answer in reply.answers], expected)
    assert [reply.together for reply in model.together(requests)] == [90] * 13
    words = [
        {key: str(value) if isinstance(value, int | float) else value for key, value in row.items()} for row in rows
    ]
    same(asked(model, words, **wish).answers, expected)
    renamed = [{**{k: v for k, v in row.items() if k != "built on"}, "built": row["built on"]} for row in rows]
    same(asked(model, renamed, **wish).answers, expected)


def asked_as(**wish: Any) -> Any:
    from distdl.data.asking.told import Wish

    return Wish(**wish, inline=True)


def test_requests_that_wish_for_different_things_share_a_batch(place: Path) -> None:
    model, rows = answerer("houses"), all_kinds(4)
    replies = model.together([Asked(rows), Asked(rows, asked_as(embeddings=True)), Asked(rows, asked_as(top_k=2))])
    assert [sorted(reply.answers[0]) for reply in replies] == [
        ["class", "probability"],
        ["class", "embedding", "probability"],
        ["class", "class 2", "probability", "probability 2"],
    ]


def test_a_bad_row_spoils_no_other_and_is_told_by_its_key(place: Path) -> None:
    model, rows = answerer("houses"), all_kinds(20, seed=1)
    good = asked(model, rows).answers
    bad = {
        0: ({"size": "big"}, "the column 'size' has the value 'big'"),
        3: ({"size": [1]}, "the column 'size' has the value [1]"),
        4: ({"town": "Paris"}, "the column 'town' has the value 'Paris', which is none of those learned from"),
        6: ({"built on": 3}, "the column 'built' has the value 3"),
        7: ({"built on": "yesterday"}, "the column 'built' has the value 'yesterday'"),
        9: ({"pool": "deep"}, "the column 'pool' has the value 'deep'"),
        11: ({"spot": [1.0]}, "the column 'spot' has 1 values"),
        12: ({"spot": "far"}, "the column 'spot' has the value 'far'"),
        13: ({"size": 10**400}, "the column 'size' has the value"),
    }
    sent: list[Any] = [{**row, **bad[i][0]} if i in bad else row for i, row in enumerate(rows)]
    del sent[14]["size"]
    sent[14]["sise"] = 3
    sent[15], sent[16] = 7, None
    reply = asked(model, sent)
    for i, (_, text) in bad.items():
        assert text in reply.answers[i]["error"], reply.answers[i]
    assert reply.answers[4]["allowed"] == "Bonn, Oslo, Rome" and "--unknown answer" in reply.answers[4]["fix"]
    assert reply.answers[14]["error"] == "the row has no 'size', which the model reads"
    assert reply.answers[14]["fix"] == "did you mean 'size' by 'sise'?"
    assert reply.answers[15]["error"] == "the row is 7, which is no object"
    untouched = [i for i in range(20) if i not in bad and i not in (14, 15, 16)]
    same([reply.answers[i] for i in untouched], [good[i] for i in untouched])
    assert reply.set_aside == 12
    alone = [asked(model, [row]).answers[0] for row in sent]
    assert [answer.get("error") for answer in alone] == [answer.get("error") for answer in reply.answers]


def test_a_bad_row_of_a_file_with_vectors_is_set_aside(place: Path, command: Command) -> None:
    rows = all_kinds(4)
    rows[1]["spot"] = [3.0]
    as_table(place / "short.jsonl", rows)
    done = command("predict", "houses", "short.jsonl")
    assert done.code == 1 and "short.jsonl:2: the column 'spot' has 1 values here" in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == 5


def test_words_that_training_did_not_see_count_as_unknown_where_the_server_says_so(
    place: Path, command: Command
) -> None:
    rows = [{**row, "town": "Paris"} for row in all_kinds(3)]
    as_table(place / "paris.jsonl", rows)
    reply = asked(answerer("houses", "answer"), rows)
    same(reply.answers, predicted(command, "houses", "paris.jsonl"))
    (note,) = [note for note in reply.notes if "price" not in note]
    assert reply.notes[note] == 3 and "'Paris', which is none of those learned from, and counts as unknown" in note


def test_a_key_that_is_no_column_is_told_and_the_label_is_not(place: Path) -> None:
    reply = asked(answerer("houses"), [{**all_kinds(1)[0], "colour": "red"}])
    told = "is no column that the model reads, and is left alone"
    assert list(reply.notes) == [f"'price' {told}", f"'colour' {told}"] and "class" in reply.answers[0]


@pytest.mark.slow
def test_a_value_is_told_in_the_units_of_the_file(place: Path, command: Command) -> None:
    written(place / "train.csv", houses(300), "size", "town", "price")
    prepare_dataset("csv", "values", {"path": "train.csv", "target": "price"})
    model = {"family": "mlp", "column": "x", "inputs": [4], "hidden": [16], "target": "value"}
    trained("values", model, place / "values")
    rows = [{"size": row["size"], "town": row["town"]} for row in houses(30, seed=2)]
    as_table(place / "units.jsonl", rows)
    of = answerer("values")
    same(asked(of, rows).answers, predicted(command, "values", "units.jsonl"))
    assert np.mean([answer["price"] for answer in asked(of, rows).answers]) > 100_000
    schema = of.schema()
    assert schema["out"] == [{"name": "value", "kind": "values", "meaning": schema["out"][0]["meaning"], "of": "price"}]
    assert [column["name"] for column in schema["in"]] == ["size", "town"]


def test_the_schema_says_what_goes_in_and_its_example_is_answered(place: Path) -> None:
    of = answerer("houses")
    schema = of.schema()
    columns = {column["name"]: column for column in schema["in"]}
    assert columns["town"] == {
        "name": "town",
        "kind": "category",
        "null": True,
        "classes": ["Bonn", "Oslo", "Rome"],
        "others": False,
    }
    assert columns["built on"]["format"] == "%Y-%m-%d" and columns["pool"]["values"] == ["no", "yes"]
    assert columns["spot"]["length"] == 2 and columns["size"]["kind"] == "number"
    assert schema["out"][0]["classes"] == ["cheap", "dear"] and schema["run"] == "houses" and schema["step"] == 60
    reply = asked(of, [json.loads(json.dumps(schema["example"]))])
    assert reply.set_aside == 0 and not reply.notes


@pytest.mark.slow
def test_pictures_come_in_base64_and_no_file_of_the_server_is_read(place: Path, command: Command) -> None:
    image = pytest.importorskip("PIL.Image")
    for kind in ("lying", "standing"):
        (place / "bars" / kind).mkdir(parents=True)
        for i in range(12):
            image.fromarray(drawing(kind, i)).save(place / "bars" / kind / f"{i:02d}.png")
    prepare_dataset("images", "bars-set", {"path": "bars", "size": "12x12", "channels": 1})
    model = {"family": "cnn", "image": [1, 12, 12], "classes": 2, "stages": [[6, 3, 2]], "dense": []}
    trained("bars", model, place / "bars-set", train={"global_batch": 8, "steps": 20})
    files = sorted((place / "bars").glob("*/*.png"))
    sent = [base64.b64encode(file.read_bytes()).decode() for file in files]
    of = answerer("bars")
    expected = predicted(command, "bars", "bars")
    same(asked(of, sent).answers, expected)
    same(asked(of, [{"image": f"data:image/png;base64,{text}"} for text in sent]).answers, expected)
    reply = asked(
        of, [str(files[0]), {"image": "no base64!"}, base64.b64encode(b"no picture").decode(), {"img": ""}, sent[0]]
    )
    assert reply.set_aside == 4
    assert "which is no file in base64" in reply.answers[1]["error"]
    assert "is not a picture that can be read" in reply.answers[2]["error"]
    assert reply.answers[3]["error"] == "the row has no 'image', which the model reads"
    same(reply.answers[4:], expected[:1])
    (column,) = of.schema()["in"]
    assert column == {
        "name": "image",
        "kind": "picture",
        "as": "a file in base64",
        "size": [12, 12],
        "channels": 1,
        "null": False,
    }


@pytest.mark.slow
def test_texts_of_any_lengths_share_a_batch(place: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "round.txt").write_text("abcdefgh. " * 300)
    prepare_dataset("text", "round-data", {"path": "round.txt", "context": "16"})
    model = {"family": "gpt", "vocabulary": 256, "context": 16, "layers": 1, "heads": 2, "width": 32, "dropout": 0.0}
    trained("round", model, place / "round-data", train={"global_batch": 16, "steps": 20})
    lines = ["abc", "abcdefgh. ab", "a", "cdefgh. abcdefgh. abcdefgh. abc"]
    (place / "lines.txt").write_text("\n".join(lines) + "\n")
    expected = predicted(command, "round", "lines.txt")
    of = answerer("round")
    same(asked(of, lines).answers, expected)
    same([asked(of, [{"text": line}]).answers[0] for line in lines], expected)
    monkeypatch.setattr("distdl.data.asking.rows.CELLS", 20)
    same(asked(of, lines).answers, expected)
    reply = asked(of, ["abc", "", {"text": 3}, {"txt": "abc"}])
    assert reply.set_aside == 3 and "the text is empty" in reply.answers[1]["error"]
    assert reply.answers[3]["fix"] == "did you mean 'text' by 'txt'?"


@pytest.mark.slow
def test_what_has_no_record_comes_as_the_model_reads_it(place: Path, digits: str, command: Command) -> None:
    model = {"family": "cnn", "image": [1, 8, 8], "stages": [[4, 3, 2]], "dense": []}
    trained("digits", model, Path(digits), steps=20)
    from distdl.data.read import Dataset

    pixels = Dataset(digits, "test").gather(np.arange(30))["image"]
    rows = [{"image": (row / 255 if row.dtype == np.uint8 else row).tolist()} for row in pixels]
    expected = predicted(command, "digits", digits, "--split", "test")[:30]
    of = answerer("digits")
    same(asked(of, rows).answers, expected)
    same(asked(of, [row["image"] for row in rows]).answers, expected)
    reply = asked(
        of,
        [{"image": [[1, 2]]}, {"image": "x"}, {"image": [[[1], [2, 3]]]}, {"image": np.full((1, 8, 8), 200).tolist()}],
    )
    assert reply.set_aside == 4 and "has the shape [1, 2]" in reply.answers[0]["error"]
    assert reply.answers[0]["allowed"] == "the shape [1, 8, 8]" and "holds 200" in reply.answers[3]["error"]


def test_rows_in_python_are_still_those_of_predict(place: Path) -> None:
    rows = [
        {key: row[key] for key in row if key not in ("price", "class")} for row in all_kinds(5, seed=3) if row["town"]
    ]
    same(asked(answerer("houses"), rows).answers, distdl.open_run("houses").predict(rows))
