"""Workers placed by Ray Train. This file and those named `ray_*` beside it alone import ray.

Ray Train places the workers and tells them where the first is; the state of the run is in our own checkpoints, so that
a start after a failure is the same function again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from distdl import trust
from distdl.config.schema import Ray as RayConfig
from distdl.errors import InputError, TrainingFailed
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder
from distdl.run.heartbeat import Beat, read_beats
from distdl.runtime.blame import WorkersEnded
from distdl.runtime.prometheus import GAUGES, LABELS, Sink, follow
from distdl.runtime.thread import aside
from distdl.runtime.watch import state_and_kill

if TYPE_CHECKING:
    from distdl.runtime.probe import Facts, Question

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder that distdl lies in: the workers import this very copy where they see it."""
END_S = 10.0
"""Seconds for a node to end a worker that hung."""
DIED = "died without a word: os._exit, a signal, or too little memory"
NODE_S = 10.0
"""Seconds in which Ray learns that a node is lost, after its peers have lost their connection to it."""


@contextmanager
def workers(plan: Plan, folder: RunFolder) -> Iterator[tuple[Callable[[int], None], Callable[[Beat, str], str]]]:
    """(what starts the workers and returns when they have ended well, `watch.state_and_kill` for one of them)."""
    settings = {"folder": str(folder.path), "attempt": folder.attempt.number, "plan": plan.to_dict()}
    ended: list[int] = []  # ranks that hung, which are known

    with _cluster(plan) as ray:

        def start(restart: int) -> None:
            ended.clear()
            where = {"name": f"attempt-{folder.attempt.number}.{restart}", "storage_path": str(folder.path / "ray")}
            try:
                with closing(follow(folder.events, plan.model.family, plan.layout, plan.steps, gauges())):
                    _fit(plan, worker_loop, settings, where, timeout_s=plan.settings.runtime.timeout_s)
            except Exception as error:
                wait_s = 0.0 if ended else NODE_S  # who was ended here was not lost with its node
                raise WorkersEnded(_deaths(ray, folder, plan.world, error, wait_s), str(error)) from error

        def end(beat: Beat, stack: str) -> str:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
            ended.append(beat.rank)
            task = ray.remote(num_cpus=0, max_retries=0)(state_and_kill).options(scheduling_strategy=there)
            try:
                return str(ray.get(task.remote(beat.pid, stack), timeout=END_S))
            except Exception:  # the node does not answer, either
                return ""

        yield start, end


def _deaths(ray: Any, folder: RunFolder, world: int, error: Exception, wait_s: float) -> dict[int, str]:
    """Rank -> how it ended without an exception of its own, as far as Ray knows it within `wait_s`: with its node, or
    alone."""
    found = {}
    for rank, failure in getattr(error, "worker_failures", {}).items():
        if "ActorDied" in type(failure).__name__ or "ActorDied" in str(failure):
            found[rank] = DIED
    beats = [beat for beat in read_beats(folder.attempt.ranks, world) if beat]
    if not found:  # Ray Train's controller, which met the death itself between two looks, names the process alone
        dead = re.findall(r"^\s*pid: (\d+)$", str(error), re.MULTILINE)
        found = {beat.rank: DIED for beat in beats if str(beat.pid) in dead}
    end = time.monotonic() + wait_s
    while True:
        nodes = {node["NodeID"]: node for node in ray.nodes()}
        lost = {beat.rank: nodes.get(beat.node) for beat in beats if not nodes.get(beat.node, {}).get("Alive")}
        if lost or found or not hasattr(error, "worker_failures") or time.monotonic() > end:
            break
        time.sleep(0.5)
    for rank, node in lost.items():
        host = next(beat.host for beat in beats if beat.rank == rank)
        address = f" ({node['NodeManagerAddress']})" if node else ""
        found[rank] = f"is lost with its node {host}{address}, which has left the Ray cluster"
    return found


def on_every_rank(plan: Plan, question: Question, timeout_s: float) -> list[Facts]:
    """What every rank sees, by rank: `probe.look_around` on workers as training would place them."""
    with _cluster(plan) as ray:
        answers = ray.remote(num_cpus=0)(_Letterbox).remote()
        settings = {"question": question, "answers": answers, "plan": plan.to_dict()}
        where = {"name": question.token, "storage_path": tempfile.mkdtemp(prefix="distdl-preflight-")}
        try:
            _fit(plan, probe_loop, settings, where, timeout_s=timeout_s)
        finally:
            shutil.rmtree(where["storage_path"], ignore_errors=True)
        facts: list[Facts] = ray.get(answers.get.remote())
        return facts


def gauges() -> Sink:
    """Sets gauges that Ray's exporter publishes on this node (port 8080 on Kubernetes), as `ray_NAME`."""
    from ray.util.metrics import Gauge

    made: dict[str, Any] = {}

    def set_gauge(name: str, value: float, labels: dict[str, str]) -> None:
        if name not in made:
            made[name] = Gauge(name, description=GAUGES[name], tag_keys=LABELS)
        made[name].set(value, tags=labels)

    return set_gauge


class _Letterbox:
    """An actor: takes what a worker tells the driver."""

    def put(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


def _fit(
    plan: Plan,
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    where: dict[str, str],
    *,
    timeout_s: float,
) -> None:
    """`loop(settings)` on every worker of the plan, in one process group."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from distdl.runtime.ray_group import Addresses, Trainer

    runtime, gpus = plan.settings.runtime, _gpus(plan)
    assert isinstance(runtime, RayConfig)
    trainer = Trainer(
        loop,
        train_loop_config={**settings, "timeout_s": timeout_s},
        backend_config=Addresses(),
        scaling_config=ScalingConfig(
            num_workers=plan.world,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": runtime.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            **where,
            failure_config=FailureConfig(
                max_failures=0,  # whether another start may help is decided by our driver
                controller_failure_limit=runtime.max_restarts,  # -1 by default: workers that never fit hang for ever
            ),
        ),
    )
    trainer.embedded = _embedded(runtime.address)
    aside(trainer.fit)


@contextmanager
def _cluster(plan: Plan) -> Iterator[Any]:
    """A connection to the cluster of the config, or an embedded one; gives the module `ray`."""
    runtime = plan.settings.runtime
    assert isinstance(runtime, RayConfig)

    def join(ray: Any) -> None:
        _connect(ray, runtime, plan)
        refuse_idle_gpus(plan, ray.cluster_resources().get("GPU", 0))

    try:
        with _connection(join) as ray:
            yield ray
    except SystemExit as end:  # Ray's own answer to Ctrl-C and to SIGTERM: it has ended the workers
        raise KeyboardInterrupt from end


@contextmanager
def _connection(join: Callable[[Any], None]) -> Iterator[Any]:
    """The module `ray`, connected by `join`. Signals stay with who has heard them before: Ray's own handlers would end the
    driver on the spot."""
    _quiet()
    import ray

    heard = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in heard}
    try:
        join(ray)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def worker_loop(settings: dict[str, Any]) -> None:
    """The train function of each Ray worker."""
    import ray

    from distdl.train import worker
    from distdl.train.kernels import prepare_process

    folder = RunFolder(Path(settings["folder"]), settings["attempt"])
    prepare_process(settings["plan"]["device"], folder.path)
    worker.check_visible(folder)
    folder.attempt.check()
    plan = Plan.from_dict(settings["plan"], folder.path)
    with _process_group(plan, settings["timeout_s"]) as rank:
        worker.run(plan, folder, rank, ray.get_runtime_context().get_node_id())


def probe_loop(settings: dict[str, Any]) -> None:
    """The function of each Ray worker for a look around."""
    import ray
    from ray.util import get_node_ip_address

    from distdl.runtime.probe import look_around

    plan = Plan.from_dict(settings["plan"])
    node = f"{os.uname().nodename} {get_node_ip_address()}"
    with _process_group(plan, settings["timeout_s"]) as rank:
        facts = look_around(settings["question"], rank, plan.world, node)
    if rank == 0:
        ray.get(settings["answers"].put.remote(facts))


@contextmanager
def _process_group(plan: Plan, timeout_s: float) -> Iterator[int]:
    """This worker's rank, in the process group of all. It is left where the work has ended well: Ray ends the others."""
    import ray.train
    import torch.distributed as dist

    from distdl.runtime.group import init_process_group

    rank = ray.train.get_context().get_world_rank()
    init_process_group(plan, rank, timeout_s, hosts=rank == 0)
    yield rank
    dist.destroy_process_group()


def refuse_idle_gpus(plan: Plan, gpus: float) -> None:
    """Raises InputError where the cluster has GPUs and the plan none, because nobody said so and this machine has none."""
    runtime = plan.settings.runtime
    if plan.device == "cpu" and gpus and getattr(runtime, "gpus_per_worker", None) is None:
        what = (
            f"the Ray cluster has {gpus:g} GPUs and this machine none, so that the plan is one for CPUs: "
            "runtime.gpus_per_worker is null, which asks the machine that plans"
        )
        raise InputError(what, fix="runtime.gpus_per_worker=1, or runtime.gpus_per_worker=0 to train on CPUs")


@contextmanager
def joined(address: str | None, variables: dict[str, str], needed: int) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at the address, or to an embedded one that has so many CPUs at least.
    `variables`: of its workers, which do what the user waits for."""
    with _connection(lambda ray: _join(ray, address, variables, needed)) as ray:
        yield ray


def _gpus(plan: Plan) -> int:
    """GPUs of a worker."""
    asked = getattr(plan.settings.runtime, "gpus_per_worker", None)
    return int(plan.device == "cuda") if asked is None else asked


def _connect(ray: Any, runtime: RayConfig, plan: Plan) -> None:
    """Joins the cluster at the address, or starts an embedded Ray that has the resources that the plan asks for."""
    variables = {
        "OMP_NUM_THREADS": str(plan.threads_per_worker),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        **({"DS_ACCELERATOR": "cpu"} if plan.device == "cpu" else {}),
        **({trust.VARIABLE: os.environ[trust.VARIABLE]} if trust.VARIABLE in os.environ else {}),
    }
    needed = int(-(-plan.world * runtime.cpus_per_worker // 1)) + 1  # one more for Ray Train's controller
    # Ray Train's processes have a runtime_env of their own: those that Ray starts ahead are never used, and cost seconds.
    if _embedded(runtime.address):
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    with _environment({"RAY_prestart_worker_first_driver": "0"}):
        _join(ray, runtime.address, variables, needed)


def _join(ray: Any, address: str | None, variables: dict[str, str], needed: int) -> None:
    """The cluster at the address, or an embedded one that has so many CPUs at least. `variables`: of its workers."""
    path = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **variables}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    if address and not _embedded(address):
        _probe(address)
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
        theirs = job.get("env_vars") or {}  # of a Ray job: Ray refuses to be told a variable twice
        told = {name: value for name, value in variables.items() if name not in theirs}
        try:
            ray.init(address=address, runtime_env={"env_vars": told}, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, str(error).strip().splitlines()[0]) from error
        return
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's is 15: beside any other process they would hardly run
    # Inherited, not a runtime_env: that would ask for other processes than those that Ray starts ahead.
    with _environment(variables):
        for last in (False, True):
            try:
                ray.init(num_cpus=max(cores, needed), include_dashboard=False, **options)
                break
            except (
                Exception
            ) as error:  # Ray's own type has no name; it gives its processes 30 s, whatever else runs here
                if last or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()


def _embedded(address: str | None) -> bool:
    """Whether Ray is started for this process alone."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """What is started within it has these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _probe(address: str, timeout_s: float = 5.0) -> None:
    """Raises at once where nothing listens: Ray itself tries for many minutes before it says so."""
    host, colon, port = address.split("://")[-1].rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, or another word that Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from error


def _no_cluster(address: str, why: str) -> TrainingFailed:
    return TrainingFailed(
        f"no Ray cluster answers at {address}: {why}\n"
        "    fix: `ray start --head` there, or runtime.address=null for an embedded Ray"
    )


def _quiet() -> None:
    """Ray's defaults that a person at a terminal does not need; what is already set stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # the default of 2 s delays start and failure
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name in ("ray", "ray.train", "ray.tune", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
