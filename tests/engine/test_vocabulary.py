"""A vocabulary that is filled up inside the engine: the same numbers, counts and checkpoints on every axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distdl.config.load import config_from_dict
from distdl.engine.base import Engine
from distdl.layout.axes import shard_of
from distdl.layout.process import ProcessState
from distdl.nn.language import logits, token_losses
from distdl.parallel.tensor import fill_up
from distdl.plan.facts import DataFacts, Hardware
from distdl.plan.plan import make_plan
from distdl.train import worker
from distdl.train.hooks.hook import Hook
from distdl.train.loop import train
from distdl.train.survey import model_facts, survey
from tests.checkpoint.test_resume import cut, metrics, prepared
from tests.engine.test_memory import saving
from tests.parity.test_parity import largest_difference
from tests.ranks import run_ranks
from tests.resumed import Runs, go_on, of_memory
from tests.resumed import train as train_until_cut
from tests.small import contract_config, curves

MULTIPLE = 60
"""256 bytes become 300 rows; of two ranks, 180 each, the second has 76."""


def filled(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"train": values["train"] | {"vocabulary_multiple": MULTIPLE}}


def test_padding_stands_for_no_word() -> None:
    torch.manual_seed(0)
    x, weight, targets = torch.randn(12, 8), torch.nn.Parameter(torch.randn(13, 8)), torch.randint(13, (12,))
    model = torch.nn.Module()
    model.tensor_plan, model.words = {"words": "vocab"}, torch.nn.Embedding(13, 8)  # type: ignore[assignment]
    model.words.weight = padded = torch.nn.Parameter(weight.detach().clone())
    fill_up(model, 64)  # type: ignore[arg-type]
    assert padded.shape == (64, 8) and not padded[13:].any()
    assert logits(x, padded).shape == (12, 13)
    for chunk in (0, 5):
        want, got = token_losses(x, weight, targets, chunk), token_losses(x, padded, targets, chunk)
        assert torch.allclose(got, want, atol=1e-6)
        gradient, other = (torch.autograd.grad(losses.mean(), w)[0] for losses, w in ((want, weight), (got, padded)))
        assert torch.allclose(other[:13], gradient, atol=1e-7) and not other[13:].any()


def test_gpus_get_it_and_counts_do_not(small_data: Path) -> None:
    config = config_from_dict(contract_config("gpt", small_data))
    data = DataFacts("data/x", "f00d", 100_000, 200)
    plans = [make_plan(config, model_facts(config), data, Hardware(device, 8, 8)) for device in ("cuda", "cpu")]  # type: ignore[arg-type]
    assert [plan.settings.train.vocabulary_multiple for plan in plans] == [64, 1]
    assert plans[0].model.parameters == plans[1].model.parameters


def engines(values: dict[str, Any]) -> Engine:
    plan = survey(config_from_dict(values))
    return worker.make_engine(worker.build_learner(plan.settings, None), plan, 0)


@pytest.mark.parametrize("family", ["gpt", "bert", "mamba"])
def test_a_run_goes_on_with_padding_and_without(family: str, small_data: Path) -> None:
    """Three steps of each, and three of the other from what the engine says its state is."""
    plain = contract_config(family, small_data)
    cases = [plain, filled(plain)]
    found: list[list[float]] = []
    for first, then in (cases, cases[::-1]):
        with ProcessState():
            one, losses = engines(first), Losses()
            source = worker.make_source(one.plan, 0)
            train(one.learner, one, source, [losses], start=0, steps=3)
            state = {name: tensor.clone() for name, tensor in one.tensors()}
            for name, parameter in worker.build_learner(one.config, None).named_parameters():
                assert state[f"weights/{name}"].shape == parameter.shape
            other = engines(then)
            assert any(shard_of(p) is not None for p in other.learner.parameters()) == (then is not plain)
            restore(other, state, dict(one.optimizer_steps))
            train(other.learner, other, source, [losses], start=3, steps=6)
            source.close()
            found.append(losses.seen)
    assert found[0] == pytest.approx(found[1], abs=1e-5)


class Losses(Hook):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_step(self, step: int, metrics: Any) -> None:
        total, count = metrics["loss"]
        self.seen.append(float(total) / float(count))


def restore(engine: Engine, state: dict[str, Tensor], steps: dict[str, int]) -> None:
    from distdl.parallel.tensor import part

    for name, parameter in engine.learner.named_parameters():
        parameter.detach().copy_(part(parameter, state[f"weights/{name}"]))
    engine.load_optimizer(of_memory(state), set(state), steps)


AXES = ["zero0", "zero1", "zero2", "zero3", "zero1+tensor2", "zero3+tensor2", "zero1+pipeline2", "zero1+sequence2"]


@pytest.mark.slow
def test_the_same_numbers_on_every_axis(small_data: Path) -> None:
    values = contract_config("gpt", small_data)
    reference = run_ranks(curves, 1, {"": values})[0][""]
    runs = {name: filled(saving(values, name, 2)) for name in AXES}
    runs["chunks"] = filled(saving(values, "zero1", 2, loss_chunk_tokens=24))
    for name, got in run_ranks(curves, 2, runs)[0].items():
        assert largest_difference(got["loss"], reference["loss"]) < 1e-5, name
        assert got["norm"] == pytest.approx(reference["norm"], rel=1e-3), name
        assert got["evaluation"] == pytest.approx(reference["evaluation"], abs=1e-5), name


PAIRS = [  # saved on, with padding or without -> continued the other way
    (("torch", 1, False), ("zero3", 2)),
    (("zero1", 2, True), ("torch", 1)),
    (("zero3", 2, True), ("zero1+tensor2", 2)),
    (("zero1+tensor2", 2, False), ("zero1+pipeline2", 2)),
]


@pytest.mark.slow
def test_a_checkpoint_knows_nothing_of_it(digits: str, text: str, tmp_path: Path) -> None:
    base = prepared("gpt", digits, text)
    base["track"]["every_steps"] = 1
    first: dict[int, Runs] = {1: {}, 2: {}}
    then: dict[int, Runs] = {1: {}, 2: {}}
    for (name, world, padded), (target, target_world) in PAIRS:
        folder = str(tmp_path / f"{name} to {target}")
        ways = [cut(base, name, world), cut(base, target, target_world)]
        ways[not padded] = filled(ways[not padded])
        first[world][folder] = {"values": ways[0], "folder": folder}
        then[target_world][folder] = {"values": ways[1], "folder": folder}
    whole = {"reference": {"values": cut(base, "torch", 1), "folder": str(tmp_path / "reference")}}
    for world, runs in first.items():
        train_until_cut(world, whole if world == 1 else {}, runs)
    wanted = metrics(tmp_path / "reference")
    for world, runs in then.items():
        go_on(world, runs)
        for path in map(Path, runs):
            got = metrics(path)
            assert max(abs(got[step] - wanted[step]) for step in range(1, 21)) < 1e-5, path.name
