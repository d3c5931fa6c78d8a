"""Balanced draws: every class equally often, every row of a class equally often, on any layout and after any restart."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from distdl.data.balance import BalancedOrder, Labels
from distdl.data.read import Dataset
from distdl.data.source import BatchSource
from distdl.errors import InputError
from tests.small import written

LABEL = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, -100], [150, 41, 7, 5])).astype("i8")
BALANCED = Labels(balanced="label")


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(written(tmp_path / "set", {"x": np.arange(len(LABEL), dtype="f4"), "label": LABEL}), "train")


def make(data: Dataset, world: int = 1, rank: int = 0, accumulate: int = 1, **more: object) -> BatchSource:
    settings: dict = {"seed": 4, "threads": 0, "labels": BALANCED, "global_batch": 16, **more}
    micro = settings["global_batch"] // world // accumulate
    return BatchSource(data, micro_batch=micro, accumulate=accumulate, rank=rank, world=world, **settings)


def ids(source: BatchSource, batches: int) -> list[int]:
    return torch.cat([next(source)["id"] for _ in range(batches)]).tolist()


def drawn(order: BalancedOrder, epochs: int) -> np.ndarray:
    """(epochs, rows) row numbers."""
    return np.stack([order.at(np.full(order.rows, e), np.arange(order.rows)) for e in range(epochs)])


def test_an_epoch_has_every_class_equally_often_and_no_row_without_one() -> None:
    order = BalancedOrder(LABEL, seed=1, fingerprint="f")
    for epoch in drawn(order, 6):
        rows = np.bincount(LABEL[epoch], minlength=4)
        assert sorted(rows.tolist()) == [0, 67, 68, 68] and not rows[2]  # of 203 draws
    blocks = LABEL[drawn(order, 6)].reshape(-1, 3)
    assert (np.sort(blocks) == [0, 1, 3]).all(), "any three in a row, over the ends of epochs, too"
    assert len({tuple(block) for block in blocks.tolist()}) == 6, "in every order"


def test_the_rows_of_a_class_take_turns_over_the_epochs() -> None:
    times = np.bincount(drawn(BalancedOrder(LABEL, seed=1, fingerprint="f"), 7).reshape(-1), minlength=len(LABEL))
    for label in (0, 1, 3):
        of_class = times[label == LABEL]
        assert of_class.max() - of_class.min() <= 1, label
    assert not times[LABEL < 0].any()


def test_the_order_is_another_for_another_seed_epoch_and_data_set() -> None:
    first = drawn(BalancedOrder(LABEL, 1, "f"), 2)
    assert (first[0] != first[1]).any()
    assert (first[0] != drawn(BalancedOrder(LABEL, 2, "f"), 1)[0]).any()
    assert (first[0] != drawn(BalancedOrder(LABEL, 1, "g"), 1)[0]).any()


def test_the_order_never_changes() -> None:
    """A checkpoint stores a position only."""
    order = BalancedOrder(np.arange(1000) % 7 % 3, seed=3, fingerprint="f00d")
    assert order.at(np.array([0, 0, 0, 5, 5, 900]), np.array([0, 1, 999, 0, 999, 500])).tolist() == PINNED


PINNED = [519, 233, 403, 33, 9, 292]


def test_no_layout_changes_the_samples_of_a_step(data: Dataset) -> None:
    for last_batch in ("wrap", "drop", "pad"):
        expected = np.array(ids(make(data, last_batch=last_batch), 40)).reshape(40, 16)
        for world, accumulate, threads in ((2, 1, 0), (2, 4, 1), (4, 2, 0)):
            parts = [
                np.array(ids(make(data, world, r, accumulate, last_batch=last_batch, threads=threads), 40 * accumulate))
                for r in range(world)
            ]
            assert (np.concatenate([p.reshape(40, -1) for p in parts], axis=1) == expected).all()


def test_a_stream_goes_on_where_it_was_on_another_number_of_ranks(data: Dataset) -> None:
    whole = ids(make(data), 30)
    first = make(data, accumulate=2)
    ids(first, 2 * 17)
    state = first.state_dict()
    second = [make(data, world=2, rank=r) for r in range(2)]
    for source in second:
        source.load_state_dict(state)
    assert list(itertools.chain(*(ids(s, 1) for _ in range(13) for s in second))) == whole[17 * 16 :]


def test_a_state_of_other_draws_is_refused(data: Dataset) -> None:
    plain = make(data, labels=Labels())
    assert "balanced" not in plain.state_dict(), "as checkpoints have always had it"
    with pytest.raises(InputError, match="saved with balanced None, this run has 'label'"):
        make(data).load_state_dict(plain.state_dict())
    with pytest.raises(InputError, match="saved with balanced 'label', this run has None"):
        plain.load_state_dict(make(data).state_dict())


def test_what_cannot_be_balanced_is_refused(data: Dataset) -> None:
    with pytest.raises(InputError, match="balanced draws are mixed, and shuffle is 'none'"):
        make(data, shuffle="none")
    with pytest.raises(InputError, match="no row has a label"):
        BalancedOrder(np.full(9, -100), 0)


def test_a_batch_says_what_its_labels_weigh(data: Dataset) -> None:
    weights = (0.5, 2.0, 7.0, 3.0)
    labels = Labels(missing=("label",), weights={"label": weights})
    parts = [make(data, 2, r, 2, labels=labels, shuffle="none") for r in range(2)]
    for step in range(25):
        rows = np.arange(step * 16, step * 16 + 16) % len(LABEL)
        wanted = np.array([weights[c] if c >= 0 else 0.0 for c in LABEL[rows]])
        for r, k in itertools.product(range(2), range(2)):
            batch = next(parts[r])
            begin = 8 * r + 4 * k
            assert batch["label.weight"].tolist() == wanted[begin : begin + 4].tolist()
            assert batch["label.share"].tolist() == pytest.approx([wanted.mean()] * 4)
