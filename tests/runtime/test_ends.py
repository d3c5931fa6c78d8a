"""How runs end that do not end well: the right worker is named, in time; only what a restart may cure is tried again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.config.load import config_from_dict
from distdl.errors import DistdlError, InputError, TrainingFailed
from distdl.run import heartbeat
from distdl.run.folder import RunFolder
from distdl.run.heartbeat import Beat, Pulse, Who, beating, make_beats, read_beats
from distdl.runtime.blame import WorkersEnded, ending, first_failure, goes_on
from distdl.runtime.launch import launch
from distdl.runtime.ray import _deaths
from distdl.runtime.watch import Seen, Watch, out_of_step, state_and_kill, suspect
from distdl.track.spool import SpoolReader
from distdl.train import worker
from distdl.train.failures import is_consequence, is_lasting
from distdl.train.hooks.stop import Stop
from distdl.train.survey import survey
from tests.conftest import REPOSITORY
from tests.small import small_config

pytestmark = pytest.mark.alone

# -- who keeps the others waiting --------------------------------------------------------------------------------------


def at(rank: int, step: int = 25, phase: str = "forward", silent_s: float = 0.0, **more: Any) -> Seen:
    return Seen(Beat(rank, 100 + rank, "a", step=step, phase=phase, **{"limit_s": 30.0, **more}), silent_s)


def waiting(rank: int, still_s: float = 33.0, **more: Any) -> Seen:
    return at(rank, **{"phase": "backward", "still_s": still_s, "waits": "all_reduce", **more})


@pytest.mark.parametrize(
    ("seen", "guilty"),
    [
        ([waiting(0), at(1, still_s=31.0)], 1),  # a loader that hangs, a loss that sleeps
        ([waiting(0), at(1, still_s=29.0)], None),
        ([waiting(0), at(1, silent_s=31.0)], 1),  # stopped: no beat arrives
        ([waiting(0), waiting(1, still_s=3.0, silent_s=31.0)], 1),  # stopped while it waited, too
        ([waiting(0), at(1, 0, "start-up", silent_s=31.0, limit_s=600.0)], 1),  # the step went on before the next beat
        ([waiting(0), at(1, 0, "checkpoint", still_s=31.0, limit_s=600.0)], None),  # its first one
        ([at(0, still_s=50.0), at(1, still_s=50.0)], None),  # all are slow, nobody waits
        ([at(0, silent_s=50.0), at(1, silent_s=50.0)], None),  # the file system, or a suspended machine
        ([waiting(0), at(1, still_s=2.0)], None),  # it moves: a slow rank
        ([waiting(0), waiting(1), at(2, still_s=40.0)], 2),
        ([waiting(0), waiting(1)], None),  # in the same collective
        ([at(0, still_s=33.0, waits="barrier"), waiting(1)], 1),  # it has left the barrier out
        ([waiting(0), waiting(1, step=26), waiting(2)], 1),
        ([waiting(0), at(1, phase="end", still_s=99.0)], None),
    ],
)
def test_the_rank_that_is_not_waiting_is_named(seen: list[Seen], guilty: int | None) -> None:
    found = suspect(seen)
    assert (found[0].beat.rank if found else None) == guilty


def test_of_two_in_different_collectives_it_is_the_one_with_fewer_behind_it() -> None:
    same = {"step": 25, "phase": "forward", "waits": "all_reduce"}
    beats = [
        Beat(0, 1, "a", place="loss (f.py:3)", collectives=8, **same),
        Beat(1, 2, "a", place="loss (f.py:9)", **same),
    ]
    assert out_of_step(beats) == 1


def test_a_phase_may_take_ten_times_as_long_as_usual_and_its_first_time_any_time(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pulse = Pulse()
    assert pulse.limit_s(30.0, 600.0) == 600.0  # start-up
    for step in range(1, 5):
        pulse.at("data", step)
        assert pulse.limit_s(30.0, 600.0) == (600.0 if step == 1 else 70.0)
        now[0] += 1.0
        pulse.at("forward")
        now[0] += 6.0
    pulse.at("checkpoint")
    assert pulse.limit_s(30.0, 600.0) == 600.0
    now[0] += 9.0
    pulse.at("data", 5)
    pulse.at("checkpoint")
    assert pulse.limit_s(30.0, 600.0) == 90.0


def test_who_was_frozen_is_not_late_the_moment_it_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    """Neither the driver nor a rank counts the time that it slept through."""
    make_beats(tmp_path, 1)
    watch = Watch(tmp_path, 1, 30.0, lambda beat, stack: "")
    (tmp_path / "rank-0.beat").write_text(
        '{"rank": 0, "pid": 1, "host": "a", "count": 1, "limit_s": 30.0, "still_s": 0.0, "stack": []}'
    )
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert watch.look()[0].silent_s == 0
    now[0] += 1000
    assert watch.look()[0].silent_s <= 3.0


def test_a_heart_beats_while_its_thread_stands_still(tmp_path: Path) -> None:
    """With where it stands and its stack; a rank that ended says so; nothing is left where no driver looks."""
    make_beats(tmp_path, 1)
    pulse = Pulse()
    with beating(pulse, tmp_path, Who(0, "node"), 1.0, 5.0, alone=True):
        pulse.at("data", 3)
        end = time.monotonic() + 30
        while not ((beat := read_beats(tmp_path, 1)[0]) and beat.stack) and time.monotonic() < end:
            time.sleep(0.05)
        assert beat and (beat.step, beat.phase, beat.node, beat.pid) == (3, "data", "node", os.getpid())
        assert "test_ends.py" in beat.place and "test_a_heart_beats" in beat.stack[-1]
    beat = read_beats(tmp_path, 1)[0]
    assert beat and beat.phase == "end"
    with beating(pulse, tmp_path / "nobody", Who(0), 1.0, 5.0, alone=True):
        assert not (tmp_path / "nobody").exists()


def test_the_first_step_is_told_of_before_anything_in_it(tmp_path: Path, monkeypatch: Any) -> None:
    """Ctrl-C after it must find that there is something to write, however busy the machine is."""
    monkeypatch.setattr(heartbeat, "beat_s", lambda hang_s: 1000.0)
    make_beats(tmp_path, 1)
    watch, pulse = Watch(tmp_path, 1, 1e6, lambda beat, stack: ""), Pulse()
    with beating(pulse, tmp_path, Who(0), 1e6, 1e6, alone=True):
        pulse.at("data")
        assert not watch.underway
        pulse.at("data", 1)
        assert watch.underway


def test_a_beat_is_never_seen_torn(tmp_path: Path, monkeypatch: Any) -> None:
    """Beats of every length over each other: who reads meanwhile finds one or the other, not the end of an older one."""
    monkeypatch.setattr(heartbeat, "beat_s", lambda hang_s: 1e-4)
    make_beats(tmp_path, 1)
    pulse = Pulse()
    with beating(pulse, tmp_path, Who(0), 1e6, 1e6, alone=True):
        pulse.at("data", 1)
        for n in range(20000):
            pulse.phase = "forward" * (n % 7)
            assert read_beats(tmp_path, 1)[0], (tmp_path / "rank-0.beat").read_text()


def test_a_worker_is_not_ended_in_the_middle_of_its_stack(tmp_path: Path) -> None:
    """Which one under load writes thread by thread, the one that trains last."""
    file = tmp_path / "stack"
    file.touch()
    words = """
import signal, sys, time

def write(*_):
    for n in range(4):
        open(sys.argv[1], "a").write(f"Thread {n}\\n")
        time.sleep(0.1)

signal.signal(signal.SIGUSR2, write)
print(flush=True)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", words, str(file)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        state_and_kill(process.pid, str(file))
        assert process.wait(10) == -signal.SIGKILL
    assert file.read_text().count("Thread") == 4


# -- what is told, and what is tried again -----------------------------------------------------------------------------

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:58078")


@pytest.mark.parametrize(
    ("error", "consequence", "lasting"),
    [
        (GLOO, True, False),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True, False),
        (torch.distributed.DistStoreError("wait timeout after 600000ms"), True, False),
        (ValueError("the gloo of a user's text"), False, True),
        (KeyError("label"), False, True),
        (NotImplementedError("gloo has no such collective"), False, True),
        (ConnectionResetError("Connection reset by peer"), False, False),  # of a data store, which may answer again
        (torch.OutOfMemoryError("CUDA out of memory"), False, False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),  # until it comes again
        (TrainingFailed("the loss of step 3 is nan"), False, True),
        (InputError("no"), False, True),
    ],
)
def test_what_an_exception_means(error: BaseException, consequence: bool, lasting: bool) -> None:
    assert (is_consequence(error), is_lasting(error)) == (consequence, lasting)


def test_the_error_that_is_told_is_the_cause(tmp_path: Path) -> None:
    """Whoever speaks first: a rank that only lost another is told of last, and only with what is known of that one."""
    folder = RunFolder(tmp_path)
    folder.begin()

    def told(error: Exception, hung: str = "") -> str:
        return str(first_failure(folder, error, hung).error)

    assert told(ImportError("no ray")) == "the workers could not be run: ImportError: no ray"
    make_beats(folder.attempt.ranks, 2)
    done = folder.attempt.ranks / "rank-0.beat"
    done.write_text('{"rank": 0, "pid": 4, "host": "b", "phase": "end", "stack": []}')
    assert "worker 1 was killed" in told(WorkersEnded({0: ending(0), 1: ending(-6)}))
    done.unlink()
    worker._note_failure(folder, 0, GLOO)
    assert "worker 0 only says that it lost another" in told(WorkersEnded({}))
    for code, words in [(7, "exited with code 7 without a word"), (0, "exited with code 0 without a word")]:
        assert f"worker 1 {words}" in told(WorkersEnded({1: ending(code), 0: ending(1)}))
    said = told(WorkersEnded({1: ending(-11), 0: ending(1)}))
    assert "worker 1 was killed by signal 11, SIGSEGV" in said and "native code" in said and "memory (" not in said
    assert "out of memory" in told(WorkersEnded({1: ending(-9)})) and "shorter" in told(WorkersEnded({1: ending(-7)}))
    assert "there is no checkpoint yet" in said and "last checkpoint" not in said
    (folder.checkpoints / "step_00000004").mkdir(parents=True)
    (folder.checkpoints / "step_00000004" / "manifest.json").write_text("{}")
    assert goes_on(folder) == "the same command continues from the last checkpoint"

    make_beats(folder.attempt.ranks, 2)  # on Ray no exit code is known, but where rank 1 was
    (folder.attempt.ranks / "rank-1.beat").write_text('{"rank": 1, "pid": 5, "host": "b", "step": 9, "stack": []}')
    assert "worker 1 (process 5 on b) died without a word" in told(WorkersEnded({}))
    worker._note_failure(folder, 0, RuntimeError("[gloo] Timed out waiting 600000ms for recv operation to complete"))
    assert "worker 1 (process 5 on b) kept the others waiting" in told(WorkersEnded({}))
    worker._note_failure(folder, 1, ValueError("the user's own bug"))
    failure = first_failure(folder, WorkersEnded({0: ending(1), 1: ending(1)}))
    assert "worker 1 failed: ValueError: the user's own bug" in str(failure.error) and failure.lasting
    worker._note_failure(folder, 1, TrainingFailed("disk full"))
    assert told(WorkersEnded({0: ending(1), 2: ending(-9)})) == "disk full"
    assert told(WorkersEnded({1: ending(-9)}), "worker 1 hung").startswith("worker 1 hung")


def test_a_death_that_only_rays_controller_met_is_told_by_its_process(tmp_path: Path) -> None:
    """Between two of its looks: its error has no ranks, and the other worker was ended before it could say a word."""
    folder, died = RunFolder(tmp_path), "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n"
    folder.begin()
    make_beats(folder.attempt.ranks, 2)
    for rank, pid in ((0, 41), (1, 412)):
        words = f'{{"rank": {rank}, "pid": {pid}, "host": "b", "node": "n", "step": 9, "stack": []}}'
        (folder.attempt.ranks / f"rank-{rank}.beat").write_text(words)
    ray = SimpleNamespace(nodes=lambda: [{"NodeID": "n", "Alive": True}])
    error = RuntimeError(
        f"Training failed due to controller error:\n{died}\tpid: 412\n\tip: 10.0.0.1\nThe actor is dead."
    )
    told = str(first_failure(folder, WorkersEnded(_deaths(ray, folder, 2, error, 0.0), str(error))).error)
    assert told.startswith("worker 1 died without a word") and "process 412 on b" in told


# -- Ctrl-C of one worker, which trains in its driver's process ----------------------------------------------------------


def alone(digits: str, folder: Path) -> tuple[Any, RunFolder]:
    values = small_config("mlp", digits, "", train__steps=200000)
    values["checkpoint"] = {"every_steps": 50}
    run = RunFolder(folder)
    run.path.mkdir(exist_ok=True)
    run.begin()
    return survey(config_from_dict(values)), run


def interrupt(when: Any, times: int) -> threading.Thread:
    def go() -> None:
        end = time.monotonic() + 60
        while not when() and time.monotonic() < end:
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_ctrl_c_once_writes_a_checkpoint_of_the_step_and_twice_leaves_at_once(
    digits: str, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    plan, folder = alone(digits, tmp_path / "once")
    thread = interrupt(lambda: checkpoints(folder.checkpoints), 1)
    summary = launch(plan, folder)
    thread.join()
    assert not summary["finished"] and checkpoints(folder.checkpoints)[-1][0] == summary["steps"]
    assert "finishing the step and writing a checkpoint; Ctrl-C again leaves at once" in capfd.readouterr().err
    assert not folder.attempt.ranks.exists()

    monkeypatch.setattr(Stop, "after_step", lambda *_: None)  # a step that never ends
    plan, folder = alone(digits, tmp_path / "twice")
    thread = interrupt(lambda: checkpoints(folder.checkpoints), 2)
    with pytest.raises(KeyboardInterrupt):
        launch(plan, folder)
    thread.join()
    Checkpoint(checkpoints(folder.checkpoints)[-1][1])  # whole


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_leaves_at_once(digits: str, tmp_path: Path, monkeypatch: Any) -> None:
    plan, folder = alone(digits, tmp_path / "run")
    monkeypatch.setattr(worker, "_train", lambda *_: time.sleep(60))
    interrupt(folder.attempt.ranks.exists, 1)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch(plan, folder)
    assert time.monotonic() - begin < 50 and not folder.attempt.stop_requested()


# -- the real thing ----------------------------------------------------------------------------------------------------

FAULTS = ("exit", "sleep", "stop", "skip", "segfault", "runtime")


def suffering(
    kind: str, digits: str, folder: Path, faults: tuple[str, ...], **guard: Any
) -> tuple[RunFolder, list[str]]:
    """Trains on two workers of which the second has these faults; the run's folder, and what was told of each."""
    (folder / "count").touch()
    model = {"family": str(REPOSITORY / "tests" / "faulty.py"), "faults": list(faults), "count": str(folder / "count")}
    values = small_config("mlp", digits, "", train__steps=40)
    values |= {"model": model, "checkpoint": {"every_steps": 20}, "guard": {"parity_every_steps": 0, **guard}}
    values["runtime"] = {"kind": kind, "workers": 2, "max_restarts": len(FAULTS)}
    config = config_from_dict(values)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.begin()
    run.copy("faulty.py", model["family"])  # beside which the workers read the plan
    told = []
    try:
        launch(survey(config), run)
    except DistdlError as error:
        told = [str(error)]
    events = SpoolReader(run.events).poll()
    return run, [e["text"] for e in events if e["kind"] == "message" and e["level"] == "warning"] + told


@pytest.mark.slow
def test_a_ray_worker_that_is_stopped_is_named(digits: str, tmp_path: Path) -> None:
    run, told = suffering("ray", digits, tmp_path, ("stop",), hang_s=3.0)
    assert len(told) == 1 and told[0].startswith("worker 1 ") and "hung: nothing has moved for" in told[0], told
    assert "state T" in told[0] and "starting the workers again" in told[0]
    assert checkpoints(run.checkpoints)[-1][0] == 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.chaos)])
def test_whatever_happens_to_a_worker_it_is_named_and_the_run_ends_on_the_same_bits(
    kind: str, digits: str, tmp_path: Path
) -> None:
    whole, told = suffering("local", digits, tmp_path, ())
    assert told == []
    (tmp_path / "hit").mkdir()
    run, told = suffering(kind, digits, tmp_path / "hit", FAULTS, hang_s=3.0)
    assert (tmp_path / "hit" / "count").stat().st_size == len(FAULTS) == len(told), told
    said = dict(zip(FAULTS, told))
    assert all(text.startswith("worker 1 ") and "starting the workers again" in text for text in told), told
    assert ("exited with code 7" if kind == "local" else "died without a word") in said["exit"]
    for fault, words in [("sleep", "forward of step 25"), ("stop", "state T"), ("skip", "backward of step 25")]:
        assert "hung: nothing has moved for" in said[fault] and words in said[fault], said[fault]
    assert "faulty.py" in said["sleep"] and "in _fault" in said["sleep"] and "faulty.py" in said["stop"]
    assert "its last collective: " in said["sleep"] and "who waits: worker 0 in barrier of " in said["skip"]
    assert "last seen: forward of step 25" in said["segfault"] and "in _fault" in said["segfault"]
    # Ray's workers do not tell their exit code.
    assert ("SIGSEGV" if kind == "local" else "died without a word") in said["segfault"]
    assert "RuntimeError: the user's own bug" in said["runtime"]
    a, b = (Checkpoint(checkpoints(folder.checkpoints)[-1][1]) for folder in (whole, run))
    assert a.step == b.step == 40 and [n for n in a.tensors if not torch.equal(a.read(n), b.read(n))] == []


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "starts"), [("value", 1), ("runtime", 2)])
def test_an_exception_that_comes_again_is_not_retried(fault: str, starts: int, digits: str, tmp_path: Path) -> None:
    """One of Python's own for a mistake in code: never; any other: not at the same step a second time."""
    _, told = suffering("local", digits, tmp_path, (fault,) * 9)
    assert (tmp_path / "count").stat().st_size == starts == len(told)
    assert all("worker 1 failed: " in text and "the user's own bug" in text for text in told)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["local", "ray"])
@pytest.mark.parametrize("fault", ["sleep", "stop", "skip"])
def test_with_the_defaults_a_hang_is_named_within_35_seconds(
    kind: str, fault: str, digits: str, tmp_path: Path
) -> None:
    seen: dict[str, float] = {}

    def look() -> None:
        count = tmp_path / "count"
        while not (count.exists() and count.stat().st_size):
            time.sleep(0.05)
        seen["fault"] = time.monotonic()
        events = tmp_path / "run" / "events.jsonl"
        while "hung: nothing has moved" not in events.read_text(encoding="utf-8"):
            time.sleep(0.05)
        seen["told"] = time.monotonic()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    _, told = suffering(kind, digits, tmp_path, (fault,))
    thread.join(timeout=5)
    assert told[0].startswith("worker 1 ") and "hung" in told[0]
    print(f"{kind} {fault}: {seen['told'] - seen['fault']:.1f} s")
    assert seen["told"] - seen["fault"] < 35
