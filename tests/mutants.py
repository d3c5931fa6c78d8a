"""The faults of `tests/faults.py`, where each is put, and what runs them: parity must call every such layout different."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.config.load import config_from_dict
from distdl.parity.cell import Cell, compare
from distdl.parity.layouts import data_ranks, laid_out
from distdl.parity.passes import (
    LONG,
    OWN,
    ROUNDED,
    ROUNDED_3,
    SGD,
    SUMMED,
    first_step,
    kind,
    of_reference,
    on_layout,
    passes,
)
from distdl.train.survey import model_facts
from tests import faults
from tests.ranks import run_ranks
from tests.small import contract_config

WORLD, STEPS, GUARDED_STEPS = 2, 8, 3
BIAS, MATRIX, GAIN = "blocks.1.up.bias", "blocks.0.down.weight", "blocks.1.ln2.weight"


@dataclass(frozen=True)
class Mutant:
    """A fault, and where it is put."""

    what: str
    layout: str
    spoilt: Callable[[], faults.Spoilt]
    """Puts the fault into this process while it lasts."""
    case: str = "gpt"
    """Key of `cases`."""
    passes: tuple[str, ...] = (OWN, SGD)
    hidden: bool = False
    """Whether the curves with the config's own optimizer show nothing of it."""


def cases(data: Path) -> dict[str, dict[str, Any]]:
    """The runs that are spoilt, small enough for two gloo processes."""
    small = {"train__steps": STEPS, "guard__parity_every_steps": 0}
    wide = contract_config("gpt", data, **small)
    wide["model"] |= {"heads": 4, "layers": 2}
    sgd = {"name": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 0.01}
    out = {
        "gpt": wide,
        "gpt, SGD": wide | {"optimizer": sgd},
        "gpt, fine-tuning": wide
        | {"optimizer": wide["optimizer"] | {"lr": 2e-5}, "schedule": {"name": "linear", "warmup_steps": 50}},
        "gpt, clip_norm 20": wide | {"train": wide["train"] | {"clip_norm": 20.0}},
        "gpt, ring": wide | {"parallel": {**wide["parallel"], "attention": "ring"}},
        "gpt, experts": wide | {"model": wide["model"] | {"experts": 4, "experts_every": 1, "experts_top_k": 2}},
        "cnn": contract_config("cnn", data, **small),
    }
    for values in out.values():
        values["guard"] = values["guard"] | {"parity_every_steps": 0}
    return out


MUTANTS = [
    Mutant("a bias takes one rank's gradient only", "zero2", faults.of_the_first_rank(BIAS)),
    Mutant("a matrix takes one rank's gradient only", "zero2", faults.of_the_first_rank(MATRIX)),
    Mutant("a gain takes one rank's gradient only", "zero2", faults.of_the_first_rank(GAIN), "gpt, SGD", hidden=True),
    Mutant(
        "a gain likewise, at a fine-tuner's rate",
        "zero2",
        faults.of_the_first_rank(GAIN),
        "gpt, fine-tuning",
        hidden=True,
    ),
    Mutant("the gradient of a sequence counts twice", "zero2+sequence2", faults.twice),
    Mutant(
        "ring attention: other ranks' keys learn nothing", "zero2+sequence2", faults.far_keys_learn_nothing, "gpt, ring"
    ),
    Mutant("a pipeline does not clip", "zero1+pipeline2", faults.unclipped),
    Mutant(
        "a pipeline does not clip, clip_norm above the norms", "zero1+pipeline2", faults.unclipped, "gpt, clip_norm 20"
    ),
    Mutant("no weight decay", "zero2", faults.option("weight_decay", lambda _: 0.0)),
    Mutant(
        "no weight decay at a fine-tuner's rate",
        "zero2",
        faults.option("weight_decay", lambda _: 0.0),
        "gpt, fine-tuning",
        hidden=True,
    ),
    Mutant("biases decay, too", "zero2", faults.decay_everything),
    Mutant("the learning rate is 1 % higher", "zero1", faults.schedule(lambda rate, step: 1.01 * rate(step))),
    Mutant("the schedule is a step ahead", "zero1", faults.schedule(lambda rate, step: rate(step + 1))),
    Mutant("momentum 0.88 instead of 0.9", "zero1", faults.option("momentum", lambda m: m and m - 0.02), "gpt, SGD"),
    Mutant("Adam's first beta is 0.88 instead of 0.9", "zero1", faults.option("betas", lambda b: (0.88, b[1]))),
    Mutant("Adam's second beta is 0.99 instead of 0.999", "zero1", faults.option("betas", lambda b: (b[0], 0.99))),
    Mutant("Adam's eps is 1e-4 instead of 1e-8", "zero1", faults.option("eps", lambda _: 1e-4)),
    Mutant("DistributedDataParallel leaves a bias out", "torch", faults.left_out_by_ddp(BIAS)),
    Mutant("tensor axis: the inputs' gradient is not summed", "zero1+tensor2", faults.inputs_not_summed),
    Mutant("tensor axis: other initial weights on a rank", "zero1+tensor2", faults.other_initial_weights),
    Mutant("no gradient is reduced, ZeRO-2", "zero2", faults.no_reduction_2),
    Mutant("no gradient is reduced, ZeRO-3", "zero3", faults.no_reduction_3),
    Mutant("ties between pipeline stages are dropped", "zero1+pipeline2", faults.untied),
    Mutant(
        "experts are averaged with other experts", "zero1+expert2", faults.experts_averaged_with_others, "gpt, experts"
    ),
    Mutant("the first micro-batch of a step is lost", "zero1", faults.first_micro_batch_lost),
    Mutant("the loss is divided by one micro-batch too many", "zero1", faults.wrong_count_of_micro_batches),
    Mutant("gradients are added up in 16 bits", "torch", faults.sums_in_16_bits, passes=(LONG,), hidden=True),
    Mutant("a running mean is one rank's", "torch", faults.statistics_of_one_rank, "cnn"),
    Mutant("dropout differs by rank", "zero1", faults.noise_by_rank),
    Mutant("held-out metrics count one rank's part", "zero1", faults.held_out_of_one_rank),
    Mutant("both ranks are given the same samples", "zero1", faults.same_samples),
]


# -- running them ------------------------------------------------------------------------------------------------------

Found = dict[str, Any]


def curves_of(rank: int, world: int, jobs: list[dict[str, Any]], folder: str) -> list[Found]:
    """The passes of each job in this process, spoilt by a mutant where it names one; {"error", "kind"} where they fail."""
    from distdl.parity.curve import curve

    out = []
    for index, job in enumerate(jobs):
        spoilt = contextlib.nullcontext() if job["mutant"] is None else MUTANTS[job["mutant"]].spoilt()
        found: Found = {}
        try:
            with spoilt:
                for name, values in job["runs"].items():
                    found[name] = curve(rank, values, Path(folder) / f"{index}-{name.replace(' ', '_')}-{rank}")
        except Exception as error:
            found = {"error": str(error), "kind": type(error).__name__}
        out.append(found)
    return out


def run_jobs(jobs: list[dict[str, Any]], world: int) -> list[Found]:
    """The first rank's curves of each job, with all ranks' tensors."""
    from distdl.parity.movement import kept

    with tempfile.TemporaryDirectory() as folder:
        first, *_ = run_ranks(curves_of, world, jobs, folder, timeout_s=1500)
        for index, found in enumerate(first):
            for name, curve in found.items() if "error" not in found else ():
                curve |= kept(list(Path(folder).glob(f"{index}-{name.replace(' ', '_')}-*")))
    return first


def parity_of(asked: list[int], data: Path) -> tuple[dict[int, Cell], dict[str, Cell]]:
    """Mutant -> its cell; and the cell of each layout, case and pass as it is, without a fault."""
    told = cases(data)
    told = {name: told[name] for name in {MUTANTS[i].case: 0 for i in asked}}
    facts = {name: model_facts(config_from_dict(values)) for name, values in told.items()}
    firsts = run_jobs([{"mutant": None, "runs": {OWN: first_step(values)}} for values in told.values()], 1)
    runs = {name: passes(told[name], facts[name], first[OWN]) for name, first in zip(told, firsts)}
    kinds = {name: {k for i in asked if MUTANTS[i].case == name for k in MUTANTS[i].passes} for name in told}
    wanted = {
        name: {
            key: r
            for key, r in of_reference(runs[name], [WORLD], facts[name]).items()
            if kind(key) in kinds[name] and not key.endswith((ROUNDED, ROUNDED_3)) and SUMMED not in key
        }
        for name in told
    }
    assert all(MUTANTS[i].layout == "torch" for i in asked if LONG in MUTANTS[i].passes), "weights of ZeRO are rounded"
    reference = dict(zip(told, run_jobs([{"mutant": None, "runs": wanted[name]} for name in told], 1)))

    jobs = [{"mutant": i, "runs": _laid(runs, facts, MUTANTS[i])} for i in asked]
    sound = {f"{m.case}, {m.layout}, {'+'.join(m.passes)}": m for m in (MUTANTS[i] for i in asked)}
    jobs += [{"mutant": None, "runs": _laid(runs, facts, m)} for m in sound.values()]
    mutants = [MUTANTS[i] for i in asked] + list(sound.values())
    found = run_jobs(jobs, WORLD)
    cells = [compare(m.layout, WORLD, reference[m.case], result, "fp32") for m, result in zip(mutants, found)]
    return dict(zip(asked, cells)), dict(zip(sound, cells[len(asked) :]))


def _laid(runs: dict[str, Any], facts: dict[str, Any], mutant: Mutant) -> dict[str, Any]:
    laid = on_layout(runs[mutant.case], mutant.layout, WORLD, facts[mutant.case])
    return {name: values for name, values in laid.items() if kind(name) in mutant.passes}


def guarded(asked: list[int], data: Path) -> dict[int, str]:
    """Mutant -> what the guard says in a real run of a few steps that it watches; "" where it sees nothing."""
    told, jobs = cases(data), []
    for i in asked:
        values = laid_out(told[MUTANTS[i].case], MUTANTS[i].layout, WORLD)
        values["train"] |= {"steps": GUARDED_STEPS}
        if "cnn" not in MUTANTS[i].case:
            ranks = max(1, data_ranks(MUTANTS[i].layout, WORLD))
            values["train"] |= {"micro_batch": values["train"]["global_batch"] // ranks // 2}
        values["guard"] |= {"parity_every_steps": 1}
        jobs.append({"mutant": i, "runs": {OWN: values}})
    found = run_jobs(jobs, WORLD)
    return {i: result.get("error", "") for i, result in zip(asked, found)}
