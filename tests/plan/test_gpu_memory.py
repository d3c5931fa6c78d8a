"""The memory of GPUs: what the plan counts, what it refuses, and that what it proposes fits."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from distdl.cli.plan import print_plan
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.plan.facts import Hardware, ModelFacts
from distdl.plan.memory import FLOOR, on_gpu, peaks, state_bytes
from distdl.plan.mesh import Mesh
from distdl.plan.plan import Plan, make_plan
from distdl.plan.refuse import layout_key
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
        (40, "zero3", "parallel.offload=cpu"),
        (20, "zero1+pipeline2", "parallel.tensor=2"),
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
    """Sharded over any number of ranks, its state is small; at the start it is not, where it must be made whole."""
    values = small_config("gpt", "", "data/x", train__global_batch=64, train__steps=10)
    config, mesh = config_from_dict(layout(values, "zero3", 64)), Mesh(64, 1, 1, 1)
    state = sum(state_bytes(config, scaled(2), mesh, "cuda").values())
    assert state == on_gpu(config, scaled(2), mesh) < 0.5 * 4 * 2e9
    assert on_gpu(config, dataclasses.replace(scaled(2), born_whole="it computes"), mesh) == 4 * 2e9
    assert planned(scaled(25), "zero3").born == "names"


def test_models_that_must_be_made_whole_are_refused_above_a_size() -> None:
    for billions, name in ((2.5, "zero3"), (2.5, "zero1+tensor2"), (2.5, "zero1+pipeline2")):
        model = dataclasses.replace(scaled(billions), born_whole="its constructor computes with them: eigenvalues")
        with pytest.raises(InputError, match=r"make all 2,500,000,000 weights .*, which goes up to 2,000,000,000: its"):
            planned(model, name)
    assert planned(dataclasses.replace(scaled(2.5), born_whole="eigenvalues"), "zero1").born == "whole"
    assert planned(dataclasses.replace(scaled(1), born_whole="eigenvalues"), "zero3").born == "whole"
    with pytest.raises(InputError, match=r"parallel.balance is time") as caught:
        planned(scaled(2.5), "zero1+pipeline2", balance="time")
    assert caught.value.problems[0].fix == "parallel.balance=parameters"


def test_one_gpu_a_worker() -> None:
    values = layout(small_config("gpt", "", "data/x", train__global_batch=64, train__steps=10), "zero1", 2)
    values["runtime"] = {"kind": "ray", "workers": 2, "gpus_per_worker": 4}
    with pytest.raises(InputError, match="the others would stand idle") as caught:
        make_plan(config_from_dict(values), GPT, DATA, H100)
    assert caught.value.problems[0].fix.startswith("runtime.gpus_per_worker=1 and runtime.workers=8")


@pytest.mark.parametrize(
    ("billions", "workers", "name", "stages"), [(70, 64, "zero3", 1), (1000, 1024, "zero1+tensor8+pipeline16", 16)]
)
def test_each_ranks_peak_is_its_share_two_layers_a_copy_and_a_floor(
    billions: int, workers: int, name: str, stages: int
) -> None:
    """Of models that nobody could build to look: from their shapes."""
    values = layout(small_config("gpt", "", "data/x", train__global_batch=1024, train__precision="fp32"), name, workers)
    config, cut = config_from_dict(values), dict(layout_key(name))
    model = dataclasses.replace(scaled(billions), splits=())
    mesh = Mesh(workers // (cut.get("tensor", 1) * stages), cut.get("tensor", 1), stages)
    found = peaks(config, model, mesh)
    assert len(found) == stages
    for peak in found:
        share = peak["weights"] + peak["gradients"] + peak["optimizer"]
        by_hand = 16 * billions * 1e9 / 64 if stages == 1 else billions * 1e9 / 16 * (0.01 + 0.99 / 8) * (8 + 8 / 8)
        assert share == pytest.approx(by_hand, rel=1e-3)  # the tensor axis cuts 99 of 100
        assert peak["two largest layers"] == pytest.approx(2 * 4 * billions * 1e9 / 64 / mesh.tensor, rel=1e-3)
        assert peak["copy for a checkpoint"] == pytest.approx(12 * billions * 1e9 / workers, rel=1e-3)
        assert peak["floor"] == FLOOR
    whole = dataclasses.replace(model, born_whole="it computes")
    assert all(sum(peak.values()) >= 4 * billions * 1e9 for peak in peaks(config, whole, mesh))


def test_a_plan_says_how_weights_are_made_and_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(planned(scaled(1), "zero1+pipeline2", CPU))
    told = capsys.readouterr().out
    assert "weights        each rank makes its own, one tensor at a time\n" in told
    assert re.search(r"peak/worker    [\d.]+ GB: share [\d.]+ GB, two largest layers [\d.]+ MB, copy for a check", told)
    layers = (("embedding", 400_000_000), *((f"block {i}", 10**7) for i in range(60)))
    print_plan(planned(dataclasses.replace(scaled(1), layers=layers), "zero1+pipeline4", CPU))
    assert re.findall(r"peak/worker    ranks (\d-\d): ", capsys.readouterr().out) == ["0-3", "4-5", "6-7"]
    print_plan(planned(dataclasses.replace(scaled(1), born_whole="it computes"), "zero3", CPU))
    assert "every rank makes the whole model (4,000.0 MB) and cuts it: it computes" in capsys.readouterr().out
    print_plan(planned(scaled(20), "zero1", CPU))
    assert "drawn by the tensor's name" in capsys.readouterr().out
    print_plan(planned(scaled(1), "zero1", CPU))
    assert "peak/worker" not in capsys.readouterr().out
