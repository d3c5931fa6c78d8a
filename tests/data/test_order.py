"""The sample order: pinned values, a bijection, spread like a random one."""

from __future__ import annotations

import numpy as np
import pytest

from distdl.data.order import Order
from distdl.errors import InputError

GOLDEN = {  # never change these: a checkpoint holds only a position in this order
    (10, 0): [6, 9, 4, 1, 6, 0, 9, 5],
    (1000, 1): [900, 906, 894, 278, 745, 461, 340, 189],
    (100_000, 1): [11145, 30699, 11313, 79124, 44465, 21165, 92672, 8012],
    (5_000_000_000, 7): [2385897846, 4813781096, 656797496, 2041975945, 3271288571, 1080189097, 2943296180, 803435286],
}


@pytest.mark.parametrize(("rows", "seed"), GOLDEN)
def test_values_never_change(rows: int, seed: int) -> None:
    order = Order(rows, seed, "fingerprint")
    assert [*order.indices(0, 0, 4), *order.indices(3, rows - 4, 4)] == GOLDEN[rows, seed]


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 1000, 65_535, 65_536, 65_537, 100_003])
def test_every_epoch_is_a_permutation_and_epochs_differ(rows: int) -> None:
    order = Order(rows, 3)
    epochs = [order.indices(epoch, 0, rows) for epoch in range(3)]
    for epoch in epochs:
        assert (np.bincount(epoch, minlength=rows) == 1).all()
    if rows > 3:
        assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


@pytest.mark.parametrize("rows", [5, 1000, 70_000])
def test_random_access_equals_the_whole_epoch(rows: int) -> None:
    order = Order(rows, 3)
    whole = order.indices(4, 0, rows)
    for start, count in ((0, 1), (rows // 2, rows - rows // 2), (rows - 1, 1), (3, 0)):
        assert (Order(rows, 3).indices(4, start, count) == whole[start : start + count]).all()


@pytest.mark.parametrize("rows", [1, 4, 1000, 70_000])
def test_a_slice_of_the_stream_straddles_epochs(rows: int) -> None:
    order = Order(rows, 9)
    expected = np.concatenate([order.indices(epoch, 0, rows) for epoch in range(12 if rows < 10 else 3)])
    start = rows - 1
    assert (order.stream_indices(start, len(expected) - start) == expected[start:]).all()


def test_more_rows_than_32_bits() -> None:
    rows = (1 << 40) + 12_345
    found = Order(rows, 1).indices(0, 10**11, 20_000)
    assert len(np.unique(found)) == 20_000 and found.min() >= 0 and found.max() < rows
    assert abs(found.mean() / rows - 0.5) < 0.02


def test_refusals() -> None:
    with pytest.raises(InputError, match="1 to"):
        Order((1 << 62) + 1, 0)
    with pytest.raises(InputError, match="0"):
        Order(0, 0)
    with pytest.raises(InputError, match="global, none"):
        Order(5, 0, shuffle="some")
    with pytest.raises(ValueError, match="not inside"):
        Order(5, 0).indices(0, 3, 3)


def test_seed_and_fingerprint_enter_and_none_is_the_identity() -> None:
    orders = [Order(5000, seed, name).indices(0, 0, 5000) for seed, name in ((0, "a"), (1, "a"), (0, "b"))]
    for i in range(3):
        assert (orders[i] != orders[i - 1]).mean() > 0.99
    assert (Order(5000, 0, shuffle="none").stream_indices(4998, 4) == [4998, 4999, 0, 1]).all()


@pytest.mark.parametrize("rows", [48_828, 200_000])
def test_looks_like_a_uniform_shuffle(rows: int) -> None:
    """Position against value in a 50 x 50 table, rising pairs, neighbours, fixed points."""
    for epoch in range(2):
        order = Order(rows, 5).indices(epoch, 0, rows)
        cells = np.histogram2d(np.arange(rows), order, bins=50)[0]
        chi2_per_degree = ((cells - rows / 2500) ** 2 / (rows / 2500)).sum() / 49**2
        assert 0.85 < chi2_per_degree < 1.15  # its standard deviation is 0.03
        assert abs((np.diff(order) > 0).mean() - 0.5) < 0.01
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
        assert (order == np.arange(rows)).sum() < 10


def test_tiny_sets_reach_every_permutation_evenly() -> None:
    order = Order(3, 0)
    seen = order.stream_indices(0, 18_000).reshape(-1, 3) @ np.array([9, 3, 1])
    _, counts = np.unique(seen, return_counts=True)
    assert len(counts) == 6 and counts.min() > 850 and counts.max() < 1150  # 1,000 expected, deviation 29
