"""The compiled loops give NumPy's bits and are not loaded from where others can write; slabs wait for who holds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from distdl.data import native as module
from distdl.data.manifest import Column
from distdl.data.order import Order
from distdl.data.read import Dataset
from distdl.data.slabs import KEPT, Slabs
from distdl.data.source import BatchSource
from distdl.data.write import DatasetWriter

from .conftest import rows as rows_of

compiler = pytest.mark.skipif(not any(map(shutil.which, module.COMPILERS)), reason="there is no C compiler")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder."""
    monkeypatch.setenv("DISTDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DISTDL_NATIVE", raising=False)
    module.native.cache_clear()
    yield tmp_path / "cache" / "native"
    module.native.cache_clear()


def both(compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the compiled form gives, and what NumPy does."""
    module.native.cache_clear()
    assert module.native() is not None
    first = compute()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTDL_NATIVE", "0")
        module.native.cache_clear()
        assert module.native() is None
        second = compute()
    module.native.cache_clear()
    return first, second


@compiler
@pytest.mark.parametrize("rows", [65_536, 65_537, 100_003, 1 << 20, 5_000_000_000, (1 << 40) + 12_345, 1 << 62])
def test_the_order_is_numpys(rows: int) -> None:
    start = max(0, rows // 3 - 7)
    for count in (1, 63, 64, 65, 40_000):
        one, other = both(partial(Order(rows, 5, "f").indices, 2, start, min(count, rows - start)))
        assert one.dtype == other.dtype == np.int64 and (one == other).all()


@compiler
@pytest.mark.parametrize(
    ("dtype", "shape"), [("uint8", ()), ("uint8", (3,)), ("int64", ()), ("float32", (5, 7)), ("uint16", (3001,))]
)
def test_rows_are_numpys(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 251, (203, *shape)).astype(dtype)
    with DatasetWriter(
        tmp_path / "set", {"x": Column(dtype, shape)}, "t", {}, rows_per_batch=16, shard_bytes=2000
    ) as writer:
        writer.write("train", {"x": values})
    data, ids = Dataset(tmp_path / "set", "train"), np.random.default_rng(1).integers(0, 203, 500)
    for which in (ids, ids[:1], ids[:0], ids[::-2]):
        for found in both(partial(lambda wanted: data.gather(wanted)["x"], which)):
            assert found.dtype == dtype and found.shape == (len(which), *shape) and (found == values[which]).all()


@compiler
def test_it_is_compiled_once_and_not_loaded_from_where_others_write(fresh: Path) -> None:
    assert module.native() is not None
    (path,) = fresh.iterdir()
    made = path.stat().st_mtime_ns
    module.native.cache_clear()
    assert module.native() is not None and path.stat().st_mtime_ns == made
    for place in (fresh, path):
        before = place.stat().st_mode
        place.chmod(before | 0o020)
        module.native.cache_clear()
        assert module.native() is None
        place.chmod(before)


def test_without_a_compiler_or_a_folder_numpy_does_it(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPILERS", ("no-such-compiler",))
    assert module.native() is None
    module.native.cache_clear()
    monkeypatch.undo()
    monkeypatch.setenv("DISTDL_CACHE", "/dev/null/nowhere")
    assert module.native() is None


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_that_are_held_are_not_overwritten(dataset_path: Path, threads: int) -> None:
    data = Dataset(dataset_path, "train")
    source = BatchSource(data, seed=1, global_batch=8, micro_batch=8, accumulate=1, rank=0, world=1, threads=threads)
    kept = [next(source) for _ in range(700)][::7]
    for _ in range(700):
        next(source)
    source.close()
    for batch in kept:
        expected = rows_of(203)
        assert torch.equal(batch["image"], torch.from_numpy(expected["image"][batch["id"].numpy()]))
        assert torch.equal(batch["label"], batch["id"])


def test_a_slab_is_given_out_again_when_nobody_holds_it() -> None:
    slabs = Slabs()
    first = slabs.take((4, 3), "float32")
    address = first.ctypes.data
    holder: object = torch.from_numpy(first)[1:].numpy()[:1]  # a view of a tensor of it
    del first
    assert slabs.take((4, 3), "float32").ctypes.data != address
    del holder
    assert address in {slabs.take((12,), "int32").ctypes.data for _ in range(2)}
    many = [slabs.take((12,), "int32") for _ in range(3 * KEPT)]
    assert len({array.ctypes.data for array in many}) == 3 * KEPT
