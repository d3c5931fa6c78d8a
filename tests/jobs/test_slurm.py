"""Slurm: the script that is sent, Slurm's answers in our words, and real jobs on a real Slurm of two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from distdl.checkpoint.layout import checkpoints
from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError
from distdl.jobs.package import make_package
from distdl.jobs.slurm import SlurmTarget
from distdl.jobs.target import Package, State, job_id
from tests.conftest import REPOSITORY, distdl
from tests.runtime.slurm_cluster import slurm_cluster

STEPS, EVERY = 2000, 50


def config(folder: Path, name: str, digits: str, **launch: Any) -> Path:
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
        "runtime": {"kind": "ray", "workers": 2},
        "launch": {"folder": str(folder / "shared"), **launch},
    }
    (folder / "shared").mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


# -- the script ----------------------------------------------------------------------------------------------------------


def packed(path: Path, *overrides: str, fresh: bool = False) -> Package:
    return make_package(str(path), overrides, fresh=fresh, directory=path.parent / "package")


def headers(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_the_script_asks_for_what_the_config_says(tmp_path: Path, digits: str) -> None:
    slurm = {
        "partition": "gpu",
        "account": "physics",
        "qos": "long",
        "memory_gib_per_node": 100.5,
        "gpu_type": "h100",
        "signal_s": 300,
        "setup": ["module load cuda/13", "source /shared/venv/bin/activate"],
        "options": ["--constraint=ib"],
    }
    environment = {"NCCL_SOCKET_IFNAME": "ib0", "ODD": "a 'b' $c"}
    path = config(
        tmp_path, "Big_Run", digits, slurm=slurm, workers_per_node=4, deadline_hours=36, environment=environment
    )
    big = ("runtime.workers=6", "runtime.gpus_per_worker=1", "runtime.cpus_per_worker=3.5", "train.global_batch=24")
    target = SlurmTarget(Launch(folder=str(tmp_path / "shared")))
    text = target.dry_run(packed(path, *big, fresh=True))
    folder = tmp_path / "shared" / ".distdl" / "jobs" / job_id("Big_Run")
    assert headers(text) == [
        f"--job-name=distdl-{job_id('Big_Run')}",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=14",
        "--gpus-per-node=h100:4",
        "--mem=102912M",
        "--time=2160",
        "--partition=gpu",
        "--account=physics",
        "--qos=long",
        "--signal=B:USR1@300",
        "--requeue",
        "--open-mode=append",
        f"--output={folder}/log-%j.txt",
        f"--chdir={folder}/package",
        "--constraint=ib",
    ]
    settings, _, body = text.partition("# shellcheck shell=bash\n")
    told = subprocess.run(
        ["bash", "-c", f'{settings}\nenv -0 | grep -z ^ODD=; printf "%s\\0" "${{train[@]}}"; declare -f setup'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.split("\0")[0] == "ODD=a 'b' $c"
    arguments = told.split("\0")[1:-1]
    of_package = packed(path, *big, fresh=True).train_arguments(
        str(folder / "package" / "config.yaml"), str(tmp_path / "shared")
    )
    assert arguments == [*of_package, "runtime.grace_s=285.0"], "of the 300 s between the signal and the end"
    assert "\ngrace_s=290\n" in settings and "\nname=Big_Run\n" in settings
    assert "export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=3600\n" in settings
    assert "--fresh" in arguments and "module load cuda/13" in told
    assert "python=python3\n" in settings, "the setup lines bring their own Python"
    assert body.rstrip() in (REPOSITORY / "distdl" / "jobs" / "slurm.sh").read_text()


def test_the_signal_comes_as_early_as_the_checkpoint_needs(tmp_path: Path, digits: str) -> None:
    """A run that asks for ten minutes gets them, whatever signal_s says."""
    path = config(tmp_path, "slow", digits, slurm={"signal_s": 120})
    text = SlurmTarget(Launch(folder=str(tmp_path / "a b"))).dry_run(packed(path, "runtime.grace_s=600.0"))
    assert "--signal=B:USR1@615" in headers(text) and "runtime.grace_s=600.0)" in text and "\ngrace_s=605\n" in text
    assert f"--output='{tmp_path}/a b/.distdl/jobs/slow/log-%j.txt'" in headers(text)
    odd = SlurmTarget(Launch(folder=str(tmp_path / "100%j"))).dry_run(packed(path))
    assert f"--output={tmp_path}/100%%j/.distdl/jobs/slow/log-%j.txt" in headers(odd), "%j in a folder is no job number"


def test_a_doctor_asks_for_half_an_hour(tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition may not give a week, and nobody wants a look at the nodes to hold them so long."""
    from distdl.cli.main import main

    sent: list[Package] = []

    def submit(self: SlurmTarget, package: Package) -> Any:
        sent.append(package)
        raise InputError("seen")

    monkeypatch.setattr(SlurmTarget, "submit", submit)
    assert main(["doctor", "--config", str(config(tmp_path, "looked", digits)), "--on", "slurm"]) == 2
    text = SlurmTarget(sent[0].config.launch).dry_run(sent[0])
    assert "--time=30" in headers(text) and "\nmax_retries=0\n" in text and "train=(doctor " in text


def test_few_workers_on_one_node_without_gpus(tmp_path: Path, digits: str) -> None:
    path = config(tmp_path, "small", digits, workers_per_node=8)
    text = SlurmTarget(Launch(folder=str(tmp_path / "shared"))).dry_run(packed(path))
    assert headers(text)[1:4] == ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2"]
    assert not [line for line in headers(text) if line.startswith(("--gpus", "--mem", "--partition"))]
    assert f"python={sys.executable}\n" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


# -- Slurm's answers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SlurmTarget]:
    """A target whose Slurm commands answer with these texts; a text that begins with ! is an error."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(**texts: str) -> SlurmTarget:
        for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel"):
            text = texts.get(name, "! Slurm accounting storage is disabled" if name == "sacct" else "")
            (folder / name).write_text(
                f"#!/bin/sh\n{'cat >&2' if text[:1] == '!' else 'cat'} <<'END'\n{text.removeprefix('!')}\nEND\n"
                f"exit {int(text[:1] == '!')}\n"
            )
            (folder / name).chmod(0o755)
        return SlurmTarget(Launch(folder=str(tmp_path)))

    return make


SHOWN = (
    "JobId=7 JobName=distdl-x UserId=u(1) JobState={state} Reason={reason} Requeue=1 Restarts={restarts} "
    "ExitCode={code} StartTime=1795273631 WorkDir=/x"
)


@pytest.mark.parametrize(
    ("slurm_state", "reason", "state", "words"),
    [
        ("PENDING", "Resources", State.QUEUED, "waiting for free nodes"),
        ("PENDING", "BeginTime", State.QUEUED, "attempt 3"),
        ("PENDING", "QOSMaxGRESPerUser", State.QUEUED, "QOSMaxGRESPerUser"),
        ("CONFIGURING", "None", State.QUEUED, ""),
        ("RUNNING", "None", State.RUNNING, ""),
        ("COMPLETING", "None", State.RUNNING, ""),
        ("SUSPENDED", "None", State.RUNNING, ""),
        ("COMPLETED", "None", State.FINISHED, ""),
        ("CANCELLED", "None", State.STOPPED, ""),
        ("TIMEOUT", "TimeLimit", State.FAILED, "time limit"),
        ("FAILED", "NonZeroExitCode", State.FAILED, "exit code 2: error: the config is wrong"),
        ("NODE_FAIL", "NodeDown", State.FAILED, "a node failed"),
        ("OUT_OF_MEMORY", "OutOfMemory", State.FAILED, "memory_gib_per_node"),
        ("PREEMPTED", "None", State.FAILED, "pre-empted"),
    ],
)
def test_states_in_our_words(
    answers: Any, tmp_path: Path, slurm_state: str, reason: str, state: State, words: str
) -> None:
    code = "2:0" if slurm_state == "FAILED" else "0:0"
    shown = SHOWN.format(state=slurm_state, reason=reason, restarts=2, code=code)
    target = answers(squeue="3|distdl-x\n7|distdl-x\n9|other", scontrol=shown)
    folder = tmp_path / ".distdl" / "jobs" / "x"
    folder.mkdir(parents=True)
    (folder / "log-7.txt").write_text("tracking: http://mlflow/#/runs/1\nerror: the config is wrong\n    fix: it\n")
    job = target.job("x")
    assert (job.state, job.attempt, job.started_s) == (state, 3, 1795273631.0)
    assert words in job.message and "Slurm job 7" in job.message
    assert job.tracking == "http://mlflow/#/runs/1"
    if slurm_state == "FAILED":
        (folder / "log-7.txt").write_text("distdl: the data is missing\n    fix: prepare it\n")
        assert target.job("x").message.endswith("exit code 2: the data is missing; fix: prepare it")


def test_a_job_that_the_controller_has_forgotten(answers: Any, tmp_path: Path) -> None:
    """The accounting database tells, else what the job wrote down, else nobody."""
    assert answers().job("x").state is State.LOST
    folder = tmp_path / ".distdl" / "jobs" / "x"
    folder.mkdir(parents=True)
    (folder / "log-8.txt").write_text("")
    assert answers().job("x").state is State.LOST
    for how, state in (("finished 0", State.FINISHED), ("stopped 130", State.STOPPED), ("failed 1", State.FAILED)):
        (folder / "end-8").write_text(how + "\n")
        assert answers(squeue="7|distdl-x").job("x").state is state
    job = answers(sacct="CANCELLED by 0|0:15|1795273631").job("x")
    assert job.state is State.STOPPED and job.started_s == 1795273631.0
    assert answers(sacct="OUT_OF_MEMORY|0:125|Unknown").job("x").message == (
        "Slurm job 8: out of memory: raise launch.slurm.memory_gib_per_node"
    )


def test_refusals_are_slurms_own_words(answers: Any, tmp_path: Path, digits: str) -> None:
    package = packed(config(tmp_path, "x", digits))
    refused = answers(sbatch="!sbatch: error: Batch job submission failed: Invalid account or account/partition")
    with pytest.raises(InputError, match="Invalid account or account/partition"):
        refused.submit(package)
    with pytest.raises(DistdlError, match="cannot be reached") as caught:
        answers(squeue="!slurm_load_jobs error: Unable to contact slurm controller (connect failure)").job("x")
    assert caught.value.exit_code == 1
    alive = answers(squeue="7|distdl-x", scontrol=SHOWN.format(state="RUNNING", reason="None", restarts=0, code="0:0"))
    with pytest.raises(InputError, match=r"x is alive on Slurm: running .*\n.*distdl jobs stop x"):
        alive.submit(package)
    folder = tmp_path / ".distdl" / "jobs" / "x"
    assert json.loads((folder / "job.json").read_text()) == {"run": "x", "owner": package.owner}
    (folder / "job.json").write_text(json.dumps({"run": "x", "owner": "bob@there"}))
    with pytest.raises(InputError, match="belongs to bob@there") as caught:
        alive.submit(package)
    assert "jobs stop" not in str(caught.value), "advice that ends somebody else's job"


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DistdlError, match="there is no squeue on this machine\n    fix: launch from a login node"):
        SlurmTarget(Launch()).jobs()


# -- a real Slurm --------------------------------------------------------------------------------------------------------


class World(NamedTuple):
    tmp: Path
    digits: str

    @property
    def shared(self) -> Path:
        return self.tmp / "shared"

    def config(self, name: str, **slurm: Any) -> Path:
        """A run on two nodes that differ by their loopback address."""
        mine = ["export DISTDL_NODE_IP=127.0.1.$((SLURM_NODEID + 1))", f"PATH={Path(sys.executable).parent}:$PATH"]
        slurm = {"memory_gib_per_node": 2, "signal_s": 60, "setup": mine, **slurm}
        return config(
            self.tmp, name, self.digits, slurm=slurm, start_deadline_minutes=3, deadline_hours=0.5, max_retries=1
        )

    def call(self, *arguments: object, code: int = 0) -> str:
        done = distdl(*arguments, cwd=self.tmp)
        assert done.code == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def reference(self) -> dict[int, float]:
        """Step -> loss of the same run by two local processes, never interrupted."""
        local = self.tmp / "local"
        if not local.exists():
            local.mkdir()
            done = distdl("train", self.config("local"), "runtime.kind=local", cwd=local)
            assert done.code == 0, done.stdout + done.stderr
        return losses(local / "runs" / "local")

    def reached(self, name: str, step: int) -> Callable[[], bool]:
        return lambda: any(found >= step for found, _ in checkpoints(self.shared / "runs" / name / "checkpoints"))

    def the_mlflow_run(self, name: str) -> tuple[Any, dict[int, float]]:
        """The one MLflow run of a run's name, finished; step -> loss, every step once."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.shared / 'runs' / 'mlflow.db'}")
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        runs = [run for run in found if run.info.run_name == name]
        assert [run.info.status for run in runs] == ["FINISHED"]
        points = client.get_metric_history(runs[0].info.run_id, "train/loss")
        assert len({p.step for p in points}) == len(points)
        return runs[0], {p.step: p.value for p in points}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, digits: str) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTDL_HOME", str(tmp / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield World(tmp, digits)


def losses(run: Path) -> dict[int, float]:
    """Step -> loss as the run's spool has it, the last word on every step."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {e["step"]: e["values"]["loss"] for e in events if e["kind"] == "metrics"}


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def number_of(name: str) -> str:
    """Slurm's number of the newest job of this name."""
    return max(slurm("squeue", "-h", "-t", "all", f"--name=distdl-{name}", "-o", "%i").split(), key=int)


def wait_for(condition: Callable[[], Any], what: str, log: Path, timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        texts = [path.read_text() for path in log.glob("log-*.txt")]
        assert time.monotonic() < end, f"no {what} within {timeout_s:g} s: {texts}"
        time.sleep(0.1)


def leftovers() -> list[str]:
    """Processes and temporary folders of a Ray cluster in a job; the folders of others on this machine do not count."""
    return [line for line in slurm("ps", "-eo", "args").splitlines() if "--temp-dir=/tmp/distdl-" in line]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_job_that_slurm_requeues_itself_is_not_cancelled(world: World) -> None:
    """As after a lost node, or by an administrator: Slurm ends every process of the job and queues it again."""
    path, jobs = world.config("lost"), world.shared / ".distdl" / "jobs" / "lost"
    world.call("launch", path, "--on", "slurm")
    wait_for(world.reached("lost", 100), "checkpoint", jobs)
    slurm("scontrol", "requeue", number_of("lost"))
    assert "attempt 2 of Slurm job" in world.call("jobs", "logs", "lost", "-f")
    _, points = world.the_mlflow_run("lost")
    assert points == pytest.approx(world.reference(), rel=1e-6)
    assert "lost: finished" in world.call("jobs", "status", "lost")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_requeued_job_continues_its_run(world: World) -> None:
    """Two nodes; Slurm's warning before the time limit comes in the middle. One MLflow run, the numbers of a run that
    nothing happened to; what was sent is what --dry-run printed."""
    path, jobs = world.config("requeued"), world.shared / ".distdl" / "jobs" / "requeued"
    printed = world.call("launch", path, "--on", "slurm", "--dry-run")
    assert not jobs.exists()
    world.call("launch", path, "--on", "slurm")
    assert (
        (jobs / "job.sbatch").read_text()
        == printed
        == slurm("scontrol", "write", "batch_script", number_of("requeued"), "-") + "\n"
    )
    assert "is alive" in world.call("launch", path, "--on", "slurm", code=2)
    token = jobs / f"token-{number_of('requeued')}"
    wait_for(token.exists, "start", jobs, 60)
    assert (token.stat().st_mode & 0o777, jobs.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "requeued: running" in world.call("jobs", "status")

    # nothing between these two: the signal has to come before the last step
    wait_for(world.reached("requeued", 100), "checkpoint", jobs)
    slurm("scancel", "--batch", "--signal=USR1", number_of("requeued"))
    lines = world.call("jobs", "logs", "-f")
    assert "the job is requeued" in lines and "attempt 2 of Slurm job" in lines
    assert not list(jobs.glob("failures-*")), "the end was orderly: it is no failed attempt"
    status = world.call("jobs", "status")
    run, points = world.the_mlflow_run("requeued")
    assert "requeued: finished" in status and run.info.run_id in status
    assert points == pytest.approx(world.reference(), abs=1e-6)
    assert losses(world.shared / "runs" / "requeued") == pytest.approx(world.reference(), abs=1e-6)
    wait_for(lambda: not leftovers(), "end of Ray", jobs, 30)
    assert not list(jobs.glob("token-*"))


@pytest.mark.slow
def test_a_job_that_cannot_start_fails_with_its_reason(world: World) -> None:
    world.call("launch", world.config("unready", setup=["module load no-such-thing", "exit 7"]), "--on", "slurm")
    wait_for(lambda: "unready: failed" in world.call("jobs", "status", "unready"), "failure", world.shared, 60)
    status = world.call("jobs", "status", "unready")
    assert "exit code 127" in status and "module: command not found" in status
    assert "module: command not found" in world.call("jobs", "logs", "unready")

    wrong = world.call("launch", world.config("elsewhere", partition="nowhere"), "--on", "slurm", code=2)
    assert "invalid partition specified: nowhere" in wrong


@pytest.mark.slow
def test_a_waiting_job_is_stopped_at_once(world: World) -> None:
    path = world.config("waiting", options=["--begin=now+1hour"])
    world.call("launch", path, "--on", "slurm")
    assert "waiting: queued" in world.call("jobs", "status", "waiting")
    assert "waiting: stopped" in world.call("jobs", "stop", "waiting")


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_stopped_job_is_resumed(world: World) -> None:
    """`distdl jobs stop` gives it the time for a checkpoint; scancel does not, and its run goes on as well."""
    jobs = world.shared / ".distdl" / "jobs" / "stopped"
    world.call("launch", world.config("stopped"), "--on", "slurm")
    wait_for(world.reached("stopped", 100), "checkpoint", jobs)
    assert "stopped: stopped" in world.call("jobs", "stop", "stopped")
    log = next(jobs.glob("log-*.txt")).read_text()
    assert "asked to stop" in log or "interrupted" in log
    world.call("jobs", "resume", "stopped")
    last = max(found for found, _ in checkpoints(world.shared / "runs" / "stopped" / "checkpoints"))
    wait_for(world.reached("stopped", last + 100), "next checkpoint", jobs)
    slurm("scancel", number_of("stopped"))
    wait_for(lambda: "stopped: stopped" in world.call("jobs", "status", "stopped"), "end", jobs, 60)
    assert "is finished already" not in world.call("jobs", "resume", "stopped", "--follow")
    assert "stopped: finished" in world.call("jobs", "status", "stopped")
    _, points = world.the_mlflow_run("stopped")
    assert points == pytest.approx(world.reference(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_slurms_own_time_limit_and_the_script_written_by_hand(world: World) -> None:
    """launch/slurm.sbatch, with two minutes for each attempt: Slurm sends the signal, and the run needs more than one."""
    setup = world.tmp / "setup.sh"
    setup.write_text(
        f"export DISTDL_NODE_IP=127.0.1.$((SLURM_NODEID + 1)) PYTHONPATH={REPOSITORY}\n"
        f"export DISTDL_PYTHON={sys.executable} PATH={Path(sys.executable).parent}:$PATH\n"
    )
    path, steps = world.config("limited"), 400_000
    environment = {**os.environ, "DISTDL_SETUP": str(setup)}
    command = ["sbatch", "--parsable", "--time=3", "--signal=B:USR1@60", "--cpus-per-task=1", "--mem=2G"]
    sent = [*command, str(REPOSITORY / "launch" / "slurm.sbatch"), str(path), f"train.steps={steps}"]
    number = subprocess.run(sent, cwd=world.shared, env=environment, capture_output=True, text=True).stdout.strip()
    assert number.isdigit()
    log = world.shared / f"distdl-{number}.log"
    wait_for(lambda: log.exists() and "attempt 2 of Slurm job" in log.read_text(), "second attempt", world.shared)
    assert "the job is requeued" in log.read_text()
    last = max((found for found, _ in checkpoints(world.shared / "runs" / "limited" / "checkpoints")), default=0)
    wait_for(world.reached("limited", last + 1), "further checkpoint", world.shared)
    slurm("scancel", "--batch", "--signal=USR2", number)
    wait_for(lambda: "JobState=CANCELLED" in slurm("scontrol", "show", "job", number), "end", world.shared, 90)
    assert (world.shared / ".distdl" / "slurm" / number / f"end-{number}").read_text() == "stopped 130\n"
