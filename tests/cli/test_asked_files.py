"""A trained model and files that are no tables: pictures, recordings, texts; what it draws; how right it is on new data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

import distdl
from distdl.data.asking.measures import calibration_error
from distdl.data.prepare import prepare_dataset
from distdl.errors import InputError
from distdl.model.drawn import Writing, drawn
from tests.cli.test_predict import houses, trained, written
from tests.conftest import Result

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asked")


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def drawing(kind: str, seed: int) -> np.ndarray:
    """A lying or a standing bar on noise, of odd sizes."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (14 + seed % 3, 15), dtype=np.uint8)
    pixels[(6, slice(2, 13)) if kind == "lying" else (slice(2, 12), 7)] = 250
    return pixels


def test_pictures_in_a_folder_are_answered_by_their_names(place: Path, command: Command) -> None:
    image = pytest.importorskip("PIL.Image")
    for part, first, count in (("train", 0, 24), ("new", 100, 6)):
        for kind in ("lying", "standing"):
            folder = place / part / kind
            folder.mkdir(parents=True)
            for i in range(count):
                image.fromarray(drawing(kind, first + i)).save(folder / f"{i:02d}.png")
    prepare_dataset("images", "bars", {"path": "train", "size": "12x12", "channels": 1})
    model = {"family": "cnn", "image": [1, 12, 12], "classes": 2, "stages": [[6, 3, 2]], "dense": []}
    run = trained("bars", model, place / "bars", steps=60, train={"global_batch": 16, "steps": 60})
    (place / "new" / "lying" / "torn.png").write_bytes((place / "new" / "lying" / "00.png").read_bytes()[:60])
    done = command("predict", "bars", "new", "-o", "bars.csv", "--quiet")
    assert done.code == 1 and "set aside: new/lying/torn.png" in done.stderr
    rows = list(csv.DictReader(io.StringIO(Path("bars.csv").read_text())))
    assert len(rows) == 13 and [row["file"] for row in rows if not row["class"]] == ["new/lying/torn.png"]
    assert all(row["class"] in row["file"] for row in rows if row["class"])
    one = command("predict", "bars", "new/standing/03.png", "--format", "jsonl")
    assert json.loads(one.stdout)["class"] == "standing" and run.predict("new/standing")[3]["class"] == "standing"
    (place / "new" / "lying" / "torn.png").unlink()
    told = json.loads(command("evaluate", "bars", "--data", "new", "--json").stdout)
    assert told["rows"] == 12 and told["more"]["accuracy"] == told["metrics"]["accuracy"] == 1
    assert told["confusion"] == [[6, 0], [0, 6]] and told["classes"] == ["lying", "standing"]


def test_recordings_in_a_folder_are_answered(place: Path, command: Command) -> None:
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    for i in range(24):
        kind = ("high", "low")[i % 2]
        (place / "tones" / kind).mkdir(parents=True, exist_ok=True)
        t = np.arange(int(8000 * (0.2 + 0.004 * i))) / 8000
        tone = 0.5 * np.sin(2 * np.pi * (1800 if kind == "high" else 300) * t) + 0.01 * rng.normal(size=len(t))
        soundfile.write(place / "tones" / kind / f"{i:02d}.wav", tone, 8000)
    prepare_dataset("sound", "tones-set", {"path": "tones", "mels": "12"})
    from distdl.data.manifest import read_manifest

    frames = read_manifest("tones-set").columns["x"].shape[0]
    model = {
        "family": "ensemble",
        "steps": frames,
        "bands": 12,
        "classes": 2,
        "hidden": [8],
        "maps": [2, 3],
        "units": 8,
    }
    trained("tones", model, place / "tones-set", train={"global_batch": 8, "steps": 60})
    done = command("predict", "tones", "tones", "-o", "tones.jsonl", "--quiet")
    assert done.code == 0, done.stderr
    rows = [json.loads(line) for line in Path("tones.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and np.mean([row["class"] in row["file"] for row in rows]) > 0.9
    assert rows[0].keys() == {"file", "class", "score"}


@pytest.fixture(scope="module")
def writer(place: Path) -> distdl.Run:
    """A language model of a text that goes round and round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "round.txt").write_text("abcdefgh. " * 600)
        prepare_dataset("text", "round", {"path": "round.txt", "context": "16"})
        model = {
            "family": "gpt",
            "vocabulary": 256,
            "context": 16,
            "layers": 1,
            "heads": 2,
            "width": 32,
            "dropout": 0.0,
        }
        return trained("round", model, place / "round", steps=120, train={"global_batch": 16, "steps": 120})


def test_a_text_is_told_what_comes_next(writer: distdl.Run, place: Path, command: Command) -> None:
    (place / "lines.txt").write_text("abc\n\nabcdefgh. ab\n")
    done = command("predict", "round", "lines.txt", "--top-k", 2, "--format", "jsonl")
    assert done.code == 1 and "set aside: lines.txt:2: the text is empty" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["next"] for row in rows] == ["d", None, "c"] and rows[0]["probability"] > 0.9
    assert rows[0]["next 2"] and rows[0]["probability"] > rows[0]["probability 2"]
    assert [row["next"] for row in writer.predict(["gh", "abcdefgh. abcdefgh. abcdefgh"])] == [".", "."]
    assert "d" in command("predict", "round", "--text", "abc").stdout.splitlines()[1]


def test_a_text_goes_on(writer: distdl.Run, command: Command) -> None:
    def text(*more: object) -> str:
        done = command("sample", "round", "--text", "abcde", *more)
        assert done.code == 0, done.stderr
        return done.stdout

    assert text("--length", 12, "--temperature", 0) == "abcdefgh. abcdefg\n"
    assert text("--length", 50, "--temperature", 0, "--stop", ". ") == "abcdefgh. \n"
    assert text("--length", 12, "--top-k", 1) == text("--length", 12, "--temperature", 0)
    assert text("--length", 30, "--seed", 1, "--temperature", 3) == text(
        "--length", 30, "--seed", 1, "--temperature", 3
    )
    assert text("--length", 30, "--seed", 1, "--temperature", 3) != text(
        "--length", 30, "--seed", 2, "--temperature", 3
    )
    done = command("sample", "round", "--text", "a", "--n", 2, "--length", 3, "-o", "written.jsonl")
    assert done.code == 0 and len(Path("written.jsonl").read_text().splitlines()) == 2
    assert "written.jsonl is there already" in command("sample", "round", "-o", "written.jsonl").stderr
    for wrong in (("--length", 0), ("--temperature", -1), ("--top-p", 0), ("--top-k", -1)):
        assert command("sample", "round", *wrong).code == 2


def test_a_token_is_drawn_from_those_that_are_left() -> None:
    torch = pytest.importorskip("torch")
    p = torch.tensor([0.1, 0.5, 0.05, 0.35])

    def seen(**how: float) -> set[int]:
        generator = torch.Generator().manual_seed(0)
        return {drawn(p, Writing(**how), generator) for _ in range(400)}  # type: ignore[arg-type]

    assert seen() == {0, 1, 2, 3} and seen(top_k=2) == {1, 3} and seen(temperature=0) == {1}
    assert seen(top_p=0.5) == {1} and seen(top_p=0.6) == {1, 3} and seen(top_p=0.86) == {0, 1, 3}
    assert seen(temperature=0.05) == {1}


def test_pictures_are_drawn_in_a_grid_and_restored_ones_go_into_a_folder(
    place: Path, digits: str, command: Command
) -> None:
    image = pytest.importorskip("PIL.Image")
    model = {"family": "autoencoder", "inputs": [1, 8, 8], "hidden": [16], "code": 4, "variational": True}
    run = trained("vae", model, Path(digits), steps=20)
    done = command("sample", "vae", "--n", 5, "-o", "five.png")
    assert done.code == 0 and image.open("five.png").size == (24, 16)
    with image.open("five.png") as picture:
        first = np.asarray(picture)[:8, :8]
    assert np.array_equal(first, np.round(distdl.load(run).sample(1)[0, 0].numpy() * 255).astype(np.uint8))
    done = command("predict", "vae", digits, "-o", "vae.csv", "--quiet")
    assert done.code == 2 and "--pictures FOLDER says where they go" in done.stderr
    done = command("predict", "vae", digits, "-o", "vae.csv", "--pictures", "restored", "--quiet")
    assert done.code == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(Path("vae.csv").read_text())))
    assert (
        len(rows) == 359 == len(list(Path("restored").iterdir()))
        and rows[7]["restored"] == "restored/000007-restored.png"
    )
    assert image.open(rows[7]["restored"]).size == (8, 8)


def test_a_series_goes_on_and_who_makes_nothing_says_so(place: Path, command: Command, digits: str) -> None:
    prepare_dataset("synthetic", "glass", {"task": "mackey_glass", "rows": "8", "test_rows": "3", "length": "40"})
    model = {"family": "esn", "units": 40, "steps": 40, "washout": 10, "generate": 5, "ridge": 1e-3}
    more = {"optimizer": {"name": "none"}, "train": {"global_batch": 8, "steps": 1}}
    trained("glass", model, place / "glass", steps=1, **more)
    done = command("sample", "glass", "--data", "glass", "--length", 7, "--n", 2)
    assert done.code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 and np.array(rows[0]["more"]).shape == (7, 1)
    assert "none is given" in command("sample", "glass").stderr
    trained("plain", {"family": "mlp", "inputs": [1, 8, 8], "hidden": []}, Path(digits), steps=1)
    assert "makes nothing by itself" in command("sample", "plain").stderr


def test_new_data_are_measured_as_scikit_learn_does_and_by_group(place: Path, command: Command) -> None:
    names = ("size", "town", "price", "class")
    written(place / "houses.csv", houses(300), *names)
    prepare_dataset("csv", "dear", {"path": "houses.csv", "label": "class", "drop": "price"})
    prepare_dataset("csv", "worth", {"path": "houses.csv", "target": "price", "drop": "class"})
    model = {"family": "mlp", "column": "x", "inputs": [4], "hidden": [8]}
    dear = trained("dear", {**model, "classes": 2}, place / "dear", steps=25)
    worth = trained("worth", {**model, "target": "value"}, place / "worth", steps=60)
    new = houses(200, seed=9)
    written(place / "new.csv", new, *names)
    told = json.loads(command("evaluate", "dear", "--data", "new.csv", "--by", "town", "--json").stdout)
    said = dear.predict(new, probabilities=True)
    truth, of = [row["class"] for row in new], [row["class"] for row in said]
    dearness = [row["class=dear"] for row in said]
    more = told["more"]
    assert more["accuracy"] == told["metrics"]["accuracy"] == pytest.approx(metrics.accuracy_score(truth, of))
    assert more["f1"] == pytest.approx(metrics.f1_score(truth, of, average="macro"))
    assert more["roc_auc"] == pytest.approx(metrics.roc_auc_score([t == "dear" for t in truth], dearness))
    assert more["pr_auc"] == pytest.approx(metrics.average_precision_score([t == "dear" for t in truth], dearness))
    assert more["log_loss"] == pytest.approx(told["metrics"]["loss"], rel=1e-4)
    assert told["confusion"] == metrics.confusion_matrix(truth, of).tolist()
    assert sum(group["rows"] for group in told["groups"].values()) == 200 and len(told["groups"]) == 3
    rome = [i for i, row in enumerate(new) if row["town"] == "Rome"]
    assert told["groups"]["Rome"]["accuracy"] == pytest.approx(np.mean([truth[i] == of[i] for i in rome]))
    values = json.loads(command("evaluate", "worth", "--data", "new.csv", "--json").stdout)
    error = np.array([row["price"] for row in worth.predict(new)]) - [row["price"] for row in new]
    assert values["more"]["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert values["more"]["rmse"] == pytest.approx(values["metrics"]["rmse"], rel=1e-5)
    assert values["more"]["r2"] == pytest.approx(values["metrics"]["r2"], rel=1e-5)
    shown = command("evaluate", "dear", "--data", "new.csv", "--by", "town")
    assert shown.code == 0 and "town = Rome: " in shown.stdout and "what it is (rows)" in shown.stdout
    new[3]["class"] = "priceless"
    written(place / "strange.csv", new, *names)
    done = command("evaluate", "dear", "--data", "strange.csv")
    assert done.code == 1 and "strange.csv:5: the column 'class' has the value 'priceless'" in done.stderr
    written(place / "bare.csv", new, "size", "town")
    assert "does not say what is true of its rows" in command("evaluate", "dear", "--data", "bare.csv").stderr
    assert "--by and --source are about new data" in command("evaluate", "dear", "--by", "town").stderr


def test_new_data_that_are_the_held_out_ones_are_measured_as_they_were(
    place: Path, digits: str, command: Command
) -> None:
    run = trained(
        "again", {"family": "snn", "inputs": [1, 8, 8], "hidden": [8], "code": "rate"}, Path(digits), steps=10
    )
    told = json.loads(command("evaluate", "again", "--data", digits, "--json").stdout)
    assert told["metrics"] == pytest.approx(distdl.evaluate(run), rel=1e-5)
    assert told["more"]["accuracy"] == pytest.approx(np.trace(told["confusion"]) / 359)


def test_calibration_is_what_the_paper_says() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    assert calibration_error(confidence, right) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0


def test_a_model_that_only_draws_answers_nothing(place: Path, digits: str, command: Command) -> None:
    model = {
        "family": "gan",
        "architecture": "dense",
        "inputs": [1, 8, 8],
        "latent": 4,
        "hidden": [8],
        "parzen_samples": 8,
    }
    run = trained("gan", model, Path(digits), steps=1)
    done = command("predict", "gan", digits)
    assert done.code == 2 and "says of no question what its answer is" in done.stderr
    with pytest.raises(InputError, match="says of no question"):
        run.predict(digits)
    assert command("sample", "gan", "--n", 4).code == 0 and Path("gan-samples.png").is_file()
