"""Every family on a GPU that is pretended (`tests.pretended_gpu`): no operation mixes devices, and the host waits for a
number where the golden table says so, once a step for the guard.

`DISTDL_GOLDEN=1` writes the table anew; read what has changed before it is kept.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distdl.config.load import config_from_dict
from distdl.layout.process import ProcessState
from distdl.train import worker
from distdl.train.loop import train
from distdl.train.survey import survey
from tests.pretended_gpu import PretendedGPU
from tests.small import MODELS, contract_config

TABLE = Path(__file__).parent / "host_reads.json"
GUARD = "engine/base.py:_sound"
STEPS = 2
QUICK = ("gpt", "lenet5", "lstm", "mlp")
LIMITS = {
    "analog": "draws from a generator of its own, which the GPU would have",
    "mamba": "torch's checkpoint compares what it saved with the true devices",
}
"""Families that the pretended GPU cannot run, and why."""
ONCE, WORDS, LEFT_OUT, TREES = (
    "something is done once a step, however many micro-batches it has: it looks which step that was",
    "a metric counts the words that are no padding",
    "samples or words without a label are left out of the arithmetic, whose size is theirs",
    "the trees of a batch are taken apart on the host, which says what is added to what",
)
WHY = {
    **dict.fromkeys(("diffusion", "dnn_am", "ensemble", "esn", "word2vec"), ONCE),
    **dict.fromkeys(("captioner", "mtdnn"), WORDS),
    **dict.fromkeys(("bilinear_dbn", "pinn", "transformer"), LEFT_OUT),
    **dict.fromkeys(("cvg", "rae", "recnn"), TREES),
    **dict.fromkeys(("dqn", "tabular"), "games are played on the host, which has to know the moves"),
    "huggingface": "transformers looks whether a mask masks anything",
    "neocognitron": "a plane is reinforced where one has a representative",
    "rbm": "two samples must not move the same chain",
    "rnn2": "the steps behind the end of the longest string are not taken",
}
"""Family -> why it reads more than the guard does."""


@pytest.fixture(scope="module")
def group() -> Any:
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if mine:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def looked(family: str, data: Path, engine_: str, micro: int | None) -> tuple[Counter[str], Counter[str]]:
    """(what went wrong, reads of STEPS steps) after one step of warm-up."""
    values = contract_config(family, data)
    values["train"] |= {"steps": STEPS + 1, "micro_batch": micro}
    values["parallel"] = (
        {"engine": "torch"} if engine_ == "torch" else {"engine": "deepspeed", "zero": int(engine_[-1])}
    )
    plan = survey(config_from_dict(values))
    with ProcessState(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        patch.setattr(torch.cuda, "manual_seed", lambda seed: None)
        worker.set_up_torch(plan)
        learner = worker.build_learner(plan.settings, None)
        engine = worker.make_engine(learner, plan, 0)
        source = worker.make_source(plan, 0)
        with PretendedGPU() as gpu:
            gpu.take(engine)
            train(learner, engine, source, [], start=0, steps=1)
            gpu.reads.clear()
            train(learner, engine, source, [], start=1, steps=plan.steps)
        source.close()
    return gpu.wrong, gpu.reads


def checked(family: str, data: Path, engine: str, micro: int | None = None) -> None:
    wrong, reads = looked(family, data, engine, micro)
    assert wrong == {}
    found = {where: round(n / STEPS, 2) for where, n in sorted(reads.items())}
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    if os.environ.get("DISTDL_GOLDEN"):
        table.setdefault(engine, {})[family] = found
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert found == table[engine][family]


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in MODELS if f in QUICK and f not in LIMITS])
def test_no_family_mixes_devices_or_waits_more_often_than_is_known(family: str, group: None, data: Path) -> None:
    checked(family, data, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in MODELS if f not in QUICK and f not in LIMITS])
def test_no_other_family_does_either(family: str, group: None, data: Path) -> None:
    checked(family, data, "torch")


@pytest.mark.parametrize("name", ["torch", "zero1", "zero2"])
def test_four_micro_batches_wait_once(name: str, group: None, data: Path) -> None:
    """DeepSpeed reads nothing beside it: its own step would read the norm and the overflow."""
    wrong, reads = looked("gpt", data, name, 4)
    assert wrong == {} and reads == {GUARD: STEPS}


ON_ZERO = ("gpt", "lstm", "vit", "lenet5", "autoencoder", "bert")


@pytest.mark.parametrize("family", ["mlp", *(pytest.param(f, marks=pytest.mark.slow) for f in ON_ZERO)])
def test_zero_1_mixes_no_devices_and_waits_for_the_guard_alone(family: str, group: None, data: Path) -> None:
    wrong, reads = looked(family, data, "zero1", None)
    assert wrong == {} and reads == {GUARD: STEPS}


def test_the_table_has_one_read_a_step_for_the_guard_and_no_more_without_a_reason() -> None:
    """Beside it, families that look at a number to decide what to do next."""
    for family, reads in json.loads(TABLE.read_text(encoding="utf-8"))["torch"].items():
        others = {where for where in reads if where != GUARD}
        assert all(where.startswith(("families/", "nn/", "learner/", "ways/")) for where in others), (family, others)
        assert bool(others) == (family in WHY), (family, others)
        assert reads.get(GUARD, 0) <= 2  # two where two players take a step each


def test_the_pretended_gpu_notices() -> None:
    from tests.pretended_gpu import GPU

    with PretendedGPU() as gpu:
        there, here = torch.ones(3, device=GPU), torch.ones(3)
        assert there.device == GPU and here.device.type == "cpu" and (there * 2).device == GPU
        assert not gpu.wrong and not gpu.reads
        _ = there + here
        _ = there.sum().item()
        _ = there[there > 0]
        _ = here.to(GPU).cpu()
    assert sum(gpu.wrong.values()) == 1 and sum(gpu.reads.values()) == 3
