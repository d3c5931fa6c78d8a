"""What every engine does the same way: feed micro-batches, guard the loss, name the tensors of a checkpoint.

An engine turns losses into steps. A learner sees three verbs (`forward`, `minimize`, `all_sum`); the worker, the hooks and
the checkpoint see the rest of this class. Collective methods must be called by every rank in the same order.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distdl.engine import nonfinite, precision
from distdl.engine.average import averages
from distdl.engine.copies import BatchCopies
from distdl.engine.patience import Patience
from distdl.engine.schedules import learning_rate
from distdl.engine.shards import Held
from distdl.errors import TrainingFailed
from distdl.layout import noise
from distdl.layout.axes import Axis, shard_of
from distdl.layout.owned import Owned, Read, Same, shared_by_axis
from distdl.learner import Batch, Learner, kinds
from distdl.metrics import Metrics
from distdl.parallel.birth import bear_all
from distdl.parallel.compiled import compile_learner
from distdl.parallel.memory import save_memory
from distdl.parallel.place import cut_sequence, place
from distdl.plan.plan import Plan
from distdl.run.heartbeat import Pulse

EVALUATION = 0x45564C
"""Mixed into the seed of the noise in evaluations, so that it is not that of the training step on the same row."""


class Engine(ABC):
    """Trains a learner as the plan says, on this rank's device."""

    sharded = False
    """Whether each rank's optimizer steps a part of every parameter, and not all of it."""

    def __init__(self, learner: Learner, plan: Plan, rank: int) -> None:
        self.learner, self.plan, self.rank = learner, plan, rank
        self.config = plan.settings
        kinds.mark(learner)  # before anything is cut, wrapped or renamed
        self.groups = place(learner, plan, rank)
        precision.lower_linear(learner, self.config.train.precision)
        save_memory(learner, self.config)
        if self.config.train.compile:
            compile_learner(learner)
        cuda = plan.device == "cuda"  # every launcher sets LOCAL_RANK, and DeepSpeed chooses its device by it
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        self._copies = BatchCopies(self.device) if cuda else None
        # Pictures, and with them what the convolutions make of them, are laid out (B, H, W, C); their shape stays.
        self._channels_last = self.config.train.channels_last is True and any(
            isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in learner.modules()
        )
        self._to_device()
        self.bare: dict[str, nn.Module] = {name: getattr(learner, name) for name in learner.players}
        if not learner.players and any(p.requires_grad for p in learner.parameters()):
            self.bare["learner"] = learner
        precision.lower_forward(self.bare.values(), self.config.train.precision, plan.device)
        self.optimizer_steps = dict.fromkeys(self.bare, 0)
        self.averages = averages(self.named(), self.config.train.ema or 0.0)
        self.grad_norm: float | Tensor | None = None
        self.grad_norms: dict[str, float | Tensor | None] = {}
        """That of each player's latest step."""
        self.data_s = 0.0
        self.pulse = Pulse()
        self.patience = Patience(plan)
        self.learning_rate = learning_rate(self.config, plan.steps)
        self._guard = self.config.guard.nonfinite
        self._last_micro = True
        self.batch: Batch = {}
        self._step = 0
        self._loss_sum: Tensor | float = 0.0
        """Of the step's micro-batches so far, on this rank."""
        self.judge: Callable[[int, float], bool] | None = None
        """Where set, asked on every rank before each step (its number, its batch's mean loss): shall it be left out?"""
        self.left_out = False
        """Whether the last step was."""
        self.rows: list[Tensor] = []
        """Row numbers of the last step's micro-batches on this rank."""
        self._unread: list[tuple[int, Tensor]] = []
        """Micro-batch and loss, where the guard has not looked yet."""
        self._read_norm: float | None = None
        self._bad: tuple[int, float] | None = None
        """What it found: the gradient's norm, and the first micro-batch whose loss is not finite, with that."""

    # -- the three verbs -------------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """The learner's loss and metrics, through the wrapped module. A pipeline's stages take turns: where it returns, all
        micro-batches of the step have gone backward, too, and their mean loss is known on every rank."""

    def minimize(self, loss: Tensor, player: str = "learner") -> None:
        """Backward, where `forward` has not gone it; once all micro-batches of the step are in, a step of the player's
        optimizer. Ends the run where the loss is not finite, before anything is learned from it, or the gradient is not."""
        if self._guard and self._reads_late:
            self._unread.append((len(self.rows) - 1, loss.detach()))
        elif self._guard and not math.isfinite(loss.detach().item()):
            self._stop(loss.detach().item())
        self.add_loss(loss)
        if self.judge and self._last_micro:
            self.left_out = self.judge(self._step + 1, self.step_loss())
        self.pulse.at("backward")
        self._minimize(loss, player)
        self.grad_norms[player] = self.grad_norm
        if self._last_micro:
            self._end_step(loss, player)

    @property
    def _reads_late(self) -> bool:
        """Whether the guard reads the losses of a step once, together with the gradient's norm: a GPU is asked for a number
        when all that is queued is done, and stands still until something is queued again."""
        return self.device.type == "cuda" and self.judge is None

    def _sound(self, norm: float | Tensor | None) -> bool:
        """Reads the gradient's norm and, where they wait, the losses: whether all are finite. Once a step and player,
        before the optimizer's step where the engine takes it."""
        unread, self._unread = self._unread, []
        on_device = [norm.detach()] if isinstance(norm, Tensor) else []
        found = (
            torch.stack([t.double() for t in (*on_device, *(loss for _, loss in unread))]).tolist() if unread else []
        )
        self._read_norm = found.pop(0) if found and on_device else None if norm is None else float(norm)
        self._bad = next(((micro, x) for (micro, _), x in zip(unread, found) if not math.isfinite(x)), None)
        return self._bad is None and (self._read_norm is None or math.isfinite(self._read_norm))

    def _end_step(self, loss: Tensor, player: str) -> None:
        """Counts the step, and ends the run where it was none to learn from."""
        stepped = self._stepped(player)
        self.optimizer_steps[player] += stepped
        if stepped and player in self.averages:
            self.averages[player].follow(self.optimizer_steps[player])
        if not self._guard:
            return
        if self._read_norm is None:  # the engine could not look before the step
            self._sound(self.grad_norm if stepped else None)
        bad_gradient = stepped and self._read_norm is not None and not math.isfinite(self._read_norm)
        self._read_norm = None
        if self._bad or (bad_gradient and self._reads_late):
            self._stop_late(bad_gradient)
        if bad_gradient:
            nonfinite.stop_gradient(self._trained(player), self.batch, self._step, loss.detach().item())

    def _stop_late(self, everywhere: bool) -> None:
        """Raises TrainingFailed for a loss that was not finite in one of the step's micro-batches; where the gradient shows
        it `everywhere`, the same on every rank, whose loss it was not."""
        told = [""]
        if self._bad:
            told = [nonfinite.late(self.learner, self.plan, self.batch, self._step, self._bad, self.rows)]
        if everywhere and self.plan.world > 1:
            mine, told = told[0], [""] * self.plan.world
            dist.all_gather_object(told, mine)
        if text := next(filter(None, told), ""):
            raise TrainingFailed(text)

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.plan.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def assign(self, player: str, values: Mapping[str, Tensor]) -> None:
        """Overwrites weights of a player (name within it -> full tensor), the same on every rank."""
        for name, parameter in self.bare[player].named_parameters():
            if name in values:
                self._assign(parameter, values[name])

    def share(self, n: int) -> range:
        """This rank's part of n things that are independent of each other, such as environments."""
        return range(self.rank * n // self.plan.world, (self.rank + 1) * n // self.plan.world)

    # -- for the loop ----------------------------------------------------------------------------------------------------

    def feed(self, source: Iterator[Mapping[str, Tensor]], step: int) -> Iterator[Batch]:
        """This rank's micro-batches of one optimizer step, on the device, with their noise and learning rate set."""
        self._step = step
        self.patience.in_step(self.pulse)
        self._set_lr(self.learning_rate(step))
        taken = self._taken(source)
        for micro in range(self.plan.accumulate):
            self.pulse.at("data", step + 1)
            begin = time.perf_counter()
            batch = self.to_device(cut_sequence(next(taken), self.learner))
            self._send_next(source)
            self.data_s += time.perf_counter() - begin
            self.begin(batch, micro)
            self.pulse.at("forward")
            yield batch
        self.pulse.at("after the step")
        self.patience.beside_steps()
        noise.begin(0, None)

    def _send_next(self, source: Iterator[Mapping[str, Tensor]]) -> None:
        """The batch that follows sets off for the GPU, if it has been read already: nobody waits for that here."""
        peek = getattr(source, "peek", None)
        if self._copies and peek and (following := peek()) is not None:
            self._copies.begin(following)

    def _taken(self, source: Iterator[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
        """The step's micro-batches; where the learner counts more than samples, with the mean of its counts."""
        taken = itertools.islice(source, self.plan.accumulate)
        first = next(taken)
        if self.learner.counted(first) is None:
            yield first
            yield from taken
            return
        batches = [first, *taken]
        counts = [count for batch in batches if (count := self.learner.counted(batch)) is not None]
        total = torch.stack(counts).double().sum().to(self.device)
        # Ranks that share a replica count the same samples: the mean over all ranks is that over the replicas.
        mean = self.all_sum(total).float() / (self.plan.accumulate * self.plan.world)
        for batch in batches:
            yield {**batch, "mean_count": mean.expand(len(batch["id"]))}

    def begin(self, batch: Batch, micro: int) -> None:
        """Sets everything that the forward pass of a step's micro-batch depends on, but for the weights."""
        if micro == 0:
            self._loss_sum, self.left_out, self.rows, self._unread = 0.0, False, [], []
        self.rows.append(batch["id"])
        self._last_micro = micro == self.plan.accumulate - 1
        self._before_micro_batch(batch, micro)
        self.batch = batch
        noise.begin(self.config.seed, batch["position"])
        # Families that draw from torch's generator get the same stream after a restart, without any saved state.
        draw = (self._step * self.plan.accumulate + micro) * self.plan.mesh.data + self.groups.place["data"]
        torch.default_generator.manual_seed((self.config.seed * 0x9E3779B97F4A7C15 + draw) & (2**63 - 1))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(torch.default_generator.initial_seed())

    def add_loss(self, loss: Tensor) -> None:
        """Counts the loss of one of the step's micro-batches."""
        self._loss_sum = self._loss_sum + loss.detach()

    def step_loss(self) -> float:
        """Collective. The mean loss over the step's micro-batches and all ranks."""
        assert isinstance(self._loss_sum, Tensor)
        return float(self.all_sum(self._loss_sum.clone())) / (self.plan.accumulate * self.plan.world)

    def own_loss(self) -> float:
        """The mean loss of the step's micro-batches on this rank; where a pipeline computes it elsewhere, 0."""
        return float(self._loss_sum) / self.plan.accumulate

    def evaluate(self, batch: Mapping[str, Tensor]) -> Metrics:
        """The learner's metrics of one held-out batch on this rank. Collective under ZeRO-3."""
        self.pulse.at("evaluation")
        with torch.no_grad():
            batch = self.to_device(cut_sequence(batch, self.learner))
            noise.begin(self.config.seed ^ EVALUATION, batch["position"])  # the same draws on every layout, each time
            try:
                return self._evaluate(batch)
            finally:
                noise.begin(0, None)

    def to_device(self, batch: Mapping[str, Tensor]) -> Batch:
        batch = self._copies.of(batch) if self._copies else batch
        if self._channels_last:
            last = torch.channels_last
            batch = {n: t.contiguous(memory_format=last) if t.ndim == 4 else t for n, t in batch.items()}
        return batch

    # -- for the checkpoint ----------------------------------------------------------------------------------------------

    def owned(self) -> Iterator[Owned]:
        """What this rank writes into a checkpoint: all ranks together every element of the run's state, once. No rank waits
        for another (but for what learns nothing under ZeRO-3), and a tensor is valid until the next one is asked for."""
        return shared_by_axis(self._same(), self._alike)

    @abstractmethod
    def _same(self) -> Iterator[Same]:
        """What other ranks have alike, in one order on all of them."""

    def _alike(self, parameter: Tensor) -> Axis:
        """The ranks that have the same part of a parameter, or of a buffer."""
        return self.groups.stage if shard_of(parameter) is None else self.groups.data

    def _beside(self) -> Iterator[Same]:
        """What no optimizer knows of."""
        for average in self.averages.values():
            for name, value in average.values.items():
                yield Same(f"averages/{name}", average.parameters[name], value)
        for name, parameter in self.bystanders():
            yield Same(f"weights/{name}", parameter, parameter.detach())
        for name, buffer in self.named_buffers():
            yield Same(f"buffers/{name}", buffer, buffer)

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Collective. Every tensor of the run's state, gathered in its full shape, under the names of `owned`, on all ranks
        of `holders`. One at a time: memory stays small."""

    def holders(self, name: str) -> Axis:
        """The ranks on which `tensors` yields this one, at the same place of its order."""
        return self.groups.stage

    @abstractmethod
    def load_optimizer(self, read: Read, names: set[str], steps: Mapping[str, int]) -> None:
        """Restores the optimizer from `read("optimizer/KEY/NAME", box)`, and fp32 weights where the engine keeps such. Each
        rank reads what it has. Not collective."""

    def loss_scales(self) -> dict[str, dict[str, float]]:
        """What each player's dynamic loss scale (fp16) goes on with."""
        return {}

    def load_loss_scales(self, kept: Mapping[str, Mapping[str, float]]) -> None:  # noqa: B027 - most engines scale nothing
        """Goes on with these; a player that is not among them begins anew."""

    def named(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(player, one-process name, parameter) of every parameter, in one order on every rank."""
        for player, net in self.bare.items():
            prefix = "" if player == "learner" else f"{player}."
            for name, parameter in net.named_parameters():
                yield player, prefix + name, parameter

    def bystanders(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters outside every player, such as a frozen copy of one: never trained, and kept by the checkpoint."""
        if "learner" not in self.bare:
            for name, parameter in self.learner.named_parameters():
                if name.split(".", 1)[0] not in self.bare:
                    yield name, parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers under their one-process names (those outside every player too)."""
        for name, buffer in self.learner.named_buffers():
            player, _, rest = name.partition(".module.")
            yield (f"{player}.{rest}" if rest and player in self.bare else name), buffer

    # -- for the guard ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def stepping(self, player: str) -> list[torch.optim.Optimizer]:
        """The torch optimizers that step a player's weights, whatever is wrapped around them."""

    def held(self, player: str) -> Iterator[Held]:
        """Where those have this rank's part of every trained parameter."""
        for of, name, parameter in self.named():
            if of == player and parameter.requires_grad:
                yield Held(name, 0, parameter.numel(), parameter, 0)

    def clipped(self, player: str) -> float:
        """What clipping multiplied the gradient of the player's latest step by."""
        clip, norm = self.config.train.clip_norm, self.grad_norms.get(player)
        return 1.0 if not clip or norm is None else min(1.0, clip / (float(norm) + 1e-6))

    def loss_scale(self, player: str) -> float:
        """What the loss was multiplied by, and the gradient is divided by before the step."""
        return 1.0

    def shared(self) -> dict[str, list[int]]:
        """Names of parameters and buffers that several pipeline stages hold, and the stages."""
        return {}

    # -- what an engine fills in -----------------------------------------------------------------------------------------

    @abstractmethod
    def _minimize(self, loss: Tensor, player: str) -> None: ...

    def _stop(self, loss: float) -> NoReturn:
        """Raises TrainingFailed for a loss that is not finite."""
        nonfinite.stop(self.learner, self.plan, self.batch, self._step, loss)

    def _trained(self, player: str) -> nn.Module:
        """The module with what this rank has of a player's parameters."""
        return self.bare[player]

    @abstractmethod
    def _evaluate(self, batch: Batch) -> Metrics: ...

    def _to_device(self) -> None:
        """Moves what is there; what is promised is made there."""
        bear_all(self.learner, self.device)
        self.learner.to(self.device)

    def _stepped(self, player: str) -> bool:
        """Whether the step was taken: fp16 skips the one that overflows, and scales the loss down."""
        return not self.left_out

    def _assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.detach().copy_(value)

    @abstractmethod
    def _set_lr(self, lr: float) -> None: ...

    def _before_micro_batch(self, batch: Batch, micro: int) -> None:  # noqa: B027 - some engines have nothing to do here
        """Called before each micro-batch's forward."""
