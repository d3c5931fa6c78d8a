"""A step of ZeRO-1 and 2 without what nobody asks for: the same numbers in fewer messages, copies and lines of Python.

DeepSpeed 0.19 copies a gradient into a bucket, from there into a partition and from there into what the optimizer steps,
and runs Python for every parameter in the backward pass and five times after it. It takes the norm whether anybody wants it
or not, reads it three times, and waits for one message after the other: the norm and the weights of each group. Here
- the gradients go into one tensor, which is summed over the ranks, and whose part the optimizer steps where it lies;
- the norms of all groups are one message, none where neither clipping nor the guard wants it, and it is read once;
- the optimizer is called once for all groups, and their weights are sent at the same time;
- of a small model every rank works out the norm by itself, from the sums that all have, and the weights are one message.

Where anything special is asked of DeepSpeed (experts, offloading, fp16's loss scale, sums that go on during the backward
pass, as on GPUs), its own way to it is taken: `suits` and `sums_plainly` say where.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SMALL = 1 << 18
"""Elements of all gradients up to which a message takes longer than to do without it."""

PIECE = 1 << 24
"""Elements whose squares are added up at a time: in fp64 they take 128 MB beside the gradient."""


def suits(optimizer: Any) -> bool:
    """Whether a step of it can be taken here."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    parameters = itertools.chain(*optimizer.bit16_groups)
    return type(optimizer) is DeepSpeedZeroOptimizer and not (
        optimizer.cpu_offload
        or optimizer.has_moe_layers
        or optimizer.dtype == torch.float16
        or optimizer.torch_autocast_gradscaler
        or any(getattr(p, "use_muon", False) for p in parameters)
    )


def sums_plainly(optimizer: Any) -> bool:
    """Whether its gradients are summed after the backward pass, all of them on every rank, as they are."""
    apart = optimizer.overlap_comm or optimizer.reduce_scatter or optimizer.round_robin_gradients
    dtypes = {optimizer.dtype, optimizer.gradient_accumulation_dtype, optimizer.communication_data_type}
    padded = any(map(any, optimizer.round_robin_bit16_padding))
    elements = sum(p.numel() for group in optimizer.bit16_groups for p in group)
    return not (apart or padded) and len(dtypes) == 1 and elements <= optimizer.reduce_bucket_size


class ZeroStep:
    """Takes the place of a DeepSpeed optimizer's step and, where they are plain, of its sums of gradients."""

    def __init__(self, optimizer: Any, finite: Callable[[Tensor], bool] | None) -> None:
        """`finite` reads the gradient's norm, of all ranks, and says whether it is; None: nobody asks for a norm."""
        self.optimizer, self._finite = optimizer, finite
        self._ranks = [dist.get_rank(group) for group in optimizer.real_dp_process_group]
        self._own: list[tuple[int, int]] = []
        """Of each parameter group: where this rank's part lies in the tensor of all gradients."""
        self._padding: list[Tensor] = []
        """Of each: the zeros at its end, so that it can be shared out."""
        self._small = sum(flat.numel() for flat in optimizer.bit16_groups_flat) <= SMALL
        self._whole: Tensor | None = None
        """The mean gradient, all of it, of a step of a small model."""
        self._sums: list[Tensor] | None = None
        """Of the step's micro-batches so far: this rank's parts."""
        self._counted = [self._counts(group) for group in range(len(self._ranks))]
        """Of each: what of this rank's part goes into the norm; None: all of it."""
        optimizer.step = self.step
        if sums_plainly(optimizer):
            self._lay_out()
            for hook in optimizer._grad_acc_hooks:  # they fill buckets, parameter by parameter
                hook.remove()
            optimizer._grad_acc_hooks.clear()
            optimizer.reduce_gradients = self._sum
            optimizer.overlapping_partition_gradients_reduce_epilogue = self._sum

    def _lay_out(self) -> None:
        begin, optimizer = 0, self.optimizer
        for group, flat, size, rank in zip(
            optimizer.bit16_groups, optimizer.bit16_groups_flat, optimizer.partition_size, self._ranks
        ):
            self._own.append((begin + rank * size, begin + (rank + 1) * size))
            self._padding.append(flat.new_zeros(flat.numel() - sum(p.numel() for p in group)))
            begin += flat.numel()

    def _counts(self, group: int) -> list[tuple[int, int]] | None:
        """What the tensor axis does not cut has one gradient on all of its ranks, and counts on the first alone."""
        optimizer = self.optimizer
        if optimizer.model_parallel_rank == 0:
            return None
        from deepspeed.runtime.utils import is_model_parallel_parameter

        counted, size = list[tuple[int, int]](), optimizer.partition_size[group]
        begin = -self._ranks[group] * size
        for p, meta in zip(optimizer.round_robin_bit16_groups[group], optimizer.round_robin_bit16_meta[group]):
            first, last = max(begin, 0), min(begin + meta.numel(), size)
            if first < last and is_model_parallel_parameter(p):
                counted.append((first, last))
            begin += meta.numel()
        return counted

    # -- the sums of gradients -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _sum(self, pipeline_parallel: bool = False) -> None:
        """After a backward pass: ZeRO-2's of each micro-batch, ZeRO-1's of the last, whose gradients are those of all."""
        optimizer, pieces = self.optimizer, []
        for group, padding in zip(optimizer.bit16_groups, self._padding):
            for p in group:
                pieces.append(p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1))
                p.grad = None
            pieces.append(padding)
        flat = torch.cat(pieces)
        del pieces
        summed = optimizer.gradient_reduction_w_predivide(flat, optimizer.communication_data_type)
        parts = [summed[begin:end] for begin, end in self._own]
        last = optimizer.is_gradient_accumulation_boundary()
        alone = last and self._sums is None and optimizer.model_parallel_group is None
        self._whole = summed if alone and self._small else None
        if self._sums is not None:
            torch._foreach_add_(self._sums, parts)
        else:
            self._sums = parts if last else [part.clone() for part in parts]  # the rest need not be kept till then
        if last:
            from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

            for index, part in enumerate(self._sums):
                optimizer.averaged_gradients[index] = GradPartitionBufferGroup([part], part)
            self._sums = None

    # -- the step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        optimizer, masters = self.optimizer, self.optimizer.single_partition_of_fp32_groups
        optimizer.micro_step_id, optimizer.overflow, optimizer._global_grad_norm = -1, False, None
        parts = [self._part(index).to(master.dtype) for index, master in enumerate(masters)]
        for index in range(len(masters)):
            optimizer._release_preflattened_grad_buffers(index)
            optimizer.averaged_gradients[index] = optimizer.all_grad_tensors[index] = None
        if self._finite is not None:
            norm = optimizer._global_grad_norm = self._norm(parts)
            if not self._finite(norm):
                optimizer.overflow, optimizer._global_grad_norm = True, float("inf")
                optimizer.zero_grad()
                return
            if optimizer.clip_grad > 0:
                torch._foreach_mul_(parts, 1.0 / torch.clamp((norm + 1e-6) / optimizer.clip_grad, min=1.0))
        for master, part in zip(masters, parts):
            master.grad = part
        optimizer.optimizer.step()
        optimizer._lazy_init_hp_params_optimizer_state()
        for master in masters:
            master.grad = None
        self._share_weights(masters)

    def _part(self, index: int) -> Tensor:
        """The gradient of this rank's part of a group, flat."""
        optimizer = self.optimizer
        flat: Tensor | None = optimizer._get_preflattened_grad_partition(index)
        if flat is None:
            flat = optimizer.flatten(optimizer.averaged_gradients[index])
        assert flat.numel() == optimizer.partition_size[index]
        return flat

    def _norm(self, parts: list[Tensor]) -> Tensor:
        """L2 norm of the gradient of the whole model: squares are added up in fp64, and over ranks in fp32."""
        from deepspeed.runtime.zero.utils import get_norm_dtype

        if self._whole is not None:
            return torch.linalg.vector_norm(self._squares_of_all(self._whole).sqrt())
        optimizer, squares = self.optimizer, []
        for part, counted in zip(parts, self._counted):
            whole = [part] if counted is None else [part[begin:end] for begin, end in counted]
            pieces = itertools.chain.from_iterable(each.split(PIECE) for each in whole)
            norms = [torch.linalg.vector_norm(piece.to(get_norm_dtype())) for piece in pieces]
            squares.append(
                torch.stack(norms).square().sum().float() if norms else part.new_zeros((), dtype=torch.float)
            )
        of_groups = torch.stack(squares)
        dist.all_reduce(of_groups, group=optimizer.dp_process_group)
        if optimizer.model_parallel_group is not None:
            dist.all_reduce(of_groups, group=optimizer.model_parallel_group)
        return torch.linalg.vector_norm(of_groups.sqrt())

    def _squares_of_all(self, whole: Tensor) -> Tensor:
        """What `_norm` gets by a message: of each group, the sum over the ranks."""
        optimizer, begin, squares = self.optimizer, 0, []
        for flat, size in zip(optimizer.bit16_groups_flat, optimizer.partition_size):
            of_ranks = whole[begin : begin + flat.numel()].view(-1, size).double()
            squares.append(torch.linalg.vector_norm(of_ranks, dim=1).square().float().sum())
            begin += flat.numel()
        return torch.stack(squares)

    def _share_weights(self, masters: list[Tensor]) -> None:
        optimizer = self.optimizer
        own = [parts[rank] for parts, rank in zip(optimizer.parallel_partitioned_bit16_groups, self._ranks)]
        torch._foreach_copy_(own, masters)
        flats, ranks = optimizer.bit16_groups_flat, len(optimizer.parallel_partitioned_bit16_groups[0])
        if self._small and ranks > 1 and len(own) > 1:
            mine = torch.cat(own)
            of_all = mine.new_empty(ranks * mine.numel())
            dist.all_gather_into_tensor(of_all, mine, optimizer.real_dp_process_group[0])
            groups = of_all.view(ranks, -1).split([part.numel() for part in own], 1)
            torch._foreach_copy_([flat.view(ranks, -1) for flat in flats], list(groups))
            return
        sent = [
            dist.all_gather_into_tensor(flat, part, group, async_op=True)
            for flat, part, group in zip(flats, own, optimizer.real_dp_process_group)
            if flat.numel() > part.numel()
        ]
        for each in sent:
            if each is not None:
                each.wait()
