"""What `auto` comes to, what the plan says of arithmetic on GPUs, and what a worker sets in torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl import driver
from distdl.checkpoint.layout import step_folder
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.layout.process import ProcessState
from distdl.plan.facts import Hardware, ModelFacts
from distdl.plan.plan import Plan, make_plan
from distdl.run.folder import RunFolder, refuse_other
from distdl.train import kernels, worker
from tests.plan.test_plan import DATA, MODEL, config
from tests.small import small_config

CPU = Hardware("cpu", 8, 0)
H100, A100, V100, UNKNOWN = (Hardware("cuda", 8, 8, gpu_capability=c) for c in ((9, 0), (8, 0), (7, 0), (0, 0)))
PINN = dataclasses.replace(MODEL, family="pinn", fp64=True)
GAN = dataclasses.replace(MODEL, family="gan", own_update=True)


def planned(machine: Hardware, model: ModelFacts = MODEL, **changes: Any) -> Plan:
    return make_plan(config(**{"train__deterministic": "auto"} | changes), model, DATA, machine)


@pytest.mark.parametrize(
    ("machine", "model", "optimizer", "precision"),
    [
        (CPU, MODEL, "adamw", "fp32"),
        (H100, MODEL, "adamw", "bf16"),
        (A100, MODEL, "adamw", "bf16"),
        (UNKNOWN, MODEL, "adamw", "bf16"),
        (V100, MODEL, "adamw", "fp32"),
        (H100, PINN, "adamw", "fp32"),
        (H100, GAN, "adamw", "fp32"),
        (H100, MODEL, "lbfgs", "fp32"),
    ],
)
def test_what_auto_comes_to(machine: Hardware, model: ModelFacts, optimizer: str, precision: str) -> None:
    layout = {"parallel__zero": 0} if optimizer == "lbfgs" else {}
    plan = planned(machine, model, optimizer={"name": optimizer, "lr": 0.1}, train__clip_norm=None, **layout)
    assert plan.settings.train.precision == plan.config["train"]["precision"] == precision
    assert plan.settings.train.deterministic is plan.config["train"]["deterministic"] is (machine is CPU)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict()))).settings.train
    assert (again.precision, again.deterministic) == (precision, machine is CPU)
    if layout == {}:
        assert plan.deepspeed and plan.deepspeed["bf16"] == {"enabled": precision == "bf16"}
    assert any("precision is auto" in note for note in plan.notes) == (machine is not CPU)


def test_the_default_is_auto_and_what_is_asked_for_stays() -> None:
    fresh = config_from_dict({**small_config("mlp", "data/x", ""), "train": {"global_batch": 64, "steps": 10}})
    assert (fresh.train.precision, fresh.train.deterministic, fresh.train.tf32) == ("auto", "auto", True)
    asked = planned(H100, train__precision="fp32", train__deterministic=True)
    assert (asked.settings.train.precision, asked.settings.train.deterministic) == ("fp32", True)
    with pytest.raises(InputError, match=r"bf16 and this is a GPU of compute capability \(7, 0\)"):
        planned(V100, train__precision="bf16")
    assert planned(UNKNOWN, train__precision="fp8").settings.train.precision == "fp8"  # the workers look at theirs


def test_the_plan_says_what_arithmetic_costs() -> None:
    def notes(machine: Hardware = H100, **changes: Any) -> str:
        return "\n".join(planned(machine, **changes).notes)

    assert "bf16 several times faster than fp32" in notes(train__precision="fp32")
    assert "train.tf32=false keeps all" in notes(train__precision="fp32")
    assert "train.tf32 is false" in notes(train__precision="fp32", train__tf32=False)
    assert "two runs of a seed differ in their last bits" in notes()
    assert "the same bits again, for slower attention" in notes(train__deterministic=True)
    assert "last bits" not in notes(train__deterministic=False)
    assert "TF32" not in notes() and not notes(CPU)


def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], **changes: Any) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    kernels.set_up_torch(planned(UNKNOWN, **changes))


def test_a_worker_chooses_torchs_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> tuple[Any, ...]:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        strict = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        precision = torch.get_float32_matmul_precision()
        return precision, cudnn.allow_tf32, cudnn.benchmark, cuda.cudnn_sdp_enabled(), strict, warns

    before = chosen()
    with ProcessState():
        _as_on_a_gpu(monkeypatch, (9, 0), train__deterministic=False)
        assert chosen()[:4] == ("high", True, True, True)
    assert chosen() == before
    with ProcessState():
        _as_on_a_gpu(monkeypatch, (9, 0), train__deterministic=True, train__tf32=False)
        # warn_only would leave the backward passes of attention as they are: not deterministic
        assert chosen() == ("highest", False, False, False, True, False)
    assert chosen() == before
    with ProcessState():
        kernels.set_up_torch(planned(CPU))
        assert chosen() == (*before[:4], True, True)
    assert chosen() == before


def test_a_worker_refuses_a_gpu_that_the_launching_machine_could_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessState():
        _as_on_a_gpu(monkeypatch, (7, 0), train__precision="fp32")
        with pytest.raises(InputError, match=r"bf16 and this is .* \(7, 0\)(?s:.*)train.precision=fp32"):
            _as_on_a_gpu(monkeypatch, (7, 0))
        with pytest.raises(
            InputError, match=r"fp8 and this is .* \(8, 0\)(?s:.*)8.9 and up(?s:.*)train.precision=bf16"
        ):
            _as_on_a_gpu(monkeypatch, (8, 0), train__precision="fp8")


def test_a_kernel_without_a_deterministic_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        with ProcessState():
            torch.use_deterministic_algorithms(True)
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr(worker, "_train", step)
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError, match=r"put_(?s:.*)fix: train.deterministic=false"):
        worker.run(planned(CPU), folder, 0)
    (record,) = folder.failure_records()
    assert record["exit_code"] == 2 and "no version that gives the same bits again" in record["message"]


def test_a_run_goes_on_whatever_auto_comes_to_and_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep(config(train__precision="fp32", train__deterministic=True))
    refuse_other(folder, config(train__precision="auto", train__deterministic="auto", train__tf32=False))
    with pytest.raises(InputError, match=r"train.precision: 'fp32' there, 'bf16' now"):
        refuse_other(folder, config(train__precision="bf16"))
    folder.write("plan.json", planned(H100).to_dict())
    (folder.checkpoints / step_folder(5)).mkdir(parents=True)
    assert any("trained in bf16 until now, and goes on in fp32" in note for note in driver.notes(planned(CPU), folder))
    assert not any("until now" in note for note in driver.notes(planned(A100), folder))


def test_a_model_is_evaluated_in_what_it_was_trained_in(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep(config(train__precision="auto"))
    assert driver.for_one_process(folder).train.precision == "auto"
    folder.write("plan.json", planned(H100).to_dict())
    assert driver.for_one_process(folder).train.precision == "bf16"
