"""Invariant 1: the same numbers on every layout. Real gloo processes against the one-process plain-PyTorch reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.families import load_family
from distdl.parity.cell import MOVE_TOLERANCE, NOISE, START_TOLERANCE
from distdl.parity.layouts import candidates, data_ranks
from distdl.parity.movement import gaps, widest_start
from distdl.parity.passes import OWN
from distdl.plan.refuse import layout_key
from distdl.train.survey import survey
from tests.chosen import a_few
from tests.small import MODELS, SOME_STEPS, contract_config, layout, measured, small_config

AT_FOUR = ["mlp", "lenet5", "gpt"]
CUT_AT_TWO = 57
"""Cells with an axis cut: that a family loses one is not seen otherwise."""
CUT_AT_FOUR = 40
LAYOUTS = ["torch", "zero0", "zero1", "zero2", "zero3"]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"name": "adam", "lr": 1e-2},
    "rmsprop": {"name": "rmsprop", "lr": 3e-3, "momentum": 0.5},
    "adagrad": {"name": "adagrad", "lr": 5e-2},
    "lion": {"name": "lion", "lr": 1e-3, "weight_decay": 0.1},
}


def family_cases(data: Path) -> dict[str, dict[str, Any]]:
    """Every family as its small run: clipping on (and biting), two accumulated micro-batches at each world size."""
    return {family: contract_config(family, data) for family in MODELS}


def option_cases(digits: str, text: str) -> dict[str, dict[str, Any]]:
    """What else enters the numbers: each optimizer (plain SGD shows a wrong scale, Adam hides it), penalties, bf16."""
    steps = {"train__steps": SOME_STEPS}
    cases = {name: small_config("mlp", digits, text, **steps) | {"optimizer": o} for name, o in OPTIMIZERS.items()}
    plain = {"name": "sgd", "lr": 0.2}
    cases["no clipping"] = small_config("gpt", digits, text, **steps, train__clip_norm=None) | {"optimizer": plain}
    penalties = {"train__l1": 1e-3, "train__l2": 1e-2}
    cases["l1 and l2"] = small_config("mlp", digits, text, **steps, **penalties) | {"optimizer": plain}
    cases["bf16"] = small_config("gpt", digits, text, **steps, train__precision="bf16", optimizer__lr=3e-3)
    return cases


def layouts_of(family: str, world: int) -> list[str]:
    """Every layout of so many ranks that the family declares and the plan does not refuse."""
    declared = load_family(family).layouts
    return [
        name
        for name in candidates(world)
        if {axis for axis, _ in layout_key(name)} - {"zero", "torch"} <= declared
        and {name.split("+")[0]} <= declared
        and not ("pipeline" in name and not name.startswith("zero1"))  # which the plan refuses
    ]


def three_bases(names: list[str]) -> list[str]:
    """Of a family's layouts those that cut an axis, the reference's, ZeRO-1 and the highest; `make parity` has all."""
    stages = sorted(name for name in names if name.startswith("zero") and "+" not in name)
    return [name for name in names if "+" in name or name in ("torch", "zero1", *stages[-1:])]


def laid_out(
    cases: dict[str, dict[str, Any]], world: int, accumulate: int, every: bool = True
) -> dict[str, dict[str, Any]]:
    """Each case on each layout that its family is proven on and that its sizes allow; or some layouts of most families."""
    out = {}
    for name, values in cases.items():
        family = load_family(values["model"]["family"])
        whole = family.batch_coupled or values["optimizer"]["name"] == "none"  # a micro-batch is not cut
        names = layouts_of(values["model"]["family"], world)
        for layout_name in names if every or name in AT_FOUR else three_bases(names):
            case = layout(values, layout_name, world)
            share = case["train"]["global_batch"] // max(1, data_ranks(layout_name, world))
            case["train"]["micro_batch"] = None if whole else share // accumulate
            try:
                survey(config_from_dict(case))
            except InputError:
                assert "+" in layout_name, f"{name}/{layout_name} is refused"
                continue
            out[f"{name}/{layout_name}"] = case
    return out


def largest_difference(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b) >= SOME_STEPS
    return max(abs(x - y) for x, y in zip(a, b))


def compare(reference: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """Loss within 1e-5 (bf16 5e-3) over all steps, gradient norm likewise relative to its size, the same evaluation; each
    weight and buffer begins where the reference's does, and moves as it does."""
    for case in ranks[0]:
        name = case.split("/")[0]
        want, got = reference[name], ranks[0][case]
        bf16 = name == "bf16"
        assert len(set(want["loss"])) > 1 or name == "mcp", (  # whose weights are given
            f"{name}: nothing happens"
        )  # that it learns is asked in the family's contract
        assert largest_difference(want["loss"], got["loss"]) < (5e-3 if bf16 else 1e-5), case
        if want["norm"][-1] is None:  # no gradient
            assert got["norm"] == want["norm"], case
        else:
            # Adam makes moves of a learning rate of a zero gradient's rounding noise: the fourth digit of a steep norm.
            plain = [
                [norm or 0.0 for norm in run["norm"]] for run in (got, want)
            ]  # cvg counts first, without a gradient
            assert plain[0] == pytest.approx(plain[1], rel=5e-2 if bf16 else 1e-3), case
        assert got["evaluation"] == pytest.approx(want["evaluation"], abs=5e-3 if bf16 else 1e-5), case
        assert all(rank[case]["evaluation"] == got["evaluation"] for rank in ranks), case
        start = widest_start(want, got)
        assert start and start.error < START_TOLERANCE, f"{case}: {start}"
        limit = MOVE_TOLERANCE[OWN]["bf16" if bf16 else "fp32"]
        far = [gap for gap in gaps(want, got) if gap.error >= limit]
        if far and "values" in want and not bf16 and "noise" not in want:
            want["noise"] = in_two_parts(want)
        assert [gap for gap in far if gap.error > NOISE * want.get("noise", {}).get(gap.name, 0.0)] == [], case


def in_two_parts(reference: dict[str, Any]) -> dict[str, float]:
    """How far rounding alone leads: each tensor's distance from a reference that takes its batch in two micro-batches. Adam
    makes moves of a learning rate of the noise in a zero gradient, that of attention's key biases."""
    values = copy.deepcopy(reference["values"])
    values["train"]["micro_batch"] = values["train"]["global_batch"] // 2
    return {gap.name: gap.error for gap in gaps(reference, measured(1, {"parts": values})[0]["parts"])}


@pytest.fixture(scope="module")
def reference(small_data: Path, digits: str, text: str) -> dict[str, Any]:
    """One process, plain PyTorch, the whole batch at once."""
    cases = family_cases(small_data) | option_cases(digits, text)
    found = measured(1, cases)[0]
    return {name: told | {"values": cases[name]} for name, told in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", [2, 4, *(pytest.param(n, marks=pytest.mark.long, id=f"{n}-all") for n in (2, 4))])
def test_every_family_on_its_layouts(
    world: int, request: pytest.FixtureRequest, reference: dict[str, Any], small_data: Path
) -> None:
    """Without the mark `long` a choice of them (`tests.chosen`) in which every family and every layout is."""
    cases = family_cases(small_data)
    if world == 4:  # one of each kind; two ranks have shown the rest
        cases = {name: cases[name] for name in AT_FOUR}
    laid = laid_out(cases, world, accumulate=2, every=False)
    declared = {name: sorted(load_family(name).layouts & set(LAYOUTS)) for name in cases}
    base = sum(len(names if name in AT_FOUR else three_bases(names)) for name, names in declared.items())
    cut = [name for name in laid if "+" in name]
    assert len(laid) == base + len(cut) and len(cut) == {2: CUT_AT_TWO, 4: CUT_AT_FOUR}[world], cut
    if not request.node.get_closest_marker("long"):
        laid = {name: laid[name] for name in a_few(list(laid), always={"mlp/zero1"})}
    ranks = measured(world, laid, timeout_s=1500)
    assert ranks[0].keys() == laid.keys()
    compare(reference, ranks)
    last_batch = [p for rank in ranks for p in rank["mlp/zero1"]["positions"]]
    assert (
        len(last_batch) == len(set(last_batch)) == 20 * 16 // 2
    )  # the second micro-batch of each step, no sample twice


@pytest.mark.slow
def test_every_optimizer_and_precision_on_every_layout(reference: dict[str, Any], digits: str, text: str) -> None:
    cases = laid_out(option_cases(digits, text), 2, accumulate=2)
    ranks = measured(2, {name: case for name, case in cases.items() if "+" not in name})
    assert len(ranks[0]) == 8 * len(LAYOUTS)
    compare(reference, ranks)


@pytest.mark.slow
def test_deepspeed_on_one_process(reference: dict[str, Any], digits: str, text: str) -> None:
    """The accumulation alone, without other ranks."""
    ranks = measured(1, laid_out({"mlp": small_config("mlp", digits, text)}, 1, accumulate=4))
    compare(reference, ranks)


@pytest.mark.slow
def test_three_axes_on_eight_ranks(reference: dict[str, Any], small_data: Path) -> None:
    """Two stages of two tensor ranks, twice."""
    laid = layout(contract_config("gpt", small_data), "zero1+tensor2+pipeline2", 8)
    laid["train"]["micro_batch"] = 2
    ranks = measured(8, {"gpt/zero1+tensor2+pipeline2": laid})
    compare(reference, ranks)
    seen = {tuple(rank["gpt/zero1+tensor2+pipeline2"]["positions"]) for rank in ranks}
    assert len(seen) == 2 and len(set().union(*seen)) == 20 * 16  # two data ranks, every sample once
