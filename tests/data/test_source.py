"""The batch sources: what a step holds on any layout, epochs, state, threads, failures."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distdl.data.read import Dataset
from distdl.data.source import BatchSource, EvalSource
from distdl.errors import DataCorrupt, InputError

from .conftest import rows

ROWS = 203


@pytest.fixture
def data(dataset_path: Path) -> Dataset:
    return Dataset(dataset_path, "train")


def make(data: Dataset, *, world: int = 1, rank: int = 0, accumulate: int = 1, global_batch: int = 16, **more: object):
    settings: dict = {"seed": 4, "threads": 0, **more}
    return BatchSource(
        data,
        global_batch=global_batch,
        micro_batch=global_batch // world // accumulate,
        accumulate=accumulate,
        rank=rank,
        world=world,
        **settings,
    )


def take(source: BatchSource, steps: int) -> np.ndarray:
    """(steps, rows of this rank) row numbers."""
    found = [torch.cat([next(source)["id"] for _ in range(source.accumulate)]).numpy() for _ in range(steps)]
    source.close()
    return np.stack(found)


def global_steps(data: Dataset, steps: int, world: int = 1, **more: object) -> np.ndarray:
    """(steps, G) row numbers of all ranks side by side."""
    return np.concatenate([take(make(data, world=world, rank=r, **more), steps) for r in range(world)], axis=1)


def test_a_batch_is_tensors_of_the_rows_it_names(data: Dataset) -> None:
    source, expected = make(data, accumulate=2), rows(ROWS)
    for i in range(60):
        batch = next(source)
        assert list(batch) == ["image", "label", "id", "position"]
        assert batch["image"].shape == (8, 1, 3, 3) and batch["image"].dtype == torch.uint8
        assert (batch["image"].numpy() == expected["image"][batch["id"].numpy()]).all()
        assert (batch["label"] == batch["id"]).all() and batch["id"].dtype == batch["position"].dtype == torch.int64
        assert batch["position"].tolist() == list(range(8 * i, 8 * i + 8))
        batch["image"].zero_()  # a batch belongs to its consumer: nothing stored changes


@pytest.mark.parametrize("last_batch", ["wrap", "drop", "pad"])
@pytest.mark.parametrize("threads", [0, 1, 2])
def test_no_layout_changes_the_samples_of_a_step(data: Dataset, last_batch: str, threads: int) -> None:
    expected = global_steps(data, 30, last_batch=last_batch)
    for world, accumulate in ((1, 4), (2, 1), (2, 4), (4, 2), (4, 1)):
        found = global_steps(data, 30, world, accumulate=accumulate, last_batch=last_batch, threads=threads)
        assert (found == expected).all()


def test_wrap_sees_every_sample_once_an_epoch(data: Dataset) -> None:
    stream = global_steps(data, 3 * ROWS // 16 + 1, world=2).reshape(-1)
    epochs = [stream[i * ROWS : (i + 1) * ROWS] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("last_batch", ["wrap", "drop", "pad"])
def test_rows_in_quarantine_move_no_other(data: Dataset, last_batch: str) -> None:
    """On any layout, and where the row that would come instead is in quarantine, too."""
    whole = global_steps(data, 40, last_batch=last_batch)
    bad = sorted({*whole[3, :5].tolist(), 7, *take_instead(data, whole[3, 0])})
    found = {}
    for world, accumulate in ((1, 1), (2, 2), (4, 1)):
        sources = [make(data, world=world, rank=r, accumulate=accumulate, last_batch=last_batch) for r in range(world)]
        for source in sources:
            source.leave_out(bad)
        found[world] = np.concatenate([take(source, 40) for source in sources], axis=1)
    assert (found[1] == found[2]).all() and (found[1] == found[4]).all()
    out = np.isin(whole, bad)
    assert out.any() and (found[1][~out] == whole[~out]).all() and not np.isin(found[1], bad).any()
    source = make(data)
    for wrong, words in (([ROWS], f"row {ROWS}"), (range(ROWS), "all rows")):
        with pytest.raises(InputError, match=words):
            source.leave_out(wrong)


def take_instead(data: Dataset, row: int) -> list[int]:
    """The row that comes instead of this one in the first epoch."""
    source = make(data)
    at = global_steps(data, 13).ravel()[:ROWS].tolist().index(row)
    source.leave_out([row])
    return [int(take(source, 13).ravel()[at])]


def test_a_batch_larger_than_the_data_wraps_several_times(data: Dataset) -> None:
    found = take(make(data, global_batch=512), 3).reshape(-1)
    assert all((np.bincount(found[i : i + ROWS]) == 1).all() for i in range(0, 1536 - ROWS, ROWS))


def test_drop_leaves_out_the_tail_of_each_epoch(data: Dataset) -> None:
    dropped, wrapped = (make(data, last_batch=kind) for kind in ("drop", "wrap"))
    steps = ROWS // 16
    found = take(dropped, 2 * steps)
    assert (found[:steps] == take(wrapped, steps)).all()
    for epoch in (found[:steps], found[steps:]):
        assert len(np.unique(epoch)) == steps * 16
    assert dropped.epoch == 2 and dropped.position == 2 * steps * 16


def test_pad_fills_the_last_batch_from_the_start_of_the_same_epoch(data: Dataset) -> None:
    padded = make(data, last_batch="pad")
    steps, tail = ROWS // 16 + 1, ROWS % 16
    found = take(padded, 2 * steps)
    for epoch in (found[:steps].reshape(-1), found[steps:].reshape(-1)):
        assert sorted(epoch[:ROWS]) == list(range(ROWS))
        assert (epoch[ROWS:] == epoch[: 16 - tail]).all()
    assert padded.position == 2 * steps * 16


def test_natural_order(data: Dataset) -> None:
    assert (take(make(data, shuffle="none"), 20).reshape(-1) == np.arange(320) % ROWS).all()


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("last_batch", ["wrap", "drop", "pad"])
def test_state_goes_on_mid_epoch_on_any_layout(data: Dataset, threads: int, last_batch: str) -> None:
    expected = global_steps(data, 40, last_batch=last_batch)
    first = make(data, accumulate=2, threads=threads, last_batch=last_batch)
    for _ in range(2 * 17):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["position"] == 17 * 16  # what the thread fetched ahead does not count
    assert next(first) and first.state_dict() == state  # nor does a step that is not complete
    first.close()
    for world in (1, 2, 4):
        found = []
        for rank in range(world):
            source = make(data, world=world, rank=rank, threads=threads, last_batch=last_batch)
            next(source)  # a source that is under way, with groups fetched ahead
            source.load_state_dict(state)
            assert source.state_dict() == state
            found.append(take(source, 23))
        assert (np.concatenate(found, axis=1) == expected[17:]).all()


def test_wrap_goes_on_with_another_global_batch(data: Dataset) -> None:
    stream = take(make(data), 40).reshape(-1)
    first = make(data)
    for _ in range(5):
        next(first)
    second = make(data, global_batch=24)
    second.load_state_dict(first.state_dict())
    assert (take(second, 10).reshape(-1) == stream[80:320]).all()
    padded = make(data, last_batch="pad")
    with pytest.raises(InputError, match="epoch_length 208"):
        make(data, last_batch="pad", global_batch=24).load_state_dict(padded.state_dict())


@pytest.mark.parametrize(
    ("key", "value"), [("fingerprint", "f"), ("seed", 5), ("split", "test"), ("shuffle", "none"), ("last_batch", "pad")]
)
def test_a_state_of_another_stream_is_refused(data: Dataset, key: str, value: object) -> None:
    source = make(data)
    with pytest.raises(InputError, match=f"saved with {key} {value!r}"):
        source.load_state_dict(source.state_dict() | {key: value})
    with pytest.raises(InputError, match="version"):
        source.load_state_dict({})
    with pytest.raises(InputError, match="whole number"):
        source.load_state_dict(source.state_dict() | {"position": -1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 5}, "global_batch 16 is not micro_batch 5 x accumulate 1 x world 1 = 5"),
        ({"rank": 1}, "rank 1 is not one of 1"),
        ({"last_batch": "keep"}, "wrap, drop, pad"),
        ({"shuffle": "some"}, "global, none"),
        ({"last_batch": "drop", "global_batch": 256, "micro_batch": 256}, "203 rows do not fill"),
        ({"last_batch": "pad", "position": 5}, "not a multiple"),
        ({"threads": -1}, "threads"),
    ],
)
def test_numbers_that_do_not_fit(data: Dataset, change: dict, message: str) -> None:
    good: dict = {"seed": 0, "global_batch": 16, "micro_batch": 16, "accumulate": 1, "rank": 0, "world": 1}
    with pytest.raises(InputError, match=message):
        BatchSource(data, **(good | change))


@pytest.mark.parametrize("threads", [0, 1])
def test_damage_reaches_the_consumer_each_time(dataset_path: Path, threads: int) -> None:
    shard = dataset_path / "train-00001.arrow"
    row = Dataset(dataset_path, "train").manifest.split("train").shards[0].rows  # its first one
    shard.write_bytes(shard.read_bytes().replace(row.to_bytes(8, "little"), (1).to_bytes(8, "little")))
    source = make(Dataset(dataset_path, "train"), threads=threads)
    for _ in range(2):
        with pytest.raises(DataCorrupt, match="train-00001"):
            next(source)
    assert source.position == 0
    source.close()


def test_looking_ahead_is_bounded_and_close_ends_the_thread(data: Dataset) -> None:
    calls, gather = [], data.gather
    data.gather = lambda ids, take: calls.append(len(ids)) or gather(ids)  # type: ignore[method-assign, func-returns-value]
    before = threading.active_count()
    source = make(data, threads=1)
    next(source)
    time.sleep(0.1)
    assert len(calls) == 3 and threading.active_count() == before + 1  # this group and two ahead
    source.close()
    source.close()
    assert threading.active_count() == before and source.state_dict()["position"] == 16
    next(source)  # still readable, without a thread


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 7, 16, 300])
def test_evaluation_covers_every_row_once_in_equal_steps(data: Dataset, world: int, batch: int) -> None:
    seen: list[int] = []
    lengths = set()
    for rank in range(world):
        source = EvalSource(data, batch=batch, rank=rank, world=world)
        for _ in range(2):  # every pass is the same
            found = list(source)
            lengths.add(len(found))
            assert len(found) == len(source)
        for content, real in found:
            assert list(content) == ["image", "label", "id", "position"] and len(content["id"]) >= 1
            assert (content["label"] == content["id"]).all()
            seen += content["id"].tolist() if real else []
    assert sorted(seen) == list(range(ROWS)) and len(lengths) == 1
    with pytest.raises(InputError):
        EvalSource(data, batch=0, rank=0, world=1)


def test_small_batches_cost_microseconds(tmp_path: Path, data: Dataset) -> None:
    """About 12 us were measured; a per-row Python loop would cost 100 us and more. Generous, for busy machines."""
    source = make(data, global_batch=32)
    best_s = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(512):
            next(source)
        best_s = min(best_s, time.perf_counter() - started)
    assert best_s / 512 < 60e-6
