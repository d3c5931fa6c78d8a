"""Schedules, optimizers and penalties against closed forms, torch's own and plain NumPy."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.engine.optimizers import Lion, add_penalties, make_optimizer
from distdl.engine.schedules import learning_rate, lr_factor
from distdl.engine.torch import TorchEngine
from distdl.families import build
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.plan import make_plan
from tests.ranks import run_ranks
from tests.small import layout, small_config


def config(**sections: Any) -> Config:
    return config_from_dict({**small_config("mlp", "x", ""), **sections})


def schedule(**fields: Any) -> Any:
    return config(schedule=fields).schedule


def factors(steps: int, **fields: Any) -> list[float]:
    chosen = schedule(**fields)
    return [lr_factor(chosen, step, steps) for step in range(steps)]


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "step"])
def test_warm_up_rises_in_equal_steps_and_never_starts_at_nothing(name: str) -> None:
    more = {"every_steps": 20} if name == "step" else {}
    found = factors(100, name=name, warmup_steps=9, **more)
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)])  # 0.1, 0.2, ... 1.0: the peak at step 9
    assert max(found) == found[9] == 1.0
    assert factors(100, name=name, warmup_steps=0, **more)[0] == 1.0


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear_and_cosine_have_their_closed_form(final: float) -> None:
    steps, warmup = 50, 7
    linear = factors(steps, name="linear", warmup_steps=warmup, final=final)
    cosine = factors(steps, name="cosine", warmup_steps=warmup, final=final)
    for step in range(warmup, steps):
        done = (step - warmup) / (steps - 1 - warmup)
        assert linear[step] == pytest.approx(1 - (1 - final) * done, abs=1e-12)
        assert cosine[step] == pytest.approx(final + (1 - final) * math.cos(math.pi * done / 2) ** 2, abs=1e-12)
    for found in (linear, cosine):
        assert found[-1] == pytest.approx(final, abs=1e-12)  # reached with the last step, not after it
        assert all(a >= b for a, b in itertools.pairwise(found[warmup:]))
        assert all(a < b for a, b in itertools.pairwise(found[: warmup + 1]))


@pytest.mark.parametrize("shape", ["sqrt", "linear", "cosine"])
def test_wsd_stays_at_the_peak_and_then_comes_down(shape: str) -> None:
    found = factors(100, name="wsd", warmup_steps=9, decay=0.2, shape=shape, final=0.1)
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)]) and set(found[9:80]) == {1.0}
    for step in range(80, 100):
        way = (step - 79) / 20
        down = {"sqrt": math.sqrt(way), "linear": way, "cosine": math.sin(math.pi * way / 2) ** 2}[shape]
        assert found[step] == pytest.approx(1 - 0.9 * down, abs=1e-12)
    assert found[-1] == pytest.approx(0.1)  # reached with the last step
    longer = factors(300, name="wsd", warmup_steps=9, decay=0.2, shape=shape, final=0.1)
    assert longer[:80] == found[:80]  # a run that has not come down yet can be given more steps


def test_cosine_is_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=39, eta_min=0.05)
    for factor in factors(40, name="cosine", final=0.05):
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        peer.step()


def test_step_drops_after_the_warm_up() -> None:
    found = factors(35, name="step", every_steps=10, gamma=0.5, warmup_steps=4)
    assert found[4:14] == [1.0] * 10 and found[14:24] == [0.5] * 10 and found[24:34] == [0.25] * 10
    assert found[34] == 0.125


@pytest.mark.parametrize(("steps", "warmup"), [(100, 29), (50, 1), (200, 150)])
def test_one_cycle_is_torchs(steps: int, warmup: int) -> None:
    """With torch's own numbers: a 25th of the peak at first, 1e-4 of that at last."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=(warmup + 1) / steps, cycle_momentum=False
    )
    found = factors(steps, name="one_cycle", warmup_steps=warmup)
    for step, factor in enumerate(found):
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        if step < steps - 1:
            peer.step()
    assert (found[0], found[warmup], found[-1]) == pytest.approx((0.04, 1.0, 4e-6))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "step", "one_cycle"])
def test_odd_lengths_stay_within_bounds(name: str) -> None:
    for steps in (1, 2, 3, 5):
        for warmup in (1, 2, 5, 9):  # up to a warm-up that is longer than the run
            more = {"every_steps": 1} if name == "step" else {}
            found = factors(steps, name=name, warmup_steps=warmup, **more)
            assert all(0 <= f <= 1 and math.isfinite(f) for f in found)
            assert found[0] > 0


def test_the_learning_rate_is_the_factor_times_the_peak() -> None:
    settings = config(schedule={"name": "linear", "warmup_steps": 4}, optimizer={"name": "sgd", "lr": 0.3})
    rate = learning_rate(settings, 20)
    assert [rate(s) for s in range(20)] == [0.3 * f for f in factors(20, name="linear", warmup_steps=4)]


# -- optimizers --------------------------------------------------------------------------------------------------------

PEERS: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, torch.optim.SGD),
    "adam": ({"betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1}, torch.optim.Adam),
    "adamw": ({"betas": [0.8, 0.95], "weight_decay": 0.1}, torch.optim.AdamW),
    "rmsprop": ({"alpha": 0.9, "momentum": 0.5, "weight_decay": 0.1}, torch.optim.RMSprop),
    "adagrad": ({"eps": 1e-6, "weight_decay": 0.1}, torch.optim.Adagrad),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)).double()


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    module(torch.randn(8, 5, dtype=torch.float64)).pow(2).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", PEERS)
def test_optimizers_are_torchs(name: str) -> None:
    """Built here by hand, with the decay on the matrices and none on biases and gains."""
    options, cls = PEERS[name]
    ours, theirs, unfused = net(), net(), net()
    optimizer = make_optimizer(config(optimizer={"name": name, "lr": 0.05, **options}), ours)
    plain = {key: value for key, value in options.items() if key != "weight_decay"}

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        parameters = list(model.parameters())
        return [
            {"params": [p for p in parameters if p.ndim == 2], "weight_decay": options["weight_decay"]},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]

    one_kernel = {"fused": True} if name in ("sgd", "adam", "adamw") else {}
    peers = [
        (theirs, cls(groups(theirs), lr=0.05, **plain, **one_kernel)),
        (unfused, cls(groups(unfused), lr=0.05, **plain)),
    ]
    start = [p.detach().clone() for p in ours.parameters()]
    for seed in range(5):
        step(ours, optimizer, seed)
        for model, peer in peers:
            step(model, peer, seed)
    for mine, its, plainly, first in zip(ours.parameters(), theirs.parameters(), unfused.parameters(), start):
        assert torch.equal(mine, its) and not torch.equal(mine, first)
        assert torch.allclose(mine, plainly, rtol=1e-12, atol=1e-14)


def test_the_defaults_are_the_papers() -> None:
    found = {
        name: make_optimizer(config(optimizer={"name": name, "lr": 0.1}), net()).param_groups[0]
        for name in [*PEERS, "lion"]
    }
    assert found["adam"]["betas"] == found["adamw"]["betas"] == (0.9, 0.999) and found["lion"]["betas"] == (0.9, 0.99)
    assert found["adam"]["eps"] == 1e-8 and found["rmsprop"]["alpha"] == 0.99 and found["adagrad"]["eps"] == 1e-10
    assert {name: group["weight_decay"] for name, group in found.items() if group["weight_decay"]} == {"adamw": 0.01}


def test_lion_is_algorithm_2() -> None:
    """Chen et al. 2023, transcribed: c = b1 m + (1-b1) g;  w -= lr (sign(c) + wd w);  m = b2 m + (1-b2) g."""
    rng = np.random.default_rng(0)
    weights, lr, (b1, b2), decay = rng.normal(size=(4, 3)), 0.03, (0.9, 0.99), 0.2
    parameter = nn.Parameter(torch.from_numpy(weights.copy()))
    optimizer = Lion([parameter], lr=lr, betas=(b1, b2), weight_decay=decay)
    m = np.zeros_like(weights)
    for _ in range(10):
        gradient = rng.normal(size=(4, 3))
        gradient[0, 0] = 0.0
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        c = b1 * m + (1 - b1) * gradient
        weights = weights - lr * (np.sign(c) + decay * weights)
        m = b2 * m + (1 - b2) * gradient
        assert np.abs(parameter.detach().numpy() - weights).max() < 1e-14
    assert np.abs(optimizer.state[parameter]["exp_avg"].numpy() - m).max() < 1e-15


def test_lion_skips_what_has_no_gradient_and_runs_a_closure() -> None:
    still, moving = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Lion([still, moving], lr=0.1)

    def closure() -> float:
        loss = moving.sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 2.0
    assert still.tolist() == [1, 1] and moving.tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_only_matrices_decay(name: str) -> None:
    module = net()
    before = copy.deepcopy(module)
    optimizer = make_optimizer(config(optimizer={"name": name, "lr": 0.1, "weight_decay": 0.5}), module)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(module.parameters(), before.parameters()):
        expected = old * (1 - 0.1 * 0.5) if p.ndim == 2 else old
        assert torch.allclose(p, expected, atol=1e-15)


def test_frozen_parameters_are_left_out() -> None:
    module = net()
    module[0].requires_grad_(False)  # type: ignore[index]
    optimizer = make_optimizer(config(), module)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4
    only_bias = nn.Linear(2, 2)
    only_bias.weight.requires_grad_(False)
    assert len(make_optimizer(config(), only_bias).param_groups) == 1  # no empty group


# -- penalties ---------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One matrix is used twice, as in a language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.own, self.bias = (nn.Parameter(torch.randn(*s).double()) for s in ((4, 4), (4, 2), (2,)))
        with torch.no_grad():
            self.own[0, 0] = 0.0  # where |w| has no derivative, its share is 0

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh(x @ self.shared) @ self.shared.T @ self.own + self.bias).pow(2).mean()


def explicit(module: nn.Module, loss: Tensor, l1: float, l2: float) -> list[Tensor]:
    """Gradients of the loss with the penalty written out."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    total = loss + l1 * sum(p.abs().sum() for p in matrices) + l2 / 2 * sum(p.pow(2).sum() for p in matrices)
    return list(torch.autograd.grad(total, list(module.parameters())))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_penalties_are_the_gradient_of_the_written_term(l1: float, l2: float, accumulate: int) -> None:
    train = {"global_batch": 16, "steps": 1, "l1": l1, "l2": l2}
    module, x = Tied(), torch.randn(8, 4, dtype=torch.float64)
    expected = explicit(module, module(x), l1, l2)
    add_penalties(config(train=train), module, accumulate)
    for part in x.chunk(accumulate):
        (module(part) / accumulate).backward()
    for p, gradient in zip(module.parameters(), expected):
        assert torch.allclose(p.grad, gradient, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [65536.0, 0.5])
def test_penalties_arrive_whole_where_gradients_carry_a_loss_scale(scale: float) -> None:
    """As in fp16, where the loss is multiplied before the backward pass and the gradient divided after it, and the scale of
    one step is not that of the next."""
    train = {"global_batch": 16, "steps": 1, "l1": 0.3, "l2": 0.7}
    module, x, now = Tied(), torch.randn(8, 4, dtype=torch.float64), [1.0]
    expected = explicit(module, module(x), 0.3, 0.7)
    add_penalties(config(train=train), module, 1, lambda: now[0])
    now[0] = scale
    (module(x) * scale).backward()
    for p, gradient in zip(module.parameters(), expected):
        assert torch.allclose(p.grad / scale, gradient, atol=1e-12)  # type: ignore[operator]


def scaled_steps(rank: int, world: int, cases: dict[str, dict[str, Any]], scale: float) -> dict[str, list[float]]:
    """Weights and norm of each run under DeepSpeed, the loss of every second step scaled as fp16 would, whose step is
    DeepSpeed's own."""
    from unittest import mock

    from distdl.engine import zero_step
    from distdl.layout.process import ProcessState
    from distdl.train import loop, worker
    from distdl.train.hooks.hook import Hook
    from distdl.train.survey import survey

    out = {}
    for name, values in cases.items():
        with ProcessState(), mock.patch.object(zero_step, "suits", lambda optimizer: False):
            plan = survey(config_from_dict(values))
            learner = worker.build_learner(config_from_dict(values), None)
            engine: Any = worker.make_engine(learner, plan, rank)

            class Scale(Hook):
                def after_step(
                    self, step: int, metrics: Any, optimizer: Any = engine.engines["learner"].optimizer
                ) -> None:
                    optimizer.loss_scaler.cur_scale = scale if step % 2 else 1.0

            source = worker.make_source(plan, rank)
            loop.train(learner, engine, source, [Scale()], start=0, steps=4)
            source.close()
            weights = [t.flatten() for name, t in engine.tensors() if name.startswith("weights/")]
            out[name] = [*torch.cat(weights).tolist(), float(engine.grad_norm)]
    return out


@pytest.mark.slow
def test_deepspeed_penalties_and_clipping_know_its_loss_scale(digits: str) -> None:
    """This machine has no fp16; the seam is the same: DeepSpeed's scaler is set by hand, and nothing may change."""
    values = small_config("mlp", digits, "", train__steps=4, train__l1=1e-3, train__l2=0.5, train__micro_batch=4)
    values |= {"optimizer": {"name": "sgd", "lr": 0.1}}
    cases = {f"zero{zero}": layout(values, f"zero{zero}", 2) for zero in (1, 2, 3)}
    cases["zero1+pipeline2"] = layout(values, "zero1+pipeline2", 2)
    plain, scaled = (run_ranks(scaled_steps, 2, cases, scale) for scale in (1.0, 1024.0))
    for name in cases:
        assert [rank[name] for rank in scaled] == [pytest.approx(rank[name], abs=1e-5) for rank in plain], name


def test_no_penalty_no_hook() -> None:
    module = Tied()
    add_penalties(config(), module, 1)
    assert not any(p._backward_hooks for p in module.parameters())


@pytest.mark.parametrize("micro_batch", [16, 4])
def test_a_step_of_the_engine_with_penalties_and_clipping(micro_batch: int) -> None:
    """One step of plain SGD moves by lr times the clipped gradient of loss + penalties, however it is accumulated."""
    values = small_config("mlp", "x", "", train__l1=0.01, train__l2=0.1, train__micro_batch=micro_batch)
    values["model"] |= {"dropout": 0.0}
    values["train"] |= {"clip_norm": 0.05}
    values |= {"optimizer": {"name": "sgd", "lr": 0.5}, "schedule": {"name": "constant"}}
    settings = config_from_dict(values)
    facts = ModelFacts("mlp", 1, 1, 1, "accuracy", "higher", ("torch",), ())
    plan = make_plan(settings, facts, DataFacts("x", "f", 64, 0), Hardware("cpu", 1, 0))
    torch.manual_seed(0)
    learner = build(values["model"]).double()
    batch = {
        "image": torch.rand(16, 1, 8, 8, dtype=torch.float64),
        "label": torch.randint(0, 10, (16,)),
        "id": torch.arange(16),
        "position": torch.arange(16),
    }
    gradients = explicit(learner, learner.loss(batch, 0)[0], 0.01, 0.1)
    norm = torch.stack([g.pow(2).sum() for g in gradients]).sum().sqrt()
    assert norm > 0.1  # it will be clipped
    expected = [p - 0.5 * g * 0.05 / norm for p, g in zip(learner.parameters(), gradients)]
    engine = TorchEngine(learner, plan, 0)
    assert plan.accumulate == 16 // micro_batch
    parts = [{name: column[i : i + micro_batch] for name, column in batch.items()} for i in range(0, 16, micro_batch)]
    for part in engine.feed(iter(parts), 0):
        learner.update(part, engine, 0)
    assert float(engine.grad_norm) == pytest.approx(float(norm), rel=1e-9)  # type: ignore[arg-type]
    for p, want in zip(learner.parameters(), expected):
        assert torch.allclose(p, want, atol=1e-6)  # clip_grad_norm_ adds 1e-6 to the norm
