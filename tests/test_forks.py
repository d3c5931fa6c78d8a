"""A forked process is what the same command would be if it were started anew, but for the seconds of loading."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forks import REPOSITORY, SERVERS, Fork, Server
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

MODULE = """
import atexit, json, os, signal, sys, threading, torch
def seen():
    return {
        "arguments": sys.argv[1:], "name": __name__, "folder": os.getcwd(), "first": sys.path[0],
        "variables": {n: v for n, v in os.environ.items() if n != "LC_CTYPE"}, "stdin": sys.stdin.read(),
        "computing": [torch.get_num_threads(), threading.active_count()], "cuda": torch.cuda.is_initialized(),
        "group": torch.distributed.is_initialized(), "main": sys.modules["__main__"].__spec__.name,
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "files": sorted(set(os.listdir("/proc/self/fd")) - {"0", "1", "2"})[1:],
    }
atexit.register(print, "left")
print(json.dumps(seen(), sort_keys=True))
print("told", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def forked(server: Server, folder: Path, module: str, *arguments: str) -> tuple[Fork, Path, Path]:
    out, error = folder / "out.txt", folder / "error.txt"
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MINE": "yes"}
    return server.fork(module, list(arguments), variables, folder, out, error), out, error


def test_it_is_the_process_that_would_have_been_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, environment, folder, output, signals, open files, threads, exit code, `atexit`."""
    monkeypatch.setenv("SET_LATER", "1")  # the server may have been started by then
    (tmp_path / "told.py").write_text(MODULE)
    process, out, error = forked(SERVERS[0], tmp_path, "told", "7", "b c")
    assert process.wait(300) == 7
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MINE": "yes"}
    command = [sys.executable, "-m", "told", "7", "b c"]
    fresh = subprocess.run(
        command, cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert out.read_text() == fresh.stdout and fresh.stdout.endswith("\nleft\n") and fresh.returncode == 7
    assert error.read_text() == "told\n"


def test_a_server_is_one_thread_and_each_fork_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import torch\nassert not hasattr(torch, 'left')\ntorch.left = torch.rand(9)")
    for _ in range(2):
        process, _, error = forked(SERVERS[0], tmp_path, "leaves")
        assert process.wait(300) == 0, error.read_text()
    assert SERVERS[0]._process is not None
    assert len(list(Path(f"/proc/{SERVERS[0]._process.pid}/task").iterdir())) == 1


def test_how_it_ends_is_told(tmp_path: Path) -> None:
    """A signal from inside or outside, an exception, a time limit."""
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(600)")
    (tmp_path / "dies.py").write_text("import os\nos.kill(os.getpid(), 11)")
    (tmp_path / "raises.py").write_text("raise ValueError('as it is')")
    process, *_ = forked(SERVERS[0], tmp_path, "sleeps")
    assert process.poll() is None
    with pytest.raises(TimeoutError):
        process.wait(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == process.poll() == -signal.SIGTERM
    process, *_ = forked(SERVERS[0], tmp_path, "sleeps")
    process.kill()
    assert process.returncode == -signal.SIGKILL
    process, *_ = forked(SERVERS[0], tmp_path, "dies")
    assert process.wait(60) == -signal.SIGSEGV
    process, _, error = forked(SERVERS[0], tmp_path, "raises")
    assert process.wait(60) == 1 and "ValueError: as it is" in error.read_text()


def test_a_server_takes_its_forks_along_and_the_next_fork_has_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(600)")
    server = Server(preloaded=())
    process, *_ = forked(server, tmp_path, "sleeps")
    assert server._process is not None and server._process.stdin is not None
    server._process.stdin.close()
    assert process.wait(60) == -signal.SIGKILL
    end = time.monotonic() + 60
    while Path(f"/proc/{process.pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    server._process.wait(60)
    (tmp_path / "ends.py").write_text("")
    process, *_ = forked(server, tmp_path, "ends")
    assert process.wait(300) == 0


def of_a_rank(rank: int, world: int) -> dict[str, Any]:
    import torch

    return {"hash": hash("a name"), "rank": os.environ["RANK"], "threads": torch.get_num_threads()}


def dies(rank: int, world: int) -> None:
    if rank == 1:
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def test_neighbouring_ranks_hash_strings_differently() -> None:
    """So that collectives in the order of a set are found out."""
    ranks = run_ranks(of_a_rank, 4)
    assert [told["rank"] for told in ranks] == ["0", "1", "2", "3"] and {told["threads"] for told in ranks} == {1}
    assert ranks[0]["hash"] != ranks[1]["hash"] and ranks[2]["hash"] != ranks[3]["hash"]


def test_a_rank_that_dies_ends_the_others_at_once() -> None:
    with pytest.raises(AssertionError, match=r"rank 1, exit code -9\nlast words"):
        run_ranks(dies, 2)
