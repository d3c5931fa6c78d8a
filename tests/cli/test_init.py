"""`distdl init`: what a file is told to be, the config that is written for it, and the shipped examples."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from distdl.cli.starter import examples
from distdl.config.load import load_config
from distdl.data.advice import Wish, answer_of
from distdl.data.manifest import read_manifest
from distdl.data.recognise import advise, recognise
from distdl.errors import InputError
from distdl.train.survey import survey
from tests.conftest import REPOSITORY, Result, distdl

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flowers(rows: int = 60) -> list[str]:
    """Lines of a table: two numbers, and a class of three that they tell."""
    noise = np.random.default_rng(0)
    names = ["rose", "lily", "tulip"]
    return [f"{i % 3 + noise.uniform():.3f},{noise.uniform():.3f},{names[i % 3]}" for i in range(rows)]


def write(name: str, lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    if name.endswith(".gz"):
        Path(name).write_bytes(gzip.compress(text.encode()))
    else:
        Path(name).write_text(text)


def planned(command: Command, *arguments: str) -> dict:
    """The config that was written, as plain values, after it was planned as `distdl train` would."""
    code, out, error = command("init", *arguments, "--json")
    assert code == 0, error
    done = json.loads(out)
    survey(load_config(done["config"]).config)
    return yaml.safe_load(Path(done["config"]).read_text())


# -- what it is --------------------------------------------------------------------------------------------------------


def test_a_table_of_classes(command: Command) -> None:
    write("flowers.csv", ["width,height,kind", *flowers()])
    values = planned(command, "flowers.csv")
    assert values["name"] == "flowers" and values["data"]["path"] == "data/flowers"
    asked = {"family": "mlp", "column": "x", "classes": 3, "inputs": [2]}
    assert {key: values["model"][key] for key in asked} == asked
    assert values["data"]["prepare"] == {"source": "csv", "options": {"path": "flowers.csv", "label": "kind"}}
    text = Path("flowers.yaml").read_text()
    assert "label: kind  # the last column, text of 3 classes" in text and "rose" in text


@pytest.mark.slow
def test_it_trains_at_once(command: Command, folder: Path) -> None:
    write("flowers.csv", ["width,height,kind", *flowers(300)])
    assert command("init", "flowers.csv").code == 0
    done = distdl("train", "flowers.yaml", "track.enabled=false", cwd=folder)
    assert done.code == 0, done.stdout + done.stderr
    (accuracy,) = re.findall(r"^accuracy +([0-9.]+)", done.stdout, re.MULTILINE)
    assert float(accuracy) > 0.9


@pytest.mark.parametrize("name", ["bare.csv", "bare.data", "bare.txt", "bare.csv.gz"])
def test_a_table_without_names_keeps_its_first_row(command: Command, name: str) -> None:
    write(name, flowers())
    values = planned(command, name)
    assert values["model"]["classes"] == 3 and values["model"]["inputs"] == [2]
    assert "the last column" in Path("bare.yaml").read_text()
    assert sum(split.rows for split in read_manifest("data/bare").splits.values()) == 60


def test_names_that_are_given_are_those_of_which_one_is_predicted(command: Command) -> None:
    write("bare.csv", flowers())
    values = planned(command, "bare.csv", "names=width,height,kind", "--label", "kind")
    options = values["data"]["prepare"]["options"]
    assert options == {"path": "bare.csv", "names": "width,height,kind", "label": "kind"}
    assert sum(split.rows for split in read_manifest("data/bare").splits.values()) == 60
    write("other.csv", [line.replace(",", ";") for line in flowers()])
    options = planned(command, "other.csv", "names=width,height,kind", "delimiter=;")["data"]["prepare"]["options"]
    assert options["label"] == "kind"
    done = command("init", "bare.csv", "names=a,b", "--label", "b", "--output", "wrong.yaml")
    assert done.code == 2 and "names= has 2 names" in done.stderr


def test_a_number_to_predict(command: Command) -> None:
    write("houses.tsv", ["rooms\tprice", *(f"{i}\t{i * 2.5 + 0.1}" for i in range(50))])
    values = planned(command, "houses.tsv")
    assert values["model"]["target"] == "value" and "classes" not in values["model"]
    options = values["data"]["prepare"]["options"]
    assert options["target"] == "price" and "label" not in options and values["model"]["inputs"] == [1]


def test_a_column_that_is_called_so_goes_before_the_last(command: Command) -> None:
    write("t.csv", ["Target,a,b", *(f"{i % 2},{i},{i / 7}" for i in range(40))])
    assert planned(command, "t.csv")["data"]["prepare"]["options"]["label"] == "Target"


def test_columns_at_the_end_that_are_always_the_same_are_passed_over(command: Command) -> None:
    write("t.csv", ["a,b,kind,unit,more", *(f"{i},{i / 7},{'xyz'[i % 3]},kg," for i in range(40))])
    options = planned(command, "t.csv", "features=a,b")["data"]["prepare"]["options"]
    assert options["label"] == "kind"
    assert "label: kind  # the last column that is not always the same, text of 3 classes" in Path("t.yaml").read_text()


def test_the_first_column_is_taken_where_it_has_classes(command: Command) -> None:
    write("first.csv", ["sort,a,note", *(f"{'xy'[i % 2]},{i / 7},text number {i}" for i in range(40))])
    options = planned(command, "first.csv", "features=a")["data"]["prepare"]["options"]
    assert options["label"] == "sort"


def test_parquet_by_its_first_bytes(command: Command) -> None:
    pq.write_table(pa.table({"a": np.arange(50) / 3, "y": ["no", "yes"] * 25}), "nameless")
    values = planned(command, "nameless")
    assert values["data"]["prepare"] == {"source": "parquet", "options": {"path": "nameless", "label": "y"}}


def test_pictures_in_folders(command: Command) -> None:
    from PIL import Image

    for kind, shade in (("cats", 40), ("dogs", 200)):
        Path("pets", kind).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20 + i, 18), (shade, i, 3)).save(f"pets/{kind}/{i}.png")
    values = planned(command, "pets/", "test_fraction=0.25")
    assert values["model"]["family"] == "cnn" and values["model"]["image"] == [3, 18, 18]
    options = values["data"]["prepare"]["options"]
    assert options == {"path": "pets", "size": "18x18", "test_fraction": 0.25}
    values = planned(command, "pets", "--family", "vit", "--output", "other.yaml")
    assert values["model"]["family"] == "vit" and values["data"]["path"] == "data/other"


def test_features_beside_pictures_that_no_family_reads_are_told(command: Command) -> None:
    from PIL import Image

    noise = np.random.default_rng(0)
    Path("faces").mkdir()
    for i in range(24):
        Image.fromarray(noise.integers(0, 255, (16, 16), np.uint8)).save(f"faces/{i}.png")
    rows = [f"faces/{i}.png,{noise.uniform():.3f},{noise.uniform():.3f},{'ab'[i % 2]}" for i in range(24)]
    Path("faces.csv").write_text("face,age,height,y\n" + "\n".join(rows))
    out = command("init", "faces.csv", "size=16x16").stdout
    said = "the column x, made of age, height, is not learned from: the model reads image alone"
    assert f"note: {said}" in out and f"# {said}" in Path("faces.yaml").read_text()
    assert set(read_manifest("data/faces").columns) == {"x", "image", "label"}
    out = command("init", "faces.csv", "size=16x16", "drop=age,height", "--output", "b.yaml").stdout
    assert "is not learned from" not in out


def test_text(command: Command) -> None:
    write("book.txt", ["It was a dark and stormy night, and nothing was to be seen."] * 200)
    values = planned(command, "book.txt")
    assert values["model"]["family"] == "gpt" and values["model"]["context"] == 128
    write("lines.jsonl", [json.dumps({"id": i, "body": "some words " * 30}) for i in range(50)])
    assert planned(command, "lines.jsonl")["data"]["prepare"]["options"]["text"] == "body"
    assert planned(command, "book.txt", "--family", "lstm", "--output", "l.yaml")["model"]["steps"] == 128


def test_arrays(command: Command) -> None:
    noise = np.random.default_rng(0)
    np.savez("a.npz", X=noise.normal(size=(40, 6)), Y=np.arange(40) % 2)
    values = planned(command, "a.npz")
    assert values["model"]["inputs"] == [6] and values["model"]["classes"] == 2
    np.savez(
        "b.npz",
        x_train=np.zeros((40, 12, 12), "u1"),
        y_train=np.arange(40) % 3,
        x_test=np.zeros((9, 12, 12), "u1"),
        y_test=np.zeros(9, int),
    )
    values = planned(command, "b.npz")
    assert values["model"]["image"] == [1, 12, 12] and read_manifest("data/b").splits["test"].rows == 9


def test_arrays_that_are_named_otherwise_are_said(command: Command) -> None:
    np.savez("c.npz", fp=np.random.default_rng(0).normal(size=(40, 6)), toxic=np.arange(40) % 2)
    code, _, error = command("init", "c.npz")
    assert code == 2 and "fp [40, 6], toxic [40]" in error and "--label ARRAY" in error
    values = planned(command, "c.npz", "--label", "toxic")
    assert values["data"]["prepare"]["options"]["train"] == ["fp", "toxic"] and values["model"]["classes"] == 2
    values = planned(command, "c.npz", "--target", "toxic", "--output", "d.yaml")
    assert values["model"]["target"] == "value"


def test_arrays_of_another_kind_of_file_are_told_alike(command: Command) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat("m.mat", {"X": np.random.default_rng(0).normal(size=(40, 6)), "y": (np.arange(40) % 2)[:, None]})
    assert recognise("m.mat") == "mat"
    advice = advise("mat", "m.mat", Wish())
    assert advice.options["train"] == ["X", "y"] and advice.options["columns"][0] == "x"


def test_idx_files(command: Command) -> None:
    Path("mnist").mkdir()
    for kind, magic, sizes, body in (
        ("images-idx3", b"\0\0\x08\x03", (20, 8, 8), bytes(range(20)) * 64),
        ("labels-idx1", b"\0\0\x08\x01", (20,), bytes([0, 1] * 10)),
    ):
        Path(f"mnist/train-{kind}-ubyte").write_bytes(magic + np.array(sizes, ">u4").tobytes() + body)
    values = planned(command, "mnist", "test_fraction=0.2")
    assert values["data"]["prepare"]["source"] == "idx" and values["model"]["image"] == [1, 8, 8]


@pytest.mark.parametrize(
    ("texts", "key"),
    [
        (dict.fromkeys("abc", 5), "label"),
        (dict.fromkeys("01", 50), "label"),
        (dict.fromkeys(["0.0", "1.0"], 50), "label"),
        ({str(i): 1 for i in range(7)}, ""),  # 0 to 6 in seven rows: their numbers
        ({str(i * i): 1 for i in range(70)}, "target"),
        ({str(i): 9 for i in range(70)}, "target"),
        ({"0.5": 3, "0.25": 1}, "target"),
        ({f"word {i}": 1 for i in range(50)}, ""),
        ({f"{i}.0": 50 for i in range(10)}, "label"),
        ({f"{i}.0": 50 for i in range(11)}, "target"),
        ({str(i): 50 for i in range(20)}, "label"),
        ({"one": 90}, ""),
        ({}, ""),
        ({str(i / 7): 1 for i in range(50)} | {"6.2?": 1}, "target"),
        ({str(i / 7): 1 for i in range(50)} | {f"{i}?": 1 for i in range(9)}, ""),
        ({str(i): 90 for i in range(5)} | {"unknown": 9}, "label"),  # one class more
    ],
)
def test_class_or_number(texts: dict[str, int], key: str) -> None:
    assert answer_of(texts).key == key


def test_ids_at_the_end_are_passed_over(command: Command) -> None:
    write("t.csv", ["a,price,unit,patient_id", *(f"{i % 7},{i * i / 7},kg,{i // 3 + 500}" for i in range(60))])
    assert planned(command, "t.csv")["data"]["prepare"]["options"]["target"] == "price"
    assert "the last column that is not always the same and no id, numbers" in Path("t.yaml").read_text()


def test_a_class_may_be_called_none_and_a_number_be_missing_as_a_dot(command: Command) -> None:
    write("t.csv", ["a,better", *(f"{i % 7},{['None', 'Some', 'Marked', '?'][i % 4]}" for i in range(60))])
    assert planned(command, "t.csv")["model"]["classes"] == 3 and "text of 3 classes" in Path("t.yaml").read_text()
    write("u.csv", ["a,dose", *(f"{i % 7},{'.' if i % 4 else i / 7}" for i in range(160))])
    assert planned(command, "u.csv")["data"]["prepare"]["options"]["target"] == "dose"


def test_what_is_no_number_among_those_to_predict_is_named_with_its_row(command: Command) -> None:
    write("t.csv", ["a,price", *(f"{i % 7},{i * i / 7}" for i in range(60)), "3,6.2?"])
    code, _, error = command("init", "t.csv")
    assert code == 2 and "t.csv:62" in error and "'6.2?', which is not a finite number" in error


@pytest.mark.parametrize(("rows", "hidden", "decay"), [(60, [32], 1.0), (600, [64, 32], 1.0), (2400, [128, 64], 1e-4)])
def test_few_rows_get_a_small_net_and_a_strong_weight_decay(
    command: Command, rows: int, hidden: list[int], decay: float
) -> None:
    write("t.csv", ["a,price", *(f"{i / 7},{i * i / 7}" for i in range(rows))])
    model = planned(command, "t.csv")["model"]
    config = load_config("t.yaml").config
    assert model["hidden"] == hidden and config.optimizer.weight_decay == decay
    assert survey(config).steps >= 700


def test_tables_of_many_rows_have_their_numbers_cut_into_pieces(command: Command) -> None:
    """Unless they are few, none bends, or it is said otherwise."""
    for rows, more, pieces in ((2100, (), 16), (1900, (), None), (2100, ("pieces=0",), 0), (2100, ("drop=a",), 16)):
        write("t.csv", ["a,b,kind", *(f"{i / 7},{i % 2},{'no' if i % 3 else 'yes'}" for i in range(rows))])
        values = planned(command, "t.csv", *more, "--overwrite")
        assert values["data"]["prepare"]["options"].get("pieces") == pieces
        assert values["model"]["inputs"] == [2 - (more == ("drop=a",)) + (pieces or 0) * (more != ("drop=a",))]
        assert ("rows or more" in Path("t.yaml").read_text()) == (pieces == 16), "why, where nobody has said it"
    write("t.csv", ["a,b,kind", *(f"{'xyz'[i % 3]},{i % 2},{'no' if i % 3 else 'yes'}" for i in range(2100))])
    assert "pieces" not in planned(command, "t.csv", "--overwrite")["data"]["prepare"]["options"], "words do not bend"


def test_what_is_chosen_is_chosen_by_the_validation_split(command: Command) -> None:
    write("flowers.csv", ["width,height,kind", *flowers(200)])
    data = planned(command, "flowers.csv", "validation_fraction=0.2")["data"]
    assert (data["eval_split"], data["test_split"]) == ("validation", "test")
    assert data["prepare"]["options"]["validation_fraction"] == 0.2, "a number, without quotes"
    data = planned(command, "flowers.csv", "validation_fraction=0.2", "test_fraction=0", "--overwrite")["data"]
    assert data["eval_split"] == "validation" and "test_split" not in data
    assert "eval_split" not in planned(command, "flowers.csv", "--overwrite")["data"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_told_is_refused_with_choices(command: Command) -> None:
    write("notes.csv", ["id,a,note", *(f"{i},{i}.5,text number {i}" for i in range(40))])
    code, _, error = command("init", "notes.csv")
    assert code == 2 and "not clear" in error and "id, a, note" in error and "--target COLUMN" in error
    assert not Path("notes.yaml").exists() and not Path("data").exists()
    code, _, error = command("init", "notes.csv", "--label", "nota")
    assert code == 2 and "did you mean 'note'" in error
    Path("blob.bin").write_bytes(b"\x80\x81")
    code, _, error = command("init", "blob.bin")
    assert code == 2 and ".csv" in error and "distdl data sources" in error
    assert command("init", "nowhere.csv").code == command("init").code == 2
    assert command("init", "notes.csv", "--example", "mlp").code == 2


def test_a_family_that_does_not_fit_is_told_and_leaves_no_config(command: Command) -> None:
    write("flowers.csv", ["width,height,kind", *flowers()])
    code, _, error = command("init", "flowers.csv", "--family", "cnn")
    assert code == 2 and "flowers.yaml would not train" in error and not Path("flowers.yaml").exists()


def test_recordings_in_folders_and_archives_of_pictures(command: Command, folder: Path) -> None:
    import shutil
    import tarfile

    from PIL import Image

    soundfile = pytest.importorskip("soundfile")
    random = np.random.default_rng(0)
    for i in range(20):
        path = folder / "birds" / "ab"[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.uniform(-0.5, 0.5, 2000), (8000, 4000)[i == 3])
        picture = folder / "pets" / "ab"[i % 2] / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9 + i % 2, 9), np.uint8)).save(picture)
    assert recognise("birds") == "sound" and recognise("pets") == "images"
    shutil.make_archive("zipped", "zip", "pets")
    with tarfile.open("packed.tar.gz", "w:gz") as tar:
        tar.add("pets")
    for name in ("pets", "zipped.zip", "packed.tar.gz"):
        done = command("init", name)
        assert done.code == 0, done.stderr
        assert (
            "is read as images (channels=1: all pictures are grey; size=9x9: the pictures differ in size)"
            in done.stdout
        )
    done = command("init", "birds")
    assert done.code == 0 and "rate_hz=8000: the recordings have 2 rates" in done.stdout, done.stderr
    text = Path("birds.yaml").read_text()
    assert "family: cnn" in text and "image: [1, 48, 40]" in text
    assert command("data", "inspect", "data/birds", "--html", "birds.html").code == 0


def test_nothing_is_replaced_unasked(command: Command) -> None:
    write("flowers.csv", ["width,height,kind", *flowers()])
    assert command("init", "flowers.csv").code == 0
    before = read_manifest("data/flowers").fingerprint
    code, _, error = command("init", "flowers.csv")
    assert code == 2 and "--overwrite" in error
    Path("flowers.yaml").unlink()
    assert command("init", "flowers.csv").code == 0, "the same recipe has made it: it is taken as it is"
    Path("flowers.yaml").unlink()
    code, _, error = command("init", "flowers.csv", "--label", "kind", "test_fraction=0.5")
    assert code == 2 and "prepared in another way" in error
    assert command("init", "flowers.csv", "test_fraction=0.5", "--overwrite").code == 0
    assert read_manifest("data/flowers").fingerprint != before


def test_two_sources_for_one_file_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from distdl.data.generators import digits

    write("t.csv", flowers())
    monkeypatch.setattr(digits, "ENDINGS", (".csv",), raising=False)
    with pytest.raises(InputError, match=r"several sources: csv, digits\n.*--source csv"):
        recognise("t.csv")
    with pytest.raises(InputError, match="reads no file"):
        advise("digits", "t.csv", Wish())


# -- examples ----------------------------------------------------------------------------------------------------------


def test_every_config_is_an_example(command: Command) -> None:
    names = {path.stem for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert set(examples()) == names
    listed = {row["name"]: row["summary"] for row in json.loads(command("init", "--list", "--json").stdout)}
    assert set(listed) == names and listed["mlp"].startswith("A multi-layer perceptron")
    assert command("init", "--example", "mlp").code == 0
    assert Path("mlp.yaml").read_bytes() == (REPOSITORY / "configs" / "families" / "mlp.yaml").read_bytes()
    assert command("init", "--example", "mlp").code == 2
    code, _, error = command("init", "--example", "mlq")
    assert code == 2 and "did you mean" in error


def test_the_wheel_holds_them_where_they_are_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distdl.cli import starter

    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (below,) = re.findall(r'^\[tool.hatch.build.targets.wheel.force-include\]\n"configs" = "distdl/(\w+)"', text, re.M)
    (folder / "distdl" / below).mkdir(parents=True)
    (folder / "distdl" / below / "one.yaml").write_text("# One.\n")
    monkeypatch.setattr(starter, "__file__", str(folder / "distdl" / "cli" / "starter.py"))
    assert list(examples()) == ["one"]


def test_a_recipe_with_a_secret_is_the_one_that_made_the_data_set(command: Command) -> None:
    """The manifest keeps no secrets: they are no difference."""
    from distdl.cli.init import _prepared
    from distdl.cli.starter import Recipe

    write("flowers.csv", ["width,height,kind", *flowers()])
    options = {"path": "flowers.csv", "label": "kind", "na": ("https://me:secret@host/?key=1",)}
    recipe = Recipe("data/flowers", "csv", options, {})
    made = _prepared(recipe, False, None)
    assert "secret" not in str(made.options)
    assert _prepared(recipe, False, None).fingerprint == made.fingerprint
