"""Batches for one rank, in an order that no layout and no restart can change.

    order ──► positions of this rank ──► one gather for a group of batches ──► views of it, one dict per micro-batch

The samples of all epochs form one endless stream of positions. Global step s covers the G = `global_batch` positions
from s * G; rank r of W takes the r-th part of them; its micro-batch k is the k-th part of that. So the samples of a
step are the same for every number of ranks and of accumulated micro-batches, and the state is a single position.

How a stream meets the end of an epoch (`last_batch`):
    wrap    epochs follow each other without a gap, a batch may straddle two: every sample exactly once an epoch
    drop    the last `rows % G` samples of an epoch's order are left out
    pad     the last batch of an epoch is filled with the first samples of the same epoch's order
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from distdl.data.balance import BalancedOrder, Labels, labels_of
from distdl.data.order import Order
from distdl.data.read import Dataset
from distdl.data.slabs import Pinned, Slabs
from distdl.errors import InputError, Problem

Batch = dict[str, Any]  # column -> tensor (M, *shape), or list[bytes]; and "id", "position": int64 (M,)

STATE_VERSION = 1
GROUP_BYTES = 1 << 20  # a gather of about a megabyte hides the cost of calling NumPy
GROUP_BATCHES = 64
SHARE_ROWS = 4096  # whose labels are counted at a time: masks are large
PLAIN = Labels()
LAST_BATCH = ("wrap", "drop", "pad")


class BatchSource:
    """An endless iterator over the micro-batches of one rank; `state_dict()` says where it is.

    `global_batch` samples a step, cut into `world` ranks times `accumulate` micro-batches of `micro_batch`. `seed`
    and the data set's fingerprint fix the order; `shuffle="none"` keeps the natural one, and `labels.balanced` draws every
    class equally often. `position` is the first sample of the stream. `labels`: columns of class numbers some of which are
    missing or that weigh; beside each a batch has NAME.share, the mean weight of the global batch's values (0 where one is
    missing), and beside those that weigh NAME.weight. `threads` gather ahead of the consumer, at least `prefetch_batches`
    micro-batches where given (else two groups); 0 threads: everything happens in `__next__`. InputError: the numbers do not
    fit together. From `__next__`, DataCorrupt: stored bytes are damaged.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        accumulate: int,
        rank: int,
        world: int,
        shuffle: str = "global",
        last_batch: str = "wrap",
        position: int = 0,
        prefetch_batches: int | None = None,
        threads: int = 1,
        labels: Labels = PLAIN,
    ):
        self.labels = labels
        self.pin = False
        """Whether batches lie in memory that GPUs copy from by themselves: the threads put them there, each group anew.
        torch keeps an event for every stream that copied from such memory, and gives it away again when those are over."""
        self.dataset, self.seed, self.shuffle, self.last_batch = dataset, seed, shuffle, last_batch
        self.global_batch, self.micro_batch, self.accumulate = global_batch, micro_batch, accumulate
        self.rank, self.world, self.threads = rank, world, threads
        self._check()
        self.order: Order | BalancedOrder = Order(dataset.rows, seed, dataset.fingerprint, shuffle)
        if labels.balanced:
            self.order = BalancedOrder(labels_of(dataset, labels.balanced), seed, dataset.fingerprint)
        whole_steps = {"wrap": 0, "drop": dataset.rows // global_batch, "pad": -(-dataset.rows // global_batch)}[
            last_batch
        ]
        self.epoch_length = whole_steps * global_batch or dataset.rows
        """Positions of the stream that make one epoch."""
        row_bytes = sum(column.row_bytes or GROUP_BYTES // GROUP_BATCHES for column in dataset.columns.values())
        self._group_batches = min(GROUP_BATCHES, max(1, GROUP_BYTES // (row_bytes * micro_batch)))
        self._depth = 2 if prefetch_batches is None else max(1, -(-prefetch_batches // self._group_batches))
        self._slabs, self._left_out = Slabs(), np.empty(0, np.int64)
        self._pool = ThreadPoolExecutor(threads, "distdl-data") if threads else None
        self._ahead: deque[Future[list[Batch]]] = deque()  # groups under way, in order
        self._ready: list[Batch] = []  # the current group, last batch first
        self._start_at(position)

    def _check(self) -> None:
        problems = [
            Problem(f"{name} is {value}", allowed="at least 1")
            for name, value in (
                ("global_batch", self.global_batch),
                ("micro_batch", self.micro_batch),
                ("accumulate", self.accumulate),
                ("world", self.world),
            )
            if value < 1
        ]
        if not 0 <= self.rank < self.world:
            problems.append(Problem(f"rank {self.rank} is not one of {self.world} ranks"))
        product = self.micro_batch * self.accumulate * self.world
        if self.global_batch != product:
            problems.append(
                Problem(
                    f"global_batch {self.global_batch} is not micro_batch {self.micro_batch} "
                    f"x accumulate {self.accumulate} x world {self.world} = {product}"
                )
            )
        if self.last_batch not in LAST_BATCH:
            problems.append(Problem(f"last_batch is {self.last_batch!r}", allowed=", ".join(LAST_BATCH)))
        if self.labels.balanced and self.shuffle != "global":
            problems.append(
                Problem(f"balanced draws are mixed, and shuffle is {self.shuffle!r}", fix="data.shuffle: global")
            )
        if self.threads < 0:
            problems.append(Problem(f"threads is {self.threads}", allowed="0 or more"))
        if self.last_batch == "drop" and 0 < self.dataset.rows < self.global_batch:
            problems.append(
                Problem(
                    f"last_batch=drop leaves nothing: {self.dataset.rows} rows do not fill one batch of "
                    f"{self.global_batch}",
                    fix="a smaller global_batch, or last_batch=wrap",
                )
            )
        if problems:
            raise InputError(*problems)

    def leave_out(self, rows: Sequence[int]) -> None:
        """Hands out none of these rows of the split from now on. In the place of each comes the first other one from half
        an epoch on, which follows from the order alone; no other sample moves. InputError: none would be left."""
        wrong = [row for row in rows if not 0 <= row < self.dataset.rows]
        left = self.dataset.rows - len(set(rows))
        if wrong or not left:
            what = f"row {wrong[0]:,} is in data.quarantine" if wrong else "all rows are in data.quarantine"
            raise InputError(what, allowed=f"0 to {self.dataset.rows - 1:,}, and not all of them")
        self._left_out = np.unique(np.asarray(rows, np.int64))
        self._start_at(self.position)

    @property
    def position(self) -> int:
        """Samples of the stream that all ranks together have consumed, in whole steps."""
        return self._base + self._taken // self.accumulate * self.global_batch

    @property
    def epoch(self) -> int:
        """The epoch that the next sample belongs to, from 0."""
        return self.position // self.epoch_length

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; the same record on every rank, a few hundred bytes whatever the size of the data."""
        return {
            "version": STATE_VERSION,
            "fingerprint": self.dataset.fingerprint,
            "split": self.dataset.split,
            "seed": self.seed,
            "shuffle": self.shuffle,
            **({"balanced": self.labels.balanced} if self.labels.balanced else {}),
            "last_batch": self.last_batch,
            "epoch_length": self.epoch_length,
            "position": self.position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at `state`, with any number of ranks and micro-batches. InputError: it belongs to another stream."""
        if state.get("version") != STATE_VERSION:
            raise InputError(f"the data state has version {state.get('version')!r}, this distdl reads {STATE_VERSION}")
        mine = self.state_dict()
        # With `drop` and `pad` a position counts padded or shortened epochs, so their length must be the same, too.
        keys = ["fingerprint", "split", "seed", "shuffle", "balanced", "last_batch"]
        keys += ["epoch_length"] * (self.last_batch != "wrap")
        problems = [
            Problem(
                f"the data state was saved with {key} {state.get(key)!r}, this run has {mine.get(key)!r}",
                fix="prepare the same data again, or start a new run without the checkpoint"
                if key == "fingerprint"
                else "keep the global batch of the first run, or use last_batch=wrap"
                if key == "epoch_length"
                else f"set {key} to the value of the first run",
            )
            for key in keys
            if state.get(key) != mine.get(key)
        ]
        if problems:
            raise InputError(*problems)
        self._start_at(state.get("position"))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next micro-batch: a dict of tensors (M, *shape), `bytes` columns as lists, plus the row number `id` and
        the stream `position` of every sample, int64 (M,)."""
        if not self._ready:
            self._ready = self._next_group()
        batch = self._ready.pop()
        self._taken += 1
        return batch

    def peek(self) -> Batch | None:
        """The micro-batch that comes next, which is not taken by that; None where it has not been read yet."""
        if not self._ready and self._ahead and self._ahead[0].done() and not self._ahead[0].exception():
            self._ready = self._next_group()
        return self._ready[-1] if self._ready else None

    def close(self) -> None:
        """Stop looking ahead and let the threads end; the source still answers `state_dict()`."""
        self._cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _start_at(self, position: Any) -> None:
        if type(position) is not int or position < 0:
            raise InputError(f"a stream position of {position!r}", allowed="a whole number from 0")
        if self.last_batch != "wrap" and position % self.global_batch:
            raise InputError(
                f"position {position} is not a multiple of global_batch {self.global_batch}",
                fix="use the global batch that it was saved with, or last_batch=wrap",
            )
        self._cancel()
        self._base, self._taken = position, 0
        self._asked = 0  # micro-batches of this rank that were requested so far
        self._ready = []

    def _cancel(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _next_group(self) -> list[Batch]:
        if self._pool is None:
            return self._fetch(self._base, self._taken)
        while len(self._ahead) <= self._depth:
            self._ahead.append(self._pool.submit(self._fetch, self._base, self._asked))
            self._asked += self._group_batches
        try:
            return self._ahead.popleft().result()  # raises here what the thread ran into
        except BaseException:
            self._asked = self._taken  # a consumer that goes on gets the same batch again, never a later one
            self._cancel()
            raise

    def _fetch(self, base: int, first: int) -> list[Batch]:
        """Micro-batches first, first + 1, ... of this rank counted from position `base`; the last one comes first."""
        step, k = np.divmod(np.arange(first, first + self._group_batches, dtype=np.int64), self.accumulate)
        share = self.global_batch // self.world
        starts = base + step * self.global_batch + self.rank * share + k * self.micro_batch
        positions = (starts[:, None] + np.arange(self.micro_batch)).reshape(-1)
        ids = self._ids(positions)
        slabs = Pinned() if self.pin else self._slabs
        columns: dict[str, Any] = {**self.dataset.gather(ids, take=slabs.take), "id": ids, "position": positions}
        for name in self.labels.weights:
            columns[f"{name}.weight"] = self.labels.weigh(name, columns[name])
        columns |= {f"{name}.share": np.empty(len(ids)) for name in self.labels.shared}
        for of_step in np.unique(step).tolist() if self.labels.shared else ():
            rows = np.repeat(step == of_step, self.micro_batch)
            for name, part in self._shares(base + of_step * self.global_batch).items():
                columns[f"{name}.share"][rows] = part
        parts = [self._split(values, slabs) for values in columns.values()]
        names = list(columns)
        batches = [dict(zip(names, batch)) for batch in zip(*parts)]  # no strict=: it costs 0.4 us a batch
        batches.reverse()
        return batches

    def _ids(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers at positions of the stream."""
        epochs, offsets = np.divmod(positions, self.epoch_length)
        if self.last_batch == "pad":
            offsets %= self.dataset.rows
        ids = self.order.at(epochs, offsets)
        if not len(self._left_out):
            return ids
        ids, ahead = ids.copy(), self.dataset.rows // 2
        while len(doomed := np.flatnonzero(np.isin(ids, self._left_out))):
            ids[doomed] = self.order.at(epochs[doomed], (offsets[doomed] + ahead) % self.dataset.rows)
            ahead += 1
        return ids

    def _shares(self, start: int) -> dict[str, float]:
        """The mean weight of the values of the global batch from `start` (without weights: the part that is there), of each
        column whose values do not all count the same: equal on every rank, which all know the order and read these columns
        of each other's samples."""
        ids = self._ids(np.arange(start, start + self.global_batch, dtype=np.int64))
        there: dict[str, float] = dict.fromkeys(self.labels.shared, 0.0)
        for some in np.array_split(ids, -(-len(ids) // SHARE_ROWS)):
            for name, values in self.dataset.gather(some, self.labels.shared).items():
                weight = self.labels.weigh(name, values)
                there[name] += float(weight.mean(dtype=np.float64)) * len(some) / len(ids)
        return there

    def _split(self, values: Any, slabs: Slabs | Pinned) -> Any:
        """Rows of a group -> one entry per micro-batch: views of one tensor, or slices of a list."""
        if isinstance(values, list):
            return [values[i : i + self.micro_batch] for i in range(0, len(values), self.micro_batch)]
        # As `split`, but for autograd, which has no part in data: a fifth cheaper, and a batch of tokens is little else.
        return torch.unsafe_split(slabs.tensor(values), self.micro_batch)


class EvalSource:
    """One pass over a split in its natural order, for `world` ranks; every `iter()` starts anew.

    Yields `(batch, real)`. Every rank gets the same number of batches, `len(source)`, so collectives stay in step: a
    rank that has no rows left at the end gets a batch of one repeated row with `real=False`, to be computed but not
    counted. The real batches of all ranks hold every row exactly once; the last ones may be shorter than `batch`.
    """

    def __init__(self, dataset: Dataset, *, batch: int, rank: int, world: int):
        if batch < 1 or not 0 <= rank < world:
            raise InputError(
                f"an evaluation with batch {batch} on rank {rank} of {world}",
                allowed="a batch of at least 1, a rank from 0 to world - 1",
            )
        self.dataset, self.batch, self.rank, self.world = dataset, batch, rank, world

    def __len__(self) -> int:
        return math.ceil(self.dataset.rows / (self.batch * self.world))

    def __iter__(self) -> Iterator[tuple[Batch, bool]]:
        for step in range(len(self)):
            start = (step * self.world + self.rank) * self.batch
            real = start < self.dataset.rows
            ids = (
                np.arange(start, min(start + self.batch, self.dataset.rows), dtype=np.int64)
                if real
                else np.zeros(1, np.int64)
            )
            columns: dict[str, Any] = {**self.dataset.gather(ids), "id": ids, "position": ids.copy()}
            yield {name: v if isinstance(v, list) else torch.from_numpy(v) for name, v in columns.items()}, real
