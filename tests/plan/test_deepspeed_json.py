"""DeepSpeed's JSON for GPUs: golden files by layout, a reason for each key, and the same numbers as that for CPUs.

A new golden file is written where `DISTDL_GOLDEN=1` is set; read what has changed before it is kept.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from distdl.config.load import config_from_dict
from distdl.plan.deepspeed_json import DEEPSPEED_BUCKET, GPU_BUCKET, REASONS, reduce_bucket
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.plan import make_plan
from tests.small import layout, measured, small_config

GOLDEN = Path(__file__).parent / "deepspeed"
DATA = DataFacts("data/x", "f00d", 100_000, 200)
H100 = Hardware("cuda", 64, 8, 80 * 2**30, (9, 0))
CPU = Hardware("cpu", 64, 0)
AXES = ("tensor", "pipeline", "sequence", "expert")
GPT = ModelFacts(  # GPT-2 124M
    *("gpt", 124_439_808, 124_439_808, 124_318_464, "loss", "lower"),
    (*AXES, "torch", "zero0", "zero1", "zero2", "zero3"),
    (),
    splits=(("tensor", "attention heads", 12), ("sequence", "tokens", 1024), ("expert", "experts", 8)),
    layers=(("embed", 39_383_808), *((f"block {i}", 7_087_872) for i in range(12)), ("head", 1536)),
    ties=((0, 13, 38_597_376),),
    sharded=123_533_568,
    largest=38_597_376,
)
GAN = ModelFacts("gan", 3_000_000, 3_000_000, 2_990_000, "loss", "lower", ("torch", "zero1"), ("g", "d"), largest=10**6)
CASES: dict[str, tuple[str, ModelFacts, dict[str, Any]]] = {
    **{name: (name, GPT, {}) for name in ("zero0", "zero1", "zero2", "zero3")},
    "zero1+pipeline2": ("zero1+pipeline2", GPT, {}),
    "zero2+tensor2": ("zero2+tensor2", GPT, {}),
    "zero3+sequence2": ("zero3+sequence2", GPT, {}),
    "zero2+expert2": ("zero2+expert2", GPT, {}),
    "zero1 fp32": ("zero1", GPT, {"precision": "fp32"}),
    "zero1 fp16": ("zero1", GPT, {"precision": "fp16"}),
    "zero1 of a family not proven on zero2": ("zero1", GAN, {}),
    "zero2 offload": ("zero2", GPT, {"offload": "cpu"}),
    "zero3 offload": ("zero3", GPT, {"offload": "cpu", "offload_parameters": "cpu"}),
}


def on_gpus(case: str) -> dict[str, Any]:
    return planned(case, H100)


def planned(case: str, machine: Hardware) -> dict[str, Any]:
    name, model, changes = CASES[case]
    values = small_config("gpt", "", "data/x", train__global_batch=512, train__micro_batch=8, train__steps=10)
    values = layout(values, name, 8)
    values["train"] |= {"precision": "auto", "clip_norm": 1.0}
    for key, value in changes.items():
        values["train" if key == "precision" else "parallel"][key] = value
    plan = make_plan(config_from_dict(values), model, DATA, machine)
    assert plan.deepspeed is not None
    return plan.deepspeed


@pytest.mark.parametrize("case", CASES)
def test_the_json_for_gpus_is_the_one_that_was_read(case: str) -> None:
    found, file = on_gpus(case), GOLDEN / f"{case.replace(' ', '-')}.json"
    if os.environ.get("DISTDL_GOLDEN"):
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    assert found == json.loads(file.read_text(encoding="utf-8"))


def test_every_key_has_a_reason_and_every_reason_a_key() -> None:
    found: set[str] = set()
    for case in CASES:
        json_ = on_gpus(case)
        found |= json_.keys() | json_["zero_optimization"].keys()
    for case in ("zero1", "zero3"):
        found |= planned(case, CPU)["zero_optimization"].keys()
    assert found - {"zero_optimization"} == REASONS.keys()


def test_on_cpus_gradients_are_summed_where_they_lie() -> None:
    """DeepSpeed's other way copies them twice; a mixture of experts has to go it."""
    told = {case: planned(case, CPU)["zero_optimization"].get("reduce_scatter") for case in CASES if "fp" not in case}
    summed = {"zero1", "zero2", "zero1+pipeline2", "zero2+tensor2", "zero2 offload"}
    summed |= {"zero1 of a family not proven on zero2"}
    assert {case for case, value in told.items() if value is False} == summed
    assert not any("reduce_scatter" in on_gpus(case)["zero_optimization"] for case in CASES)


def test_what_gpus_need_is_there() -> None:
    """What DeepSpeed leaves off unless asked, and what tests on CPUs change."""
    zero = {case: on_gpus(case)["zero_optimization"] for case in CASES}
    assert all(zero[name]["overlap_comm"] for name in ("zero1", "zero2", "zero3", "zero2+tensor2", "zero2+expert2"))
    silent = ("zero0", "zero1+pipeline2", "zero1 of a family not proven on zero2")
    assert not any("overlap_comm" in zero[name] for name in silent)
    assert zero["zero3"]["stage3_param_persistence_threshold"] == 100_000
    assert zero["zero3 offload"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert {on_gpus(name)["communication_data_type"] for name in ("zero1", "zero2", "zero3")} == {"fp32"}


@pytest.mark.parametrize(
    ("trainable", "largest"), [(1000, 500), (124_439_808, 38_597_376), (7 * 10**9, 10**8), (7 * 10**10, 10**9)]
)
def test_several_buckets_fill_during_the_backward_pass(trainable: int, largest: int) -> None:
    model = ModelFacts("gpt", trainable, trainable, trainable, "loss", "lower", (), (), largest=largest)
    bucket = reduce_bucket(model, "cuda")
    assert bucket % 2 == 0 and bucket <= DEEPSPEED_BUCKET
    assert bucket >= min(largest, DEEPSPEED_BUCKET)  # what does not fit into one is reduced alone, out of turn
    assert bucket <= max(1024, min(GPU_BUCKET, trainable // 8) + 1024, min(largest + 1024, DEEPSPEED_BUCKET))


@pytest.mark.slow
def test_overlap_small_buckets_and_persistence_change_no_number(text: str) -> None:
    """On gloo, where the same lines of DeepSpeed run, but streams do not overlap."""
    gpt = small_config("gpt", "", text, train__micro_batch=4)
    cases, sizes = {}, {"reduce_bucket_size": 2048, "overlap_comm": True}
    for precision in ("fp32", "bf16"):
        for name in ("zero1", "zero2", "zero3"):
            one = layout(copy.deepcopy(gpt), name, 2)
            one["train"]["precision"] = precision
            cases[f"{name} {precision}"] = one
            other = copy.deepcopy(one)
            persistent = {"stage3_param_persistence_threshold": 100, "stage3_prefetch_bucket_size": 4096}
            other["parallel"]["deepspeed"] = {"zero_optimization": sizes | (persistent if name == "zero3" else {})}
            cases[f"{name} {precision} as on GPUs"] = other
    found = measured(2, cases)[0]
    for name in [name for name in cases if "GPUs" not in name]:
        one, other = found[name], found[f"{name} as on GPUs"]
        assert one["loss"] == other["loss"] and one["norm"] == other["norm"], name
        assert all((one["end"][n] == other["end"][n]).all() for n in one["end"]), name
