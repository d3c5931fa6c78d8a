"""Pictures of every kind come to the right 8 bits, or are refused by name."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distdl.data.corpora import segmentation
from distdl.data.generators import pixels
from distdl.data.manifest import Manifest, read_manifest
from distdl.data.pictures import Look, prepare_picture, read_header, read_picture, read_values
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

GREY = Look(channels=1)
RAMP = np.linspace(0, 65535, 384).reshape(16, 24).astype(np.uint16)


def saved(picture: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file


def read(picture: Image.Image, kind: str, look: Look = GREY, **options: Any) -> np.ndarray:
    """What becomes of a picture after it was saved in a format."""
    return read_picture(saved(picture, kind, **options), "a picture", look)


def tiff(values: np.ndarray, bits: int, sample_format: int, photometric: int = 1, data: bytes = b"") -> io.BytesIO:
    """A TIFF by hand, for kinds that Pillow reads and does not write."""
    height, width = values.shape
    data = data or values.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(data)}
    tags[339] = sample_format
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    return io.BytesIO(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data)


def colours_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG (H, W, 3) by hand."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)}
    chunks |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# -- more than 8 bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_384_grey_values_of_16_bits_fill_256_levels_evenly(kind: str) -> None:
    found = read(Image.fromarray(RAMP), kind)[0]
    assert np.array_equal(found, np.round(RAMP / 257).astype(np.uint8))
    assert (np.diff(found.ravel().astype(int)) >= 0).all()
    assert set(np.bincount(found.ravel(), minlength=256).tolist()) == {1, 2}
    in_colour = read(Image.fromarray(RAMP), kind, Look(channels=3))
    assert in_colour.shape == (3, 16, 24) and (in_colour == found).all()


def test_many_pixels_are_scaled_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distdl.data.pictures.BLOCK_PIXELS", 50)  # two rows
    assert np.array_equal(read(Image.fromarray(RAMP[:15]), "PNG")[0], np.round(RAMP[:15] / 257).astype(np.uint8))


def test_a_range_of_12_bits_fills_256_levels() -> None:
    values = np.linspace(0, 4095, 384).reshape(16, 24).astype(np.uint16)
    found = read(Image.fromarray(values), "PNG", Look(1, range=(0, 4095)))
    assert np.array_equal(found[0], np.round(values * 255.0 / 4095)) and len(np.unique(found)) == 256
    window = read(Image.fromarray(values), "PNG", Look(1, range=(1000, 2000)))
    assert np.array_equal(window[0], np.round(np.clip((values - 1000.0) * 255 / 1000, 0, 255)))
    packed = tiff(np.zeros((1, 2)), 12, 1, data=b"\x00\x0f\xff")  # 0x000, 0xfff
    assert read_picture(packed, "a", GREY).ravel().tolist() == [0, 255]


def test_real_numbers_are_0_to_1_or_need_a_range() -> None:
    ramp = np.linspace(0, 1, 384, dtype=np.float32).reshape(16, 24)
    assert np.array_equal(read(Image.fromarray(ramp), "TIFF")[0], np.round(ramp.astype(float) * 255))
    assert read_picture(tiff(ramp, 32, 3), "a", GREY).max() == 255
    with pytest.raises(InputError, match=r"a picture has the mode F.*from 0 to 2\n.*range=0,4095"):
        read(Image.fromarray(2 * ramp), "TIFF")
    assert np.array_equal(
        read(Image.fromarray(2 * ramp), "TIFF", Look(1, range=(0, 2)))[0], np.round(ramp.astype(float) * 255)
    )
    ramp[3, 4] = np.nan
    with pytest.raises(InputError, match="holds NaN"):
        read(Image.fromarray(ramp), "TIFF", Look(1, range=(0, 2)))


def test_whole_numbers_without_a_range_of_their_own_are_refused() -> None:
    values = np.array([[0, 1000], [30000, 65535]])
    for bits, kind, sample_format in ((32, "<i4", 2), (32, "<u4", 1), (16, "<u2", 2)):
        file = tiff(values.astype(kind), bits, sample_format)
        with pytest.raises(InputError, match="the mode I, whose range is not known"):
            read_picture(file, "a", GREY)
    high = tiff(np.array([[0, 2**32 - 1]], "<u4"), 32, 1)
    assert read_picture(high, "a", Look(1, range=(0, 2**32 - 1))).ravel().tolist() == [0, 255]
    signed = tiff(values.astype("<u2"), 16, 2)
    assert read_picture(signed, "a", Look(1, range=(0, 30000))).ravel().tolist() == [0, 8, 255, 0]  # 65535 is -1
    with pytest.raises(InputError, match="signed numbers of 8 bits"):
        read_picture(tiff(np.array([[0, 255]], np.uint8), 8, 2), "a", GREY)


def test_where_0_is_white_it_becomes_255() -> None:
    values = np.array([[0, 1000], [30000, 65535]])
    assert read_picture(tiff(values.astype("<u2"), 16, 1, 0), "a", GREY).ravel().tolist() == [255, 251, 138, 0]
    assert read_picture(tiff((values / 65535).astype("<f4"), 32, 3, 0), "a", GREY).ravel().tolist() == [
        255,
        251,
        138,
        0,
    ]
    assert read_picture(tiff(np.array([[0, 9]], np.uint8), 8, 1, 0), "a", GREY).ravel().tolist() == [255, 246]


def test_colours_of_16_bits_keep_the_upper_eight() -> None:
    values = np.arange(60).reshape(4, 5, 3) * 1000
    file = io.BytesIO(colours_of_16_bits(values))
    assert read_header(file, "a").bits == 16
    assert np.array_equal(read_picture(file, "a", Look()), (values >> 8).transpose(2, 0, 1))
    with pytest.raises(InputError, match="colours of 16 bits"):
        read_picture(file, "a", Look(range=(0, 4095)))


def test_narrow_values_in_16_bits_ask_for_their_range(tmp_path: Path) -> None:
    for i in range(4):
        place(tmp_path / "raw" / "ab"[i % 2] / f"{i}.png", Image.fromarray(RAMP >> 4))
    with pytest.raises(InputError, match=r"no value above 4,095 of 65,535\n.*range=0,4095; range=0,65535"):
        prepare_dataset("images", tmp_path / "d", {"path": tmp_path / "raw", "channels": 1})
    prepare_dataset("images", tmp_path / "d", {"path": tmp_path / "raw", "channels": 1, "range": "0,4095"})
    rows = whole(tmp_path / "d")
    assert np.array_equal(rows["image"][0, 0], np.round((RAMP >> 4) * 255.0 / 4095))
    preparation = read_manifest(tmp_path / "d").preparation
    assert preparation["image"]["range"] == [0, 4095]
    with pytest.raises(InputError, match=r"0\.png.*above 4,095"):
        pixels.prepare(pixels.Options(str(tmp_path / "raw/a/0.png"), size=4))
    options = segmentation.Options(str(tmp_path / "raw/a"), str(tmp_path / "raw/a"))
    with pytest.raises(InputError, match="above 4,095"):
        segmentation.prepare(options)


# -- upright, on a background, in colour -------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    """By the words of the EXIF standard: where the stored row 0 and column 0 belong in the upright picture."""
    upright = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright.transpose(1, 0, 2)[::-1],  # right, top
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **lossless)
    assert np.array_equal(read_picture(file, "a", Look()), upright.transpose(2, 0, 1))
    header = read_header(file, "a")
    assert (header.height, header.width) == (6, 4) and header.turned == (orientation > 1)
    assert np.array_equal(read_values(file, "a") % (1 << 24) >> 16, upright[..., 0])


def test_16_bits_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(
        read(Image.fromarray(RAMP), "PNG", exif=exif)[0], np.round(np.rot90(RAMP, -1) / 257).astype(np.uint8)
    )


def test_transparency_lies_on_the_background() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    for kind in ("PNG", "TIFF"):
        on_white = read(Image.fromarray(rgba), kind, Look())
        assert on_white[:, 0, :2].T.tolist() == [[200, 100, 0], [255, 255, 255]]
        assert np.abs(on_white[:, 0, 2] - (0.2 * np.array([200, 100, 0]) + 0.8 * 255)).max() <= 1
        assert read(Image.fromarray(rgba), kind, Look(background=(0, 0, 9)))[:, 0, 1].tolist() == [0, 0, 9]
    la = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    assert read(la, "PNG").ravel().tolist() == [7, 255]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert read(palette, "PNG", Look(), transparency=1)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    assert read(palette, "GIF", Look())[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    key = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert read(key, "PNG", transparency=8).ravel().tolist() == [7, 255]
    deep_key = Image.fromarray(np.array([[257, 514]], np.uint16))
    assert read(deep_key, "PNG", transparency=514).ravel().tolist() == [1, 255]


def test_cmyk_and_one_bit() -> None:
    inks = np.array([[[255, 0, 0, 0], [0, 102, 0, 51], [0, 0, 0, 255]]], np.uint8)
    expected = np.round((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255)
    found = read(Image.fromarray(inks, "CMYK"), "TIFF", Look())
    assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 1
    bits = Image.fromarray(np.array([[True, False]]))
    assert read(bits, "PNG").ravel().tolist() == [255, 0]


def test_sizes_are_stretched_cropped_or_padded() -> None:
    picture = np.zeros((4, 8), np.uint8)
    picture[:, 2:6] = 200
    image = Image.fromarray(picture)
    assert read(image, "PNG", Look(1, (4, 4), "crop")).tolist() == [[[200] * 4] * 4]
    padded = read(image, "PNG", Look(1, (8, 8), "pad", background=(9, 9, 9)))[0]
    assert np.array_equal(padded[2:6], picture) and (padded[:2] == 9).all() and (padded[6:] == 9).all()
    stretched = read(image, "PNG", Look(1, (4, 4)))[0]
    assert np.array_equal(stretched, np.asarray(image.resize((4, 4), Image.Resampling.BILINEAR)))


# -- the source images -------------------------------------------------------------------------------------------------


def place(path: Path, picture: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def whole(path: Path, split: str = "train") -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def colour(number: int, height: int = 4, width: int = 5) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(6):
        place(tmp_path / "raw" / "ab"[i % 2] / f"{i}.png", colour(i))
    return tmp_path / "raw"


def prepared(folder: Path, **options: Any) -> Manifest:
    settings = {"path": folder, "test_fraction": 0, "overwrite": True, **options}
    return prepare_dataset("images", folder.parent / "set", settings, settings.pop("overwrite"))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepared(folder, **options)
    return str(caught.value)


def test_the_preparation_makes_a_file_into_its_stored_row(folder: Path) -> None:
    place(folder / "a" / "z.tiff", Image.fromarray(RAMP))
    place(folder / "a" / "zz.png", Image.fromarray(np.full((3, 9, 4), 77, np.uint8)))
    for options in ({"fit": "pad", "background": "#123456"}, {"fit": "crop", "channels": 1}, {"range": "5,60000"}):
        manifest = prepared(folder, size="6x7", **options)
        names = sorted((folder / "a").iterdir()) + sorted((folder / "b").iterdir())
        record = read_manifest(folder.parent / "set").preparation["image"]
        made = np.stack([prepare_picture(record, name) for name in names])
        assert np.array_equal(whole(folder.parent / "set")["image"], made)
        assert (record["kind"], record["version"], record["size"]) == ("picture", 1, [6, 7])
    assert manifest.preparation["label"] == {"kind": "class", "version": 1, "classes": ["a", "b"]}
    with pytest.raises(InputError, match="version 2"):
        prepare_picture({**record, "version": 2}, names[0])


def test_a_preparation_without_a_size_refuses_other_sizes(folder: Path) -> None:
    prepared(folder)
    record = read_manifest(folder.parent / "set").preparation["image"]
    assert record["fit"] == "none"
    place(folder.parent / "other.png", colour(9, 5, 4))
    with pytest.raises(InputError, match=r"5 x 4 pixels, the pictures of the data set 4 x 5"):
        prepare_picture(record, folder.parent / "other.png")


def test_what_was_turned_scaled_and_composited_is_said(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    place(folder / "a" / "phone.jpg", colour(7), exif=exif)
    place(folder / "b" / "deep.png", Image.fromarray(RAMP[:4, :5] + np.uint16(60000)))
    place(folder / "b" / "glass.png", Image.fromarray(np.zeros((4, 5, 4), np.uint8)))
    manifest = prepared(folder)
    assert manifest.info["pictures"] == {"modes": {"RGB": 7, "I;16": 1, "RGBA": 1}, "transparent": 1, "turned": 1}
    assert manifest.info["notes"] == [
        "1 pictures were turned upright, as their EXIF says",
        "1 pictures have transparency and lie on white",
        "1 pictures of 12 or 16 bits were scaled, 0 to 65535 to 0 to 255",
    ]


def test_the_notes_are_printed(folder: Path, command: Any) -> None:
    (folder / "a" / "notes.txt").write_text("none")
    said = command("data", "prepare", "images", folder.parent / "set", f"path={folder}", "test_fraction=0")
    assert said.code == 0 and said.stdout.splitlines()[0] == "note: left out: 1 .txt"


def test_other_endings_are_taken_or_counted(folder: Path) -> None:
    place(folder / "a" / "x.jp2", colour(1), irreversible=False)
    place(folder / "b" / "x.avif", colour(2))
    for name in ("a/notes.txt", "b/noending", "a/._0.png", "b/.DS_Store", "b/Thumbs.db", "top.png"):
        (folder / name).write_bytes(b"no picture")
    manifest = prepared(folder)
    assert manifest.splits["train"].rows == 8
    expected = {".db": 1, ".txt": 1, "hidden": 2, "outside of the folders": 1, "without an ending": 1}
    assert manifest.info["left_out"] == expected
    assert manifest.info["notes"][0] == (
        "left out: 1 .db, 1 .txt, 2 hidden, 1 outside of the folders, 1 without an ending"
    )
    assert np.array_equal(whole(folder.parent / "set")["image"][3], np.asarray(colour(1)).transpose(2, 0, 1))


def test_frames_are_refused_or_taken(folder: Path) -> None:
    frames = [colour(i) for i in (20, 21, 22)]
    frames[0].save(folder / "a" / "move.tiff", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "b" / "move.gif", save_all=True, append_images=frames[1:])
    assert "2 files hold several pictures" in (text := refusal(folder)) and "frames=all" in text
    assert prepared(folder, frames="first").splits["train"].rows == 8
    prepared(folder, frames="all")
    rows = whole(folder.parent / "set")
    assert rows["label"].tolist() == [0] * 6 + [1] * 6
    for i in range(3):
        assert np.array_equal(rows["image"][3 + i], np.asarray(frames[i]).transpose(2, 0, 1))
    manifest = prepared(folder, frames="all", test_fraction=0.5)
    assert sum(split.rows for split in manifest.splits.values()) == 12
    tests = whole(folder.parent / "set", "test")["image"]
    inside = [any(np.array_equal(row, np.asarray(f).transpose(2, 0, 1)) for row in tests) for f in frames]
    assert len(set(inside)) == 1  # the frames of one file are in one split
    assert "several pictures: frames=all" in manifest.info["notes"][0]


def test_all_damaged_pictures_are_named_at_once(folder: Path) -> None:
    good = saved(colour(3, 40, 50), "PNG").getvalue()
    for name, content in {"0": b"", "1": good[:30], "3": good[:-20], "4": good[:60] + b"?" + good[61:]}.items():
        (folder / "ab"[int(name) % 2] / f"{name}.png").write_bytes(content)
    text = refusal(folder, size="4x4")
    assert all(f"{name}.png is not a picture" in text for name in "0134")
    assert not any(f"{name}.png is not a picture" in text for name in "25")
    for name in "0134":
        (folder / "ab"[int(name) % 2] / f"{name}.png").unlink()
    whole_jpeg = saved(colour(3, 40, 50), "JPEG").getvalue()
    for name in ("p.jpg", "q.jpg"):  # a good header, and too little behind it: seen when it is decoded
        (folder / "a" / name).write_bytes(whole_jpeg[: len(whole_jpeg) // 2])
    text = refusal(folder, size="4x4")
    assert "p.jpg is not a picture" in text and "q.jpg is not a picture" in text
    assert not (folder.parent / "set").exists()


def test_a_postscript_file_is_not_run(folder: Path) -> None:
    (folder / "a" / "evil.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n")
    assert "evil.png is not a picture that can be read: its format is not known" in refusal(folder, size="4x4")


def test_unequal_sizes_are_counted_before_anything_is_decoded(folder: Path) -> None:
    place(folder / "b" / "tall.png", colour(1, 9, 5))
    text = refusal(folder)
    assert "tall.png has 9 x 5 pixels, the first picture has 4 x 5" in text
    assert "there are 2 sizes: 6 of 4 x 5, 1 of 9 x 5" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "squeeze"}, "fit is 'squeeze'"),
        ({"frames": "some"}, "frames is 'some'"),
        ({"background": "nothing"}, "background is 'nothing'"),
        ({"range": "5,5"}, "range is 5,5"),
        ({"channels": 2}, "channels is 2"),
    ],
)
def test_wrong_options(folder: Path, options: dict, message: str) -> None:
    assert message in refusal(folder, **options)


# -- masks -------------------------------------------------------------------------------------------------------------


def test_masks_keep_their_numbers(tmp_path: Path) -> None:
    numbers = np.array([[0, 300], [300, 65535]], np.uint16)
    assert np.array_equal(read_values(saved(Image.fromarray(numbers), "PNG"), "a"), numbers)
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 90, 90, 90, 90, 90, 90])  # two classes of one colour
    assert read_values(saved(palette, "PNG"), "a").tolist() == [[0, 1], [2, 1]]
    assert read_values(saved(Image.fromarray(np.array([[2.0, 7.0]], np.float32)), "TIFF"), "a").tolist() == [[2, 7]]
    with pytest.raises(InputError, match="not whole"):
        read_values(saved(Image.fromarray(np.array([[0.5]], np.float32)), "TIFF"), "a")
    with pytest.raises(InputError, match="transparent"):
        read_values(saved(Image.fromarray(np.zeros((1, 1, 4), np.uint8)), "PNG"), "a")


def test_archives_of_pictures_and_of_masks_of_16_bits(tmp_path: Path) -> None:
    numbers = np.array([0, 300, 65535], np.uint16)[np.arange(20).reshape(4, 5) % 3]
    for i in range(3):
        place(tmp_path / "image" / f"{i}.png", colour(i))
        place(tmp_path / "mask" / f"{i}.tif", Image.fromarray(np.roll(numbers, i)))
    for name in ("image", "mask"):
        for kind in ("zip", "tar", "gztar"):
            shutil.make_archive(str(tmp_path / name), kind, tmp_path / name)
    rows = []
    for ending in ("", ".zip", ".tar"):
        options = {name + "s": str(tmp_path / name) + ending for name in ("image", "mask")}
        manifest = prepare_dataset("segmentation", tmp_path / "set", {**options, "channels": 3}, overwrite=True)
        assert manifest.info["classes"] == ["0", "300", "65535"]
        rows.append(whole(tmp_path / "set"))
        assert np.array_equal(rows[-1]["mask"][1], np.searchsorted([0, 300, 65535], np.roll(numbers, 1)))
        assert all(np.array_equal(rows[-1][column], rows[0][column]) for column in rows[0])
    packed = {"images": tmp_path / "image.tar.gz", "masks": tmp_path / "mask.tar.gz"}
    with pytest.raises(InputError, match=r"image\.tar\.gz is compressed as a whole"):
        prepare_dataset("segmentation", tmp_path / "set", packed, overwrite=True)


def test_all_damaged_masks_and_pictures_are_named_at_once(tmp_path: Path) -> None:
    for i in range(4):
        place(tmp_path / "image" / f"{i}.png", colour(i))
        place(tmp_path / "mask" / f"{i}.gif", Image.fromarray(np.zeros((4, 5), np.uint8)))
    frames = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (0, 9)]
    frames[0].save(tmp_path / "mask" / "0.gif", save_all=True, append_images=frames[1:])
    for name in ("image/1.png", "mask/2.gif"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        prepare_dataset("segmentation", tmp_path / "set", {"images": tmp_path / "image", "masks": tmp_path / "mask"})
    words = ("0.gif holds 2 pictures", "1.png is not a picture", "2.gif is not a picture")
    assert all(word in str(caught.value) for word in words)


def test_a_class_is_a_colour_of_the_masks(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[0], mask[1] = (255, 0, 0), (0, 54, 0)  # whose grey values are 76 and 32; (90, 90, 90) stays a grey
    mask[2] = 90
    for i in range(2):
        place(tmp_path / "image" / f"{i}.png", colour(i))
        place(tmp_path / "mask" / f"{i}.png", Image.fromarray(mask))
    (tmp_path / "mask" / "._0.png").write_bytes(b"macOS")
    options = {"images": tmp_path / "image", "masks": tmp_path / "mask", "channels": 3}
    manifest = prepare_dataset("segmentation", tmp_path / "set", options)
    assert manifest.info["classes"] == ["0", "90", "#003600", "#ff0000"]
    assert manifest.info["left_out"] == {"hidden": 1} and manifest.info["notes"] == ["left out: 1 hidden"]
    rows = whole(tmp_path / "set")
    assert rows["mask"][0, :, 0].tolist() == [3, 2, 1, 0]
    assert np.array_equal(rows["image"][0], np.asarray(colour(0)).transpose(2, 0, 1))
    assert manifest.preparation["mask"]["classes"] == manifest.info["classes"]


def test_more_classes_on_request(tmp_path: Path) -> None:
    for i in range(2):
        place(tmp_path / "image" / f"{i}.png", colour(i, 10, 10))
        place(tmp_path / "mask" / f"{i}.png", Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)))
    options = {"images": tmp_path / "image", "masks": tmp_path / "mask"}
    with pytest.raises(InputError, match=r"more than 32 classes\n.*most_classes"):
        prepare_dataset("segmentation", tmp_path / "set", options)
    prepare_dataset("segmentation", tmp_path / "set", {**options, "most_classes": 100})
    assert whole(tmp_path / "set")["mask"][0].ravel().tolist() == list(range(100))


def test_pixels_scale_16_bits_and_turn(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    place(tmp_path / "a.png", Image.fromarray(RAMP[:16, :16]), exif=exif)
    found = next(iter(pixels.prepare(pixels.Options(str(tmp_path / "a.png"), size=16)).chunks))[1]["y"]
    expected = np.round(np.rot90(RAMP[:16, :16], -1) / 257) / 255
    assert np.allclose(found.reshape(16, 16, 3), expected[..., None], atol=1e-6)
