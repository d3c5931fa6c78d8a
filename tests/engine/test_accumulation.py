"""Gradients of half precision are summed in fp32, over micro-batches and over ranks: hundreds that agree, as those of a
bias do, would otherwise be rounded away one by one, and the parity of few micro-batches does not show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distdl.data.prepare import prepare_dataset
from tests.checkpoint.test_resume import differing, last
from tests.ranks import run_ranks
from tests.resumed import go_on, train
from tests.small import layout, small_config

SGD = {"name": "sgd", "lr": 0.1}  # shows the size of a gradient, which Adam hides
LONG = (64, 512)
"""Micro-batches of one sample on each of two ranks."""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> str:
    """1,024 points of a plane that lies 10 above the origin."""
    folder, draw = tmp_path_factory.mktemp("line"), np.random.default_rng(0)
    x = draw.normal(size=(1024, 8)).astype("f4")
    np.savez(folder / "line.npz", x=x, y=(x @ draw.normal(size=(8, 1)))[:, 0].astype("f4") + 10)
    options = {"path": str(folder / "line.npz"), "columns": ["x", "y"], "train": ["x", "y"]}
    prepare_dataset("npz", folder / "line", options)
    return str(folder / "line")


def linear(data: str, name: str, world: int, precision: str, samples: int, steps: int = 1) -> dict[str, Any]:
    """A linear model; on several ranks one sample at a time."""
    values = small_config("mlp", data, "", train__precision=precision, train__steps=steps, train__clip_norm=None)
    values["model"] = {"family": "mlp", "inputs": [8], "column": "x", "hidden": [], "target": "value"}
    values["data"]["eval_split"] = None
    values["train"] |= {"global_batch": samples, "micro_batch": 1 if world > 1 else None}
    return layout(values | {"optimizer": SGD, "schedule": {"name": "constant"}}, name, world)


def moved(rank: int, world: int, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Case -> how far each weight has moved, and the last norm of the gradient."""
    from distdl.config.load import config_from_dict
    from distdl.layout.process import ProcessState
    from distdl.train import loop, worker
    from distdl.train.survey import survey

    out = {}
    for name, values in cases.items():
        with ProcessState():
            config = config_from_dict(values)
            plan = survey(config)
            worker.set_up_torch(plan)
            learner = worker.build_learner(config, None)
            first = {f"weights/{n}": p.detach().clone() for n, p in learner.named_parameters()}
            engine = worker.make_engine(learner, plan, rank)
            source = worker.make_source(plan, rank)
            loop.train(learner, engine, source, [], start=0, steps=plan.steps)
            source.close()
            weights = {n: (t - first[n]).flatten().tolist() for n, t in engine.tensors() if n.startswith("weights/")}
            out[name] = {**weights, "norm": [float(engine.grad_norm)]}
    return out


def told(world: int, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """`moved` of all ranks together: a stage knows its own layers only."""
    ranks = run_ranks(moved, world, cases)
    return {case: {name: value for rank in ranks for name, value in rank[case].items()} for case in cases}


def distance(got: dict[str, list[float]], want: dict[str, list[float]], name: str) -> float:
    """Of two moves, relative to the second."""
    a, b = torch.tensor(got[name]), torch.tensor(want[name])
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
def test_long_accumulation_in_bf16_is_within_its_rounding_of_fp32_on_every_stage(line: str) -> None:
    reference = told(1, {str(n): linear(line, "torch", 1, "fp32", 2 * n) for n in LONG})
    names = ["torch", "zero0", "zero1", "zero2", "zero3"]
    cases = {f"{n} {name}": linear(line, name, 2, "bf16", 2 * n) for n in LONG for name in names}
    for case, got in told(2, cases).items():
        want = reference[case.split()[0]]
        assert {name: distance(got, want, name) for name in want} == pytest.approx(dict.fromkeys(want, 0), abs=5e-3), (
            case
        )


@pytest.mark.slow
def test_long_accumulation_in_bf16_where_the_model_is_cut(text: str) -> None:
    """A matrix that two stages share gets the gradients of both. The masters begin as the weights of the seed, not as
    what half precision makes of them, which is further away than these steps go."""
    gpt = small_config("gpt", "", text, train__clip_norm=None, train__steps=2, train__micro_batch=None)
    gpt |= {"optimizer": SGD, "schedule": {"name": "constant"}}
    gpt["train"]["global_batch"] = 64
    experts = gpt | {"model": gpt["model"] | {"experts": 2, "experts_every": 1, "experts_top_k": 2, "capacity": 0}}
    half = {"train": gpt["train"] | {"precision": "bf16", "micro_batch": 1}}
    reference = told(1, {"dense": gpt, "experts": experts})
    names = ["zero1", "zero1+pipeline2", "zero1+tensor2", "zero2+sequence2", "zero3"]
    cases = {f"dense {name}": layout(gpt | half, name, 2) for name in names}
    cases |= {f"experts {name}": layout(experts | half, name, 2) for name in ("zero1+expert2", "zero2+expert2")}
    for case, got in told(2, cases).items():
        want = reference[case.split()[0]]
        far = {name: distance(got, want, name) for name in want}
        assert far == pytest.approx(dict.fromkeys(want, 0), abs=1e-2), case


@pytest.mark.slow
def test_interrupted_amid_long_accumulation_and_resumed_is_bit_identical(line: str, tmp_path: Path) -> None:
    """The sums of a step are done when it is saved: nothing of them is missing, on any stage."""
    whole, cut = {}, {}
    for name in ("zero1", "zero2", "zero3"):
        values = linear(line, name, 2, "bf16", 32, steps=20)
        values |= {"checkpoint": {"every_steps": 5}, "optimizer": {"name": "adamw", "lr": 1e-2}}
        whole[f"{name} whole"] = {"values": values, "folder": str(tmp_path / name / "whole")}
        cut[f"{name} cut"] = {"values": values, "folder": str(tmp_path / name / "cut")}
    train(2, whole, cut)
    go_on(2, cut)
    for name in ("zero1", "zero2", "zero3"):
        assert differing(last(tmp_path / name / "whole"), last(tmp_path / name / "cut")) == [], name


def refused(rank: int, world: int, values: dict[str, Any]) -> str:
    """What the engine says of a config that the plan was content with."""
    from distdl.config.load import config_from_dict
    from distdl.errors import InputError
    from distdl.train import worker
    from distdl.train.survey import survey

    config = config_from_dict(values)
    try:
        worker.make_engine(worker.build_learner(config, None), survey(config), rank)
    except InputError as error:
        return str(error)
    return "nothing"


@pytest.mark.slow
def test_a_key_that_deepspeed_refuses_is_told_in_words(line: str) -> None:
    values = linear(line, "zero2", 1, "bf16", 4)
    more = {"overlap_comm": True, "reduce_scatter": True}
    values["parallel"]["deepspeed"] = {"prescale_gradients": True, "zero_optimization": more}
    (said,) = run_ranks(refused, 1, values)
    keys = "overlap_comm, prescale_gradients, reduce_scatter"
    assert f"parallel.deepspeed adds {keys}: pre-scale gradients is not yet supported" in said
    assert "fix: leave out the key that it speaks of" in said


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_long_accumulation_in_fp16_with_a_penalty_on_a_gpu(line: str, tmp_path: Path) -> None:
    """Sums in fp32 of gradients that carry the loss scale, to which the penalty adds its share of that scale."""
    stages = {"fp32": ("torch", 1), **{f"fp16 zero{zero}": (f"zero{zero}", 1) for zero in (1, 2, 3)}}
    ends = {}
    for case, (name, world) in stages.items():
        values = linear(line, name, world, case[:4], 64)
        values |= {"name": case.replace(" ", "-"), "runs": str(tmp_path)}
        values["train"] |= {"micro_batch": None if case == "fp32" else 1, "l2": 0.5}
        (tmp_path / "run.yaml").write_text(json.dumps(values))
        command = [sys.executable, "-m", "distdl", "train", str(tmp_path / "run.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        ends[case] = last(tmp_path / values["name"])
        assert ends[case].step == 1 and ends[case].state.optimizer_steps == {"learner": 1}, case  # nothing overflowed
    for case, end in ends.items():
        for name in ends["fp32"].tensors:
            assert torch.allclose(end.read(name), ends["fp32"].read(name), rtol=5e-3, atol=1e-3), (case, name)
