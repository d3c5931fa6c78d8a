"""Starts the workers where the config says, and turns whatever ends them into one clear error."""

from __future__ import annotations

import shutil
import signal
from typing import Any

from distdl.config import Config
from distdl.errors import DistdlError, InputError, TrainingFailed
from distdl.plan.plan import Plan
from distdl.run_folder import RunFolder


def launch(config: Config, plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Runs the plan to its end on the config's runtime; returns the summary. The folder holds plan.json.

    Raises a DistdlError that says why not.
    """
    shutil.rmtree(folder.failures, ignore_errors=True)
    (folder.path / "summary.json").unlink(missing_ok=True)
    try:
        if config.runtime.kind == "ray":
            from distdl.runtime.ray import start
        else:
            from distdl.runtime.local import start
        start(config, plan, folder)
    except DistdlError:
        raise
    except Exception as error:
        raise first_failure(folder, error) from error
    summary = folder.read("summary.json")
    if summary is None:
        raise first_failure(folder, RuntimeError("the workers ended without a summary"))
    return summary  # type: ignore[no-any-return]


def first_failure(folder: RunFolder, error: Exception) -> DistdlError:
    """The error of the worker that failed first; the others only lost their connection to it."""
    records = folder.failure_records()
    killed = _killed(error)
    if killed and not any(record["known"] for record in records):  # the others only say that they lost it
        return TrainingFailed(
            f"{killed}: out of memory and a kill from outside are the usual causes\n"
            f"    the last checkpoint is in {folder.checkpoints}; the same command continues from it"
        )
    if not records:
        lines = [line for line in str(error).splitlines() if line.strip("= ")]
        why = lines[-1].strip() if lines else ""
        return TrainingFailed(f"the workers could not be run: {type(error).__name__}: {why}")
    first = min(records, key=lambda r: (not r["known"], r["time"]))
    if first["exit_code"] == 2:
        return InputError(first["message"])
    if first["known"]:
        return TrainingFailed(first["message"])
    where = folder.failures / f"rank-{first['rank']}.json"
    return TrainingFailed(f"worker {first['rank']} failed: {first['message']}\n    its traceback is in {where}")


def _killed(error: Exception) -> str:
    """Which worker a signal ended, as torch's launcher or Ray Train tell it; '' where none did."""
    for rank, failure in sorted(getattr(error, "failures", {}).items()):
        code = getattr(failure, "exitcode", 0)
        if code < 0 and code != -signal.SIGTERM:  # SIGTERM is the launcher's own, to those that were left
            return f"worker {rank} was killed by signal {-code}"
    for rank, failure in sorted(getattr(error, "worker_failures", {}).items()):
        if "ActorDied" in type(failure).__name__ or "ActorDied" in str(failure):
            return f"worker {rank} died without a word"
    return ""
