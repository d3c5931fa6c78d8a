"""Puts a single-device model on the mesh, in one written order: tensor, expert, sequence. The pipeline cuts what is left.

The order matters: a part of a tensor is cut from whole weights, experts are left out whole, and attention over a cut
sequence must know how many heads the tensor axis has left.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distdl.layout import axes
from distdl.learner import Learner
from distdl.parallel.expert import cut_experts
from distdl.parallel.groups import Groups
from distdl.parallel.sequence import ring
from distdl.parallel.tensor import cut_tensors, fill_up
from distdl.plan.plan import Plan


def place(learner: Learner, plan: Plan, rank: int) -> Groups:
    """Collective. Cuts the learner as the plan's mesh says and tells its blocks where they are."""
    groups = Groups(plan.mesh, rank)
    axes.reset()
    axes.here.tensor, axes.here.sequence, axes.here.expert = groups.tensor, groups.sequence, groups.expert
    asked = plan.settings.train.vocabulary_multiple
    multiple = 1 if asked == "auto" else asked  # which the plan of an earlier version leaves undecided
    if groups.tensor.size > 1:
        cut_tensors(learner, groups.tensor, multiple)
    elif multiple > 1:
        fill_up(learner, multiple)
    if groups.expert.size > 1:
        cut_experts(learner, groups.expert)
    if groups.sequence.size > 1 and plan.attention == "ring":  # Ulysses is DeepSpeed's: its engine puts it in
        axes.here.attention = ring(groups.sequence)
    return groups


def cut_sequence(batch: Mapping[str, Tensor], learner: Learner) -> Mapping[str, Tensor]:
    """This rank's slice of every column that has the sequence as its first dimension."""
    axis = axes.here.sequence
    if axis.size == 1:
        return batch
    cut = dict(batch)
    for name, beyond in learner.sequence_columns.items():
        length = (batch[name].shape[1] - beyond) // axis.size
        cut[name] = batch[name][:, axis.index * length : (axis.index + 1) * length + beyond]
    return cut
