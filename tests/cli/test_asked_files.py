"""A trained model and files that are no tables: pictures, recordings, texts; what it draws; how right it is on new data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

import distdl
from distdl.data.asking.measures import calibration_error
from distdl.data.manifest import read_manifest
from distdl.data.preparation import undo
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError
from distdl.model.drawn import Writing, behind, drawn
from distdl.run.folder import find_run
from tests.cli.test_predict import houses, trained, written
from tests.conftest import Result

Command = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("here")


def drawing(kind: str, seed: int) -> np.ndarray:
    """A lying or a standing bar on noise, of odd sizes."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (14 + seed % 3, 15), dtype=np.uint8)
    pixels[(6, slice(2, 13)) if kind == "lying" else (slice(2, 12), 7)] = 250
    return pixels


@pytest.mark.slow
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
    done = command("evaluate", "bars", "--data", "new/lying")
    assert done.code == 2 and "new/lying has no row that could be read: " in done.stderr
    assert "00.png" in done.stderr and "with the label or the target beside them" in done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_text_goes_on_by_its_last_token_alone(writer: distdl.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from distdl.families.gpt import GPT
    from distdl.model.drawn import written as goes_on
    from distdl.model.model import Model

    model, read = Model(find_run("round", "runs")), []
    model.learner.wte.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape[1]))
    told = [goes_on(model, "abcde", Writing(16, temperature, seed=5)) for temperature in (0, 2)]
    assert read == [*[5, *[1] * 11], *[16] * 4] * 2  # a context of 16: then each token has another place
    monkeypatch.setattr(GPT, "memory", lambda self: None)
    read.clear()
    assert [goes_on(model, "abcde", Writing(16, temperature, seed=5)) for temperature in (0, 2)] == told
    assert read[:12] == list(range(5, 17)) and told[0].startswith("fgh. abcdef")


def test_a_blank_between_a_text_and_what_follows_is_kept() -> None:
    class Pieces:
        """A tokenizer that begins no text with a blank, as those of SentencePiece do."""

        words = ("▁the", "▁cat", "s")

        def decode(self, ids: Sequence[int]) -> str:
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert behind(Pieces(), [0], [1, 2]) == " cats" and behind(Pieces(), [], [0, 1]) == "the cat"  # type: ignore[arg-type]


def test_a_token_is_drawn_from_those_that_are_left() -> None:
    p = torch.tensor([0.1, 0.5, 0.05, 0.35])

    def seen(**how: float) -> set[int]:
        generator = torch.Generator().manual_seed(0)
        return {drawn(p, Writing(**how), generator) for _ in range(400)}  # type: ignore[arg-type]

    assert seen() == {0, 1, 2, 3} and seen(top_k=2) == {1, 3} and seen(temperature=0) == {1}
    assert seen(top_p=0.5) == {1} and seen(top_p=0.6) == {1, 3} and seen(top_p=0.86) == {0, 1, 3}
    assert seen(temperature=0.05) == {1}


@pytest.mark.slow
def test_pictures_are_drawn_in_a_grid_and_restored_ones_go_into_a_folder(
    place: Path, digits: str, command: Command
) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

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
    done = command("evaluate", "vae", "--data", digits, "--by", "label", "--json")
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    images = torch.from_numpy(Dataset(digits, "test").gather(np.arange(359))["image"])
    restored = distdl.load(run).predict({"image": images})["restored"]
    assert told["more"].keys() == {"psnr"} and len(told["groups"]) == 10
    assert told["more"]["psnr"] == pytest.approx(
        float(peak_signal_noise_ratio(restored, images / 255, data_range=1.0)), abs=1e-3
    )
    assert sum(group["rows"] for group in told["groups"].values()) == 359
    done = command("evaluate", "vae", "--data", digits, "--plain")
    assert "note: ssim is left out" in done.stdout and "psnr" in done.stdout and "\x1b" not in done.stderr
    assert "has no column 'lable' of one value" in command("evaluate", "vae", "--data", digits, "--by", "lable").stderr


@pytest.mark.slow
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


@pytest.mark.slow
def test_series_of_raw_files_go_on_in_their_own_numbers(place: Path, command: Command) -> None:
    values = 500 + 100 * np.sin(np.arange(240) / 4)
    lines = [f"{i},{value:.3f}" for i, value in enumerate(values)]
    (place / "wave.csv").write_text("\n".join(["day,height", *lines]) + "\n")
    options = {"path": "wave.csv", "columns": "height", "steps": "20", "standardise": "true"}
    prepare_dataset("series", "wave", {**options, "train_values": "200"})
    model = {"family": "gru", "task": "values", "inputs": 1, "steps": 20, "units": 16, "embedding": 0, "layers": 1}
    run = trained("wave", model, place / "wave", train={"global_batch": 10, "steps": 150})
    (place / "new.csv").write_text("\n".join(["height,day", *(f"{v:.3f},{i}" for i, v in enumerate(values[:100]))]))
    done = command("sample", "wave", "--data", "new.csv", "--length", 3)
    assert done.code == 0, done.stderr
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert row["where"] == "new.csv" and np.allclose(np.ravel(row["series"]), values[80:100].round(3))
    assert np.array(row["more"]).shape == (3, 1) and abs(row["more"][0][0] - values[100]) < 40  # of a wave of 200
    done = command("predict", "wave", "new.csv", "--format", "jsonl")
    assert json.loads(done.stdout) == {"series": "new.csv", "next[0]": pytest.approx(row["more"][0][0])}
    mean, std = (read_manifest("wave").info[name][0] for name in ("mean", "std"))
    read = ((values[80:100].round(3) - mean) / std).astype(np.float32)[None, :, None]
    assert run.predict({"x": read})[0]["next[0]"] == pytest.approx(row["more"][0][0])
    whole = command("sample", "wave", "--data", "wave", "--n", 1, "--length", 1)
    assert 400 <= json.loads(whole.stdout)["more"][0][0] <= 600
    head = "@attribute series_name string\n@frequency daily\n@horizon 4\n@data\n"
    series = {"low": values[:60] / 100, "high": values[:60] * 100}
    (place / "two.tsf").write_text(head + "".join(f"{n}:{','.join(map(str, v))}\n" for n, v in series.items()))
    prepare_dataset("tsf", "two", {"path": "two.tsf", "steps": "20", "lookback": "20", "normalise": "series"})
    trained("two", model, place / "two", train={"global_batch": 4, "steps": 30})
    done = command("sample", "two", "--data", "two.tsf", "--length", 1)
    low, high = (json.loads(line) for line in done.stdout.splitlines())
    assert low["where"] == "two.tsf:5" and 3 < low["more"][0][0] < 7 and 3e4 < high["more"][0][0] < 7e4
    assert low["more"][0][0] == pytest.approx(high["more"][0][0] / 1e4, rel=1e-4)
    assert "learned from a .tsf file, and this is new.csv" in command("sample", "two", "--data", "new.csv").stderr
    (place / "narrow.csv").write_text("day\n1\n2\n")
    assert "has no column 'height'" in command("sample", "wave", "--data", "narrow.csv").stderr


@pytest.mark.slow
def test_translations_and_captions_are_told_in_words(place: Path, command: Command) -> None:
    import jiwer
    import sacrebleu

    sizes = {"source_length": 7, "target_length": 11}
    options = {"rows": "200", "source_vocabulary": "16", "target_vocabulary": "41"}
    prepare_dataset("translation", "numbers", {**options, **{key: str(size) for key, size in sizes.items()}})
    small = {"layers": 1, "heads": 2, "width": 16, "inner": 32}
    model = {"family": "transformer", "vocabulary": 41, "source_vocabulary": 16, **sizes, **small}
    run = trained("numbers", model, place / "numbers", steps=5)
    (place / "counts.txt").write_text("342\n\n7 x\n")
    done = command("predict", "numbers", "counts.txt", "--format", "jsonl")
    assert done.code == 1 and "set aside: counts.txt:2: the text is empty" in done.stderr
    assert "note: 1 words were not among those learned from" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    words = read_manifest("numbers").preparation["target"]["words"]
    assert rows[1]["target"] is None and {*rows[0]["target"].split(), *rows[2]["target"].split()} <= set(words)
    asked = {
        "source": np.array([[*map(read_manifest("numbers").preparation["source"]["words"].index, "342"), 3, 0, 0, 0]])
    }
    measured = json.loads(command("evaluate", "numbers", "--data", "numbers", "--json").stdout)["more"]
    done = command("predict", "numbers", "numbers", "--format", "jsonl")
    said = [json.loads(line)["target"] for line in done.stdout.splitlines()]
    rows_of = Dataset("numbers", "test").gather(np.arange(len(said)))
    right = undo(read_manifest("numbers").preparation["target"], rows_of["target"])
    assert measured["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right], force=True).score)
    assert measured["wer"] == pytest.approx(jiwer.wer(right, said)) and measured["cer"] > 0
    assert measured["exact_match"] == np.mean([a == b for a, b in zip(right, said, strict=True)])
    assert run.predict(["342"])[0]["target"] == run.predict(asked)[0]["target"] == rows[0]["target"]
    prepare_dataset("scenes", "scenes", {"rows": "60", "test_rows": "10", "most": "1", "side": "10"})
    model = {"family": "captioner", "image": [1, 10, 10], "vocabulary": 19, "length": 3, "widths": [4], "units": 8}
    trained("scenes", model, place / "scenes", steps=30)
    done = command("predict", "scenes", "scenes", "--format", "jsonl")
    known = {*read_manifest("scenes").preparation["caption"]["words"]}
    told = [json.loads(line)["caption"] for line in done.stdout.splitlines()]
    assert len(told) == 10 and any(told) and {word for text in told for word in text.split()} <= known


@pytest.mark.slow
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
    dots = [{**row, "class": f"{row['class']}."} for row in new]
    written(place / "dots.csv", dots, *names)
    done = command("evaluate", "dear", "--data", "dots.csv", "--json")
    assert done.code == 0 and json.loads(done.stdout)["metrics"] == told["metrics"]
    assert "note: 200 classes in dots.csv have a dot behind them and are read without it" in done.stderr
    new[3]["class"] = "priceless"
    written(place / "strange.csv", new, *names)
    done = command("evaluate", "dear", "--data", "strange.csv")
    assert done.code == 1 and "strange.csv:5: the column 'class' has the value 'priceless'" in done.stderr
    written(place / "bare.csv", new, "size", "town")
    assert "does not say what is true of its rows" in command("evaluate", "dear", "--data", "bare.csv").stderr
    assert "--by and --source are about new data" in command("evaluate", "dear", "--by", "town").stderr


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_classes_of_pixels_and_strings_are_measured(place: Path, command: Command) -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        pixels = rng.integers(0, 60, (count, 1, 16, 16), dtype=np.uint8)
        masks = np.zeros((count, 16, 16), np.int64)
        for i, (y, x) in enumerate(rng.integers(0, 10, (count, 2)).tolist()):
            pixels[i, :, y : y + 6, x : x + 6], masks[i, y : y + 6, x : x + 6] = 250, 1
        np.savez(f"{split}.npz", pixels=pixels, masks=masks)
    both = {split: np.load(f"{split}.npz") for split in ("train", "test")}
    arrays = {f"{key}_{split}": both[split][name] for split in both for key, name in (("x", "pixels"), ("y", "masks"))}
    np.savez("squares.npz", **arrays)
    prepare_dataset("npz", "squares", {"path": "squares.npz", "columns": "image,mask", "test": "x_test,y_test"})
    model = {"family": "unet", "image": [1, 16, 16], "width": 4, "depth": 1, "padding": "same", "border_weight": 0.0}
    run = trained("squares", {**model, "dropout": 0.0}, place / "squares", train={"global_batch": 8, "steps": 40})
    told = json.loads(command("evaluate", "squares", "--data", "squares", "--json").stdout)["more"]
    found = distdl.load(run).predict({"image": torch.from_numpy(both["test"]["pixels"])})["mask"]
    truth = torch.from_numpy(both["test"]["masks"])
    assert told["mean_iou"] == pytest.approx(float(multiclass_jaccard_index(found, truth, 2)))
    assert told["pixel_accuracy"] == pytest.approx(float((found == truth).float().mean())) and told["dice"] > 0.4


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
