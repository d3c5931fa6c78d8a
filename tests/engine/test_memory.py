"""What saves memory changes no number, and does save memory."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.families import gpt
from distdl.nn.language import token_losses
from tests.checkpoint.test_resume import interrupt_and_compare, saved_often
from tests.conftest import python
from tests.nn.test_moe import SPARSE
from tests.parity.test_parity import largest_difference
from tests.ranks import run_ranks
from tests.small import SOME_STEPS, contract_config, curve, curves, layout

ROUTED = 2e-2
"""Largest difference of the loss in bf16 where a rounding can send a token to another expert, or out of its queue."""
SGD = {"name": "sgd", "lr": 0.2}  # shows a wrong scale of the gradient, which Adam hides


# -- the same numbers --------------------------------------------------------------------------------------------------


def saving(values: dict[str, Any], name: str, world: int, **parallel: Any) -> dict[str, Any]:
    """The run on a layout, in two accumulated micro-batches of 64 tokens a rank, saving memory."""
    case = layout(values, name, world)
    case["parallel"] |= parallel
    case["train"]["micro_batch"] = 4
    return case


def cases(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every way to save memory; 64 tokens in chunks of 24 leave a rest of 16."""
    both = {"offload": "cpu", "offload_parameters": "cpu"}
    everything = {**both, "loss_chunk_tokens": 24, "checkpoint_activations": "all"}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("torch", {"loss_chunk_tokens": 24, "checkpoint_activations": "all"}),
        ("zero0", {"loss_chunk_tokens": 24, "checkpoint_activations": "all"}),
        ("zero1", {"loss_chunk_tokens": 24}),
        ("zero3", {"loss_chunk_tokens": 24}),
        ("zero1+tensor2", {"loss_chunk_tokens": 24, "checkpoint_activations": 2}),
        ("zero1", {"checkpoint_activations": "all"}),
        ("zero2", {"loss_chunk_tokens": 24, "checkpoint_activations": 2}),
        ("zero3", {"checkpoint_activations": "all"}),
        ("zero1+sequence2", {"loss_chunk_tokens": 24}),
        ("zero1+pipeline2", {"loss_chunk_tokens": 24}),
        *((f"zero{stage}", {"offload": "cpu"}) for stage in (1, 2, 3)),
        *((f"zero{stage}+{axis}2", {"offload": "cpu"}) for stage in (1, 3) for axis in ("tensor", "sequence")),
        ("zero3", {"offload_parameters": "cpu"}),
        ("zero3", everything),
    ]
    return {f"{name} {parallel}": saving(values, name, 2, **parallel) for name, parallel in asked}


def expert_cases(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same on ranks that share experts."""
    asked: list[tuple[str, dict[str, Any]]] = [
        ("zero1+expert2", {"loss_chunk_tokens": 24}),
        ("zero1+expert2", {"checkpoint_activations": 2}),
        ("zero2+expert2", {"checkpoint_activations": "all"}),
        *((f"zero{stage}+expert2", {"offload": "cpu"}) for stage in (1, 2)),
    ]
    return {f"{name} {parallel}": saving(values, name, 2, **parallel) for name, parallel in asked}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_saves_memory_changes_no_number(optimizer: str, small_data: Path) -> None:
    """With dropout, which a recomputed layer must draw again as it was, and clipping that bites."""
    dense = contract_config("gpt", small_data, train__steps=SOME_STEPS)
    dense |= {"optimizer": SGD} if optimizer == "sgd" else {}
    experts = dense | {"model": dense["model"] | SPARSE}
    assert dense["model"]["dropout"] == 0.1
    references = run_ranks(curves, 1, {"dense": dense, "experts": experts})[0]
    chosen = {f"dense {name}": case for name, case in cases(dense).items()}
    chosen |= {f"experts {name}": case for name, case in expert_cases(experts).items()}
    if optimizer == "sgd":  # whose state is nothing; the gradient is what the others have shown
        chosen = {name: case for name, case in chosen.items() if "offload" not in name}
    for name, got in run_ranks(curves, 2, chosen)[0].items():
        want = references[name.split()[0]]
        assert max(want["norm"]) > dense["train"]["clip_norm"] == 0.5
        assert largest_difference(got["loss"], want["loss"]) < 1e-5, name
        assert got["norm"] == pytest.approx(want["norm"], rel=1e-5 if optimizer == "sgd" else 1e-3), name
        assert got["evaluation"] == pytest.approx(want["evaluation"], abs=1e-5), name


def placed(rank: int, world: int, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What DeepSpeed was told of each run, and where the optimizer's state and the weights lie after a step."""
    from distdl.config.load import config_from_dict
    from distdl.layout.process import ProcessState
    from distdl.train import worker
    from distdl.train.survey import survey

    out = {}
    for name, values in runs.items():
        with ProcessState():
            plan = survey(config_from_dict(values))
            engine: Any = worker.make_engine(worker.build_learner(config_from_dict(values), None), plan, rank)
            optimizer = engine.engines["learner"].optimizer
            out[name] = {
                "json": (plan.deepspeed or {})["zero_optimization"],
                "optimizer": bool(optimizer.cpu_offload if plan.deepspeed else False)
                if engine.zero < 3
                else bool(optimizer.offload_optimizer),
                "weights": engine.zero == 3 and bool(optimizer.offload_param),
                "torch": type(engine._inner("learner")).__module__.startswith(("torch.", "distdl.")),
            }
    return out


@pytest.mark.slow
def test_deepspeed_heard_of_the_offload(small_data: Path) -> None:
    """Not that a key was written: that DeepSpeed's optimizer offloads, and still steps torch's own optimizer."""
    values = contract_config("gpt", small_data)
    runs = {f"zero{z}": saving(values, f"zero{z}", 1, offload="cpu") for z in (1, 2, 3)}
    runs |= {"plain": saving(values, "zero1", 1), "weights": saving(values, "zero3", 1, offload_parameters="cpu")}
    found = run_ranks(placed, 1, runs)[0]
    assert all(told["torch"] for told in found.values())
    assert {name: (told["optimizer"], told["weights"]) for name, told in found.items()} == {
        "zero1": (True, False),
        "zero2": (True, False),
        "zero3": (True, False),
        "plain": (False, False),
        "weights": (False, True),
    }


@pytest.mark.slow
def test_offloaded_and_resumed_is_bit_identical(small_data: Path, tmp_path: Path) -> None:
    """The checkpoint holds the state that lies elsewhere between steps."""
    values = saved_often(contract_config("gpt", small_data))
    cases = {f"zero{zero}": saving(values, f"zero{zero}", 2, offload="cpu") for zero in (1, 2, 3)}
    cases["weights"] = saving(values, "zero3", 2, offload_parameters="cpu")
    interrupt_and_compare(cases, tmp_path)


# -- NVMe --------------------------------------------------------------------------------------------------------------


def on_disk(values: dict[str, Any], path: Path) -> Config:
    return config_from_dict(saving(values, "zero3", 1, offload="nvme", nvme_path=str(path)))


@pytest.mark.slow
def test_an_operator_that_cannot_be_compiled_is_one_clear_error(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distdl.engine.deepspeed_import import import_deepspeed
    from distdl.engine.nvme import ready_for_nvme

    import_deepspeed("cpu")
    from deepspeed.ops.op_builder import AsyncIOBuilder

    values = contract_config("gpt", small_data)
    monkeypatch.setattr(AsyncIOBuilder, "load", lambda self, verbose: self.jit_load(verbose))
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    with pytest.raises(
        InputError, match="operator async_io, which cannot be compiled or loaded here: Unable"
    ) as caught:
        ready_for_nvme(on_disk(values, tmp_path / "new"))
    assert "libaio-dev" in caught.value.problems[0].fix and caught.value.exit_code == 2
    assert "\n" not in caught.value.problems[0].what

    ready_for_nvme(config_from_dict(saving(values, "zero3", 1, offload="cpu")))  # needs no such thing
    monkeypatch.setattr(AsyncIOBuilder, "load", lambda self, verbose: None)
    ready_for_nvme(on_disk(values, tmp_path / "new"))
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"parallel\.nvme_path=.*file: "):
        ready_for_nvme(on_disk(values, tmp_path / "file"))


@pytest.mark.slow
def test_state_on_a_disk_gives_the_same_numbers_and_resumes(small_data: Path, tmp_path: Path) -> None:
    """Only where the operator has been compiled already, which takes minutes. DeepSpeed moves what has 1 MiB or more."""
    from torch.utils.cpp_extension import _get_build_directory

    if not (Path(_get_build_directory("async_io", False)) / "async_io.so").exists():
        pytest.skip("DeepSpeed's operator async_io is not compiled here")
    values = contract_config("gpt", small_data, optimizer__lr=1e-3)
    values["model"] |= {"width": 256}
    want = run_ranks(curves, 1, {"": values})[0][""]
    nvme = {"offload": "nvme", "nvme_path": str(tmp_path)}
    got = run_ranks(curves, 1, {"": saving(values, "zero3", 1, **nvme)})[0][""]
    assert largest_difference(got["loss"], want["loss"]) < 1e-5
    assert sum(path.stat().st_size for path in tmp_path.rglob("exp_avg*.swp")) > 2**21
    interrupt_and_compare({"nvme": saving(saved_often(values), "zero3", 2, **nvme)}, tmp_path / "runs")


# -- torch.compile -----------------------------------------------------------------------------------------------------


def compiled(rank: int, world: int, runs: dict[str, dict[str, Any]], backend: str) -> dict[str, Any]:
    """The curve of each run, and how many graphs were compiled; {"skip": why} where this machine cannot compile."""
    import torch._dynamo.utils

    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8))
    except Exception as error:  # no working C++ compiler
        return {"skip": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    torch.compile = functools.partial(torch.compile, backend=backend)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else the blocks from there on run uncompiled, in silence
    out: dict[str, Any] = {}
    for name, values in runs.items():
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        case = curve(rank, values | {"train": values["train"] | {"compile": True}})
        out[name] = {**case, "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}
    return out


def compare_compiled(
    references: dict[str, Any], world: int, runs: dict[str, dict[str, Any]], backend: str, norm: float = 1e-4
) -> dict[str, Any]:
    """Runs named by their reference and the layout. `norm`: how far that of a gradient may be, by its size."""
    ranks = run_ranks(compiled, world, runs, backend)
    found = ranks[0]
    if "skip" in found:
        pytest.skip(f"torch.compile does not run here: {found['skip']}")
    for name, got in found.items():
        want = references[name.split()[0]]
        assert max(rank[name]["graphs"] for rank in ranks) >= 1, name  # the first stage of a pipeline may have no block
        assert largest_difference(got["loss"], want["loss"]) < 1e-5, name
        assert got["norm"] == pytest.approx(want["norm"], rel=norm), name
        assert got["evaluation"] == pytest.approx(want["evaluation"], abs=1e-5), name
    return found


@pytest.mark.slow
def test_every_block_is_compiled_and_gives_the_same_numbers(small_data: Path) -> None:
    """With dropout: a compiler that froze one draw of the noise into its code would be seen, and so would one that compiled
    a block again for the noise of every other one, until it gave up."""
    values = contract_config("gpt", small_data, train__steps=SOME_STEPS) | {"optimizer": SGD}
    deep = values | {"model": values["model"] | {"layers": 12}}
    reference = run_ranks(curves, 1, {"deep": deep, "flat": values})[0]
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    runs = {"deep zero1": saving(deep, "zero1", 1), "flat zero1": saving(values, "zero1", 1)}
    found = compare_compiled(reference, 1, runs, "inductor")
    assert found["flat zero1"]["graphs"] == found["deep zero1"]["graphs"], "the blocks share their code"


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers_on_every_axis(small_data: Path) -> None:
    """Without the code that the compiler would write in the end, which is that of one process."""
    values = contract_config("gpt", small_data, train__steps=SOME_STEPS) | {"optimizer": SGD}
    reference = run_ranks(curves, 1, {"flat": values})[0]
    names = ["zero0", "zero1", "zero2", "zero1+tensor2", "zero1+sequence2", "zero1+pipeline2"]
    runs = {f"flat {name}": saving(values, name, 2) for name in names}
    runs["flat zero1 in chunks, recomputed, filled up"] = saving(
        values, "zero1", 2, loss_chunk_tokens=24, checkpoint_activations="all"
    )
    runs["flat zero1 in chunks, recomputed, filled up"]["train"]["vocabulary_multiple"] = 60
    compare_compiled(reference, 2, runs, "aot_eager")


# -- bf16 --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bf16_is_within_its_rounding_of_one_process_on_the_tensor_and_expert_axes(small_data: Path) -> None:
    """`fixed`: every token goes through both experts, so that no rounding can send it elsewhere. Where it can (`routed`),
    the curves part after such a step; before it they are as near."""
    few = {"train__steps": SOME_STEPS}
    dense = contract_config("gpt", small_data, **few, train__precision="bf16", optimizer__lr=3e-3)
    fixed = dense["model"] | {"experts": 2, "experts_top_k": 2, "capacity": 0, "balance_loss": 0.0}
    models = {"dense": dense, "fixed": dense | {"model": fixed}, "routed": dense | {"model": dense["model"] | SPARSE}}
    reference = run_ranks(curves, 1, models)[0]
    names = {
        "dense": [f"zero{zero}+tensor2" for zero in range(4)],
        "fixed": ["zero1+expert2", "zero2+expert2", "zero1+tensor2"],
        "routed": ["zero1+expert2", "zero2+expert2"],
    }
    runs = {f"{model} {name}": saving(models[model], name, 2) for model in models for name in names[model]}
    for case, got in run_ranks(curves, 2, runs)[0].items():
        want, routed = reference[case.split()[0]], case.startswith("routed")
        limit = ROUTED if routed else 5e-3
        assert largest_difference(got["loss"], want["loss"]) < limit, case
        assert got["evaluation"]["loss"] == pytest.approx(want["evaluation"]["loss"], abs=limit), case
        if not routed:
            assert got["norm"] == pytest.approx(want["norm"], rel=5e-2), case


# -- memory that is really saved ---------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Sees every tensor that an operation makes: what is still there, and the largest of a given width."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.rows: dict[int, int] = {}
        """Width -> most rows of a tensor that wide."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                if x.ndim:
                    width = x.shape[-1]
                    self.rows[width] = max(self.rows.get(width, 0), x.numel() // max(1, width))
        return out

    def bytes(self) -> int:
        """Memory of all tensors made so far that something still holds."""
        return sum(size for reference, size in self.storages.values() if not reference.expired())


MODEL = {"vocabulary": 509, "context": 64, "layers": 6, "heads": 2, "width": 32}
TOKENS = 8 * 64


def kept(recompute_every: int = 0, chunk: int = 0) -> tuple[int, int, list[Tensor]]:
    """Bytes between the forward and the backward pass, most rows of logits at a time, and the gradients."""
    torch.manual_seed(0)
    learner = gpt.GPT(gpt.Config(**MODEL))  # type: ignore[arg-type]
    learner.save_memory(recompute_every, chunk)
    batch = {"tokens": torch.randint(MODEL["vocabulary"], (8, 65)), "id": torch.arange(8)}
    with Alive() as alive:
        loss, _ = learner.loss(batch, 0)
        held = alive.bytes()
        weight = learner.wte.weight.shape[0]
        loss.backward()
    return held, alive.rows[weight], [p.grad for p in learner.parameters() if p.grad is not None]


def test_activations_are_not_kept_where_they_are_recomputed() -> None:
    """All layers recomputed: what is left of a block is its input. Every second one: about half."""
    plain, _, want = kept()
    half, _, half_gradients = kept(recompute_every=2)
    none, _, gradients = kept(recompute_every=1)
    inputs = 4 * TOKENS * MODEL["width"]  # bytes of what enters a layer
    logits = 2 * 4 * TOKENS * MODEL["vocabulary"]  # of the criterion, which is no layer: the scores and their softmax
    assert none <= logits + 10 * inputs < plain / 2
    assert none + 0.35 * (plain - none) < half < none + 0.65 * (plain - none)
    for got in (gradients, half_gradients):
        assert len(got) == len(want) and all(torch.equal(a, b) for a, b in zip(got, want))


def test_logits_exist_for_some_tokens_at_a_time() -> None:
    plain, rows, want = kept()
    chunked, fewer, gradients = kept(chunk=100)
    assert (rows, fewer) == (TOKENS, 100)
    assert plain - chunked >= 4 * TOKENS * MODEL["vocabulary"]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients, want))


@pytest.mark.parametrize("chunk", [1, 7, 16, 48, 49, 100])
def test_chunks_have_the_value_and_the_gradient_of_the_whole(chunk: int) -> None:
    """48 tokens, each with a weight of its own, against the formula in float64."""
    generator = torch.Generator().manual_seed(chunk)
    x = torch.randn(48, 8, generator=generator, requires_grad=True)
    weight = torch.randn(31, 8, generator=generator, requires_grad=True)
    targets, direction = torch.randint(31, (48,), generator=generator), torch.randn(48, generator=generator)
    losses = [token_losses(x, weight, targets, n) for n in (0, chunk)]
    assert losses[1].shape == (48,) and losses[1].dtype == torch.float32
    plain = -torch.log_softmax(x.double() @ weight.double().T, 1).gather(1, targets[:, None]).squeeze(1)
    gradients = [torch.autograd.grad((loss * direction).sum(), (x, weight)) for loss in (*losses, plain)]
    torch.testing.assert_close(losses[0], plain.float())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    for whole, some, wanted in zip(*gradients):
        torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(some, wanted, rtol=1e-4, atol=1e-4)


def test_runs_that_share_an_nvme_disk_have_a_folder_each(tmp_path: Path) -> None:
    from distdl.engine.nvme import claimed_folder, on_own_folder

    disk = str(tmp_path)
    given = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": disk}}, "bf16": {}}
    first, second = (on_own_folder(given)["zero_optimization"]["offload_optimizer"]["nvme_path"] for _ in range(2))
    assert first != second and {Path(first).parent, Path(second).parent} == {tmp_path}
    assert given["zero_optimization"]["offload_optimizer"]["nvme_path"] == disk
    code = f"from distdl.engine.nvme import claimed_folder as c; print(c({disk!r}))"
    third = python("-c", code, cwd=tmp_path).stdout.strip()
    assert third not in (first, second)
    assert claimed_folder(disk) == third  # a process that has ended leaves its folder to the next
