"""Jobs on a Ray cluster of several nodes, by the real command line: a node is killed, a job is stopped and resumed, and
the numbers are those of a run that nothing happened to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from distdl.checkpoint.layout import checkpoints
from tests.conftest import REPOSITORY, distdl
from tests.runtime.cluster import TOKEN, command_line, ray_cluster, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]

STEPS, EVERY = 2000, 50
MARK = "\nimport pathlib as _p, os as _o\n(_p.Path({folder!r}) / f'{{_o.getpid()}}').write_text(__file__)\n"


class World(NamedTuple):
    cluster: Any
    shared: Path
    """launch.folder: what every node sees."""
    home: Path
    """The user's home."""
    code: Path
    """A distdl whose workers leave a file in `imported` that says where they were imported from."""
    imported: Path
    reference: dict[int, float]
    """Step -> loss of the same run by two local processes, never interrupted."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, digits: str) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("ray-jobs")
    for name in ("shared", "home", "imported", "local"):
        (tmp / name).mkdir()
    shutil.copytree(REPOSITORY / "distdl", tmp / "code" / "distdl", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp / "code" / "distdl" / "train" / "worker.py").open("a") as file:
        file.write(MARK.format(folder=str(tmp / "imported")))
    code, out, error = distdl("train", config(tmp, "digits", digits), "runtime.kind=local", cwd=tmp / "local")
    assert code == 0, out + error
    reference = losses(tmp / "local" / "runs" / "digits")
    assert sorted(reference) == list(range(EVERY, STEPS + 1, EVERY))
    with ray_cluster(workers=3) as cluster:
        yield World(cluster, tmp / "shared", tmp / "home", tmp / "code", tmp / "imported", reference)


def config(folder: Path, name: str, digits: str) -> Path:
    values = {
        "name": name,
        "model": {"family": "mlp", "inputs": [1, 8, 8], "hidden": [32], "classes": 10},
        "data": {"path": digits, "threads": 0},
        "train": {"global_batch": 16, "steps": STEPS, "deterministic": True},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "parallel": {"engine": "torch"},
        "evaluate": {"every_steps": STEPS},
        "checkpoint": {"every_steps": 100},
        "guard": {"parity_every_steps": 500},
        "track": {"every_steps": EVERY, "system_metrics_interval_s": 0},
        "runtime": {"kind": "ray", "workers": 2, "max_restarts": 2},
        "launch": {"folder": str(folder / "shared"), "max_retries": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses(run: Path) -> dict[int, float]:
    """Step -> loss as the run's spool has it, the last word on every step."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {e["step"]: e["values"]["loss"] for e in events if e["kind"] == "metrics"}


def call(world: World, *arguments: object, code: int = 0) -> str:
    command, variables = command_line(world.home, *arguments, code=world.code)
    done = subprocess.run(command, env=variables, cwd=world.home, capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def the_mlflow_run(world: World, name: str) -> Any:
    """The one MLflow run of a run's name; its loss at every point, once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{world.shared / 'runs' / 'mlflow.db'}")
    everything = client.search_runs([e.experiment_id for e in client.search_experiments()])
    runs = [run for run in everything if run.info.run_name == name]
    assert [run.info.status for run in runs] == ["FINISHED"]
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    points = [(point.step, point.value) for point in history]
    assert sorted(step for step, _ in points) == sorted(world.reference), "a point is missing or there twice"
    return runs[0], dict(points)


def reached(world: World, name: str, step: int) -> Any:
    return lambda: any(found >= step for found, _ in checkpoints(world.shared / "runs" / name / "checkpoints"))


def training_node(cluster: Any) -> int:
    """A node on which a rank trains."""
    for number, process in cluster.nodes.items():
        below = psutil.Process(process.pid).children(recursive=True)
        if number and any("RayTrainWorker" in " ".join(p.cmdline()) for p in below if p.is_running()):
            return int(number)
    raise AssertionError("no node trains")


def test_a_killed_node_is_survived_as_the_same_mlflow_run(world: World, digits: str) -> None:
    """The job goes on, on the nodes that are left, and ends with the numbers of a run that nothing happened to."""
    yaml_file = config(world.shared.parent, "survivor", digits)
    told = call(world, "launch", yaml_file, "--on", world.cluster.url)
    assert "survivor was sent to" in told and "distdl jobs logs -f survivor" in told
    refused = call(world, "launch", yaml_file, "--on", world.cluster.url, code=2)
    assert "survivor is alive" in refused and "distdl jobs stop survivor" in refused

    follower = started(*command_line(world.home, "jobs", "logs", "-f", "survivor"), world.home)
    wait_for(reached(world, "survivor", 300), "a checkpoint of step 300", process=follower)
    world.cluster.kill(training_node(world.cluster))
    output, _ = follower.communicate(timeout=400)
    assert follower.returncode == 0, output
    assert output.rstrip().endswith("survivor: finished"), output

    run, points = the_mlflow_run(world, "survivor")
    assert points == pytest.approx(world.reference, rel=1e-6)
    events = (world.shared / "runs" / "survivor" / "events.jsonl").read_text()
    assert events.count('"restart"') >= 1, "the workers were never restarted: the node was killed too late"
    status = call(world, "jobs", "status", "survivor")
    assert "survivor: finished" in status and run.info.run_id in status
    assert re.search(r"survivor\s+finished\s+1 ", call(world, "jobs", "list"))
    places = {path.read_text() for path in world.imported.iterdir()}
    assert places and all("_ray_pkg_" in place for place in places), "workers import another distdl than was sent"


def test_a_stopped_job_resumes_to_the_same_numbers_as_the_same_mlflow_run(world: World, digits: str) -> None:
    """And nothing but the user's Ray token opens the cluster."""
    call(world, "launch", config(world.shared.parent, "halted", digits), "--on", world.cluster.url)
    command, variables = command_line(world.home, "jobs", "logs", "-f", "halted")
    follower = started(command, variables, world.home)
    wait_for(lambda: "tracking: " in (follower.stdout.readline() if follower.stdout else ""), "the MLflow link")
    wait_for(reached(world, "halted", 100), "a checkpoint of step 100")
    stopped = call(world, "jobs", "stop", "halted")
    assert "halted: stopped" in stopped and "distdl jobs resume halted" in stopped
    done = max(step for step, _ in checkpoints(world.shared / "runs" / "halted" / "checkpoints"))
    assert 100 <= done < STEPS
    output, _ = follower.communicate(timeout=60)
    assert follower.returncode == 1 and output.rstrip().splitlines()[-1].startswith("halted: stopped"), output
    first = re.search(r"tracking\s+(.+)", stopped)
    assert first, stopped

    resumed = call(world, "jobs", "resume", "halted", "-f")
    assert "attempt 2" in resumed and resumed.rstrip().endswith("halted: finished")
    run, points = the_mlflow_run(world, "halted")
    assert run.info.run_id in first[1] and points == pytest.approx(world.reference, rel=1e-6)

    variables.pop("RAY_AUTH_TOKEN")
    denied = subprocess.run(command, env=variables, cwd=world.home, capture_output=True, text=True, timeout=60)
    assert denied.returncode == 1 and "wants a token" in denied.stderr and "RAY_AUTH_TOKEN" in denied.stderr
    everything = "".join(p.read_text(errors="replace") for p in world.home.rglob("*") if p.is_file())
    assert TOKEN not in everything


def test_bad_input_ends_the_job_of_a_rayjob_as_stopped(world: World) -> None:
    """KubeRay tries every job again that ended as FAILED, and leaves one alone that ended as STOPPED."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(world.cluster.url, headers={"Authorization": f"Bearer {TOKEN}"})
    port = int(world.cluster.url.rpartition(":")[2])
    code = (
        "import sys; from distdl.jobs import ray_cluster; from distdl.jobs.kubernetes import rayjob_driver; "
        f"ray_cluster.DASHBOARD_PORT = {port}; "
        "sys.exit(rayjob_driver.main(['train', 'absent.yaml']))"
    )
    variables = {"PYTHONPATH": str(REPOSITORY), "RAY_AUTH_TOKEN": TOKEN}
    job = client.submit_job(entrypoint=f'python -c "{code}"', runtime_env={"env_vars": variables})
    ended = ("STOPPED", "FAILED", "SUCCEEDED")
    wait_for(lambda: client.get_job_status(job).value in ended, "the job's end")
    log = client.get_job_logs(job)
    assert client.get_job_status(job).value == "STOPPED" and "absent.yaml" in log, log
