"""An optimizer of the user's own, by `module:Class`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl import trust
from distdl.config.load import config_from_dict
from distdl.engine.optimizers import make_optimizer
from distdl.errors import InputError, TrainingFailed
from distdl.train.survey import survey
from tests.families.common import Rehearsal
from tests.resumed import of_memory
from tests.small import contract_config, layout

CODE = '''
import torch

class Signs(torch.optim.Optimizer):
    """Signs of a momentum, every n-th step."""

    def __init__(self, params, lr, momentum=0.9, every=1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "every": every, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(count=0, mean=torch.zeros_like(p), scale=1.0, total=torch.zeros(()))
                state["count"] += 1
                state["scale"] *= 0.9
                state["total"] += 1
                state["mean"].lerp_(p.grad, 1 - group["momentum"])
                if state["count"] % group["every"] == 0:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(state["mean"].sign(), alpha=group["lr"])


class InItsGroups(Signs):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1


class NoOptimizer: ...
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine_signs.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DISTDL_HOME", str(tmp_path / "home"))
    sys.modules.pop("mine_signs", None)
    return "mine_signs"


def own(data: Path, name: str, **more: Any) -> dict[str, Any]:
    return contract_config("gpt", data) | {"optimizer": {"name": name, "lr": 1e-3, "weight_decay": 0.1, **more}}


def test_it_is_made_with_its_options_and_its_groups_decay(module: str, small_data: Path) -> None:
    values = own(small_data, f"{module}:Signs", options={"every": 2})
    config = config_from_dict(values)
    assert config.optimizer.name == "own" and config.optimizer.use == "mine_signs:Signs"
    assert config_from_dict(config.model_dump(mode="json")).optimizer == config.optimizer  # as a worker reads it
    run = Rehearsal(values)
    optimizer = make_optimizer(run.config, run.learner)
    assert [(g["weight_decay"], g["every"]) for g in optimizer.param_groups] == [(0.1, 2), (0.0, 2)]
    run.train(8)
    assert run.losses[-1] < run.losses[0]


def test_a_run_goes_on_to_the_bit(module: str, small_data: Path) -> None:
    """Numbers are numbers again, and tensors tensors."""
    values = own(small_data, f"{module}:Signs", options={"every": 3})
    whole, first, then = Rehearsal(values), Rehearsal(values), Rehearsal(values)
    whole.train(7)
    first.train(4)
    state = {name: tensor.clone() for name, tensor in first.engine.tensors()}
    with torch.no_grad():
        for name, p in then.learner.named_parameters():
            p.copy_(state[f"weights/{name}"])
    then.engine.load_optimizer(of_memory(state), set(state), dict(first.engine.optimizer_steps))
    then.source, then.step = first.source, 4
    then.train(3)
    for p, q in zip(whole.learner.parameters(), then.learner.parameters()):
        assert torch.equal(p, q)
    (optimizer,) = then.engine.stepping("learner")
    kept = next(iter(optimizer.state.values()))
    assert type(kept["count"]) is int and type(kept["scale"]) is float and kept["count"] == 7 == int(kept["total"])


def test_what_no_checkpoint_holds_is_refused(module: str, small_data: Path) -> None:
    run = Rehearsal(own(small_data, f"{module}:InItsGroups"))
    run.train(1)
    with pytest.raises(TrainingFailed, match="InItsGroups keeps k in its parameter groups"):
        list(run.engine.tensors())


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("nowhere:Signs", {}, "nowhere cannot be imported"),
        ("mine_signs:Nothing", {}, "has no such class"),
        ("mine_signs:NoOptimizer", {}, "is no subclass of torch.optim.Optimizer"),
        ("mine_signs:Signs", {"options": {"beta": 1}}, "unexpected keyword argument 'beta'"),
    ],
)
def test_mistakes_are_named(module: str, small_data: Path, name: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Rehearsal(own(small_data, name, **more))


def test_layouts_that_cut_tensors_want_a_word(module: str, small_data: Path) -> None:
    values = layout(own(small_data, f"{module}:Signs"), "zero1", 2)
    with pytest.raises(InputError, match="mine_signs:Signs may make a step of whole tensors, which ZeRO-1 flattens"):
        survey(config_from_dict(values))
    values["optimizer"]["elementwise"] = True
    assert survey(config_from_dict(values)).layout == "zero1"


def test_a_run_of_a_stranger_does_not_choose_what_is_executed(module: str, small_data: Path, tmp_path: Path) -> None:
    config = config_from_dict(own(small_data, f"{module}:Signs"))
    assert config.optimizer_code == tmp_path / "mine_signs.py" and "mine_signs" not in sys.modules
    with pytest.raises(InputError, match="code that only a run's config names"):
        trust.allow(tmp_path / "mine_signs.py", named_by_run=True)
    trust.remember(tmp_path / "mine_signs.py", place=True)
    trust.allow(tmp_path / "mine_signs.py", named_by_run=True)
