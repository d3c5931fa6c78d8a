"""The process groups of a mesh, made once. Each is an `Axis`: its size, this rank's place along it, and the group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from distdl.layout.axes import Axis
from distdl.plan.mesh import Mesh

_made: dict[tuple[int, ...], Any] = {}
"""Ranks -> group, for the life of the world's process group: a group costs memory and connections."""
_made_in: list[Any] = [None]


class Groups:
    """This rank's place on the mesh. Collective: every rank makes the same groups in the same order."""

    def __init__(self, mesh: Mesh, rank: int) -> None:
        self.mesh, self.rank, self.place = mesh, rank, mesh.place(rank)
        self.tensor = self._axis("tensor")
        self.sequence = self._axis("sequence")
        self.expert = self._axis("expert")
        self.pipeline = self._axis("pipeline")
        self.data = self._axis("data", "sequence")
        """The ranks whose gradients are averaged: a slice of a sequence is data like any other."""
        self.expert_data = self._axis("replica", "sequence")
        """Of those, the ones that hold the same experts."""
        self.stage = self._axis("data", "sequence", "tensor")
        """The ranks that hold the same layers."""

    def _axis(self, *axes: str) -> Axis:
        lines = self.mesh.lines(*axes)
        mine = next(line for line in lines if self.rank in line)
        index = mine.index(self.rank)
        if len(mine) == 1 and axes[0] not in ("data", "replica"):  # DeepSpeed asks for these two whatever their size
            return Axis()
        groups = {line[0]: _group(tuple(line)) for line in lines}
        return Axis(len(mine), index, groups[mine[0]])


def _group(ranks: tuple[int, ...]) -> Any:
    if not dist.is_initialized():  # one process that asked for none
        return None
    if _made_in[0] is not dist.group.WORLD:  # another world began: the old groups are gone with theirs
        _made.clear()
        _made_in[0] = dist.group.WORLD
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    if ranks not in _made:
        _made[ranks] = dist.new_group(list(ranks))
    return _made[ranks]


class ModelParallelUnit:
    """What DeepSpeed asks about ranks that share a model (Megatron's `mpu`): the tensor axis, and the data axis."""

    def __init__(self, groups: Groups) -> None:
        self._tensor, self._data = groups.tensor, groups.data

    def get_model_parallel_rank(self) -> int:
        return self._tensor.index

    def get_model_parallel_world_size(self) -> int:
        return self._tensor.size

    def get_model_parallel_group(self) -> Any:
        return self._tensor.group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self._data.index

    def get_data_parallel_world_size(self) -> int:
        return self._data.size

    def get_data_parallel_group(self) -> Any:
        return self._data.group
