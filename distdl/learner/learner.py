"""The interface of a family: how it learns from one batch.

    learner.update(batch, engine, step)          most families inherit this one:
        loss, metrics = engine.forward(batch, step)    # runs learner.loss inside the wrapped module
        engine.minimize(loss)                          # backward, and a step when all micro-batches are in

Override `loss` and nothing else for one scalar and one optimizer. Override `update` when a step is more than that: two
players, no gradient, phases. A family is written as if there were one device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distdl.columns import Column as Column
from distdl.layout import noise
from distdl.learner.answers import Answer
from distdl.learner.units import Units
from distdl.metrics import Mean, Metrics, mean
from distdl.nn import watch
from distdl.nn.language import Memory

Batch = Mapping[str, Tensor]
"""Column -> tensor `(B, *shape)`, and two int64 columns: `id` (row in the split), `position` (in the endless stream)."""


@dataclass(frozen=True)
class Layer:
    """One of the ordered layers of a model: where a pipeline may cut, and what activation checkpointing recomputes."""

    name: str
    run: Callable[[Tensor], Tensor]
    modules: tuple[nn.Module, ...]
    """The learner's modules whose parameters it uses. One that several layers name is tied between them."""


class Verbs(Protocol):
    """What a learner may ask of an engine."""

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]: ...
    def minimize(self, loss: Tensor, player: str = "learner") -> None: ...
    def all_sum(self, tensor: Tensor) -> Tensor: ...
    def assign(self, player: str, values: Mapping[str, Tensor]) -> None: ...
    def share(self, n: int) -> range: ...


class Learner(nn.Module):
    """A model and how it learns. One subclass per file in `families/`."""

    Config: ClassVar[type]
    """The file's dataclass `Config`: the `model:` section of the YAML, and the only schema of the family."""
    players: tuple[str, ...] = ()
    """Attributes with an optimizer of their own; () = the learner itself. A family with as many as its config says sets it
    in __init__, and in the class those of the default config."""
    learns: ClassVar[str] = "back-propagation"
    """The rule by which it learns, in the field's words; `distdl families` prints it."""
    primary: str = "loss"
    """The evaluation metric that early stopping and keep-best look at. A family with several tasks sets it in __init__."""
    better: Literal["higher", "lower"] = "lower"
    """Which way the primary metric improves."""
    batch_coupled: bool = False
    """Micro-batches depend on each other, so that accumulation changes the numbers: batch norm, or a step of one player
    between two micro-batches of another."""
    layouts: frozenset[str] = frozenset({"torch"})
    """Layouts that a test has proven equal to the one-process reference: torch, zero0-3, and the axes tensor, pipeline,
    sequence and expert. The plan refuses the others. A family whose config narrows them sets it in __init__."""
    tensor_plan: ClassVar[Mapping[str, str]] = {}
    """Module path pattern -> how the tensor axis cuts it: `column`, `column/3` (three fused maps), `row`, `vocab`, or
    `gather` (by outputs, put together again at once); the first pattern that fits counts."""
    sequence_columns: Mapping[str, int] = {}
    """Column whose first dimension is the sequence -> elements of it beyond the model's tokens (1: the last target). A
    family whose config adds to them sets it in __init__."""
    fp64: ClassVar[bool] = False
    """Whether it computes in fp64 where its weights are; `train.precision: fp64` asks for that."""
    class_column: ClassVar[str] = ""
    """Column of the classes of whole samples, where `loss` is a `mean_loss` against it (learner/labels.py), which leaves
    missing labels out: what `train.class_weights` can weigh."""
    chunks_loss: ClassVar[bool] = False
    """Whether the criterion heeds `loss_chunk_tokens`."""
    static_criterion: ClassVar[bool] = True
    """Whether the shapes within the criterion depend on those of the batch alone; else `train.compile` leaves it out."""
    one_graph: ClassVar[bool] = False
    """Of a family without layers: whether a test has proven that torch.compile makes one graph of `loss` and one of
    `evaluate`; then `train.compile` does."""
    # What a run asks of a learner beside its model, by `save_memory`, `augment`, `freeze` and by setting `file_units`:
    recompute_every: int = 0
    """Every n-th layer keeps its input only and is run again in the backward pass; 0: none."""
    loss_chunk_tokens: int = 0
    """Tokens whose logits exist at a time; 0: all."""
    augmentation: Callable[[Batch], Batch] | None = None
    """Random changes to a training batch."""
    file_units: Units | None = None
    """Those of the file that the column `y` came from, in which evaluations speak; None: it has none of its own."""
    frozen: tuple[nn.Module, ...] = ()
    """Modules that learn nothing and stay in evaluation mode."""
    targets: ClassVar[frozenset[str]] = frozenset({"label", "y"})
    """Columns that only learning and measuring read: a question has none of them."""
    nothing_to_show: ClassVar[str] = ""
    """Why no evaluation leaves a picture (nn/watch.py) beside the learning curves; '': it does."""
    any_length: ClassVar[frozenset[str]] = frozenset()
    """Columns of sequences that a question may have more or fewer steps of than the samples learned from."""

    born_whole: str = ""
    """Why the constructor cannot run without the memory of its weights (parallel/record.py): it reads them, for one. A
    family whose config decides that sets it in __init__."""
    no_graph: str = ""
    """Why `answer` cannot be written down as a graph for `distdl export`, where each row decides its steps. A family
    whose config decides that sets it in __init__."""
    no_slope: str = ""
    """Why `answer` does not change with its input by a little, where it does not. The same holds of a config."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" not in vars(cls):
            module = sys.modules[cls.__module__]
            cls.Config = getattr(module, "Config", cls.Config if hasattr(cls, "Config") else object)

    @staticmethod
    def columns(config: Any) -> dict[str, Column]:
        """The columns that this family reads from the data set, checked before the run starts."""
        raise NotImplementedError

    @classmethod
    def asked(cls, config: Any) -> dict[str, Column]:
        """The columns that `predict` reads."""
        return {
            name: dataclasses.replace(column, shape=(None, *column.shape[1:])) if name in cls.any_length else column
            for name, column in cls.columns(config).items()
            if name not in cls.targets
        }

    @staticmethod
    def tells(config: Any) -> dict[str, Answer]:
        """What `predict` answers, by name; empty where no question has an answer."""
        return {}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """What `tells` says, of each row. `predict` calls it in evaluation mode and without gradients."""
        raise NotImplementedError

    def in_file_units(self, values: Tensor) -> Tensor:
        """Numbers of the column `y` as the file had them, where it had others."""
        return self.file_units.restore(values) if self.file_units else values.float()

    def settle(self) -> None:
        """Computes what answers need of the weights alone, such as a solution of equations, before `answer` is written down
        as a graph: it is a constant there."""

    def draw(self, n: int) -> Tensor:
        """n samples, for a family that makes some; `sample` calls it as `predict` calls `answer`."""
        raise NotImplementedError

    @classmethod
    def draws(cls, config: Any) -> bool:
        """Whether `sample` makes something."""
        return cls.draw is not Learner.draw

    def memory(self) -> Memory | None:
        """What may be kept of a text while it goes on: within it `predict` reads the new tokens alone. None: it has all of
        them to read again for every one that follows."""
        return None

    def read_out(self) -> nn.Module | None:
        """The module whose input is the embedding of a row, where `tells` has none of its own."""
        return None

    def counted(self, batch: Batch) -> Tensor | None:
        """How much of a micro-batch `loss` is a mean over, where that differs from one to the next (tokens beside padding).
        Then each has a column `mean_count` (B,), the mean over all micro-batches of the step on all ranks: a sum divided by
        it weighs no micro-batch more than another. None: a mean over samples."""
        return None

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Scalar mean loss over the batch, and metrics that add up."""
        return self.criterion(self.through(batch), batch)

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        """The `model:` section of a small model of the same kind, for a rehearsal on a CPU."""
        return dict(model)

    def layers(self) -> Sequence[Layer]:
        """The ordered layers, for a family whose `loss` is `criterion` of what comes `through` them. () = not layered."""
        return ()

    def inputs(self, batch: Batch) -> Tensor:
        """What the first layer sees."""
        raise NotImplementedError

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Scalar mean loss and metrics of what the last layer puts out. May use the last layer's modules."""
        raise NotImplementedError

    def splits(self) -> dict[str, dict[str, int]]:
        """Axis -> what the axis splits evenly -> how many there are, such as {"tensor": {"attention heads": 12}}."""
        return {}

    def through(self, batch: Batch) -> Tensor:
        """The last layer's output."""
        return self.through_layers(self.inputs(batch))

    def through_layers(self, x: Tensor) -> Tensor:
        """The last layer's output for what the first one sees."""
        for index, layer in enumerate(self.layers()):
            x = self.run_layer(index, layer, x)
        return x

    def run_layer(self, index: int, layer: Layer, x: Tensor) -> Tensor:
        """One layer, with its noise, recomputed in the backward pass where that was asked for."""

        def run(x: Tensor) -> Tensor:
            noise.layer(index)
            return layer.run(x)

        if self.recompute_every and index % self.recompute_every == 0 and self.training and torch.is_grad_enabled():
            return checkpoint(run, x, use_reentrant=False)
        return run(x)

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        """Learns from one micro-batch; returns what is to be logged, `loss` among it."""
        loss, metrics = engine.forward(batch, step)
        engine.minimize(loss)
        return {"loss": mean(loss), **metrics}

    def evaluate(self, batch: Batch) -> Metrics:
        """Metrics of one held-out batch (B may differ between calls); totals and counts are per sample."""
        loss, metrics = self.loss(batch, -1)
        shown, n = mean(loss), len(batch["id"])
        return {"loss": Mean(shown.total * n, float(n)), **metrics}

    def predict(self, batch: Batch, embedding: bool = False) -> dict[str, Tensor]:
        """The answer to each row: name -> tensor (B, ...), as `tells` declares them. The batch has the columns `asked`, and
        need not have any other.

        A row's answer depends on nothing but the row: what is drawn at random on the way is drawn alike for each.
        `embedding` adds what the last layer sees of a row, where the family has such a thing and does not tell it anyway.
        """
        rows = next(iter(batch.values()))
        with self._asked_alone(0, torch.zeros(len(rows), dtype=torch.long, device=rows.device)):
            layer = self.read_out() if embedding else None
            if layer is None:
                return self.answer(batch)
            seen: list[Tensor] = []
            handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            try:
                found = self.answer(batch)
            finally:
                handle.remove()
            return {"embedding": seen[-1].reshape(len(rows), -1).float(), **found}

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n samples (n, ...) of a family that makes some: pictures from 0 to 1, or what its data are like. Of a seed the
        first ones are the same, however many are drawn."""
        device = next((tensor.device for tensor in self.state_dict().values()), None)
        with self._asked_alone(seed, torch.arange(n, device=device)):
            return self.draw(n)

    @contextlib.contextmanager
    def _asked_alone(self, seed: int, positions: Tensor) -> Iterator[None]:
        """In evaluation mode, without gradients, with noise of a seed and of positions of its own."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), noise.apart(seed, positions), watch.as_written():
                yield
        finally:
            self.train(training)

    def forward(self, batch: Batch, step: int, evaluate: bool = False) -> Any:
        """What an engine wraps: everything in the gradient path happens inside this call."""
        if evaluate:
            return self.evaluate(batch)
        return self.loss(self.augmentation(batch) if self.augmentation else batch, step)

    def save_memory(self, recompute_every: int = 0, loss_chunk_tokens: int = 0) -> None:
        """Keeps less of a forward pass; 0: keeps all of it."""
        self.recompute_every, self.loss_chunk_tokens = recompute_every, loss_chunk_tokens

    def augment(self, augmentation: Callable[[Batch], Batch]) -> None:
        """Learns from changed batches."""
        self.augmentation = augmentation

    def freeze(self, names: Collection[str]) -> None:
        """These parameters learn no more; modules that have no others are kept in evaluation mode."""
        for name, parameter in self.named_parameters():
            if name in names:
                parameter.requires_grad_(False)
                parameter.distdl_frozen = True  # type: ignore[attr-defined]
        self.frozen = tuple(
            module
            for module in self.modules()
            if (parameters := list(module.parameters())) and not any(p.requires_grad for p in parameters)
        )

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def bare(player: nn.Module) -> nn.Module:
    """A player without what the engine has wrapped around it: for looking at weights, and for calls without a gradient."""
    return getattr(player, "module", player)


@contextlib.contextmanager
def frozen(player: nn.Module) -> Iterator[nn.Module]:
    """The bare player without gradients of its own: the way to send a gradient *through* a critic to another player.

    Calling the wrapped player there fails under DeepSpeed, whose engines refuse a backward that is not theirs.
    """
    net = bare(player)
    trainable = [p for p in net.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield net
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
