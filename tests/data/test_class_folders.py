"""Folders, archives and tables of labels: which file is of which class and split, and what is said about it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distdl.data.class_folders import FolderOptions, find
from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError


def fill(root: Path, *names: str) -> Path:
    """A picture of its own for each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = list(name.encode())
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 4), np.uint8)).save(path)
    return root


def prepared(path: Path, **options: Any) -> Manifest:
    settings = {"path": path, "test_fraction": 0, "channels": 1, **options}
    return prepare_dataset("images", path.parent / "set", settings, overwrite=True)


def rows(path: Path) -> dict[str, int]:
    """Rows of each split."""
    return {name: split.rows for name, split in prepared(path).splits.items()}


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepared(path, **options)
    return str(caught.value)


def whole(path: Path, split: str = "train") -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


SPLIT = ("train/cat/0.png", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png", "test/cat/5.png")


def test_folders_of_splits(tmp_path: Path) -> None:
    manifest = prepared(fill(tmp_path / "raw", *SPLIT), test_fraction=0.5)
    assert {name: s.rows for name, s in manifest.splits.items()} == {"test": 2, "train": 3, "validation": 1}
    assert manifest.info["classes"] == ["cat", "dog"]
    assert whole(tmp_path / "set", "test")["label"].tolist() == [0, 1]
    notes = manifest.info["notes"]
    assert f"the folders of {tmp_path}/raw are splits: test 2, train 3, validation 1 pictures" in notes
    assert "the split validation has nothing of the classes dog" in notes
    kept = prepared(tmp_path / "raw", split_folders="no", class_from="first")
    assert kept.info["classes"] == ["test", "train", "val"]


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    manifest = prepared(fill(tmp_path / "raw", "train/0.png", "car/1.png", "bus/2.png"))
    assert manifest.info["classes"] == ["bus", "car", "train"] and list(manifest.splits) == ["train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/0.png", "test/1.png"), "test, train looks like a split, and holds pictures outside of folders"),
        (("train/a/0.png", "test/1.png"), "test looks like a split, and holds pictures outside of folders"),
        (("train/a/0.png", "test/a/1.png", "more/a/2.png"), "has the folders test, train, and more"),
        (("val/a/0.png", "test/a/1.png"), "has the folders test, val, and no train"),
        (("a/train/0.png", "a/test/1.png", "b/train/2.png"), "hold test, train, which look like splits"),
        (("train/a/0.png", "val/b/1.png"), "the classes b are not among those of the training split"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    assert message in refusal(fill(tmp_path / "raw", *names))


def test_the_answer_to_an_unclear_folder(tmp_path: Path) -> None:
    flat = fill(tmp_path / "raw", "train/0.png", "test/1.png")
    assert "split_folders=yes or no" in refusal(flat)
    assert prepared(flat, split_folders="no").info["classes"] == ["test", "train"]
    fill(flat, "more/2.png")
    assert "more are no splits" in refusal(flat, split_folders="yes")


def test_folders_within_folders(tmp_path: Path) -> None:
    omniglot = fill(
        tmp_path / "raw", *(f"{a}/character{c}/{i}.png" for a in ("Greek", "Latin") for c in "123" for i in "01")
    )
    manifest = prepared(omniglot)
    assert manifest.info["classes"] == [f"{a}/character{c}" for a in ("Greek", "Latin") for c in "123"]
    assert whole(tmp_path / "set")["label"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    (note,) = manifest.info["notes"]
    assert "2 folders with 6 folders of pictures within them, named by their path: 6 classes" in note
    first = prepared(omniglot, class_from="first")
    assert first.info["classes"] == ["Greek", "Latin"] and "merged into 2 classes" in first.info["notes"][0]
    last = prepared(omniglot, class_from="last")
    assert last.info["classes"] == [f"character{c}" for c in "123"] and "folder: 3 classes" in last.info["notes"][0]
    assert "class_from is 'middle'" in refusal(omniglot, class_from="middle")


def test_where_only_some_are_nested_the_outer_folder_is_the_class(tmp_path: Path) -> None:
    manifest = prepared(fill(tmp_path / "raw", "cat/0.png", "cat/more/1.png", "dog/2.png"))
    assert manifest.info["classes"] == ["cat", "dog"]
    assert "2 folders with 1 folders of pictures within them, merged into 2 classes" in manifest.info["notes"][0]


def test_folders_that_all_lie_in_name_nothing_and_empty_ones_are_said(tmp_path: Path) -> None:
    raw = fill(tmp_path / "raw", "data/images/cat/0.png", "data/images/dog/1.png", "data/images/10/2.png")
    (raw / "data/images/cow/none").mkdir(parents=True)
    manifest = prepared(raw)
    assert manifest.info["classes"] == ["10", "cat", "dog"]
    assert manifest.info["notes"] == [
        f"all pictures of {raw} lie in data/images/, which names no class",
        f"{raw}: no pictures in the folders data/images/cow/none, which are no classes",
    ]


def test_classes_that_are_one_number_are_said(tmp_path: Path) -> None:
    manifest = prepared(fill(tmp_path / "raw", "10/0.png", "2/1.png", "02/2.png"))
    assert manifest.info["classes"] == ["02", "2", "10"]
    assert manifest.info["notes"] == ["classes whose names are the same number stay apart: 02, 2"]


def test_a_test_path_may_lack_classes_and_bring_no_new_ones(tmp_path: Path) -> None:
    raw, test = fill(tmp_path / "raw", "a/0.png", "b/1.png"), fill(tmp_path / "more", "b/2.png", "x.png")
    manifest = prepared(raw, test_path=test, test_fraction=0.5)
    assert {name: s.rows for name, s in manifest.splits.items()} == {"test": 1, "train": 2}
    assert whole(tmp_path / "set", "test")["label"].tolist() == [1]
    assert "the split test has nothing of the classes a" in manifest.info["notes"]
    fill(test, "c/3.png")
    assert "the classes c are not among" in refusal(raw, test_path=test)


def zipped(root: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*"), reverse=True):
            archive.write(path, Path("top") / path.relative_to(root))
    return file


def tarred(root: Path, file: Path, mode: str) -> Path:
    with tarfile.open(file, mode) as archive:
        for path in sorted(root.rglob("*"), reverse=True):
            archive.add(path, Path("top") / path.relative_to(root), recursive=False)
    return file


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_is_read_as_its_folder(tmp_path: Path, kind: str) -> None:
    names = [f"{'ab'[i % 2]}/{i}.png" for i in range(20)]
    raw = fill(tmp_path / "raw", *names, ".git/x.png")
    (raw / "b" / "notes.txt").write_text("none")
    file = tmp_path / f"all.{kind}"
    zipped(raw, file) if kind == "zip" else tarred(raw, file, f"w:{kind[4:]}")
    folder = prepared(raw, test_fraction=0.3)
    expected = {split: whole(tmp_path / "set", split) for split in ("train", "test")}
    before = sorted(tmp_path.iterdir())
    archive = prepared(file, test_fraction=0.3)
    found = {split: whole(tmp_path / "set", split) for split in ("train", "test")}
    assert archive.info["classes"] == ["a", "b"] and archive.info["left_out"] == {".txt": 1, "hidden": 1}
    assert before == sorted(tmp_path.iterdir())  # nothing was unpacked beside it
    if kind in ("zip", "tar"):
        assert archive.fingerprint == folder.fingerprint
        assert all(np.array_equal(found[s][c], expected[s][c]) for s in found for c in ("image", "label"))
    both = [np.concatenate([of[s]["image"].reshape(-1, 12) for s in of]) for of in (found, expected)]
    labels = [np.concatenate([of[s]["label"] for s in of]) for of in (found, expected)]
    joined = [sorted(map(tuple, np.c_[pixels, label].tolist())) for pixels, label in zip(both, labels)]
    assert joined[0] == joined[1]  # a compressed tar stands in its own order


def test_a_compressed_tar_is_read_from_front_to_back(tmp_path: Path) -> None:
    raw = fill(tmp_path / "raw", *(f"{'ab'[i % 2]}/{i}.png" for i in range(9)))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for path in sorted(raw.rglob("*.png"), key=lambda path: path.name):  # classes by turns
            tar.add(path, path.relative_to(raw))
    options = FolderOptions(test_fraction=0.3)
    (part,) = find(str(tmp_path / "a.tar.gz"), options, {".png"}, "pictures").parts
    assert part.numbers.tolist() == list(range(9)) and part.labels.tolist() == [0, 1] * 4 + [0]
    (part,) = find(str(raw), options, {".png"}, "pictures").parts
    assert part.labels.tolist() == [0] * 5 + [1] * 4


def test_archives_that_lead_outside_or_are_damaged_are_refused(tmp_path: Path) -> None:
    picture = (fill(tmp_path / "raw", "a/0.png") / "a/0.png").read_bytes()
    for name in ("../../evil/0.png", "/evil/0.png", "..\\evil\\0.png"):
        with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
            archive.writestr(name, picture)
        assert "a place outside of it" in refusal(tmp_path / "out.zip")
    with tarfile.open(tmp_path / "out.tar", "w") as tar:
        member = tarfile.TarInfo("a/../../0.png")
        member.size = len(picture)
        tar.addfile(member, io.BytesIO(picture))
    assert "a place outside of it" in refusal(tmp_path / "out.tar")
    with tarfile.open(tmp_path / "link.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tmp_path / "raw/a/0.png", "a/0.png")
        member = tarfile.TarInfo("a/passwd.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    assert prepared(tmp_path / "link.tar").info["left_out"] == {"links and special files": 1}
    full = (tmp_path / "link.tar").read_bytes()
    for length, message in ((len(picture) // 2, "no zip or tar"), (1024, "end mark"), (600, "no zip or tar")):
        (tmp_path / "cut.tar").write_bytes(full[:length])
        assert message in refusal(tmp_path / "cut.tar"), length
    (tmp_path / "file.bin").write_bytes(b"nothing of the kind" * 100)
    assert "no zip or tar that can be read" in refusal(tmp_path / "file.bin")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("a/0.png", picture)
    content = bytearray((tmp_path / "bad.zip").read_bytes())
    content[60] ^= 255
    (tmp_path / "bad.zip").write_bytes(content)
    assert "bad.zip: a/0.png cannot be unpacked" in refusal(tmp_path / "bad.zip")


def test_a_file_that_says_it_is_huge_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = fill(tmp_path / "raw", "a/0.png")
    monkeypatch.setattr("distdl.data.folders.LARGEST_FILE_BYTES", 20)
    for path in (raw, zipped(raw, tmp_path / "a.zip"), tarred(raw, tmp_path / "a.tar", "w")):
        assert "0.png has 0.0 GiB" in refusal(path)


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    fill(tmp_path / "far", "0.png")
    raw = fill(tmp_path / "raw", "b/1.png")
    (raw / "a").symlink_to(tmp_path / "far")
    assert prepared(raw).info["classes"] == ["a", "b"]
    (raw / "b" / "round").symlink_to(raw)
    assert "is a link to a folder that it lies in" in refusal(raw)


# -- a table of labels -------------------------------------------------------------------------------------------------


def test_labels_in_a_table(tmp_path: Path) -> None:
    raw = fill(tmp_path / "raw", "images/0.png", "images/1.png", "images/2.png", "images/3.png")
    (raw / "labels.csv").write_text('\ufeffid,breed,kg\n2,"dog, large",9\nimages/0.png,cat,4\n1.png,cat,5\n', "utf-8")
    options = {"labels": "labels.csv", "label_columns": "id,breed"}
    manifest = prepared(raw, **options)
    assert manifest.info["classes"] == ["cat", "dog, large"]
    assert whole(tmp_path / "set")["label"].tolist() == [0, 0, 1]
    assert manifest.info["left_out"] == {".csv": 1, "without a row in labels.csv": 1}
    for path in (zipped(raw, tmp_path / "a.zip"), tarred(raw, tmp_path / "a.tar.gz", "w:gz")):
        for table in ("labels.csv", "top/labels.csv"):
            packed = prepared(path, labels=table, label_columns="id,breed")
            assert packed.info["classes"] == ["cat", "dog, large"] and packed.splits["train"].rows == 3
    shutil.copy(raw / "labels.csv", tmp_path / "beside.csv")
    beside = prepared(raw, labels=str(tmp_path / "beside.csv"), label_columns="id,breed")
    assert beside.fingerprint == manifest.fingerprint


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_tables_of_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    raw = fill(tmp_path / "raw", "0.png", "1.png")
    table = [("file", "label"), ("0.png", "a, b"), ("1.png", "c")]
    (raw / "labels.csv").write_text("\n".join(map(delimiter.join, table)))
    assert prepared(raw, labels="labels.csv").info["classes"] == ["a, b", "c"]


def test_the_delimiter_of_labels_is_seen_from_all_lines(tmp_path: Path) -> None:
    """As that of other tables is: a first line with as many commas in its words misleads nobody."""
    raw = fill(tmp_path / "raw", *(f"{i}.png" for i in range(6)))
    lines = ['file;label;"a, b, or c, as told"', *(f"{i}.png;{'xy'[i % 2]};1" for i in range(6))]
    (raw / "labels.csv").write_text("\n".join(lines))
    assert prepared(raw, labels="labels.csv").info["classes"] == ["x", "y"]


@pytest.mark.parametrize("damage", ["header", "cut"])
def test_a_damaged_tar_is_no_shorter_one_for_either_reader(tmp_path: Path, damage: str) -> None:
    """tarfile takes a damaged header, and a file that was cut between two members, for the end."""
    from distdl.data.formats.webdataset import members

    file = tarred(fill(tmp_path / "raw", *(f"a/{i}.png" for i in range(4))), tmp_path / "a.tar", "w")
    with tarfile.open(file) as tar:
        at = sorted(member.offset for member in tar.getmembers() if member.isfile())[2]
    content = bytearray(file.read_bytes())
    content[at + 20] ^= 255
    file.write_bytes(content if damage == "header" else content[:at])
    assert "stops without the end mark of a tar after 2 files" in refusal(file)
    with pytest.raises(InputError, match=r"is damaged or was cut, after top/a/2\.png"):
        list(members(str(file)))


def test_a_name_that_is_no_utf_8_is_refused_by_its_bytes(tmp_path: Path) -> None:
    raw = fill(tmp_path / "raw", "a/0.png")
    try:
        os.rename(os.fsencode(raw / "a"), os.fsencode(raw) + b"/\xff\xfe")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert r"a name that is no UTF-8: '\udcff\udcfe/0.png'" in refusal(raw)


def test_labels_and_folders_of_splits(tmp_path: Path) -> None:
    raw = fill(tmp_path / "raw", "train/0.png", "train/1.png", "test/2.png")
    (raw / "labels.csv").write_text("file,label\ntrain/0.png,x\ntrain/1.png,y\ntest/2.png,x\n")
    manifest = prepared(raw, labels="labels.csv")
    assert {name: s.rows for name, s in manifest.splits.items()} == {"test": 1, "train": 2}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n0.png,x\n9.png,y\n", "1 files of labels.csv are not in"),
        ("file,label\n0.png,x\n0.png,y\n", "labels.csv:3: '0.png' has the labels 'x' and 'y'"),
        ("file,label\n0.png\n", "labels.csv:2: 1 values, the header has 2"),
        ("file,label\n0.png,\n", "labels.csv:2: '0.png' has no label"),
        ("name,label\n0.png,x\n", "labels.csv has no column 'file'"),
        ('file,label\n"0.png,x\n', "labels.csv:"),
        ("file,label\nsame.png,x\n", "labels.csv:2: 'same.png' is the name of several files"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, table: str, message: str) -> None:
    raw = fill(tmp_path / "raw", "0.png", "1.png", "a/same.png", "b/same.png")
    (raw / "labels.csv").write_text(table)
    assert message in refusal(raw, labels="labels.csv")
    assert "there is no file none.csv, neither here nor in" in refusal(raw, labels="none.csv")


def test_files_are_shared_out_by_class_or_by_folder(tmp_path: Path) -> None:
    for speaker in range(20):
        for name, files in (("often", 9), ("seldom", 1)):
            folder = tmp_path / name / f"speaker{speaker}"
            folder.mkdir(parents=True)
            for i in range(files):
                (folder / f"{i}.txt").write_text("a")
    options: dict[str, Any] = {"class_from": "first", "test_fraction": 0.2}
    found = find(str(tmp_path), FolderOptions(stratify=True, **options), (".txt",), "texts")
    (part,) = found.parts
    held_out = np.array(part.shares) == "test"
    assert np.bincount(part.labels[held_out]).tolist() == [36, 4] and found.info([])["split"]["by"] == "label"
    grouped = find(
        str(tmp_path), FolderOptions(split_group="folder", validation_fraction=0.2, **options), (".txt",), "texts"
    )
    (part,) = grouped.parts
    splits: dict[str, set[str]] = {}
    for i, split in enumerate(part.shares):
        splits.setdefault(str(Path(part.called(i)).parent), set()).add(split)
    assert all(len(of_folder) == 1 for of_folder in splits.values()) and len(splits) == 40
    assert set(part.shares) == {"train", "test", "validation"}


def test_folders_of_splits_leave_nothing_to_share_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.txt").write_text("a")
    assert find(str(tmp_path), FolderOptions(), (".txt",), "texts").split == {"by": "folders"}
    with pytest.raises(InputError, match="are splits, so that stratify say"):
        find(str(tmp_path), FolderOptions(stratify=True), (".txt",), "texts")
