"""Two players under every engine: alternating steps, a gradient through a frozen critic, phases, assigned weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout import noise
from distdl.learner import Batch, Learner, bare, frozen
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from tests.ranks import run_ranks
from tests.resumed import of_memory
from tests.small import contract_config, layout

LAYOUTS = ["torch", "zero0", "zero1", "zero2"]


class Duel(Learner):
    """A generator against a critic; from step 10 on a student that began as a copy of the critic's first layer."""

    players = ("generator", "critic", "student")

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64))
        self.critic = nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.student = nn.Linear(64, 16)
        self.anchor = nn.Linear(4, 4)  # outside every player: never trained, yet part of the state
        self.register_buffer("seen", torch.zeros(()))

    def update(self, batch: Batch, engine: Any, step: int) -> Metrics:
        real = to_unit(batch["image"]).flatten(1)  # (B, 64)
        if step >= 10:
            if step == 10:
                engine.assign("student", bare(self.critic)[0].state_dict())
            loss = F.mse_loss(self.student(real), real[:, :16])
            engine.minimize(loss, "student")
            return {"loss": mean(loss)}
        self.seen += engine.all_sum(torch.tensor(float(len(real))))
        fake = self.generator(noise.normal(len(real), 8))
        score = self.critic(torch.cat([real, fake.detach()]))
        loss = F.softplus(-score[: len(real)]).mean() + F.softplus(score[len(real) :]).mean()
        engine.minimize(loss, "critic")
        with frozen(self.critic) as critic:
            fooled = F.softplus(-critic(fake)).mean()
        engine.minimize(fooled, "generator")
        return {"loss": mean(loss), "fooled": mean(fooled)}

    def evaluate(self, batch: Batch) -> Metrics:
        real = to_unit(batch["image"]).flatten(1)
        fake = self.generator(noise.normal(len(real), 8))
        return {"loss": mean(self.critic(real) - self.critic(fake)), "student": mean(self.student(real))}


def duel(rank: int, world: int, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from distdl.layout.process import ProcessState

    out = {}
    for name, values in cases.items():
        with ProcessState():
            out[name] = _duel(rank, values)
    return out


def _duel(rank: int, values: dict[str, Any]) -> dict[str, Any]:
    """20 steps straight, and 20 with everything saved and built anew after 7 and after 13. Not accumulated: the critic
    steps between the generator's micro-batches, which is what `batch_coupled` says of such a family."""
    from distdl.config.load import config_from_dict
    from distdl.train import worker
    from distdl.train.loop import evaluate
    from distdl.train.survey import survey

    config = config_from_dict(values)
    plan = survey(config)
    worker.set_up_torch(plan)
    torch.set_num_threads(1)

    def built(state: dict[str, Tensor], steps: dict[str, int]) -> tuple[Any, Any]:
        torch.manual_seed(1)
        learner = Duel()
        with torch.no_grad():
            for name, tensor in (*learner.named_parameters(), *learner.named_buffers()):
                for kind in ("weights", "buffers"):
                    if f"{kind}/{name}" in state:
                        tensor.copy_(state[f"{kind}/{name}"])
        engine = worker.make_engine(learner, plan, rank)
        if state:
            engine.load_optimizer(of_memory(state), set(state), steps)
        return learner, engine

    out: dict[str, Any] = {}
    for kind, breaks in (("straight", []), ("broken", [7, 13])):
        learner, engine = built({}, {})
        source = worker.make_source(plan, rank)
        losses = []
        for step in range(20):
            if step in breaks:
                state = {name: tensor.clone() for name, tensor in engine.tensors()}
                learner, engine = built(state, dict(engine.optimizer_steps))
            for batch in engine.feed(source, step):
                metrics = learner.update(batch, engine, step)
                pair = engine.all_sum(torch.stack([metrics["loss"].total.double(), torch.tensor(1.0).double()]))
                losses.append(float(pair[0] / pair[1]))
        source.close()
        held_out = worker.EvalSource(worker.make_dataset(plan, "test"), batch=50, rank=rank, world=plan.world)
        tensors = {name: tensor.clone() for name, tensor in engine.tensors()}
        out[kind] = {
            "losses": losses,
            "evaluation": evaluate(learner, engine, held_out),
            "names": sorted(tensors),
            "sums": {name: tensor.double().sum().item() for name, tensor in sorted(tensors.items())},
            "steps": dict(engine.optimizer_steps),
        }
    return out


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 0.1])
def test_players_are_equal_on_every_layout_and_after_a_restart(clip: float | None, small_data: Path) -> None:
    values = contract_config("mlp", small_data, train__clip_norm=clip)
    reference = run_ranks(duel, 1, {"torch": values})[0]["torch"]
    cases = {}
    for name in LAYOUTS:
        cases[name] = layout(values, name, 2)
    ranks = run_ranks(duel, 2, cases)
    straight = reference["straight"]
    assert straight == reference["broken"]
    assert straight["steps"] == {"generator": 10, "critic": 10, "student": 10}
    assert {"weights/anchor.weight", "weights/critic.0.weight", "buffers/seen"} <= set(straight["names"])
    assert straight["sums"]["buffers/seen"] == 160 and straight["losses"][9] < straight["losses"][0]
    for name in cases:
        got = ranks[0][name]["straight"]
        assert ranks[0][name]["broken"] == got, name
        assert ranks[1][name]["straight"]["sums"] == got["sums"], name
        assert got["losses"] == pytest.approx(straight["losses"], abs=1e-5), name
        assert got["evaluation"] == pytest.approx(straight["evaluation"], abs=1e-5), name
        assert got["names"] == straight["names"], name


def test_frozen_gives_the_gradient_to_the_input_alone() -> None:
    net = nn.Linear(3, 1)
    net.bias.requires_grad_(False)
    x = torch.randn(2, 3, requires_grad=True)
    with frozen(net) as critic:
        assert critic is net and not net.weight.requires_grad
        critic(x).sum().backward()
    assert net.weight.grad is None and x.grad is not None
    assert net.weight.requires_grad and not net.bias.requires_grad
    with pytest.raises(ZeroDivisionError), frozen(net):
        1 / 0  # noqa: B018
    assert net.weight.requires_grad
