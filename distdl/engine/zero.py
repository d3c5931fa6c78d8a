"""What DeepSpeed's ZeRO is made to do from outside: begin with shards, sum in fp32, leave a step out, know our experts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distdl.parallel.birth import bear_all
from distdl.parallel.expert import group_name
from distdl.parallel.groups import Groups

HALF = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}
"""What DeepSpeed rounds weights to; where nothing stands here, they stay as they are."""


@contextlib.contextmanager
def stage_1_of_its_own_class() -> Iterator[None]:
    """Within it, an engine of ZeRO-1 in bf16 gets the optimizer that fp16 and stage 2 have, which sums in fp32 as well.

    DeepSpeed would take its BF16_Optimizer, which keeps its shards elsewhere, ignores a gradient that is not finite, and
    holds both sums of the whole model all the time; one class for stages 1 and 2 means one checkpoint and one clipping.
    """
    from deepspeed.runtime import engine

    of_class, choose = engine.DeepSpeedEngine, engine.DeepSpeedEngine._do_optimizer_sanity_check

    def chosen(self: Any, optimizer: Any) -> Any:
        wrapper = choose(self, optimizer)
        return engine.ZERO_OPTIMIZATION if wrapper == engine.BFLOAT16 and self.zero_optimization() else wrapper

    of_class._do_optimizer_sanity_check = chosen
    try:
        yield
    finally:
        of_class._do_optimizer_sanity_check = choose


def born_in_shards(net: nn.Module, config: dict[str, Any], mpu: Any, device: torch.device, precision: str) -> None:
    """Makes a network's promised parameters for ZeRO-3: of each this rank keeps its shard before the next one is made. To
    DeepSpeed it looks as if its own `zero.Init` had been around the constructor, which draws and broadcasts by itself."""
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import Init

    deepspeed.init_distributed(verbose=False)  # adopts the process group that is there
    group = mpu.get_data_parallel_group() if mpu else None
    # Given a module, it replaces torch's linear function, as it does for a model that comes whole.
    init = Init(module=nn.Module(), data_parallel_group=group, config_dict_or_path=config, mpu=mpu)
    bear_all(net, device, HALF.get(precision), then=lambda parameter: init._convert_to_zero_parameters([parameter]))


def masters_where_weights_are(optimizer: Any, zero: int) -> None:
    """Where DeepSpeed's fp32 copies of this rank's weights are of the type and on the device of the weights themselves,
    they become those: a fifth of the memory less. Stage 3 means to do so, and compares a device with its name."""
    if zero == 3:
        weights, masters = optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat
    else:
        groups = zip(optimizer.parallel_partitioned_bit16_groups, optimizer.real_dp_process_group)
        weights = [parts[dist.get_rank(group)] for parts, group in groups]
        masters = optimizer.single_partition_of_fp32_groups
    for weight, master in zip(weights, masters):
        if weight is not None and weight.dtype == master.dtype and weight.device == master.device:
            master.data = weight.data
    if zero < 3:
        optimizer._link_all_hp_params()  # which says where a parameter's part of the masters lies


def loss_scale(engine: Any) -> float:
    """What a DeepSpeed engine multiplies the loss by now, and so every gradient until its step: fp16's, else 1."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0))


_OF_A_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic scale of a loss decides by when it rises and falls."""


def scale_kept(engine: Any) -> dict[str, float]:
    """The state of a DeepSpeed engine's dynamic loss scale; {} without one."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in _OF_A_SCALE} if getattr(scaler, "dynamic", False) else {}


def scale_restored(engine: Any, kept: Mapping[str, float]) -> None:
    """Puts it back, where the engine has one: otherwise nothing is scaled, and nothing of it need be known."""
    if scale_kept(engine):
        vars(engine.optimizer.loss_scaler).update({key: kept[key] for key in _OF_A_SCALE if key in kept})


@contextlib.contextmanager
def step_left_out(engine: Any, zero: int) -> Iterator[None]:
    """Within it, a DeepSpeed engine's step drops the gradients and counts, and the optimizer does nothing: as where fp16
    overflows, but the loss scale stays."""
    optimizer = engine.optimizer

    def dropped(*args: Any, **kwargs: Any) -> None:
        optimizer.overflow = True

    instead: dict[str, Any] = {"step": lambda *args, **kwargs: None}
    if zero:
        instead = {
            "check_grad_overflow": True,
            "check_overflow": dropped,
            "_update_scale": lambda *args, **kwargs: None,
            "step": functools.partial(type(optimizer).step, optimizer),  # its own, which looks for an overflow
        }
        instead |= {"_overflow_check_and_loss_scale_update": dropped} if zero == 3 else {}
    own = {name: vars(optimizer)[name] for name in instead if name in vars(optimizer)}
    vars(optimizer).update(instead)
    try:
        yield
    finally:
        for name in instead:
            del vars(optimizer)[name]
        vars(optimizer).update(own)


@contextlib.contextmanager
def experts_announced(net: nn.Module, ours: Groups) -> Iterator[None]:
    """Within it, DeepSpeed finds that the net has experts cut along an axis, and our process groups for them.

    It looks for layers of its own MoE class (whose routing depends on the local batch, so that we have another) and lets
    them make the groups. An empty one stands in the net while an engine is built; the parameters' marks do the rest.
    """
    if ours.expert.size == 1:
        yield
        return
    from deepspeed.moe.layer import MoE
    from deepspeed.utils import groups as known

    class Announcement(MoE):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = ours.expert.size

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            name = group_name(ours.expert.size)
            known._EXPERT_PARALLEL_GROUP[name] = ours.expert.group
            known._EXPERT_DATA_PARALLEL_GROUP[name] = ours.expert_data.group
            known._EXPERT_PARALLEL_GROUP_RANKS[name] = ours.mesh.line(ours.rank, "expert")
            known._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = ours.mesh.line(ours.rank, "replica")

    net.add_module("announcement", Announcement())
    try:
        yield
    finally:
        del net.announcement
