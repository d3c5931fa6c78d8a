"""`python -m MODULE ARGUMENTS` without the seconds that importing torch and DeepSpeed takes: processes that are forked from
one that has them loaded and has done nothing with them.

A fork has an environment, a folder, arguments and output of its own, begins with the same state of every library, and ends
as a process does: with its exit code, by a signal, through `atexit`. It is not for what a test says about a process's
beginning: what it imports and when, how it answers to Ctrl-C.

There are two servers. Strings have other hashes in each, and neighbouring ranks come from different ones: ranks that walk
through a set of names in their own order are found out, as they would be if each had been started by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
PRELOADED = (
    *("torch", "torch.distributed", "torch.multiprocessing", "numpy", "pytest", "yaml", "rich.console", "rich.table"),
    *("deepspeed", "deepspeed.ops", "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2"),
    *("deepspeed.pipe", "deepspeed.moe.layer", "deepspeed.sequence.layer", "sklearn.datasets", "mlflow"),
    *("torch._dynamo", "torch._inductor.compile_fx", "functorch.compile", "setuptools"),  # what a first step loads
    *("deepspeed.ops.op_builder.all_ops", "deepspeed.runtime.superoffload.superoffload_stage3"),
    *(
        "deepspeed.module_inject.auto_ep_layer",
        "distdl.engine.deepspeed",
        "distdl.engine.pipeline",
        "distdl.engine.torch",
    ),
    *(
        "distdl.engine.deepspeed",
        "distdl.engine.pipeline",
        "distdl.engine.torch",
        "deepspeed.module_inject.auto_ep_layer",
    ),
    *("distdl.train.worker", "distdl.train.survey", "distdl.parity.curve", "distdl.cli.main", "tests.small"),
)
FIXED = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "DS_ACCELERATOR": "cpu",
    "COLUMNS": "200",
    "PYTHONPATH": str(REPOSITORY),
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a fork of a process that has asked CUDA itself cannot use it
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's: a process with threads is not forked
}
"""What libraries read while they are loaded."""
ANSWER_S = 300.0
"""Seconds until a server has loaded all and forked, on a machine that has much else to do."""


class Fork:
    """A process as `subprocess.Popen` shows it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._told = connection.makefile("rb")
        connection.settimeout(ANSWER_S)
        if not (pid := self._told.readline()):
            raise RuntimeError("the server that forks processes has ended: what it said is above")
        self.pid = int(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        with contextlib.suppress(TimeoutError):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """As `poll`, when it has ended. Raises TimeoutError."""
        if self.returncode is None:
            with selectors.DefaultSelector() as ready:
                ready.register(self._connection, selectors.EVENT_READ)
                if not ready.select(timeout):
                    raise TimeoutError(f"process {self.pid} still runs")
            self.returncode = int(self._told.readline() or -signal.SIGKILL)  # a server that has died took it along
            self._told.close()
            self._connection.close()
        return self.returncode

    def kill(self) -> None:
        """Ends it at once, and waits for that."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(ANSWER_S)


class Server:
    """Starts the process that is forked when the first fork is asked for; it ends with this one."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        self._preloaded = preloaded
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._address = ""

    def fork(
        self, module: str, arguments: list[str], environment: Mapping[str, str], folder: Path, out: Path, error: Path
    ) -> Fork:
        """`python -m MODULE ARGUMENTS` with this environment in this folder; `out`, `error`: where it writes."""
        self.ready()
        task = {"module": module, "arguments": arguments, "environment": dict(environment), "folder": str(folder)}
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_S)
        connection.connect(self._address)
        connection.sendall(json.dumps(task | {"out": str(out), "error": str(error)}).encode() + b"\n")
        return Fork(connection)

    def ready(self) -> None:
        """Starts loading, if it has not; `fork` waits until all is loaded."""
        if self._process is not None and self._process.poll() is None and self._owner == os.getpid():
            return
        self._owner = os.getpid()
        home = tempfile.mkdtemp(prefix="distdl-forks-")
        self._address = f"{home}/socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._address)
        listener.listen()
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | FIXED
        command = [sys.executable, "-m", "tests.forks", str(listener.fileno()), *self._preloaded]
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
        listener.close()
        atexit.register(self._end, home)

    def _end(self, home: str) -> None:
        if self._process is not None and self._owner == os.getpid():
            assert self._process.stdin is not None
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
            for path in (Path(home) / "socket", Path(home)):
                path.unlink() if path.is_socket() else path.rmdir()


SERVERS = (Server(), Server())


# -- in the server -----------------------------------------------------------------------------------------------------


def serve(listener: socket.socket, preloaded: Sequence[str]) -> dict[str, Any]:
    """Forks for each task that comes and tells how the forks end; returns in each fork, with its task. Ends when the
    process that started it has ended, with the forks that are left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in preloaded:
            importlib.import_module(name)
    if numa := sys.modules.get("deepspeed.utils.numa"):  # whom ZeRO-3 asks in each step, by a process that is started
        numa.get_numa_cores = functools.cache(numa.get_numa_cores)  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage for each engine: a second, if it looks at all that was imported, too
    frozen = gc.get_freeze_count()
    gc.get_freeze_count = lambda: frozen  # which counts them one by one, for each run
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    before = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),  # a terminal's Ctrl-C is for the tests
    }
    signal.set_wakeup_fd(wake.fileno())
    forks: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as events:
        for source in (listener, woken, sys.stdin):
            events.register(source, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in events.select()]
            if sys.stdin in ready:
                for pid in forks:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    woken.recv(4096)
                _tell_ends(forks)
            if listener in ready:
                connection = listener.accept()[0]
                with connection.makefile("rb") as words:
                    task: dict[str, Any] = json.loads(words.readline())
                if (pid := os.fork()) == 0:
                    break
                forks[pid] = connection
                connection.sendall(f"{pid}\n".encode())
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    for one in (listener, woken, wake, connection, *forks.values()):
        one.close()
    return task


def _tell_ends(forks: dict[int, socket.socket]) -> None:
    for pid, connection in list(forks.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError):  # nobody listens any more
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            connection.close()
            del forks[pid]


def become(task: dict[str, Any]) -> None:
    """Makes this process the one that the task asks for, up to its first line."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, task["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, task["error"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        file = os.open(path, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.fsync = lambda file: None  # what tests write need not outlive a power cut
    os.chdir(task["folder"])
    os.environ.clear()
    os.environ.update(task["environment"])
    time.tzset()
    if (said := task["environment"].get("PYTHONWARNINGS")) is not None:
        warnings.simplefilter(said)
    sys.path[0] = task["folder"]
    sys.argv = [task["module"], *task["arguments"]]


if __name__ == "__main__":
    mine = serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    become(mine)
    runpy.run_module(mine["module"], run_name="__main__", alter_sys=True)
