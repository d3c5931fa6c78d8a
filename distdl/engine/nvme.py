"""What DeepSpeed writes to an NVMe disk: whether it can, and a folder for each engine."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from distdl.config.schema import Config
from distdl.errors import InputError


def ready_for_nvme(config: Config) -> None:
    """Raises InputError where DeepSpeed cannot write to the NVMe disk that the config asks for: its operator for that is
    compiled at its first use, and the folder is made."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    parallel = config.parallel
    if "nvme" not in (parallel.offload, parallel.offload_parameters):
        return
    try:
        AsyncIOBuilder().load(verbose=False)
    except Exception as error:  # of a compiler, a linker or the loader: whatever it is, the run cannot have it
        why = " ".join(str(error).split())[:300]
        raise InputError(
            f"offload to nvme needs DeepSpeed's operator async_io, which cannot be compiled or loaded here: {why}",
            fix="install the headers of libaio (libaio-dev), g++ and ninja, or set parallel.offload=cpu",
        ) from error
    try:
        os.makedirs(parallel.nvme_path or "", exist_ok=True)
        tempfile.TemporaryFile(dir=parallel.nvme_path).close()
    except OSError as error:
        raise InputError(
            f"parallel.nvme_path={parallel.nvme_path}: {error.strerror}", fix="a folder that can be written to"
        ) from error


_claims: list[Any] = []
"""Open lock files of the folders that this process has claimed: the system lets go of them when it ends."""


def claimed_folder(disk: str) -> str:
    """A folder on the NVMe disk for one engine of one rank, until this process ends: NUMBER below `disk`, the first that
    no living process has. DeepSpeed names its files by the rank alone, and would write over those of another run."""
    for number in itertools.count():
        folder = os.path.join(disk, f"distdl-{number}")
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, ".lock"), "w")  # noqa: SIM115 - as long as the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _claims.append(lock)
        return folder
    raise AssertionError


def on_own_folder(deepspeed_json: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON with a folder of this engine's own where it names an NVMe disk."""
    zero = dict(deepspeed_json.get("zero_optimization", {}))
    disks = {key: part["nvme_path"] for key, part in zero.items() if isinstance(part, dict) and part.get("nvme_path")}
    folders = {disk: claimed_folder(disk) for disk in set(disks.values())}
    zero |= {key: {**zero[key], "nvme_path": folders[disk]} for key, disk in disks.items()}
    return {**deepspeed_json, "zero_optimization": zero}
