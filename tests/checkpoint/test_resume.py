"""Invariant 4, and bit-exact resume: interrupted and resumed equals never interrupted, on the same layout to the bit and
on any other within 1e-5, with exactly the samples that would have come."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.families import load_family
from distdl.parity.layouts import data_ranks
from tests.chosen import a_few
from tests.resumed import DIE_AFTER, Runs, events, go_on, train
from tests.small import MODELS, contract_config, layout, small_config

CUT = ["zero1+pipeline2", "zero1+tensor2", "zero2+sequence2", "zero3+tensor2"]
"""Layouts of two ranks that cut more than ZeRO does."""
EVERY_LAYOUT = ("mlp", "lenet5", "gpt")
"""Families that are run on all of them, and cut by an exception; the others' runs are cut by copying their folders."""
LAYOUTS = ["torch", "zero0", "zero1", "zero2", "zero3"]


def prepared(family: str, digits: str, text: str, **changes: Any) -> dict[str, Any]:
    return saved_often(small_config(family, digits, text, **changes))


def saved_often(values: dict[str, Any]) -> dict[str, Any]:
    values["checkpoint"] = {
        "every_steps": 5,
        "keep_best": 0,
    }  # nothing is saved where an epoch's end is the best so far
    values["train"]["micro_batch"] = 4 if values["optimizer"]["name"] != "none" else None
    return values


def last(folder: Path) -> Checkpoint:
    return Checkpoint(checkpoints(folder / "checkpoints")[-1][1])


def differing(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Names of the tensors that are not the same bits."""
    assert a.step == b.step == 20
    assert a.tensors.keys() == b.tensors.keys()
    return [name for name in a.tensors if not torch.equal(a.read(name), b.read(name))]


def metrics(folder: Path) -> dict[int, float]:
    """Step -> logged loss, the last word on every step."""
    return {event["step"]: event["values"]["loss"] for event in events(folder, "metrics")}


def family_runs(data: Path) -> dict[str, dict[str, Any]]:
    """Three families on every layout, the others on the reference and on the highest ZeRO stage they are proven on."""
    cases = {}
    for family in MODELS:
        layouts = sorted(load_family(family).layouts & set(LAYOUTS))
        layouts += CUT if family == "gpt" else []
        for name in layouts if family in EVERY_LAYOUT else sorted({"torch", layouts[-1]}):
            cases[f"{family}/{name}"] = layout(saved_often(contract_config(family, data)), name, 2)
    return cases


def interrupt_and_compare(cases: dict[str, dict[str, Any]], folder: Path, raised: Collection[str] = ()) -> None:
    """Two ranks, killed after step 13 with the checkpoint of step 10 behind them, go on to the bits of the whole run. From
    that run's folder as it was when it took step 13; or, the cases of `raised`, after an exception in a run of their own.
    """
    whole = {f"{n}/whole": {"values": v, "folder": str(folder / n / "whole")} for n, v in cases.items()}
    cut = {f"{n}/cut": {"values": v, "folder": str(folder / n / "cut")} for n, v in cases.items()}
    for name in cases.keys() - set(raised):
        whole[f"{name}/whole"]["copied"] = (DIE_AFTER, cut[f"{name}/cut"]["folder"])
    train(2, whole, {name: run for name, run in cut.items() if name.removesuffix("/cut") in raised}, timeout_s=1500)
    go_on(2, cut, timeout_s=1500)
    for name in cases:
        assert differing(last(folder / name / "whole"), last(folder / name / "cut")) == [], name


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_interrupted_and_resumed_is_bit_identical(digits: str, text: str, small_data: Path, tmp_path: Path) -> None:
    """Every family with its noise on, on a choice of layouts in which all are, and every optimizer's state."""
    cases = family_runs(small_data)
    interrupt_families({name: cases[name] for name in a_few(list(cases))}, digits, text, tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3000)
def test_interrupted_and_resumed_is_bit_identical_on_more_layouts(
    digits: str, text: str, small_data: Path, tmp_path: Path
) -> None:
    """All of `family_runs`."""
    interrupt_families(family_runs(small_data), digits, text, tmp_path)


def interrupt_families(cases: dict[str, dict[str, Any]], digits: str, text: str, folder: Path) -> None:
    """`interrupt_and_compare` of these, and of what else has a state of its own."""
    cases = dict(cases)
    raised = {name for name in cases if name.partition("/")[0] in EVERY_LAYOUT}
    for optimizer in (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "adagrad", "lr": 0.05},
        {"name": "rmsprop", "lr": 3e-3, "momentum": 0.5},
        {"name": "lion", "lr": 1e-3},
    ):
        values = layout(prepared("mlp", digits, text), "zero2", 2)
        cases[f"{optimizer['name']}-zero2"] = values | {"optimizer": optimizer}
    for zero in ("zero1", "zero3"):
        cases[f"bf16-{zero}"] = layout(prepared("gpt", digits, text, train__precision="bf16"), zero, 2)
    interrupt_and_compare(cases, folder, raised)


PAIRS = [  # saved on -> continued on, each with its ranks
    (("zero1+tensor2", 2), [("torch", 1), ("zero1+pipeline2", 2), ("zero3", 4), ("zero3+tensor2+sequence2", 4)]),
    (("zero1+pipeline2", 2), [("torch", 1), ("zero3+tensor2", 2), ("zero1+tensor2+pipeline2", 4)]),
    (("zero2+sequence2", 2), [("zero1", 2), ("zero1+pipeline2", 4), ("zero0+tensor2", 4)]),
    (("torch", 1), [("zero1+tensor2+pipeline2", 4), ("zero2+sequence4", 4), ("zero3+tensor2", 2)]),
    (("zero1+tensor2+pipeline2", 4), [("zero3", 2), ("torch", 1)]),
]
EXPERT_PAIRS = [
    (("zero1+expert2", 2), [("torch", 1), ("zero2+expert4", 4)]),
    (("torch", 1), [("zero2+expert2", 2)]),
    (("zero3", 2), [("zero1+expert2", 4)]),
]
EXPERTS = {"experts": 4, "experts_every": 1, "experts_top_k": 2}


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
def test_a_checkpoint_continues_however_the_model_is_cut(experts: bool, digits: str, text: str, tmp_path: Path) -> None:
    """Ordered pairs of layouts; the loss stays that of the reference never interrupted, and so do the samples."""
    base = prepared("gpt", digits, text)
    base["model"] |= EXPERTS if experts else {}
    base["track"]["every_steps"] = 1
    pairs = EXPERT_PAIRS if experts else PAIRS
    whole = {"reference": {"values": cut(base, "torch", 1), "folder": str(tmp_path / "reference")}}
    first: dict[int, Runs] = {1: {}, 2: {}, 4: {}}
    then: dict[int, Runs] = {1: {}, 2: {}, 4: {}}
    for (name, world), targets in pairs:
        for target, target_world in targets:
            folder = str(tmp_path / f"{name}x{world} to {target}x{target_world}")
            first[world][folder] = {"values": cut(base, name, world), "folder": folder}
            then[target_world][folder] = {"values": cut(base, target, target_world), "folder": folder}
    for world, runs in first.items():
        train(world, whole if world == 1 else {}, runs)
    wanted, count = metrics(tmp_path / "reference"), 0
    for world, runs in then.items():
        go_on(world, runs)
        for path in map(Path, runs):
            got = metrics(path)
            assert max(abs(got[step] - wanted[step]) for step in range(1, 21)) < 1e-5, path.name
            assert samples(path) == samples(tmp_path / "reference"), path.name
            assert last(path).state.data == last(tmp_path / "reference").state.data
            count += 1
    assert count == (4 if experts else 15)


def cut(values: dict[str, Any], name: str, world: int) -> dict[str, Any]:
    """The run on a layout, with two micro-batches a step."""
    values = layout(values, name, world)
    values["train"]["micro_batch"] = values["train"]["global_batch"] // data_ranks(name, world) // 2
    return values


def samples(folder: Path) -> dict[int, list[int]]:
    """Step -> the rows that all ranks together learned from, the last word on every step."""
    rows: dict[int, dict[int, set[int]]] = {}
    for path in sorted(folder.glob("samples-*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        for line in path.read_text().splitlines():
            told = json.loads(line)
            rows.setdefault(told["step"], {})[told["attempt"]] = set(told["rows"]) | rows.get(told["step"], {}).get(
                told["attempt"], set()
            )
    assert sorted(rows) == list(range(1, 21))
    return {step: sorted(attempts[max(attempts)]) for step, attempts in rows.items()}


@pytest.mark.slow
def test_a_checkpoint_continues_on_any_other_layout(digits: str, text: str, tmp_path: Path) -> None:
    """Sixteen ordered pairs of layouts and world sizes; the loss stays that of the uninterrupted reference."""
    sources = [("torch", 1), ("zero1", 2), ("zero2", 2), ("zero3", 2)]
    targets = [("torch", 2), ("zero0", 1), ("zero1", 4), ("zero3", 4)]
    base = prepared("gpt", digits, text)
    base["train"]["micro_batch"] = None
    base["track"]["every_steps"] = 1
    reference = {"values": layout(base, "torch", 1), "folder": str(tmp_path / "reference")}
    first: dict[int, Runs] = {1: {}, 2: {}}
    then: dict[int, Runs] = {1: {}, 2: {}, 4: {}}
    for name, world in sources:
        for target, target_world in targets:
            pair = f"{name}x{world} to {target}x{target_world}"
            folder = str(tmp_path / pair)
            first[world][pair] = {"values": layout(base, name, world), "folder": folder}
            then[target_world][pair] = {"values": layout(base, target, target_world), "folder": folder}
    for world, runs in first.items():
        train(world, {"reference": reference} if world == 1 else {}, runs)
    wanted = metrics(tmp_path / "reference")
    assert len(wanted) == 20
    count = 0
    for world, runs in then.items():
        go_on(world, runs)
        for pair, run in runs.items():
            got = metrics(Path(run["folder"]))
            assert max(abs(got[step] - wanted[step]) for step in range(1, 21)) < 1e-5, pair
            count += 1
    assert count == 16
