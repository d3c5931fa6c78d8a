"""How the weights of a run come to be: on every rank the whole model, which is then cut, or on each what lives there."""

from __future__ import annotations

from distdl.config.schema import Config
from distdl.errors import Problem
from distdl.plan.facts import ModelFacts
from distdl.plan.mesh import Mesh

WHOLE, PIECES, NAMES = "whole", "pieces", "names"
"""Every rank makes the whole model; each makes what lives there, in the order in which the constructor draws, all of whose
draws it goes through; or each of its tensors from a generator of its own, whose seed is that of the run and the tensor's
name."""
SMALL = 2**24
"""Parameters, 64 MB, up to which nobody minds the whole model."""
IN_ORDER = 10**10
"""Parameters, two minutes of draws, beyond which tensors are drawn by their names: then no rank draws what others hold. On
every layout, for the numbers are others."""
LARGEST_WHOLE = 2 * 10**9
"""Parameters, 8 GB on every rank, beyond which a model that must be made whole is refused where it is cut."""


def is_cut(config: Config, mesh: Mesh) -> bool:
    """Whether a rank holds less than all the weights."""
    sharded = config.parallel.engine == "deepspeed" and config.parallel.zero == 3 and mesh.data * mesh.sequence > 1
    return sharded or max(mesh.tensor, mesh.pipeline, mesh.expert) > 1


def asks(config: Config, parameters: int) -> bool:
    """Whether it matters if a model of so many parameters can be made in pieces; to find out takes a second."""
    parallel = config.parallel
    may_be_cut = (
        config.runtime.workers > 1 and max(parallel.tensor, parallel.pipeline, parallel.expert, parallel.zero) > 1
    )
    return parameters > IN_ORDER or (parameters > SMALL and may_be_cut)


def why_whole(config: Config, model: ModelFacts) -> str:
    """Why every rank has to make the whole of a large model; '': it has not."""
    if config.parallel.pipeline > 1 and config.parallel.balance == "time":
        return "parallel.balance is time, and layers are timed before they are shared out"
    return model.born_whole


def born(config: Config, model: ModelFacts, mesh: Mesh) -> str:
    """WHOLE, PIECES or NAMES."""
    if model.parameters <= SMALL or why_whole(config, model):
        return WHOLE
    if model.parameters > IN_ORDER:
        return NAMES
    return PIECES if is_cut(config, mesh) else WHOLE


def problems(config: Config, model: ModelFacts, mesh: Mesh) -> list[Problem]:
    """Models that no rank can be asked to make whole."""
    why = why_whole(config, model)
    if not why or model.parameters <= LARGEST_WHOLE or not is_cut(config, mesh):
        return []
    size = f"{model.parameters:,} weights of this {model.family} ({4 * model.parameters / 1e9:,.1f} GB)"
    what = f"every rank would make all {size} before its share is cut out, which goes up to {LARGEST_WHOLE:,}: {why}"
    fix = "a constructor that only draws weights (docs/layouts.md)"
    return [Problem(what, fix="parallel.balance=parameters" if config.parallel.balance == "time" else fix)]


def in_words(config: Config, model: ModelFacts, mesh: Mesh) -> str:
    """For the plan's table; '' where there is nothing to say: every rank holds all the weights."""
    how = born(config, model, mesh)
    if how == NAMES:
        return "each rank makes its own, one tensor at a time, drawn by the tensor's name"
    if how == PIECES:
        return "each rank makes its own, one tensor at a time"
    if not is_cut(config, mesh):
        return ""
    why = why_whole(config, model) or "it is small"
    return f"every rank makes the whole model ({4 * model.parameters / 1e6:,.1f} MB) and cuts it: {why}"
