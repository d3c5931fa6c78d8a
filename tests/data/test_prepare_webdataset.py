"""WebDataset's tars: samples and columns, and every way in which a shard loses a part of itself."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distdl.data.formats.webdataset import expand, members, split_name
from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

Files = list[tuple[str, bytes]]


def png(value: int, size: tuple[int, int] = (3, 2)) -> bytes:
    with io.BytesIO() as out:
        Image.new("RGB", size, (value, 0, 255)).save(out, "PNG")
        return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as out:
        np.save(out, array)
        return out.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    with io.BytesIO() as out:
        np.savez(out, **arrays)
        return out.getvalue()


def huge_npy() -> bytes:
    """A header that promises more than there is."""
    return npy(np.zeros(3)).replace(b"(3,)", b"(9000000000000,)").replace(b" " * 15 + b"\n", b"   \n")


def tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(i: int, label: str = "cat") -> Files:
    return [
        (f"a.b/{i:04}.png", png(i)),
        (f"a.b/{i:04}.cls", label.encode()),
        (f"a.b/{i:04}.json", json.dumps({"size": i / 2, "of": {"name": f"n{i}"}, "box": [i, 1]}).encode()),
        (f"a.b/{i:04}.emb.npy", npy(np.full((2, 2), i, ">f4"))),
    ]


def made(folder: Path, **options: Any) -> tuple[dict[str, Any], Manifest]:
    options = {"test_fraction": 0, **options}
    manifest = prepare_dataset("webdataset", folder / "d", options, overwrite=True)
    data = Dataset(folder / "d", "train")
    return data.gather(np.arange(data.rows)), manifest


def refused(folder: Path, files: Files, **options: Any) -> str:
    tar(folder / "s.tar", files)
    with pytest.raises(InputError) as caught:
        made(folder, path=folder / "s.tar", **options)
    return str(caught.value)


def test_fields_become_columns(tmp_path: Path) -> None:
    tar(tmp_path / "s-00.tar", [("__meta__", b"x"), *sample(1), *sample(2, "dog"), ("a.b/README", b"")])
    tar(tmp_path / "s-01.tar", sample(3))
    fields = "png,cls,json.size,json.of.name,json.box,emb.npy"
    rows, manifest = made(tmp_path, path=tmp_path / "s-{00..01}.tar", fields=fields)
    assert {name: (c.dtype, c.shape) for name, c in manifest.columns.items()} == {
        "image": ("uint8", (3, 2, 3)),
        "label": ("int64", ()),
        "json_size": ("float32", ()),
        "json_of_name": ("bytes", ()),
        "json_box": ("int64", (2,)),
        "emb_npy": ("float32", (2, 2)),
    }
    assert rows["image"][:, 0, 0, 0].tolist() == [1, 2, 3] and (rows["image"][:, 2] == 255).all()
    assert rows["label"].tolist() == [0, 1, 0] and manifest.info["classes"] == ["cat", "dog"]
    assert rows["json_size"].tolist() == [0.5, 1, 1.5] and rows["json_of_name"] == [b"n1", b"n2", b"n3"]
    assert rows["json_box"].tolist() == [[1, 1], [2, 1], [3, 1]] and rows["emb_npy"][2].tolist() == [[3, 3], [3, 3]]
    assert manifest.preparation["label"]["classes"] == ["cat", "dog"]
    assert manifest.preparation["image"]["kind"] == "picture" and manifest.preparation["image"]["size"] == [2, 3]
    assert manifest.info["key"] == "the first dot behind the last slash parts key and field"
    told = "\n".join(manifest.info["notes"])
    assert "a.b/0001.emb.npy: the key is a.b/0001, the field emb.npy" in told
    assert "1 files that have no key and field were left out" in told and "a.b/README" in told


def test_names_sizes_test_shards_and_gzip(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", sample(1))
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(tar(tmp_path / "t", sample(7)).read_bytes()))
    (tmp_path / "t.tgz").write_bytes((tmp_path / "t.tar.gz").read_bytes())
    for test in ("t.tar.gz", "t.tgz"):
        options = {"fields": "png,cls", "names": "x,y", "size": "4x4", "channels": "1", "test_path": tmp_path / test}
        _, manifest = made(tmp_path, path=tmp_path / "*.tar", **options)
        assert manifest.columns["x"].shape == (1, 4, 4) and manifest.preparation["y"]["classes"] == ["cat"]
        assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 1, "test": 1}
    tar(tmp_path / "t", sample(7, "cow"))
    with pytest.raises(InputError, match=r"t, sample a.b/0007: the class 'cow' is none of the training samples"):
        made(tmp_path, path=tmp_path / "a.tar", fields="png,cls", test_path=tmp_path / "t")


def test_what_parts_key_and_field() -> None:
    assert split_name("a.b/c.d.PNG") == ("a.b/c", "d.png") and split_name("a.b/c.d.PNG", "last") == ("a.b/c.d", "png")
    for name in ("a.b/c", "a/.png", "a/._x.png"[:7]):
        assert split_name(name) == ("", ""), name


def test_braces_and_patterns(tmp_path: Path) -> None:
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    assert expand("s3://b/{0..1}.tar") == ["s3://b/0.tar", "s3://b/1.tar"]
    with pytest.raises(InputError, match=r"no file is named"):
        expand(str(tmp_path / "*.tar"))


def test_a_last_dot_for_names_with_dots(tmp_path: Path) -> None:
    files = [(f"img.{i}.{ending}", png(i) if ending == "png" else b"5") for i in (1, 2) for ending in ("png", "cls")]
    tar(tmp_path / "s.tar", files)
    rows, manifest = made(tmp_path, path=tmp_path / "s.tar", key="last")
    assert rows["image"].shape == (2, 3, 2, 3) and manifest.info["classes"] == ["5"]


def test_half_samples(tmp_path: Path) -> None:
    half = [*sample(1), *sample(2)[:1], *sample(3)]
    assert "s.tar, sample a.b/0002: the sample has no field 'cls'" in refused(tmp_path, half, fields="png,cls")
    pair = [("1.png", png(1)), ("1.cls", b"0"), ("2.png", png(2)), ("3.png", png(3)), ("3.cls", b"1")]
    assert "s.tar, sample 2: the sample lacks cls" in refused(tmp_path, pair)
    assert "s.tar, sample 2: the sample has also txt" in refused(
        tmp_path, [*pair[:2], ("2.png", b""), ("2.cls", b"0"), ("2.txt", b"")]
    )
    apart = [("1.png", png(1)), ("2.png", png(2)), ("1.cls", b"0"), ("2.cls", b"1")]
    assert "sample 1: the files of the sample do not stand together" in refused(tmp_path, apart, fields="png")
    assert "sample 1: the sample has the field png twice" in refused(tmp_path, [pair[0], ("1.PNG", b"")])


def test_a_shard_that_was_cut_or_damaged(tmp_path: Path) -> None:
    whole = tar(
        tmp_path / "s.tar", [("1.png", png(1)), ("1.cls", b"0"), ("2.png", png(2)), ("2.cls", b"1")]
    ).read_bytes()
    assert len(list(members(str(tmp_path / "s.tar")))) == 4
    torn = {
        "in a file": whole[: 512 * 2 + 60],
        "between two samples": whole[: 512 * 4],
        "before the end": whole[: 512 * 8],
        "in a header": whole[: 512 * 4 + 100],
    }
    damaged = bytearray(whole)
    damaged[512 * 4 + 150] ^= 1  # the checksum of the third header: tarfile takes it for the end
    torn["a header"] = bytes(damaged)
    for what, content in torn.items():
        (tmp_path / "s.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"s\.tar is damaged or was cut"):
            made(tmp_path, path=tmp_path / "s.tar")
        assert not (tmp_path / "d").exists(), what
    (tmp_path / "s.tar").write_bytes(whole + whole)
    with pytest.raises(InputError, match=r"s\.tar goes on after its end"):
        made(tmp_path, path=tmp_path / "s.tar")
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(InputError, match=r"damaged|cut"):
        made(tmp_path, path=tmp_path / "s.tar.gz")


def test_what_else_is_refused(tmp_path: Path) -> None:
    one = ("1.png", png(1))
    assert "1.pkl: a .pkl may run code" in refused(tmp_path, [one, ("1.pkl", b"")])
    assert "1.cbor: distdl does not read .cbor" in refused(tmp_path, [one, ("1.cbor", b"")])
    assert "1.json: the field is not what .json says" in refused(tmp_path, [one, ("1.json", b"{")])
    for name, content in (("1.npz", b"PK"), ("1.txt.gz", b"no"), ("1.npy", huge_npy())):
        assert f"s.tar, {name}: the field" in refused(tmp_path, [(name, content)]), name
    packed = gzip.compress(b"7")
    files = [("1.cls.gz", packed), ("1.npz", npz(a=np.arange(2))), ("2.cls.gz", packed), ("2.npz", npz(a=np.arange(2)))]
    tar(tmp_path / "p.tar", files)
    rows, _ = made(tmp_path, path=tmp_path / "p.tar", fields="cls.gz,npz.a")
    assert rows["cls_gz"] == [b"7", b"7"] and rows["npz_a"].tolist() == [[0, 1], [0, 1]]
    assert "json: the field holds several parts" in refused(tmp_path, [("1.json", b'{"a": 1}')])
    pickled = io.BytesIO()
    np.save(pickled, np.array([None]), allow_pickle=True)
    assert "1.npy: the field is not what .npy says" in refused(tmp_path, [("1.npy", pickled.getvalue())])
    assert "npy: the field holds the value nan" in refused(tmp_path, [("1.npy", npy(np.array([1, np.nan])))])
    unequal = [("1.npy", npy(np.zeros(2))), ("2.npy", npy(np.zeros(3)))]
    assert "sample 2, npy: the field is float64 of the shape [3], before it was float64 of the shape [2]" in refused(
        tmp_path, unequal
    )
    unequal = [one, ("2.png", png(1, (4, 4)))]
    assert "sample 2, png: the picture has 4 x 4 pixels, the first one 2 x 3" in refused(tmp_path, unequal)
    assert "sample 1, png is not a picture that can be read" in refused(tmp_path, [("1.png", b"no")])
    assert "has no field 'jpg'" in refused(tmp_path, [one], fields="jpg")
    assert "names= has 2 names for 1 fields" in refused(tmp_path, [one], fields="png", names="a,b")
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        archive.addfile(link)
    with pytest.raises(InputError, match=r"1\.png is a link to 0\.png"):
        made(tmp_path, path=tmp_path / "l.tar")
    with pytest.raises(InputError, match=r"there is no file .*s-3\.tar"):
        made(tmp_path, path=tmp_path / "s-{3..4}.tar")


def test_shards_that_the_library_wrote(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    with wds.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=2, verbose=0) as sink:
        for i in range(5):
            picture = np.full((2, 3, 3), i, np.uint8)
            values = {
                "__key__": f"{i:03}",
                "png": picture,
                "cls": i % 2 + 1,
                "npy": np.arange(3) + i,
                "json": {"a": i},
                "txt": f"é{i}".encode(),
            }
            sink.write(values)
    rows, manifest = made(tmp_path, path=tmp_path / "s-{000000..000002}.tar", fields="png,cls,npy,json.a,txt")
    assert rows["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and rows["label"].tolist() == [0, 1, 0, 1, 0]
    assert manifest.info["classes"] == ["1", "2"] and rows["npy"][4].tolist() == [4, 5, 6]
    assert rows["json_a"].tolist() == [0, 1, 2, 3, 4] and rows["txt"][1].decode() == "é1"


def test_samples_are_shared_out_by_a_field(tmp_path: Path) -> None:
    told = [{"x": i, "who": f"p{i % 5}", "part": "test" if i < 3 else "train"} for i in range(20)]
    samples = [(f"{i}.json", json.dumps(one).encode()) for i, one in enumerate(told)]
    tar(tmp_path / "s.tar", samples)
    options = {"path": tmp_path / "s.tar", "test_fraction": 0.4}
    _, manifest = made(tmp_path, fields="json.x,json.who", split_group="json_who", **options)
    assert list(manifest.columns) == ["json_x"]
    held_out = Dataset(tmp_path / "d", "test").gather(np.arange(manifest.splits["test"].rows))["json_x"]
    assert len({*held_out % 5}) == len(held_out) / 4 > 0
    _, manifest = made(tmp_path, fields="json.x,json.part", split_column="json_part", **options)
    assert Dataset(tmp_path / "d", "test").gather(np.arange(3))["json_x"].tolist() == [0, 1, 2]
