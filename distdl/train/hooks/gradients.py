"""The gradient that an optimizer steps with is the mean of what the ranks worked out: looked at for every parameter.

An equal weight proves nothing where one rank steps it and sends it to the others, as the stages of ZeRO do: a run whose
gradients are not reduced ends there with equal replicas too. So the gradients themselves are compared, by two numbers of
each: its dot products with noise z, which all ranks draw alike. They are linear, and whole gradients are never gathered:

    <z, mean of g_r> = mean of <z, g_r>                       each rank adds up its own micro-batches' in the backward pass
    <z, what the optimizer holds> = sum of <z_part, part>     over the parts of a gradient that lie on different ranks

A difference of d is missed where both products of it with z fall below the tolerance: for one of the gradient's own size
about once in 10^8 in fp32, once in 1,000 in bf16, and in a later look the noise is another.

What is proven where:
- data, sequence: every parameter, on every engine and stage of ZeRO, with what DeepSpeed and distdl do to the gradient in
  between: reduction, accumulation, loss scale, clipping. Experts: over the ranks that hold the same ones.
- pipeline: the gradient of what several stages hold is the sum of theirs.
- tensor: what is not cut has the same gradient on every rank. What is cut is compared along the other axes only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distdl.engine.base import Engine
from distdl.engine.shards import Held
from distdl.layout.axes import shard_of

NOISE = 1 << 20
"""Elements of noise. A parameter's begins at a place that its name and the look choose, and goes round."""
LOOKS = 2
"""Dot products of each gradient."""
STOPPED = "    the weights of this step are wrong, so the run was stopped; the last checkpoint is sound\n"


class GradientWatch:
    """Watches the steps for which it is armed; the others cost nothing, for no hook is there then."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        dtype = torch.float64 if engine.config.train.precision == "fp64" else torch.float32
        drawn = torch.rand(LOOKS, NOISE, generator=torch.Generator().manual_seed(0), dtype=dtype)
        self.noise = ((drawn - 0.5) * 12**0.5).to(engine.device)  # mean 0, variance 1
        trained = [(player, name, p) for player, name, p in engine.named() if p.requires_grad]
        self.players = [player for player, _, _ in trained]
        self.parameters = {name: p for _, name, p in trained}
        self.names = list(self.parameters)
        self.held: dict[int, list[Held]] = {}
        """Of each tensor that an optimizer steps, by its id: what of which parameter lies in it."""
        for player in engine.bare:
            for held in engine.held(player):
                self.held.setdefault(id(held.tensor), []).append(held)
        self._row = {name: row for row, name in enumerate(self.names)}
        allowed = [self._allowed(p) for p in self.parameters.values()]
        self._tolerance = torch.tensor(allowed, dtype=torch.float64, device=engine.device)
        self._local = torch.zeros(len(self.names), LOOKS + 1, dtype=torch.float64, device=engine.device)
        """Of this rank's own gradient: the dot products, and the sum of the micro-batches' lengths."""
        self._got = torch.zeros(len(self.names), LOOKS, dtype=torch.float64, device=engine.device)
        """Of what the optimizer steps with, this rank's part."""
        self._came = False
        """Whether any gradient came since `forget`."""
        self._look = 0
        self._hooks: dict[str, list[Any]] = {}
        """Of every player that is watched."""
        self._coming: dict[int, Tensor] = {}
        """Row -> products and length of a gradient that is about to be accumulated."""
        self._stepped: dict[str, float] = {}
        """Player -> loss scale, of those whose optimizer has begun its step."""

    # -- a step ----------------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Watches every player's next step."""
        if not self._hooks:
            self._look += 1
        for player in self.engine.bare:
            if player not in self._hooks:
                self._hooks[player] = [*self._on_gradients(player), *self._on_steps(player)]

    @property
    def seen(self) -> bool:
        """Whether an optimizer took a step that was watched."""
        return bool(self._stepped)

    def _on_gradients(self, player: str) -> Iterator[Any]:
        for row, (name, parameter) in enumerate(self.parameters.items()):
            if self.players[row] == player and parameter.requires_grad:
                yield parameter.register_hook(partial(self._on_gradient, player, row, self._place(name)))
                yield parameter.register_post_accumulate_grad_hook(partial(self._on_accumulated, row))

    def _on_steps(self, player: str) -> Iterator[Any]:
        for optimizer in self.engine.stepping(player):
            yield optimizer.register_step_pre_hook(partial(self._on_step, player))

    @torch.no_grad()
    def _on_gradient(self, player: str, row: int, place: int, grad: Tensor) -> None:
        """The last of the tensor's hooks, so that it sees what the others have made of the gradient."""
        if player not in self._stepped:  # a closure's gradients at other weights are not this step's
            flat = (grad.to_dense() if grad.is_sparse else grad).reshape(-1)
            length = torch.linalg.vector_norm(flat, dtype=self.noise.dtype)
            self._coming[row] = torch.cat([self._dots(flat, place), length[None]])

    def _on_accumulated(self, row: int, parameter: Tensor) -> None:
        """Gradients that a family asks for by itself, of an inner loop, are never accumulated."""
        if (coming := self._coming.pop(row, None)) is not None:
            self._local[row] += coming
            self._came = True

    @torch.no_grad()
    def _on_step(self, player: str, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._stepped.setdefault(player, self.engine.loss_scale(player))
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                for held in self.held.get(id(tensor), ()) if tensor.grad is not None else ():
                    part = tensor.grad.reshape(-1)[held.begin : held.begin + held.size]
                    self._got[self._row[held.name]] += self._dots(part, self._place(held.name) + held.first)

    def _place(self, name: str) -> int:
        return zlib.crc32(f"{self._look} {name}".encode())

    def _dots(self, values: Tensor, place: int) -> Tensor:
        """(LOOKS,): flat values with the noise from `place` on."""
        total, done = self.noise.new_zeros(LOOKS), 0
        while done < len(values):
            begin = (place + done) % NOISE
            count = min(NOISE - begin, len(values) - done)
            total += self.noise[:, begin : begin + count] @ values[done : done + count].to(self.noise)
            done += count
        return total

    # -- after it --------------------------------------------------------------------------------------------------------

    def compare(self, step: int) -> str:
        """Collective. What is wrong with a gradient of this step, "" where nothing is. A player that took no step (fp16
        skips one that overflows, and a phase leaves players out) is watched in the next one too."""
        said = self._compared(step)
        for player in self._stepped:
            for hook in self._hooks.pop(player):
                hook.remove()
        self._stepped.clear()
        self._got.zero_()
        return said

    def forget(self) -> None:
        """Before the next step: what gradients came in this one."""
        if self._came:
            self._local.zero_()
            self._came = False

    def _compared(self, step: int) -> str:
        engine, groups = self.engine, self.engine.groups
        rows = [row for row, player in enumerate(self.players) if player in self._stepped]
        names = [self.names[row] for row in rows]
        worked_out, got = self._local[rows], self._got[rows]
        cut = [not getattr(self.parameters[name], "allreduce", True) for name in names]  # experts
        for axis, part in ((groups.data, [not c for c in cut]), (groups.expert_data, cut)):
            if any(part):
                worked_out[part] = axis.sum(worked_out[part]) / groups.data.size
                if engine.sharded:
                    got[part] = axis.sum(got[part])
        tied = self._sum_over_stages(names, worked_out)
        scales = {player: engine.clipped(player) / scale for player, scale in self._stepped.items()}
        scale = torch.tensor([scales[self.players[row]] for row in rows], dtype=torch.float64, device=got.device)
        want, length = worked_out[:, :LOOKS] * scale[:, None], worked_out[:, LOOKS] * scale
        bad = (got - want).abs().amax(1) > self._tolerance[rows] * length
        along_tensor = self._along_tensor(step, names, worked_out, self._tolerance[rows])  # by every rank
        if not bad.any():
            return along_tensor
        first = int(bad.nonzero()[0])
        name, axis = names[first], groups.expert_data if cut[first] else groups.data
        of = [f"summed over {_list('pipeline stage', [s + 1 for s in tied[name]])}"] if name in tied else []
        of += [f"averaged over {_list('rank', axis.ranks())}"] if axis.size > 1 else []
        how = "".join(f", {done}" for done in of)
        return (
            f"in step {step} the optimizer of rank {engine.rank} does not get the gradient of {name} that was worked out"
            f"{how}: {_how_far(got[first], want[first], length[first])}. So it is with {int(bad.sum())} of its {len(rows)} "
            f"parameters.\n{STOPPED}"
            "    fix: look for a gradient that is not summed over these ranks, is summed twice, or has another scale"
        )

    def _sum_over_stages(self, names: list[str], worked_out: Tensor) -> dict[str, list[int]]:
        """Sums, in place, the rows of what several pipeline stages hold. -> their names, and the stages."""
        shared = {name: stages for name, stages in sorted(self.engine.shared().items()) if len(stages) > 1}
        if not shared:
            return {}
        row_of = {name: row for row, name in enumerate(names) if name in shared}
        sums = worked_out.new_zeros(len(shared), LOOKS + 1)
        for place, name in enumerate(shared):
            if name in row_of:
                sums[place] = worked_out[row_of[name]]
        self.engine.groups.pipeline.sum(sums)
        for place, name in enumerate(shared):
            if name in row_of:
                worked_out[row_of[name]] = sums[place]
        return shared

    def _along_tensor(self, step: int, names: list[str], worked_out: Tensor, allowed: Tensor) -> str:
        """What the tensor axis does not cut goes into the same sums on each of its ranks."""
        axis = self.engine.groups.tensor
        whole = [shard_of(self.parameters[name]) is None for name in names]
        if axis.size == 1 or not any(whole):
            return ""
        mine = worked_out[whole]
        for index, other in enumerate(axis.gather(mine)):
            far = (other - mine)[:, :LOOKS].abs().amax(1)
            bad = far > allowed[whole] * torch.maximum(mine[:, LOOKS], other[:, LOOKS])
            if bad.any():
                first = int(bad.nonzero()[0])
                name = [name for name, kept in zip(names, whole) if kept][first]
                return (
                    f"in step {step} the gradient of {name}, which the tensor axis does not cut, is not the same on rank "
                    f"{self.engine.rank} and on rank {axis.rank(index)}: "
                    f"{_how_far(other[first, :LOOKS], mine[first, :LOOKS], mine[first, LOOKS])}. {int(bad.sum())} of "
                    f"{len(mine)} are not.\n{STOPPED}"
                    "    fix: look for a gradient that is not summed over the tensor axis in the layers after it"
                )
        return ""

    def _allowed(self, parameter: Tensor) -> float:
        """How far the products may be off, in lengths of the gradient: what the roundings of the sums can come to."""
        told: dict[str, Any] = self.engine.plan.deepspeed or {}
        types = [told.get("data_types", {}).get("grad_accum_dtype"), told.get("communication_data_type")]  # of its sums
        if parameter.dtype in (torch.bfloat16, torch.float16):
            types = [of or "the weights'" for of in types]
        if any(of not in (None, "fp32", "float32", "float") for of in types):
            added = self.engine.plan.accumulate + self.engine.plan.world  # one after the other, each to 8 bits
            return min(0.5, (8 + added) / 256)
        return 1e-6 if parameter.dtype == torch.float64 else 1e-4


def _how_far(got: Tensor, want: Tensor, length: Tensor) -> str:
    """Two pairs of products in words."""
    times = float((got * want).sum() / want.square().sum().clamp(min=1e-300))
    if not got.any():
        return "it is zero"
    if float((got - times * want).abs().max()) < 1e-3 * float((got - want).abs().max()):
        return f"it is {times:.4g} times that"
    return f"it is off by about {float((got - want).abs().max() / length.clamp(min=1e-300)):.2g} of its length"


def _list(word: str, numbers: list[int]) -> str:
    """rank 0; ranks 0, 1 and 2"""
    if len(numbers) == 1:
        return f"{word} {numbers[0]}"
    return f"{word}s {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
