"""The product engine: DeepSpeed ZeRO 0-3, one DeepSpeed engine per player. pipeline.py and zero.py import it, too.

What DeepSpeed 0.19 makes necessary here:
- Clipping defaults to 1.0 when left out of the JSON: the plan always writes it.
- The optimizer's state exists only after the first step; a resume creates it and links it by hand.
- ZeRO-3's own setter of a full value fails where a parameter does not divide by the world; the local one is used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distdl.engine import average, optimizers, zero_step
from distdl.engine.base import Engine
from distdl.engine.deepspeed_import import import_deepspeed
from distdl.engine.lbfgs import Replay
from distdl.engine.nvme import on_own_folder, ready_for_nvme
from distdl.engine.optimizers import add_penalties, keep, make_optimizer, steps_taken
from distdl.engine.shards import Held, at_hand, shards, states
from distdl.engine.zero import (
    born_in_shards,
    experts_announced,
    loss_scale,
    masters_where_weights_are,
    scale_kept,
    scale_restored,
    stage_1_of_its_own_class,
    step_left_out,
)
from distdl.errors import InputError
from distdl.layout.axes import Axis, here, shard_of
from distdl.layout.owned import Owned, Read, Same, of_flat, read_flat, read_part, share_of_run
from distdl.learner import Batch, Learner
from distdl.metrics import Metrics
from distdl.nn.language import causal
from distdl.parallel.birth import as_made, bear_all, promised
from distdl.parallel.groups import ModelParallelUnit
from distdl.parallel.tensor import whole
from distdl.plan.birth import WHOLE
from distdl.plan.plan import Plan


def ulysses(axis: Axis) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """Attention over a sequence cut along an axis (Jacobs et al. 2023), (B, H, T/S, D) -> (B, H, T/S, D): an all-to-all
    makes it whole sequences of H/S heads and another one brings the slices back. S divides H."""
    from deepspeed.sequence.layer import DistributedAttention

    def local(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:  # (B, T, H/S, D)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return causal(q, k, v, window).transpose(1, 2)

    attention = DistributedAttention(local, axis.group, scatter_idx=2, gather_idx=1)

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T/S, H, D)
        return attention(q, k, v, batch_dim_idx=0, window=window).transpose(1, 2)

    return attend


class DeepSpeedEngine(Engine):
    """ZeRO 0-3 under the three verbs. torch.distributed must be initialised before, for a single rank too."""

    _in_shards = False
    """Whether ZeRO-3 shares parameters out as they are made."""

    def __init__(self, learner: Learner, plan: Plan, rank: int) -> None:
        super().__init__(learner, plan, rank)
        assert plan.deepspeed is not None
        deepspeed = import_deepspeed(plan.device)
        self.zero: int = plan.deepspeed["zero_optimization"]["stage"]
        self.sharded = self.zero > 0
        self.engines: dict[str, Any] = {}
        self._replay = Replay(self, self._backward) if self.config.optimizer.name == "lbfgs" else None
        self._gathered = deepspeed.zero.GatheredParameters
        self._experts = {name for _, name, p in self.named() if not getattr(p, "allreduce", True)}
        if plan.mesh.sequence > 1 and plan.attention == "ulysses":
            here.attention = ulysses(self.groups.sequence)
        self._frozen: dict[int, Callable[[], Tensor]] = {}
        """What gives this rank's part of a parameter that learns nothing, before DeepSpeed rounds it."""
        for player, net in self.bare.items():
            self.engines[player] = self._wrap(net)
            if player != "learner":
                setattr(learner, player, self.engines[player])
        bear_all(learner, self.device)  # what no player has

    def _to_device(self) -> None:
        assert self.plan.deepspeed is not None
        self._in_shards = self.plan.deepspeed["zero_optimization"]["stage"] == 3 and any(
            promised(p) for p in self.learner.parameters()
        )
        if not self._in_shards:
            super()._to_device()
            return
        for buffer in self.learner.buffers():  # the parameters are made where ZeRO-3 shares them out, one by one
            buffer.data = buffer.data.to(self.device)

    def _wrap(self, net: nn.Module) -> Any:
        """A player in a DeepSpeed engine of its own."""
        with experts_announced(net, self.groups):
            engine = self._initialize(net, ModelParallelUnit(self.groups) if self.plan.mesh.tensor > 1 else None)
        if self.zero in (1, 2) and zero_step.suits(engine.optimizer):
            asked = self._guard or self.config.train.clip_norm
            zero_step.ZeroStep(engine.optimizer, self._finite if asked else None)
        add_penalties(self.config, net, self.plan.accumulate, lambda: loss_scale(engine))
        return engine

    def _finite(self, norm: Tensor) -> bool:
        """Reads the gradient's norm, which is the same on every rank, and what losses wait to be read with it: where one of
        them is not finite, the run is stopped after the step, which the others take, too."""
        self._sound(norm)
        return self._read_norm is not None and math.isfinite(self._read_norm)

    def _initialize(self, net: nn.Module, mpu: ModelParallelUnit | None) -> Any:
        import deepspeed

        assert self.plan.deepspeed is not None
        ready_for_nvme(self.config)
        # DeepSpeed rounds weights in half precision, and keeps no master of what is frozen.
        half = self.zero and self.config.train.precision != "fp32"
        for parameter in net.parameters():
            if getattr(parameter, "distdl_frozen", False) and half:
                self._frozen[id(parameter)] = as_made(parameter)
        parameters = [p for p in net.parameters() if p.requires_grad]
        # It rounds the weights before it copies them: the masters would begin with 8 bits, further off than many a step.
        masters = [(p, as_made(p)) for p in parameters] if half else []
        config = on_own_folder(self.plan.deepspeed)
        if self._in_shards:
            born_in_shards(net, config, mpu, self.device, self.config.train.precision)
        optimizer = make_optimizer(self.config, net, self.plan.device)
        try:
            with stage_1_of_its_own_class():
                engine = deepspeed.initialize(
                    model=net, model_parameters=parameters, optimizer=optimizer, config=config, mpu=mpu
                )[0]
        except (AssertionError, NotImplementedError, ValueError) as error:
            if not (extra := self.config.parallel.deepspeed):
                raise
            keys = ", ".join(sorted({*extra, *extra.get("zero_optimization", {})} - {"zero_optimization"}))
            raise InputError(
                f"DeepSpeed refuses this run, to which parallel.deepspeed adds {keys}: {error}",
                fix="leave out the key that it speaks of",
            ) from error
        for parameter, value in masters:
            self._set(parameter, value())
        if self.zero and not half and self.plan.born != WHOLE and self.config.parallel.offload == "none":
            masters_where_weights_are(engine.optimizer, self.zero)
        return engine

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return self.engines["learner"](batch, step)

    def _minimize(self, loss: Tensor, player: str) -> None:
        engine = self.engines[player]
        engine.backward(loss)
        asked = self._guard or self.config.train.clip_norm
        if self.zero == 0 and asked and self._last_micro:  # stage 0 in fp32 reports no norm of its own
            self.grad_norm = self._norm(player)
            if self._guard and not self._sound(self.grad_norm):
                return  # the weights stay as they were; minimize() stops the run
        if self.left_out:
            with step_left_out(engine, self.zero):
                engine.step()
            self.grad_norm = None
            return
        if self._replay is None:
            engine.step()
        elif self._last_micro:  # DeepSpeed's own step takes no closure
            self._replay.step(engine.optimizer, self.bare[player], self._step)
        if self.zero and self._last_micro:
            self.grad_norm = engine.get_global_grad_norm()

    def _backward(self, loss: Tensor) -> None:
        self.engines["learner"].backward(loss)

    def _before_micro_batch(self, batch: Batch, micro: int) -> None:
        if self._replay:
            self._replay.keep(batch, micro)
            # DeepSpeed counts by its own steps, which are not taken.
            self.engines["learner"].set_gradient_accumulation_boundary(is_boundary=self._last_micro)

    def _stepped(self, player: str) -> bool:
        return super()._stepped(player) and (
            self.config.train.precision != "fp16" or self.engines[player].was_step_applied()
        )

    def _norm(self, player: str) -> Tensor:
        """L2 norm of the reduced gradient of the whole model: what the tensor axis cuts is summed over it."""
        gradients = [(p.grad, shard_of(p)) for p in self.bare[player].parameters() if p.grad is not None]
        whole_norm = nn.utils.get_total_norm([g for g, shard in gradients if shard is None])
        cut_norm = nn.utils.get_total_norm([g for g, shard in gradients if shard is not None])
        return (whole_norm.square() + self.groups.tensor.sum(cut_norm.square())).sqrt()

    def _evaluate(self, batch: Batch) -> Metrics:
        if "learner" in self.engines:
            return self.engines["learner"](batch, -1, evaluate=True)
        return self.learner.evaluate(batch)

    def _set_lr(self, lr: float) -> None:
        for engine in self.engines.values():
            for group in engine.optimizer.param_groups:
                group["lr"] = lr

    # -- for the guard ---------------------------------------------------------------------------------------------------

    def stepping(self, player: str) -> list[torch.optim.Optimizer]:
        beside = getattr(self.engines[player].optimizer, "backup_optimizer", None)  # of what is offloaded in part
        return [self._inner(player), *([beside] if beside else [])]

    def held(self, player: str) -> Iterator[Held]:
        if self.zero == 0:
            yield from super().held(player)
            return
        optimizer, flat = self.engines[player].optimizer, self._flat_weights(player)
        for of, name, p in self.named():
            if of != player or not p.requires_grad:
                continue
            if self.zero == 3:
                group, begin, size = optimizer.grad_position[optimizer.get_param_id(p)]
                first = size * self.groups.data.index
                part = Held(name, first, min(size, p.ds_numel - first), flat[group], begin)  # type: ignore[attr-defined] # the last may be padded
            elif where := p._hp_mapping:  # type: ignore[attr-defined]
                there, here_ = where.hp_fragment_address, where.lp_fragment_address
                part = Held(name, here_.start, here_.numel, flat[where.param_group_index], there.start)
            else:  # all of it lies on other ranks
                continue
            if part.size > 0:
                yield part

    def loss_scale(self, player: str) -> float:
        return float(self.engines[player].optimizer.loss_scale) if self.config.train.precision == "fp16" else 1.0

    def loss_scales(self) -> dict[str, dict[str, float]]:
        return {player: found for player, engine in self.engines.items() if (found := scale_kept(engine))}

    def load_loss_scales(self, kept: Mapping[str, Mapping[str, float]]) -> None:
        for player, engine in self.engines.items():
            scale_restored(engine, kept.get(player, {}))

    # -- checkpoint ------------------------------------------------------------------------------------------------------

    def owned(self) -> Iterator[Owned]:
        """Under ZeRO 1-3 a rank's shards of weights and states are its own, but for what the ranks of the tensor axis have
        alike: each of those writes a part."""
        parameters = {name: p for _, name, p in self.named()}
        for player in self.engines if self.zero else ():
            for flat, state, runs in self._shards(player, keep=False):
                for run in runs:
                    p = parameters[run.name]
                    mine = share_of_run(run.size, self.groups.tensor if shard_of(p) is None else Axis())
                    part = slice(run.begin + mine.start, run.begin + mine.stop)
                    for kind, tensor in {"weights": flat, **state}.items():
                        yield from of_flat(f"{kind}/{run.name}", p, run.first + mine.start, tensor.detach()[part])
        yield from super().owned()

    def _shards(self, player: str, keep: bool) -> Iterator[tuple[Tensor, dict[str, Tensor], list[Held]]]:
        """What `shards` says, of a player."""
        optimizer, flats = self.engines[player].optimizer, self._flat_weights(player)
        return shards(optimizer, self.stepping(player), flats, self.held(player), keep)

    def _same(self) -> Iterator[Same]:
        for player, name, parameter in self.named():
            if id(parameter) in self._frozen:
                yield Same(f"weights/{name}", parameter, self._frozen[id(parameter)]().to(self.device))
            elif self.zero == 3 and not parameter.requires_grad:
                with self._gathered([parameter]):
                    yield Same(f"weights/{name}", parameter, parameter.detach().clone())
            elif self.zero == 0 or not parameter.requires_grad:
                yield Same(f"weights/{name}", parameter, parameter.detach())
            for key, value in optimizers.kept(self._inner(player), parameter).items() if self.zero == 0 else ():
                yield Same(f"optimizer/{key}/{name}", parameter, value)
        yield from self._beside()

    def _alike(self, parameter: Tensor) -> Axis:
        expert = not getattr(parameter, "allreduce", True)
        return self.groups.expert_data if expert else super()._alike(parameter)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for player in self.engines:
            self._link_state(player)
        for player, name, parameter in self.named() if self.zero else ():
            if parameter.requires_grad:
                yield f"weights/{name}", whole(parameter, safe_get_full_fp32_param(parameter))
                for key in self._state_keys(player):
                    value = safe_get_full_optimizer_state(parameter, key)
                    yield f"optimizer/{key}/{name}", whole(parameter, value)
        for name, of, tensor in self._same():
            yield name, whole(of, tensor)

    def holders(self, name: str) -> Axis:
        expert = name.rpartition("/")[2] in self._experts
        return self.groups.expert_data if expert else super().holders(name)

    def _inner(self, player: str) -> torch.optim.Optimizer:
        """The torch optimizer inside DeepSpeed's."""
        optimizer = self.engines[player].optimizer
        return optimizer.optimizer if self.zero else optimizer

    def _flat_weights(self, player: str) -> list[Tensor]:
        """This rank's flat fp32 shards, which are what the inner optimizer steps."""
        optimizer = self.engines[player].optimizer
        return list(
            optimizer.fp32_partitioned_groups_flat if self.zero == 3 else optimizer.single_partition_of_fp32_groups
        )

    def _state_keys(self, player: str) -> list[str]:
        return sorted({key for owner in self._flat_weights(player) for key in states(self.stepping(player), owner)})

    def load_optimizer(self, read: Read, names: set[str], steps: Mapping[str, int]) -> None:
        self.optimizer_steps.update(steps)
        average.restore(self.averages, functools.partial(read_part, read), names)
        keys = sorted({n.split("/")[1] for n in names if n.startswith("optimizer/")})
        parameters = {name: p for _, name, p in self.named()}
        for player in self.engines if self.zero else ():
            self._create_state(player, keys)
            for flat, state, runs in self._shards(player, keep=True):
                # The half-precision working copy was rounded from these very weights before the engine was built.
                masters = {"weights": flat.data} if self.config.train.precision != "fp32" else {}
                for kind, tensor in {**masters, **state}.items():
                    for name, first, size, _, begin in runs:
                        if f"{kind}/{name}" in names:
                            part = tensor[begin : begin + size]
                            read_flat(read, f"{kind}/{name}", parameters[name], first, part)
        for player, name, parameter in self.named() if self.zero == 0 else ():
            of_this = [key for key in keys if parameter.requires_grad and f"optimizer/{key}/{name}" in names]
            if of_this:
                values = {key: read_part(read, f"optimizer/{key}/{name}", parameter) for key in of_this}
                keep(self._inner(player), parameter, values, self.optimizer_steps[player])

    def _create_state(self, player: str, keys: list[str]) -> None:
        """Optimizer state as the first step would have made it, so that it can be filled."""
        if not keys:
            return
        inner, steps = self._inner(player), self.optimizer_steps[player]
        for index, owner in enumerate(self._flat_weights(player)):
            with at_hand(self.engines[player].optimizer, index, keep=True):
                inner.state[owner].update({key: torch.zeros_like(owner, requires_grad=False) for key in keys})
                inner.state[owner]["step"] = steps_taken(inner, owner, steps)
        self._link_state(player)

    def _assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self.zero == 3:
            raise NotImplementedError("no family that assigns weights is proven on ZeRO-3")
        super()._assign(parameter, value)
        if self.zero:  # the optimizer steps an fp32 copy of its own, and would bring the old weights back
            self._set(parameter, value)

    def _link_state(self, player: str) -> None:
        """Links each weight to its part of the flat optimizer state, which stages 1 and 2 do once only: after the first
        step of the first parameter group, when the other groups have no state yet."""
        if self.zero in (1, 2):
            optimizer = self.engines[player].optimizer
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Puts this rank's part of a weight into its fp32 shard."""
        from deepspeed.utils import safe_set_full_fp32_param

        value = value.to(self.device, torch.float32)
        if self.zero < 3:
            safe_set_full_fp32_param(parameter, value)
            return
        optimizer: Any = parameter._z3_optimizer  # type: ignore[attr-defined]
        group, first, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
        begin = count * self.groups.data.index
        part = value.flatten()[begin : begin + count]  # the last rank's shard may end in padding
        with at_hand(optimizer, group, keep=True):
            optimizer.fp32_partitioned_groups_flat[group].data[first : first + part.numel()].copy_(part)
