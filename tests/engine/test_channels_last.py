"""`train.channels_last`: pictures are laid out as the convolutions of GPUs want them, and no number changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distdl.config.load import config_from_dict
from distdl.data.source import EvalSource
from distdl.families import load_family
from distdl.layout.process import ProcessState
from distdl.plan.facts import DataFacts, Hardware
from distdl.plan.plan import make_plan
from distdl.train import worker
from distdl.train.loop import evaluate, train
from distdl.train.survey import model_facts, survey
from tests.engine.test_vocabulary import Losses
from tests.ranks import run_ranks
from tests.resumed import of_memory
from tests.small import MODELS, contract_config, curves, layout

STEPS = 4


def convolves(family: str) -> bool:
    from distdl.families import build

    with torch.device("meta"):
        return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in build(MODELS[family]).modules())


FAMILIES = [family for family in MODELS if convolves(family)]


def begun(values: dict[str, Any]) -> Any:
    plan = survey(config_from_dict(values))
    worker.set_up_torch(plan)
    return worker.make_engine(worker.build_learner(plan.settings, None), plan, 0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_number_changes(family: str, small_data: Path) -> None:
    values = contract_config(family, small_data)
    found = []
    for last in (False, True):
        values["train"]["channels_last"] = last
        with ProcessState():
            engine = begun(values)
            weights = [
                p for p in engine.learner.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1 and p.shape[0] > 1
            ]
            assert all(p.is_contiguous(memory_format=torch.channels_last) == last for p in weights)
            source, losses = worker.make_source(engine.plan, 0), Losses()
            train(engine.learner, engine, source, [losses], start=0, steps=STEPS)
            source.close()
            measured = {}
            if (split := engine.config.data.eval_split) is not None:
                rows = EvalSource(worker.make_dataset(engine.plan, split), batch=8, rank=0, world=1)
                measured = evaluate(engine.learner, engine, rows)
            found.append((losses.seen, measured))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-5)


def test_gpus_get_it(small_data: Path) -> None:
    config = config_from_dict(contract_config("cnn", small_data))
    data = DataFacts("data/x", "f00d", 100_000, 200)
    plans = [make_plan(config, model_facts(config), data, Hardware(device, 8, 8)) for device in ("cuda", "cpu")]  # type: ignore[arg-type]
    assert [plan.settings.train.channels_last for plan in plans] == [True, False]


def test_a_run_goes_on_to_the_same_bits(small_data: Path) -> None:
    """A fused optimizer walks through memory: a state that lay otherwise than its weight would be another weight's."""
    values = contract_config("cnn", small_data, train__channels_last=True)
    with ProcessState():
        whole = begun(values)
        source = worker.make_source(whole.plan, 0)
        train(whole.learner, whole, source, [], start=0, steps=3)
        saved = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in whole.tensors()}
        steps, place = dict(whole.optimizer_steps), json.loads(json.dumps(source.state_dict()))
        train(whole.learner, whole, source, [], start=3, steps=6)
        source.close()
        other = begun(values)
        source = worker.make_source(other.plan, 0)
        source.load_state_dict(place)
        tensors: dict[str, Tensor] = saved
        for key, parameter in other.learner.named_parameters():
            parameter.detach().copy_(saved[f"weights/{key}"])
        for key, buffer in other.learner.named_buffers():
            buffer.copy_(saved[f"buffers/{key}"])
        other.load_optimizer(of_memory(tensors), set(saved), steps)
        train(other.learner, other, source, [], start=3, steps=6)
        source.close()
        for (key, one), (_, two) in zip(whole.tensors(), other.tensors(), strict=True):
            assert torch.equal(one, two), key


@pytest.mark.slow
def test_the_same_numbers_on_two_ranks(small_data: Path) -> None:
    values = contract_config("cnn", small_data)
    reference = run_ranks(curves, 1, {"": values})[0][""]
    values["train"]["channels_last"] = True
    names = sorted(load_family("cnn").layouts & {"torch", "zero0", "zero1", "zero2", "zero3"})
    for name, got in run_ranks(curves, 2, {name: layout(values, name, 2) for name in names})[0].items():
        assert got["loss"] == pytest.approx(reference["loss"], abs=1e-5), name
