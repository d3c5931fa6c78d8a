"""The guard of gradients: every sum over ranks is taken out in turn, and the run ends in its first step with the name of a
parameter; a sound run on the same layout goes through with every step watched."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.errors import TrainingFailed
from distdl.parity.layouts import data_ranks
from distdl.train.survey import survey
from tests.ranks import run_ranks
from tests.small import contract_config, curve, layout, small_config

SPARSE = {"experts": 4, "experts_top_k": 2, "capacity": 1.25, "balance_loss": 0.05}
LAYOUTS = ("torch", "zero0", "zero1", "zero2", "zero3")
CUT = ("zero1+pipeline2", "zero1+tensor2", "zero3+tensor2", "zero2+sequence2", "zero2+expert2")


def gpt(data: Path, name: str, world: int = 2, **changes: Any) -> dict[str, Any]:
    """A small one with two accumulated micro-batches, clipped, and every step watched."""
    values = contract_config("gpt", data, train__steps=3, guard__parity_every_steps=1, **changes)
    values["data"]["eval_split"] = None
    if "expert" in name:
        values["model"] |= SPARSE
    values = layout(values, name, world)
    values["train"]["micro_batch"] = 16 // data_ranks(name, world) // 2
    return values


# -- what is taken out ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sound(rank: int, name: str) -> Iterator[None]:
    yield


@contextlib.contextmanager
def unreduced(rank: int, name: str) -> Iterator[None]:
    """Every rank keeps its own gradient; only those of experts, where these are named."""
    import deepspeed.comm
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero import stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    from distdl.engine.torch import TorchEngine

    average, reduce = DeepSpeedZeroOptimizer.average_tensor, DeepSpeedZeroOptimizer.gradient_reduction_w_predivide

    sums = deepspeed.comm.all_reduce

    def unless_all(tensor: torch.Tensor, group: Any = None, **rest: Any) -> None:
        if name == "experts" and deepspeed.comm.get_world_size(group) == deepspeed.comm.get_world_size():
            sums(tensor, group=group, **rest)

    def alone(self: Any, *args: Any) -> None:
        with patch.multiple(deepspeed.comm, all_reduce=unless_all, reduce=unless_all):
            average(self, *args)

    def alone_in_one_piece(self: Any, *args: Any) -> torch.Tensor:
        with patch.multiple(deepspeed.comm, all_reduce=unless_all, reduce=unless_all):
            return cast("torch.Tensor", reduce(self, *args))

    def own_parts(gradients: list[torch.Tensor], group: Any) -> list[torch.Tensor]:
        return [g.flatten().chunk(2)[rank].clone() for g in gradients]

    with (
        patch.object(TorchEngine, "_wrap", lambda self, net: net),
        patch.object(DeepSpeedEngine, "buffered_allreduce_fallback", lambda *a, **k: None),
        patch.object(DeepSpeedZeroOptimizer, "average_tensor", alone),
        patch.object(DeepSpeedZeroOptimizer, "gradient_reduction_w_predivide", alone_in_one_piece),
        patch.object(stage3, "reduce_scatter_coalesced", own_parts),
    ):
        yield


@contextlib.contextmanager
def changed(name: str, how: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """`how` is done to this rank's part of a sum of ZeRO 1 or 2, the gradient of the parameter `name`."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    from distdl.engine.deepspeed import DeepSpeedEngine

    average, wrap = DeepSpeedZeroOptimizer.average_tensor, DeepSpeedEngine._wrap
    reduce = DeepSpeedZeroOptimizer.gradient_reduction_w_predivide
    chosen: list[Any] = []
    of_buckets: list[bool] = []

    def wrapped(self: Any, net: Any) -> Any:
        chosen[:] = [p for _, n, p in self.named() if n == name]
        return wrap(self, net)

    def averaged(self: Any, tensor: torch.Tensor, dtype: Any) -> None:
        place = 0
        for group, index, _ in self.ipg_buckets[dtype].params:
            parameter = self.bit16_groups[group][index]
            if any(parameter is p for p in chosen):
                how(tensor[place : place + parameter.numel()])
            place += parameter.numel()
        of_buckets.append(True)
        average(self, tensor, dtype)
        of_buckets.pop()

    def summed(self: Any, tensor: torch.Tensor, dtype: Any) -> torch.Tensor:
        place = 0
        for group, flat in zip(self.bit16_groups, self.bit16_groups_flat) if not of_buckets else ():
            begin = place
            for parameter in group:
                if any(parameter is p for p in chosen):
                    how(tensor[begin : begin + parameter.numel()])
                begin += parameter.numel()
            place += flat.numel()  # padding and all
        return cast("torch.Tensor", reduce(self, tensor, dtype))

    with (
        patch.object(DeepSpeedEngine, "_wrap", wrapped),
        patch.object(DeepSpeedZeroOptimizer, "average_tensor", averaged),
        patch.object(DeepSpeedZeroOptimizer, "gradient_reduction_w_predivide", summed),
    ):
        yield


def first_rank_only(rank: int, name: str) -> contextlib.AbstractContextManager[None]:
    """The sum counts the gradient of rank 0 only, for one parameter."""
    return changed(name, lambda part: part.mul_(0 if rank else 2))


def doubled(rank: int, name: str) -> contextlib.AbstractContextManager[None]:
    return changed(name, lambda part: part.mul_(2))


@contextlib.contextmanager
def untied(rank: int, name: str) -> Iterator[None]:
    """Gradients of what several pipeline stages hold are not summed."""
    from distdl.engine import stages

    with patch.object(stages, "ties", lambda *args: []):
        yield


@contextlib.contextmanager
def apart(rank: int, name: str) -> Iterator[None]:
    """They are, and a stage changes its copy of the weight."""
    from distdl.engine.pipeline import PipelineEngine

    minimize = PipelineEngine.minimize

    def changed(self: Any, *args: Any) -> None:
        minimize(self, *args)
        if rank:
            dict(self.learner.named_parameters())[name].data[0, 0] += 1e-3

    with patch.object(PipelineEngine, "minimize", changed):
        yield


@contextlib.contextmanager
def unclipped(rank: int, name: str) -> Iterator[None]:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    with patch.object(DeepSpeedZeroOptimizer, "unscale_and_clip_grads", lambda *a, **k: None):
        yield


@contextlib.contextmanager
def halved_input(rank: int, name: str) -> Iterator[None]:
    """The gradient of a column-cut layer's input is not summed over the tensor axis."""
    from distdl.layout.axes import _Copied

    with patch.object(_Copied, "backward", staticmethod(lambda ctx, grad: grad)):
        yield


MUTANTS: dict[str, Callable[[int, str], contextlib.AbstractContextManager[None]]] = {
    f.__name__: f for f in (sound, unreduced, first_rank_only, doubled, untied, apart, unclipped, halved_input)
}


def ends(rank: int, world: int, cases: dict[str, tuple[str, str, dict[str, Any]]]) -> dict[str, str]:
    """Case -> (mutant, parameter, config). What each run ends with: the guard's words, or how many gradients it saw."""
    from distdl.train.hooks.gradients import GradientWatch

    seen: list[int] = []
    compared = GradientWatch._compared

    def counted(self: GradientWatch, step: int) -> str:
        seen.append(len(self.names))
        return compared(self, step)

    out = {}
    with patch.object(GradientWatch, "_compared", counted):
        for case, (mutant, name, values) in cases.items():
            seen.clear()
            try:
                with MUTANTS[mutant](rank, name):
                    curve(rank, values)
                out[case] = f"{len(seen)} steps of {seen[0] if seen else 0}"
            except TrainingFailed as error:
                out[case] = str(error)
    return out


ONE = ("blocks.1.ln2.weight", "blocks.0.attn.out.bias", "blocks.0.up.weight")
"""A gain, a bias and a matrix."""
EXPERT = "blocks.1.moe.experts.0.up.weight"


@pytest.fixture(scope="module")
def ended(small_data: Path) -> list[dict[str, str]]:
    plain, half = {"optimizer": {"name": "sgd", "lr": 0.1}}, {"train__precision": "bf16"}
    cases: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for name in (*LAYOUTS, *CUT):
        cases[f"sound {name}"] = ("sound", "", gpt(small_data, name, **plain))
    for name in ("zero0", "zero1", "zero3", "zero1+pipeline2"):
        cases[f"sound {name} bf16"] = ("sound", "", gpt(small_data, name, **half))
    for name in (*LAYOUTS, "zero2+sequence2"):
        cases[f"unreduced {name}"] = ("unreduced", "", gpt(small_data, name))
    cases["unreduced zero2 bf16"] = ("unreduced", "", gpt(small_data, "zero2", **half))
    for name in ONE:
        cases[f"first rank only {name}"] = ("first_rank_only", name, gpt(small_data, "zero2"))
    cases["doubled"] = ("doubled", EXPERT, gpt(small_data, "zero2+expert2"))
    for mutant in ("untied", "apart", "unclipped"):
        cases[mutant] = (mutant, "wte.weight", gpt(small_data, "zero1+pipeline2"))
    for name in ("zero1+tensor2", "zero3+tensor2"):
        cases[f"halved input {name}"] = ("halved_input", "", gpt(small_data, name))
    return run_ranks(ends, 2, cases)


@pytest.mark.slow
def test_every_rank_ends_with_the_same_words(ended: list[dict[str, str]]) -> None:
    one, other = ({case: said for case, said in rank.items() if not case.startswith("sound")} for rank in ended)
    assert one == other


@pytest.mark.slow
def test_a_sound_run_goes_through_with_every_parameter_compared_in_every_step(ended: list[dict[str, str]]) -> None:
    """Accumulated and clipped; fp32 and bf16."""
    for rank, said in enumerate(ended):
        for case in (case for case in said if case.startswith("sound")):
            stage = (2, 27)[rank]  # a pipeline's stages hold the embeddings, and the rest with one of them again
            count = stage if "pipeline" in case else 33 if "expert" in case else 28
            assert said[case] == f"3 steps of {count}", case


@pytest.mark.slow
def test_gradients_that_are_not_reduced_are_found_on_every_engine(ended: list[dict[str, str]]) -> None:
    """ZeRO's stages 1 to 3 end with equal replicas all the same."""
    for case, said in ended[0].items():
        if case.startswith("unreduced"):
            told = "in step 1 the optimizer of rank 0 does not get the gradient of wte.weight that was worked out"
            assert f"{told}, averaged over ranks 0 and 1: it is off by about 0." in said, case
            assert "So it is with 28 of its 28 parameters" in said and "not summed over these ranks" in said, case


@pytest.mark.slow
def test_a_single_gradient_is_found(ended: list[dict[str, str]]) -> None:
    for name in ONE:
        said = ended[0][f"first rank only {name}"]
        assert f"does not get the gradient of {name} " in said and "with 1 of its 28 parameters" in said
    said = ended[0]["doubled"]
    assert f"the gradient of {EXPERT} that was worked out" in said and "it is 2 times that" in said


@pytest.mark.slow
def test_what_pipeline_stages_share_is_compared(ended: list[dict[str, str]]) -> None:
    """Its gradients, its weights; and that the whole gradient is clipped."""
    untied, moved, unclipped = (ended[0][case] for case in ("untied", "apart", "unclipped"))
    told = "the gradient of wte.weight that was worked out, summed over pipeline stages 1 and 2: it is off by about 0."
    assert told in untied and "with 1 of its 2 parameters" in untied
    assert "after step 1 the replicas differ: wte.weight is not the same on rank 0 and on rank 1" in moved
    assert re.search(r"it is [23]\.\d+ times that. So it is with 2 of its 2 parameters", unclipped)


@pytest.mark.slow
def test_a_gradient_that_the_tensor_axis_does_not_sum_is_found(ended: list[dict[str, str]]) -> None:
    for case in ("halved input zero1+tensor2", "halved input zero3+tensor2"):
        said = ended[0][case]
        assert (
            "in step 1 the gradient of wpe.weight, which the tensor axis does not cut, is not the same on rank 0"
            in said
        )


def test_a_loss_that_is_scaled_and_a_step_that_is_not_taken(digits: str) -> None:
    """As in fp16: the gradient is divided by the scale before the step, and a player without a step is watched on."""
    from distdl.engine.torch import TorchEngine
    from distdl.train import worker
    from distdl.train.hooks.gradients import GradientWatch

    values = small_config("mlp", digits, "", train__steps=9)
    config = config_from_dict(values)
    plan = survey(config)
    learner = worker.build_learner(config, None)
    engine = worker.make_engine(learner, plan, 0)
    assert isinstance(engine, TorchEngine)
    optimizer, source = engine.optimizers["learner"], worker.make_source(plan, 0)
    watch = GradientWatch(engine)

    def step(number: int) -> str:
        watch.forget()
        for batch in engine.feed(source, number):
            learner.update(batch, engine, number)
        return watch.compare(number) if watch.seen else "no step"

    def divide(*_: Any) -> None:
        for p in learner.parameters():
            p.grad /= 8

    with contextlib.closing(source):
        watch.arm()
        with patch.object(optimizer, "step", lambda: None):
            assert step(1) == "no step"
        assert step(2) == "" and step(3) == "no step", "the one that came, and no other"
        optimizer.register_step_pre_hook(divide)
        with (
            patch.object(TorchEngine, "_backward", lambda self, loss: (8 * loss).backward()),
            patch.object(TorchEngine, "clipped", lambda *_: engine.config.train.clip_norm / float(engine.grad_norm)),
        ):
            with patch.object(TorchEngine, "loss_scale", lambda *_: 8.0):
                watch.arm()
                assert step(4) == ""
            watch.arm()
            assert "it is 0.125 times that" in step(5)


@pytest.mark.slow
def test_experts_are_compared_with_those_of_the_ranks_that_hold_them(small_data: Path) -> None:
    values = gpt(small_data, "zero2+expert2", 4)
    cases = {"sound": ("sound", "", values), "unreduced": ("unreduced", "experts", values)}
    ranks = run_ranks(ends, 4, cases)
    assert {rank["sound"] for rank in ranks} == {"3 steps of 33"}
    (said,) = {rank["unreduced"] for rank in ranks}
    assert (
        f"the gradient of {EXPERT.replace('weight', '')}" in said and "averaged over ranks 0 and 2: it is off" in said
    )
    assert "with 8 of its 33 parameters" in said
