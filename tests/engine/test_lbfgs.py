"""L-BFGS against torch's own, over ranks, through a restart, and what the plan says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distdl.config.load import config_from_dict
from distdl.engine.lbfgs import LBFGS
from distdl.errors import InputError
from distdl.train.survey import survey
from tests.checkpoint.test_resume import interrupt_and_compare
from tests.ranks import run_ranks
from tests.small import contract_config, curves, layout

CASE: dict[str, Any] = {
    "train__clip_norm": None,
    "optimizer": {"name": "lbfgs", "iterations": 2, "history": 5},
    "schedule": {"name": "constant"},
}


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_it_is_torchs_lbfgs_on_a_single_batch() -> None:
    """The first iterations move alike; both end in the minimum (1, ..., 1)."""

    def minimise(make: Any, steps: int) -> Tensor:
        x = torch.nn.Parameter(torch.full((6,), -0.5, dtype=torch.float64))
        optimizer = make([x])

        def closure() -> Any:
            optimizer.zero_grad()
            loss = rosenbrock(x)
            loss.backward()
            return float(loss.detach()) if isinstance(optimizer, LBFGS) else loss

        with torch.enable_grad():
            for _ in range(steps):
                optimizer.step(with_grad(closure))
        return x.detach()

    def with_grad(closure: Any) -> Any:
        def call() -> Any:
            with torch.enable_grad():
                return closure()

        return call

    settings = {"max_iter": 7, "max_eval": 1000, "history_size": 10, "line_search_fn": "strong_wolfe"}
    theirs = minimise(lambda p: torch.optim.LBFGS(p, tolerance_change=0, tolerance_grad=0, **settings), 1)
    assert torch.allclose(minimise(lambda p: LBFGS(p, iterations=7, history=10), 1), theirs, atol=1e-9)
    found = minimise(lambda p: LBFGS(p, iterations=10, history=10), 12)
    assert torch.allclose(found, torch.ones(6, dtype=torch.float64), atol=1e-6)


def test_its_state_is_the_history_alone_in_pieces_of_the_parameters() -> None:
    a, b = torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))
    optimizer = LBFGS([{"params": [a]}, {"params": [b]}], iterations=2, history=3)

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = rosenbrock(torch.cat([a.flatten(), b]))
            loss.backward()
        return float(loss.detach())

    for _ in range(4):
        optimizer.step(closure)
    names = ["s000", "s001", "s002", "y000", "y001", "y002"]
    assert all(sorted(optimizer.state[p]) == names for p in (a, b))
    assert all(value.shape == p.shape for p in (a, b) for value in optimizer.state[p].values())


@pytest.mark.slow
def test_two_ranks_are_one_and_a_restart_is_exact(small_data: Path, tmp_path: Path) -> None:
    """A line search doubles rounding errors again and again, so that one process and two are compared in fp64; DeepSpeed,
    which has none, with two ranks of plain PyTorch."""
    cases = {p: contract_config("pinn", small_data, **CASE, train__precision=p) for p in ("fp32", "fp64")}
    one = run_ranks(curves, 1, {"fp64": cases["fp64"]})[0]["fp64"]
    laid = {
        f"{p}-{name}": layout(cases[p], name, 2)
        for p, name in (("fp64", "torch"), ("fp32", "torch"), ("fp32", "zero0"))
    }
    for case in laid.values():
        case["train"]["micro_batch"] = 4
        case["checkpoint"] = {"every_steps": 5}
    two = run_ranks(curves, 2, laid)[0]
    for want, got, limit in ((one, two["fp64-torch"], 1e-10), (two["fp32-torch"], two["fp32-zero0"], 1e-6)):
        assert got["loss"] == pytest.approx(want["loss"], abs=limit)
        assert got["norm"] == pytest.approx(want["norm"], rel=1e-4)
        assert got["evaluation"] == pytest.approx(want["evaluation"], abs=limit)
    assert one["loss"][-1] < one["loss"][0]
    interrupt_and_compare({name: laid[name] for name in ("fp64-torch", "fp32-zero0")}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"train__clip_norm": 1.0}, "train.clip_norm=null"),
        ({"train__l2": 0.1}, "train.l2=0"),
        ({"train__precision": "bf16"}, "train.precision=fp32 or fp64"),
        ({"parallel": {"engine": "deepspeed"}}, "parallel.engine=torch, or parallel.zero=0 without other axes"),
        ({"parallel": {"zero": 0}, "train__precision": "fp64"}, "parallel.engine=torch"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(changes: Any, fix: str, small_data: Path) -> None:
    values = contract_config("pinn", small_data, **{**CASE, **changes})
    with pytest.raises(InputError) as caught:
        survey(config_from_dict(values))
    assert fix in [problem.fix for problem in caught.value.problems]


def test_a_family_that_learns_in_its_own_way_is_refused(small_data: Path) -> None:
    with pytest.raises(InputError, match="a step of the family gan is more than that"):
        survey(config_from_dict(contract_config("gan", small_data, **CASE)))
    values = contract_config("mlp", small_data, train__precision="fp64")
    with pytest.raises(InputError, match="mlp is not proven in fp64"):
        survey(config_from_dict(values))
