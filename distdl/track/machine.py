"""How busy a node is while a run trains on it: one worker of each samples it into a spool of the node's own.

    runs/NAME/system/NODE.jsonl     {"t": …, "kind": "system", "step": seconds since the first sample, "values": {…}}

Every node has a file of its own, since two that append to one file over a network may tear each other's lines. The
sampler is a thread that sleeps; a sample takes less than a millisecond, and no step waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distdl.config.schema import Track
from distdl.track.spool import SpoolReader, SpoolWriter

FOLDER = "system"
MB = 1e6


def node_name() -> str:
    """This machine's name, in letters that MLflow takes in the name of a metric."""
    return re.sub(r"[^\w.-]", "_", os.uname().nodename) or "node"


@contextlib.contextmanager
def sampling(run_dir: Path, track: Track, taken_over: Callable[[], str] = str) -> Iterator[None]:
    """Samples this node within it, in the first of the node's workers, as often as the config says. Whatever fails, the
    run goes on without."""
    interval_s, first = track.system_metrics_interval_s, os.environ.get("LOCAL_RANK", "0") == "0"
    if not (track.enabled and first and interval_s > 0):
        yield
        return
    over = threading.Event()
    thread = threading.Thread(
        target=_sample_until, args=(over, run_dir, interval_s, taken_over), name="distdl-system", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5.0)


def _sample_until(over: threading.Event, run_dir: Path, interval_s: float, taken_over: Callable[[], str]) -> None:
    path = run_dir / FOLDER / f"{node_name()}.jsonl"
    try:
        load = Load()
        first_s = next((float(event["t"]) for event in SpoolReader(path).poll()), time.time())
        writer: SpoolWriter | None = None
        while not over.wait(interval_s):
            writer = writer or SpoolWriter(path, taken_over=taken_over)
            writer.write("system", step=max(0, int(time.time() - first_s)), values=load.sample())
        if writer:
            writer.close()
    except Exception as error:  # no psutil for this system, a driver that fails: a run is worth more than its load
        print(f"distdl: no system metrics of {node_name()}: {type(error).__name__}: {error}", flush=True)


class Load:
    """A node's processors, memory, network, disk and GPUs; rates are those since the last sample."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._gpus = _gpus()
        self._last: dict[str, float] = {}
        self._last_s = 0.0
        self.sample()

    def sample(self) -> dict[str, float]:
        """What it is now, by name. A counter that has never moved, or that this system lacks, is left out."""
        psutil, now_s = self._psutil, time.monotonic()
        network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
        counters = {
            "network_received_mb_per_s": network.bytes_recv if network else 0,
            "network_sent_mb_per_s": network.bytes_sent if network else 0,
            "disk_read_mb_per_s": disk.read_bytes if disk else 0,
            "disk_written_mb_per_s": disk.write_bytes if disk else 0,
        }
        seconds = max(now_s - self._last_s, 1e-3)
        values = {"cpu_percent": psutil.cpu_percent(None), "memory_percent": psutil.virtual_memory().percent}
        for name, total in counters.items():
            if total:
                values[name] = (total - self._last.get(name, total)) / seconds / MB
        self._last, self._last_s = counters, now_s
        for index, gpu in enumerate(self._gpus):
            with contextlib.suppress(Exception):  # a GPU that has fallen off the bus is told by whoever uses it
                values.update({f"gpu_{index}_{name}": value for name, value in gpu().items()})
        return values


def _gpus() -> list[Callable[[], dict[str, float]]]:
    """Something that samples each GPU of this machine; none where NVIDIA's library is not there."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:
        return []

    def sample(handle: Any) -> dict[str, float]:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "percent": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "memory_percent": 100.0 * memory.used / memory.total,
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000.0,
        }

    return [functools.partial(sample, handle) for handle in handles]
