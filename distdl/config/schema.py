"""The typed schema of a run: one class per section of the YAML, a sentence under each field.

`load.py` fills it (defaults < YAML < key=value) and explains every mistake. The `model:` section is not described
here: its schema is the `Config` dataclass of the family (see `family.py`). What follows is computed in `plan/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from distdl.config.family import FamilyName, module_file, portable
from distdl.config.launch import Launch
from distdl.config.optimizer import Constant, Optimizer, Schedule
from distdl.config.search import Search
from distdl.config.section import LocalPath, Natural, NonNegative, Positive, PositiveFloat, Section
from distdl.config.ways import Augment, Start, Way


class Prepare(Section):
    """How the data set is written if `data.path` does not exist yet: `distdl data prepare SOURCE PATH key=value ...`."""

    source: str
    """Name of a source (a file in data/formats/, data/corpora/ or data/generators/): digits, stdlib, text, csv, parquet,
    idx, npz, images, jsonl, ..."""
    options: dict[str, Any] = {}
    """Options of that source, as on the command line of `distdl data prepare`."""
    workers: Positive = 1
    """Processes of this machine that read what is large; any number gives the same data set."""


class Data(Section):
    """Where the samples come from and in which order."""

    path: str
    """Folder or URI of Arrow shards with a manifest.json, written by `distdl data prepare`."""
    prepare: Prepare | None = None
    """How to write the data set when `path` does not exist yet; null: it must exist."""
    train_split: str = "train"
    """Split that is learned from."""
    eval_split: str | None = "test"
    """Split that is evaluated on; null: no evaluation."""
    test_split: str | None = None
    """Split that is evaluated once, when the run has ended: its metrics are called test_…. For a last word on samples that
    nothing was chosen by, with `eval_split: validation` to stop early and to keep the best checkpoint by; null: none."""
    sampling: Literal["natural", "balanced"] = "natural"
    """natural: every sample once an epoch; balanced: as many of every class, the rows of rare classes again and again. An
    epoch is as many samples as before; each worker keeps 4 bytes a row."""
    shuffle: Literal["global", "none"] = "global"
    """global: a keyed permutation of all samples, new each epoch; none: in stored order."""
    last_batch: Literal["wrap", "drop", "pad"] = "wrap"
    """wrap: epochs run on, a batch may straddle two; drop: an epoch's tail is left out; pad: it is filled up."""
    quarantine: tuple[Natural, ...] = ()
    """Numbers of rows of the training split that are not learned from; `distdl data at` tells those of a step. In the place
    of each comes a row from half an epoch on, and every other sample stays where it was, on every layout."""
    verify: Literal["first_touch", "open", "off"] = "first_touch"
    """When checksums are compared: as a record batch is first read, all at the start, or never."""
    verify_again_mb_per_s: NonNegative = 100.0
    """Megabytes a second that each worker compares with their checksums again, all it has read in turn, since a bit can
    still flip in memory or on a disk; 0, or verify: off: never."""
    cache: LocalPath | None = None
    """Folder that remote shards are downloaded to; null: the user's cache folder."""
    threads: Literal["auto"] | Natural = "auto"
    """Threads that read ahead; 0: read in the training thread. auto: 1 beside a GPU and for records of any length; else 0,
    since a group of batches is read from memory in less time than a thread takes to hand it over."""


class Train(Section):
    """How much is learned, from how many samples at once, in which precision."""

    global_batch: Positive
    """Samples per optimizer step over all workers. It does not change when the number of workers does."""
    micro_batch: Positive | None = None
    """Samples per worker per forward, accumulated up to its share; null, or more than it: the share at once."""
    epochs: PositiveFloat | None = None
    """Passes over the training split; give either epochs or steps."""
    steps: Positive | None = None
    """Optimizer steps; give either epochs or steps."""
    precision: Literal["auto", "fp32", "fp64", "bf16", "fp16", "fp8"] = "auto"
    """Arithmetic of the forward and backward pass. auto: bf16 on GPUs that have it, fp32 on a CPU and where a family needs
    the digits. bf16, fp16 (dynamic loss scaling) and fp8 keep fp32 master weights; fp64 is for families that need it,
    weights and all, under the torch engine."""
    tf32: bool = True
    """Let GPUs multiply fp32 matrices with 10 of their 23 binary places (TF32), several times faster; false: with all."""
    compile: bool = False
    """Compile the model with torch.compile: embedding, blocks, head and loss. What was compiled is kept in the run's
    folder, for its next start."""
    vocabulary_multiple: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """Fill the words of a language model up to a multiple of this inside the engine: matrix products of some sizes are
    faster. Neither checkpoints nor counts have the padding. auto: 64 on GPUs, 1 (none) on a CPU, which gains nothing."""
    channels_last: Literal["auto"] | bool = "auto"
    """Lay pictures out in memory with the channels last, as the convolutions of GPUs want them. auto: on GPUs."""
    clip_norm: PositiveFloat | None = None
    """Largest global L2 norm of the gradient; null: no clipping."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, such as 0.999, by which evaluations judge, and which predict, export and
    other runs that start from this one take; 0: none. After step n it is (1 + n) / (10 + n), where that is less."""
    l1: NonNegative = 0.0
    """Weight of the sum of absolute weights added to the loss (matrices only, not biases, gains and the like)."""
    l2: NonNegative = 0.0
    """Weight of half the sum of squared weights added to the loss (matrices only, not biases, gains and the like)."""
    class_weights: Literal["balanced"] | tuple[NonNegative, ...] | None = None
    """What a sample of each class weighs in the training loss, which is the sum of weight times loss over the sum of the
    weights of a global batch: a number for each class, or balanced: rows / (classes * rows of the class) of the training
    split. Null: all alike. Evaluations do not weigh."""
    deterministic: Literal["auto"] | bool = "auto"
    """Use deterministic kernels only, so that the same run gives the same bits again. auto: on a CPU; on GPUs such kernels
    are slower, and some have none: with true, one that is missing ends the run and is named."""
    threads_per_worker: Natural = 0
    """CPU threads of one worker's arithmetic; 0: the machine's cores shared out over its workers."""


class Parallel(Section):
    """How the work is laid over the workers. Data parallelism is what is left of the world."""

    engine: Literal["auto", "deepspeed", "torch"] = "auto"
    """deepspeed: the product; torch: one process or DistributedDataParallel, the reference; auto: torch where one process
    holds everything and no other key asks for DeepSpeed, else deepspeed."""
    zero: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage: what is sharded (0 nothing, 1 optimizer, 2 and gradients, 3 and weights)."""
    tensor: Positive = 1
    """Ranks that share the matrices of every layer (Shoeybi et al. 2019)."""
    pipeline: Positive = 1
    """Stages of consecutive layers; micro-batches flow through them (DeepSpeed's 1F1B schedule)."""
    balance: Literal["parameters", "time"] = "parameters"
    """What makes pipeline stages equal: their parameters, or the measured time of their layers."""
    sequence: Positive = 1
    """Ranks that share the tokens of every sample."""
    attention: Literal["auto", "ulysses", "ring"] = "auto"
    """How a cut sequence attends: ulysses trades tokens for heads, ring passes keys on; auto: ulysses where it divides."""
    expert: Positive = 1
    """Ranks that share the experts of a mixture; they lie within the data-parallel ranks."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where the optimizer's state lives between steps (ZeRO 1-3; nvme: ZeRO-3)."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Where the weights live between uses (ZeRO-3)."""
    nvme_path: LocalPath | None = None
    """Folder on a local NVMe disk, for offload to nvme; several runs may share it, each rank takes a part of its own."""
    checkpoint_activations: Literal["none", "all"] | Positive = "none"
    """Recompute in the backward pass: all blocks, or every n-th one; none: keep every activation."""
    loss_chunk_tokens: Natural = 0
    """Tokens whose logits a language model holds at a time; 0: all."""
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's own JSON, checked strictly; keys that distdl derives are refused."""


class Evaluate(Section):
    """When the held-out split is evaluated."""

    every_steps: Natural | None = None
    """Steps between evaluations; null: with the step that ends an epoch; 0: only at the end. The last step always is."""
    batch: Positive | None = None
    """Samples per worker per forward; null: the training micro-batch."""


class EarlyStopping(Section):
    """Stop when the family's primary metric has not improved for some evaluations."""

    patience: Positive
    """Evaluations without improvement after which training stops."""
    min_delta: NonNegative = 0.0
    """Smallest change that counts as an improvement, in the metric's unit."""


class Checkpoint(Section):
    """When the state of the run is written, and what is kept."""

    every_steps: Natural | None = None
    """Steps between checkpoints; null: with the step that ends an epoch; 0: only at the end. The last step always is."""
    asynchronous: bool = True
    """Training stands still for a copy in host memory, and goes on while that is written; false: until it is on disk."""
    keep_last: Positive = 2
    """Newest checkpoints that are kept."""
    keep_best: Natural = 1
    """Checkpoints with the best primary metric that are kept beside them; an evaluation among them is saved at once."""


class Spike(Section):
    """What is done where a step's loss jumps: the mean over the whole batch, compared with the steps before it."""

    factor: Annotated[float, Field(gt=1)] = 100.0
    """A loss is a spike above this many times the median of the last ones; late in training a hard batch has ten times."""
    window: Annotated[int, Field(ge=10)] = 100
    """Steps that the median is taken over; with fewer than ten behind it nothing is judged."""
    action: Literal["warn", "stop", "skip", "rollback"] = "warn"
    """warn: say it; stop: end before a checkpoint holds it; skip: take no step from that batch; rollback: take the
    last checkpoint again, and go on with the batches that follow; those since it are not learned from, and the run has as
    many steps as before."""


class Guard(Section):
    """Checks that the run is sound, on by default."""

    nonfinite: bool = True
    """Stop at the first loss or gradient that is not a number, naming the step, the tensor and the samples."""
    parity_every_steps: Natural = 100
    """Steps between comparisons of the gradients' sums and a hash of the weights across workers; 0: never."""
    spike: Spike | None = Spike()
    """A loss that jumps above its running median; null: nobody looks."""
    hang_s: NonNegative | None = None
    """Seconds that a worker may stand still while others wait for it, until the run is ended and it is named; null: 30.
    Ten times the median step, if longer; start-up and what comes first have `runtime.timeout_s`. 0: for ever."""


class Track(Section):
    """What MLflow remembers."""

    enabled: bool = True
    """Track the run in MLflow."""
    uri: str | None = None
    """MLflow tracking URI; null: an embedded SQLite store in the runs folder."""
    experiment: str = "distdl"
    """MLflow experiment that the run belongs to."""
    every_steps: Positive = 10
    """Steps between two points of the training metrics (each is the mean since the last)."""
    system_metrics_interval_s: NonNegative = 10.0
    """Seconds between samples of CPU, memory, network and GPU use; 0: none."""


class _Workers(Section):
    workers: Positive = 1
    """Worker processes."""
    timeout_s: PositiveFloat = 600.0
    """Seconds after which a collective that has not completed is an error. On GPUs those of a step have four times
    `guard.hang_s`, or forty median steps, once the first steps are done."""
    grace_s: PositiveFloat = 60.0
    """Seconds that the workers have to finish a step and write a checkpoint when Ctrl-C or SIGTERM asks the run to end."""


class Local(_Workers):
    """Worker processes on this machine, started by torch.multiprocessing; one worker runs in this process."""

    kind: Literal["local"]
    max_restarts: Natural = 0
    """Times the workers are started again from the latest checkpoint after one failed in a way that may not come again."""


class Ray(_Workers):
    """Workers placed by Ray Train. Starts an embedded Ray when no address is given."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """Address of a running Ray cluster (`auto` finds it); null: start an embedded one."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs that Ray reserves for a worker."""
    gpus_per_worker: Natural | None = None
    """GPUs that Ray reserves for a worker; null: one where this machine has any, else none."""
    max_restarts: Natural = 2
    """Times the workers are started again from the latest checkpoint after one failed in a way that may not come again."""


Runtime = Annotated[Local | Ray, Field(discriminator="kind")]


class Config(Section):
    """One run, as its YAML says it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Name of the run: its folder below `runs` and its name in MLflow."""
    model: dict[str, Any]
    """The family and its own fields; `distdl families NAME` lists them."""
    data: Data
    train: Train
    optimizer: Optimizer
    start: Start | None = None
    """Null: fresh weights, all of which learn."""
    augment: Augment | None = None
    """Null: the samples as they are."""
    way: Way | None = None
    """Another way to learn for a classifier; null: the family's own."""
    schedule: Schedule = Constant()
    parallel: Parallel = Parallel()
    evaluate: Evaluate = Evaluate()
    early_stopping: EarlyStopping | None = None
    """Null: train to the last step."""
    checkpoint: Checkpoint = Checkpoint()
    guard: Guard = Guard()
    track: Track = Track()
    runtime: Runtime = Ray()
    launch: Launch = Launch()
    search: Search | None = None
    """What `distdl tune` tries; null: nothing to search. `distdl train` trains the config as it stands."""
    seed: Natural = 0
    """Seed of the initial weights, the sample order and all noise."""
    runs: LocalPath = "runs"
    """Folder that holds the run folders and the embedded MLflow store; no URI: checkpoints are not written to a bucket."""

    @property
    def family(self) -> str:
        """Name of the architecture family; of the user's own without its place, which is in `model["family"]`."""
        return self.family_name.label

    @property
    def optimizer_code(self) -> Path | None:
        """The file of an optimizer that is none of distdl's, where there is such."""
        use = getattr(self.optimizer, "use", None)
        return module_file(use.partition(":")[0]) if use else None

    @property
    def family_name(self) -> FamilyName:
        """The family as the config names it: whether that is a file, and where its code lies."""
        return FamilyName(self.model["family"])

    def portable(self) -> dict[str, Any]:
        """Plain values for what is read elsewhere, beside a copy of the family's file."""
        return {**self.model_dump(mode="json"), "model": portable(self.model)}
