"""Labelled series of the UCR and UEA archives: what lies where, what is told, what is refused by its place."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.formats import ts as ts_source
from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.series import lines
from distdl.data.series.lines import numbers, numbers_in
from distdl.errors import InputError

UNIVARIATE = """%# a comment
@problemName Toy
@timeStamps false
@missing false
@univariate true
@equalLength false
@Weather sunny
@CLASSLABEL true b a
@data
1,2,3:a
# between
-4.5,1e2:b
"""


def made(folder: Path, source: str = "ts", **options: Any) -> tuple[dict[str, Any], Manifest]:
    """All training rows, and the manifest; nothing is held out unless asked."""
    options = {"test_fraction": 0, **options}
    manifest = prepare_dataset(source, folder / "d", options, overwrite=True)
    data = Dataset(folder / "d", "train")
    return data.gather(np.arange(data.rows)), manifest


def ts(folder: Path, text: str, name: str = "s.ts", **options: Any) -> tuple[dict[str, Any], Manifest]:
    (folder / name).write_text(text)
    return made(folder, path=folder / name, **options)


def refused(folder: Path, text: str, name: str = "s.ts", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        ts(folder, text, name, **options)
    return str(caught.value)


def test_unequal_lengths_are_padded_and_counted(tmp_path: Path) -> None:
    rows, manifest = ts(tmp_path, UNIVARIATE)
    assert rows["x"].dtype == np.float32 and rows["x"][..., 0].tolist() == [[1, 2, 3], [-4.5, 100, 0]]
    assert rows["frames"].tolist() == [3, 2] and rows["label"].tolist() == [0, 1]
    assert manifest.info["classes"] == ["a", "b"] and manifest.info["series_lengths"] == [2, 3]
    assert manifest.preparation["label"] == {"kind": "class", "version": 1, "classes": ["a", "b"]}
    assert "s.ts:7: the header line @Weather is not known" in "\n".join(manifest.info["notes"])
    assert manifest.preparation["x"]["kind"] == "series" and manifest.preparation["x"]["length"] == 3


def test_layouts_for_recurrent_and_dense_families(tmp_path: Path) -> None:
    image, manifest = ts(tmp_path, UNIVARIATE, layout="image", pad="front", length="4")
    assert manifest.columns["image"].shape == (1, 4, 1) and "frames" not in manifest.columns
    assert image["image"][:, 0, :, 0].tolist() == [[0, 1, 2, 3], [0, 0, -4.5, 100]]
    flat, _ = ts(tmp_path, UNIVARIATE, layout="flat")
    assert flat["x"].tolist() == [[1, 2, 3], [-4.5, 100, 0]]


def test_a_cut_is_asked_for_and_told(tmp_path: Path) -> None:
    rows, manifest = ts(tmp_path, UNIVARIATE, length=2)
    assert rows["x"][..., 0].tolist() == [[1, 2], [-4.5, 100]] and rows["frames"].tolist() == [2, 2]
    assert "1 series were cut to length=2, 1 time points left out" in "\n".join(manifest.info["notes"])


def test_dimensions_regression_and_missing_values(tmp_path: Path) -> None:
    text = "@timeStamps false\n@univariate false\n@dimensions 2\n@targetLabel true\n@data\n?,2,?,4:0,0,1,NaN:-1.5\n"
    text += "1,1,1,1:2,4,2,4:1e3\n"
    assert "s.ts:6: 3 of the series' 8 values are missing" in refused(tmp_path, text)
    rows, manifest = ts(tmp_path, text, missing="interpolate", target_scale="none")
    assert rows["x"][0].tolist() == [[2, 0], [2, 0], [3, 1], [4, 1]] and rows["y"].tolist() == [-1.5, 1000]
    assert manifest.info["missing_values"] == 3 and "3 missing values become: interpolate" in "\n".join(
        manifest.info["notes"]
    )
    assert ts(tmp_path, text, missing="zero")[0]["x"][0].tolist() == [[0, 0], [2, 0], [0, 1], [4, 0]]
    assert ts(tmp_path, text, missing="mean")[0]["x"][0, :, 0].tolist() == [3, 2, 3, 4]
    rows, _ = ts(tmp_path, text, missing="interpolate", normalise="series")
    assert rows["x"][1].tolist() == [[0, -1], [0, 1], [0, -1], [0, 1]]  # a series that does not change becomes 0
    assert rows["x"][0].mean(0) == pytest.approx([0, 0], abs=1e-6) and rows["x"][0].std(0) == pytest.approx([1, 1])


def test_targets_are_standardised_over_the_training_rows(tmp_path: Path) -> None:
    lines = "".join(f"{i},{i}:{i}\n" for i in range(40))
    rows, manifest = ts(tmp_path, "@targetLabel true\n@data\n" + lines, test_fraction=0.5)
    scale = manifest.preparation["y"]["scale"]
    x, y = rows["x"][:, 0, 0], rows["y"]  # a series holds its own target
    assert 5 < len(y) < 35 and manifest.preparation["y"]["center"] == pytest.approx(x.mean())
    assert y.mean() == pytest.approx(0, abs=1e-6) and y.std() == pytest.approx(1)
    assert scale["method"] == "standard" and y * scale["divide"] + scale["shift"] == pytest.approx(x)


def test_time_stamps(tmp_path: Path) -> None:
    head = "@timeStamps true\n@univariate true\n@classLabel true -1 1\n@data\n"
    rows, manifest = ts(tmp_path, head + "(0,-1.5),(10,2),(20,-3e-2):1\n(0.0,5),(0.5,6),(1.0,7):-1\n")
    assert rows["x"][..., 0].tolist() == [[-1.5, 2, np.float32(-0.03)], [5, 6, 7]]
    assert rows["label"].tolist() == [1, 0] and manifest.info["classes"] == ["-1", "1"]
    days = "(2018-01-01 00:00:00,1),(2018-01-01 06:00:00,2),(2018-01-02 00:00:00,4):1\n"
    assert "s.ts:5: the time stamps are not evenly spaced: steps of 21600 to 64800" in refused(tmp_path, head + days)
    rows, _ = ts(tmp_path, head + days, times="keep")
    assert rows["x"][0].tolist() == [[0, 1], [21600, 2], [86400, 4]]
    assert ts(tmp_path, head + days, times="drop")[0]["x"][0, :, 0].tolist() == [1, 2, 4]
    assert "does not come after" in refused(tmp_path, head + "(0,1),(0,2):1\n")
    two = head.replace("univariate true", "univariate false")
    assert ts(tmp_path, two + "(0,1),(1,2):(0,3),(1,4):1\n")[0]["x"][0].tolist() == [[1, 3], [2, 4]]
    assert "dimension 2 has other time stamps" in refused(tmp_path, two + "(0,1),(1,2):(0,3),(2,4):1\n")
    assert "not a list of pairs" in refused(tmp_path, head + "(0,1) 5,(1,2):1\n")


def test_a_pair_of_files_is_found(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    train, test = (tmp_path / "archive" / f"Toy_{part}.ts" for part in ("TRAIN", "TEST"))
    train.write_text(UNIVARIATE)
    test.write_text(UNIVARIATE.replace("1,2,3:a", "7,8:b"))
    for path in (train, train.parent):
        _, manifest = made(tmp_path, path=path, test_fraction=0.5)
        assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 2, "test": 2}
        rows = Dataset(tmp_path / "d", "test").gather(np.arange(2))
        assert rows["x"][:, :, 0].tolist() == [[7, 8, 0], [-4.5, 100, 0]] and rows["label"].tolist() == [1, 1]
    assert "Toy_TEST.ts is the split test of" in "\n".join(manifest.info["notes"])
    test.write_text(UNIVARIATE.replace("b a", "a b c"))
    with pytest.raises(InputError, match=r"Toy_TEST.ts are not those of .*: it has also c"):
        made(tmp_path, path=train)
    test.write_text(UNIVARIATE.replace("1,2,3", "1,2,3,4"))
    rows, manifest = made(tmp_path, path=train)
    assert rows["x"].shape == (2, 4, 1) and manifest.info["series_lengths"] == [
        2,
        3,
    ]  # padded, as the longest is a test one
    test.write_text("@targetLabel true\n@data\n1,2:3\n")
    with pytest.raises(InputError, match=r"has labels, .* has numbers as targets"):
        made(tmp_path, path=train)


def test_ucr_tsv_knows_padding_from_gaps(tmp_path: Path) -> None:
    text = "1\t0.5\t1.5\t2.5\n-1\t3\t4\tNaN\n"
    rows, manifest = ts(tmp_path, text, "Toy_TRAIN.tsv")
    assert rows["x"][..., 0].tolist() == [[0.5, 1.5, 2.5], [3, 4, 0]] and rows["frames"].tolist() == [3, 2]
    assert rows["label"].tolist() == [1, 0] and manifest.info["classes"] == ["-1", "1"]
    assert "gap.tsv:3: 1 of the series' 3 values" in refused(tmp_path, text + "1\tNaN\t1\t2\n", "gap.tsv")
    assert "short.tsv:3: the series has 2 values, the first one 3" in refused(tmp_path, text + "1\t1\t2\n", "short.tsv")
    (tmp_path / "z.tsv.gz").write_bytes(gzip.compress(b"3\t1\n10\t2\n2\t3\n"))
    rows, manifest = made(tmp_path, path=tmp_path / "z.tsv.gz")
    assert manifest.info["classes"] == ["2", "3", "10"] and rows["label"].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("@classLabel true a b\n1,2:a\n", "s.ts:2: a series stands before @data"),
        ("@classLabel true a b\n", "has no line @data"),
        ("@clasLabel true a b\n@data\n", "s.ts:1: there is no header line @clasLabel"),
        ("@missing perhaps\n@data\n", "s.ts:1: @missing is 'perhaps'"),
        ("@classLabel true\n@data\n", "s.ts:1: @classLabel true names no classes"),
        ("@classLabel true a a\n@data\n", "s.ts:1: @classLabel true names one class twice"),
        ("@classLabel true a\n@targetLabel true\n@data\n", "both @classLabel true and @targetLabel true"),
        ("@classLabel true a b\n@data\n1,2:A\n", "s.ts:3: the label 'A' is not one of the classes"),
        ("@classLabel true a b\n@data\n1,2\n", "s.ts:3: the series has no label"),
        ("@classLabel true a b\n@data\n1,2:3:a\n", "s.ts:3: dimension 2 has 1 time points, dimension 1 2"),
        ("@classLabel true a b\n@data\n1,2:a\n1,2:3,4:b\n", "s.ts:4: the series has 2 dimensions"),
        (
            "@univariate true\n@classLabel true a b\n@data\n1:2:a\n",
            "s.ts:4: the series has 2 dimensions, the header says 1",
        ),
        (
            "@equalLength true\n@classLabel true a b\n@data\n1,2:a\n1:b\n",
            "s.ts:5: the series has 1 time points instead of 2",
        ),
        ("@classLabel true a b\n@data\n1,x,2:a\n", "s.ts:3: value 2 is 'x'"),
        ("@classLabel true a b\n@data\n1,1_000:a\n", "s.ts:3: value 2 is '1_000'"),
        ("@classLabel true a b\n@data\n1,inf:a\n", "s.ts:3: value 2 is 'inf'"),
        ("@classLabel true a b\n@data\n1,,2:a\n", "s.ts:3: value 2 is ''"),
        ("@classLabel true a b\n@data\n1,1e39:a\n", "s.ts:3: time point 2 of dimension 1 is 1e+39"),
        ("@targetLabel true\n@data\n1,2:?\n", "s.ts:3: the target '?' is not a finite number"),
        ("@classLabel true a b\n@data\n", "holds no series"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


def test_one_number_in_several_writings_is_told(tmp_path: Path) -> None:
    _, manifest = ts(tmp_path, "1\t1\n1.0\t2\n", "s.tsv")
    assert "the classes 1, 1.0 are one number in several writings" in "\n".join(manifest.info["notes"])


def test_a_line_that_memory_would_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LARGEST_LINE", 30)
    assert "s.ts:10: the line has more than 30 characters" in refused(
        tmp_path, UNIVARIATE.replace("1,2,3", "1,2,3" * 7)
    )


def test_text_that_is_not_utf8_and_a_torn_gzip_file(tmp_path: Path) -> None:
    (tmp_path / "l.ts").write_bytes("@classLabel true größe b\n@data\n1:b\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"l.ts:1: the text is not UTF-8"):
        made(tmp_path, path=tmp_path / "l.ts")
    (tmp_path / "t.ts.gz").write_bytes(gzip.compress(UNIVARIATE.encode())[:-9])
    with pytest.raises(InputError, match=r"t.ts.gz is a damaged gzip file"):
        made(tmp_path, path=tmp_path / "t.ts.gz")


def test_classes_are_held_out_alike_and_a_validation_split_is_made(tmp_path: Path) -> None:
    lines = "".join(f"{i}:{'ab'[i % 10 == 0]}\n" for i in range(100))
    head = "@classLabel true a b\n@data\n"
    options = {"stratify": True, "test_fraction": 0.2, "validation_fraction": 0.1}
    _, manifest = ts(tmp_path, head + lines, **options)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 70, "test": 20, "validation": 10}
    test = Dataset(tmp_path / "d", "test").gather(np.arange(20))
    assert test["label"].sum() == 2 and manifest.info["split"]["by"] == "label"


@pytest.mark.parametrize("kept", [1 << 20, 300])
def test_a_small_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(lines, "KEPT_BYTES", kept)
    rows = "".join(f"{i},{i + 0.5},{i * 2}:{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "t.ts").write_text(f"@timeStamps false\n@classLabel true a b\n@data\n{rows}")
    read: list[str] = []
    real = ts_source.numbers_in
    monkeypatch.setattr(ts_source, "numbers_in", lambda text, where: read.append(where) or real(text, where))
    options = {"path": tmp_path / "t.ts", "test_fraction": 0}
    manifest = prepare_dataset("ts", tmp_path / "d", options)
    assert len(read) == (20 if kept > 300 else 40)
    values = Dataset(tmp_path / "d", "train").gather(range(20))["x"]
    assert sorted(values[:, 0, 0].tolist()) == list(range(20)) and manifest.splits["train"].rows == 20


def test_numbers_in_text_are_those_of_python_or_are_refused_alike() -> None:
    """Read at once where they are plain, to the same bits; whatever else stands there goes the careful way."""
    draw = np.random.default_rng(0).integers(0, 1 << 63, 4000, np.uint64).view(np.float64)
    for form in ("{!r}", "{:.25g}", "{:+.3e}", " {:f} "):
        text = ",".join(form.format(value) for value in draw[np.isfinite(draw)].tolist())
        wanted = np.array([float(one) for one in text.split(",")])
        assert numbers_in(text, "t").tobytes() == wanted.tobytes()
    odd = [
        "1,,2",
        "1,2,",
        "",
        "1.2.3",
        "1,2e",
        "1 2,3",
        "1-2",
        "--1",
        "0x10,1",
        "1_0",
        "1e400,2",
        "?,nan,-0,+5,.5",
        "1,e",
    ]
    for text in odd:
        told = []
        for way in (numbers_in, lambda text, where: numbers(text.split(","), where)):
            try:
                told.append(repr(way(text, "t")))
            except InputError as error:
                told.append(str(error))
        assert told[0] == told[1], text
