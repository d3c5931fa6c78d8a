"""Several replicas of a model, each a process with its own copy, placed and watched by Ray Serve.

Requests come in through this process, as with one model (`app.py`), and are passed on to whichever replica has least to
do. So nothing of HTTP differs, and Ray's own proxy, a process more on the way, is not started. A replica that dies is
started again by Ray; what it had been asked is asked of another, as an answer depends on nothing but the rows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.errors import DistdlError, InputError
from distdl.model.model import Model
from distdl.run.folder import RunFolder
from distdl.runtime.ray import joined
from distdl.serve.answers import Answerer, Asked, Reply
from distdl.serve.batch import Batcher

NAME = "distdl"
AGAIN = 5
"""How often rows are passed on whose replica has died."""
AGAIN_S = 0.5


@dataclass(frozen=True)
class Served:
    """A model that is served, as each replica builds it."""

    folder: str
    which: str = "latest"
    device: str = "cpu"
    most_rows: int = 256
    wait_s: float = 0.0
    unknown: str = "refuse"

    def answerer(self) -> Answerer:
        """Raises a DistdlError."""
        model = Model(RunFolder(Path(self.folder)), self.which, self.device, self.most_rows)
        return Answerer(model, self.unknown)


class Replica:
    """What Ray Serve starts."""

    def __init__(self, served: Served) -> None:
        answerer = served.answerer()
        self._schema = answerer.schema()
        self._batcher = Batcher(answerer.together, served.most_rows, served.wait_s)

    async def ask(self, asked: Asked) -> Reply:
        return await self._batcher.ask(asked)

    def schema(self) -> dict[str, Any]:
        return self._schema


class Replicas:
    """All of them, from here."""

    def __init__(self, ray: Any, handle: Any, count: int) -> None:
        self._ray, self._handle, self.count = ray, handle, count

    async def ask(self, asked: Asked) -> Reply:
        for left in reversed(range(AGAIN)):
            try:
                reply: Reply = await self._handle.ask.remote(asked)
                return reply
            except self._ray.exceptions.RayActorError:
                if not left:
                    raise
                await asyncio.sleep(AGAIN_S)
        raise AssertionError

    async def health(self) -> dict[str, Any]:
        alive = await asyncio.to_thread(self._alive)
        return {"healthy": alive > 0, "replicas": alive, "of": self.count}

    def _alive(self) -> int:
        from ray import serve

        states = serve.status().applications[NAME].deployments[NAME].replica_states
        return int(states.get("RUNNING", 0))

    def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = self._handle.schema.remote().result(timeout_s=60)
        return found


@contextmanager
def replicas(served: Served, count: int) -> Iterator[Replicas]:
    """So many of them, on this machine. Raises InputError without ray[serve], DistdlError where one does not start."""
    try:
        from ray import serve
    except ImportError as error:
        what = f"several replicas need Ray Serve, which is not installed ({error})"
        raise InputError(what, fix="pip install 'distdl[serve]', or --replicas 1") from None
    cores = len(os.sched_getaffinity(0))
    threads = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    with joined("local", threads, count) as ray:
        try:
            yield Replicas(ray, _started(serve, served, count), count)
        finally:
            serve.shutdown()


def _started(serve: Any, served: Served, count: int) -> Any:
    """The handle of the replicas, when all answer."""
    actor = {"num_cpus": 1, "num_gpus": _share_of_gpus(count) if served.device.startswith("cuda") else 0}
    deployment = serve.deployment(
        name=NAME,
        num_replicas=count,
        max_ongoing_requests=4096,  # a replica batches what waits
        ray_actor_options=actor,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=10,
    )(Replica)
    try:
        serve.start(proxy_location="Disabled")
        return serve.run(deployment.bind(served), name=NAME, route_prefix=None)
    except RuntimeError as error:
        raise DistdlError(f"the replicas did not start: {str(error).strip().splitlines()[-1]}") from error


def _share_of_gpus(count: int) -> float:
    """Of a replica: a whole one, where there are enough."""
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        raise InputError("--device cuda, and this machine has no GPU", fix="--device cpu")
    return 1.0 if gpus >= count else int(gpus / count * 1000) / 1000
