"""What a layout keeps for the whole process is put back: engines that follow or take turns meet nothing of each other."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.layout import axes, noise, process
from distdl.layout.axes import Axis
from distdl.layout.process import ProcessState
from tests.ranks import run_ranks
from tests.small import contract_config, curve, layout, trained


def shared() -> tuple[Any, ...]:
    """What this process keeps, but for DeepSpeed's."""
    here = axes.here
    switches = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    of_axes = here.tensor, here.sequence, here.expert, here.attention
    return *of_axes, noise.active(), noise._scope.seed, noise._scope.draws, torch.get_num_threads(), switches, filled


def disturb() -> None:
    axes.here.tensor, axes.here.sequence, axes.here.expert = Axis(2, 1), Axis(4, 3), Axis(2, 0)
    axes.here.attention = lambda q, k, v, window: q
    noise.begin(7, torch.arange(3))
    noise.uniform(3)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def test_all_is_put_back_also_after_an_error() -> None:
    before = shared()
    with pytest.raises(RuntimeError, match="power cut"), ProcessState():
        disturb()
        assert shared() != before
        raise RuntimeError("power cut")
    assert shared() == before


def test_what_was_left_outside_is_not_met_within_and_is_there_again() -> None:
    fresh = shared()
    with ProcessState():  # for this test: what is disturbed here is put back at its end
        disturb()
        disturbed = shared()
        with ProcessState():
            assert shared()[:7] == fresh[:7]  # what a plan sets anyway is left as it is
        assert shared() == disturbed
    assert shared() == fresh


def test_two_that_take_turns_find_their_own() -> None:
    one, two = ProcessState(), ProcessState()
    with one:
        disturb()
        left = shared()
    with two:
        axes.here.tensor = Axis(8, 5)
    with one:
        assert shared() == left
    with two:
        assert axes.here.tensor == Axis(8, 5) and axes.here.sequence == Axis()
        with pytest.raises(AssertionError, match="entered already"), two:
            pass


def test_what_a_library_that_is_loaded_late_replaces_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_things", dict(process._things))
    library = types.SimpleNamespace(linear="as the user has it", groups={})
    with ProcessState():
        process.owns(library, linear="torch's", groups={})
        library.linear, mine = "ZeRO-3's", library.groups
        library.groups["ep_size_2"] = 1
        process.owns(library, linear="ZeRO-3's")  # by the next engine: changes nothing
    assert library.linear == "as the user has it" and library.groups == {}
    library.groups = {"an earlier engine's": 2}
    for _ in range(2):
        with ProcessState():
            assert library.linear == "torch's" and library.groups == {} and library.groups is not mine
            library.groups["ep_size_4"] = 3
        assert library.groups == {"an earlier engine's": 2}


def left_of_deepspeed() -> list[str]:
    """What engines have left in this process that a fresh one has not."""
    from deepspeed.runtime.pipe import p2p
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.utils import groups

    found = {
        "linear": torch.nn.functional.linear is not torch._C._nn.linear,
        "mpu": groups.mpu is not None,
        "groups of experts": bool(groups._EXPERT_PARALLEL_GROUP or groups._EXPERT_DATA_PARALLEL_GROUP),
        "the pipeline's grid": p2p._grid is not None,
        "modules of ZeRO-3": bool(parameter_offload.FWD_MODULE_STACK),
    }
    return [name for name, there in found.items() if there]


def in_turn(rank: int, world: int, runs: dict[str, Any], worker_run: dict[str, Any] | None = None) -> dict[str, Any]:
    """Curves of runs, one after the other in this process; after each what it has left."""
    fresh, out = shared(), {}
    for name, values in runs.items():
        out[name] = curve(rank, values)
        out[name]["left"] = [*left_of_deepspeed(), *(["our own"] if shared() != fresh else [])]
    if worker_run:
        out["worker"] = {"error": trained(rank, world, {"worker": worker_run})["worker"], "left": left_of_deepspeed()}
    return out


ONE_AFTER_THE_OTHER = ("zero3", "zero1+expert2", "zero1+tensor2", "zero1+pipeline2", "zero1+sequence2", "torch")


@pytest.mark.slow
def test_engines_one_after_the_other_are_engines_in_processes_of_their_own(small_data: Path, tmp_path: Path) -> None:
    """Bit for bit: a grid or groups that another layout has left would be seen, and ZeRO-3's linear function, which in
    bf16 rounds twice."""
    runs = {}
    for name in ONE_AFTER_THE_OTHER:
        values = contract_config("gpt", small_data, train__steps=4)
        values["model"] |= {"experts": 4} if "expert" in name else {}
        values["train"] |= {"micro_batch": 4, "precision": "bf16" if name == "torch" else "fp32"}
        runs[name] = layout(values, name, 2)
    by_worker = {"values": layout(contract_config("gpt", small_data, train__steps=2), "zero3", 2)}
    together = run_ranks(in_turn, 2, runs, {**by_worker, "folder": str(tmp_path / "run")})
    for rank in together:
        assert {name: found["left"] for name, found in rank.items()} == {name: [] for name in [*runs, "worker"]}
        assert rank["worker"]["error"] == ""
    for name in ("zero1+tensor2", "zero1+pipeline2", "torch"):  # the first is in a fresh process as it is
        alone = run_ranks(in_turn, 2, {name: runs[name]})
        assert [rank[name] for rank in alone] == [rank[name] for rank in together], name
