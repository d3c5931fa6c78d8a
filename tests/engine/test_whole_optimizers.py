"""Optimizers that make a step of whole matrices, Muon and Adafactor: torch's own, which parameters they take, where they
run, and that a run goes on with what they keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distdl.checkpoint.verify import problems
from distdl.config.load import config_from_dict
from distdl.engine.optimizers import hidden_matrices, make_optimizer
from distdl.errors import InputError
from distdl.families import build
from distdl.train.survey import survey
from tests.checkpoint.test_resume import interrupt_and_compare, last, saved_often
from tests.small import contract_config, layout, measured, small_config

MUON = {"name": "muon", "lr": 0.01, "weight_decay": 0.1}
ADAFACTOR = {"name": "adafactor", "lr": 0.05, "weight_decay": 0.1}
MODEL = {"family": "gpt", "vocabulary": 30, "context": 8, "layers": 2, "heads": 2, "width": 16, "tied": False}


def config(optimizer: dict[str, Any]) -> Any:
    return config_from_dict({**small_config("gpt", "", "x"), "optimizer": optimizer})


def steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], number: int = 4) -> None:
    for seed in range(number):
        torch.manual_seed(seed)
        batch = {"tokens": torch.randint(30, (4, 9)), "id": torch.arange(4)}
        model.zero_grad()
        loss, _ = model(batch, 0)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def test_muon_takes_the_matrices_of_hidden_layers_and_adamw_the_rest() -> None:
    """Not the embedding, the places, the head: torch's two, each with its part."""
    ours: Any = build(MODEL)
    theirs = copy.deepcopy(ours)
    hidden = hidden_matrices(ours)
    names = {name for name, p in ours.named_parameters() if id(p) in hidden}
    of_block = ("attn.qkv", "attn.out", "up", "down")
    assert names == {f"blocks.{i}.{name}.weight" for i in range(2) for name in of_block}
    parameters = dict(theirs.named_parameters())
    matrices = [p for name, p in parameters.items() if name in names]
    tables = [parameters[f"{name}.weight"] for name in ("wte", "wpe", "lm_head")]
    others = [p for p in parameters.values() if p.ndim == 1]
    adamw = [{"params": tables, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    peers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, 0.01, 0.1, 0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adamw, 0.01, (0.9, 0.95)),
    ]
    mine = make_optimizer(config(MUON), ours)
    for group in mine.param_groups:
        group["lr"] = 0.01  # as an engine sets it
    before = copy.deepcopy(ours)
    steps(ours, [mine])
    steps(theirs, peers)
    for (name, p), q, old in zip(ours.named_parameters(), theirs.parameters(), before.parameters()):
        assert torch.equal(p, q) and not torch.equal(p, old), name


def test_the_learning_rate_reaches_both_of_muons_parts() -> None:
    model: Any = build(MODEL)
    before, optimizer = copy.deepcopy(model), make_optimizer(config(MUON), model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps(model, [optimizer])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters()))


def test_adafactor_is_torchs_and_keeps_rows_and_columns() -> None:
    ours: Any = build(MODEL)
    theirs = copy.deepcopy(ours)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    mine = make_optimizer(config(ADAFACTOR), ours)
    steps(ours, [mine])
    steps(theirs, [torch.optim.Adafactor(groups, lr=0.05)])
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters()))
    assert {key for state in mine.state.values() for key in state} == {"step", "row_var", "col_var", "variance"}


@pytest.mark.parametrize("optimizer", [MUON, ADAFACTOR], ids=["muon", "adafactor"])
@pytest.mark.parametrize("name", ["zero1", "zero3", "zero1+tensor2", "zero1+pipeline2", "zero0+tensor2"])
def test_layouts_that_cut_matrices_are_refused(optimizer: dict[str, Any], name: str, small_data: Path) -> None:
    values = layout(contract_config("gpt", small_data), name, 2) | {"optimizer": optimizer}
    with pytest.raises(InputError, match=f"{optimizer['name']} makes a step of whole matrices, which"):
        survey(config_from_dict(values))


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(small_data: Path) -> None:
    """Muon's matrices are made orthogonal in bf16 on every layout, which rounds the ranks' sums to other numbers."""
    kinds = {"muon": MUON, "adafactor": ADAFACTOR}
    base = contract_config("gpt", small_data)
    reference = measured(1, {name: base | {"optimizer": optimizer} for name, optimizer in kinds.items()})[0]
    cases = {
        f"{name}/{laid}": layout(base | {"optimizer": optimizer}, laid, 2)
        for name, optimizer in kinds.items()
        for laid in ("torch", "zero0", "zero0+sequence2")
    }
    found = measured(2, cases)[0]
    for case in cases:
        want, got = reference[case.partition("/")[0]], found[case]
        limit = 2e-3 if case.startswith("muon") else 1e-5
        assert max(abs(a - b) for a, b in zip(got["loss"], want["loss"])) < limit, case
        assert want["loss"][0] - want["loss"][-1] > 0.3, case


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit(small_data: Path, tmp_path: Path) -> None:
    cases = {}
    for optimizer, laid in ((MUON, "torch"), (ADAFACTOR, "zero0")):
        values = layout(saved_often(contract_config("gpt", small_data)), laid, 2)
        cases[f"{optimizer['name']}-{laid}"] = values | {"optimizer": optimizer}
    interrupt_and_compare(cases, tmp_path)
    checkpoint = last(tmp_path / "adafactor-zero0" / "whole")
    shape = checkpoint.tensors["weights/wte.weight"]["shape"]
    assert checkpoint.tensors["optimizer/row_var/wte.weight"]["shape"] == [shape[0], 1]
    for name in cases:
        assert problems(last(tmp_path / name / "whole").path) == []
