"""Bad files and samples: pictures, recordings and tars of samples of which some are set aside."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest

from distdl.data.bad_rows import FILE
from distdl.data.prepare import prepare_dataset
from distdl.errors import InputError
from tests.data.test_bad_rows import ASIDE, at, listed
from tests.data.test_prepare_mds import write as write_mds

Image = pytest.importorskip("PIL.Image")
MOST = {**ASIDE, "bad_rows_at_most": 0.5}


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def recording(seed: int, rate: int = 1000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.random.default_rng(seed).integers(-9000, 9000, 400, np.int16).tobytes())
    return file.getvalue()


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def of_classes(make, ending: str) -> dict[str, bytes]:
    return {f"{'cat' if i % 2 else 'dog'}/{i:02d}.{ending}": make(i) for i in range(20)}


def names(target: Path) -> dict[str, str]:
    """The bad files' names -> the reason."""
    return {"/".join(Path(record["file"]).parts[-2:]): record["reason"] for record in listed(target)}


BAD_PICTURES = {
    "cat/003.png": (b"no picture at all", "cannot be read"),
    "dog/005.png": (picture(1)[:-40], "cannot be read"),
    "dog/007.png": (picture(2, (9, 4)), "another form"),
}


def test_pictures_that_cannot_be_read_or_have_another_size_are_set_aside(tmp_path):
    good = of_classes(picture, "png")
    folder(tmp_path / "clean", good)
    folder(tmp_path / "dirty", {**good, **{name: content for name, (content, _) in BAD_PICTURES.items()}})
    clean = prepare_dataset("images", tmp_path / "a", {"path": str(tmp_path / "clean")})
    found = prepare_dataset("images", tmp_path / "b", {"path": str(tmp_path / "dirty"), **MOST})
    assert found.fingerprint == clean.fingerprint
    assert names(tmp_path / "b") == {name: reason for name, (_, reason) in BAD_PICTURES.items()}
    assert found.info["bad_rows"]["of"] == 23 and found.info["classes"] == ["cat", "dog"]
    assert "9 x 4 pixels, most pictures have 8 x 8" in listed(tmp_path / "b")[-1]["what"]
    with pytest.raises(InputError, match="3 of 23 rows"):
        prepare_dataset("images", tmp_path / "c", {"path": str(tmp_path / "dirty"), **ASIDE})


def test_a_refusal_of_pictures_says_how_to_go_on_without_them(tmp_path):
    folder(tmp_path / "dirty", {**of_classes(picture, "png"), "cat/a.png": b"no", "dog/b.png": b"none"})
    with pytest.raises(InputError) as error:
        prepare_dataset("images", tmp_path / "a", {"path": str(tmp_path / "dirty")})
    assert "cat/a.png" in str(error.value) and "dog/b.png" in str(error.value)
    assert "2 files cannot be read" in str(error.value) and "bad_rows=set_aside" in str(error.value)


def test_animations_that_are_not_wanted_are_set_aside(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), 80 * i, np.uint8)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    folder(tmp_path / "dirty", {**of_classes(picture, "png"), "cat/moving.gif": file.getvalue()})
    prepare_dataset("images", tmp_path / "a", {"path": str(tmp_path / "dirty"), **ASIDE})
    assert names(tmp_path / "a") == {"cat/moving.gif": "cannot be read"}


def test_files_without_a_label_in_the_table_are_bad(tmp_path):
    files = {Path(name).name: content for name, content in of_classes(picture, "png").items()}
    lines = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(files)]
    lines[4] = f"{list(files)[4]},"
    folder(tmp_path / "pictures", {**files, "bad.png": b"none"})
    lines.append("bad.png,a")
    (tmp_path / "labels.csv").write_text("file,label\n" + "\n".join(lines) + "\n")
    options = {"path": str(tmp_path / "pictures"), "labels": str(tmp_path / "labels.csv"), **ASIDE}
    found = prepare_dataset("images", tmp_path / "a", options)
    assert {record.get("line"): record["reason"] for record in listed(tmp_path / "a")} == {
        6: "no label",
        None: "cannot be read",
    }
    assert found.info["bad_rows"]["rows"] == 2 and not any(found.info["left_out"].values())
    assert sum(split.rows for split in found.splits.values()) == 19


def test_rows_of_a_table_whose_pictures_cannot_be_read_are_bad(tmp_path):
    files = {f"{i}.png": picture(i) for i in range(20)}
    folder(tmp_path, {**files, "bad.png": b"none"})
    lines = [f"{name},{i}.5,{'ab'[i % 2]}" for i, name in enumerate(files)]
    dirty = [*lines[:3], "bad.png,1,a", *lines[3:], "absent.png,2,b"]
    for name, rows in (("clean", lines), ("dirty", dirty)):
        (tmp_path / f"{name}.csv").write_text("\n".join(["file,x,label", *rows]) + "\n")
    options = {"label": "label", "size": "8x8"}
    clean = prepare_dataset("csv", tmp_path / "a", {"path": str(tmp_path / "clean.csv"), **options})
    found = prepare_dataset("csv", tmp_path / "b", {"path": str(tmp_path / "dirty.csv"), **options, **ASIDE})
    assert found.fingerprint == clean.fingerprint and list(at(tmp_path / "b")) == [5, 23]


def test_recordings_that_cannot_be_read_or_have_another_rate_are_set_aside(tmp_path):
    pytest.importorskip("soundfile")
    good = of_classes(recording, "wav")
    bad = {"cat/003.wav": b"RIFF", "dog/005.wav": recording(1)[:-100], "dog/007.wav": recording(2, 500)}
    folder(tmp_path / "clean", good)
    folder(tmp_path / "dirty", {**good, **bad})
    clean = prepare_dataset("sound", tmp_path / "a", {"path": str(tmp_path / "clean")})
    found = prepare_dataset("sound", tmp_path / "b", {"path": str(tmp_path / "dirty"), **MOST})
    assert found.fingerprint == clean.fingerprint and found.preparation == clean.preparation
    assert names(tmp_path / "b") == {
        "cat/003.wav": "cannot be read",
        "dog/005.wav": "cannot be read",
        "dog/007.wav": "another form",
    }


def tar(path: Path, samples: list[dict[str, bytes]]) -> str:
    """A tar of samples; their keys are their numbers in the dirty one."""
    with tarfile.open(path, "w") as out:
        for sample in samples:
            for name, content in sample.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return str(path)


def test_samples_of_a_webdataset_that_are_not_as_the_others_are_set_aside(tmp_path):
    def sample(i: int, **fields: bytes | None) -> dict[str, bytes]:
        every = {"png": picture(i), "cls": b"%d" % (i % 3), "json": b'{"size": %d}' % i, **fields}
        return {f"{i:03d}.{name}": content for name, content in every.items() if content is not None}

    good = [sample(i) for i in range(20)]
    bad = [
        sample(100, png=b"nothing"),
        sample(101, json=b'{"size": '),
        sample(102, cls=None),
        sample(103, png=picture(0, (5, 8))),
        sample(104, json=b'{"size": "large"}'),
        sample(105, json=b"{}"),
    ]
    dirty = [*good[:5], *bad[:3], *good[5:], *bad[3:]]
    options = {"fields": "png,cls,json.size"}
    clean = prepare_dataset("webdataset", tmp_path / "a", {"path": tar(tmp_path / "c.tar", good), **options})
    path = tar(tmp_path / "d.tar", dirty)
    found = prepare_dataset("webdataset", tmp_path / "b", {"path": path, **options, **MOST})
    assert found.fingerprint == clean.fingerprint and found.info["classes"] == ["0", "1", "2"]
    reasons = at(tmp_path / "b", "sample")
    assert reasons == {
        "100": "does not fit",
        "101": "damaged field",
        "102": "does not fit",
        "103": "does not fit",
        "104": "does not fit",
        "105": "does not fit",
    }
    stratified = {"stratify": True, **options}
    clean = prepare_dataset("webdataset", tmp_path / "e", {"path": str(tmp_path / "c.tar"), **stratified})
    found = prepare_dataset("webdataset", tmp_path / "f", {"path": path, **stratified, **MOST})
    assert found.fingerprint == clean.fingerprint


def test_samples_of_mds_shards_that_are_not_as_the_others_are_set_aside(tmp_path):
    good = [{"image": picture(i), "label": b"cat" if i % 2 else b"dog"} for i in range(20)]
    bad = [{"image": b"nothing", "label": b"cat"}, {"image": picture(1, (9, 9)), "label": b"cat"}]
    columns: dict[str, tuple[str, int | None]] = {"image": ("png", None), "label": ("str", None)}
    write_mds(tmp_path / "clean", columns, [good])
    write_mds(tmp_path / "dirty", columns, [[*good[:5], bad[0], *good[5:7]], [*good[7:], bad[1]]])
    clean = prepare_dataset("mds", tmp_path / "a", {"path": str(tmp_path / "clean"), "stratify": True})
    found = prepare_dataset("mds", tmp_path / "b", {"path": str(tmp_path / "dirty"), "stratify": True, **ASIDE})
    assert found.fingerprint == clean.fingerprint and found.info["split"] == clean.info["split"]
    what = [record["what"] for record in listed(tmp_path / "b")]
    assert len(what) == 2 and "not a picture" in what[0] and "9 x 9 pixels, the first one 8 x 8" in what[1]


def test_a_tar_that_is_cut_stays_refused(tmp_path):
    good = [{f"{i}.cls": b"1", f"{i}.json": json.dumps({"x": i}).encode()} for i in range(20)]
    path = Path(tar(tmp_path / "c.tar", good))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged or was cut"):
        prepare_dataset("webdataset", tmp_path / "a", {"path": str(path), "fields": "cls,json.x", **MOST})
    assert not (tmp_path / "a" / FILE).exists()
