"""Silent errors of DeepSpeed that distdl avoids: each is shown to bite where the remedy is taken away.

Others stand where they belong: bf16 at ZeRO-0 in test_parity.py (its bf16 case is run at every stage), the norm of one
pipeline stage in test_pipeline.py, gradients that are not averaged over the slices of a sequence in test_sequence.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.parity.layouts import candidates, data_ranks
from distdl.train.survey import survey
from tests.parity.test_parity import largest_difference
from tests.ranks import run_ranks
from tests.small import contract_config, curve, layout

SGD = {"name": "sgd", "lr": 0.1}  # shows a wrong scale of the gradient, which Adam hides


def run(data: Path, name: str, world: int, clip_norm: float | None) -> dict[str, Any]:
    values = layout(contract_config("gpt", data, train__clip_norm=clip_norm) | {"optimizer": SGD}, name, world)
    values["train"]["micro_batch"] = 16 // data_ranks(name, world) // 2
    return values


def with_traps(rank: int, world: int, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The curve of each case, or the error. Names that begin with `unset` leave the clipping out of DeepSpeed's JSON,
    `unmarked` do not mark cut tensors, `unsliced` tell it the batch without the slices of a sequence."""
    import deepspeed

    from distdl.parallel import tensor
    from distdl.train.hooks.parity import ReplicaParity

    initialize, mark, out = deepspeed.initialize, tensor.mark, {}
    ReplicaParity.after_step = lambda *_: None  # type: ignore[method-assign]

    def initialized(config: dict[str, Any], **rest: Any) -> Any:
        config = dict(config)
        if trap == "unset":
            del config["gradient_clipping"]
        if trap == "unsliced":
            config["train_batch_size"] //= 2
        return initialize(config=config, **rest)

    def marked(parameter: Any, shard: Any) -> None:
        mark(parameter, shard)
        if trap == "unmarked":
            del parameter.model_parallel, parameter.tensor_model_parallel

    deepspeed.initialize, tensor.mark = initialized, marked
    for name, values in cases.items():
        trap = name.split()[0]
        try:
            out[name] = curve(rank, values)
        except AssertionError as error:
            out[name] = {"error": str(error)}
    return out


@pytest.fixture(scope="module")
def found(small_data: Path) -> dict[str, Any]:
    cases = {f"unclipped zero{z}": run(small_data, f"zero{z}", 2, None) for z in range(4)}
    cases |= {f"clipped zero{z}+tensor2": run(small_data, f"zero{z}+tensor2", 2, 0.2) for z in range(4)}
    cases["unset zero1"] = run(small_data, "zero1", 2, None)
    cases["unmarked zero1+tensor2"] = run(small_data, "zero1+tensor2", 2, 0.2)
    cases["unsliced zero1+sequence2"] = run(small_data, "zero1+sequence2", 2, None)
    return run_ranks(with_traps, 2, cases)[0]


@pytest.fixture(scope="module")
def reference(small_data: Path) -> dict[str, Any]:
    cases = {f"clip {clip}": run(small_data, "torch", 1, clip) for clip in (None, 0.2)}
    return run_ranks(with_traps, 1, cases)[0]


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert largest_difference(got["loss"], want["loss"]) < 1e-5
    assert got["norm"] == pytest.approx(want["norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zero", range(4))
def test_without_clipping_nothing_is_clipped(zero: int, found: dict[str, Any], reference: dict[str, Any]) -> None:
    """`gradient_clipping` defaults to 1.0, and these gradients are longer."""
    want = reference["clip None"]
    assert sum(norm > 1 for norm in want["norm"]) >= 5
    same(found[f"unclipped zero{zero}"], want)


@pytest.mark.slow
def test_a_clipping_left_out_would_be_seen(found: dict[str, Any], reference: dict[str, Any]) -> None:
    assert largest_difference(found["unset zero1"]["loss"], reference["clip None"]["loss"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("zero", range(4))
def test_the_norm_of_cut_tensors_is_that_of_the_whole(
    zero: int, found: dict[str, Any], reference: dict[str, Any]
) -> None:
    """Reported, and clipped by, at every stage; all steps are clipped."""
    want = reference["clip 0.2"]
    assert min(want["norm"]) > 0.2
    same(found[f"clipped zero{zero}+tensor2"], want)


@pytest.mark.slow
def test_cut_tensors_without_a_mark_would_be_seen(found: dict[str, Any], reference: dict[str, Any]) -> None:
    """DeepSpeed counts a parameter on the first tensor rank only, unless it is marked as a part."""
    got, want = found["unmarked zero1+tensor2"], reference["clip 0.2"]
    assert largest_difference(got["loss"], want["loss"]) > 1e-3
    assert max(abs(a - b) / b for a, b in zip(got["norm"], want["norm"])) > 1e-2


@pytest.mark.slow
def test_deepspeed_counts_a_slice_of_a_sequence_as_samples(found: dict[str, Any]) -> None:
    """The real batch size is refused by it: the JSON must hold the one that it computes."""
    assert "batch" in found["unsliced zero1+sequence2"]["error"]


@pytest.mark.slow
def test_the_batch_that_deepspeed_computes_is_the_one_it_is_told(small_data: Path) -> None:
    """Of every layout of eight processes: its check is micro-batch x accumulation x (data x sequence) ranks."""
    planned = 0
    for name in candidates(8):
        try:
            plan = survey(config_from_dict(run(small_data, name, 8, None)))
        except InputError:
            continue
        if told := plan.deepspeed:
            ranks = plan.mesh.data * plan.mesh.sequence
            product = told["train_micro_batch_size_per_gpu"] * told["gradient_accumulation_steps"] * ranks
            assert told["train_batch_size"] == product == 16 * plan.mesh.sequence
            planned += 1
    assert planned > 20


def sums(rank: int, world: int) -> dict[str, Any]:
    """The numbers 1 to 4 summed by DeepSpeed over ranks 0-1 and 2-3, and what it did with its shared-memory operator."""
    from distdl.engine.deepspeed_import import import_deepspeed

    deepspeed = import_deepspeed("cpu")
    import torch
    import torch.distributed as dist
    from deepspeed import comm
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    deepspeed.init_distributed("gloo")
    mine = [dist.new_group(pair) for pair in ([0, 1], [2, 3])][rank // 2]
    out: dict[str, Any] = {"operator": str(comm.comm.cdb.shm_comm_op)}
    for name in ("all_reduce", "inference_all_reduce"):  # the second is what takes the operator
        numbers = torch.tensor([rank + 1.0] * 64)
        getattr(comm, name)(numbers, group=mine)
        out[name] = numbers.unique().tolist()

    ShareMemCommBuilder.load = lambda self, verbose=True: "loaded"
    out["ours"] = build_shm_op()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = True  # as where a compiler is found
    out["deepspeed's"] = build_shm_op()
    return out


@pytest.mark.slow
def test_a_sum_over_some_ranks_is_not_over_others() -> None:
    """The operator knows no groups: it would sum over all ranks, after a minute of compiling it."""
    for rank, found in enumerate(run_ranks(sums, 4)):
        want = [3.0] if rank < 2 else [7.0]
        assert (found["all_reduce"], found["inference_all_reduce"]) == (want, want)
        assert (found["operator"], found["ours"], found["deepspeed's"]) == ("None", None, "loaded")
