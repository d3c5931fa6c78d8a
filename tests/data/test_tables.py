"""Tables of every ill: what a column is taken for, what it becomes, and that nothing is lost or merged in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdl.data.formats.csv import CsvTable, Options
from distdl.data.manifest import Manifest, read_manifest
from distdl.data.preparation import apply
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.table import profile, stream
from distdl.data.table.report import render
from distdl.data.table.scale import from_scale
from distdl.errors import InputError


def whole(path: Path, split: str = "train") -> dict[str, Any]:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def made(folder: Path, text: str, **options: Any) -> tuple[Manifest, np.ndarray]:
    """A CSV, prepared: its manifest, and `x` of the training rows."""
    (folder / "t.csv").write_text(text)
    options = {"test_fraction": 0, "label": "y", **options}
    manifest = prepare_dataset("csv", folder / "d", {"path": f"{folder}/t.csv", **options}, overwrite=True)
    assert manifest == read_manifest(folder / "d")
    return manifest, whole(folder / "d")["x"]


def table(columns: dict[str, list[Any]]) -> str:
    """As a CSV."""
    rows = zip(*columns.values(), strict=True)
    return ",".join(columns) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


def kinds(manifest: Manifest) -> dict[str, str]:
    return {row["column"]: row["kind"] for row in manifest.info["kinds"]}


N = 60
Y = ["a" if i % 3 else "b" for i in range(N)]
COLUMNS: dict[str, tuple[list[Any], str]] = {
    "income": ([20_000.5 + 137 * ((i * 7) % N) for i in range(N)], "number"),
    "whole": ([(i * i) % 97 for i in range(N)], "number"),
    "gaps": (["" if i % 10 == 0 else i % 7 for i in range(N)], "number"),
    "odd": (["?" if i % 10 == 0 else i % 7 for i in range(N)], "number"),
    "typo": (["x7" if i == 5 else i % 7 for i in range(N)], "number"),
    "bit": ([i % 2 for i in range(N)], "boolean"),
    "answer": (["yes" if i % 4 else "no" for i in range(N)], "boolean"),
    "city": ([("Bonn", "Rome", "Oslo")[i % 3] for i in range(N)], "category"),
    "late words": ([i if i < 50 else "many" for i in range(N)], "text"),
    "born": ([f"19{50 + i % 40}-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(N)], "date"),
    "american": ([f"{1 + i % 12}/{1 + i % 28}/2020" for i in range(N)], "date"),
    "seen": ([f"2020-01-{1 + i % 28:02} {i % 24:02}:{i % 60:02}:00" for i in range(N)], "date"),
    "review": ([f"it was {'very ' * (i % 9)}good {i}" for i in range(N)], "text"),
    "PassengerId": ([1000 + i for i in range(N)], "id"),
    "code": ([f"k{i * 7919 % 10_007}" for i in range(N)], "id"),
    "file": ([f"a/{i}.png" for i in range(N)], "image path"),
    "same": ([4] * N, "constant"),
    "nothing": ([""] * N, "empty"),
}


@pytest.mark.parametrize("rows", [1 << 16, 7], ids=["whole", "pieces"])
@pytest.mark.parametrize("name", COLUMNS)
def test_what_a_column_is_taken_for(tmp_path: Path, name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its first rows look like, and however many of them are read at a time."""
    monkeypatch.setattr(stream, "PIECE_ROWS", rows)
    monkeypatch.setattr(profile, "SURE_ROWS", 2 * rows)
    values, kind = COLUMNS[name]
    manifest, _ = made(tmp_path, table({"other": [0.5 * i for i in range(N)], name: values, "y": Y}))
    assert kinds(manifest) == {"other": "number", name: kind, "y": "target"}
    line = next(line for line in render(manifest.info) if line.startswith(name or "(no name)"))
    assert kind in line and ("left out" in line) == (kind in ("text", "id", "image path", "constant", "empty"))


def test_numbers_are_standardised_by_the_training_rows_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(50_000, 9_000, 400)
    (tmp_path / "t.csv").write_text(table({"v": values.tolist(), "y": ["a", "b"] * 200}))
    manifest = prepare_dataset("csv", tmp_path / "d", {"path": f"{tmp_path}/t.csv", "label": "y", "test_fraction": 0.3})
    train, test = (whole(tmp_path / "d", split)["x"][:, 0].astype(float) for split in ("train", "test"))
    (feature,) = manifest.preparation["x"]["features"]
    back = train * feature["scale"]["divide"] + feature["scale"]["shift"]
    assert abs(train.mean()) < 1e-6 and abs(train.std() - 1) < 1e-6
    np.testing.assert_allclose([feature["scale"]["shift"], feature["scale"]["divide"]], [back.mean(), back.std()])
    assert abs(feature["scale"]["shift"] - values.mean()) > 1  # the held-out rows are no part of it
    both = np.concatenate([back, test * feature["scale"]["divide"] + feature["scale"]["shift"]])
    np.testing.assert_allclose(np.sort(both), np.sort(values), rtol=1e-5)


@pytest.mark.parametrize("scale", ["standard", "log", "none"])
def test_numbers_are_cut_into_pieces(tmp_path: Path, scale: str) -> None:
    """At the value that fills one by itself and at quantiles of the others, by the training rows alone."""
    rng = np.random.default_rng(3)
    gain = np.where(rng.random(500) < 0.8, 0, np.round(np.exp(rng.normal(7, 1, 500)), 1))
    columns = {
        "gain": ["" if i % 9 == 0 else v for i, v in enumerate(gain)],
        "bit": [7, 5] * 250,
        "y": ["a", "b"] * 250,
    }
    (tmp_path / "t.csv").write_text(table(columns))
    told = {"path": f"{tmp_path}/t.csv", "label": "y", "test_fraction": 0.3, "pieces": 5, "scale": scale}
    manifest = prepare_dataset("csv", tmp_path / "d", told)
    record = manifest.preparation["x"]
    of_gain, of_bit = record["features"]
    assert "edges" not in of_bit, "two values are told apart by the number itself"
    train = whole(tmp_path / "d")["x"]
    rows = np.flatnonzero(train[:, -2] == 0)
    values = from_scale(train[rows, 0], of_gain["scale"])
    edges = np.array(of_gain["edges"])
    amounts = values[values > 0.05]
    np.testing.assert_allclose(edges[1:], np.quantile(amounts, np.linspace(0, 1, 5)), rtol=1e-3)
    assert edges[0] == 0 and edges[-1] < gain.max() + 1e-9
    bent = (lambda v: np.log1p(v)) if scale == "log" else (lambda v: v)
    share = (bent(values)[:, None] - bent(edges[:-1])) / np.diff(bent(edges))
    np.testing.assert_allclose(train[rows, 1:6], np.clip(share, 0, 1), atol=2e-3)
    assert record["columns"][1] == f"gain 0 to {edges[1]:.6g}" and record["columns"][6:] == ["gain is empty", "bit"]
    assert (train[:, 6] > 0).mean() == pytest.approx(1 / 9, abs=0.05) and train.shape[1] == 8
    assert "and 5 pieces (7 columns)" in "\n".join(render(manifest.info))
    assert record["version"] == 2, "an older distdl, which knows no pieces, must not read it"
    (tmp_path / "t.csv").write_text(table({"gain": [-9e4, 9e9], "bit": [5, 5]}))
    (new,) = apply(manifest.preparation, CsvTable(f"{tmp_path}/t.csv", Options(path="")), answers=False)
    assert new["x"][:, 1:6].tolist() == [[0] * 5, [1] * 5], "beyond the ends nothing more is crossed"


@pytest.mark.parametrize("pieces", [1, -4, 257])
def test_a_number_of_pieces_that_are_none_is_refused(tmp_path: Path, pieces: int) -> None:
    with pytest.raises(InputError, match=rf"pieces is {pieces}\n.*0, or 2 to 256"):
        made(tmp_path, table({"v": list(range(60)), "y": Y}), pieces=pieces)


@pytest.mark.parametrize(
    ("scale", "want"),
    [
        ("standard", lambda v: (v - v.mean()) / v.std()),
        ("minmax", lambda v: (v - v.min()) / (v.max() - v.min())),
        ("robust", lambda v: (v - np.median(v)) / (np.quantile(v, 0.75) - np.quantile(v, 0.25))),
        ("log", lambda v: (np.log1p(v) - np.log1p(v).mean()) / np.log1p(v).std()),
        ("none", lambda v: v),
    ],
)
def test_scales(tmp_path: Path, scale: str, want: Any) -> None:
    values = np.exp(np.random.default_rng(1).normal(3, 2, 200))
    text = table({"v": values.tolist(), "y": (values * 3).tolist()})
    _, x = made(tmp_path, text, label="", target="y", scale=scale, target_scale=scale)
    np.testing.assert_allclose(x[:, 0], want(values), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(whole(tmp_path / "d")["y"], want(values * 3), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("missing", "fill"), [("mean", 3.5), ("median", 3.0), ("most_frequent", 2.0), ("zero", 0.0)])
def test_empty_numbers_are_filled_and_marked(tmp_path: Path, missing: str, fill: float) -> None:
    values: list[Any] = [2, "", 2, 4, "NA", 6, 3, "?", 2, 6, 3]  # of these: 2 2 4 6 3 2 6 3
    manifest, x = made(tmp_path, table({"v": values, "y": list("abababababa")}), missing=missing, scale="none")
    assert manifest.info["features"] == ["v", "v is empty"]
    gaps = [1, 4, 7]
    assert x[gaps, 0].tolist() == [fill] * 3 and x[:, 1].tolist() == [float(i in gaps) for i in range(11)]
    assert x[[0, 3, 5], 0].tolist() == [2, 4, 6]
    assert next(row for row in manifest.info["kinds"] if row["column"] == "v")["missing"] == 3


def test_rows_with_gaps_can_be_dropped_or_refused(tmp_path: Path) -> None:
    text = table({"v": [1, "", 3, 4, 5], "w": [1, 2, 3, "", 7], "text": ["", "", "", "", ""], "y": list("ababa")})
    manifest, x = made(tmp_path, text, missing="drop", scale="none")
    assert x.tolist() == [[1, 1], [3, 3], [5, 7]] and manifest.info["features"] == ["v", "w"]
    assert any(
        "2 rows with an empty value are left out" in note and "t.csv:3" in note for note in manifest.info["notes"]
    )
    with pytest.raises(InputError, match=r"t\.csv:3: the column 'v' has the value ''"):
        made(tmp_path, text, missing="refuse")


def test_a_word_among_numbers_is_said_and_counts_as_empty(tmp_path: Path) -> None:
    values, _ = COLUMNS["typo"]
    manifest, x = made(tmp_path, table({"v": values, "y": Y}))
    told = next(row["told"] for row in manifest.info["kinds"] if row["column"] == "v")
    assert "1 values are no finite numbers" in told and "'x7'" in told and "t.csv:7" in told
    assert x[5, 1] == 1 and x[:, 1].sum() == 1


def test_categories(tmp_path: Path) -> None:
    values = ["Bonn", "Rome", "Bonn", "", "Oslo", "Rome", "Bonn"]
    text = table({"city": values, "y": list("abababa")})
    manifest, x = made(tmp_path, text)
    assert manifest.info["features"] == ["city=Bonn", "city=Oslo", "city=Rome", "city is empty"]
    assert x.argmax(1).tolist() == [0, 2, 0, 3, 1, 2, 0] and (x.sum(1) == 1).all()
    manifest, x = made(tmp_path, text, categories="index")
    assert manifest.info["features"] == ["city", "city is empty"] and x[:, 0].tolist() == [1, 3, 1, 0, 2, 3, 1]
    manifest, x = made(tmp_path, text, max_categories=1)
    assert manifest.info["features"] == ["city=Bonn", "city=other", "city is empty"]
    assert x.argmax(1).tolist() == [0, 1, 0, 2, 1, 1, 0]
    told = next(row["told"] for row in manifest.info["kinds"] if row["column"] == "city")
    assert told == "1 of 3 words; the others, 50.0% of the rows, are one: other"


def test_a_word_that_training_did_not_see_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table({"c": ["u", "v"] * 4, "y": list("abababab")}))
    (tmp_path / "u.csv").write_text(table({"c": ["u", "new"], "y": ["a", "b"]}))
    options = {"path": f"{tmp_path}/t.csv", "test_path": f"{tmp_path}/u.csv", "label": "y"}
    prepare_dataset("csv", tmp_path / "d", options)
    assert whole(tmp_path / "d", "test")["x"].tolist() == [[1, 0], [0, 0]]
    prepare_dataset("csv", tmp_path / "e", {**options, "categories": "index"})
    assert whole(tmp_path / "e", "test")["x"].tolist() == [[1], [0]]


def test_dates_become_parts_and_a_distance(tmp_path: Path) -> None:
    days = ["2020-02-28 06:00:00", "2021-03-01 06:00:00", "", "2020-02-29 06:00:00"]
    manifest, x = made(tmp_path, table({"d": days, "y": list("abab")}), scale="none")
    assert manifest.info["features"] == ["d.days", "d.year", "d.month", "d.day", "d.weekday", "d is empty"]
    assert x[0].tolist() == [18320.25, 2020, 2, 28, 4, 0] and x[1].tolist() == [18687.25, 2021, 3, 1, 0, 0]
    assert x[2].tolist() == [0, 0, 0, 0, 0, 1] and x[3, 3] == 29
    bad = table({"d": ["2020-02-28", "2020-02-30", "2020-03-01"], "y": list("aba")})
    with pytest.raises(InputError, match=r"t\.csv:3: the column 'd' has the value '2020-02-30'"):
        made(tmp_path, bad, kinds="d:date", date_format="%Y-%m-%d")
    american = table({"d": ["1/2/2020", "3/4/2020", "5/6/2020"], "y": list("aba")})
    manifest, x = made(tmp_path, american, scale="none")
    assert x[0, 1:3].tolist() == [1, 2] and "%d/%m/%Y fits, too" in manifest.info["kinds"][0]["told"]
    _, x = made(tmp_path, american, scale="none", date_format="%d/%m/%Y")
    assert x[0, 1:3].tolist() == [2, 1]


def test_embeddings_with_labels_of_text(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    columns = {"v": vectors.tolist(), "n": np.arange(50.0), "what": ["cat", "dog"] * 25}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    options = {"path": f"{tmp_path}/t.parquet", "label": "what", "test_fraction": 0}
    manifest = prepare_dataset("parquet", tmp_path / "d", options)
    found = whole(tmp_path / "d")
    assert manifest.info["features"] == ["v[0]", "v[1]", "v[2]", "v[3]", "n"] and manifest.info["classes"] == [
        "cat",
        "dog",
    ]
    want = (vectors - vectors.mean(0, dtype=float)) / vectors.std(0, dtype=float)
    np.testing.assert_allclose(found["x"][:, :4], want, rtol=1e-5, atol=1e-6)
    columns["v"][7] = [1.0]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row 7: the column 'v' has no list here, or one of another length"):
        prepare_dataset("parquet", tmp_path / "e", {**options, "kinds": "v:vector"})


def test_types_of_a_typed_file(tmp_path: Path) -> None:
    import datetime
    import decimal

    day = datetime.datetime(2020, 1, 1)
    columns = {
        "time": [day + datetime.timedelta(hours=7 * i) for i in range(N)],
        "word": pa.array([("u", "v", "w")[i % 3] for i in range(N)]).dictionary_encode(),
        "money": [decimal.Decimal(i * i % 41) / 100 for i in range(N)],
        "flag": [i % 2 == 0 for i in range(N)],
        "null": [None if i % 5 == 0 else i for i in range(N)],
        "record": [{"a": i} for i in range(N)],
        "y": [float(i) for i in range(N)],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    options = {"path": f"{tmp_path}/t.parquet", "target": "y", "test_fraction": 0}
    manifest = prepare_dataset("parquet", tmp_path / "d", options)
    want = {
        "time": "date",
        "word": "category",
        "money": "number",
        "flag": "boolean",
        "null": "number",
        "record.a": "number",
    }
    assert kinds(manifest) == {**want, "y": "target"}
    assert np.isfinite(whole(tmp_path / "d")["x"]).all()


def test_rows_without_a_label(tmp_path: Path) -> None:
    text = table({"v": [1, 2, 3, 4], "y": ["a", "", "b", "NA"]})
    manifest, x = made(tmp_path, text, scale="none")
    assert x[:, 0].tolist() == [1, 3] and whole(tmp_path / "d")["label"].tolist() == [0, 1]
    assert "2 rows have no 'y' and are left out (the first: " in manifest.info["notes"][0]
    assert "t.csv:3)" in manifest.info["notes"][0]
    manifest, _ = made(tmp_path, text, unlabelled="keep")
    assert whole(tmp_path / "d")["label"].tolist() == [0, -100, 1, -100]
    assert "2 rows have no 'y': their label is -100" in manifest.info["notes"][0]
    for answer in ({"label": "y"}, {"label": "", "target": "v"}):
        gaps = table({"v": [1, 2, "", 4], "y": ["a", "b", "", "b"]})
        with pytest.raises(InputError, match=r"t\.csv:4: the column '.' has the value ''"):
            made(tmp_path, gaps, unlabelled="refuse", **answer)
    with pytest.raises(InputError, match="unlabelled=keep"):
        made(tmp_path, text, unlabelled="keep", label="", target="v")


def test_what_the_reader_and_what_the_kinds_tell_stand_beside_each_other(tmp_path: Path) -> None:
    text = table({"v": [1, 2, 3], "w": [4, 1, 2], "y": ["a", "", "b"]}).replace(",", ";")
    manifest, _ = made(tmp_path, text)
    notes = manifest.info["notes"]
    assert any("';'" in note for note in notes) and any("1 rows have no 'y'" in note for note in notes), notes


def test_a_class_may_be_called_none(tmp_path: Path) -> None:
    """As the least of several degrees is; among features the word says that there is nothing."""
    text = table({"v": [1, 2, 3, 4], "w": ["None", "p", "q", "p"], "y": ["None", "mild", "severe", "None"]})
    manifest, _ = made(tmp_path, text)
    assert manifest.info["classes"] == ["None", "mild", "severe"] and not manifest.info["notes"]
    assert whole(tmp_path / "d")["label"].tolist() == [0, 1, 2, 0]
    assert manifest.info["features"] == ["v", "w=p", "w=q", "w is empty"]


def test_a_third_word_among_held_out_rows_makes_no_boolean(tmp_path: Path) -> None:
    values = ["yes", "no"] * 30
    options = {"test_fraction": 0.3}
    made(tmp_path, table({"v": values, "y": Y}), **options)
    (tmp_path / "n.csv").write_text(table({"n": list(range(N)), "y": Y}))
    prepare_dataset("csv", tmp_path / "n", {"path": f"{tmp_path}/n.csv", "label": "y", "scale": "none", **options})
    held_out = int(whole(tmp_path / "n", "test")["x"][0, 0])
    values[held_out] = "perhaps"
    manifest, _ = made(tmp_path, table({"v": values, "y": Y}), **options)
    assert kinds(manifest)["v"] == "category" and manifest.info["features"] == ["v=no", "v=yes"]
    assert whole(tmp_path / "d", "test")["x"][0].tolist() == [0, 0]


def test_a_row_in_a_refusal_is_that_of_the_file_whatever_was_left_out_before_it(tmp_path: Path) -> None:
    text = table({"v": [1, 2, 3, 4, 5], "y": [1.5, "", 2.5, "", "x"]})
    with pytest.raises(InputError, match=r"t\.csv:6: the column 'y' has the value 'x'"):
        made(tmp_path, text, label="", target="y")


@pytest.mark.parametrize("rows", [1, 5])
def test_a_column_to_predict_that_is_empty_throughout_is_named(tmp_path: Path, rows: int) -> None:
    text = table({"v": list(range(rows)), "y": ["NA"] * rows})
    for options in ({"test_fraction": 0.1}, {"label": "", "target": "y"}, {"stratify": True, "test_fraction": 0.5}):
        with pytest.raises(InputError, match=rf"no rows with a 'y': it is empty in all {rows}"):
            made(tmp_path, text, **options)


def test_a_column_alone_leaves_nothing_to_predict_it_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no columns left as features: there is none beside 'y'"):
        made(tmp_path, table({"y": list("abab")}))


def test_classes_of_a_test_file_that_have_a_dot_behind_them_are_read_without_it(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("v,y\n1, <=50K.\n2,>50K. \n3,?\n4,>50K.\n")
    text = table({"v": [1, 2, 3, 4], "y": ["<=50K", ">50K", "<=50K", ">50K"]})
    options = {"test_path": f"{tmp_path}/u.csv", "test_fraction": 0.1}
    manifest, _ = made(tmp_path, text, **options)
    assert whole(tmp_path / "d", "test")["label"].tolist() == [0, 1, 1]
    (note,) = [note for note in manifest.info["notes"] if "dot" in note]
    assert "u.csv have a dot behind them ('<=50K.') and are read without it" in note
    (tmp_path / "u.csv").write_text("v,y\n1,<=50K.\n2,<=40K.\n")  # another class is none with a dot
    with pytest.raises(InputError, match=r"'<=50K\.', which is not one of the classes"):
        made(tmp_path, text, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "v,y"}, "'y' is to be predicted, and features= names it"),
        ({"features": "v,v"}, "features= names the column 'v' 2 times"),
        ({"drop": "y"}, "'y' is to be predicted, and drop= leaves it out"),
        ({"drop": "u"}, "has no column 'u', which drop= names"),
        ({"rename": "v:w"}, "two columns of .* the same name: w"),
        ({"rename": "u:z"}, "has no column 'u', which rename= names"),
        ({"rename": "v"}, "old:new"),
        ({"kinds": "v:nummer"}, "column:kind"),
        ({"kinds": "u:number"}, "has no column 'u', which kinds= names"),
        ({"kinds": "w:number"}, r"t\.csv:2: the column 'w' has the value 'p'"),
        ({"features": "w", "kinds": "w:text"}, "features= names the column 'w'"),
        ({"drop": "v,w"}, "no columns left as features"),
        ({"scale": "standart"}, "standard, minmax, robust, log, none"),
    ],
)
def test_options_that_contradict_each_other_or_the_file(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(tmp_path, table({"v": [1, 2, 3, 4], "w": list("pqpq"), "y": list("abab")}), **options)


def test_a_test_file_that_is_the_training_file_is_refused(tmp_path: Path) -> None:
    text = table({"v": [1, 2, 3, 4], "y": list("abab")})
    (tmp_path / "copy.csv").write_text(text)
    for path in ("t.csv", "copy.csv"):
        with pytest.raises(
            InputError, match=r"test_path=.*csv holds the same as path=.*t.csv: nothing would be tested"
        ):
            made(tmp_path, text, test_path=f"{tmp_path}/{path}")


def test_renamed_and_asked_kinds(tmp_path: Path) -> None:
    text = table({"v w": [1, 2, 1, 2], "zip": [10, 20, 10, 30], "y": list("abab")})
    options = {"rename": "v w:v", "kinds": "zip:category", "scale": "none"}
    manifest, x = made(tmp_path, text, **options)
    assert manifest.info["features"] == ["v", "zip=10", "zip=20", "zip=30"] and x[:, 0].tolist() == [1, 2, 1, 2]
    manifest, _ = made(tmp_path, text, kinds="zip:id")
    assert manifest.info["features"] == ["v w"]


def test_whole_numbers_that_32_bits_do_not_hold_are_told_or_kept_apart(tmp_path: Path) -> None:
    """Standardised in 64 bits first, ids of 1e9 stay as many as they were; where they would merge, it is said."""
    ids = [1_000_000_000 + i for i in range(20)]
    manifest, x = made(tmp_path, table({"v": ids, "y": ["a", "b"] * 10}))
    assert len(np.unique(x[:, 0])) == 20 and not manifest.info["notes"]
    manifest, x = made(tmp_path, table({"v": ids, "y": ["a", "b"] * 10}), scale="none")
    assert len(np.unique(x[:, 0])) == 1
    (note,) = manifest.info["notes"]
    assert "'v' has whole numbers as 1000000019" in note and "t.csv:21" in note and "less than 64 apart" in note
    spread = [1_600_000_000 + 40_000_000 * i for i in range(19)] + [2_400_000_001]
    manifest, _ = made(tmp_path, table({"v": spread, "y": ["a", "b"] * 10}))
    assert "become one there" in manifest.info["notes"][0]


def test_a_number_beside_which_all_others_look_alike_is_told(tmp_path: Path) -> None:
    values = [0.001 * i for i in range(300)] + [1e30]
    manifest, _ = made(tmp_path, table({"v": values, "y": ["a", "b"] * 150 + ["a"]}))
    assert "the others look alike" in manifest.info["notes"][0]


def test_classes_that_are_one_number(tmp_path: Path) -> None:
    manifest, _ = made(tmp_path, table({"v": [1, 2, 3], "y": ["01", "1", "2"]}))
    assert "the classes 01, 1 are the same number" in manifest.info["notes"][0]


def test_a_wide_table_takes_time_by_its_columns_not_by_their_square(tmp_path: Path) -> None:
    """Every look-up of a column by its place in a list would be one more for each column."""
    from distdl.data.table.profile import Profile

    looked = 0

    class Names(list[str]):
        def index(self, *args: Any) -> int:
            nonlocal looked
            looked += 1
            return super().index(*args)

    names = Names(f"c{i}" for i in range(50))
    found = Profile(pa.schema(dict.fromkeys(names, pa.float64())), names, ("",))
    assert found.index("c49") == 49 and looked == 0


def test_means_and_deviations_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    from distdl.data.table.profile import Numbers

    values = 1e9 + np.random.default_rng(0).normal(0, 1, (2, 1000))
    values[1, ::3] = np.nan
    one, many = Numbers(2), Numbers(2)
    one.add(values, np.arange(1000), True)
    for i in range(0, 1000, 7):
        many.add(values[:, i : i + 7], np.arange(i, min(i + 7, 1000)), True)
    for column in range(2):
        there = values[column][~np.isnan(values[column])]
        for numbers in (one, many):
            np.testing.assert_allclose(numbers.mean[column], there.mean(), rtol=1e-14)
            np.testing.assert_allclose(numbers.deviation(column), there.std(), rtol=1e-6)
            assert (numbers.low[column], numbers.high[column]) == (there.min(), there.max())
    assert one.sample(0).tolist() == many.sample(0).tolist()


def test_many_columns_are_told_in_few_lines(tmp_path: Path) -> None:
    columns = {f"c{i}": [i, i + 1.5, i + 2] for i in range(100)}
    manifest, _ = made(tmp_path, table({**columns, "y": list("aba")}))
    lines = render(manifest.info)
    assert len(lines) == 3 and lines[1].startswith("c0 to c99 (100)")


def test_empty_cells_are_counted_once(tmp_path: Path) -> None:
    """A column of many words is no longer read as numbers after some thousand rows: its gaps are counted by one of both."""
    values = ["" if i % 4 == 0 else "uvw"[i % 3] for i in range(4000)]
    manifest, x = made(tmp_path, table({"word": values, "y": ["a", "b"] * 2000}))
    assert manifest.info["kinds"][0]["missing"] == 1000 and x[:, 3].sum() == 1000
