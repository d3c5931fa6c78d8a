"""What a job is, and what every place that runs jobs can do with it: the words of `distdl launch` and `distdl jobs`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from distdl.config.launch import Launch
from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.plan.plan import Plan

ID_CHARACTERS = 40
"""Of a job's id: KubeRay takes 47, and a ConfigMap's name has a hash behind it."""
TRACKING = "tracking: "
"""A training process prints its MLflow run behind this, once it has one; `distdl jobs` finds it in the logs."""


class State(Enum):
    """Where a job stands, in the same words for every target."""

    QUEUED = "queued"
    """Accepted; it waits for machines."""
    RUNNING = "running"
    """Its driver runs, or is being started again after a failure."""
    STOPPED = "stopped"
    """Ended on request; `distdl jobs resume` continues it."""
    FAILED = "failed"
    """Ended by an error, no retries left; `distdl jobs resume` continues from the last checkpoint."""
    FINISHED = "finished"
    """Trained to its last step."""
    LOST = "lost"
    """The target knows nothing of it (any more)."""

    @property
    def ended(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Job:
    """What a target says of a job now."""

    id: str
    state: State
    message: str = ""
    """Why, in the target's words; '' where there is nothing to say."""
    attempt: int = 1
    """How often it was started."""
    started_s: float | None = None
    """Seconds since the epoch at which this attempt began; None: not yet, or unknown."""
    tracking: str = ""
    """Link or id of its MLflow run; '' until the run has one."""
    run: str = ""
    """Name of the run that it trains; '' where the target does not know it (jobs of earlier versions)."""
    owner: str = ""
    """Who sent it, as `records.owner` says; '' where the target does not know it."""


@dataclass(frozen=True)
class Package:
    """A run on its way to a target: the checked config, its plan, and the folder of files that travel."""

    id: str
    """Name of the job: `job_id(config.name)`."""
    config: Config
    """Resolved, with `runtime.kind: ray`."""
    plan: Plan
    folder: Path
    """config.yaml, the distdl/ package that packed it, the family's file where it is the user's own, and the files of
    `launch.files`. Nothing secret."""
    overrides: tuple[str, ...] = ()
    """key=value arguments that stand behind config.yaml."""
    fresh: bool = False
    """Start a new run beside earlier ones of the name, instead of continuing."""
    doctor: bool = False
    """Look whether the place is fit for the run, and train nothing."""
    owner: str = ""
    """Who sends it: the target keeps it with the job."""

    def train_arguments(self, config_path: str = "config.yaml", folder: str | None = None) -> list[str]:
        """Arguments of `python -m distdl` that train this package on the Ray cluster around it, whatever ran before:
        an attempt that is still alive somewhere is fenced off. `folder`: where relative paths of the config lie."""
        inside = ["-C", folder] if folder else []
        again = ["--fresh"] if self.fresh else []
        there = ["runtime.kind=ray", "runtime.address=auto"]
        if self.doctor:
            return ["doctor", "--config", config_path, *inside, *self.overrides, *there]
        return ["train", config_path, *inside, "--take-over", "--plain", *again, *self.overrides, *there]


class Target(Protocol):
    """A place that runs jobs. Every method raises DistdlError, in words, where the place cannot be reached."""

    def dry_run(self, package: Package) -> str:
        """Exactly what `submit` would send."""

    def submit(self, package: Package) -> Job:
        """Starts the job, or continues the one of this id that has ended. Raises InputError while it is alive, and where
        it is another run's or somebody else's (`refuse_other`)."""

    def jobs(self) -> list[Job]:
        """The jobs of distdl there, newest first."""

    def job(self, id: str) -> Job:
        """One job; state LOST where the place does not know it."""

    def logs(self, id: str, follow: bool = False) -> Iterator[str]:
        """Lines of the driver's output without their ends; with `follow`, until the job ends, over restarts of it."""

    def stop(self, id: str) -> Job:
        """Ends the job so that it can be resumed; it writes a checkpoint where the place gives it the time to."""


def start_variables(launch: Launch) -> dict[str, str]:
    """What a driver is told, wherever it runs: Ray Train's own patience for workers that wait for a machine is a minute."""
    return {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{launch.start_deadline_minutes * 60:g}"}


def job_id(name: str) -> str:
    """A run's name as a name that Ray, Slurm and Kubernetes take (DNS-1035, at most 40 characters). A name that had to be
    changed for that gets a hash of itself behind it: no two runs have one id."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    word = word if word[:1].isalpha() else f"run-{word}"
    if word == name and len(word) <= ID_CHARACTERS:
        return word
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{word[: ID_CHARACTERS - 1 - len(mark)].strip('-')}-{mark}"


def refuse_other(job: Job, package: Package, where: str) -> None:
    """Raises InputError where what a target has under the package's id must stay: it is alive, it is another run's, or
    somebody else sent it. The advice never ends a job that is not the package's own."""
    if job.state is State.LOST:
        return
    run, name = package.config.name, f"the job {job.id}"
    other = bool(job.run) and job.run != run
    foreign = bool(job.owner and package.owner) and job.owner != package.owner
    told = f"{job.state.value} ({job.message})" if job.message else job.state.value
    fix = "name=OTHER gives the new run its own name"
    if other or foreign:
        whose = f"the run {job.run}" * other + " of " * (other and foreign) + job.owner * foreign
        if foreign and not other:
            fix = f"{fix}; DISTDL_OWNER={job.owner} continues it as theirs"
        raise InputError(f"{name} {where} is {told}, and belongs to {whose}", fix=fix)
    if not job.state.ended:
        fix = f"`distdl jobs logs -f {job.id}` shows what it does, `distdl jobs stop {job.id}` ends it; {fix}"
        raise InputError(f"{name} is alive {where}: {told}", fix=fix)


def tracking_link(lines: Iterable[str]) -> str:
    """The last MLflow run that the lines of a log tell of, or ''."""
    found = [line.split(TRACKING, 1)[1].strip() for line in lines if TRACKING in line]
    return found[-1] if found else ""
