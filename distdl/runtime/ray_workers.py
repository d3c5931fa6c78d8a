"""Workers of a Ray cluster that are given what is to be done one by one: raw data to read, rows to ask a model about.

Ray Data is not used for that. Its operators cut rows into blocks as they come, so that a model would be asked about batches
of other rows each time, whose numbers round differently; they give a row no number; and they keep an order only when all
that came too early waits in memory. Here what is given to a worker hangs on the data alone, and comes back in order, a few
at a time: any number of workers gives the same bits.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count as counted
from typing import Any

from distdl import trust
from distdl.data.workers import AHEAD, Coming, called_again
from distdl.errors import DistdlError, InputError
from distdl.runtime.ray import joined

LOST = 5
"""How often what a worker was doing begins again when the worker is lost."""


@contextmanager
def _cluster(count: int, address: str) -> Iterator[tuple[Any, int]]:
    """(ray, workers): so many; 0: one for each CPU. `address`: `local` is an embedded one."""
    known = {trust.VARIABLE: os.environ[trust.VARIABLE]} if trust.VARIABLE in os.environ else {}
    with joined(address, {"OMP_NUM_THREADS": "1", **known}, max(count, 1)) as ray:
        yield ray, count or int(ray.cluster_resources().get("CPU", 1))


@contextmanager
def data_workers(count: int, address: str) -> Iterator[DataWorkers]:
    """Tasks of a Ray cluster that read raw data (`distdl/data/workers.py`): so many at once; 0: one for each of its CPUs.
    `address`: `local` is an embedded one."""
    with _cluster(count, address) as (ray, workers):
        yield DataWorkers(ray, workers)


@contextmanager
def model_workers(count: int, address: str, gpu: bool = False) -> Iterator[ModelWorkers]:
    """Actors of a Ray cluster that keep what they have loaded; each has a GPU, where one is wanted. Otherwise as above."""
    with _cluster(count, address) as (ray, workers):
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpu and gpus < workers:
            if count:
                what = f"--device cuda with {count} workers, and the Ray cluster at {address} has {gpus} GPUs"
                raise InputError(what, fix="fewer --workers, or --device cpu")
            if not (workers := gpus):
                raise InputError(f"--device cuda, and the Ray cluster at {address} has no GPU", fix="--device cpu")
        yield ModelWorkers(ray, workers, gpu)


class DataWorkers:
    """What a function gives comes through Ray's object store, piece by piece and in order. A task whose worker or node is
    lost begins again; one that raises is called once more here, as everywhere (`distdl/data/workers.py`)."""

    def __init__(self, ray: Any, count: int) -> None:
        self._ray, self.count = ray, count

    def each(self, function: Callable[[Any], Iterable[Any]], items: Iterable[Any]) -> Iterator[Any]:
        """All that the function gives for the first item, then for the second, and so on."""
        ray, call = self._ray, self._ray.put(function)
        options = {"num_cpus": 1, "max_retries": LOST, "num_returns": "streaming", "scheduling_strategy": "SPREAD"}
        task = ray.remote(**options)(_of_item)
        running: deque[tuple[Any, Any]] = deque()
        coming = Coming(items)
        while True:
            while len(running) < 2 * self.count and (one := coming.next()):
                running.append((one[1], task.remote(call, one[1])))
            if not running:
                break
            (item, results), taken = running.popleft(), 0
            try:
                for result in results:
                    yield ray.get(result)
                    taken += 1
            except ray.exceptions.RayTaskError as error:
                why = str(error.cause) or type(error.cause).__name__
                yield from called_again(function, item, taken, why.splitlines()[0])
            except ray.exceptions.RayError as error:
                what = f"a Ray worker that reads the raw data was lost {LOST + 1} times: {str(error).splitlines()[0]}"
                raise DistdlError(what) from error
        coming.end()


def _of_item(function: Callable[[Any], Iterable[Any]], item: Any) -> Iterator[Any]:
    yield from function(item)


class ModelWorkers:
    """Actors, each of which keeps what a function has loaded for the next of its items. One that is lost is started again
    by Ray, and is given again what it had been given."""

    def __init__(self, ray: Any, count: int, gpu: bool = False) -> None:
        self._ray, self.count = ray, count
        options = {"num_cpus": 1, "num_gpus": int(gpu), "max_restarts": LOST, "max_task_retries": LOST}
        actor = ray.remote(_Caller).options(scheduling_strategy="SPREAD", **options)
        self._actors = [actor.remote(os.getcwd()) for _ in range(count)]
        self._calls = counted()

    def each(self, function: Callable[[Any], Iterable[Any]], items: Iterable[Any]) -> Iterator[Any]:
        """All that the function gives for the first item, then for the second, and so on."""
        ray, number, call = self._ray, next(self._calls), self._ray.put(function)
        running: deque[tuple[Any, Any]] = deque()
        at_work: list[list[Any]] = [[] for _ in self._actors]
        coming = Coming(items)
        while True:
            while len(running) < AHEAD * self.count and (one := coming.next()):
                least = min(range(self.count), key=lambda i: len(at_work[i]))
                found = self._actors[least].call.remote(number, [call], one[1])
                running.append((one[1], found))
                at_work[least].append(found)
            if not running:
                break
            item, found = running.popleft()
            try:
                results = ray.get(found)
            except ray.exceptions.RayTaskError as error:
                why = str(error.cause) or type(error.cause).__name__
                results = called_again(function, item, 0, why.splitlines()[0])
            except ray.exceptions.RayError as error:
                what = f"a Ray worker was lost {LOST + 1} times: {str(error).splitlines()[0]}"
                raise DistdlError(what) from error
            yield from results
            at_work = [ray.wait(own, num_returns=len(own), timeout=0)[1] if own else [] for own in at_work]
        coming.end()


class _Caller:
    """The actor."""

    def __init__(self, folder: str) -> None:
        with suppress(OSError):  # of another machine: paths are absolute there
            os.chdir(folder)
        self._known: tuple[int, Any] = (-1, None)

    def call(self, number: int, reference: list[Any], item: Any) -> list[Any]:
        """What a function gives for an item. The function is fetched where it is another one than before."""
        if number != self._known[0]:
            import ray

            self._known = number, ray.get(reference[0])
        return list(self._known[1](item))
