"""Every layout that cannot run or is not proven is refused with a reason, and what the refusal proposes is accepted."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.mesh import Mesh
from distdl.plan.plan import Plan, make_plan
from tests.conftest import Result
from tests.small import BASE, MODELS, layout, small_config

DATA = DataFacts("data/x", "f00d", 1000, 200)
CPU, OLD_GPU, NEW_GPU = (Hardware("cpu", 8, 0), *(Hardware("cuda", 8, 8, gpu_capability=c) for c in ((8, 0), (9, 0))))
EXPERTS = {"experts": 4, "experts_top_k": 2, "experts_every": 1}


def values(family: str, name: str, world: int, **changes: Any) -> dict[str, Any]:
    """A family's small run on a layout; `changes` are `section__key=value`."""
    out = {"name": family, **copy.deepcopy(BASE), "model": copy.deepcopy(MODELS[family])}
    out["data"]["path"], out["train"]["global_batch"] = "data/x", 48
    out = layout(out, name, world)
    for path, value in changes.items():
        section, key = path.split("__")
        out[section][key] = value
    return out


@functools.cache
def _facts(model: str) -> ModelFacts:
    from distdl.train.survey import model_facts

    return model_facts(config_from_dict(values("gpt", "torch", 1) | {"model": json.loads(model)}))


def planned(run: dict[str, Any], machine: Hardware = CPU) -> Plan:
    return make_plan(config_from_dict(run), _facts(json.dumps(run["model"])), DATA, machine)


PROPOSAL = re.compile(r"(parallel|train|runtime)\.(\w+)=([\w./]+(?:(?: or |, )[\w./]+(?![\w.]*=))*)")


def repaired(run: dict[str, Any], fix: str) -> Iterator[dict[str, Any]]:
    """The run with each of the fix's alternatives, taken literally: `a=1 or 2`, `a=1 and b=2`, `a=1, or b=2`."""
    for alternative in fix.split(", or "):
        keys = PROPOSAL.findall(alternative)
        assert keys, f"nothing to follow literally in {fix!r}"
        for choice in re.split(" or |, ", keys[0][2]):
            out = copy.deepcopy(run)
            for (section, key, _), value in zip(keys, [choice, *(value for _, _, value in keys[1:])]):
                assert key in type(getattr(config_from_dict(run), section)).model_fields
                out[section][key] = json.loads(value) if re.fullmatch(r"\d+|true|false", value) else value
            yield out


CASES: dict[str, tuple[str, str, int, dict[str, Any], str]] = {
    "ZeRO-2 in a pipeline": ("gpt", "zero2+pipeline2", 2, {}, "ZeRO-2 would scatter after each"),
    "ZeRO-3 in a pipeline": ("gpt", "zero3+pipeline2", 2, {}, "ZeRO-3 would scatter after each"),
    "ZeRO-0 in a pipeline": ("gpt", "zero0+pipeline2", 2, {}, "clips by the gradient norm of one stage only"),
    "too many stages": ("gpt", "zero1+pipeline6", 6, {}, "4 layers cannot fill 6 pipeline stages"),
    "too many stages of eight": ("gpt", "zero1+pipeline8", 8, {}, "4 layers cannot fill 8 pipeline stages"),
    "no layers": ("lstm", "zero1+pipeline2", 2, {}, "lstm is not proven with pipeline parallelism: .* no ordered"),
    "no tensors": ("gan", "zero1+tensor2", 2, {}, "gan is not proven with tensor parallelism: .* no tensors to cut"),
    "no sequence": ("mlp", "zero1+sequence2", 2, {}, "mlp is not proven with sequence parallelism"),
    "experts of none": ("mlp", "zero1+expert2", 2, {}, "mlp is not proven with expert parallelism"),
    "experts of a dense gpt": ("gpt", "zero1+expert2", 2, {}, "parallel.expert is 2 and this gpt has no experts"),
    "experts at ZeRO-3": ("gpt", "zero3+expert2", 2, EXPERTS, "ZeRO-3 does not hold experts"),
    "experts at ZeRO-0": ("gpt", "zero0+expert2", 2, EXPERTS, "ZeRO-0 DeepSpeed averages the gradient norms"),
    "odd experts": ("gpt", "zero1+expert3", 6, EXPERTS, "4 experts cannot be shared evenly by parallel.expert=3"),
    "odd heads": ("gpt", "zero1+tensor4", 4, {}, "2 attention heads cannot be shared evenly by parallel.tensor=4"),
    "heads that no worker count has": ("gpt", "zero1+tensor4", 4, {"heads": 3, "width": 12}, "3 attention heads"),
    "odd tokens": ("gpt", "zero1+sequence3", 3, {}, "16 tokens cannot be shared evenly by parallel.sequence=3"),
    "odd workers": ("gpt", "zero1+tensor2", 3, {}, "3 workers cannot be laid out as tensor 2 = 2 ranks a replica"),
    "too few workers": ("gpt", "zero1+tensor2+pipeline2", 2, {}, "tensor 2 x pipeline 2 = 4 ranks a replica"),
    "sets of experts": ("gpt", "zero1+expert4", 2, EXPERTS, "2 data-parallel workers cannot be split into sets"),
    "torch with tensor": ("gpt", "torch", 2, {"parallel__tensor": 2}, "the torch engine has data parallelism only"),
    "torch with pipeline": ("gpt", "torch", 2, {"parallel__pipeline": 2}, "the torch engine has data parallelism only"),
    "pipeline and sequence": ("gpt", "zero1+pipeline2+sequence2", 4, {}, "sends whole sequences from stage to stage"),
    "pipeline and expert": ("gpt", "zero1+pipeline2+expert2", 4, EXPERTS, "does not gather the balance loss"),
    "tensor and expert": ("gpt", "zero1+tensor2+expert2", 4, EXPERTS, "experts are not cut along the tensor axis"),
    "sequence and expert": ("gpt", "zero1+sequence2+expert2", 4, EXPERTS, "tokens are routed within a sample"),
    "ulysses by force": ("gpt", "zero1+sequence4", 4, {"parallel__attention": "ulysses"}, "2 attention heads out over 4"),
    "offload at ZeRO-0": ("gpt", "zero0", 2, {"parallel__offload": "cpu"}, "what ZeRO-1 has cut, .* has ZeRO-0"),
    "offload by torch": ("gpt", "torch", 2, {"parallel__offload": "cpu"}, "this run has the torch engine"),
    "weights at ZeRO-2": ("gpt", "zero2", 2, {"parallel__offload_parameters": "cpu"}, "what ZeRO-3 has cut"),
    "nvme at ZeRO-1": ("gpt", "zero1", 2, {"parallel__offload": "nvme"}, "what ZeRO-3 has cut"),
    "nvme without a path": ("gpt", "zero3", 2, {"parallel__offload": "nvme"}, "is nvme, and no folder is named"),
    "weights on nvme": ("gpt", "zero3", 2, {"parallel__offload_parameters": "nvme"}, "no folder is named"),
    "offload in a pipeline": ("gpt", "zero1+pipeline2", 2, {"parallel__offload": "cpu"}, "not proven in a pipeline"),
    "weights in a pipeline": ("gpt", "zero1+pipeline2", 2, {"parallel__offload_parameters": "cpu"}, "not proven in a"),
    "fp16 on a CPU": ("gpt", "zero1", 2, {"train__precision": "fp16"}, "fp16, which this CPU does not compute"),
    "fp8 on a CPU": ("gpt", "zero1", 2, {"train__precision": "fp8"}, "fp8 and this is a CPU"),
    "nothing to recompute": ("lstm", "zero1", 2, {"parallel__checkpoint_activations": "all"}, "has no ordered layers"),
    "every second of none": ("gan", "zero1", 2, {"parallel__checkpoint_activations": 2}, "has no ordered layers"),
    "compiled under ZeRO-3": ("gpt", "zero3", 2, {"train__compile": True}, "train.compile: ZeRO-3 gathers weights"),
    "nothing to compile": ("gru", "zero1", 2, {"train__compile": True}, "train.compile: the family gru has no ordered"),
    "no tokens": ("mlp", "zero1", 2, {"parallel__loss_chunk_tokens": 4}, "mlp has no loss over tokens"),
}  # fmt: skip
ON_GPUS: dict[str, tuple[Hardware, dict[str, Any], str]] = {
    "fp16 at ZeRO-0": (NEW_GPU, {"parallel__zero": 0, "train__precision": "fp16"}, "loss scaling .* are ZeRO's"),
    "fp16 by torch": (NEW_GPU, {"parallel__engine": "torch", "train__precision": "fp16"}, "loss scaling .* are ZeRO's"),
    "fp8 on an A100": (OLD_GPU, {"train__precision": "fp8"}, r"fp8 and this is a GPU of compute capability \(8, 0\)"),
}


def split_changes(changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    model = {key: value for key, value in changes.items() if "__" not in key}
    return {k: v for k, v in changes.items() if k not in model}, {f"model__{k}": v for k, v in model.items()}


def refused_and_repaired(run: dict[str, Any], reason: str, machine: Hardware) -> None:
    with pytest.raises(InputError, match=f"(?s){reason}") as caught:
        planned(run, machine)
    assert all(problem.what and problem.fix for problem in caught.value.problems)
    first = caught.value.problems[0]
    for alternative in range(10):
        fixed = [run]
        for number, problem in enumerate(caught.value.problems):  # each alternative of the first with one of the others
            ways = list(repaired(fixed[0], problem.fix))
            if number == 0 and alternative >= len(ways):
                return
            fixed = [ways[alternative if number == 0 else 0]]
        try:
            planned(fixed[0], machine)
        except InputError as error:
            pytest.fail(f"{first.fix!r} was refused in its turn: {error}")


@pytest.mark.parametrize("case", CASES)
def test_refused_with_a_reason_and_a_fix_that_is_accepted(case: str) -> None:
    family, name, world, given, reason = CASES[case]
    changes, model = split_changes(given)
    refused_and_repaired(values(family, name, world, **changes, **model), reason, CPU)


@pytest.mark.parametrize("case", ON_GPUS)
def test_precision_that_the_gpu_or_the_engine_lacks(case: str) -> None:
    machine, changes, reason = ON_GPUS[case]
    refused_and_repaired(values("gpt", "zero1", 2, **changes), reason, machine)


def test_a_gpu_that_multiplies_8_bit_floats_is_accepted() -> None:
    for precision in ("fp16", "fp8"):
        plan = planned(values("gpt", "zero1", 2, train__precision=precision), NEW_GPU)
        assert plan.deepspeed and plan.deepspeed["bf16"]["enabled"] == (precision == "fp8")
        assert plan.deepspeed.get("fp16", {}).get("enabled", False) == (precision == "fp16")


@pytest.mark.parametrize(
    ("parallel", "changes", "layout"),
    [
        ({}, {}, "torch"),
        ({"zero": 1}, {}, "torch"),  # it would shard nothing
        ({}, {"runtime__workers": 2}, "zero1"),
        ({"zero": 2}, {}, "zero2"),
        ({"offload": "cpu"}, {}, "zero1"),
        ({"deepspeed": {"wall_clock_breakdown": True}}, {}, "zero1"),
        ({"engine": "deepspeed"}, {}, "zero1"),
        ({"engine": "torch"}, {"runtime__workers": 2}, "torch"),
        ({}, {"train__precision": "fp16"}, "zero1"),
        ({}, {"train__precision": "bf16"}, "torch"),
    ],
)
def test_one_process_needs_no_deepspeed(parallel: dict[str, Any], changes: dict[str, Any], layout: str) -> None:
    """Unless a key asks for it, or for what only DeepSpeed does."""
    run = values("mlp", "torch", 1, **changes) | {"parallel": parallel}
    plan = planned(run, NEW_GPU)
    assert (plan.layout, plan.deepspeed is None) == (layout, layout == "torch")
    assert plan.settings.parallel.engine == ("torch" if layout == "torch" else "deepspeed")


@pytest.mark.parametrize(
    ("name", "world", "mesh"),
    [
        ("zero1+tensor2+pipeline2", 4, Mesh(1, 2, 2, 1)),
        ("zero3+tensor2+sequence2", 8, Mesh(2, 2, 1, 2)),
        ("zero1+pipeline4", 8, Mesh(2, 1, 4, 1)),
        ("zero0+sequence16", 16, Mesh(1, 1, 1, 16)),
    ],
)
def test_what_can_run_is_laid_out(name: str, world: int, mesh: Mesh) -> None:
    plan = planned(values("gpt", name, world))
    assert (plan.mesh, plan.layout, plan.world) == (mesh, name, world)
    assert plan.deepspeed and plan.deepspeed["train_batch_size"] == 48 * mesh.sequence
    assert plan.global_batch == 48 == mesh.data * plan.accumulate * plan.micro_batch


# -- memory of the model state: the plan's arithmetic against a model that is really cut --------------------------------

GPT2 = {"vocabulary": 50257, "context": 1024, "layers": 12, "heads": 12, "width": 768}


def held(plan: Plan) -> tuple[int, int]:
    """Elements of the weights on the fullest rank, dense ones and experts, counted after the cut that training makes."""
    import torch

    from distdl.families import build
    from distdl.layout.axes import Axis
    from distdl.parallel.expert import cut_experts
    from distdl.parallel.tensor import cut_tensors

    with torch.device("meta"):
        learner = build(plan.config["model"])
    if plan.mesh.tensor > 1:
        cut_tensors(learner, Axis(plan.mesh.tensor, 0, None))
    if plan.mesh.expert > 1:
        cut_experts(learner, Axis(plan.mesh.expert, 0, None))
    stages = [learner.layers()[a:b] for a, b in itertools.pairwise(plan.stages)]
    on_stage = [{p for layer in stage for module in layer.modules for p in module.parameters()} for stage in stages]
    fullest = max(on_stage, key=lambda parameters: sum(p.numel() for p in parameters))
    experts = sum(p.numel() for p in fullest if getattr(p, "distdl_expert", False))
    return sum(p.numel() for p in fullest) - experts, experts


@pytest.mark.parametrize(
    ("name", "world", "model"),
    [
        ("zero0+tensor2", 2, GPT2),
        ("zero0+tensor4", 4, GPT2),
        ("zero0", 2, GPT2),
        ("zero1+expert2", 2, GPT2 | EXPERTS),
        ("zero2+expert4", 4, GPT2 | EXPERTS),
        pytest.param("zero1+pipeline2", 2, GPT2),
        pytest.param("zero1+pipeline4", 4, GPT2),
        pytest.param("zero1+pipeline2+tensor2", 4, GPT2),
    ],
)
def test_the_state_is_that_of_a_model_that_is_really_cut(name: str, world: int, model: dict[str, Any]) -> None:
    """Within a thousandth: the biases behind a row-cut matrix, which stay whole, are counted as if they were cut."""
    plan = planned(values("gpt", name, world, **{f"model__{key}": value for key, value in model.items()}))
    (dense, experts), found = held(plan), plan.state_bytes_per_worker
    rel = 1e-2 if plan.mesh.pipeline > 1 and plan.mesh.tensor > 1 else 1e-3  # what is cut, as a mean over the stages
    data, replicas = plan.mesh.data, plan.mesh.data // plan.mesh.expert  # ranks that hold the same weights, experts
    sharded = dense / data + experts / replicas
    assert found["weights"] == pytest.approx(4 * (dense + experts), rel=rel)
    assert found["gradients"] == pytest.approx(4 * (sharded if "zero2" in name else dense + experts), rel=rel)
    state = dense + experts if "zero0" in name else sharded
    assert found["optimizer"] == pytest.approx(8 * state, rel=rel)  # AdamW: two fp32 numbers a weight


# -- `distdl plan` -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(text: str, tmp_path: Path) -> str:
    run = small_config("gpt", "", text)
    run["train"]["micro_batch"] = 2
    path = tmp_path / "gpt.yaml"
    path.write_text(json.dumps(run))  # JSON is YAML
    return str(path)


def test_the_command_draws_the_mesh(command: Callable[..., Result], config_file: str) -> None:
    axes = ("parallel.tensor=2", "parallel.pipeline=2", "parallel.engine=deepspeed")
    code, out, _ = command("plan", config_file, "--workers", 8, *axes)
    assert code == 0
    assert "layout         zero1+tensor2+pipeline2, 2-way data parallel, fp32\n" in out
    assert "global batch   16 = 2 data-parallel × 4 accumulated × 2 per forward\n" in out
    sizes = [256 * 16 + 16 * 16, *[12 * 16 * 16 + 13 * 16] * 2, 2 * 16]  # embedding, two blocks, the last norm
    stages = f"embedding, {sizes[0]:,} parameters", f"block 0 to head, {sum(sizes[1:]):,} parameters"
    cut = "2 parts of every cut tensor"
    assert (
        "mesh\n"
        f"  ranks 0-1: stage 1/2 ({stages[0]}), samples 1/2, {cut}\n"
        f"  ranks 2-3: stage 1/2 ({stages[0]}), samples 2/2, {cut}\n"
        f"  ranks 4-5: stage 2/2 ({stages[1]}), samples 1/2, {cut}\n"
        f"  ranks 6-7: stage 2/2 ({stages[1]}), samples 2/2, {cut}\n"
    ) in out
    assert "note: a pipeline of 2 stages with 4 micro-batches stands idle 20% of the time" in out


def test_the_command_says_that_measured_stages_may_lie_elsewhere(
    command: Callable[..., Result], config_file: str
) -> None:
    keys = ("parallel.pipeline=2", "parallel.engine=deepspeed")
    said = "stages are drawn by parameters; balance: time measures"
    assert said in command("plan", config_file, "--workers", 2, *keys, "parallel.balance=time").stdout
    assert said not in command("plan", config_file, "--workers", 2, *keys).stdout


def test_the_command_names_the_attention_of_a_cut_sequence(command: Callable[..., Result], config_file: str) -> None:
    for degree, attention in ((2, "ulysses"), (4, "ring")):  # two heads
        keys = (f"parallel.sequence={degree}", "parallel.engine=deepspeed")
        out = command("plan", config_file, "--workers", degree, *keys).stdout
        assert f"ranks 0-{degree - 1}: samples 1/1, {degree} slices of the sequence\n" in out
        assert f"a sample's slices attend to each other by {attention}\n" in out
    assert "mesh" not in command("plan", config_file, "--workers", 2).stdout


def test_the_command_as_json(command: Callable[..., Result], config_file: str) -> None:
    keys = ("parallel.pipeline=2", "parallel.engine=deepspeed")
    told = json.loads(command("plan", config_file, "--workers", 4, "--json", *keys).stdout)
    assert told["mesh"] == {"data": 2, "tensor": 1, "pipeline": 2, "sequence": 1, "expert": 1}
    assert told["stages"] == [0, 1, 4] and told["layout"] == "zero1+pipeline2"
    assert [name for name, _ in told["model"]["layers"]] == ["embedding", "block 0", "block 1", "head"]


def test_the_command_refuses_with_the_reason_and_the_fix(command: Callable[..., Result], config_file: str) -> None:
    keys = ("parallel.pipeline=2", "parallel.zero=3", "parallel.engine=deepspeed")
    code, _, err = command("plan", config_file, "--workers", 2, *keys)
    assert code == 2
    assert "ZeRO-3 would scatter after each; DeepSpeed refuses it" in err and "fix: parallel.zero=1" in err
