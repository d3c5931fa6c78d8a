"""A solution of a differential equation on a grid, from a file of any variables (.npz, .npy, .mat, HDF5), as points.

    x (256,), t (100,), usol (256, 100)            axes=x,t values=usol          Burgers' equation of Raissi et al.
    x (1, 256), tt (1, 201), uu (256, 201)         axes=x,tt values=uu           Schrödinger's, complex: two numbers
    X_star (N, 2), t (200, 1), U_star (N, 2, 200)  axes=X_star,t values=U_star   a flow: an axis of scattered places

The columns are those of the source `pde`, which the family pinn reads: training points are drawn from the file, with the
equation to hold at others between them, and the split `test` is the file's grid.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distdl.data.formats._arrays import ArrayFile, find
from distdl.data.formats.hdf5 import Hdf5File
from distdl.data.formats.mat import open_mat
from distdl.data.formats.npz import NpyFolder, NpzFile
from distdl.data.generators.pde import EQUATION, PERIODIC, VALUE, hypercube, rows_of, weighted
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError

MOST_VALUES = 1 << 26
"""Numbers of a grid, 512 MiB of float64, which is held."""
MOST_POINTS = 1 << 22
"""Of the split `test`."""


@dataclass(frozen=True)
class Options:
    """Options of the source `pde_file`."""

    path: str
    """The file, or a folder of .npy files, each of which is a variable."""
    axes: tuple[str, ...] = ("x", "t")
    """Variables that hold the places along each axis of the grid, the time last. One of two dimensions (N, D) holds N
    scattered places of D coordinates."""
    values: tuple[str, ...] = ("usol",)
    """Variables that hold the solution there, one axis for each of `axes`, and one more where there are several numbers;
    complex ones are two, the real and the imaginary part."""
    known: int = 100
    """Training points where the solution is told."""
    where: str = "edges"
    """Which points these are: edges (at the first time, and at both ends of the other axes), or inside (anywhere; the
    equation holds at them, too)."""
    periodic: bool = False
    """With edges: the ends of the first axis are not told, but must agree with each other."""
    collocation: int = 10_000
    """Training points within the domain where the equation holds, and nothing is told; with inside none but the former."""
    test_every: int = 1
    """The split `test` has every so-manieth point of the grid along each axis."""
    seed: int = 0
    """Seed of what is drawn."""


def prepare(options: Options) -> Prepared:
    """`x` float64 (D,), the last of them the time; `u` float64 (K,); `kind` int64; `weight` float64: those of `pde`."""
    if (
        options.where not in ("edges", "inside")
        or options.known < 2
        or options.collocation < 0
        or options.test_every < 1
    ):
        what = f"where={options.where} known={options.known} collocation={options.collocation}"
        raise InputError(
            f"{what} test_every={options.test_every}", allowed="edges or inside, 2 or more, 0 or more, 1 or more"
        )
    if len(options.axes) < 2:
        raise InputError(f"axes={','.join(options.axes)}", allowed="two or more, the time last")
    file = _open(options.path)
    axes = [_axis(file, name) for name in options.axes]
    u = np.concatenate([_values(file, name, options.axes, axes) for name in options.values], -1)
    if not u.any():
        raise InputError(f"{options.path}: the solution is 0 everywhere", fix="check values=")
    every = (slice(None, None, options.test_every),) * len(axes)
    grid = _points(axes, np.stack(np.meshgrid(*(np.arange(len(a))[every[0]] for a in axes), indexing="ij"), -1))
    if len(grid) > MOST_POINTS:
        raise InputError(f"the grid of {options.path} has {len(grid):,} points", fix="test_every=2 or more")
    test = rows_of([(VALUE, grid, u[every].reshape(len(grid), -1))], u.shape[-1])
    return weighted(_train(options, axes, u), test)


def _open(path: str) -> ArrayFile:
    suffix = Path(path).suffix.lower()
    if suffix == ".mat":
        return open_mat(path)
    if suffix in (".h5", ".hdf5", ".he5", ".nc"):
        return Hdf5File(path)
    return NpyFolder(path) if Path(path).is_dir() else NpzFile(path)


def _read(file: ArrayFile, name: str) -> np.ndarray:
    """A whole variable, finite numbers in float64 or complex128."""
    array = find(file, name)
    if array.dtype.kind not in "biufc" or not array.shape:
        raise InputError(
            f"{file.path}: '{name}' holds {array.dtype} {list(array.shape)}", allowed="an array of numbers"
        )
    if math.prod(array.shape) > MOST_VALUES:
        raise InputError(f"{file.path}: '{name}' holds {math.prod(array.shape):,} numbers", allowed=f"{MOST_VALUES:,}")
    found = np.concatenate([*array.blocks(0, array.shape[0])])
    found = found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)
    if not np.isfinite(found).all():
        place = np.unravel_index(int((~np.isfinite(found)).argmax()), found.shape)
        raise InputError(
            f"{file.path}: '{name}' is {found[place]} at {[int(i) for i in place]}", fix="leave such points out"
        )
    return found


def _axis(file: ArrayFile, name: str) -> np.ndarray:
    """(n, 1) places along an axis, or (N, D) scattered ones."""
    found = _read(file, name)
    if max(found.shape) == found.size:  # a vector, whatever MATLAB makes of it
        found = found.reshape(-1, 1)
        steps = np.diff(found[:, 0])
        if found.size > 1 and not ((steps > 0).all() or (steps < 0).all()):
            row = int(np.argmin(steps * np.sign(steps[0]))) + 1
            what = f"{found[row, 0]:g} follows {found[row - 1, 0]:g} at {row}"
            raise InputError(
                f"{file.path}: '{name}' is no axis of a grid: {what}", allowed="numbers that rise, or fall"
            )
    if found.ndim != 2 or found.dtype.kind == "c":
        raise InputError(
            f"{file.path}: '{name}' holds {found.dtype} {list(found.shape)}", allowed="an axis (n,), or places (N, D)"
        )
    return found


def _values(file: ArrayFile, name: str, names: tuple[str, ...], axes: list[np.ndarray]) -> np.ndarray:
    """(*sizes of the axes, K). The axes of the variable may stand in another order where their sizes leave no doubt."""
    found, sizes = _read(file, name), [len(axis) for axis in axes]
    if found.dtype.kind == "c":
        found = np.stack([found.real, found.imag], -1)
    shape = list(found.shape)
    ways = [
        way
        for way in itertools.permutations(range(found.ndim), len(sizes))
        if [shape[i] for i in way] == sizes and found.ndim - len(way) <= 1
    ]
    told = ", ".join(f"{n} {size}" for n, size in zip(names, sizes))
    if not ways:
        raise InputError(
            f"{file.path}: '{name}' is {shape}, and the axes are {told}",
            allowed="one axis for each of them, and one more at most",
            fix="name the axes in axes=",
        )
    way = min(ways, key=lambda w: (list(w) != sorted(w), w))
    if list(way) != sorted(way):
        if len(ways) > 1:
            what = f"{file.path}: '{name}' is {shape}, in which the axes {told} are not told apart"
            raise InputError(what, fix="store it with the axes in the order of axes=")
        print(f"{file.path}: the axes of '{name}' are taken in the order {', '.join(map(str, way))}", file=sys.stderr)
    rest = [i for i in range(found.ndim) if i not in way]
    return found.transpose(*way, *rest).reshape(*sizes, -1)


def _points(axes: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    """The coordinates (N, D) at the places (..., axes) of a grid."""
    places = places.reshape(-1, len(axes))
    return np.concatenate([axis[places[:, i]] for i, axis in enumerate(axes)], 1)


def _train(options: Options, axes: list[np.ndarray], u: np.ndarray) -> Rows:
    rng, sizes = np.random.default_rng(options.seed), [len(axis) for axis in axes]
    domain = [(float(low), float(high)) for axis in axes for low, high in zip(axis.min(0), axis.max(0))]
    parts: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    if options.where == "inside":
        drawn = rng.choice(math.prod(sizes), min(options.known, math.prod(sizes)), replace=False)
        places = np.stack(np.unravel_index(drawn, sizes), 1)
        parts = [(EQUATION, _points(axes, places), u[tuple(places.T)])]
        return rows_of(parts, u.shape[-1])
    if any(axis.shape[1] > 1 for axis in axes):
        raise InputError("where=edges, and an axis holds scattered places, which have no edges", fix="where=inside")
    first = _drawn(rng, sizes, {len(sizes) - 1: (int(axes[-1].argmin()),)}, options.known // 2)
    if options.periodic:
        ends = hypercube(rng, options.known - options.known // 2, domain)
        ends[:, 0] = domain[0][1]
        places = first
        parts = [(PERIODIC, ends, None)]
    else:
        along = range(len(sizes) - 1)
        counts = [len(part) for part in np.array_split(np.arange(options.known - options.known // 2), len(along))]
        places = np.concatenate(
            [first, *(_drawn(rng, sizes, {axis: (0, sizes[axis] - 1)}, n) for axis, n in zip(along, counts))]
        )
    inside = hypercube(rng, options.collocation, domain)
    return rows_of([(VALUE, _points(axes, places), u[tuple(places.T)]), *parts, (EQUATION, inside, None)], u.shape[-1])


def _drawn(rng: np.random.Generator, sizes: list[int], fixed: dict[int, tuple[int, ...]], count: int) -> np.ndarray:
    """Different places of the grid of which one axis has one of the fixed values; all where there are no more."""
    choices = [np.array(fixed.get(axis, range(size))) for axis, size in enumerate(sizes)]
    every = math.prod(len(c) for c in choices)
    drawn = rng.choice(every, min(count, every), replace=False)
    return np.stack([c[i] for c, i in zip(choices, np.unravel_index(drawn, [len(c) for c in choices]))], 1)
