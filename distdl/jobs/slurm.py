"""Slurm: the run becomes a batch job that holds one Ray cluster, driven by sbatch, squeue, scontrol, sacct and scancel.

`slurm.sh` beside this file is what happens inside the allocation. Everything of a job lies in
FOLDER/.distdl/jobs/ID/, where FOLDER is `launch.folder`: package/, job.sbatch, job.json (whose it is), log-N.txt of Slurm
job N, and end-N.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distdl.config.launch import Launch
from distdl.config.schema import Config
from distdl.errors import DistdlError, InputError
from distdl.jobs.cause import cause
from distdl.jobs.target import Job, Package, State, refuse_other, start_variables, tracking_link

PREFIX = "distdl-"
"""Jobs of this name are ours."""
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
ALIVE = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED", "RESIZING")
WORDS = {
    "TIMEOUT": "the time limit was reached before the run could end: raise launch.slurm.signal_s",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not boot",
    "OUT_OF_MEMORY": "out of memory: raise launch.slurm.memory_gib_per_node",
    "PREEMPTED": "pre-empted by another job, and not requeued by Slurm",
    "DEADLINE": "its deadline had passed",
}
"""What ended a job that failed, by Slurm's state."""
REASONS = {
    "Resources": "waiting for free nodes",
    "Priority": "waiting behind jobs of higher priority",
    "BeginTime": "waiting for its start time (after a requeue: up to two minutes)",
    "Dependency": "waiting for another job",
    "PartitionTimeLimit": "asks for more time than the partition gives: lower launch.deadline_hours",
    "PartitionNodeLimit": "asks for more nodes than the partition has",
    "JobHeldUser": "held: `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
    "ReqNodeNotAvail": "waiting for nodes that are down or reserved",
}
"""Why a job waits, by Slurm's reason."""
POLL_S = 1.0
GONE_S = 60.0
"""Seconds that Slurm has to clear a job away that it was told to cancel."""


@dataclass(frozen=True)
class Found:
    """What Slurm says of one of its jobs."""

    number: int
    state: str
    reason: str = ""
    exit_code: int = 0
    restarts: int = 0
    started_s: float | None = None


class SlurmTarget:
    """The Slurm cluster that this machine is a login node of."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.folder = Path(launch.folder or os.getcwd()).absolute()

    # -- sending --------------------------------------------------------------------------------------------------------

    def dry_run(self, package: Package) -> str:
        """The batch script; the file that is sent ends with one more newline."""
        return script(package, self.folder, self.job_folder(package.id)).rstrip("\n")

    def submit(self, package: Package) -> Job:
        """Copies the package to the shared folder and queues the job. Raises InputError where Slurm refuses it."""
        before = self.job(package.id)
        refuse_other(before, package, "on Slurm")
        here = self.job_folder(package.id)
        try:
            here.mkdir(parents=True, exist_ok=True)
            here.chmod(0o700)
            shutil.rmtree(here / "package", ignore_errors=True)
            shutil.copytree(package.folder, here / "package")
            (here / "job.sbatch").write_text(self.dry_run(package) + "\n", encoding="utf-8")
            whose = {"run": package.config.name, "owner": package.owner}
            (here / "job.json").write_text(json.dumps(whose), encoding="utf-8")
        except OSError as error:
            fix = "launch.folder names a folder that you may write and every node mounts"
            raise InputError(f"the package cannot be written to {here}: {error.strerror or error}", fix=fix) from None
        number = slurm("sbatch", "--parsable", str(here / "job.sbatch")).split(";")[0].strip()
        return self._told(package.id, self._ask(int(number)) or Found(int(number), "PENDING"))

    def stop(self, id: str) -> Job:
        """Asks the run to write what it can and to end; ends it hard after `launch.slurm.signal_s`."""
        found = self._find(id)
        if found and found.state in ALIVE:
            slurm("scancel", "--batch", "--signal=USR2", str(found.number))
            end = time.monotonic() + self.launch.slurm.signal_s
            while found and not _state(found).ended and time.monotonic() < end:
                time.sleep(POLL_S)
                found = self._find(id)
        if found and not _state(found).ended:
            slurm("scancel", str(found.number))
            end = time.monotonic() + GONE_S
            while (found := self._find(id)) and not _state(found).ended and time.monotonic() < end:
                time.sleep(POLL_S)
        return self.job(id)

    # -- asking ---------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Jobs that Slurm knows of this user, and those of this folder that it has forgotten."""
        ids = {line.partition("|")[2].removeprefix(PREFIX) for line in _queue()}
        ids |= {path.name for path in self.job_folder("x").parent.glob("*/") if (path / "job.sbatch").is_file()}
        found = [(self._find(id), id) for id in ids]
        newest = sorted(found, key=lambda pair: pair[0].number if pair[0] else 0, reverse=True)
        return [self._told(id, known) for known, id in newest]

    def job(self, id: str) -> Job:
        """One job, also after Slurm has forgotten it; LOST where there is no trace of it."""
        return self._told(id, self._find(id))

    def logs(self, id: str, follow: bool = False) -> Iterator[str]:
        """Lines of the job's output. A requeued job goes on in the same file."""
        found = self._find(id)
        if found is None:
            raise InputError(f"Slurm knows no job {id!r}", fix="`distdl jobs list --on slurm` shows what there is")
        log, rest = self._log(id, found.number), ""
        while follow and not log.exists() and found and not _state(found).ended:
            time.sleep(POLL_S)
            found = self._find(id)
        if not log.exists():
            return
        with log.open(encoding="utf-8", errors="replace") as file:
            while True:
                over = not follow or found is None or _state(found).ended  # asked before the last read: nothing is lost
                while text := file.readline():
                    rest += text
                    if rest.endswith("\n"):
                        yield rest.rstrip("\r\n")
                        rest = ""
                if over:
                    break
                time.sleep(POLL_S)
                found = self._find(id)
        if rest:
            yield rest

    # -- Slurm's words --------------------------------------------------------------------------------------------------

    def job_folder(self, id: str) -> Path:
        return self.folder / ".distdl" / "jobs" / id

    def _log(self, id: str, number: int) -> Path:
        return self.job_folder(id) / f"log-{number}.txt"

    def _find(self, id: str) -> Found | None:
        """The newest Slurm job of this id: from the controller, else from what the job left in its folder."""
        numbers = [int(line.split("|")[0]) for line in _queue(f"--name={PREFIX}{id}")]
        left = [int(path.name.split("-")[1]) for path in self.job_folder(id).glob("end-*")]
        logs = [int(path.stem.split("-")[1]) for path in self.job_folder(id).glob("log-*.txt")]
        newest = max([*numbers, *left, *logs], default=None)
        if newest is None:
            return None
        return (self._ask(newest) if newest in numbers else None) or _accounted(newest) or self._left(id, newest)

    def _ask(self, number: int) -> Found | None:
        """The controller's record of a job; None where it has forgotten it (MinJobAge, 5 minutes by default)."""
        try:
            text = slurm("scontrol", "show", "job", "-o", str(number))
        except InputError:
            return None
        fields = dict(re.findall(r"(\w+)=(\S*)", text))
        code, _, number_of_signal = fields.get("ExitCode", "0:0").partition(":")
        start = fields.get("StartTime", "")
        return Found(
            number,
            fields["JobState"],
            fields.get("Reason", "").replace("None", ""),
            int(code) or (128 + int(number_of_signal) if number_of_signal not in ("", "0") else 0),
            int(fields.get("Restarts", 0)),
            float(start) if start.isdigit() and float(start) <= time.time() else None,
        )

    def _left(self, id: str, number: int) -> Found | None:
        """How a job ended, as slurm.sh wrote it down."""
        file = self.job_folder(id) / f"end-{number}"
        how, _, code = file.read_text().strip().partition(" ") if file.is_file() else ("", "", "")
        states = {"finished": "COMPLETED", "stopped": "CANCELLED", "failed": "FAILED"}
        return Found(number, states[how], exit_code=int(code or 0)) if how in states else None

    def _told(self, id: str, found: Found | None) -> Job:
        if found is None:
            what = f"neither Slurm nor {self.job_folder(id)} tells of it; without launch.folder, ask from where it was sent"
            return Job(id, State.LOST, what)
        log = self._log(id, found.number)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        state = _state(found)
        message = _message(found, state, lines)
        return Job(id, state, message, found.restarts + 1, found.started_s, tracking_link(lines), **self._whose(id))

    def _whose(self, id: str) -> dict[str, str]:
        """The run and the owner of a job, as `submit` left them in its folder."""
        try:
            told = json.loads((self.job_folder(id) / "job.json").read_text(encoding="utf-8"))
            return {name: str(told[name]) for name in ("run", "owner")}
        except (OSError, ValueError, KeyError, TypeError):  # sent by an earlier version, or from another folder
            return {}


def _state(found: Found) -> State:
    name = found.state.split()[0].rstrip("+")
    if name in WAITING:
        return State.QUEUED
    if name in ALIVE:
        return State.RUNNING
    return {"COMPLETED": State.FINISHED, "CANCELLED": State.STOPPED}.get(name, State.FAILED)


def _message(found: Found, state: State, log: list[str]) -> str:
    """Why a job is in its state, in words."""
    name = f"Slurm job {found.number}"
    if state is State.QUEUED:
        again = f"attempt {found.restarts + 1}, " if found.restarts else ""
        return f"{name}: {again}{REASONS.get(found.reason.rstrip(','), found.reason or 'waiting')}"
    if state is not State.FAILED:
        return name
    if found.state in WORDS:
        return f"{name}: {WORDS[found.state]}"
    errors = [line for line in log if line.startswith("error:")]
    why = errors[-1].strip() if errors else cause("\n".join(log[-1000:]))
    return f"{name} ended with exit code {found.exit_code}" + (f": {why}" if why else "")


def _queue(*options: str) -> list[str]:
    """`NUMBER|NAME` of each job of this user that is ours, the ended ones of the last minutes too."""
    lines = slurm("squeue", "--noheader", "--me", "--states=all", "--format=%i|%j", *options).splitlines()
    return [line for line in lines if line.partition("|")[2].startswith(PREFIX)]


def _accounted(number: int) -> Found | None:
    """Slurm's accounting database; None where the cluster has none, or it does not know the job."""
    command = ["sacct", "-X", "-n", "-P", "-j", str(number), "-o", "State,ExitCode,Start"]
    try:
        text = slurm(*command).strip()
    except DistdlError:
        return None
    if text.count("|") != 2:
        return None
    state, code, start = text.splitlines()[-1].split("|")
    return Found(
        number, state, exit_code=int(code.split(":")[0] or 0), started_s=float(start) if start.isdigit() else None
    )


def slurm(*command: str) -> str:
    """Runs a command of Slurm. Raises InputError with Slurm's words where it refuses, DistdlError where none answers."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, "SLURM_TIME_FORMAT": "%s"}
        )
    except FileNotFoundError:
        message = f"there is no {command[0]} on this machine\n    fix: launch from a login node of the Slurm cluster"
        raise DistdlError(message) from None
    except subprocess.TimeoutExpired:
        raise DistdlError(f"Slurm does not answer: `{command[0]}` took more than 120 s") from None
    if done.returncode == 0:
        return done.stdout
    why = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    if re.search(r"[Uu]nable to contact|[Cc]onnection refused|[Cc]ommunication|munge", why):
        raise DistdlError(f"Slurm cannot be reached: {why}")
    raise InputError(f"Slurm refuses `{command[0]}`: {why}", fix="the keys are in launch.slurm of the config")


# -- the batch script ----------------------------------------------------------------------------------------------------


def script(package: Package, folder: Path, job_folder: Path) -> str:
    """The batch script of a package: headers, settings, and slurm.sh."""
    config, slurm_config = package.config, package.config.launch.slurm
    q = shlex.quote
    # The interpreter that submits is on the shared file system as a rule; setup lines bring their own.
    python = "python3" if slurm_config.setup else sys.executable
    setup = [*slurm_config.setup, f"export PYTHONPATH={q(str(job_folder / 'package'))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    train = package.train_arguments(str(job_folder / "package" / "config.yaml"), str(folder))
    grace_s = max(_signal_s(config) - 10, 1)  # of the driver; the run has a little less for its checkpoint
    if not package.doctor:
        train.append(f"runtime.grace_s={max(grace_s - 5, 1)}.0")
    variables = {**start_variables(config.launch), **config.launch.environment}
    exports = [f"export {name}={q(value)}" for name, value in sorted(variables.items())]
    cpus, gpus = _per_node(package)
    settings = [
        f"python={q(python)}",
        f"job_folder={q(str(job_folder))}",
        f"runs={q(os.path.join(folder, config.runs))}",
        f"cpus_per_node={cpus} gpus_per_node={gpus}",
        f"max_retries={config.launch.max_retries}",
        f"start_deadline_s={math.ceil(60 * config.launch.start_deadline_minutes)}",
        f"name={q(config.name)}",
        f"grace_s={grace_s}",
        f"train=({shlex.join(train)})",
    ]
    body = Path(__file__).with_suffix(".sh").read_text(encoding="utf-8")
    parts = [*_headers(package, job_folder), "", *exports, *settings]
    return "\n".join([*parts, "setup() {", *(f"    {line}" for line in setup), "}", "", body])


def _headers(package: Package, job_folder: Path) -> list[str]:
    config, slurm_config = package.config, package.config.launch.slurm
    cpus, gpus = _per_node(package)
    kind = f"{slurm_config.gpu_type}:" if slurm_config.gpu_type else ""
    memory = slurm_config.memory_gib_per_node
    options = [
        f"--job-name={PREFIX}{package.id}",
        f"--nodes={math.ceil(package.plan.world / _workers_per_node(config, package.plan.world))}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",
        *([f"--gpus-per-node={kind}{gpus}"] if gpus else []),
        *([f"--mem={math.ceil(memory * 1024)}M"] if memory else []),
        f"--time={max(1, math.ceil(60 * config.launch.deadline_hours))}",  # minutes
        *(f"--{key}={value}" for key in ("partition", "account", "qos") if (value := getattr(slurm_config, key))),
        f"--signal=B:USR1@{_signal_s(config)}",
        "--requeue",
        "--open-mode=append",
        f"--output={shlex.quote(f'{job_folder}'.replace('%', '%%') + '/log-%j.txt')}",  # %x is a field of Slurm's
        f"--chdir={shlex.quote(f'{job_folder}/package')}",
        *slurm_config.options,
    ]
    return ["#!/bin/bash", *(f"#SBATCH {option}" for option in options)]


def _signal_s(config: Config) -> int:
    """Seconds before the end at which the run is told: at least what it asks for its checkpoint."""
    return max(config.launch.slurm.signal_s, math.ceil(config.runtime.grace_s) + 15)


def _per_node(package: Package) -> tuple[int, int]:
    """CPUs and GPUs that a node gives to its workers: no more, so that Ray places `workers_per_node` on each."""
    runtime, workers = package.config.runtime, _workers_per_node(package.config, package.plan.world)
    gpus = getattr(runtime, "gpus_per_worker", None) or 0
    return math.ceil(workers * getattr(runtime, "cpus_per_worker", 1.0)), workers * gpus


def _workers_per_node(config: Config, world: int) -> int:
    return min(config.launch.workers_per_node, world)
