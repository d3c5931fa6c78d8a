"""The `launch:` section: where `distdl launch` sends a run and what it asks for there. Training reads none of it."""

from __future__ import annotations

from typing import Literal

from distdl.config.section import LocalPath, Natural, Positive, PositiveFloat, Section


class Kubernetes(Section):
    """The RayJob that a run becomes on Kubernetes, through KubeRay."""

    namespace: str = "distdl"
    """Namespace of the job; k8s/ sets one up."""
    image: str = "distdl:latest"
    """Image of the head and the workers, built from k8s/Dockerfile; pin it by digest: registry/distdl@sha256:…"""
    scheduler: Literal["none", "kueue", "volcano", "yunikorn"] = "none"
    """What admits all pods of a job at once; none: the cluster's own scheduler, pod by pod."""
    queue: str | None = None
    """Queue of that scheduler (Kueue: a LocalQueue of the namespace)."""
    topology: str | None = None
    """Kueue: label of the nodes that workers are packed by, such as kubernetes.io/hostname; the queue's GPU flavor needs a
    `topologyName` then, and wants one of its jobs if it has it."""
    priority_class: str | None = None
    """WorkloadPriorityClass (Kueue) or PriorityClass of the pods."""
    memory_gib_per_worker: PositiveFloat | None = None
    """Memory of a worker; null: model state by the plan, twice, and 4 GiB."""
    shared_memory_gib: PositiveFloat | None = None
    """/dev/shm of a worker pod, part of its memory; null: a quarter of it."""
    head_cpus: PositiveFloat = 2.0
    """CPUs of the head pod, which holds the driver and no worker."""
    head_memory_gib: PositiveFloat = 8.0
    """Memory of the head pod."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which the nodes offer GPUs."""
    rdma_resource: str | None = None
    """Name under which the nodes offer RDMA devices, one a pod; null: none. Needs the k8s/ overlay for InfiniBand."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes that workers may run on; under Kueue they belong in the ResourceFlavor."""
    service_account: str = "distdl-train"
    """Service account of the pods; its token is never mounted."""
    runs_claim: str = "distdl-runs"
    """PersistentVolumeClaim (ReadWriteMany) mounted at `launch.folder`."""
    data_claim: str | None = None
    """PersistentVolumeClaim mounted read-only at /data; null: the data is in the folder or in an object store."""
    secret: str | None = None
    """Secret of the namespace whose keys become environment variables (tracker and object-store credentials)."""
    submission: Literal["HTTPMode", "K8sJobMode"] = "HTTPMode"
    """How KubeRay starts the driver. HTTPMode has no extra pod and no log stream whose end fails the job."""


class Slurm(Section):
    """The allocation that a run asks Slurm for."""

    partition: str | None = None
    """Partition; null: the cluster's default."""
    account: str | None = None
    """Account that is charged; null: the user's default."""
    qos: str | None = None
    """Quality of service; null: the default."""
    memory_gib_per_node: PositiveFloat | None = None
    """Memory of a node; null: the partition's default."""
    gpu_type: str | None = None
    """Type in --gpus-per-node, such as h100; null: any."""
    signal_s: Positive = 120
    """Seconds before the time limit at which the run is told to write a checkpoint and the job is requeued."""
    setup: list[str] = []
    """Shell lines run on every node before Ray starts: `module load cuda`, `source .venv/bin/activate`."""
    options: list[str] = []
    """Further options of sbatch, such as --constraint=ib."""


class Ssh(Section):
    """Bare machines reached over SSH, with the same Python environment on each."""

    hosts: list[str] = []
    """HOST, USER@HOST or a name of ~/.ssh/config; the first runs the head and the driver."""
    python: str = "python3"
    """Interpreter there that has distdl's requirements."""
    port: Positive = 6379
    """Port of the Ray head that is started for the job."""
    options: list[str] = []
    """Further options of ssh, such as -oProxyJump=gateway."""


class Launch(Section):
    """Where `distdl launch` sends the run, and what it asks for there. `runtime.workers` and `runtime.gpus_per_worker`
    say how much; training itself reads nothing here."""

    on: str | None = None
    """Where --on points when it is not given: ray://HOST:PORT, http://HOST:8265, kubernetes, slurm or ssh."""
    folder: LocalPath | None = None
    """Absolute path that every node mounts: relative paths of the config (runs, data.path) lie below it. null: the
    current folder on slurm and ssh, /distdl on kubernetes; a Ray cluster needs it."""
    workers_per_node: Positive = 1
    """Workers of one node or pod."""
    files: list[str] = []
    """More files and folders, beside the config, that are sent with it."""
    environment: dict[str, str] = {}
    """Environment variables of every worker (NCCL_SOCKET_IFNAME, …). Never a secret: those are named in the target."""
    max_retries: Natural = 3
    """Times a job whose head died is started again; it continues from its last checkpoint. KubeRay does not count a lost
    head under submission: HTTPMode."""
    deadline_hours: PositiveFloat = 168.0
    """Hours after which an attempt is ended, so that nothing stays running for ever."""
    start_deadline_minutes: PositiveFloat = 60.0
    """Minutes after which a job that got no machines has failed (waiting in a queue does not count)."""
    kubernetes: Kubernetes = Kubernetes()
    slurm: Slurm = Slurm()
    ssh: Ssh = Ssh()
