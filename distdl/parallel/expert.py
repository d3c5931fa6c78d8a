"""Expert parallelism (Lepikhin et al. 2021): each rank along the expert axis keeps E/P of the experts of every layer.

Experts are left out whole and keep their names, so a layout enters neither the initial weights nor a checkpoint.
"""

from __future__ import annotations

from distdl.layout.axes import Axis
from distdl.learner import Learner
from distdl.nn.moe import MixtureOfExperts


def group_name(size: int) -> str:
    """What DeepSpeed calls the process groups of an expert axis of this size."""
    return f"ep_size_{size}"


def cut_experts(learner: Learner, axis: Axis) -> None:
    """Rank i of the axis keeps the experts [i E/P, (i + 1) E/P), in place.

    Two attributes of their parameters tell DeepSpeed to sum gradients over the ranks that hold the same ones.
    """
    for module in learner.modules():
        if isinstance(module, MixtureOfExperts):
            share = module.count // axis.size
            for index in range(module.count):
                if index // share != axis.index:
                    del module.experts[str(index)]
            for parameter in module.experts.parameters():
                parameter.allreduce = False  # type: ignore[attr-defined]
                parameter.group_name = group_name(axis.size)  # type: ignore[attr-defined]
