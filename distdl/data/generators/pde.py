"""Points of a differential equation's domain, made by formulas: what is known there, or that the equation holds.

burgers        u_t + u u_x = (0.01/pi) u_xx, u(x, 0) = -sin(pi x), u(-1, t) = u(1, t) = 0; x in -1..1, t in 0..1. A
               shock forms at x = 0. Reference: Cole and Hopf's integral, by quadrature (Basdevant et al. 1986).
schrodinger    i h_t + h_xx/2 + |h|^2 h = 0, h(x, 0) = 2 sech x, periodic; x in -5..5, t in 0..pi/2. Reference: the soliton
               of second order on the infinite line (Satsuma & Yajima 1974), which differs by 0.03 at the ends.
navier_stokes  velocities u, v in a periodic box of decaying vortices (Taylor & Green 1937), viscosity 0.01; x, y in
               0..2 pi, t in 0..10. Training points tell both, and the equation holds there, too.

The first two are drawn by a Latin hypercube, as by Raissi, Perdikaris & Karniadakis 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError, did_you_mean

VALUE, EQUATION, PERIODIC = 0, 1, 2
"""Kinds of points: values are known; the equation holds; the two ends of the domain agree."""
BURGERS_VISCOSITY, VORTEX_VISCOSITY = 0.01 / math.pi, 0.01


@dataclass(frozen=True)
class Options:
    """Options of the source `pde`."""

    equation: str
    """burgers, schrodinger or navier_stokes."""
    values: int = 100
    """Training points at the edges of the domain where the solution is known; navier_stokes: all training points."""
    collocation: int = 10_000
    """Training points inside, where the equation holds; navier_stokes: none but the former."""
    near: float = 0.0
    """Share of the collocation points of burgers within a tenth of the shock's place."""
    grid: int = 100
    """Points of the test grid along each dimension."""
    seed: int = 0
    """Seed of what is drawn."""


def prepare(options: Options) -> Prepared:
    """`x` float64 (D,), the last of them the time; `u` float64 (K,), what is known there, or zeros; `kind` int64; `weight`
    float64, by which the mean over all rows is the sum of the means over each kind, and over the test rows the squared
    error relative to the solution's squared size."""
    if options.equation not in SOURCES:
        raise InputError(f"there is no equation {options.equation!r}", fix=did_you_mean(options.equation, SOURCES))
    if not 0 <= options.near <= 1 or min(options.values, options.grid) < 2 or options.collocation < 0:
        what = f"values={options.values} collocation={options.collocation} near={options.near} grid={options.grid}"
        raise InputError(what, allowed="2 values and grid points or more, and a share near of 0 to 1")
    return weighted(*SOURCES[options.equation](options))


def weighted(train: Rows, test: Rows) -> Prepared:
    """Points with the weights that the docstring of `prepare` says."""
    counts = np.bincount(train["kind"], minlength=3)
    train["weight"] = len(train["kind"]) / counts[train["kind"]]
    test["weight"] = np.full(len(test["kind"]), 1 / np.square(test["u"]).sum(1).mean())
    columns = {name: Column(str(array.dtype), array.shape[1:]) for name, array in train.items()}
    chunks: Iterator[tuple[str, Rows]] = iter([("train", train), ("test", test)])
    return Prepared(columns, chunks)


def burgers(options: Options) -> tuple[Rows, Rows]:
    rng, half = np.random.default_rng(options.seed), options.values // 2
    start = np.stack([rng.uniform(-1, 1, half), np.zeros(half)], 1)
    ends = np.stack([rng.choice([-1.0, 1.0], options.values - half), rng.uniform(0, 1, options.values - half)], 1)
    inside = hypercube(rng, options.collocation, [(-1, 1), (0, 1)])
    inside[: round(options.near * len(inside)), 0] *= 0.1
    known = np.concatenate([-np.sin(np.pi * start[:, :1]), np.zeros((len(ends), 1))])
    grid = grid_of(options.grid, [(-1, 1), (0, 1)])
    return rows_of([(VALUE, np.concatenate([start, ends]), known), (EQUATION, inside, None)], 1), rows_of(
        [(VALUE, grid, burgers_solution(grid)[:, None])], 1
    )


def burgers_solution(x: np.ndarray) -> np.ndarray:
    """u at (N, 2) points -> (N,): -int sin(pi(x-e)) f(x-e) w / int f(x-e) w, f(y) = exp(-cos(pi y) / (2 pi nu))."""
    nodes, weights = np.polynomial.hermite.hermgauss(120)
    y = np.pi * (x[:, :1] - nodes * np.sqrt(4 * BURGERS_VISCOSITY * x[:, 1:]))  # (N, Q)
    exponent = -np.cos(y) / (2 * np.pi * BURGERS_VISCOSITY)
    f = np.exp(exponent - exponent.max(1, keepdims=True)) * weights
    return np.where(x[:, 1] > 0, -(np.sin(y) * f).sum(1) / f.sum(1), -np.sin(np.pi * x[:, 0]))


def schrodinger(options: Options) -> tuple[Rows, Rows]:
    rng, half, domain = np.random.default_rng(options.seed), options.values // 2, [(-5.0, 5.0), (0.0, math.pi / 2)]
    start = np.stack([rng.uniform(-5, 5, half), np.zeros(half)], 1)
    ends = np.stack([np.full(options.values - half, 5.0), rng.uniform(0, math.pi / 2, options.values - half)], 1)
    inside, grid = hypercube(rng, options.collocation, domain), grid_of(options.grid, domain)
    parts = [(VALUE, start, schrodinger_solution(start)), (PERIODIC, ends, None), (EQUATION, inside, None)]
    return rows_of(parts, 2), rows_of([(VALUE, grid, schrodinger_solution(grid))], 2)


def schrodinger_solution(x: np.ndarray) -> np.ndarray:
    """Real and imaginary part of h at (N, 2) points -> (N, 2)."""
    place, time = x.T
    above = 4 * np.exp(0.5j * time) * (np.cosh(3 * place) + 3 * np.exp(4j * time) * np.cosh(place))
    h = above / (np.cosh(4 * place) + 4 * np.cosh(2 * place) + 3 * np.cos(4 * time))
    return np.stack([h.real, h.imag], 1)


def navier_stokes(options: Options) -> tuple[Rows, Rows]:
    domain = [(0.0, 2 * math.pi), (0.0, 2 * math.pi), (0.0, 10.0)]
    points = hypercube(np.random.default_rng(options.seed), options.values, domain)
    grid = grid_of(options.grid, domain)
    known = [(EQUATION, points, navier_stokes_solution(points))]
    return rows_of(known, 2), rows_of([(VALUE, grid, navier_stokes_solution(grid))], 2)


def navier_stokes_solution(x: np.ndarray) -> np.ndarray:
    """u and v at (N, 3) points (x, y, t) -> (N, 2)."""
    a, b, time = x.T
    decay = np.exp(-2 * VORTEX_VISCOSITY * time)
    return np.stack([-np.cos(a) * np.sin(b) * decay, np.sin(a) * np.cos(b) * decay], 1)


def hypercube(rng: np.random.Generator, n: int, domain: list[tuple[float, float]]) -> np.ndarray:
    """(n, D) points of which each dimension's n equal parts hold one each (McKay, Beckman & Conover 1979)."""
    strata = np.stack([rng.permutation(n) for _ in domain], 1)
    low, high = np.array(domain).T
    return low + (high - low) * (strata + rng.random(strata.shape)) / max(n, 1)


def grid_of(n: int, domain: list[tuple[float, float]]) -> np.ndarray:
    """(n^D, D) points of a grid."""
    return np.stack(np.meshgrid(*(np.linspace(a, b, n) for a, b in domain), indexing="ij"), -1).reshape(-1, len(domain))


def rows_of(parts: Sequence[tuple[int, np.ndarray, np.ndarray | None]], outputs: int) -> Rows:
    """Rows of (kind, points, what is known there)."""
    known = [np.zeros((len(x), outputs)) if u is None else u for _, x, u in parts]
    kinds = [np.full(len(x), kind, np.int64) for kind, x, _ in parts]
    return {"x": np.concatenate([x for _, x, _ in parts]), "u": np.concatenate(known), "kind": np.concatenate(kinds)}


SOURCES = {"burgers": burgers, "schrodinger": schrodinger, "navier_stokes": navier_stokes}
