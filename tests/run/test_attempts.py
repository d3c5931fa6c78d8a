"""Attempts at a run: a newer one fences off an older one that is still alive, SIGTERM leaves a checkpoint, and whatever
ended an attempt, the next one makes the run what it would have been."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distdl.checkpoint import save as saving
from distdl.checkpoint.layout import checkpoints, step_folder
from distdl.checkpoint.load import Checkpoint
from distdl.checkpoint.state import RunState
from distdl.cli.display import Display
from distdl.config.load import config_from_dict
from distdl.jobs.target import tracking_link
from distdl.layout.boxes import whole
from distdl.layout.owned import Owned
from distdl.run.attempts import Attempt, TakenOver, claim
from distdl.run.folder import RunFolder
from distdl.runtime.launch import TWICE_S, launch, stop_on_signals
from distdl.track import uploader
from distdl.track.client import Tracker
from distdl.track.run import load, update
from distdl.track.spool import SpoolReader, SpoolWriter
from distdl.train import resume, worker
from distdl.train.hooks.hook import Run
from distdl.train.hooks.stop import Stop
from distdl.train.survey import survey
from tests.conftest import REPOSITORY, Result
from tests.ranks import run_ranks
from tests.small import contract_config, layout, small_config

pytestmark = pytest.mark.alone

# -- numbers -----------------------------------------------------------------------------------------------------------


def test_each_attempt_has_its_own_number_and_fences_off_all_before_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        attempts = sorted(pool.map(claim, [tmp_path] * 20), key=lambda attempt: attempt.number)
    assert [attempt.number for attempt in attempts] == list(range(1, 21))
    assert [bool(attempt.taken_over()) for attempt in attempts] == [True] * 19 + [False]
    newest = json.loads((tmp_path / "attempts" / "000020.json").read_text())
    assert (newest["number"], newest["pid"], newest["host"]) == (20, os.getpid(), os.uname().nodename)
    with pytest.raises(TakenOver, match=r"attempt \d+ \(process \d+ on .*\) has taken over this run from attempt 3,"):
        attempts[2].check()
    assert not Attempt().taken_over() and not Attempt().stop_requested()  # who only reads is never fenced off


def test_a_number_that_this_machine_does_not_see_yet_is_not_taken_twice(tmp_path: Path, monkeypatch: Any) -> None:
    """An NFS client lists a folder from its cache; creating a file exclusively is the server's business."""
    first = claim(tmp_path)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [])
    assert claim(tmp_path).number == 2 and first.taken_over()


def test_a_fence_that_is_half_written_holds(tmp_path: Path) -> None:
    old = claim(tmp_path)
    (tmp_path / "attempts" / "000001.fence").write_text('{"num')
    assert old.taken_over().startswith("a newer attempt has taken over")


# -- what an older attempt may not write -------------------------------------------------------------------------------


@pytest.fixture
def fenced(tmp_path: Path) -> RunFolder:
    """A run folder as an attempt sees it that was taken over."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.begin()
    claim(folder.path)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_of_the_run(fenced: RunFolder) -> None:
    """config.json, plan.json, launch.json and summary.json all go this way."""
    before = content(fenced.path)
    with pytest.raises(TakenOver, match="attempt 2"):
        fenced.write("summary.json", {"finished": True})
    fenced.failures.mkdir()
    with pytest.raises(TakenOver):
        worker._note_failure(fenced, 0, RuntimeError("lost its peers"))
    assert content(fenced.path) == before


def test_a_launch_leaves_the_newer_attempts_results_alone(fenced: RunFolder, digits: str) -> None:
    config = config_from_dict(small_config("mlp", digits, ""))
    RunFolder(fenced.path, 2).write("summary.json", {"finished": True})
    with pytest.raises(TakenOver):
        launch(survey(config), fenced)
    assert fenced.read("summary.json") == {"finished": True}


def test_a_worker_that_the_older_attempt_starts_again(fenced: RunFolder, digits: str) -> None:
    """It ends before it reads a checkpoint, and leaves no word of it for the newer attempt's driver to find."""
    before = content(fenced.path)
    config = config_from_dict(small_config("mlp", digits, ""))
    with pytest.raises(TakenOver, match="attempt 2"):
        worker.run(survey(config), fenced, 0)
    assert content(fenced.path) == before


def test_the_events(fenced: RunFolder) -> None:
    writer = SpoolWriter(fenced.events, flush_interval_s=60, taken_over=Attempt(fenced.path, 2).taken_over)
    writer.write("metrics", step=1, values={"loss": 1.0})
    assert writer.flush()
    claim(fenced.path)
    writer.write("metrics", step=2, values={"loss": 0.5})
    writer.close()
    assert [event["step"] for event in SpoolReader(fenced.events).poll()] == [1]


def saved_by(folder: RunFolder, step: int) -> tuple[Path, int]:
    engine = SimpleNamespace(
        rank=0,
        plan=SimpleNamespace(
            world=1,
            model=SimpleNamespace(family="mlp"),
            config={"model": {"family": "mlp"}},
            settings=SimpleNamespace(train=SimpleNamespace(precision="fp32")),
        ),
        owned=lambda: iter([Owned("weights/w", (3,), whole((3,)), torch.full((3,), float(folder.attempt.number)))]),
    )
    state = RunState(step, stopped=False, data={}, optimizer_steps={}, hooks={})
    return saving.save(folder.checkpoints, engine, state, folder.attempt)


def writer_of(path: Path) -> float:
    return float(Checkpoint(path).read("weights/w")[0])


def test_a_checkpoint(fenced: RunFolder) -> None:
    with pytest.raises(TakenOver, match="attempt 2"):
        saved_by(fenced, 10)
    assert not any(fenced.checkpoints.iterdir())
    newer = RunFolder(fenced.path, 2)
    path, _ = saved_by(newer, 10)
    with pytest.raises(TakenOver):
        saved_by(fenced, 10)
    assert writer_of(path) == 2.0


@pytest.mark.parametrize("damaged", [False, True])
def test_frozen_between_the_look_and_the_rename(tmp_path: Path, monkeypatch: Any, damaged: bool) -> None:
    """The last window: what the older attempt does when it wakes changes nothing."""
    old = RunFolder(tmp_path)
    old.begin()
    if damaged:  # the step is there, and unsound: the one way in which a checkpoint is ever replaced
        saved_by(old, 10)
        next((old.checkpoints / step_folder(10)).glob("tensors-*")).write_bytes(b"rust")
    newer = RunFolder(tmp_path)
    rename = os.rename

    def frozen(source: Any, target: Any) -> None:
        if newer.attempt.number == 0:
            newer.begin()
            found = saving.remove_drafts(newer.checkpoints) if damaged else resume.chosen(newer, {})[0]
            assert found is None
            saved_by(newer, 10)
        rename(source, target)

    monkeypatch.setattr(os, "rename", frozen)
    with pytest.raises(TakenOver, match="attempt 2"):
        saved_by(old, 10)
    assert [path.name for path in old.checkpoints.iterdir()] == [step_folder(10)]
    assert writer_of(old.checkpoints / step_folder(10)) == 2.0


def test_the_mlflow_run(fenced: RunFolder, monkeypatch: Any) -> None:
    """Neither the driver nor its uploader ends it, or sends anything to it."""
    SpoolWriter(fenced.events).close()
    tracker = Tracker(fenced.path, None, "e", "r", attempt=fenced.attempt)
    assert "attempt 2" in tracker.finish("FAILED", "lost")
    assert not fenced.events.exists()
    update(fenced.path, tracking_uri="sqlite:////nowhere/x.db", experiment="e", run_name="r")
    monkeypatch.setattr(uploader.store.Store, "connect", lambda self: pytest.fail("it talks to MLflow"))
    assert uploader.Uploader(fenced.path, 1, 0, False, 1.0, fenced.attempt.number).follow() == 1


def test_an_uploader_does_not_wait_for_ever_for_one_that_hangs(tmp_path: Path) -> None:
    with uploader.file_lock(tmp_path / "lock") as mine:
        begin = time.monotonic()
        with uploader._lock(tmp_path / "lock", 0.5) as theirs:
            assert mine and not theirs and 0.5 <= time.monotonic() - begin < 5
    with uploader._lock(tmp_path / "lock", 0.0) as theirs:
        assert theirs


def test_the_lock_is_had_once_the_older_attempt_has_ended(tmp_path: Path) -> None:
    """Otherwise a third `distdl train` without --take-over would not notice the second."""
    folder = RunFolder(tmp_path)
    first = folder.locked()
    first.__enter__()
    with RunFolder(tmp_path).locked(take_over=True):
        first.__exit__(None, None, None)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                with RunFolder(tmp_path).locked():
                    time.sleep(0.01)
            except Exception as error:
                assert "is being trained by another process" in str(error)
                return
    raise AssertionError("nobody held the lock")


# -- the hook that ends a run ------------------------------------------------------------------------------------------


def run_of(folder: Path, number: int) -> Run:
    engine = SimpleNamespace(device="cpu", all_sum=lambda tensor: tensor)
    plan = SimpleNamespace(steps=10**9, world=1)
    return Run(plan, 0, None, engine, None, None, attempt=Attempt(folder, number))  # type: ignore[arg-type]


def test_it_looks_by_the_clock_and_not_at_every_step(tmp_path: Path, monkeypatch: Any) -> None:
    claim(tmp_path)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    looks: list[float] = []
    monkeypatch.setattr(Stop, "_order", lambda self: looks.append(now[0]) or 0)
    hook = Stop(run_of(tmp_path, 1), interval_s=1.0)
    for step in range(1, 20001):
        now[0] += 0.001 if step < 10000 else 0.5
        hook.after_step(step, {})
    gaps = [b - a for a, b in pairwise(looks)]
    assert max(gaps[:12]) < 1.1 and 8 < len([t for t in looks if t < 10]) < 30
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(1.0, abs=0.01)  # slow steps: every second one


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_first_and_then_ends(tmp_path: Path, number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests were started with this signal ignored, as nohup does")
    attempt = claim(tmp_path)
    before = signal.getsignal(number)
    with stop_on_signals(attempt, 60.0, lambda: True):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the process group was signalled as well as its leader
        assert attempt.stop_requested()
        time.sleep(TWICE_S[number] + 0.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(5)
    assert signal.getsignal(number) is before
    with pytest.raises(KeyboardInterrupt), stop_on_signals(attempt, 0.1, lambda: True):  # the grace is over
        os.kill(os.getpid(), number)
        time.sleep(5)
    attempt = claim(tmp_path)
    with pytest.raises(KeyboardInterrupt), stop_on_signals(attempt, 60.0, lambda: False):  # nothing to write yet
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert not attempt.stop_requested()


def attempted(rank: int, world: int, runs: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """`worker.run` of several runs as attempts: name -> {values, folder, number, stop_after, take_over_after}.

    Returns what ended each of them and the steps done."""
    from distdl.train.hooks.stop import Stop

    ended: dict[str, list[Any]] = {}
    whole = Stop.after_step
    for name, told in runs.items():
        folder = RunFolder(Path(told["folder"]), told["number"])

        def after_step(self: Stop, step: int, metrics: Any, told: Any = told, folder: RunFolder = folder) -> None:
            if rank == 0 and step == told.get("stop_after"):
                folder.attempt.request_stop()
            if rank == 0 and step == told.get("take_over_after"):
                claim(folder.path)
            self.interval_s = 0.0  # looks at every step
            whole(self, step, metrics)

        Stop.after_step = after_step  # type: ignore[method-assign]
        torch.distributed.barrier()
        try:
            worker.run(survey(config_from_dict(told["values"])), folder, rank)
            ended[name] = ["", (folder.read("summary.json") or {}).get("finished")]
        except TakenOver as error:
            ended[name] = [str(error), None]
        torch.set_num_threads(1)
    Stop.after_step = whole  # type: ignore[method-assign]
    return ended


def curve(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> the logged means, without rates; a step that was logged twice fails."""
    points: dict[int, dict[str, float]] = {}
    for event in SpoolReader(folder / "events.jsonl").poll():
        if event["kind"] == "metrics":
            assert event["step"] not in points
            points[event["step"]] = {k: v for k, v in event["values"].items() if k != "samples_per_s"}
    return points


def last(folder: Path) -> Checkpoint:
    return Checkpoint(checkpoints(folder / "checkpoints")[-1][1])


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_goes_on_as_if_it_never_had(
    digits: str, text: str, small_data: Path, tmp_path: Path
) -> None:
    """Every kind of engine on two ranks: a checkpoint of the very step, between two logged points; then the same means and
    the same bits as without the stop. And an attempt that is taken over ends on every rank, and publishes nothing."""
    base = {
        "torch": layout(small_config("mlp", digits, text), "torch", 2),
        "zero3": layout(small_config("mlp", digits, text), "zero3", 2),
        "pipeline": layout(small_config("gpt", digits, text), "zero1+pipeline2", 2),
        "players": layout(contract_config("gan", small_data), "zero1", 2),
    }
    whole, cut, again, lost = {}, {}, {}, {}
    for name, values in base.items():
        values["checkpoint"] = {"every_steps": 20}
        for kind, runs, more in (
            ("whole", whole, {}),
            ("cut", cut, {"stop_after": 7}),
            ("lost", lost, {"take_over_after": 7}),
        ):
            folder = tmp_path / name / kind
            folder.mkdir(parents=True)
            runs[f"{name}/{kind}"] = {"values": values, "folder": str(folder), "number": claim(folder).number, **more}
        again[f"{name}/cut"] = cut[f"{name}/cut"] | {"number": 2, "stop_after": None}
    results = run_ranks(attempted, 2, whole | cut | lost)
    assert {name: results[0][name] for name in whole} == {name: ["", True] for name in whole}
    assert {name: results[0][name] for name in cut} == {name: ["", False] for name in cut}
    assert all("attempt 2" in result[name][0] for name in lost for result in results)
    for name in base:
        assert last(tmp_path / name / "cut").step == 7
        assert not checkpoints(tmp_path / name / "lost" / "checkpoints")
        claim(tmp_path / name / "cut")
    assert set(map(tuple, run_ranks(attempted, 2, again)[0].values())) == {("", True)}
    for name in base:
        a, b = last(tmp_path / name / "whole"), last(tmp_path / name / "cut")
        assert a.step == b.step == 20
        assert [n for n in a.tensors if not torch.equal(a.read(n), b.read(n))] == [], name
        one, other = curve(tmp_path / name / "whole"), curve(tmp_path / name / "cut")
        assert one.keys() == other.keys()
        assert all(one[step] == pytest.approx(other[step], rel=1e-6) for step in one), name


# -- what the driver tells ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [True, False])
def test_the_mlflow_run_is_told_once(tmp_path: Path, plain: bool) -> None:
    """The uploader notes its id some time after the start; a short run tells it at its end."""
    output = io.StringIO()
    update(tmp_path, tracking_uri="http://mlflow:5000/", experiment="e", run_name="r")
    display = Display(tmp_path, 10, "run", plain=plain, tracked=True, file=output)
    with display:
        time.sleep(0.3)
        assert tracking_link(output.getvalue().splitlines()) == ""
    update(tmp_path, experiment_id="7", mlflow_run_id="abc")
    display.tell_tracking()
    display.tell_tracking()
    lines = output.getvalue().splitlines()
    assert tracking_link(lines) == "http://mlflow:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert sum("tracking: " in line for line in lines) == 1


def test_a_folder_to_work_in_that_this_machine_does_not_have(command: Callable[..., Result], tmp_path: Path) -> None:
    code, _, err = command("train", "x.yaml", "-C", tmp_path / "shared")
    assert code == 2 and f"cannot work in the folder {tmp_path / 'shared'}" in err and "mount it" in err


# -- the real command --------------------------------------------------------------------------------------------------

STEPS = 600
YAML = f"""\
model: {{family: mlp, inputs: [1, 8, 8], hidden: [32]}}
data: {{path: DIGITS, threads: 0}}
train: {{global_batch: 32, steps: {STEPS}}}
optimizer: {{name: adamw, lr: 2e-3}}
parallel: {{engine: torch}}
evaluate: {{every_steps: 0}}
checkpoint: {{every_steps: 20}}
track: {{system_metrics_interval_s: 0}}
guard: {{parity_every_steps: 0}}
"""
LOCAL = "runtime={kind: local, workers: 2}"
RAY = "runtime={kind: ray, workers: 2}"


class Place:
    """A folder with the config in it, whose runs share one MLflow store."""

    def __init__(self, folder: Path, digits: str) -> None:
        self.folder = folder
        (folder / "elsewhere").mkdir()
        (folder / "elsewhere" / "small.yaml").write_text(YAML.replace("DIGITS", digits))
        (folder / "home").mkdir()

    def train(self, name: str, runtime: str, *more: str) -> subprocess.Popen[str]:
        arguments = ["elsewhere/small.yaml", "-C", "home", "--plain", f"name={name}", runtime, *more]
        return subprocess.Popen(
            [sys.executable, "-m", "distdl", "train", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(self.folder)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, name: str) -> Path:
        return self.folder / "home" / "runs" / name

    def mlflow(self, name: str) -> tuple[str, dict[int, float], int]:
        """End state, loss by step and number of points of the one MLflow run of this name."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder}/home/runs/mlflow.db")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        (run,) = [run for run in runs if run.info.run_name == name]
        points = client.get_metric_history(run.info.run_id, "train/loss")
        return run.info.status, {point.step: point.value for point in points}, len(points)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits: str) -> Place:
    """The uninterrupted run is there already."""
    place = Place(tmp_path_factory.mktemp("attempts"), digits)
    process = place.train("whole", LOCAL)
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0, out
    return place


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def reached(folder: Path, step: int) -> Callable[[], bool]:
    return lambda: any(found >= step for found, _ in checkpoints(folder / "checkpoints"))


def tree(process: subprocess.Popen[str]) -> list[Any]:
    import psutil

    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def assert_equals_the_whole(place: Place, name: str) -> None:
    whole, other = last(place.run("whole")), last(place.run(name))
    assert whole.step == other.step == STEPS
    assert [n for n in whole.tensors if not torch.equal(whole.read(n), other.read(n))] == []
    (ended, wanted, _), (status, got, count) = place.mlflow("whole"), place.mlflow(name)
    assert ended == status == "FINISHED"
    assert count == len(got) == len(wanted) and got == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_of_the_step(place: Place) -> None:
    """Of the process group, as a scheduler sends it: two local workers end their step, exit code 130, KILLED; the same
    command makes of it what it would have been."""
    process = place.train("asked", LOCAL)
    wait_for(reached(place.run("asked"), 20), process)
    os.killpg(process.pid, signal.SIGTERM)
    out = process.communicate(timeout=200)[0]
    assert process.returncode == 130, out
    step = last(place.run("asked")).step
    assert f"stopped after step {step:,}; the same command continues" in out and step < STEPS
    assert f"asked to stop: ends with step {step} and a checkpoint of it" in out
    assert place.mlflow("asked")[0] == "KILLED"
    info = load(place.run("asked"))
    assert info and out.count(f"tracking: MLflow run {info.mlflow_run_id} in sqlite:///") == 1

    process = place.train("asked", LOCAL)
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0 and f"restarted from step {step:,}" in out, out
    assert_equals_the_whole(place, "asked")


@pytest.mark.slow
def test_an_attempt_that_comes_back_to_life_is_fenced_off(place: Place) -> None:
    """All its processes are frozen, a newer attempt ends the run, they wake up: exit code 1, and nothing has changed."""
    old = place.train("frozen", LOCAL)
    wait_for(reached(place.run("frozen"), 20), old)
    frozen = [p for p in tree(old) if "uploader" not in " ".join(p.cmdline())]
    for process in frozen:
        process.suspend()
    try:
        refused = place.train("frozen", LOCAL)
        out = refused.communicate(timeout=200)[0]
        assert refused.returncode == 2 and "is being trained by another process" in out
        newer = place.train("frozen", LOCAL, "--take-over")
        out = newer.communicate(timeout=240)[0]
        assert newer.returncode == 0, out
        before = content(place.run("frozen"))
        assert_equals_the_whole(place, "frozen")
    finally:
        for process in reversed(frozen):
            process.resume()
    out = old.communicate(timeout=200)[0]
    assert old.returncode == 1 and "attempt 2 (process" in out and "has taken over this run from attempt 1" in out
    assert "Traceback" not in out
    changed = {k for k, v in content(place.run("frozen")).items() if before.get(k) != v}
    gone = before.keys() - content(place.run("frozen")).keys()
    changed = {
        name for name in changed if not name.startswith("pictures/")
    }  # drawn beside the newer one, after its end
    assert changed <= {"tracking.log"} and all(name.startswith("attempts/000001.ranks/") for name in gone)  # its own
    assert_equals_the_whole(place, "frozen")


@pytest.mark.slow
def test_the_head_dies_under_ray(place: Place) -> None:
    """SIGKILL of the driver and of all of its Ray; the second attempt is asked to stop; the third ends the one run."""
    process = place.train("head", RAY)
    wait_for(reached(place.run("head"), 20), process)
    for victim in tree(process):
        victim.kill()
    process.communicate(timeout=200)
    process = place.train("head", RAY, "--take-over")
    there = last(place.run("head")).step
    wait_for(reached(place.run("head"), there + 20), process)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=200)[0]
    assert process.returncode == 130 and f"restarted from step {there:,}" in out, out
    step = last(place.run("head")).step
    assert f"stopped after step {step:,}" in out and place.mlflow("head")[0] == "KILLED"
    process = place.train("head", RAY, "--take-over")
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0 and f"restarted from step {step:,}" in out, out
    assert_equals_the_whole(place, "head")
    assert Counter(p.suffix for p in (place.run("head") / "attempts").iterdir())[".fence"] == 3
