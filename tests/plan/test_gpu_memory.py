"""The memory of GPUs: what the plan counts, what it refuses, and that what it proposes fits."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.plan.facts import Hardware, ModelFacts
from distdl.plan.memory import state_bytes
from distdl.plan.mesh import Mesh
from distdl.plan.plan import Plan, make_plan
from tests.plan.test_deepspeed_json import DATA, GPT, H100
from tests.small import layout, small_config

CPU = Hardware("cpu", 64, 0)


def scaled(billions: float) -> ModelFacts:
    """GPT with so many parameters, nearly all of which the tensor axis cuts."""
    n = int(billions * 1e9)
    layers = tuple((f"block {i}", n // 64) for i in range(64))
    return dataclasses.replace(
        GPT, parameters=n, trainable=n, sharded=int(0.99 * n), layers=layers, ties=(), largest=n // 200
    )


def planned(model: ModelFacts, name: str, machine: Hardware = H100, **changes: Any) -> Plan:
    values = small_config("gpt", "", "data/x", train__global_batch=64, train__micro_batch=8, train__steps=10)
    values = layout(values, name, 8)
    values["train"]["precision"] = "bf16"
    for key, value in changes.items():
        values["parallel"][key] = value
    return make_plan(config_from_dict(values), model, DATA, machine)


def test_buffers_are_counted_on_gpus_only() -> None:
    on_cpus, on_gpus = planned(GPT, "zero1", CPU), planned(GPT, "zero1")
    told, gpu = on_cpus.state_bytes_per_worker, on_gpus.state_bytes_per_worker
    assert gpu.keys() - told.keys() == {"buffers"} and all(gpu[key] == told[key] for key in told)
    assert on_gpus.deepspeed is not None
    bucket = on_gpus.deepspeed["zero_optimization"]["reduce_bucket_size"]
    assert gpu["buffers"] == 2 * 4 * bucket + 4 * GPT.trainable // 8  # two buckets in fp32, and a shard of the gradient
    assert planned(GPT, "zero0").state_bytes_per_worker.keys() == told.keys()


@pytest.mark.parametrize(
    ("billions", "name", "proposed"),
    [
        (12, "zero1", "parallel.zero=2"),
        (20, "zero1", "parallel.zero=3"),
        (8, "torch", "parallel.engine=deepspeed and parallel.zero=1"),
        (25, "zero3", "parallel.tensor=2"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_nearest_that_does(billions: float, name: str, proposed: str) -> None:
    model = scaled(billions)
    with pytest.raises(InputError, match=r"the state of .* weights takes .* of each GPU, which has 85.9 GB") as caught:
        planned(model, name)
    (problem,) = caught.value.problems
    assert problem.fix.startswith(proposed)
    changes = {key: int(v) if v.isdigit() else v for key, v in re.findall(r"parallel\.(\w+)=(\w+)", problem.fix)}
    assert planned(model, name, **changes).state_bytes_per_worker


def test_what_fits_and_what_is_not_known_goes_through() -> None:
    assert planned(scaled(4), "zero1").layout == "zero1"
    for machine in (CPU, dataclasses.replace(H100, gpu_memory_bytes=None)):
        assert planned(scaled(70), "zero1", machine).layout == "zero1"
    with pytest.raises(InputError, match=r"more memory, more of them along parallel.tensor or parallel.pipeline"):
        planned(scaled(5000), "zero3")


def test_the_whole_model_is_there_in_fp32_before_zero_cuts_it() -> None:
    """Sharded over any number of ranks, its state is small; at the start it is not."""
    values = small_config("gpt", "", "data/x", train__global_batch=64, train__steps=10)
    config, mesh = config_from_dict(layout(values, "zero3", 8)), Mesh(8, 1, 1, 1)
    assert sum(state_bytes(config, scaled(40), mesh, "cuda").values()) < 0.95 * 4 * 40e9
    with pytest.raises(InputError, match=r"takes 160\.0 GB of each GPU"):
        planned(scaled(40), "zero3")


def test_one_gpu_a_worker() -> None:
    values = layout(small_config("gpt", "", "data/x", train__global_batch=64, train__steps=10), "zero1", 2)
    values["runtime"] = {"kind": "ray", "workers": 2, "gpus_per_worker": 4}
    with pytest.raises(InputError, match="the others would stand idle") as caught:
        make_plan(config_from_dict(values), GPT, DATA, H100)
    assert caught.value.problems[0].fix.startswith("runtime.gpus_per_worker=1 and runtime.workers=8")
