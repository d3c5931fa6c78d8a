"""The short runs that each layout is put through, made from one config so that every part of a step shows in the weights.

    own     the config's optimizer and schedule, 20 steps
    sgd     plain SGD with momentum and decay in fp32, whose first step moves the weights by half a percent. Steps of Adam
            all have about one length; these are as long as the gradient, so that a wrong scale or a missing clip shows
    long    one step of it in bf16 from 64 accumulated micro-batches of one sample, where sums in 16 bits drift (families
            that couple the samples of a batch, or whose first step has no gradient, have none)

`own` and `sgd` clip at half the norm of the reference's first gradient, so that clipping bites whatever the config's is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

from distdl.parity.layouts import data_ranks, laid_out
from distdl.plan.facts import ModelFacts
from distdl.plan.refuse import layout_key

OWN, SGD, LONG = "own", "sgd", "long"
ROUNDED, ROUNDED_3 = " rounded", " rounded twice"
"""End the names of the reference's long passes whose weights are rounded to 16 bits, as those of ZeRO 1-3 are. ZeRO-3
rounds a layer's product once more before it adds the bias."""
SUMMED = " summed in "
"""Stands before a number in the names of the reference's long passes whose linear layers add up the products of so many
parts, each rounded to 16 bits, as ranks along the tensor axis do: how far that alone leads."""
PARTS = (2, 3, 4)
"""Several, since a choice between experts turns on the last digit, and of one it may not."""
NUDGED = " nudged "
"""Stands before the seed in the names of the reference's passes that begin a rounding away: where a ReLU or a comparison is
on the knife's edge, the last digit decides, and rounding alone leads elsewhere."""
SGD_STEPS = 6
MOVE = 0.005
"""Length of SGD's first step, as a share of the length of all weights."""
MOMENTUM, DECAY = 0.9, 0.1
"""The length of the first step's decay is a share of the gradient's."""
MICRO_BATCHES = 64
"""That the long pass accumulates."""
NO_NORM = 1.0
"""Taken for the gradient's where the first step has none."""

Runs = dict[str, dict[str, Any]]
"""Pass -> its config as plain values."""


def first_step(values: dict[str, Any]) -> dict[str, Any]:
    """A run of which only the first step's gradient and the weights are wanted, before anything is clipped."""
    first = laid_out(values, "torch", 1)
    first["train"] |= {"steps": 1, "clip_norm": None}
    return first


def passes(values: dict[str, Any], facts: ModelFacts, first: dict[str, Any]) -> Runs:
    """The passes of a config. `first`: the curve of `first_step`."""
    runs = {OWN: copy.deepcopy(values)}
    if not facts.trainable:
        return runs
    norm = first["norm"][0] or NO_NORM
    weights = math.sqrt(sum(float(t.double().square().sum()) for n, t in first["start"].items() if _weight(n))) or 1.0
    if values["optimizer"]["name"] != "lbfgs":  # which is refused with clipping
        runs[OWN]["train"]["clip_norm"] = norm / 2
    runs[SGD] = _sgd(values, norm / 2, weights)
    runs[SGD]["train"] |= {"steps": SGD_STEPS, "clip_norm": norm / 2}
    if values["train"].get("precision") == "fp64":
        return runs
    runs[SGD]["train"]["precision"] = "fp32"
    if not facts.batch_coupled and first["norm"][0]:
        runs[LONG] = _sgd(values, norm, weights)
        runs[LONG]["optimizer"] |= {"momentum": 0.0, "weight_decay": 0.0}
        runs[LONG]["train"] |= {"steps": 1, "clip_norm": None, "precision": "bf16"}
        runs[LONG]["data"] |= {"last_batch": "wrap"}  # a step may be longer than the small data set
    return runs


def at_length(runs: Runs, ranks: int) -> Runs:
    """The same passes, the long one with the samples of so many data ranks, and named by them."""
    runs = {name: copy.deepcopy(values) for name, values in runs.items()}
    if LONG in runs:
        long = runs.pop(LONG)
        long["train"] |= {"global_batch": MICRO_BATCHES * ranks, "micro_batch": 1}
        runs[f"{LONG} {MICRO_BATCHES * ranks}"] = long
    return runs


def nudged(name: str, seed: int) -> str:
    """The name of a pass of the reference that begins a rounding away."""
    return f"{name}{NUDGED}{seed}"


def reference_run(values: dict[str, Any]) -> dict[str, Any]:
    """A pass as the reference runs it: one process of plain PyTorch."""
    return laid_out(values, "torch", 1)


def of_reference(runs: Runs, ranks: Iterable[int], facts: ModelFacts) -> Runs:
    """The passes as the reference runs them, the long one for each number of data ranks."""
    out: Runs = {}
    for n in sorted(ranks):
        for name, values in at_length(runs, n).items():
            out[name] = reference_run(values)
            if kind(name) == LONG:
                out |= {name + ROUNDED: out[name], name + ROUNDED_3: out[name]}
                if "tensor" in facts.layouts:
                    out |= {f"{name}{SUMMED}{parts}": out[name] for parts in PARTS}
    return out


def kind(name: str) -> str:
    """own, sgd or long."""
    return name.partition(" ")[0]


def counterpart(name: str, layout: str) -> str:
    """The reference's pass that a layout's is compared with."""
    (base, stage), *_ = layout_key(layout)
    if kind(name) != LONG or base != "zero" or stage == 0:
        return name
    return name + (ROUNDED_3 if stage == 3 else ROUNDED)


def on_layout(runs: Runs, layout: str, world: int, facts: ModelFacts) -> Runs:
    """The passes as this layout runs them: two micro-batches a step, four in a pipeline; one where the family couples the
    samples of a batch."""
    ranks = max(1, data_ranks(layout, world))  # 0: the plan will refuse
    out = {}
    for name, values in at_length(runs, ranks).items():
        out[name] = laid_out(values, layout, world)
        if kind(name) != LONG:
            whole = facts.batch_coupled or not facts.trainable
            share = values["train"]["global_batch"] // ranks
            out[name]["train"]["micro_batch"] = None if whole else max(1, share // (4 if "pipeline" in layout else 2))
    return out


def _weight(name: str) -> bool:
    return name.startswith("weights/")


def _sgd(values: dict[str, Any], gradient: float, weights: float) -> dict[str, Any]:
    """The run with plain SGD, whose first step is MOVE of the weights' length for a gradient of this length."""
    optimizer = {"name": "sgd", "lr": MOVE * weights / gradient, "momentum": MOMENTUM}
    optimizer["weight_decay"] = DECAY * gradient / weights
    return copy.deepcopy(values) | {"optimizer": optimizer, "schedule": {"name": "constant", "warmup_steps": 0}}
