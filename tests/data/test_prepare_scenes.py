"""Scenes of digits: the captions say what is there, the boxes where, and no test digit is in a training scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distdl.data.corpora.translation import UNITS
from distdl.data.generators.scenes import WORDS, ink, reading_order
from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

FEW = {"rows": 120, "test_rows": 40}


def whole(path: Path, split: str) -> dict[str, np.ndarray]:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def made(path: Path, **options: object) -> tuple[Manifest, dict[str, np.ndarray], dict[str, np.ndarray]]:
    manifest = prepare_dataset("scenes", path, FEW | options)
    return manifest, whole(path, "train"), whole(path, "test")


def said(caption: np.ndarray) -> list[str]:
    """The words of a caption, without its marks."""
    words = [WORDS[n] for n in caption]
    end = words.index("<end>")
    assert words[0] == "<begin>" and set(words[end + 1 :]) <= {"<pad>"}
    return words[1:end]


def test_captions_name_the_digits_that_stand_in_the_boxes(tmp_path: Path) -> None:
    prepare_dataset("digits", tmp_path / "digits", {})
    manifest, *both = made(tmp_path / "scenes", most=3, side=32)
    assert manifest.info["words"] == WORDS and manifest.columns["image"].shape == (1, 32, 32)
    for split, rows in zip(("train", "test"), both):
        single = whole(tmp_path / "digits", split)
        known: dict[tuple, set[int]] = {}
        for picture, label in zip(single["image"][:, 0], single["label"]):
            part = ink(picture)
            known.setdefault((part.shape, part.tobytes()), set()).add(int(label))
        counts = np.zeros(4, int)
        for image, caption, boxes in zip(rows["image"][:, 0], rows["caption"], rows["boxes"]):
            words, rest = said(caption), image.copy()
            names = [word for word in words if word in UNITS]
            counts[len(names)] += 1
            assert not boxes[len(names) :].any()
            for name, (top, left, bottom, right) in zip(names, boxes):
                part = image[top:bottom, left:right]
                assert UNITS.index(name) in known[(part.shape, part.tobytes())]  # of this split
                assert rest[top:bottom, left:right].any(), "two boxes overlap"
                rest[top:bottom, left:right] = 0
            assert not rest.any()
            between = ["left", "of"] if "left" in words else ["above"]
            expected = " ".join(between).join(f" {'an' if name == 'eight' else 'a'} {name} " for name in names)
            assert words == expected.split()
            edge = 1 if between == ["left", "of"] else 0
            centres = boxes[: len(names), [edge, edge + 2]].sum(1)
            assert (np.diff(centres) >= 0).all()
        assert counts[0] == 0 and counts[1:].min() > 0.6 * counts[1:].max()


def test_order_follows_the_longer_axis() -> None:
    beside = np.array([[0, 20, 8, 28], [5, 0, 13, 8]])
    order, words = reading_order(beside)
    assert order.tolist() == [1, 0] and words == ["left", "of"]
    order, words = reading_order(beside[:, [1, 0, 3, 2]])
    assert order.tolist() == [1, 0] and words == ["above"]


def test_contrasts_are_captions_of_other_scenes(tmp_path: Path) -> None:
    manifest, train, test = made(tmp_path / "a", least=2, contrasts=5)
    assert manifest.columns["contrasts"].shape == (5, 8)
    for rows in (train, test):
        present = {caption.tobytes() for caption in rows["caption"]}
        for caption, others in zip(rows["caption"], rows["contrasts"]):
            assert {other.tobytes() for other in others} <= present - {caption.tobytes()}
    assert made(tmp_path / "b", least=2, contrasts=5)[0].fingerprint == manifest.fingerprint
    assert made(tmp_path / "c", least=2, contrasts=5, seed=1)[0].fingerprint != manifest.fingerprint


def test_digits_of_idx_files(tmp_path: Path) -> None:
    images, labels = np.zeros((5, 6, 6), np.uint8), np.arange(5, dtype=np.uint8)
    images[np.arange(5), 2, labels] = 9
    sizes = np.array(images.shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + images.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + sizes[:4] + labels.tobytes())
    prepare_dataset("scenes", tmp_path / "scenes", {"path": str(tmp_path), "rows": 10, "least": 2})
    assert (whole(tmp_path / "scenes", "train")["image"].sum((1, 2, 3)) == 18).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"least": 3}, "most is 2, least is 3"),
        ({"contrasts": -1}, "contrasts is -1"),
        ({"side": 7}, "side is 7, a digit needs up to 8 pixels"),
        ({"least": 9, "most": 9, "side": 10}, "9 digits found no room on 10 x 10 pixels"),
        ({"rows": 1, "test_rows": 1, "contrasts": 1}, "all scenes have the same caption"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_dataset("scenes", tmp_path / "scenes", FEW | options)
