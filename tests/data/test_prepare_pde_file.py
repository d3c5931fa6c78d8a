"""Solutions on a grid, from files of every kind: their points and values, in the columns that the family pinn reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from distdl.data.generators import pde
from distdl.data.manifest import read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError
from tests.data import mat73

PLACES, TIMES = np.linspace(-1, 1, 21), np.linspace(0, 1, 11)
POINTS = np.stack(np.meshgrid(PLACES, TIMES, indexing="ij"), -1)
U = pde.burgers_solution(POINTS.reshape(-1, 2)).reshape(21, 11)


def rows(folder: Path, split: str) -> dict[str, np.ndarray]:
    data = Dataset(folder, split)
    return {name: np.asarray(values) for name, values in data.gather(np.arange(data.rows)).items()}


def write(kind: str, folder: Path, **variables: np.ndarray) -> Path:
    if kind == "npy":
        for name, values in variables.items():
            np.save(folder / f"{name}.npy", values)
        return folder
    path = folder / f"a.{kind.replace('73', '')}"
    if kind == "npz":
        np.savez(path, **variables)
    elif kind == "mat":
        scipy.io.savemat(path, variables, oned_as="column")
    elif kind == "mat73":
        mat73.write(path, **variables)
    else:
        with h5py.File(path, "w") as file:
            for name, values in variables.items():
                file[name] = values
    return path


def known(got: dict[str, np.ndarray], kind: int) -> np.ndarray:
    """Points and what is told there, of one kind: (N, D + K)"""
    chosen = got["kind"] == kind
    return np.concatenate([got["x"][chosen], got["u"][chosen]], 1)


@pytest.mark.parametrize("kind", ["npz", "npy", "mat", "mat73", "h5"])
def test_a_grid(tmp_path: Path, kind: str) -> None:
    """The same columns as the source `pde`; every value that is told is the file's at that point."""
    (tmp_path / "in").mkdir()
    path = write(kind, tmp_path / "in", x=PLACES, t=TIMES[None], usol=U)
    options: dict[str, Any] = {"path": path, "known": 30, "collocation": 200}
    prepare_dataset("pde_file", tmp_path / "d", options)
    prepare_dataset("pde", tmp_path / "same", {"equation": "burgers", "grid": 11})
    assert read_manifest(tmp_path / "d").columns == read_manifest(tmp_path / "same").columns
    test, train = rows(tmp_path / "d", "test"), rows(tmp_path / "d", "train")
    assert (test["x"] == POINTS.reshape(-1, 2)).all() and (test["u"][:, 0] == U.reshape(-1)).all()
    assert test["weight"] == pytest.approx(1 / np.square(U).mean())
    of_point = {tuple(point): value for point, value in zip(POINTS.reshape(-1, 2).tolist(), U.reshape(-1))}
    told = known(train, pde.VALUE)
    assert len(told) == 30 and all(of_point[x, t] == u for x, t, u in told.tolist())
    assert all(t == 0 or abs(x) == 1 for x, t, _ in told) and {x for x, t, _ in told if t > 0} == {-1, 1}
    inside = known(train, pde.EQUATION)
    assert len(inside) == 200 and (abs(inside[:, 0]) <= 1).all() and inside[:, 1].min() >= 0 and inside[:, 1].max() <= 1
    assert train["weight"] == pytest.approx(np.where(train["kind"] == pde.VALUE, 230 / 30, 230 / 200))
    prepare_dataset("pde_file", tmp_path / "e", options | {"test_every": 5, "known": 10_000})
    assert len(rows(tmp_path / "e", "test")["x"]) == 5 * 3  # and every point of the edges is told
    assert len(known(rows(tmp_path / "e", "train"), pde.VALUE)) == 21 + 2 * 11


@pytest.mark.parametrize("kind", ["npz", "mat", "h5"])
def test_complex_values_and_periodic_ends(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both parts; axes in another order are put right, and it is said."""
    values = pde.schrodinger_solution(POINTS.reshape(-1, 2)).reshape(21, 11, 2)
    variables = {"place": PLACES, "tt": TIMES, "uu": (values[..., 0] + 1j * values[..., 1]).T}
    options = {"axes": "place,tt", "values": "uu", "periodic": "true", "known": 20, "collocation": 50}
    prepare_dataset("pde_file", tmp_path / "d", options | {"path": write(kind, tmp_path, **variables)})
    assert "the axes of 'uu' are taken in the order 1, 0" in capsys.readouterr().err
    test, train = rows(tmp_path / "d", "test"), rows(tmp_path / "d", "train")
    assert (test["u"] == values.reshape(-1, 2)).all()
    assert np.bincount(train["kind"]).tolist() == [10, 50, 10]
    ends = known(train, pde.PERIODIC)
    assert (ends[:, 0] == 1).all() and len(set(ends[:, 1])) == 10 and (known(train, pde.VALUE)[:, 1] == 0).all()


def test_complex_values_of_matlab_7_3(tmp_path: Path) -> None:
    values = U + 2j * U**2
    path = mat73.write(tmp_path / "a.mat", x=PLACES, t=TIMES)
    with h5py.File(path, "a") as file:
        pairs = np.empty((11, 21), [("real", "f8"), ("imag", "f8")])
        pairs["real"], pairs["imag"] = values.real.T, values.imag.T
        file.create_dataset("usol", data=pairs).attrs["MATLAB_class"] = np.bytes_("double")
    prepare_dataset("pde_file", tmp_path / "d", {"path": path})
    got = rows(tmp_path / "d", "test")["u"]
    assert (got[:, 0] + 1j * got[:, 1] == values.reshape(-1)).all()


def test_scattered_places(tmp_path: Path) -> None:
    """As of a flow: (N, 2) places, and components between them and the times; the equation holds where it is told."""
    rng = np.random.default_rng(0)
    places, flow, pressure = rng.random((40, 2)), rng.random((40, 2, 11)), rng.random((40, 11))
    path = write("mat", tmp_path, X_star=places, t=TIMES, U_star=flow, p_star=pressure)
    options = {"path": path, "axes": "X_star,t", "values": "U_star,p_star", "known": 70}
    prepare_dataset("pde_file", tmp_path / "d", options | {"where": "inside"})
    test, train = rows(tmp_path / "d", "test"), rows(tmp_path / "d", "train")
    assert test["x"].shape == (440, 3) and test["u"].shape == (440, 3)
    of_point = {}
    for i, place in enumerate(places.tolist()):
        for j, time in enumerate(TIMES.tolist()):
            of_point[(*place, time)] = [*flow[i, :, j], pressure[i, j]]
    for got in (test, train):
        assert all(of_point[tuple(x)] == u for x, u in zip(got["x"].tolist(), got["u"].tolist()))
    assert (train["kind"] == pde.EQUATION).all() and len({tuple(x) for x in train["x"].tolist()}) == 70
    with pytest.raises(InputError, match=r"scattered places.*\n.*where=inside"):
        prepare_dataset("pde_file", tmp_path / "e", options)


def test_what_is_refused(tmp_path: Path) -> None:
    good = {"x": PLACES, "t": TIMES, "usol": U}

    def refused(words: str, change: dict[str, np.ndarray] | None = None, **options: Any) -> None:
        path = write("npz", tmp_path, **(good | (change or {})))
        with pytest.raises(InputError, match=words):
            prepare_dataset("pde_file", tmp_path / "d", {"path": path} | options)

    nan = U.copy()
    nan[3, 7] = np.nan
    refused(r"'usol' is nan at \[3, 7\]", {"usol": nan})
    refused(r"'usol' is \[21, 10\], and the axes are x 21, t 11", {"usol": U[:, :10]})
    refused("the solution is 0 everywhere", {"usol": 0 * U})
    refused(r"no array 'u'\n.*allowed: x, t, usol", values="u")
    refused(r"'x' is no axis of a grid: -0.9 follows -0.9 at 2", {"x": np.r_[-1, -0.9, PLACES[1:20]]})
    refused(r"axes=t\n", axes="t")
    refused(r"where=middle", where="middle")
    refused(r"'names' holds <U1", {"names": np.array(["a"])}, axes="x,names")
    square = {"a": np.arange(5.0), "b": np.arange(5.0), "t": TIMES, "w": np.zeros((11, 5, 5))}
    refused(
        r"'w' is \[11, 5, 5\], in which the axes a 5, b 5, t 11 are not told apart", square, axes="a,b,t", values="w"
    )


def test_the_real_burgers(tmp_path: Path, data_folder: Path) -> None:
    """The file that MATLAB wrote for Raissi et al. has Cole and Hopf's solution."""
    path = data_folder / "burgers" / "burgers_shock.mat"
    if not path.is_file():
        pytest.skip("no burgers in DISTDL_DATA")
    manifest = prepare_dataset("pde_file", tmp_path / "d", {"path": path})
    assert {name: split.rows for name, split in manifest.splits.items()} == {"test": 25_600, "train": 10_100}
    got = rows(tmp_path / "d", "test")
    assert abs(got["u"][:, 0] - pde.burgers_solution(got["x"])).max() < 1e-9
