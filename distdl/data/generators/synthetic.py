"""Small data sets that a formula makes: the tasks by which a rule is proven rather than measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Options:
    """Options of the source `synthetic`."""

    task: str
    """Which one: see TASKS in this file."""
    rows: int = 1000
    """Training rows, where the task is drawn at random."""
    test_rows: int = 200
    """Held-out rows, where the task is drawn at random."""
    length: int = 2
    """Inputs of a truth table, steps of a sequence, units of a pattern: the size of a sample."""
    seed: int = 0
    """Seed of what is drawn."""


Made = tuple[dict[str, Column], dict[str, Rows]]  # columns, and split -> rows


def prepare(options: Options) -> Prepared:
    """Columns and rows as the task says."""
    if options.task not in TASKS:
        raise InputError(f"there is no synthetic task {options.task!r}", fix=did_you_mean(options.task, TASKS))
    columns, splits = TASKS[options.task](options)
    chunks: Iterator[tuple[str, Rows]] = ((name, rows) for name, rows in splits.items())
    return Prepared(columns, chunks)


def truth_table(options: Options) -> Made:
    """Every row of a logical table of `length` inputs: `x` float32 (length,) of 0 and 1, and what follows from it, float32:
    `and`, `or`, `xor` (an odd number of ones) and `not` (of the first input); train and test are the same."""
    n = options.length
    x = ((np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1).astype(np.float32)  # (2^n, n)
    functions = {"and": x.min(1), "or": x.max(1), "xor": x.sum(1) % 2, "not": 1 - x[:, 0]}
    columns = {"x": Column("float32", (n,)), **{name: Column("float32") for name in functions}}
    return columns, {split: {"x": x, **functions} for split in ("train", "test")}


def patterns(options: Options) -> Made:
    """`rows` random patterns of `length` units: `x` float32 (length,) of +1 and -1; train and test are the same."""
    x = np.random.default_rng(options.seed).choice(np.array([-1, 1], np.float32), (options.rows, options.length))
    return {"x": Column("float32", (options.length,))}, {"train": {"x": x}, "test": {"x": x}}


def delayed_xor(options: Options) -> Made:
    """Two random bits a tick, and two ticks later their exclusive or (Williams & Zipser 1989): `x` (length + 1, 2) of 0
    and 1, and `y` (length, 1), the answers due at the ticks 2 ... length + 1. The last bits come too late to matter."""
    x = np.random.default_rng(options.seed).integers(0, 2, (options.rows + options.test_rows, options.length + 1, 2))
    y = (x[:, :-1, :1] ^ x[:, :-1, 1:]).astype(np.float32)  # (N, length, 1)
    columns = {"x": Column("float32", (options.length + 1, 2)), "y": Column("float32", (options.length, 1))}
    parts = {"train": slice(None, options.rows), "test": slice(options.rows, None)}
    return columns, {name: {"x": x[part].astype(np.float32), "y": y[part]} for name, part in parts.items()}


def mackey_glass(options: Options) -> Made:
    """Mackey & Glass 1977, x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, one value a unit of time, as x - 1: `x`
    float32 (length + 1, 1), windows one after the other, `rows` for training, then `test_rows`. `seed` shifts the start."""
    dt, tau, skipped = 0.1, 17.0, 1000 + 100 * options.seed  # units of time; the first ones lead to the attractor
    per_value, lag, windows = round(1 / dt), round(tau / dt), options.rows + options.test_rows
    n = (skipped + windows * options.length + 1) * per_value
    x = np.full(lag + n, 1.2)

    def slope(now: float, past: float) -> float:
        return 0.2 * past / (1 + past**10) - 0.1 * now

    for t in range(lag, lag + n - 1):  # Runge-Kutta, the past between two points taken as their mean
        a, b = x[t - lag], x[t - lag + 1]
        k1 = slope(x[t], a)
        k2 = slope(x[t] + dt / 2 * k1, (a + b) / 2)
        k3 = slope(x[t] + dt / 2 * k2, (a + b) / 2)
        x[t + 1] = x[t] + dt / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x[t] + dt * k3, b))
    series = x[lag + skipped * per_value :: per_value].astype(np.float32) - 1
    rows = np.lib.stride_tricks.sliding_window_view(series, options.length + 1)[:: options.length, :, None]
    return {"x": Column("float32", (options.length + 1, 1))}, {
        "train": {"x": rows[: options.rows]},
        "test": {"x": rows[options.rows : windows]},
    }


TOMITA: dict[int, tuple[tuple[tuple[int, int], ...], frozenset[int]]] = {
    # grammar -> (next state after a 0 and after a 1, of each state), accepting states; state 0 is the start
    1: (((1, 0), (1, 1)), frozenset({0})),  # 1*
    2: (((2, 1), (0, 2), (2, 2)), frozenset({0})),  # (10)*
    3: (((0, 1), (2, 0), (3, 4), (2, 1), (4, 4)), frozenset({0, 1, 3})),  # no odd run of 1s, then an odd run of 0s
    4: (((1, 0), (2, 0), (3, 0), (3, 3)), frozenset({0, 1, 2})),  # no 000
    5: (((1, 2), (0, 3), (3, 0), (2, 1)), frozenset({0})),  # 0s and 1s both even in number
    6: (((1, 2), (2, 0), (0, 1)), frozenset({0})),  # as many 1s as 0s, modulo 3
    7: (((0, 1), (2, 1), (2, 3), (4, 3), (4, 4)), frozenset({0, 1, 2, 3})),  # 0*1*0*1*
}


def tomita(options: Options, grammar: int) -> Made:
    """Strings over 0 and 1, and whether a grammar of Tomita 1982 accepts them: `tokens` uint8 (3 * length,), filled up
    with 2 at the end, `length` and `label` int64. Training holds all strings of up to `length` symbols; the test split
    holds longer ones, of up to three times as many, half of them accepted, each half drawn uniformly of its length."""
    short, longest = options.length, 3 * options.length
    table, accepting = TOMITA[grammar]
    rng = np.random.default_rng(options.seed)
    strings = [[i >> k & 1 for k in reversed(range(n))] for n in range(short + 1) for i in range(2**n)]
    halves = [accepting, frozenset(range(len(table))) - accepting]
    drawn = [_string(rng, table, halves[i % 2], short + 1, longest) for i in range(options.test_rows)]

    def rows(strings: list[list[int]]) -> Rows:
        tokens = np.full((len(strings), longest), 2, np.uint8)
        label = np.zeros(len(strings), np.int64)
        for i, string in enumerate(strings):
            tokens[i, : len(string)] = string
            state = 0
            for symbol in string:
                state = table[state][symbol]
            label[i] = state in accepting
        return {"tokens": tokens, "length": np.array([len(s) for s in strings], np.int64), "label": label}

    columns = {"tokens": Column("uint8", (longest,)), "length": Column("int64"), "label": Column("int64")}
    return columns, {"train": rows(strings), "test": rows(drawn)}


def _string(
    rng: np.random.Generator, table: tuple[tuple[int, int], ...], ends: frozenset[int], shortest: int, longest: int
) -> list[int]:
    """A string that leads from state 0 into one of `ends`: its length uniform where there is such a string, then it."""
    ways = [[int(state in ends) for state in range(len(table))]]  # ways[n][state]: strings of n symbols into `ends`
    for _ in range(longest):
        ways.append([ways[-1][zero] + ways[-1][one] for zero, one in table])
    n = int(rng.choice([n for n in range(shortest, longest + 1) if ways[n][0]]))
    state, string = 0, []
    for left in range(n - 1, -1, -1):
        zero, one = (ways[left][following] for following in table[state])
        string.append(int(rng.random() * (zero + one) >= zero))
        state = table[state][string[-1]]
    return string


def bars_and_stripes(options: Options) -> Made:
    """Every picture of `length` x `length` whose rows, or whose columns, are each all 0 or all 1 (MacKay 2003, ch. 43):
    `x` float32 (length * length,), 2 * 2^length - 2 rows; train and test are the same."""
    n = options.length
    bits = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float32)  # (2^n, n)
    stripes = np.repeat(bits[:, :, None], n, axis=2)  # (2^n, n, n)
    bars = stripes.transpose(0, 2, 1)[1:-1]  # the empty and the full picture are there already
    x = np.concatenate([stripes, bars]).reshape(-1, n * n)
    return {"x": Column("float32", (n * n,))}, {"train": {"x": x}, "test": {"x": x}}


def episodes(options: Options) -> Made:
    """Episodes of an environment: `seed` int64, from which each of them starts; none is both in train and in test."""
    seeds = np.random.default_rng(options.seed).choice(2**31, options.rows + options.test_rows, replace=False)
    return {"seed": Column("int64")}, {
        "train": {"seed": seeds[: options.rows]},
        "test": {"seed": seeds[options.rows :]},
    }


def blobs(options: Options) -> Made:
    """Discs that may touch, on uneven ground and under noise, and which pixels are theirs: `image` uint8 (1, length,
    length), `mask` uint8 and `border` float32 (length, length), see the source `segmentation`."""
    from distdl.data.corpora.segmentation import borders

    rng, n = np.random.default_rng(options.seed), options.length
    if n < 16:
        raise InputError(f"length is {n}", allowed="at least 16 pixels, so that there is room for discs")
    place = np.indices((n, n))

    def rows(count: int) -> Rows:
        image, mask = np.zeros((count, 1, n, n), np.uint8), np.zeros((count, n, n), np.uint8)
        for i in range(count):
            taken = np.zeros((n, n), bool)
            for _ in range(rng.integers(6, 10)):
                y, x, radius = *rng.uniform(0, n, 2), rng.uniform(n / 12, n / 6)
                distance = np.hypot(place[0] - y, place[1] - x)
                mask[i] |= (distance < radius) & ~taken
                taken |= distance < radius + 1.5  # a later disc keeps its distance
            ground = 90 + rng.uniform(-30, 30, 2) @ (place.reshape(2, -1) / n)
            pixels = ground.reshape(n, n) + 50 * mask[i] + rng.normal(0, 25, (n, n))
            image[i, 0] = np.clip(pixels, 0, 255)
        return {"image": image, "mask": mask, "border": np.stack([borders(m, sigma=2.0) for m in mask])}

    columns = {"image": Column("uint8", (1, n, n)), "mask": Column("uint8", (n, n))}
    columns["border"] = Column("float32", (n, n))
    return columns, {"train": rows(options.rows), "test": rows(options.test_rows)}


def gaussian(options: Options) -> Made:
    """Draws from the standard normal distribution: `x` float32 (length,)."""
    rng, n = np.random.default_rng(options.seed), options.length
    rows = {"train": options.rows, "test": options.test_rows}
    splits = {name: {"x": rng.standard_normal((count, n), np.float32)} for name, count in rows.items()}
    return {"x": Column("float32", (n,))}, splits


TASKS: dict[str, Callable[[Options], Made]] = {
    "gaussian": gaussian,
    "truth_table": truth_table,
    "bars_and_stripes": bars_and_stripes,
    "patterns": patterns,
    "delayed_xor": delayed_xor,
    "mackey_glass": mackey_glass,
    **{f"tomita{n}": partial(tomita, grammar=n) for n in TOMITA},
    "episodes": episodes,
    "blobs": blobs,
}
