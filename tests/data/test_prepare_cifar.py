"""The source `cifar`: the binary version, packed and unpacked, and what is no such thing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from distdl.data.manifest import read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.recognise import recognise
from distdl.errors import InputError

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COARSE = [f"group_{i}" for i in range(20)]
FINE = [f"thing_{i:02d}" for i in range(100)]


def records(rows: int, classes: tuple[int, ...], seed: int) -> np.ndarray:
    """(rows, len(classes) + 3072) bytes."""
    draw = np.random.default_rng(seed)
    labels = [draw.integers(0, number, (rows, 1)) for number in classes]
    return np.concatenate([*labels, draw.integers(0, 256, (rows, 3072))], 1).astype(np.uint8)


def write(folder: Path, files: dict[str, bytes], packed: bool) -> Path:
    hundred = "train.bin" in files
    inside = "cifar-100-binary" if hundred else "cifar-10-batches-bin"
    if not packed:
        for name, content in files.items():
            (folder / inside).mkdir(exist_ok=True)
            (folder / inside / name).write_bytes(content)
        return folder / inside
    path = folder / f"cifar-{100 if hundred else 10}-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{inside}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_cifar10(tmp_path: Path, packed: bool) -> None:
    parts = {name: records(25, (10,), i) for i, name in enumerate(("data_batch_1", "data_batch_2", "test_batch"))}
    files = {"batches.meta.txt": "\n".join([*TEN, ""]).encode()}
    files |= {f"{name}.bin": parts[name].tobytes() for name in ("test_batch", "data_batch_2", "data_batch_1")}
    path = write(tmp_path, files, packed)
    assert recognise(str(path)) == "cifar"
    manifest = prepare_dataset("cifar", tmp_path / "d", {"path": str(path)})
    train, test = (Dataset(tmp_path / "d", split).gather(range(rows)) for split, rows in (("train", 50), ("test", 25)))
    both = np.concatenate([parts["data_batch_1"], parts["data_batch_2"]])
    assert (train["label"] == both[:, 0]).all() and (train["image"].reshape(50, -1) == both[:, 1:]).all()
    assert (test["image"][3, 2, 31] == parts["test_batch"][3, -32:]).all(), "the blue values of the last line"
    assert manifest.info["classes"] == TEN and manifest.preparation["label"]["classes"] == TEN


def test_cifar100_has_two_kinds_of_classes(tmp_path: Path) -> None:
    parts = {name: records(30, (20, 100), i) for i, name in enumerate(("train", "test"))}
    files = {f"{name}.bin": part.tobytes() for name, part in parts.items()}
    files |= {"fine_label_names.txt": "\n".join(FINE).encode(), "coarse_label_names.txt": "\n".join(COARSE).encode()}
    path = str(write(tmp_path, files, True))
    for kind, column, names in (("fine", 1, FINE), ("coarse", 0, COARSE)):
        prepare_dataset("cifar", tmp_path / kind, {"path": path, "classes": kind, "validation_fraction": 0.2})
        assert read_manifest(tmp_path / kind).info["classes"] == names
        assert (Dataset(tmp_path / kind, "test").gather(range(30))["label"] == parts["test"][:, column]).all()
    assert read_manifest(tmp_path / "fine").splits["validation"].rows > 0


def test_damage_is_named(tmp_path: Path) -> None:
    good = {"batches.meta.txt": "\n".join(TEN).encode(), "data_batch_1.bin": records(20, (10,), 0).tobytes()}
    strange = bytearray(good["data_batch_1.bin"])
    strange[5 * 3073] = 10
    cases: list[tuple[dict[str, bytes], dict[str, str], str]] = [
        ({**good, "data_batch_1.bin": good["data_batch_1.bin"][:-1]}, {}, "ends within a record: 3072 of 3073 bytes"),
        ({**good, "data_batch_1.bin": bytes(strange)}, {}, "record 5: the class is 10"),
        ({"data_batch_1.bin": good["data_batch_1.bin"]}, {}, "lacks batches.meta.txt"),
        ({**good, "train.bin": b""}, {}, "holds data_batch_1.bin, train.bin"),
        ({"data_batch_1": b"\x80\x02}"}, {}, "pickles, which are not read"),
        (good, {"classes": "coarse"}, "CIFAR-10, which has one kind of classes"),
        (
            {**good, "test_batch.bin": good["data_batch_1.bin"]},
            {"test_fraction": "0.1"},
            "there is a test file already",
        ),
    ]
    for i, (files, options, message) in enumerate(cases):
        (tmp_path / str(i)).mkdir()
        path = write(tmp_path / str(i), files, False)
        with pytest.raises(InputError, match=message):
            prepare_dataset("cifar", tmp_path / f"d{i}", {"path": str(path), **options})
        assert not (tmp_path / f"d{i}").exists()
