"""The pipeline against the one-process reference: real gloo processes, clipping on (and biting), noise on."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distdl.engine import stages
from distdl.families.gpt import GPT, Config
from distdl.parity.layouts import data_ranks
from tests.checkpoint.test_resume import interrupt_and_compare, last, metrics
from tests.parity.test_parity import compare, largest_difference
from tests.ranks import run_ranks
from tests.resumed import Runs, go_on, train
from tests.small import SOME_STEPS, contract_config, curve, layout, measured, small_config, trained

SGD = {"name": "sgd", "lr": 0.2}  # which shows a wrong scale of the gradient; AdamW hides it


def cases(digits: str, text: str) -> dict[str, dict[str, Any]]:
    """With tied layers and without, AdamW and plain SGD."""
    gpt, mlp = (small_config(family, digits, text, train__steps=SOME_STEPS) for family in ("gpt", "mlp"))
    return {
        "gpt adamw": gpt,
        "gpt sgd": gpt | {"optimizer": SGD},
        "mlp adamw": mlp,
        "mlp sgd": mlp | {"optimizer": SGD},
    }


def more_cases(digits: str, text: str, data: Path) -> dict[str, dict[str, Any]]:
    """What else enters the numbers: penalties on a tied matrix, precision, a family that varies its inputs at random."""
    few = {"train__steps": SOME_STEPS}
    penalties = small_config("gpt", digits, text, **few, train__l1=1e-3, train__l2=1e-2) | {"optimizer": SGD}
    unclipped = small_config("gpt", digits, text, **few, train__clip_norm=None) | {"optimizer": SGD}
    bf16 = small_config("gpt", digits, text, **few, train__precision="bf16", optimizer__lr=3e-3)
    families = {family: contract_config(family, data, **few) for family in ("alexnet", "lenet5")}
    return {"penalties": penalties, "unclipped": unclipped, "bf16": bf16, **families}


def laid_out(values: dict[str, Any], name: str, world: int, accumulate: int, **parallel: Any) -> dict[str, Any]:
    case = layout(values, name, world)
    data = data_ranks(name, world)
    case["train"]["micro_batch"] = case["train"]["global_batch"] // data // accumulate
    case["parallel"] |= parallel
    case["evaluate"] = {"batch": 7}  # another shape than in training, and what is left over has a third
    return case


@pytest.fixture(scope="module")
def reference(digits: str, text: str, small_data: Path) -> dict[str, Any]:
    """One process, plain PyTorch, the whole batch at once."""
    return measured(1, cases(digits, text) | more_cases(digits, text, small_data))[0]


@pytest.mark.slow
def test_two_stages(reference: dict[str, Any], digits: str, text: str, small_data: Path) -> None:
    """Accumulation, recomputation and stages balanced by time change nothing."""
    runs = {
        f"{name}/{accumulate} micro-batches": laid_out(values, "zero1+pipeline2", 2, accumulate)
        for name, values in (cases(digits, text) | more_cases(digits, text, small_data)).items()
        for accumulate in (2, 4)
    }
    gpt = cases(digits, text)["gpt sgd"]
    runs["gpt sgd/recomputed"] = laid_out(gpt, "zero1+pipeline2", 2, 4, checkpoint_activations="all")
    runs["gpt sgd/every second recomputed"] = laid_out(gpt, "zero1+pipeline2", 2, 4, checkpoint_activations=2)
    runs["gpt sgd/by time"] = laid_out(gpt, "zero1+pipeline2", 2, 2, balance="time")
    compare(reference, measured(2, runs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1+pipeline2", "zero1+pipeline2+tensor2", "zero1+pipeline4"])
def test_four_ranks(name: str, reference: dict[str, Any], digits: str, text: str) -> None:
    """Beside two data ranks or within two tensor ranks; four stages have some between the two ends of a tie."""
    runs = {
        f"{case}/{accumulate} micro-batches": laid_out(values, name, 4, accumulate)
        for case, values in cases(digits, text).items()
        for accumulate in (2, 4)
        if not (case.startswith("mlp") and name == "zero1+pipeline4")  # it has three layers
    }
    compare(reference, measured(4, runs))


def clipped_without_zero(rank: int, world: int, values: dict[str, Any]) -> list[float]:
    """The losses under ZeRO-0, which the plan refuses."""
    from distdl.plan import refuse

    refuse._zero_problems = lambda config, cut: []
    return curve(rank, values)["loss"]


@pytest.mark.slow
def test_why_zero_0_is_refused(reference: dict[str, Any], digits: str, text: str) -> None:
    """DeepSpeed's norm would be that of the first stage alone: the same weights, clipped differently."""
    values = laid_out(cases(digits, text)["gpt sgd"], "zero0+pipeline2", 2, 2)
    values["guard"] = {"parity_every_steps": 0}  # which would stop it in the first step
    assert largest_difference(reference["gpt sgd"]["loss"], run_ranks(clipped_without_zero, 2, values)[0]) > 1e-3


def held(rank: int, world: int, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a rank holds of the model, and the names that its checkpoint would write."""
    from distdl.config.load import config_from_dict
    from distdl.layout.process import ProcessState
    from distdl.train import worker
    from distdl.train.survey import survey

    out = {}
    for name, values in cases.items():
        with ProcessState():
            plan = survey(config_from_dict(values))
            learner = worker.build_learner(config_from_dict(values), None)
            engine: Any = worker.make_engine(learner, plan, rank)
            storages = {
                p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
                for p in learner.parameters()
                if not p.is_meta
            }
            out[name] = {
                "whole": plan.model.parameters,
                "names": {n: list(p.shape) for _, n, p in engine.named()},
                "numel": sum(p.numel() for _, _, p in engine.named()),
                "bytes": sum(storages.values()),
                "bounds": engine.bounds,
                "layers": len(plan.model.layers),
                "written": [n.removeprefix("weights/") for n, _ in engine.tensors() if n.startswith("weights/")],
                "tied": [n for _, n, p in engine.named() if p.ds_pipe_replicated],
            }
    return out


@pytest.mark.slow
def test_a_rank_holds_its_stage_only(digits: str, text: str) -> None:
    """The first stage holds the embedding, the last one a copy of its tied matrix that it neither counts nor writes."""
    values = laid_out(small_config("gpt", digits, text), "zero1+pipeline2", 2, 2)
    values["model"] |= {"layers": 4, "width": 32}
    by_time = laid_out(values, "zero1+pipeline2", 2, 2, balance="time")
    ranks = run_ranks(held, 2, {"parameters": values, "time": by_time})
    for balance in ("parameters", "time"):
        first, last_ = (rank[balance] for rank in ranks)
        tied = 256 * 32
        assert first["numel"] + last_["numel"] == first["whole"] + tied
        for stage in (first, last_):
            assert 0.2 * first["whole"] < stage["numel"] < 0.8 * first["whole"]
            assert stage["bytes"] == pytest.approx(4 * stage["numel"], rel=0.05)  # and no tensor's memory is kept
            assert stage["bounds"] == first["bounds"] and stage["bounds"][0] == 0 and stage["bounds"][2] == 6
            assert 0 < stage["bounds"][1] < 6
        assert first["names"].keys() & last_["names"].keys() == {"wte.weight"} == set(last_["tied"])
        assert first["tied"] == [] and sorted(first["written"]) == sorted(first["names"])
        assert sorted(last_["written"]) == sorted(last_["names"].keys() - {"wte.weight"})


def moves(rank: int, world: int, values: dict[str, Any]) -> dict[str, list[Any]]:
    """Verb -> whether a weight of this stage has moved by it, the optimizer's steps after it."""
    from distdl.config.load import config_from_dict
    from distdl.layout.process import ProcessState
    from distdl.train import worker
    from distdl.train.survey import survey

    with ProcessState():
        config = config_from_dict(values)
        plan = survey(config)
        learner = worker.build_learner(config, None)
        engine = worker.make_engine(learner, plan, rank)
        source, out = worker.make_source(plan, rank), {}
        learner.train()
        (batch,) = itertools.islice(engine.feed(source, 0), 1)
        for verb in ("forward", "minimize"):
            before = {name: p.detach().clone() for _, name, p in engine.named()}
            if verb == "forward":
                loss, _ = engine.forward(batch, 0)
            else:
                engine.minimize(loss)
            moved = any(not torch.equal(p, before[name]) for _, name, p in engine.named())
            out[verb] = [moved, engine.optimizer_steps["learner"]]
        source.close()
    return out


@pytest.mark.slow
def test_minimize_takes_the_step_as_under_every_engine(digits: str, text: str) -> None:
    values = small_config("gpt", digits, text, guard__parity_every_steps=0, schedule__warmup_steps=0)
    for rank in run_ranks(moves, 2, laid_out(values, "zero1+pipeline2", 2, 2)):
        assert rank == {"forward": [False, 0], "minimize": [True, 1]}


def test_layers_are_timed_without_a_trace(text: str) -> None:
    """The time of every layer, the criterion with the last; weights, gradients and the generator stay as they were."""
    learner = GPT(Config(vocabulary=256, context=16, layers=2, heads=2, width=16, dropout=0.1))
    before, state = {n: p.clone() for n, p in learner.named_parameters()}, torch.get_rng_state()
    plan: Any = SimpleNamespace(settings=SimpleNamespace(train=SimpleNamespace(precision="fp32")))
    batch = {"tokens": torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(0))}
    seconds = stages.layer_seconds(learner, plan, batch, torch.device("cpu"))
    assert len(seconds) == 4 and all(s > 0 for s in seconds)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in learner.named_parameters())
    assert torch.equal(torch.get_rng_state(), state) and learner.training


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_identical(digits: str, text: str, tmp_path: Path) -> None:
    """With AdamW, clipping, noise and the tied matrix, and the same with bf16 weights."""
    runs = {
        precision: saved_often(small_config("gpt", digits, text, train__precision=precision), "zero1+pipeline2", 2)
        for precision in ("fp32", "bf16")
    }
    interrupt_and_compare(runs, tmp_path)


def saved_often(values: dict[str, Any], name: str, world: int) -> dict[str, Any]:
    """On a layout, with a checkpoint of every fifth step and a loss of every one."""
    values = layout(values, name, world) if name == "torch" else laid_out(values, name, world, 2)
    return values | {"checkpoint": {"every_steps": 5}, "track": values["track"] | {"every_steps": 1}}


@pytest.mark.slow
def test_a_checkpoint_goes_from_and_to_any_layout(digits: str, text: str, tmp_path: Path) -> None:
    """Killed after step 13 on one layout, continued from step 10 on another: the losses of the uninterrupted reference."""
    torch1, pipeline, with_tensor = ("torch", 1), ("zero1+pipeline2", 2), ("zero1+pipeline2+tensor2", 4)
    moves = [
        (pipeline, torch1),
        (torch1, pipeline),
        (("zero3", 2), pipeline),
        (with_tensor, torch1),
        (with_tensor, ("zero1+pipeline4", 4)),
    ]
    gpt = small_config("gpt", digits, text)
    whole = {"values": saved_often(gpt, *torch1), "folder": str(tmp_path / "w")}
    first: dict[int, Runs] = {1: {}, 2: {}, 4: {}}
    then: dict[int, Runs] = {1: {}, 2: {}, 4: {}}
    for i, (source, target) in enumerate(moves):
        for part, laid in ((first, source), (then, target)):
            part[laid[1]][str(i)] = {"values": saved_often(gpt, *laid), "folder": str(tmp_path / str(i))}
    for world, runs in first.items():
        train(world, {"whole": whole} if world == 1 else {}, runs)
    wanted = metrics(tmp_path / "w")
    assert len(wanted) == 20
    for world, runs in then.items():
        go_on(world, runs)
    for i, move in enumerate(moves):
        got = metrics(tmp_path / str(i))
        assert last(tmp_path / str(i)).step == 20
        assert max(abs(got[step] - wanted[step]) for step in range(1, 21)) < 1e-5, move


def broken(rank: int, world: int, runs: dict[str, Any], where: str) -> dict[str, str]:
    """Trains with a module (`forward`) or its gradient (`backward`) that breaks in the fifth step, on the last stage."""
    from distdl.families import gpt

    forward, calls = gpt.Block.forward, [0]

    def bad(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        if self.up.weight.is_meta or not self.training:
            return y
        calls[0] += 1
        if calls[0] <= 4 * 2:
            return y
        if where == "forward":
            return y * float("nan")
        y.register_hook(lambda grad: grad * float("inf"))
        return y

    gpt.Block.forward = bad  # type: ignore[method-assign]
    return trained(rank, world, runs)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_number_that_is_none_ends_the_run_on_every_rank(where: str, digits: str, text: str, tmp_path: Path) -> None:
    """Named with its step, the first bad module and the samples; nothing is learned from it."""
    values = saved_often(small_config("gpt", digits, text), "zero1+pipeline2", 2)
    values["model"]["layers"] = 1
    values["checkpoint"] = {"every_steps": 1}
    for said in run_ranks(broken, 2, {"run": {"values": values, "folder": str(tmp_path)}}, where):
        if where == "forward":
            assert "the loss of step 5 is nan" in said["run"] and "the output of blocks.0 (Block)" in said["run"]
        else:
            assert "the gradient of step 5 is not finite" in said["run"]
    assert last(tmp_path).step == 4
