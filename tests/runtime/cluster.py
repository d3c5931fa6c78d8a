"""A Ray cluster of several nodes on this machine, and the real command line in front of it."""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

SIMULATOR = REPOSITORY.parent / "shared" / "sim_nodes" / "sim_cluster.py"
TOKEN = "t0ken-of-the-test-" + "0" * 24


def simulator() -> Any:
    """The module that starts several Ray nodes, from beside the checkout; skips the test where it is absent."""
    if not SIMULATOR.is_file():
        pytest.skip(f"{SIMULATOR.name} is not beside the checkout: no several Ray nodes on this machine")
    spec = importlib.util.spec_from_file_location("sim_cluster", SIMULATOR)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def ray_cluster(workers: int) -> Iterator[Any]:
    """A head without CPUs and `workers` nodes of one CPU, with token authentication. Its drivers find this Python, and
    of distdl only what is sent to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "DISTDL_HOME"):
            patch.delenv(name, raising=False)
        ray = str(Path(sys.executable).parent / "ray")
        made = simulator().SimCluster(workers=workers, ray=ray, base_port=free_ports(), token=TOKEN)
        patient = made.wait
        made.wait = lambda check, timeout=120, what="": patient(
            check, max(timeout, 300), what
        )  # others load the machine
    with made as cluster:
        yield cluster


def free_ports(count: int = 1000) -> int:
    """The first of `count` ports of which a few that were tried are free."""
    for _ in range(50):
        base = random.randrange(20000, 31000, count)
        try:
            for port in (base, base + 1, base + 2, base + 10, base + 210, base + 410):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


def command_line(home: Path, *arguments: object, code: Path = REPOSITORY) -> tuple[list[str], dict[str, str]]:
    """`distdl ARGUMENTS` as a user runs it who has the cluster's token; `code`: where distdl is imported from."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    variables = {
        **keep,
        "PYTHONPATH": str(code),
        "DISTDL_HOME": str(home),
        "HOME": str(home),
        "COLUMNS": "200",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    return [sys.executable, "-m", "distdl", *map(str, arguments)], variables


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 300, process: Any = None) -> Any:
    """What `condition` returns once it is true. Raises AssertionError after the time, or when `process` ended."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended before {what}: {process.stdout.read() if process.stdout else ''}")
        time.sleep(0.1)
    raise AssertionError(f"no {what} within {timeout_s} s")


def started(command: list[str], variables: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """A command in the background, its output in a pipe."""
    return subprocess.Popen(
        command, env=variables, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
