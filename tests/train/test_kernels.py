"""What a worker's process is given before it touches a GPU, and what Python's garbage collector leaves alone."""

from __future__ import annotations

import gc
import os
import platform
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.own_process import memory_kept
from distdl.plan.plan import make_plan
from distdl.run.folder import RunFolder
from distdl.runtime import flights, group
from distdl.runtime.blame import WorkersEnded, ending, first_failure
from distdl.runtime.ray import refuse_idle_gpus
from distdl.train.kernels import FLIGHT_RECORDER, prepare_process, settled
from tests.conftest import python
from tests.plan.test_arithmetic import CPU, H100, planned
from tests.plan.test_plan import DATA, MODEL
from tests.ranks import run_ranks
from tests.small import small_config

NAMES = (*FLIGHT_RECORDER, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_FR_DUMP_TEMP_FILE")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set is taken away again
        monkeypatch.delenv(name)


def test_memory_grows_and_nccl_keeps_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_process("cpu", tmp_path)
    assert not any(name in os.environ for name in NAMES)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    prepare_process("cuda", tmp_path)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "7" and os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "nccl-rank-")


def test_a_users_own_allocator_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    prepare_process("cuda", tmp_path)
    assert "PYTORCH_ALLOC_CONF" not in os.environ


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nobody has told the garbage collector what to leave alone, as in a process that is not the tests'."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.slow
def test_what_is_there_at_the_start_is_not_looked_through_again(thawed: None) -> None:
    with settled():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
    with pytest.raises(KeyError), settled():
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_has_told_to_leave_alone_is_left_alone(thawed: None) -> None:
    """A server that forks has frozen what it loaded, and cannot see that a run of ours has undone it."""
    gc.freeze()
    before = gc.get_freeze_count()
    with settled():
        assert gc.get_freeze_count() == before
    assert gc.get_freeze_count() == before > 10_000


def faults(rank: int, world: int, variables: dict[str, str]) -> list[int]:
    """Pages that the system had to give for blocks of 48 MB, taken and freed ten times: before, within on a GPU's
    host, and within."""
    os.environ |= variables

    def taken() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(12_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    found = [taken()]
    for device in ("cuda", "cpu"):  # in this order: what was kept once may be had again later
        with memory_kept(device):
            taken()
            found.append(taken())
    return found


@pytest.mark.slow
def test_what_a_step_frees_on_a_cpu_is_there_for_the_next() -> None:
    before, on_a_gpu, within = run_ranks(faults, 1, {})[0]
    if "glibc" not in platform.libc_ver()[0] or before < 10_000:
        pytest.skip("an allocator that gives nothing back")
    assert within < before / 20 and on_a_gpu > before / 2
    before, _, within = run_ranks(faults, 1, {"MALLOC_ARENA_MAX": "2"})[0]
    assert within > before / 2, "what the user has set of the allocator was changed"


def test_nccl_is_told_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: None)
    monkeypatch.setattr(group.dist, "init_process_group", lambda backend, **k: told.append((backend, k["device_id"])))
    monkeypatch.setattr(group.dist, "TCPStore", lambda *_, **__: None)
    monkeypatch.setattr(os, "environ", os.environ | {"LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    group.init_process_group(planned(H100), 1, 60.0)
    group.init_process_group(planned(CPU), 1, 60.0)
    assert told == [("nccl", torch.device("cuda", 1)), ("gloo", None)]


def test_an_abort_is_told_as_the_watchdogs_with_the_record_of_the_collectives(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    died = WorkersEnded({1: ending(-signal.SIGABRT)})
    told = str(first_failure(folder, died).error)
    assert "NCCL, whose watchdog ends a process" in told and "runtime.timeout_s" in told and "torchfrtrace" not in told
    (tmp_path / "nccl-rank-1").write_bytes(b"")
    assert f"its last collectives are in {tmp_path / 'nccl-rank-1'}" in str(first_failure(folder, died).error)
    import pickle

    def entry(name: str, number: int, sizes: list[list[int]], retired: bool) -> dict[str, object]:
        frames = [
            {"filename": "/x/torch/distributed.py", "line": 9, "name": "wrapper"},
            {"filename": "/y/zero.py", "line": 12, "name": "reduce"},
        ]
        place = {"frames": frames, "process_group": ("0", "default_pg"), "is_p2p": False, "state": "scheduled"}
        numbers = {"collective_seq_id": number, "input_sizes": sizes, "retired": retired}
        return {"profiling_name": f"nccl:{name}", **place, **numbers}

    def wrote(rank: int, *entries: dict[str, object]) -> None:
        told = {"version": "2.10", "entries": list(entries)}
        (tmp_path / f"nccl-rank-{rank}").write_bytes(pickle.dumps(told, protocol=2))

    first = entry("all_reduce", 7, [[3, 4]], True)
    wrote(1, first, entry("all_gather", 8, [[5]], False))
    wrote(0, first)
    wrote(2, first, entry("broadcast", 8, [[]], False))
    said = str(first_failure(folder, died).error)
    assert "\n    it waited in all_gather number 8 of 5, asked for in zero.py:12 in reduce\n" in said
    assert "worker 0 had not come to it; its last: all_reduce number 7 of 3x4" in said
    assert "worker 2 was in another one there: broadcast number 8 of one number" in said and "torchfrtrace" in said


@pytest.mark.slow
def test_a_flight_recorders_own_file_is_read_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    """The recorder is the same over gloo. A pickle that asks for anything but plain data is refused."""
    import os as system
    import pickle

    file = tmp_path / "nccl-rank-0"
    wrote = python(
        "-c",
        "import os; os.environ['TORCH_FR_BUFFER_SIZE'] = '9'\n"
        "import sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "dist.all_reduce(torch.ones(3)); dist.broadcast(torch.ones(2, 4), 0)\n"
        "import pickle, time\n"
        "for _ in range(200):  # that one has ended is noted by a thread of its own\n"
        "    trace = torch._C._distributed_c10d._dump_fr_trace()\n"
        "    if all(entry['retired'] for entry in pickle.loads(trace)['entries']): break\n"
        "    time.sleep(0.1)\n"
        "open(sys.argv[1], 'wb').write(trace)\n",
        file,
        cwd=tmp_path,
    )
    assert wrote.code == 0, wrote.err
    assert [(f.name, f.number, f.sizes, f.done) for f in flights.read(file, 0)] == [
        ("all_reduce", 1, ((3,),), True),
        ("broadcast", 2, ((2, 4),), True),
    ]
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"cut off|pickle exhausted|expected"):
        flights.read(file, 0)

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return system.mkdir, (str(tmp_path / "ran"),)

    file.write_bytes(pickle.dumps({"entries": [Trap()]}, protocol=2))
    with pytest.raises(ValueError, match="it asks for GLOBAL, which plain data does not"):
        flights.read(file, 0)
    assert "cannot be read: it asks for GLOBAL" in flights.in_words(tmp_path, 0) and not (tmp_path / "ran").exists()


def test_a_cluster_with_gpus_does_not_train_on_its_cpus_by_mistake() -> None:
    values = small_config("mlp", "data/x", "") | {"runtime": {"kind": "ray", "workers": 2, "address": "head:6379"}}
    plan = make_plan(config_from_dict(values), MODEL, DATA, CPU)
    with pytest.raises(InputError, match=r"the Ray cluster has 8 GPUs and this machine none(?s:.*)gpus_per_worker=1"):
        refuse_idle_gpus(plan, 8.0)
    refuse_idle_gpus(plan, 0)
    values["runtime"]["gpus_per_worker"] = 0
    refuse_idle_gpus(make_plan(config_from_dict(values), MODEL, DATA, CPU), 8.0)
