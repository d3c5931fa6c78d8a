"""Sequence parallelism: attention over slices is that over the whole, and a run that cuts the sequence is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.train.survey import survey
from tests.checkpoint.test_resume import interrupt_and_compare, metrics, saved_often
from tests.parity.test_parity import largest_difference
from tests.ranks import run_ranks
from tests.resumed import go_on, train
from tests.small import SOME_STEPS, contract_config, curve, curves, layout

ATTENTIONS = ("ulysses", "ring")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.2},  # shows a wrong scale of the gradient, which Adam hides
    "adamw": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.05},
}
LAYOUTS = {
    2: ["zero0+sequence2", "zero1+sequence2", "zero2+sequence2", "zero3+sequence2"],
    4: ["zero1+sequence2", "zero3+sequence2", "zero1+sequence4", "zero1+tensor2+sequence2"],
}


def gpt(data: Path, heads: int = 4, **changes: Any) -> dict[str, Any]:
    """The small GPT: dropout 0.1, clipping that bites."""
    values = contract_config("gpt", data, **changes)
    values["model"] = {**values["model"], "heads": heads, "width": 4 * heads}
    assert values["model"]["dropout"] == 0.1 and values["train"]["clip_norm"] == 0.5
    return values


def cut(values: dict[str, Any], name: str, world: int, attention: str = "auto") -> dict[str, Any]:
    """The same run on another layout, in two accumulated micro-batches."""
    case = layout(values, name, world)
    ranks_a_replica = 1
    for axis in name.split("+")[1:]:
        ranks_a_replica *= int(axis[-1])
    case["train"]["micro_batch"] = case["train"]["global_batch"] // (world // ranks_a_replica) // 2
    if name != "torch":
        case["parallel"]["attention"] = attention
    return case


# -- attention ---------------------------------------------------------------------------------------------------------


def attention_errors(rank: int, world: int, cases: list[tuple[str, int, int]]) -> dict[str, list[float]]:
    """Largest errors of the output and of the gradients of q, k, v on this rank's slice, B = 2, against float64."""
    import torch
    import torch.distributed as dist
    from torch.nn import functional as F

    from distdl.engine import deepspeed as engine
    from distdl.layout.axes import Axis
    from distdl.parallel import flash, sequence

    engine.import_deepspeed("cpu").init_distributed("gloo")
    sequence.QUERIES = 3  # several blocks of queries, and a rest
    axis = Axis(world, rank, dist.group.WORLD)
    makers = {"ring": sequence.ring, "ulysses": engine.ulysses}
    errors = {}
    for kind, heads, window in cases:
        torch.manual_seed(heads)
        # Tokens before heads in memory, as a fused query-key-value map leaves them.
        whole = [torch.randn(2, 32, heads, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
        direction = torch.randn(2, heads, 32, 8)
        seen = torch.ones(32, 32, dtype=torch.bool).tril().triu(1 - window if window else -32)
        want = F.scaled_dot_product_attention(*(x.double() for x in whole), attn_mask=seen)
        want_gradients = torch.autograd.grad((want * direction).sum(), whole)
        mine = slice(rank * 32 // world, (rank + 1) * 32 // world)
        parts = [x[:, :, mine].detach().requires_grad_() for x in whole]
        attend = makers[kind](axis)
        ways = {kind: attend}
        if (world, heads) == (2, 4):  # an all-to-all that a compiler looks into can lose its gradient
            ways[f"{kind} compiled"] = torch.compile(attend, backend="aot_eager")
        if kind == "ring":
            ways["ring without flash attention"] = attend
        for name, used in ways.items():
            sequence.flash_of = (lambda q: None) if "without" in name else flash.flash_of
            got = used(*parts, window)
            gradients = torch.autograd.grad((got * direction[:, :, mine]).sum(), parts)
            pairs = [(got, want), *zip(gradients, want_gradients)]
            errors[f"{name}, {heads} heads, window {window}"] = [
                (a - b[:, :, mine]).abs().max().item() for a, b in pairs
            ]
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_attention_over_slices_is_attention_over_the_whole(world: int) -> None:
    """The ring with heads that the ranks do not divide, too; windows that end within a slice, and some slices before."""
    cases = [("ulysses", 4, 0), ("ring", 4, 0), ("ring", 3, 0), ("ulysses", 4, 11), ("ring", 4, 11), ("ring", 4, 3)]
    for errors in run_ranks(attention_errors, world, cases):
        assert len(errors) == (15 if world == 2 else 10)
        assert {case: e for case, e in errors.items() if max(e) > 3e-6} == {}


def fused(rank: int, world: int) -> list[str]:
    """Which operations a ring's two passes take that look at all pairs of a query and a key."""
    import torch
    import torch.distributed as dist

    from distdl.layout.axes import Axis
    from distdl.parallel import sequence

    q, k, v = (torch.randn(2, 3, 64, 8, requires_grad=True) for _ in range(3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        sequence.ring(Axis(world, rank, dist.group.WORLD))(q, k, v).sum().backward()
    names = [event.name for event in seen.events()]
    return [name.removeprefix("aten::") for name in names if "flash" in name or name in ("aten::bmm", "aten::mm")]


@pytest.mark.slow
def test_each_slice_of_a_ring_is_one_kernel_each_way() -> None:
    one = "_scaled_dot_product_flash_attention_for_cpu"
    for rank, found in enumerate(run_ranks(fused, 2)):
        assert found == [one] * (rank + 1) + [f"{one}_backward"] * (rank + 1)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_cut_sequence_gives_the_same_numbers(world: int, small_data: Path) -> None:
    few = gpt(small_data, train__steps=SOME_STEPS)
    bases = {name: few | {"optimizer": optimizer} for name, optimizer in OPTIMIZERS.items()}
    reference = run_ranks(curves, 1, bases)[0]
    cases = {
        f"{name} {kind} {attention}": cut(values, kind, world, attention)
        for name, values in bases.items()
        for kind in LAYOUTS[world]
        for attention in (ATTENTIONS if name == "sgd" else ["auto"])
    }
    cases["sgd zero1 -"] = cut(bases["sgd"], "zero1", world)  # nothing of the runs before it is left in the process
    for ranks in run_ranks(curves, world, cases):
        for case, got in ranks.items():
            want = reference[case.split()[0]]
            assert largest_difference(got["loss"], want["loss"]) < 1e-5, case
            # AdamW divides by gradients that are nearly zero: on plain ZeRO too, a norm is off by 1e-4 now and then.
            assert got["norm"] == pytest.approx(want["norm"], rel=1e-5 if case.startswith("sgd") else 1e-3), case
            assert got["evaluation"] == pytest.approx(want["evaluation"], abs=1e-5), case
            assert max(want["norm"]) > 0.5, "the clipping does not bite"


@pytest.mark.slow
def test_with_heads_that_do_not_divide_bf16_and_recomputation(small_data: Path) -> None:
    few = {"train__steps": SOME_STEPS}
    odd, half = gpt(small_data, heads=3, **few), gpt(small_data, **few, train__precision="bf16", optimizer__lr=3e-3)
    reference = run_ranks(curves, 1, {"odd": odd, "half": half, "recomputed": gpt(small_data, **few)})[0]
    recomputed = gpt(small_data, **few, parallel__checkpoint_activations="all")
    cases = {"odd": cut(odd, "zero1+sequence2", 2)}
    for attention in ATTENTIONS:
        cases[f"half {attention}"] = cut(half, "zero1+sequence2", 2, attention)
        cases[f"recomputed {attention}"] = cut(recomputed, "zero3+sequence2", 2, attention)
    for case, got in run_ranks(curves, 2, cases)[0].items():
        limit = 5e-3 if case.startswith("half") else 1e-5
        assert largest_difference(got["loss"], reference[case.split()[0]]["loss"]) < limit, case


def curve_of_slices_alone(rank: int, world: int, values: dict[str, Any], guarded: bool) -> dict[str, Any]:
    """Ulysses as DeepSpeed's own config keys make it: ZeRO 0-2 never reduce the gradient over the sequence ranks."""
    import deepspeed

    from distdl.train.hooks.parity import ReplicaParity

    if not guarded:
        ReplicaParity.after_step = lambda *_: None  # type: ignore[method-assign]
    whole = deepspeed.initialize

    def initialize(config: dict[str, Any], **rest: Any) -> Any:
        keys = {"sequence_parallel_size": world, "data_parallel_size": 1}
        keys["train_batch_size"] = config["train_batch_size"] // world
        return whole(config=config | keys, **rest)

    deepspeed.initialize = initialize
    return curve(rank, values)


@pytest.mark.slow
def test_a_gradient_that_is_not_averaged_over_the_slices_would_be_seen(small_data: Path) -> None:
    """The numbers above would be off by far more than they may be, and the guard stops such a run."""
    values = gpt(small_data) | {"optimizer": OPTIMIZERS["sgd"]}
    reference = run_ranks(curves, 1, {"": values})[0][""]
    case = cut(values, "zero1+sequence2", 2, "ulysses")
    got = run_ranks(curve_of_slices_alone, 2, case, False)[0]
    assert largest_difference(got["loss"], reference["loss"]) > 1e-3
    with pytest.raises(
        AssertionError, match=r"in step 1 the optimizer of rank 0 does not get the gradient of wte\.weight"
    ):
        run_ranks(curve_of_slices_alone, 2, case, True)


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_identical(small_data: Path, tmp_path: Path) -> None:
    values = saved_often(gpt(small_data))
    cases = {a: cut(values, "zero1+sequence2", 2, a) for a in ATTENTIONS}
    interrupt_and_compare(cases, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_continues_with_another_cut_or_none(small_data: Path, tmp_path: Path) -> None:
    """Killed after step 13 of 20, with the checkpoint of step 10 behind it, and continued on the other layout."""
    base = saved_often(gpt(small_data))
    base["track"]["every_steps"] = 1
    one = {"values": layout(base, "torch", 1)}
    two = {"values": cut(base, "zero1+sequence2", 2)}
    paths = {name: {"folder": str(tmp_path / name)} for name in ("whole", "joined", "cut")}
    train(1, {"whole": one | paths["whole"]}, {"cut": one | paths["cut"]})
    train(2, {}, {"joined": two | paths["joined"]})
    go_on(1, {"joined": one | paths["joined"]})
    go_on(2, {"cut": two | paths["cut"]})
    want = metrics(tmp_path / "whole")
    assert len(want) == 20
    for name in ("joined", "cut"):
        got = metrics(tmp_path / name)
        assert max(abs(got[step] - want[step]) for step in range(1, 21)) < 1e-5, name


# -- the plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "name", "world", "attention"),
    [
        (4, "zero1+sequence2", 2, "ulysses"),
        (4, "zero1+tensor2+sequence2", 4, "ulysses"),
        (3, "zero1+sequence2", 2, "ring"),  # 3 heads over 2 ranks
        (2, "zero1+sequence4", 4, "ring"),  # fewer heads than ranks
        (2, "zero1+tensor2+sequence2", 4, "ring"),  # each part of the tensors has one head
    ],
)
def test_auto_is_ulysses_where_the_heads_divide(
    heads: int, name: str, world: int, attention: str, small_data: Path
) -> None:
    plan = survey(config_from_dict(cut(gpt(small_data, heads), name, world)))
    assert (plan.attention, plan.layout) == (attention, name)


def test_what_does_not_come_out_even_is_refused(small_data: Path) -> None:
    with pytest.raises(InputError, match="16 tokens cannot be shared evenly"):
        survey(config_from_dict(cut(gpt(small_data), "zero1+sequence3", 3)))
    with pytest.raises(InputError, match="ulysses shares 3 attention heads out over 2 ranks"):
        survey(config_from_dict(cut(gpt(small_data, 3), "zero1+sequence2", 2, "ulysses")))
