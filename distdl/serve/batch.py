"""Requests that come at the same time are answered together.

A batch is what has come while the one before it was answered: nobody waits where the model is idle, and the busier it is
the larger the batches are. Ray Serve's own batching begins to wait with the first request; and it lives in Ray alone, while
one process and each of several replicas batch alike here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from distdl.serve.answers import Asked, Reply

QUICK_S = 0.005
"""A batch that takes less is not worth another thread: whoever else comes meanwhile waits for it anyway."""
Together = Callable[[Sequence[Asked]], Sequence[Reply]]


class Batcher:
    """Asks `together`, one batch after the other; one that may take a while, in a thread of its own. No request is cut:
    one of more rows than `most_rows` is a batch by itself. `wait_s`: how long the first of a batch waits for others."""

    def __init__(self, together: Together, most_rows: int, wait_s: float = 0.0) -> None:
        self._together, self._most_rows, self._wait_s = together, most_rows, wait_s
        self._waiting: deque[tuple[Asked, asyncio.Future[Reply]]] = deque()
        self._came = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "distdl-model")
        self._took_s, self._took_rows = math.inf, 1

    async def ask(self, asked: Asked) -> Reply:
        """What is said of the rows of one request. Raises what the model raises of them."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._answer_all())
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((asked, future))
        self._came.set()
        return await future

    def close(self) -> None:
        """Ends it: nobody waits any more."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False)

    async def _answer_all(self) -> None:
        while True:
            await self._came.wait()
            await self._until_full()
            some = self._take()
            if not some:
                continue
            found = await self._found([asked for asked, _ in some])
            for (_, future), reply in zip(some, found, strict=True):
                if future.done():  # whoever asked has gone
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    async def _found(self, asked: list[Asked]) -> list[Reply | Exception]:
        """Here or in the thread, by how long the batch before it took."""
        rows, began = sum(len(one.rows) for one in asked), time.perf_counter()
        if self._took_s * max(1, rows / self._took_rows) < QUICK_S:
            found = self._answered(asked)
        else:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._answered, asked)
        self._took_s, self._took_rows = time.perf_counter() - began, max(1, rows)
        return found

    async def _until_full(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait_s
        while (left_s := end - loop.time()) > 0 and sum(len(a.rows) for a, _ in self._waiting) < self._most_rows:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), left_s)
            except asyncio.TimeoutError:
                break

    def _take(self) -> list[tuple[Asked, asyncio.Future[Reply]]]:
        some: list[tuple[Asked, asyncio.Future[Reply]]] = []
        rows = 0
        while self._waiting and (not some or rows + len(self._waiting[0][0].rows) <= self._most_rows):
            asked, future = self._waiting.popleft()
            if not future.done():
                some.append((asked, future))
                rows += len(asked.rows)
        if self._waiting:
            self._came.set()
        else:
            self._came.clear()
        return some

    def _answered(self, asked: list[Asked]) -> list[Reply | Exception]:
        """Where a batch fails, each of its requests is asked by itself, so that it fails alone."""
        try:
            return list(self._together(asked))
        except Exception as error:
            return [error] if len(asked) == 1 else [reply for one in asked for reply in self._answered([one])]
