"""`train.ema`: the average is that of the weights' own path, judged, kept, gone on with and handed on in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from distdl.checkpoint.convert import Wish, convert
from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.checkpoint.verify import problems
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.families import build
from distdl.run.folder import RunFolder
from distdl.train.survey import survey
from distdl.train.worker import evaluate_checkpoint
from distdl.ways import start
from tests.checkpoint.test_resume import interrupt_and_compare, last, saved_often
from tests.families.common import Rehearsal
from tests.resumed import events, train
from tests.small import contract_config, layout, measured

DECAY = 0.5


def ema(data: Path, family: str = "gpt") -> dict[str, Any]:
    values = contract_config(family, data)
    values["train"] = values["train"] | {"ema": DECAY}
    return values


def test_it_is_the_average_of_the_path_and_evaluations_are_of_it(small_data: Path) -> None:
    run = Rehearsal(ema(small_data))
    wanted = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    for step in range(1, 8):
        run.train(1)
        share = 1 - min(DECAY, (1 + step) / (10 + step))
        for name, p in run.learner.named_parameters():
            wanted[name] += share * (p.detach() - wanted[name])
    (average,) = run.engine.averages.values()
    assert all(torch.allclose(average.values[name], value, atol=1e-6) for name, value in wanted.items())
    now = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    judged = run.evaluate()
    assert all(torch.equal(p, now[name]) for name, p in run.learner.named_parameters())
    run.engine.averages = {}
    plain = run.evaluate()
    with torch.no_grad():
        for name, p in run.learner.named_parameters():
            p.copy_(average.values[name])
    assert run.evaluate() == judged != plain


@pytest.mark.parametrize("name", ["zero3", "zero1+pipeline2"])
def test_layouts_without_whole_weights_are_refused(name: str, small_data: Path) -> None:
    with pytest.raises(InputError, match=r"train\.ema=0\.5 averages weights"):
        survey(config_from_dict(layout(ema(small_data), name, 2)))


@pytest.mark.slow
def test_every_layout_is_judged_by_the_same_average(small_data: Path) -> None:
    values = ema(small_data)
    reference = measured(1, {"one": values, "plain": contract_config("gpt", small_data)})[0]
    laid = ["torch", "zero0", "zero1", "zero2", "zero1+tensor2", "zero1+sequence2"]
    found = measured(2, {name: layout(values, name, 2) for name in laid})[0]
    loss = reference["one"]["evaluation"]["loss"]
    for name in laid:
        assert found[name]["evaluation"]["loss"] == pytest.approx(loss, abs=1e-5), name
    assert reference["one"]["loss"] == reference["plain"]["loss"]  # training is as it was
    assert abs(loss - reference["plain"]["evaluation"]["loss"]) > 1e-3


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_and_hands_the_average_on(small_data: Path, tmp_path: Path) -> None:
    values = layout(saved_often(ema(small_data)), "zero1", 2)
    interrupt_and_compare({"ema": values}, tmp_path)
    checkpoint = last(tmp_path / "ema" / "whole")
    weight, average = (checkpoint.read(f"{kind}/ln.weight") for kind in ("weights", "averages"))
    assert not torch.equal(weight, average) and problems(checkpoint.path) == []
    learner: Any = build(values["model"])
    checkpoint.load_weights(learner)
    assert torch.equal(learner.ln.weight, weight)
    checkpoint.load_weights(learner, averaged=True)
    assert torch.equal(learner.ln.weight, average)
    convert(checkpoint.path, tmp_path / "w.safetensors", Wish("safetensors"))
    with safe_open(str(tmp_path / "w.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("ln.weight"), average)
    convert(checkpoint.path, tmp_path / checkpoint.path.name, Wish("distdl"))  # to go on from
    assert Checkpoint(tmp_path / checkpoint.path.name).tensors.keys() == checkpoint.tensors.keys()
    assert torch.equal(start.open_weights(str(checkpoint.path), "runs").read("ln.weight"), average)
    assert checkpoints(tmp_path / "ema" / "whole" / "checkpoints")


@pytest.mark.slow
def test_evaluating_a_checkpoint_is_evaluating_the_run(small_data: Path, tmp_path: Path) -> None:
    values = layout(saved_often(ema(small_data)), "torch", 1)
    train(1, {"ema": {"values": values, "folder": str(tmp_path / "ema")}}, {})
    told = events(tmp_path / "ema", "evaluation")[-1]
    step, found = evaluate_checkpoint(survey(config_from_dict(values)), RunFolder(tmp_path / "ema"), "latest")
    assert step == told["step"] and found["loss"] == pytest.approx(told["values"]["loss"], abs=1e-7)
