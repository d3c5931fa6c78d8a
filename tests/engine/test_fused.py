"""Optimizers of a single kernel, which torch has for GPUs and for CPUs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distdl.config.load import config_from_dict
from distdl.engine.optimizers import FUSED, make_optimizer, steps_taken
from distdl.layout.process import ProcessState
from distdl.train import worker
from distdl.train.loop import train
from distdl.train.survey import survey
from tests.resumed import of_memory
from tests.small import small_config


def options(name: str, device: str, **parallel: Any) -> dict[str, Any]:
    values = small_config("mlp", "x", "") | {"optimizer": {"name": name, "lr": 0.1}, "parallel": parallel}
    return make_optimizer(config_from_dict(values), nn.Linear(2, 2), device).param_groups[0]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "adagrad", "lion"])
def test_every_device_gets_the_kernel_that_there_is(name: str) -> None:
    assert bool(options(name, "cuda").get("fused")) == (name in FUSED)
    assert bool(options(name, "cpu").get("fused")) == (name in FUSED)
    assert bool(options(name, "cpu", zero=2, offload="cpu").get("fused")) == (name in FUSED)
    assert not options(name, "cuda", zero=2, offload="cpu").get("fused")


def test_the_count_of_steps_lies_where_the_kernel_looks_for_it() -> None:
    there = nn.Parameter(torch.empty(3, device="meta"))
    assert steps_taken(torch.optim.AdamW([there], fused=False), there, 3).device.type == "cpu"
    fused = torch.optim.AdamW([nn.Parameter(torch.zeros(3))], fused=True)
    assert steps_taken(fused, there, 3).device.type == "meta"
    assert float(steps_taken(fused, nn.Parameter(torch.zeros(3)), 3)) == 3.0


@pytest.mark.parametrize("name", sorted(FUSED))
def test_a_run_goes_on_to_the_same_bits(digits: str, name: str) -> None:
    optimizer = {"name": name, "lr": 0.01} | ({"momentum": 0.9} if name == "sgd" else {})
    values = small_config("mlp", digits, "", train__steps=6) | {"optimizer": optimizer}
    plan = survey(config_from_dict(values))

    def begun() -> tuple[Any, Any]:
        engine = worker.make_engine(worker.build_learner(plan.settings, None), plan, 0)
        assert all(group["fused"] for o in engine.stepping("learner") for group in o.param_groups)
        return engine, worker.make_source(plan, 0)

    with ProcessState():
        worker.set_up_torch(plan)
        whole, source = begun()
        train(whole.learner, whole, source, [], start=0, steps=3)
        saved = {key: tensor.clone() for key, tensor in whole.tensors()}
        steps, place = dict(whole.optimizer_steps), json.loads(json.dumps(source.state_dict()))
        train(whole.learner, whole, source, [], start=3, steps=6)
        source.close()
        other, source = begun()
        source.load_state_dict(place)
        for key, parameter in other.learner.named_parameters():
            parameter.detach().copy_(saved[f"weights/{key}"])
        read: dict[str, Tensor] = saved
        other.load_optimizer(of_memory(read), set(saved), steps)
        train(other.learner, other, source, [], start=3, steps=6)
        source.close()
        for (key, one), (_, two) in zip(whole.tensors(), other.tensors(), strict=True):
            assert torch.equal(one, two), key
