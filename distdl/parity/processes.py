"""Runs cases one after the other on gloo processes of this machine. A case that fails or hangs costs itself only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from distdl.parity.movement import kept

COLLECTIVE_TIMEOUT_S = 120
POLL_S = 0.1


def curves(
    world: int, cases: dict[str, dict[str, dict[str, Any]]], timeout_s: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, curve of each of its passes, or {"error": why}) of each case on `world` processes, as they end.

    A case is pass -> complete config; to a pass's curve `start` and `end` are added, the weights and buffers by name.
    `timeout_s`: what a case may take. After a failure the processes are started anew for the cases that are left.
    """
    left = dict(cases)
    while left:
        with tempfile.TemporaryDirectory(prefix="distdl-parity-") as folder:
            for name, result in _attempt(Path(folder), world, left, timeout_s):
                del left[name]
                yield name, result


def _attempt(
    folder: Path, world: int, cases: dict[str, dict[str, dict[str, Any]]], timeout_s: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cases until all are done or one has failed."""
    (folder / "task.json").write_text(json.dumps({"world": world, "cases": list(cases.items())}))
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
        "WORLD_SIZE": str(world),
    }
    processes = []
    with (folder / "output").open("wb") as output:
        for rank in range(world):
            command = [sys.executable, "-m", "distdl.parity.processes", str(folder), str(rank)]
            mine = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=mine, stdout=output, stderr=output))
    try:
        for index, name in enumerate(list(cases)):
            result = _wait(folder, index, processes, timeout_s)
            yield name, result
            if "error" in result:
                return
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait(folder: Path, index: int, processes: list[subprocess.Popen[bytes]], timeout_s: float) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done = folder / f"case-{index}.json"
        if done.exists():
            result: dict[str, Any] = json.loads(done.read_text())
            for number, curve in enumerate(result.values()):
                files = list(folder.glob(f"tensors-{index}-{number}-*"))
                curve |= kept(files)
                for file in files:
                    file.unlink()
            return result
        if any(process.poll() not in (None, 0) for process in processes):
            time.sleep(5 * POLL_S)  # the others' words, if they have any
            failures = [json.loads(path.read_text()) for path in folder.glob("failed-*.json")]
            if failures:
                return {"error": str(min(failures, key=lambda f: f["time"])["error"])}
            lines = (folder / "output").read_text(errors="replace").strip().splitlines()
            return {"error": f"a process died: {lines[-1] if lines else 'it said nothing'}"}
        time.sleep(POLL_S)
    return {"error": f"did not end within {timeout_s:.0f} s"}


def main(folder: Path, rank: int) -> None:
    """One process of an attempt."""
    import torch.distributed as dist

    from distdl.parity.curve import curve
    from distdl.parity.passes import NUDGED, ROUNDED, ROUNDED_3, SUMMED
    from distdl.parity.rounded import rounded_curve, summed_in_parts

    def run(name: str, values: dict[str, Any], file: Path) -> dict[str, Any]:
        if name.endswith((ROUNDED, ROUNDED_3)):
            return rounded_curve(values, file, twice=name.endswith(ROUNDED_3))
        if parts := name.partition(SUMMED)[2]:
            with summed_in_parts(int(parts)):
                return curve(rank, values, file)
        return curve(rank, values, file, nudge=int(name.partition(NUDGED)[2] or 0))

    task = json.loads((folder / "task.json").read_text())
    store = dist.FileStore(str(folder / "store"), task["world"])
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=task["world"], timeout=timeout)
    for index, (_, passes) in enumerate(task["cases"]):
        try:
            files = [folder / f"tensors-{index}-{number}-{rank}" for number in range(len(passes))]
            result = {name: run(name, values, file) for (name, values), file in zip(passes.items(), files)}
            dist.barrier()  # everyone's tensors are kept
        except BaseException as error:
            _publish(folder / f"failed-{rank}.json", {"time": time.time(), "error": f"{type(error).__name__}: {error}"})
            raise
        if rank == 0:
            _publish(folder / f"case-{index}.json", result)
    dist.barrier()


def _publish(path: Path, value: dict[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value))
    draft.rename(path)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # engines of several cases leave threads behind that have nothing left to do
