"""Strips of digits: every digit once, the right labels, no test digit in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError


def whole(path: Path, split: str) -> dict[str, np.ndarray]:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def singles(rows: dict[str, np.ndarray], side: int) -> list[tuple[bytes, int]]:
    """The digits of all strings, one by one, with their labels."""
    found = []
    for image, width, label, length in zip(rows["image"], rows["width"], rows["label"], rows["length"]):
        assert width == side * length and not image[:, :, width:].any() and not label[length:].any()
        parts = [image[0, :, side * i : side * (i + 1)] for i in range(length)]
        found += [(part.tobytes(), int(digit)) for part, digit in zip(parts, label)]
    return found


@pytest.mark.parametrize("passes", [1, 2])
def test_every_digit_stands_in_one_string_of_each_pass(tmp_path: Path, passes: int) -> None:
    prepare_dataset("digits", tmp_path / "digits", {})
    manifest = prepare_dataset("digit_strings", tmp_path / "strings", {"passes": passes})
    assert manifest.columns["image"].shape == (1, 8, 32) and manifest.info["classes"] == [*"0123456789"]
    for split, times in (("train", passes), ("test", 1)):
        single = whole(tmp_path / "digits", split)
        expected = [(image.tobytes(), int(label)) for image, label in zip(single["image"], single["label"])]
        strings = whole(tmp_path / "strings", split)
        assert sorted(singles(strings, 8)) == sorted(expected * times)
        counts = np.bincount(strings["length"], minlength=5)
        assert counts[0] == 0 and counts[1:].min() > 0.6 * counts[1:].max()
    again = prepare_dataset("digit_strings", tmp_path / "again", {"passes": passes})
    other = prepare_dataset("digit_strings", tmp_path / "other", {"passes": passes, "seed": 1})
    assert again.fingerprint == manifest.fingerprint != other.fingerprint


def test_digits_of_idx_files(tmp_path: Path) -> None:
    images, labels = np.arange(5 * 12, dtype=np.uint8).reshape(5, 3, 4), np.arange(5, dtype=np.uint8)
    sizes = np.array(images.shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + images.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + sizes[:4] + labels.tobytes())
    prepare_dataset("digit_strings", tmp_path / "strings", {"path": str(tmp_path), "longest": 3})
    strings = whole(tmp_path / "strings", "train")
    assert strings["image"].shape[1:] == (1, 3, 12)
    assert sorted(singles(strings, 4)) == sorted((images[i].tobytes(), i) for i in range(5))


def test_a_string_without_digits_is_refused(tmp_path: Path) -> None:
    for option in ("longest", "passes"):
        with pytest.raises(InputError, match=f"{option} is 0"):
            prepare_dataset("digit_strings", tmp_path / "strings", {option: 0})
