"""Pictures and masks: pairs, tiles, classes, borders, and what bad input is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distdl.data.corpora.segmentation import borders
from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (12, 20, 30), dtype=np.uint8)
MASKS = np.array([0, 90, 255], np.uint8)[RNG.integers(0, 3, (12, 20, 30))]


def whole(path: Path, split: str = "train") -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def folders(path: Path) -> dict[str, str]:
    """Twelve pictures and masks, whose names sort by their numbers only: 0 ... 11."""
    for name, pictures in (("image", PICTURES), ("label", MASKS)):
        (path / name).mkdir()
        for i, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(path / name / f"slice{i}.{'png' if name == 'label' else 'tif'}")
    return {"images": str(path / "image"), "masks": str(path / "label")}


def written(path: Path, **options: Any) -> Manifest:
    return prepare_dataset("segmentation", path / "set", {**folders(path), **options})


def test_whole_pictures_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    manifest = written(tmp_path, test_pictures=2)
    assert manifest.info["classes"] == ["0", "90", "255"]
    train, test = whole(tmp_path / "set"), whole(tmp_path / "set", "test")
    assert np.array_equal(train["image"][:, 0], PICTURES[:10]) and np.array_equal(test["image"][:, 0], PICTURES[10:])
    assert np.array_equal(train["mask"], (MASKS[:10] // 90).astype(np.uint8)) and train["mask"].max() == 2


def test_a_tiff_of_pages_is_the_same_data(tmp_path: Path) -> None:
    written(tmp_path, test_pictures=2)
    for name, pictures in (("volume", PICTURES), ("labels", MASKS)):
        first, *rest = map(Image.fromarray, pictures)
        first.save(tmp_path / f"{name}.tif", save_all=True, append_images=rest)
    options = {"images": tmp_path / "volume.tif", "masks": tmp_path / "labels.tif", "test_pictures": "2"}
    prepare_dataset("segmentation", tmp_path / "tiff", options)
    for split in ("train", "test"):
        ours, theirs = whole(tmp_path / "tiff", split), whole(tmp_path / "set", split)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_tiles_with_their_surroundings_put_the_picture_together_again(tmp_path: Path) -> None:
    written(tmp_path, tile="10x15", margin=8, test_pictures=1)
    test = whole(tmp_path / "set", "test")
    assert test["image"].shape == (4, 1, 26, 31) and test["mask"].shape == (4, 26, 31)
    around = np.pad(PICTURES[11], 8, mode="symmetric")
    for tile, (y, x) in zip(test["image"][:, 0], [(0, 0), (0, 15), (10, 0), (10, 15)]):
        assert np.array_equal(tile, around[y : y + 26, x : x + 31])
    inner = test["mask"][:, 8:-8, 8:-8].reshape(2, 2, 10, 15).transpose(0, 2, 1, 3).reshape(20, 30)
    assert np.array_equal(inner, MASKS[11] // 90)


def test_the_last_tiles_end_at_the_edge(tmp_path: Path) -> None:
    written(tmp_path, tile="16x30", test_pictures=1)
    tiles = whole(tmp_path / "set", "test")["image"][:, 0]
    assert np.array_equal(tiles, np.stack([PICTURES[11][:16], PICTURES[11][4:]]))


def test_borders_are_the_papers_formula() -> None:
    """Distances to every object by brute force; two squares that nearly touch, and a third that is far."""
    objects = np.zeros((30, 40), bool)
    parts = [(slice(5, 15), slice(4, 12)), (slice(6, 16), slice(14, 22)), (slice(20, 26), slice(30, 38))]
    for part in parts:
        objects[part] = True
    place = np.indices(objects.shape).reshape(2, -1).T  # (1200, 2)
    distances = []
    for part in parts:
        one = np.zeros_like(objects)
        one[part] = True
        gaps = np.hypot(*(place[:, None] - np.argwhere(one)[None]).transpose(2, 0, 1))
        distances.append(gaps.min(1).reshape(objects.shape))
    first, second, _ = np.sort(distances, axis=0)
    for sigma in (2.0, 5.0):
        expected = np.exp(-((first + second) ** 2) / (2 * sigma**2)) * ~objects
        got = borders(objects, sigma)
        assert np.abs(got - expected).max() < 1e-5 and not got[objects].any()
        assert np.isclose(got.max(), np.exp(-9 / (2 * sigma**2))) and got[10, 13] == got.max()  # 1 + 2 pixels away
    assert not borders(np.zeros((9, 9), bool), 5.0).any()  # nothing to keep apart


def test_the_column_border_is_cut_as_the_mask_is(tmp_path: Path) -> None:
    written(tmp_path, tile="20x15", margin=3, sigma="2", test_pictures=1)
    rows = whole(tmp_path / "set", "test")
    expected = np.pad(borders(MASKS[11] > 0, 2.0), 3, mode="symmetric")
    assert rows["border"].dtype == np.float32 and rows["border"].max() > 0
    assert np.array_equal(rows["border"], np.stack([expected[:, :21], expected[:, 15:]]))


def test_bad_input_is_named(tmp_path: Path) -> None:
    options = folders(tmp_path)

    def message(**changes: Any) -> str:
        with pytest.raises(InputError) as caught:
            prepare_dataset("segmentation", tmp_path / "set", {**options, **changes})
        return str(caught.value)

    assert "there is no folder or file nowhere" in message(images="nowhere")
    assert "channels is 2" in message(channels=2)
    assert "test_pictures is 12, there are 12" in message(test_pictures=12)
    assert "margin -1" in message(margin=-1)
    assert "a tile 21 x 30" in message(tile="21x30")
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in message(images=str(tmp_path / "empty"))
    assert "grey values, more than 32 classes" in message(masks=options["images"])
    Image.fromarray(PICTURES[0][:10]).save(tmp_path / "image" / "slice3.tif")
    assert "10 x 30 pixels, its mask 20 x 30" in message()
    (tmp_path / "image" / "slice3.tif").write_bytes(b"no picture")
    assert "slice3.tif is not a picture that can be read" in message()
    (tmp_path / "image" / "slice3.tif").unlink()
    assert "1 names are not both among the pictures and among the masks: slice3" in message()


def test_blobs_are_discs_with_gaps_between_them(tmp_path: Path) -> None:
    from scipy import ndimage

    prepare_dataset("synthetic", tmp_path / "blobs", {"task": "blobs", "length": 32, "rows": 20, "test_rows": 5})
    rows = whole(tmp_path / "blobs")
    assert rows["image"].shape == (20, 1, 32, 32) and rows["mask"].shape == rows["border"].shape == (20, 32, 32)
    bright, dark = rows["image"][:, 0][rows["mask"] == 1], rows["image"][:, 0][rows["mask"] == 0]
    assert 30 < bright.mean() - dark.mean() < 70
    assert np.quantile(dark, 0.9) > np.quantile(bright, 0.1)  # no threshold does it
    assert np.mean([ndimage.label(mask)[1] for mask in rows["mask"]]) > 3
    assert np.allclose(rows["border"][3], borders(rows["mask"][3], 2.0))
    with pytest.raises(InputError, match="at least 16"):
        prepare_dataset("synthetic", tmp_path / "small", {"task": "blobs", "length": 8})
