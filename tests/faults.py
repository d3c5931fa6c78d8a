"""Faults of one line each that a distributed trainer can have and still learn, to be put into a process for a while.

Each function gives a context in which this process has the fault. `tests/mutants.py` says where each is put.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

Change = Callable[[str, Any], Any]
Spoilt = contextlib.AbstractContextManager[Any]


def gradients(change: Change) -> Spoilt:
    """`change(name, gradient)` of every parameter, in each backward pass."""
    from distdl.train import worker

    build = worker.build_learner

    def built(*args: Any) -> Any:
        learner = build(*args)
        for name, parameter in learner.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, name=name: change(name, gradient))
        return learner

    return mock.patch.object(worker, "build_learner", built)


def of_the_first_rank(parameter: str) -> Callable[[], Spoilt]:
    def change(name: str, gradient: Any) -> Any:
        import torch.distributed as dist

        if name != parameter:
            return gradient
        return gradient * (0 if dist.get_rank() else dist.get_world_size())

    return lambda: gradients(change)


def twice() -> Spoilt:
    return gradients(lambda name, gradient: gradient * 2)


def groups(change: Callable[[dict[str, Any]], None]) -> Callable[[], Spoilt]:
    """`change` of each parameter group of the optimizer."""

    def spoilt() -> Spoilt:
        from distdl.engine import deepspeed

        make = deepspeed.make_optimizer

        def made(*arguments: Any) -> Any:
            optimizer = make(*arguments)
            for group in optimizer.param_groups:
                change(group)
            return optimizer

        return mock.patch.object(deepspeed, "make_optimizer", made)

    return spoilt


def option(key: str, change: Callable[[Any], Any]) -> Callable[[], Spoilt]:
    """An option of the optimizer, where it has that one."""
    return groups(lambda group: group.update({key: change(group[key])} if key in group else {}))


def decay_everything() -> Spoilt:
    from distdl.engine import deepspeed

    make = deepspeed.make_optimizer

    def made(config: Any, *arguments: Any) -> Any:
        optimizer = make(config, *arguments)
        for group in optimizer.param_groups:
            group["weight_decay"] = config.optimizer.weight_decay
        return optimizer

    return mock.patch.object(deepspeed, "make_optimizer", made)


def schedule(change: Callable[[Callable[[int], float], int], float]) -> Callable[[], Any]:
    def spoilt() -> Spoilt:
        from distdl.engine import base

        make = base.learning_rate

        def made(config: Any, steps: int) -> Callable[[int], float]:
            rate = make(config, steps)
            return lambda step: change(rate, step)

        return mock.patch.object(base, "learning_rate", made)

    return spoilt


def far_keys_learn_nothing() -> Spoilt:
    from distdl.parallel import sequence

    add = sequence._add_gradients

    def added(*args: Any, behind: int, window: int) -> None:
        *rest, d_kv = args
        add(*rest, d_kv.clone() if behind else d_kv, behind=behind, window=window)

    # The plain products are spoilt, and taken in the place of the fused kernel.
    return mock.patch.multiple(sequence, _add_gradients=added, flash_of=lambda q: None)


def unclipped() -> Spoilt:
    import deepspeed

    initialize = deepspeed.initialize

    def initialized(config: dict[str, Any], **rest: Any) -> Any:
        return initialize(config={**config, "gradient_clipping": 0.0}, **rest)

    return mock.patch.object(deepspeed, "initialize", initialized)


def left_out_by_ddp(parameter: str) -> Callable[[], Spoilt]:
    def spoilt() -> Spoilt:
        from distdl.engine import torch as engine

        whole = engine.DistributedDataParallel

        def wrapped(net: Any, **options: Any) -> Any:
            whole._set_params_and_buffers_to_ignore_for_model(net, [parameter])
            return whole(net, **options)

        return mock.patch.object(engine, "DistributedDataParallel", wrapped)

    return spoilt


def inputs_not_summed() -> Spoilt:
    from distdl.parallel import tensor

    return mock.patch.object(tensor, "copied", lambda x: x)


def no_reduction_2() -> Spoilt:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    return mock.patch.multiple(  # the first where DeepSpeed scatters, the second where it sums in place, as on CPUs
        DeepSpeedZeroOptimizer,
        allreduce_bucket=lambda self, bucket, *_, **__: self.flatten(bucket),
        gradient_reduction_w_predivide=lambda self, tensor, dtype: tensor,
    )


def no_reduction_3() -> Spoilt:
    from deepspeed.runtime.zero import stage3

    def own(tensors: list[Any], group: Any = None) -> list[Any]:
        import torch.distributed as dist

        size, rank = dist.get_world_size(group), dist.get_rank(group)
        share = [math.ceil(t.numel() / size) for t in tensors]
        return [t.reshape(-1)[rank * n : (rank + 1) * n].clone() for t, n in zip(tensors, share)]

    return mock.patch.object(stage3, "reduce_scatter_coalesced", own)


def untied() -> Spoilt:
    from distdl.engine import stages

    return mock.patch.object(stages, "ties", lambda *_: [])


def experts_averaged_with_others() -> Spoilt:
    """DeepSpeed is told that all ranks hold the same experts."""
    from distdl.engine import deepspeed

    whole = deepspeed.experts_announced

    def announced(net: Any, ours: Any) -> Any:
        wrong = copy.copy(ours)
        wrong.expert_data = ours.data
        return whole(net, wrong)

    return mock.patch.object(deepspeed, "experts_announced", announced)


def first_micro_batch_lost() -> Spoilt:
    from distdl.engine.deepspeed import DeepSpeedEngine

    whole = DeepSpeedEngine._minimize

    def minimized(self: Any, loss: Any, player: str) -> None:
        whole(self, loss if self._last_micro else loss * 0, player)

    return mock.patch.object(DeepSpeedEngine, "_minimize", minimized)


def wrong_count_of_micro_batches() -> Spoilt:
    from distdl.engine.deepspeed import DeepSpeedEngine

    whole = DeepSpeedEngine._minimize

    def minimized(self: Any, loss: Any, player: str) -> None:
        count = self.plan.accumulate
        whole(self, loss * count / (count + 1), player)

    return mock.patch.object(DeepSpeedEngine, "_minimize", minimized)


def sums_in_16_bits() -> Spoilt:
    from distdl.engine.torch import TorchEngine

    whole = TorchEngine._backward

    def backward(self: Any, loss: Any) -> None:
        whole(self, loss)
        for _, _, parameter in self.named():
            if parameter.grad is not None:
                parameter.grad.copy_(parameter.grad.bfloat16())

    return mock.patch.object(TorchEngine, "_backward", backward)


def statistics_of_one_rank() -> Spoilt:
    """A batch norm normalises by all ranks' statistics, and remembers its own rank's."""
    from distdl.nn.batch_norm import BatchNorm

    whole = BatchNorm.forward

    def forward(self: Any, x: Any) -> Any:
        before = self.running_mean.clone()
        y = whole(self, x)
        if self.training:
            own = x.float().mean([axis for axis in range(x.ndim) if axis != 1]).detach()
            self.running_mean.copy_(before.lerp_(own, self.momentum))
        return y

    return mock.patch.object(BatchNorm, "forward", forward)


def noise_by_rank() -> Spoilt:
    from distdl.layout import noise

    begin = noise.begin

    def begun(seed: int, positions: Any) -> None:
        import torch.distributed as dist

        begin(seed + dist.get_rank(), positions)

    return mock.patch.object(noise, "begin", begun)


def held_out_of_one_rank() -> Spoilt:
    from distdl.parity import curve

    whole = curve.evaluate

    def evaluated(learner: Any, engine: Any, source: Any) -> Any:
        with mock.patch.object(engine, "all_sum", lambda tensor: tensor):
            return whole(learner, engine, source)

    return mock.patch.object(curve, "evaluate", evaluated)


def same_samples() -> Spoilt:
    from distdl.data import source

    whole = source.BatchSource.__init__

    def made(self: Any, *args: Any, **numbers: Any) -> None:
        whole(self, *args, **{**numbers, "rank": 0})

    return mock.patch.object(source.BatchSource, "__init__", made)


def other_initial_weights() -> Spoilt:
    """The second tensor rank draws the part that it keeps from another seed."""
    from distdl.train import worker

    build = worker.build_learner

    def built(config: Any, *more: Any) -> Any:
        import torch.distributed as dist

        return build(config.model_copy(update={"seed": config.seed + dist.get_rank()}), *more)

    return mock.patch.object(worker, "build_learner", built)
