"""Which layouts there are for a number of processes, and the config of a run on each."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

from distdl.plan.refuse import AXES, layout_key

WORLDS = (1, 2, 4)


def candidates(world: int) -> list[str]:
    """Every layout of `world` processes: torch, and each ZeRO stage with each way to cut the axes into powers of two."""
    degrees = [2**i for i in range(int(math.log2(world)) + 1)]
    names = ["torch"]
    for cut in itertools.product(degrees, repeat=len(AXES)):
        tensor, pipeline, sequence, expert = cut
        of_model = tensor * pipeline * sequence
        if of_model * expert > world or world % of_model:
            continue
        axes = [f"{axis}{degree}" for axis, degree in zip(AXES, cut) if degree > 1]
        names += ["+".join([f"zero{stage}", *axes]) for stage in range(4)]
    return sorted(names, key=lambda name: (name != "torch", name.count("+"), name))


def laid_out(values: dict[str, Any], name: str, world: int) -> dict[str, Any]:
    """The same run on another layout, named as the plan does: torch, zero1, zero1+tensor2+pipeline2."""
    values = copy.deepcopy(values)
    values["runtime"] = {"kind": "local", "workers": world}
    kept = {key: value for key, value in values.get("parallel", {}).items() if key not in (*AXES, "engine", "zero")}
    if name == "torch":
        memory = ("checkpoint_activations", "loss_chunk_tokens")
        values["parallel"] = {"engine": "torch", **{key: kept[key] for key in memory if key in kept}}
    else:
        values["parallel"] = {**kept, "engine": "deepspeed", **dict(layout_key(name))}
    return values


def data_ranks(name: str, world: int) -> int:
    """Ranks that have samples of their own."""
    cuts = dict(layout_key(name))
    return world // math.prod(cuts.get(axis, 1) for axis in ("tensor", "pipeline", "sequence"))
