"""LoRA: only adapters learn, on every ZeRO stage alike; merged they are the model again, and peft computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from distdl.checkpoint.convert import Wish, convert
from distdl.checkpoint.huggingface import from_huggingface
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.families import build
from distdl.nn.lora import LoRALinear, adapt, adapted, is_adapter, merge
from distdl.train.survey import survey
from distdl.ways import assemble, start
from tests.checkpoint.test_resume import interrupt_and_compare, last, saved_often
from tests.families.common import Rehearsal, made
from tests.families.test_answers import lively
from tests.families.test_gpt_modern import LLAMA, peer_of
from tests.small import contract_config, layout, measured

LORA = {"rank": 2, "alpha": 6, "targets": ["blocks.*.attn.*", "blocks.*.up"], "dropout": 0.1}
EACH = ("attn.qkv", "attn.out", "up")


@pytest.fixture(scope="module")
def values(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small GPT that starts from the weights of a file."""
    told = contract_config("gpt", small_data)
    place = tmp_path_factory.mktemp("weights") / "gpt.safetensors"
    save_file({name: p.detach().clone() for name, p in lively(made(told["model"])).named_parameters()}, place)
    return told | {"start": {"weights": str(place), "lora": LORA}}


def test_adapters_alone_learn(values: dict[str, Any]) -> None:
    run = Rehearsal(values)
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    source = start.open_weights(values["start"]["weights"], "runs")
    assert all(torch.equal(before[name], source.read(name)) for name in source.shapes)
    assert {name for name in before if is_adapter(name)} == {
        f"blocks.{i}.{of}.{part}" for i in range(2) for of in EACH for part in ("lora_a", "lora_b")
    }
    assert not any(before[name].any() for name in before if name.endswith("lora_b"))  # it begins as it was
    run.train(12)
    moved = {name for name, p in run.learner.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if is_adapter(name)}
    assert run.losses[-1] < run.losses[0] - 0.05
    assert run.plan.model.trainable == sum(before[name].numel() for name in moved)


def test_what_begins_fresh_learns_too(values: dict[str, Any]) -> None:
    told = values | {"start": values["start"] | {"fresh": ["ln.*"]}}
    learner = assemble(config_from_dict(told))
    free = {name for name, p in learner.named_parameters() if p.requires_grad and not is_adapter(name)}
    assert free == {"ln.weight", "ln.bias"}


def test_every_linear_map_but_the_head_has_one_by_default() -> None:
    values = {"name": "x", "model": LLAMA, "data": {"path": "x"}, "train": {"global_batch": 1, "steps": 1}}
    values |= {"optimizer": {"name": "sgd", "lr": 0.1}, "start": {"weights": "x.safetensors", "lora": {}}}
    found = {name for name, _ in adapted(assemble(config_from_dict(values)))}
    of_block = ("attn.q", "attn.kv", "attn.out", "gate_up", "down")
    assert found == {f"blocks.{i}.{name}" for i in range(3) for name in of_block}


def test_merged_it_is_a_plain_model_that_says_the_same() -> None:
    learner = lively(made(LLAMA))
    adapt(learner, ["blocks.*"], 3, 7, 0.5)
    tokens = torch.randint(61, (2, 12))
    with torch.no_grad():
        plain = learner.logits(tokens)
        for _, module in adapted(learner):
            module.lora_b.normal_(0, 0.3)
        changed = learner.eval().logits(tokens)
        merge(learner)
        assert (learner.logits(tokens) - changed).abs().max() < 1e-4 and (changed - plain).abs().max() > 0.1
    assert not any(map(is_adapter, learner.state_dict()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": {"targets": ["blocks.*.nothing"]}}, "start.lora.targets: no linear map fits 'blocks.\\*.nothing'"),
        ({"weights": None}, "start.weights names none"),
        ({"parallel": {"engine": "deepspeed", "zero": 1, "tensor": 2}}, "start.lora is not proven with tensor"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    told = values | {"start": values["start"] | {k: v for k, v in changes.items() if k != "parallel"}}
    if "parallel" in changes:
        told |= {"parallel": changes["parallel"], "runtime": {"kind": "local", "workers": 2}}
    with pytest.raises(InputError, match=words):
        survey(start.located(config_from_dict(told)))


@pytest.mark.slow
def test_every_zero_stage_takes_the_same_steps(values: dict[str, Any]) -> None:
    """The dropout of the inputs, too."""
    reference = measured(1, {"one": values})[0]["one"]
    assert reference["loss"][0] - reference["loss"][-1] > 0.05
    laid = ["torch", "zero0", "zero1", "zero2", "zero3", "zero1+sequence2"]
    found = measured(2, {name: layout(values, name, 2) for name in laid})[0]
    for name in laid:
        assert max(abs(a - b) for a, b in zip(found[name]["loss"], reference["loss"])) < 1e-5, name
        assert found[name]["evaluation"]["loss"] == pytest.approx(reference["evaluation"]["loss"], abs=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_and_is_merged_where_others_read_it(values: dict[str, Any], tmp_path: Path) -> None:
    interrupt_and_compare({"lora": layout(saved_often(values), "zero2", 2)}, tmp_path)
    checkpoint = last(tmp_path / "lora" / "whole")
    config = config_from_dict(values)
    learner: Any = assemble(config)
    checkpoint.load_weights(learner)
    tokens = torch.randint(256, (2, 16))
    with torch.no_grad():
        said = learner.eval().logits(tokens)
    convert(checkpoint.path, tmp_path / "theirs", Wish("huggingface"))  # which knows no config of the run
    _, tensors = from_huggingface(tmp_path / "theirs")
    again = config_from_dict({**values, "start": {"weights": str(checkpoint.path)}})
    plain: Any = assemble(again)
    start.carry_over(plain, again)
    theirs: Any = build(values["model"])
    theirs.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})
    with torch.no_grad():
        for other in (plain, theirs):
            assert (other.eval().logits(tokens) - said).abs().max() < 1e-4


@pytest.mark.slow
def test_peft_computes_the_same(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    peer = peer_of("llama")
    peer.save_pretrained(tmp_path)
    model, tensors = from_huggingface(tmp_path)
    assert model is not None
    learner: Any = build(model)
    learner.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})
    targets = {"attn.q": "self_attn.q_proj", "attn.out": "self_attn.o_proj", "down": "mlp.down_proj"}
    adapt(learner, [f"blocks.*.{name}" for name in targets], 3, 12, 0.0)
    names = [name.rpartition(".")[2] for name in targets.values()]
    theirs = peft.get_peft_model(peer, peft.LoraConfig(r=3, lora_alpha=12, target_modules=names)).eval()
    modules = dict(theirs.named_modules())
    with torch.no_grad():
        for name, module in adapted(learner):
            assert isinstance(module, LoRALinear)
            _, block, of = name.split(".", 2)
            its: Any = modules[f"base_model.model.model.layers.{block}.{targets[of]}"]
            its.lora_B["default"].weight.normal_(0, 0.3)
            module.lora_a.copy_(its.lora_A["default"].weight)
            module.lora_b.copy_(its.lora_B["default"].weight)
        tokens = torch.randint(61, (2, 30))
        expected = theirs(tokens).logits
        assert (learner.eval().logits(tokens) - expected).abs().max() < 1e-5
        theirs.disable_adapter_layers()
        assert (theirs(tokens).logits - expected).abs().max() > 0.1
