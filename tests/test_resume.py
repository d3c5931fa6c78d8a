"""Invariant 4, and bit-exact resume: interrupted and resumed equals never interrupted, on the same layout to the bit and
on any other within 1e-5, with exactly the samples that would have come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.families import load_family
from tests.ranks import run_ranks
from tests.small import MODELS, contract_config, layout, small_config, trained

LAYOUTS = ["torch", "zero0", "zero1", "zero2", "zero3"]


def prepared(family: str, digits: str, text: str, **changes: Any) -> dict[str, Any]:
    return saved_often(small_config(family, digits, text, **changes))


def saved_often(values: dict[str, Any]) -> dict[str, Any]:
    values["checkpoint"] = {"every_steps": 5}
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
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return {e["step"]: e["values"]["loss"] for e in events if e["kind"] == "metrics"}


def family_runs(data: Path) -> dict[str, dict[str, Any]]:
    """Three families on every layout, the others on the reference and on the highest ZeRO stage they are proven on."""
    cases = {}
    for family in MODELS:
        layouts = sorted(load_family(family).layouts)
        for name in layouts if family in ("mlp", "lenet5", "gpt") else sorted({"torch", layouts[-1]}):
            cases[f"{family}-{name}"] = layout(saved_often(contract_config(family, data)), name, 2)
    return cases


def interrupt_and_compare(cases: dict[str, dict[str, Any]], folder: Path) -> None:
    """Two ranks, killed after step 13 with the checkpoint of step 10 behind them, go on to the bits of the whole run."""
    whole = {f"{n}/whole": {"values": v, "folder": str(folder / n / "whole")} for n, v in cases.items()}
    cut = {f"{n}/cut": {"values": v, "folder": str(folder / n / "cut"), "die_after": 13} for n, v in cases.items()}
    ended = run_ranks(trained, 2, whole | cut, timeout_s=1500)[0]
    assert {n: ended[n] for n in whole if ended[n]} == {}
    assert {n: ended[n] for n in cut if ended[n] != "power cut"} == {}
    assert all(last(Path(run["folder"])).step == 10 for run in cut.values())

    again = {name: run | {"die_after": 0} for name, run in cut.items()}
    ended = run_ranks(trained, 2, again, timeout_s=1500)[0]
    assert {n: ended[n] for n in cut if ended[n]} == {}
    for name in cases:
        assert differing(last(folder / name / "whole"), last(folder / name / "cut")) == [], name


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_identical(digits: str, text: str, small_data: Path, tmp_path: Path) -> None:
    """Every family with its noise on, and every optimizer's state."""
    cases = family_runs(small_data)
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
    interrupt_and_compare(cases, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_continues_on_any_other_layout(digits: str, text: str, tmp_path: Path) -> None:
    """Twelve ordered pairs of layouts and world sizes; the loss stays that of the uninterrupted reference."""
    sources = [("torch", 1), ("zero1", 2), ("zero2", 2), ("zero3", 2)]
    targets = [("torch", 2), ("zero0", 1), ("zero1", 4), ("zero3", 4)]
    base = prepared("gpt", digits, text)
    base["train"]["micro_batch"] = None
    base["track"]["every_steps"] = 1
    reference = {"values": layout(base, "torch", 1), "folder": str(tmp_path / "reference")}
    by_world: dict[int, dict[str, Any]] = {1: {"reference": reference}, 2: {}, 4: {}}
    for name, world in sources:
        run = {"values": layout(base, name, world), "die_after": 13}
        by_world[world] |= {
            f"{name}x{world}-{i}": run | {"folder": str(tmp_path / f"{name}x{world}-{i}")} for i in range(4)
        }
    for world in (1, 2):
        run_ranks(trained, world, by_world[world])
    pairs: dict[int, dict[str, Any]] = {1: {}, 2: {}, 4: {}}
    for name, world in sources:
        for i, (target, target_world) in enumerate(targets):
            folder = tmp_path / f"{name}x{world}-{i}"
            pairs[target_world][f"{folder.name} to {target}x{target_world}"] = {
                "values": layout(base, target, target_world),
                "folder": str(folder),
            }
    wanted = metrics(tmp_path / "reference")
    assert len(wanted) == 20
    count = 0
    for world, runs in pairs.items():
        assert set(run_ranks(trained, world, runs)[0].values()) == {""}
        for pair, run in runs.items():
            got = metrics(Path(run["folder"]))
            assert max(abs(got[step] - wanted[step]) for step in range(1, 21)) < 1e-5, pair
            count += 1
    assert count == 16
