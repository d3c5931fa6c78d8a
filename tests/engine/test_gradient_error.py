"""How far a step's gradient in bf16 is from that in fp32: no further than plain autocast's, however many micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.test_accumulation import SGD, moved
from tests.ranks import run_ranks
from tests.small import layout, small_config

MICRO_BATCHES = (1, 16, 128)
"""On each of two ranks, of one sample."""
LAYOUTS = ("torch", "zero0", "zero1", "zero2", "zero3")
MOST = {1: 1.4, 16: 1.25, 128: 1.05}
"""Micro-batches -> the error that a layout may have, of plain autocast's. ZeRO's weights are rounded to bf16, and so is
what goes from layer to layer: that averages out over samples, as sums of micro-batches would not if they were rounded."""


def gpt(text: str, micro_batches: int, precision: str) -> dict[str, Any]:
    values = small_config("gpt", "", text, train__precision=precision, train__steps=1, train__clip_norm=None)
    values["model"]["dropout"] = 0.0
    values["train"] |= {"global_batch": 2 * micro_batches, "micro_batch": 1}
    values["data"]["eval_split"] = None
    return values | {"optimizer": SGD, "schedule": {"name": "constant"}}


def plain(rank: int, world: int, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Case -> what a loop of five lines makes of the same samples: torch's autocast, gradients added up in fp32."""
    from distdl.config.load import config_from_dict
    from distdl.layout.process import ProcessState
    from distdl.train import worker
    from distdl.train.survey import survey

    found = {}
    for name, values in cases.items():
        with ProcessState():
            config = config_from_dict(values)
            plan = survey(config)
            learner, source = worker.build_learner(config, None), worker.make_source(plan, rank)
            learner.train()
            for _ in range(plan.accumulate):
                with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
                    loss, _ = learner(next(source), 0)
                (loss / plan.accumulate).backward()
            source.close()
            found[name] = {n: p.grad.flatten().tolist() for n, p in learner.named_parameters() if p.grad is not None}
    return found


def error(got: dict[str, list[float]], want: dict[str, list[float]], scale: float) -> float:
    """Of the whole gradient, relative; `scale`: what the first is multiplied by."""
    a = torch.cat([torch.tensor(got[name]) for name in sorted(want)]) * scale
    b = torch.cat([torch.tensor(want[name]) for name in sorted(want)])
    return float((a - b).norm() / b.norm())


def errors(text: str) -> dict[str, dict[int, float]]:
    """Way -> micro-batches -> error."""
    cases = {f"{n} {p}": layout(gpt(text, n, p), "torch", 1) for n in MICRO_BATCHES for p in ("fp32", "bf16")}
    (whole,) = run_ranks(plain, 1, cases)
    found = {"plain autocast": {n: error(whole[f"{n} bf16"], whole[f"{n} fp32"], 1.0) for n in MICRO_BATCHES}}
    ours = {f"{n} {name}": layout(gpt(text, n, "bf16"), name, 2) for n in MICRO_BATCHES for name in LAYOUTS}
    told = run_ranks(moved, 2, ours)[0]
    for name in LAYOUTS:
        found[name] = {}
        for n in MICRO_BATCHES:
            steps = {k.removeprefix("weights/"): v for k, v in told[f"{n} {name}"].items() if k != "norm"}
            found[name][n] = error(steps, whole[f"{n} fp32"], -1 / SGD["lr"])
    return found


@pytest.mark.slow
def test_a_gradient_in_bf16_is_no_further_from_fp32_than_plain_autocasts(text: str) -> None:
    found = errors(text)
    for name in LAYOUTS:
        for n, most in MOST.items():
            assert found[name][n] < most * found["plain autocast"][n] < 3.2e-3, (name, n, found)
