"""The whole flow through the real command: train under both runtimes, interrupted, killed, broken; told truthfully."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from tests.conftest import REPOSITORY, Result, distdl
from tests.small import shipped

pytestmark = pytest.mark.slow
RAY = pytest.mark.xdist_group("ray")  # one cluster on the machine at a time
CONFIGS = REPOSITORY / "configs"
LOCAL = ("runtime.kind=local", "track.system_metrics_interval_s=0")
ALONE = ("runtime.kind=local", "runtime.workers=1", "parallel.engine=torch", "track.enabled=false")
"""In the test's own process, where processes are not what is shown."""
CUT_OFF = (str(shipped("mlp")), *LOCAL, "train.steps=500", "train.epochs=null", "checkpoint.every_steps=20")
"""A run that is long enough to be cut off."""

Command = Callable[..., Result]


def mlflow_runs(runs: Path) -> list[Any]:
    """Every MLflow run of a runs folder's store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(runs / 'mlflow.db').absolute()}")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(checkpoints(folder / "checkpoints")[-1][1])
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distdl", *args]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str], timeout_s: float = 180) -> None:
    """Until the run's spool tells of a checkpoint at or beyond `step`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if any(found >= step for found, _ in checkpoints(folder / "checkpoints")):
            return
        time.sleep(0.02)
    raise AssertionError(
        f"no checkpoint of step {step}: {process.communicate()[0] if process.poll() is not None else ''}"
    )


def worker_pids(process: subprocess.Popen[str]) -> list[int]:
    """Processes below `process` that hold a rank: those that torch's launcher spawned."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    return [c.pid for c in children if "multiprocessing.spawn" in " ".join(c.cmdline())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `whole` of CUT_OFF, to which nothing happened."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, error = distdl("train", *CUT_OFF, "name=whole", cwd=folder)
    assert code == 0, out + error
    return folder


@RAY
def test_quickstart_under_ray_and_under_local_give_the_same_numbers(quickstart: tuple[Path, Result]) -> None:
    """Two Ray Train workers under ZeRO-1 reach 97 % and leave everything behind; two local processes end alike."""
    tmp_path, (code, out, error) = quickstart
    assert code == 0, out + error
    accuracy = float(re.search(r"accuracy\s+([0-9.]+)", out[out.rindex("throughput") - 400 :])[1])  # type: ignore[index]
    assert accuracy >= 0.97
    for word in ("start-up", "data", "compute", "evaluation", "checkpoint", "runs/quickstart", "distdl ui", "--resume"):
        assert word in out[out.rindex("throughput") - 400 :]
    folder = tmp_path / "runs" / "quickstart"
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["world"] == 2 and plan["layout"] == "zero1" and plan["config"]["runtime"]["kind"] == "ray"

    (run,) = mlflow_runs(tmp_path / "runs")
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.002"
    assert run.data.metrics["eval/scores/accuracy"] >= 0.97
    assert any(plan["data"]["fingerprint"] in value for value in run.data.tags.values())

    untracked = ("runtime.kind=local", "track.enabled=false")
    code, out, error = distdl("train", str(shipped("quickstart")), *untracked, "name=local", cwd=tmp_path)
    assert code == 0, out + error
    ray, local = weights(folder), weights(tmp_path / "runs" / "local")
    assert all(torch.equal(ray[name], local[name]) for name in ray)

    code, out, _ = distdl("train", str(shipped("quickstart")), cwd=tmp_path)
    assert code == 0 and "finished already" in out  # nothing is trained twice by accident
    code, out, _ = distdl("evaluate", "quickstart", "--json", cwd=tmp_path)
    assert code == 0 and json.loads(out)["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)


@pytest.mark.xdist_group("whole")
def test_interrupted_by_the_user_then_resumed(whole: Path) -> None:
    """Ctrl-C: KILLED in MLflow and a checkpoint of the step; the same command ends it in the same run, bit for bit."""
    process = start("train", *CUT_OFF, "name=cut", cwd=whole)
    folder = whole / "runs" / "cut"
    wait_for_step(folder, 40, process)
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    step = checkpoints(folder / "checkpoints")[-1][0]
    assert process.returncode == 130 and f"stopped after step {step:,}; the same command continues" in out, out
    assert step < 500 and "Ctrl-C again leaves at once" in out
    by_name = {run.info.run_name: run for run in mlflow_runs(whole / "runs")}
    assert by_name["cut"].info.status == "KILLED"

    code, out, error = distdl("train", "--resume", "cut", cwd=whole)
    assert code == 0, out + error
    after = {run.info.run_name: run for run in mlflow_runs(whole / "runs")}
    assert after["cut"].info.run_id == by_name["cut"].info.run_id and after["cut"].info.status == "FINISHED"
    wanted, cut = weights(whole / "runs" / "whole"), weights(folder)
    assert all(torch.equal(wanted[name], cut[name]) for name in wanted)


@RAY
def test_interrupted_under_ray(tmp_path: Path) -> None:
    """Ctrl-C under Ray Train ends in the same way: KILLED, exit code 130, a checkpoint of the step, no orphan."""
    config = [str(shipped("mlp")), "train.steps=20000", "train.epochs=null", "checkpoint.every_steps=50"]
    process = start("train", *config, cwd=tmp_path)
    folder = tmp_path / "runs" / "mlp"
    wait_for_step(folder, 50, process)
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    step = Checkpoint(checkpoints(folder / "checkpoints")[-1][1]).step
    assert process.returncode == 130 and f"stopped after step {step:,}" in out and "Traceback" not in out, out
    (run,) = mlflow_runs(tmp_path / "runs")
    assert run.info.status == "KILLED"
    assert step > 50


@pytest.mark.xdist_group("whole")
def test_a_killed_worker_is_restarted(whole: Path) -> None:
    """SIGKILL of one of two workers: the others are ended, all start again from the checkpoint, the numbers stay."""
    process = start("train", *CUT_OFF, "name=hit", "runtime.max_restarts=1", cwd=whole)
    folder = whole / "runs" / "hit"
    wait_for_step(folder, 40, process)
    os.kill(worker_pids(process)[-1], signal.SIGKILL)
    out = process.communicate(timeout=180)[0]
    assert process.returncode == 0, out
    assert "restarted from step" in out
    wanted, hit = weights(whole / "runs" / "whole"), weights(folder)
    assert all(torch.equal(wanted[name], hit[name]) for name in wanted)
    runs = Counter(run.info.run_name for run in mlflow_runs(whole / "runs"))
    assert runs["whole"] == runs["hit"] == 1 and set(runs) <= {"whole", "hit", "cut"}


@RAY
def test_a_killed_ray_worker_is_restarted(tmp_path: Path) -> None:
    """The same under Ray Train."""
    import psutil

    config = [str(shipped("mlp")), "train.steps=1500", "train.epochs=null", "checkpoint.every_steps=50"]
    process = start("train", *config, "name=hit", cwd=tmp_path)
    folder = tmp_path / "runs" / "hit"
    wait_for_step(folder, 50, process)
    mine: list[psutil.Process] = []
    while not mine:  # rank 0 holds our spool open; a look at its files may fall between two of them
        assert process.poll() is None, "the run ended before its worker was found"
        for found in psutil.process_iter(["cmdline"]):
            if "RayTrainWorker" in " ".join(found.info["cmdline"] or []):
                mine += [found] if any(str(folder) in file.path for file in found.open_files()) else []
    mine[0].kill()
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0, out
    assert "restarted from step" in out
    (run,) = mlflow_runs(tmp_path / "runs")
    assert run.info.status == "FINISHED"


def test_not_a_number_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    """A learning rate that blows up: exit code 1; step, tensor and samples named; FAILED in MLflow; a sound checkpoint."""
    config = [str(shipped("mlp")), *LOCAL, "runtime.workers=1", "checkpoint.every_steps=1"]
    blow_up = ["optimizer={name: sgd, lr: 1e+30}", "schedule={name: constant, warmup_steps: 0}", "train.clip_norm=null"]
    code, out, error = distdl("train", *config, *blow_up, cwd=tmp_path)
    assert code == 1
    assert re.search(r"step [2-9]", error) and "not finite" in error and "row numbers" in error and "fix:" in error
    assert "Traceback" not in out + error
    (run,) = mlflow_runs(tmp_path / "runs")
    assert run.info.status == "FAILED" and "not finite" in run.data.tags["distdl.error"]
    values = weights(tmp_path / "runs" / "mlp")
    assert all(bool(torch.isfinite(value).all()) for value in values.values())


def test_gpt_beats_a_byte_bigram(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out loss of the small GPT falls below that of a byte-bigram model fitted on the same training text."""
    from distdl.data.read import Dataset

    monkeypatch.chdir(tmp_path)
    alone = ("runtime={kind: local, workers: 1}", "parallel={engine: torch}", "track.enabled=false")
    code, out, error = command("train", shipped("gpt"), *alone)
    assert code == 0, out + error
    losses = json.loads((tmp_path / "runs" / "gpt" / "summary.json").read_text())["metrics"]
    train, test = (Dataset(str(tmp_path / "data" / "stdlib"), split) for split in ("train", "test"))
    pairs = np.full((256, 256), 0.05)  # additive smoothing
    rows = train.gather(np.arange(train.rows))["tokens"]
    np.add.at(pairs, (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    log_p = np.log(pairs / pairs.sum(1, keepdims=True))
    held_out = test.gather(np.arange(test.rows))["tokens"]
    bigram = -log_p[held_out[:, :-1], held_out[:, 1:]].mean()
    assert 2.0 < bigram < 3.5
    assert losses["loss"] < bigram - 0.1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["configs/nothing.yaml"], 2, ["there is no config file"]),
        (["{configs}/quickstrat.yaml"], 2, ["did you mean", "quickstart.yaml"]),
        (["{configs}/mlp.yaml"], 2, ["did you mean", "configs/families/mlp.yaml"]),
        (
            ["{configs}/families/mlp.yaml", "data.prepare=null", "data.path=nowhere"],
            2,
            ["nowhere", "distdl data prepare"],
        ),
        (["{configs}/families/mlp.yaml", "model.hiden=3"], 2, ["model.hiden", "did you mean 'model.hidden'"]),
        (["{configs}/families/mlp.yaml", "train.global_batch=33"], 2, ["33", "2 workers", "runtime.workers="]),
        (["{configs}/families/mlp.yaml", "model.inputs=[1, 9, 9]"], 2, ["[1, 9, 9]", "[1, 8, 8]"]),
        (["{configs}/families/mlp.yaml", "runtime.address=127.0.0.1:1"], 1, ["no Ray cluster answers at 127.0.0.1:1"]),
        (["--resume", "never"], 2, ["there is no run 'never'"]),
    ],
)
def test_bad_input_gets_one_clear_message(
    tmp_path: Path, digits: str, arguments: list[str], code: int, words: list[str]
) -> None:
    arguments = [a.replace("{configs}", str(CONFIGS)) for a in arguments]
    if "mlp.yaml" in arguments[0] and "data.path=nowhere" not in arguments:
        arguments.append(f"data.path={digits}")
    got, out, error = distdl("train", *arguments, cwd=tmp_path)
    assert got == code, out + error
    assert all(word in error for word in words), error
    assert "Traceback" not in out + error


def test_another_config_does_not_continue_a_run(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = [shipped("mlp"), *ALONE, "train.epochs=1"]
    assert command("train", *config).code == 0
    code, _, error = command("train", *config, "optimizer.lr=0.5")
    assert code == 2 and "optimizer.lr: 0.002 there, 0.5 now" in error and "--fresh" in error
    assert command("train", *config, "optimizer.lr=0.5", "--fresh").code == 0
    assert (tmp_path / "runs" / "mlp-2" / "summary.json").is_file()


def test_a_corrupt_shard_stops_the_run_with_its_name(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("data", "prepare", "digits", "data/digits").code == 0
    shard = next((tmp_path / "data" / "digits").glob("train-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    two = ("runtime.kind=local", "runtime.workers=2", "track.enabled=false")
    code, out, error = distdl("train", str(shipped("mlp")), *two, cwd=tmp_path)
    assert code == 1 and shard.name in error and "Traceback" not in out + error
    assert command("data", "verify", "data/digits").code == 1


def test_early_stopping(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops when the metric stands still, says so, and a continued run stays stopped."""
    monkeypatch.chdir(tmp_path)
    still = ("optimizer.lr=1e-9", "train.epochs=200", "evaluate.every_steps=20")  # at once, and not after a minute
    config = [shipped("mlp"), *ALONE, *still]
    code, out, error = command("train", *config, "early_stopping={patience: 3}")
    assert code == 0, error
    assert "stopped early: accuracy has not improved for 3 evaluations" in out
    summary = json.loads((tmp_path / "runs" / "mlp" / "summary.json").read_text())
    assert summary["stopped_early"] and summary["steps"] < 4000
    code, out, _ = command("train", *config, "early_stopping={patience: 3}")
    assert code == 0 and "finished already" in out
