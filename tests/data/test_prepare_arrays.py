"""Files of named arrays: the same rows, labels and names of classes come out of each kind, and damage is told."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from distdl.data.formats import _hdf5, _mat5, _mat_pieces
from distdl.data.formats.mat import MatFile, open_mat
from distdl.data.manifest import Column, Manifest, read_manifest
from distdl.data.prepare import parse_options, prepare_dataset, source_module
from distdl.data.read import Dataset
from distdl.errors import InputError
from tests.data import mat73

N = 5000  # more than one piece
RNG = np.random.default_rng(0)
X, NUMBERS = RNG.random((N, 2, 3)), RNG.integers(0, 3, N)
NAMES = ["10", "2", "9"]
WORDS = np.array(NAMES)[NUMBERS]
IN_ORDER = ["2", "9", "10"]


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path.with_name(path.name + ".npz")


def npy(path: Path, **arrays: Any) -> Path:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", np.asarray(array))
    return path


def hdf5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            array = np.asarray(array)
            dtype = h5py.string_dtype() if array.dtype.kind == "U" else array.dtype
            file.create_dataset(name, data=array.astype(dtype), chunks=(min(700, len(array)), *array.shape[1:]))
    return path


def mat5(path: Path, **arrays: Any) -> Path:
    """As MATLAB has them: numbers as double, columns, and cell arrays of text."""

    def cells(array: Any) -> Any:
        array = np.asarray(array)
        return array.astype(object)[:, None] if array.dtype.kind == "U" else array.astype(float)

    scipy.io.savemat(path, {n: cells(a) for n, a in arrays.items()}, oned_as="column", appendmat=False)
    return path


def mat7_3(path: Path, **arrays: Any) -> Path:
    def cells(array: Any) -> Any:
        array = np.asarray(array)
        if array.dtype.kind == "U":
            return tuple(array.tolist())
        return array.astype(float)[:, None] if array.ndim == 1 else array.astype(float)

    return mat73.write(path, **{n: cells(a) for n, a in arrays.items()})


KINDS: dict[str, tuple[str, Callable[..., Path]]] = {
    "npz": ("npz", npz),
    "npy": ("npz", npy),
    "hdf5": ("hdf5", hdf5),
    "mat5": ("mat", mat5),
    "mat73": ("mat", mat7_3),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def prepared(kind: str, folder: Path, options: dict[str, Any] | None = None, **arrays: Any) -> Manifest:
    """A file of that kind, and the data set `d` of it."""
    source, write = KINDS[kind]
    (folder / "d").exists() and (folder / "d").rename(folder / f"d{len(list(folder.iterdir()))}")
    path = write(folder / f"a{len(list(folder.iterdir()))}", **arrays)
    given = {"path": path, "columns": "x,label", "train": "x,y", "test_fraction": 0}
    return prepare_dataset(source, folder / "d", given | (options or {}))


def rows(folder: Path, split: str = "train") -> dict[str, Any]:
    data = Dataset(folder / "d", split)
    return {name: np.asarray(values) for name, values in data.gather(np.arange(data.rows)).items()}


@each_kind
def test_numbers_and_their_labels(tmp_path: Path, kind: str) -> None:
    manifest = prepared(kind, tmp_path, x=X, y=NUMBERS)
    assert manifest.columns == {"x": Column("float32", (2, 3)), "label": Column("int64")}
    split = {"by": "rows", "seed": 0, "test_fraction": manifest.options["test_fraction"], "validation_fraction": 0.0}
    assert manifest.info == {"split": split} and manifest.preparation == {}
    got = rows(tmp_path)
    assert (got["x"] == X.astype(np.float32)).all() and (got["label"] == NUMBERS).all()


@each_kind
def test_labels_that_are_names(tmp_path: Path, kind: str) -> None:
    """Numbers as text stand in the order of numbers; the names are kept."""
    count = 300  # each cell of MATLAB's is an object of its own
    manifest = prepared(kind, tmp_path, {"test_fraction": 0.2}, x=X[:count], y=WORDS[:count])
    assert manifest.info["classes"] == IN_ORDER
    assert read_manifest(tmp_path / "d").preparation == {"label": {"kind": "class", "version": 1, "classes": IN_ORDER}}
    told = {x.tobytes(): WORDS[i] for i, x in enumerate(X.astype(np.float32))}
    for split in ("train", "test"):
        got = rows(tmp_path, split)
        assert [told[x.tobytes()] for x in got["x"]] == [IN_ORDER[label] for label in got["label"]]


@each_kind
def test_names_of_the_classes_in_an_array_of_their_own(tmp_path: Path, kind: str) -> None:
    """In the order of the numbers, whatever that is; a number that no name has is refused with its row."""
    options = {"classes": "names", "first_class": 1}
    manifest = prepared(kind, tmp_path, options, x=X[:90], y=NUMBERS[:90] + 1, names=NAMES)
    assert manifest.info["classes"] == NAMES and manifest.columns["label"] == Column("int64")
    assert (rows(tmp_path)["label"] == NUMBERS[:90]).all()
    y = np.where(np.arange(90) == 70, -100, NUMBERS[:90] + 1)
    prepared(kind, tmp_path, options, x=X[:90], y=y, names=NAMES)
    assert rows(tmp_path)["label"][70] == -100  # no label stays no label
    first = int(np.argmax(NUMBERS == 2))
    with pytest.raises(
        InputError,
        match=rf"'y', row {first}: the label is 3, .* of the 3 classes\n.*0 \(10\) to 2 \(9\)\n.*first_class=1",
    ):
        prepared(kind, tmp_path, {"classes": "names"}, x=X[:90], y=NUMBERS[:90] + 1, names=NAMES)


@each_kind
def test_a_split_of_its_own(tmp_path: Path, kind: str) -> None:
    options = {"train": "x,y", "test": "tx,ty", "columns": "x,y", "scale": 2, "offset": -1}
    tx, ty = X[:7] * 3, np.linspace(-1, 1, 7)
    manifest = prepared(kind, tmp_path, options, x=X, y=X[:, 0, 0], tx=tx, ty=ty)
    assert manifest.columns == {"x": Column("float32", (2, 3)), "y": Column("float32")}
    got = rows(tmp_path, "test")
    assert got["x"] == pytest.approx(2 * tx - 1, abs=1e-6) and (got["y"] == ty.astype(np.float32)).all()

    _, write = KINDS[kind]
    other = write(tmp_path / "other", x=tx, y=NUMBERS[:7])
    prepared(kind, tmp_path, {"test_path": other, "test_fraction": 0.5}, x=X, y=NUMBERS)
    assert (rows(tmp_path, "test")["label"] == NUMBERS[:7]).all() and len(rows(tmp_path)["x"]) == N
    other = write(tmp_path / "third", x=tx, y=np.array(["2"] * 5 + ["new", "2"]))
    with pytest.raises(InputError, match=r"third.*'y', row 5: the label is 'new', which is none of the 3 classes"):
        prepared(kind, tmp_path, {"test_path": other}, x=X[:50], y=WORDS[:50])
    for y, test in ((NUMBERS, WORDS), (WORDS, NUMBERS)):
        other = write(tmp_path / f"{y[0]}", x=tx, y=test[:7])
        with pytest.raises(InputError, match=r"labels of the training rows \('y'\) are .*, those of the test rows"):
            prepared(kind, tmp_path, {"test_path": other}, x=X[:50], y=y[:50])


@each_kind
@pytest.mark.parametrize("order", ["C", "F"])
def test_axes(tmp_path: Path, kind: str, order: Any) -> None:
    """(height, width, channels, samples), as MATLAB's pictures are, to (samples, channels, height, width)."""
    pictures = np.asarray(RNG.random((4, 5, 3, N)), order=order)
    prepared(kind, tmp_path, {"axes": "3x2x0x1"}, x=pictures, y=NUMBERS)
    assert (rows(tmp_path)["x"] == pictures.astype(np.float32).transpose(3, 2, 0, 1)).all()
    with pytest.raises(InputError, match=r"number of rows: 'x' 4, 'y' 5,000\n.*axes="):
        prepared(kind, tmp_path, x=pictures, y=NUMBERS)
    with pytest.raises(InputError, match=r"'x' is \[4, 5, 3, 5000\], and axes=3x2\n"):
        prepared(kind, tmp_path, {"axes": "3,2"}, x=pictures, y=NUMBERS)


@each_kind
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, kind: str) -> None:
    x = X.copy()
    x[4321, 1, 2] = np.nan
    with pytest.raises(InputError, match=r"'x', row 4321 \(split '.*'\): the column 'x' has the value nan"):
        prepared(kind, tmp_path, {"test_fraction": 0.3}, x=x, y=NUMBERS)


@each_kind
def test_what_there_is_is_told(tmp_path: Path, kind: str) -> None:
    source, write = KINDS[kind]
    path = write(tmp_path / "a", x=X, labels=NUMBERS)
    for options, words in (
        ({"train": "x,label"}, r"has no array 'label'\n.*labels.*\n.*did you mean 'labels'"),
        ({"train": ""}, r"arrays .* for 2 columns.*\n.*has .*labels"),
        ({"path": tmp_path / "none"}, "there is no file"),
        ({"train": "x,x"}, "the array 'x' is the label and another column"),
        ({"train": "x,labels", "test_path": path}, "holds the same as path="),
        ({"train": "x,labels", "test": "x,labels"}, "test=x,labels has arrays of train=x,labels"),
        ({"train": "x,labels", "classes": "x"}, "'x' holds float.*\n.*names of classes"),
    ):
        with pytest.raises(InputError, match=words):
            prepare_dataset(source, tmp_path / "d", {"path": path, "columns": "x,label"} | options)


@pytest.mark.parametrize("kind", ["npz", "hdf5", "mat5", "mat73"])
def test_damage(tmp_path: Path, kind: str) -> None:
    """A file that ends early, at any of many places, and one of another kind."""
    source, write = KINDS[kind]
    path = write(tmp_path / "a", x=X[:200], y=NUMBERS[:200], z=np.arange(200.0))
    whole, options = path.read_bytes(), {"path": path, "columns": "x,label", "train": "x,y"}
    for size in (0, 1, 100, 127, 300, 513, 2000, len(whole) // 2, len(whole) - 2000):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=str(path)):
            prepare_dataset(source, tmp_path / "d", options)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    with pytest.raises(InputError, match=f"{path} is not an? .* file|is not an .npz archive"):
        prepare_dataset(source, tmp_path / "d", options)


@pytest.mark.parametrize("kind", ["npz", "npy", "hdf5", "mat5", "packed mat5", "mat73"])
@pytest.mark.parametrize("axes", ["0x1", "1x0"])
def test_memory_is_bounded(tmp_path: Path, kind: str, axes: str) -> None:
    """Of an array of 64 MB a few megabytes are held at a time, where its rows lie one after the other."""
    source, write = KINDS[kind.split()[-1]]
    x = np.full((2000, 4000), 0.5)
    if axes == "1x0":
        x = x.T
    options = {"path": write(tmp_path / "a", x=x), "columns": "x", "train": "x", "axes": axes}
    if kind == "hdf5":
        with h5py.File(options["path"], "w") as file:
            file.create_dataset("x", data=x, chunks=(100, 100))
    if kind == "packed mat5":
        scipy.io.savemat(options["path"], {"x": x}, do_compression=True, appendmat=False)
    del x
    parsed = parse_options(source, options | {"test_fraction": 0})
    count = 0
    tracemalloc.start()
    try:
        for _, piece in source_module(source).prepare(parsed).chunks:
            assert piece["x"].shape[1] == 4000 and (piece["x"] == 0.5).all()
            count += len(piece["x"])
        assert count == 2000
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("held", [1, 72, 1 << 20])
def test_arrays_of_a_mat_file_come_in_pieces_as_scipy_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, held: int
) -> None:
    monkeypatch.setattr(_mat_pieces, "HELD_BYTES", held)
    path = tmp_path / "a.mat"
    types = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]
    arrays: dict[str, Any] = {f"a{t}": RNG.integers(0, 90, (5, 3, 4)).astype(t) for t in types if t != "?"}
    arrays |= {"a?": RNG.integers(0, 2, (7, 2)).astype(bool), "one": np.float64(3), "few": np.array([[1, 2, 3]], "u1")}
    arrays |= {
        "s": {"x": RNG.normal(size=(6, 2)), "deep": {"v": np.arange(5.0)}, "words": np.array(["a", "b"], object)}
    }
    scipy.io.savemat(path, {n.replace("?", "flags"): a for n, a in arrays.items()}, do_compression=packed)
    file = open_mat(str(path))
    monkeypatch.setattr(MatFile, "_load", lambda *_: pytest.fail("SciPy reads it"))
    there = scipy.io.loadmat(path, mat_dtype=True)
    wanted = {name: value for name, value in there.items() if not name.startswith("_") and name != "s"}
    wanted |= {"s.x": there["s"]["x"].item(), "s.deep.v": there["s"]["deep"].item()["v"].item()}
    assert set(file.names()) == {*wanted, "s", "s.deep", "s.words"}
    for name, values in wanted.items():
        array = file.array(name)
        assert array is not None and array.shape == values.shape and array.dtype == values.dtype, name
        for axis in range(values.ndim):
            pieces = list(array.blocks(axis, 2))
            assert all(piece.shape[axis] == 2 for piece in pieces[:-1]) and pieces[-1].shape[axis] <= 2
            assert (np.concatenate(pieces, axis) == values).all() and pieces[0].dtype == values.dtype
    monkeypatch.undo()
    words = file.array("s.words")
    assert words is not None and [text for block in words.blocks(0, 5) for text in block.reshape(-1)] == ["a", "b"]


@pytest.mark.parametrize("kind", ["npz", "hdf5", "mat5", "mat73"])
def test_a_file_of_a_store(tmp_path: Path, kind: str) -> None:
    """A URI, which is read through pyarrow's file systems; one that is not there is told."""
    source, write = KINDS[kind]
    path = write(tmp_path / "a", x=X, y=NUMBERS)
    options = {"path": path.as_uri(), "columns": "x,label", "train": "x,y", "test_fraction": 0}
    prepare_dataset(source, tmp_path / "d", options)
    assert (rows(tmp_path)["x"] == X.astype(np.float32)).all() and (rows(tmp_path)["label"] == NUMBERS).all()
    with pytest.raises(InputError, match=r"there is no file file:.*none"):
        prepare_dataset(source, tmp_path / "e", options | {"path": (tmp_path / "none").as_uri()})


# -- npz ---------------------------------------------------------------------------------------------------------------


def test_a_folder_of_arrays_is_not_left(tmp_path: Path) -> None:
    path = npy(tmp_path / "in", x=X, y=NUMBERS)
    np.save(tmp_path / "out.npy", X)
    with pytest.raises(InputError, match=r"has no array '\.\./out'"):
        prepare_dataset("npz", tmp_path / "d", {"path": path, "train": "../out,y"})
    np.save(path / "y.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"y.npy is not a plain array"):
        prepare_dataset("npz", tmp_path / "d", {"path": path, "train": "x,y"})


def test_labels_of_keras_and_of_float(tmp_path: Path) -> None:
    """A column of one number, and whole numbers of a real type, are classes; others stay real."""
    for y, column in (
        (NUMBERS[:, None], Column("int64")),
        (NUMBERS.astype(np.float32)[:, None], Column("int64")),
        (NUMBERS / 2, Column("float32")),
    ):
        assert prepared("npz", tmp_path, x=X, y=y).columns["label"] == column
        assert (rows(tmp_path)["label"] == y.reshape(-1)).all()


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def refused(words: str, path: Path, **options: Any) -> None:
    given = {"path": path, "columns": "x,label", "train": "x,y", "test_fraction": 0} | options
    with pytest.raises(InputError, match=words):
        prepare_dataset("hdf5" if path.suffix == ".h5" else "mat", path.parent / "d", given)
    assert not (path.parent / "d").exists()


def test_what_lies_outside_an_hdf5_file_is_not_read(tmp_path: Path) -> None:
    """Links to other files, values in other files; links within it are followed."""
    hdf5(tmp_path / "other.h5", x=X, y=NUMBERS)
    X.tofile(tmp_path / "raw")
    with h5py.File(hdf5(tmp_path / "a.h5", x=X, y=NUMBERS), "a") as file:
        file["link"] = h5py.ExternalLink("other.h5", "/x")
        file["soft"] = h5py.SoftLink("/link")
        file["group"] = h5py.ExternalLink("other.h5", "/")
        file["below/inside"] = h5py.SoftLink("/below/again")
        file["below/again"] = h5py.SoftLink("real")
        file["below/real"] = X
        file["round"] = h5py.SoftLink("/round")
        file["dangling"] = h5py.SoftLink("/nothing")
        file.create_dataset("raw", X.shape, X.dtype, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        layout = h5py.VirtualLayout(X.shape, X.dtype)
        layout[...] = h5py.VirtualSource("other.h5", "x", X.shape)
        file.create_virtual_dataset("virtual", layout)
    path = tmp_path / "a.h5"
    refused(r"'link' is a link to another file, other.h5", path, train="link,y")
    refused(r"'soft' is a link to another file, other.h5", path, train="soft,y")
    refused(r"'group/x' is a link to another file", path, train="group/x,y")
    refused(r"values of 'raw' lie in another file, .*raw", path, train="raw,y")
    refused(r"values of 'virtual' lie in another file, other.h5", path, train="virtual,y")
    refused(r"'round' is a link that leads to itself", path, train="round,y")
    refused(r"has no array 'dangling'\n.*below/real float64 \[5000, 2, 3\].*link \(a link\)", path, train="dangling,y")
    refused(r"'below' is no dataset", path, train="below,y")
    prepare_dataset(
        "hdf5", tmp_path / "d", {"path": path, "columns": "x,label", "train": "/below/inside,y", "test_fraction": 0}
    )
    assert (rows(tmp_path)["x"] == X.astype(np.float32)).all()


def test_names_of_classes_in_hdf5(tmp_path: Path) -> None:
    """As an attribute, as an enumeration, as texts of one length padded with blanks; bytes stay bytes."""
    kinds = {"cat": 4, "dog": 0, "10": 1, "bird": 2}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["set/x"] = (X * 255).astype(np.uint8)
        file["set/y"] = NUMBERS.astype("<f8")
        file["set/y"].attrs["names"] = ["c", "b", "a"]
        file.create_dataset("set/enum", data=NUMBERS.astype(np.uint8), dtype=h5py.enum_dtype(kinds, "u1"))
        file["set/texts"] = WORDS.astype("S5")
        file["set/records"] = np.zeros(N, [("a", "f4"), ("b", "i4")])
        file["set/complex"] = X + 1j
    options = {"path": tmp_path / "a.h5", "columns": "x,label", "test_fraction": 0}
    for number, (train, given, names) in enumerate(
        (
            ("set/x,set/y", {"classes": "set/y@names"}, ["c", "b", "a"]),
            ("set/x,set/enum", {}, ["dog", "10", "bird", "cat"]),
            ("set/x,set/texts", {}, IN_ORDER),
        )
    ):
        (tmp_path / str(number)).mkdir()
        manifest = prepare_dataset("hdf5", tmp_path / str(number) / "d", options | {"train": train} | given)
        got = rows(tmp_path / str(number))
        assert manifest.info["classes"] == names and got["x"].dtype == np.uint8
        want = WORDS.tolist() if "texts" in train else NUMBERS.tolist()
        assert [names[label] if "texts" in train else int(label) for label in got["label"]] == want
    path = tmp_path / "a.h5"
    refused("'set/records' holds records with the fields a, b", path, train="set/records,set/y")
    refused("'set/complex' holds complex128", path, train="set/complex,set/y")
    refused("has no array 'set/y@name'", path, train="set/x,set/y", classes="set/y@name")


def test_what_was_never_written_is_not_read_as_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"] = NUMBERS
        file.create_dataset("x", X.shape, X.dtype)
        part = file.create_dataset("part", X.shape, X.dtype, chunks=(1000, 2, 3))
        part[:3500] = X[:3500]
    refused(r"'x' is \[5000, 2, 3\], and nothing was written into it", tmp_path / "a.h5")
    refused(r"'part' is .*4 of its 5 chunks were written", tmp_path / "a.h5", train="part,y")


def test_a_damaged_chunk_and_one_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"] = NUMBERS
        dataset = file.create_dataset("x", data=X, chunks=(1000, 2, 3), fletcher32=True)
        place = dataset.id.get_chunk_info(3).byte_offset
    with monkeypatch.context() as small:
        small.setattr(_hdf5, "WHOLE_BYTES", 1000)
        small.setattr(_hdf5, "HELD_BYTES", 40_000)
        refused("'x' is stored in chunks of 1,000 rows", tmp_path / "a.h5")
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[place + 5] ^= 1
    (tmp_path / "a.h5").write_bytes(content)
    refused("'x' cannot be read", tmp_path / "a.h5")


# -- MATLAB ------------------------------------------------------------------------------------------------------------


def test_structures_and_rows_of_text(tmp_path: Path) -> None:
    """A field by its dotted path; names as a block of characters, padded; the numbers of rows, not of columns."""
    flat = X.reshape(N, 6)
    content = {"data": {"in": {"x": flat}, "y": NUMBERS[None].astype(float)}, "names": ["cat ", "bird", "ox  "]}
    scipy.io.savemat(tmp_path / "5.mat", content | {"names": np.array(content["names"])})
    mat73.write(tmp_path / "73.mat", **content)
    for name in ("5", "73"):
        (tmp_path / name).mkdir()
        options = {
            "path": tmp_path / f"{name}.mat",
            "columns": "x,label",
            "train": "data.in.x,data.y",
            "classes": "names",
        }
        manifest = prepare_dataset("mat", tmp_path / name / "d", options | {"test_fraction": 0})
        assert manifest.info["classes"] == ["cat", "bird", "ox"]
        got = rows(tmp_path / name)
        assert (got["x"] == flat.astype(np.float32)).all() and (got["label"] == NUMBERS).all()
        refused(r"has no array 'data.z'\n.*data.in.x", tmp_path / f"{name}.mat", train="data.z,data.y")
        refused(r"'data.in' is a MATLAB struct", tmp_path / f"{name}.mat", train="data.in,data.y")


def test_version_4(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"x": X[:, 0], "y": NUMBERS}, format="4", oned_as="row")
    prepare_dataset(
        "mat", tmp_path / "d", {"path": tmp_path / "a.mat", "columns": "x,label", "train": "x,y", "test_fraction": 0}
    )
    assert (rows(tmp_path)["x"] == X[:, 0].astype(np.float32)).all() and (rows(tmp_path)["label"] == NUMBERS).all()


def test_the_type_is_matlabs_not_that_of_the_bytes(tmp_path: Path) -> None:
    """MATLAB stores a double of whole numbers as bytes where these hold it; it stays a double, and is no picture."""

    def element(kind: int, content: bytes) -> bytes:
        return np.array([kind, len(content)], "<u4").tobytes() + content + bytes(-len(content) % 8)

    def matrix(name: bytes, values: np.ndarray) -> bytes:
        flags = element(6, np.array([6, 0], "<u4").tobytes())  # class 6: double
        sizes = element(5, np.array(values.shape, "<i4").tobytes())
        return element(14, flags + sizes + element(1, name) + element(2, values.astype(np.uint8).tobytes(order="F")))

    header = b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + b"\x00\x01IM"
    x = RNG.integers(0, 256, (20, 3))
    (tmp_path / "a.mat").write_bytes(header + matrix(b"x", x) + matrix(b"y", NUMBERS[:20, None]))
    options = {"path": tmp_path / "a.mat", "columns": "x,label", "train": "x,y", "test_fraction": 0}
    assert prepare_dataset("mat", tmp_path / "d", options).columns == {
        "x": Column("float32", (3,)),
        "label": Column("int64"),
    }
    assert (rows(tmp_path)["x"] == x).all()


def test_sparse_logical_and_what_is_no_array(tmp_path: Path) -> None:
    sparse = scipy.sparse.random(N, 9, 0.3, "csc", rng=np.random.default_rng(1))
    flags = NUMBERS > 1
    scipy.io.savemat(
        tmp_path / "5.mat", {"x": sparse, "y": flags, "cells": np.array([[1, "a"]], object), "z": X[0] + 1j}
    )
    mat73.write(tmp_path / "73.mat", y=flags, cells=("a", "b"), z={"real": X})
    with h5py.File(tmp_path / "73.mat", "a") as file:
        group = file.create_group("x")
        group.attrs["MATLAB_class"], group.attrs["MATLAB_sparse"] = np.bytes_("double"), np.uint64(N)
        group["data"], group["ir"], group["jc"] = sparse.data, sparse.indices.astype("u8"), sparse.indptr.astype("u8")
        objects = file.create_dataset("object", data=np.zeros((1, 6), "u4"))
        objects.attrs["MATLAB_class"], objects.attrs["MATLAB_object_decode"] = np.bytes_("table"), np.int32(3)
    for name in ("5", "73"):
        (tmp_path / name).mkdir()
        options = {"path": tmp_path / f"{name}.mat", "columns": "x,label", "train": "x,y", "test_fraction": 0}
        prepare_dataset("mat", tmp_path / name / "d", options)
        got = rows(tmp_path / name)
        assert (got["x"] == sparse.toarray().astype(np.float32)).all() and (got["label"] == flags).all()
    refused("'cells' is a MATLAB cell array of other things than text", tmp_path / "5.mat", train="x,cells")
    refused("'z' holds complex128", tmp_path / "5.mat", train="z,y")
    refused("'object' is a MATLAB object of the class table", tmp_path / "73.mat", train="object,y")
    refused("'z' is a MATLAB struct", tmp_path / "73.mat", train="z,y")


@pytest.mark.parametrize("later_bytes", [1 << 16, 0])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_mat_file_that_contradicts_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool, later_bytes: int
) -> None:
    """It is told before SciPy, which trusts the file's sizes, reads it; the checksum of what is compressed counts, too, of
    large numbers when they are read."""
    monkeypatch.setattr(_mat5, "LATER_BYTES", later_bytes)
    path = tmp_path / "a.mat"
    flat = X.reshape(N, 6)[:40]
    scipy.io.savemat(path, {"x": flat, "y": NUMBERS[:40], "c": {"a": np.arange(3)}}, do_compression=compressed)
    whole = path.read_bytes()
    if compressed:
        changes = {whole.index(b"\x78\x9c") + 30: 0x55, len(whole) - 2: whole[-2] ^ 1}
    else:
        changes = {whole.index(np.array([40, 6], "<i4").tobytes()): 41, 128 + 4: 0}
    for place, value in changes.items():
        damaged = bytearray(whole)
        damaged[place] = value
        path.write_bytes(damaged)
        refused(
            f"{path} is not a .mat file that can be read: the (variable|element) at byte [0-9]+ (is damaged|has)", path
        )
    path.write_bytes(whole)
    prepare_dataset("mat", tmp_path / "d", {"path": path, "columns": "x,label", "train": "x,y", "test_fraction": 0})
    assert (rows(tmp_path)["x"] == flat.astype(np.float32)).all()
