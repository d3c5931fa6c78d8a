"""`distdl init` of everything that is no table: what a file is told to be, and that the config trains as it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from distdl.config.load import load_config
from distdl.data.manifest import read_manifest
from distdl.data.recognise import recognise
from distdl.errors import InputError
from distdl.train.survey import survey
from tests.conftest import Result
from tests.data import raw_files
from tests.data.raw_files import NUMBERS, RAW, ROWS
from tests.families.common import Rehearsal

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begun(command: Command, path: Any, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `init` tells, and the config that it wrote."""
    code, out, error = command("init", str(path), *arguments, "--json", "--output", "run.yaml", "--overwrite")
    assert code == 0, error
    return json.loads(out), yaml.safe_load(Path("run.yaml").read_text())


def falls(steps: int = 50, by: float = 0.9) -> None:
    """The loss of the written config, with nothing changed but what a test has no time for."""
    config = load_config("run.yaml", ["track.enabled=false", "data.threads=0", "parallel.engine=torch"]).config
    run = Rehearsal(survey(config).config)
    run.train(steps)
    assert np.isfinite(run.losses).all() and np.mean(run.losses[-5:]) < by * np.mean(run.losses[:5]), run.losses


CASES = {
    "chat": ("gpt", {"context": 64}),
    "huggingface": ("mlp", {"label": "y"}),
    "svmlight": ("mlp", {}),
    "ts": ("gru", {"layout": "image"}),
    "tsf": ("gru", {"normalise": "series"}),
    "arff": ("mlp", {"label": "y"}),
    "text": ("gpt", {}),
    "npz": ("mlp", {"train": ["X", "y"]}),
    "hdf5": ("mlp", {"train": ["X", "y"]}),
    "mat": ("mlp", {"train": ["X", "y"]}),
    "webdataset": ("mlp", {"names": ["x", "label"]}),
    "mds": ("mlp", {"names": ["x", "label"]}),
    "litdata": ("mlp", {"names": ["x", "label"]}),
    "images": ("cnn", {"channels": 1}),
    "sound": ("cnn", {"as_image": True}),
    "idx": ("cnn", {}),
    "cifar": ("cnn", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", CASES)
def test_each_is_recognised_prepared_and_trains_as_it_is_written(command: Command, tmp_path: Path, source: str) -> None:
    path = RAW[source](tmp_path)["path"]
    done, config = begun(command, path)
    family, options = CASES[source]
    assert (done["source"], config["model"]["family"]) == (source, family)
    assert {key: done["options"][key] for key in options} == options
    text = Path("run.yaml").read_text()
    assert all(f"# {why}" in text for why in done["because"].values()), text
    falls()


@pytest.mark.parametrize("kind", ["pair", "unequal numbers", "large values"])
def test_series_of_every_kind(command: Command, tmp_path: Path, kind: str) -> None:
    draw = np.random.default_rng(0)
    answers = "@targetLabel true" if kind == "unequal numbers" else "@classLabel true a b"
    head = f"@problemName s\n@timeStamps false\n@univariate true\n{answers}\n@data\n"

    def text(rows: int) -> str:
        lines = []
        for i in range(rows):
            steps = 12 + (i % 3 if kind == "unequal numbers" else 0)
            values = np.sin(np.arange(steps) * (0.4, 1.6)[i % 2]) + draw.normal(0, 0.05, steps)
            values = 1e4 * values if kind == "large values" else values
            answer = f"{values.mean():.4f}" if kind == "unequal numbers" else "ab"[i % 2]
            lines.append(",".join(f"{v:.3f}" for v in values) + f":{answer}")
        return head + "\n".join(lines) + "\n"

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "S_TRAIN.ts").write_text(text(60))
    if kind == "pair":
        (tmp_path / "in" / "S_TEST.ts").write_text(text(20))
    done, config = begun(command, "in")
    assert done["source"] == "ts" and config["model"]["family"] == "mlp" and done["options"]["layout"] == "flat"
    assert done["splits"].get("test") == (20 if kind == "pair" else read_manifest("data/run").splits["test"].rows)
    assert ("normalise" in done["options"]) == (kind == "large values")
    assert (config["model"].get("target") == "value") == (kind == "unequal numbers")
    assert "shorter ones end in zeros" in done["because"]["layout"] or kind != "unequal numbers"
    falls(80)


def test_tab_separated_series_are_told_from_tables(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2 + 1}\t" + "\t".join(f"{j / 7:.3f}" for j in range(9)) + "\n" for i in range(30))
    (tmp_path / "Coffee_TRAIN.tsv").write_text(rows)
    (tmp_path / "coffee.tsv").write_text(rows)
    assert recognise("Coffee_TRAIN.tsv") == "ts" and recognise("coffee.tsv") == "csv"


@pytest.mark.slow
def test_pictures_of_hugging_face(command: Command, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    files = sorted(raw_files.pictures(tmp_path).rglob("*.png"))
    columns = {
        "photo": [str(file) for file in files],
        "kind": [file.parent.name for file in files],
        "n": list(range(ROWS)),
    }
    rows = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    rows.save_to_disk(str(tmp_path / "plain"))
    code, _, error = command("init", "plain", "--label", "kind")
    assert code == 2 and "has no names of classes" in error and "class_encode_column('kind')" in error
    rows.class_encode_column("kind").save_to_disk(str(tmp_path / "coded"))
    done, config = begun(command, "coded")
    assert done["options"]["rename"] == ["photo:image", "kind:label"] and done["options"]["drop"] == ["n"]
    assert config["model"]["family"] == "cnn" and config["model"]["classes"] == 2
    falls(30)


@pytest.mark.slow
def test_a_model_s_own_tokenizer_means_training_it_on(command: Command, tmp_path: Path) -> None:
    """Conversations, and the folder of a model of transformers."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<end>"])
    words.train_from_iterator(["What is it?"], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained("model")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": words.get_vocab_size()}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained("model")
    path = RAW["chat"](tmp_path)["path"]
    code, _, error = command("init", str(path), "--family", "huggingface")
    assert code == 2 and "tokenizer=FOLDER" in error
    _, config = begun(command, path, "tokenizer=model")
    assert config["model"]["family"] == "huggingface" and config["model"]["name"] == "model"
    assert (
        config["model"]["labels"] is config["model"]["documents"] is True and "lr: 2e-5" in Path("run.yaml").read_text()
    )
    falls(80, by=0.999)


def test_conversations_in_every_form_are_told_from_tables(tmp_path: Path) -> None:
    forms = {
        "chat": [
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"prompt": "a", "completion": "b"},
            {"instruction": "a", "input": "", "output": "b"},
        ],
        "jsonl": [{"prompt": "a", "completion": "b", "label": 1}, {"a": 1, "y": 2}, {"messages": "none"}],
    }
    for source, objects in forms.items():
        for each in objects:
            Path("t.jsonl").write_text(json.dumps(each) + "\n")
            assert recognise("t.jsonl") == source, each
    Path("t.json").write_text(json.dumps(forms["chat"][:1]))
    assert recognise("t.json") == "chat"
    Path("in").mkdir()
    Path("t.json").rename("in/t.json")
    assert recognise("in") == "chat"


def test_folders_of_text(command: Command, tmp_path: Path) -> None:
    Path("books/more").mkdir(parents=True)
    for i, name in enumerate(("a.txt", "b.rst", "more/c.tex")):
        Path("books", name).write_text("".join(raw_files.SENTENCES[i::3]))
    done, config = begun(command, "books")
    assert done["source"] == "text" and config["model"]["family"] == "gpt" and "*.rst" in done["options"]["files"]
    assert sum(done["splits"].values()) * 128 > 0.9 * sum(map(len, raw_files.SENTENCES)), "all of the files are read"
    Path("books/d.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="cannot be told"):
        recognise("books")


def test_shards_in_folders_of_splits(command: Command, tmp_path: Path) -> None:
    for source in ("mds", "litdata"):
        for split in ("train", "val"):
            place = tmp_path / source / split
            place.mkdir(parents=True)
            RAW[source](place)["path"].rename(tmp_path / source / "made")
            place.rmdir()
            (tmp_path / source / "made").rename(place)
        done, _ = begun(command, source)
        assert done["source"] == source and done["splits"] == {"train": ROWS, "test": ROWS}
        assert done["options"]["path"] == f"{source}/train" and done["options"]["test_path"] == f"{source}/val"
    Path("tars").mkdir()
    made = RAW["webdataset"](tmp_path)["path"]
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        Path("tars", name).write_bytes(made.read_bytes())
    done, _ = begun(command, "tars")
    assert done["options"]["path"] == "tars/train*.tar" and done["splits"] == {"train": 2 * ROWS, "test": ROWS}


def test_a_tar_of_pictures_with_classes_is_no_folder_of_pictures(command: Command, tmp_path: Path) -> None:
    """As many pictures as other files in folders: both sources could read it, one of them wrongly."""
    from tests.data.test_prepare_webdataset import tar

    files = []
    for i, file in enumerate(sorted(raw_files.pictures(tmp_path).rglob("*.png"))):
        files += [(f"a/{i:04}.png", file.read_bytes()), (f"a/{i:04}.cls", file.parent.name.encode())]
    tar(tmp_path / "s.tar", files)
    done, config = begun(command, "s.tar")
    assert done["source"] == "webdataset" and done["options"]["channels"] == 1 and config["model"]["family"] == "cnn"
    falls(30)


def test_several_fields_are_listed_to_choose_from(command: Command, tmp_path: Path) -> None:
    from tests.data.test_prepare_webdataset import npy, tar

    def files(*names: str) -> list[tuple[str, bytes]]:
        return [(f"{i:03}.{name}", npy(NUMBERS[i])) for i in range(9) for name in names]

    tar(tmp_path / "s.tar", files("a.npy", "b.npy"))
    code, _, error = command("init", "s.tar")
    assert code == 2 and "several fields could be learned from" in error and "a.npy (float64 of the shape [2])" in error
    assert "fields=A,B names=x,label" in error
    code, _, error = command("init", "s.tar", "--label", "c.npy")
    assert code == 2 and "no field 'c.npy'" in error


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("chat", "their answers are learned"),
        ("text", "what comes next is learned"),
        ("ts", "the class behind each of them"),
        ("tsf", "the values that come next"),
        ("svmlight", "what stands first in a line"),
    ],
)
def test_a_column_is_refused_where_there_are_none(command: Command, tmp_path: Path, source: str, told: str) -> None:
    code, _, error = command("init", str(RAW[source](tmp_path)["path"]), "--label", "y")
    assert code == 2 and re.search(told, error), error


def test_arrays_by_their_first_bytes(tmp_path: Path) -> None:
    for source in ("npz", "hdf5", "mat"):
        path = RAW[source](tmp_path)["path"]
        path.rename(tmp_path / "nameless")
        assert recognise("nameless") == source
    Path("arrays").mkdir()
    np.save("arrays/x.npy", NUMBERS)
    np.save("arrays/y.npy", np.arange(ROWS) % 2)
    assert recognise("arrays") == "npz"


def test_numbers_to_predict_and_a_test_file_of_libsvm(command: Command, tmp_path: Path) -> None:
    lines = [f"{a + 2 * b:.3f} 1:{a} 3:{b}" for a, b in NUMBERS]
    Path("housing").write_text("\n".join(lines) + "\n")
    Path("housing.t").write_text("\n".join(lines[:9]) + "\n")
    done, config = begun(command, "housing")
    assert done["source"] == "svmlight" and done["options"]["target"] is True and done["splits"]["test"] == 9
    assert config["model"]["target"] == "value"
    falls()
