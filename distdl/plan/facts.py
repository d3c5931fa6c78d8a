"""What the plan must know about model, data and machine. `train/survey.py` gathers it; the plan looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelFacts:
    """A family with its config, counted on the meta device."""

    family: str
    parameters: int
    trainable: int
    matrices: int
    """Trainable elements of what decays: matrices and embeddings."""
    primary: str
    better: Literal["higher", "lower"]
    layouts: tuple[str, ...]
    players: tuple[str, ...]
    batch_coupled: bool = False
    """Accumulation changes the numbers (see `Learner.batch_coupled`)."""
    splits: tuple[tuple[str, str, int], ...] = ()
    """(axis, what is split along it, how many there are): attention heads, tokens, experts."""
    layers: tuple[tuple[str, int], ...] = ()
    """(name, parameters) of the ordered layers that a pipeline may cut between; () where the family has none."""
    ties: tuple[tuple[int, int, int], ...] = ()
    """(layer, later layer, elements) of what two layers share: a pipeline stage of the later one holds a copy."""
    one_graph: bool = False
    """Its loss and its evaluation can be compiled as a whole (see `Learner.one_graph`)."""
    chunks_loss: bool = False
    """The loss can be taken over some tokens at a time."""
    own_update: bool = False
    """A step is more than the loss of its batch and one optimizer."""
    fp64: bool = False
    """It computes in fp64, too (see `Learner.fp64`)."""
    sharded: int = 0
    """Trainable elements in tensors that the tensor axis cuts."""
    experts: int = 0
    """Trainable elements in experts."""
    largest: int = 0
    """Elements of the largest trainable tensor."""
    born_whole: str = ""
    """Of a large model: why its constructor needs the memory of all its weights; '': it does not."""


@dataclass(frozen=True)
class DataFacts:
    """A data set, as its manifest says."""

    path: str
    fingerprint: str
    """'': the data set is not here, and its rows are made up: an epoch counts as one step."""
    train_rows: int
    eval_rows: int
    """0: no evaluation."""
    unlabelled: tuple[str, ...] = ()
    """Columns of the training split some of whose values are missing, and count nowhere."""
    class_weights: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """(column, what each class weighs in the loss), where they do not weigh the same."""
    class_rows: tuple[int, ...] = ()
    """Rows of each class of the training split, where the run weighs or balances by them."""
    balanced: str = ""
    """Column whose classes are drawn equally often."""
    read_as: tuple[tuple[str, str, str], ...] = ()
    """(column, type in the data set, type that it is read in), where these differ."""
    notes: tuple[str, ...] = ()
    """What its values say that is no mistake, and yet nobody may have meant."""


@dataclass(frozen=True)
class Hardware:
    """What one worker runs on."""

    device: Literal["cpu", "cuda"]
    cores: int
    """CPU cores of the machine."""
    gpus: int
    """GPUs of the machine."""
    gpu_memory_bytes: int | None = None
    """Memory of the smallest GPU."""
    gpu_capability: tuple[int, int] = (0, 0)
    """Compute capability of the oldest GPU."""
    workers_elsewhere: bool = False
    """The workers run on a cluster, so that the counts of this machine are not theirs."""
