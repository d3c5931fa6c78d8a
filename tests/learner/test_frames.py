"""Series of unequal lengths in the recurrent families: what follows the end of a row is in no state, loss or gradient, and
a family that would read padding as values is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.data.prepare import prepare_dataset
from distdl.errors import InputError
from distdl.train.survey import survey
from tests.families.common import Rehearsal, made
from tests.small import BASE, written

STEPS, WIDTH, LENGTHS = 8, 3, (2, 8, 4, 6)
ROWS = {"task": "rows", "inputs": WIDTH, "classes": 3}
CASES: dict[str, dict[str, Any]] = {
    "elman": {**ROWS, "family": "elman", "units": 7, "layers": 2},
    "lstm": {**ROWS, "family": "lstm", "units": 7, "layers": 2, "embedding": 0, "dropout": 0.0},
    "lstm of 1997": {**ROWS, "family": "lstm", "units": 7, "layers": 1, "embedding": 0, "forget_gate": False},
    "gru": {**ROWS, "family": "gru", "units": 7, "layers": 2},
    "birnn": {**ROWS, "family": "birnn", "units": 7, "layers": 2, "cell": "gru"},
    "birnn of pairs": {**ROWS, "family": "birnn", "units": 7, "frame": 2},
    "hrnn": {**ROWS, "family": "hrnn", "units": 8, "chunk": 2},
    "clockwork": {**ROWS, "family": "hrnn", "units": 8, "form": "clockwork"},
    "ctrnn": {**ROWS, "family": "ctrnn", "units": 8, "substeps": 2},
    "rnn2": {**ROWS, "family": "rnn2", "units": 5},
    **{
        f"{family}, values": {"family": family, "task": "values", "inputs": WIDTH, "units": 8, **more}
        for family, more in (
            ("elman", {}),
            ("lstm", {"embedding": 0, "dropout": 0.0, "layers": 1}),
            ("gru", {}),
            ("hrnn", {"form": "clockwork"}),
            ("ctrnn", {"washout": 1}),
            ("rnn2", {}),
        )
    },
}


def batch_of(task: str) -> dict[str, torch.Tensor]:
    """Rows whose padding is larger than any value."""
    draw, room = torch.Generator().manual_seed(0), STEPS + (task == "values")
    lengths = torch.tensor(LENGTHS) + (task == "values")
    x = torch.randn(len(LENGTHS), room, WIDTH, generator=draw)
    x[torch.arange(room) >= lengths[:, None]] = 15.0
    of_rows = {"image": x[:, None], "label": torch.tensor([0, 1, 2, 1])}
    return {**(of_rows if task == "rows" else {"x": x}), "frames": lengths, "id": torch.arange(len(LENGTHS))}


@pytest.mark.parametrize("case", CASES)
def test_a_padded_batch_is_its_rows_one_by_one(case: str) -> None:
    """Loss, gradients and what an evaluation tells, of a model that has never heard of padding."""
    model = CASES[case]
    task, batch = model["task"], batch_of(model["task"])
    padded = made({**model, "steps": STEPS, "frames": True})
    weights = dict(padded.named_parameters())
    loss, _ = padded.loss(batch, 0)
    total, counts = torch.zeros(()), 0
    for row, length in enumerate(LENGTHS):
        alone = made({**model, "steps": length})
        alone.load_state_dict(padded.state_dict())
        one = {name: values[row : row + 1] for name, values in batch.items() if name != "frames"}
        name = "image" if task == "rows" else "x"
        one[name] = one[name][..., : length + (task == "values"), :]
        count = 1 if task == "rows" else length - model.get("washout", 0)
        of_row = torch.func.functional_call(_Loss(alone), {f"learner.{k}": v for k, v in weights.items()}, (one,))
        total, counts = total + count * of_row, counts + count
    assert abs(loss.item() - total.item() / counts) < 1e-6
    ours = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(total / counts, list(weights.values()), allow_unused=True)
    for name, a, b in zip(weights, ours, theirs, strict=True):
        assert (a is None) == (b is None) and (a is None or (a - b).abs().max() < 1e-6), name
    told = padded.evaluate(batch)["loss"]
    assert float(told.total) / float(told.count) == pytest.approx(total.item() / counts, abs=1e-6)


class _Loss(torch.nn.Module):
    def __init__(self, learner: Any) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.learner.loss(batch, 0)[0]


def series(folder: Path) -> Path:
    """Two classes that the last value of a short series tells, among longer ones."""
    draw = np.random.default_rng(0)
    lines = []
    for i in range(60):
        values = np.sin(np.arange(4 + i % 5) * (0.4, 1.6)[i % 2]) + draw.normal(0, 0.1, 4 + i % 5)
        lines.append(",".join(f"{v:.3f}" for v in values) + f":{'ab'[i % 2]}")
    path = folder / "s.ts"
    path.write_text(
        "@problemName s\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n" + "\n".join(lines)
    )
    return path


def config(path: Path, model: dict[str, Any]) -> dict[str, Any]:
    return {**BASE, "name": "s", "model": model, "data": {"path": str(path), "threads": 0, "eval_split": None}}


FAMILY = {"family": "gru", "task": "rows", "inputs": 1, "steps": 8, "classes": 2, "units": 12}


def test_series_of_a_file_are_learned_without_their_padding(tmp_path: Path) -> None:
    prepare_dataset("ts", tmp_path / "d", {"path": series(tmp_path), "layout": "image", "test_fraction": 0})
    values = config(tmp_path / "d", {**FAMILY, "frames": True})
    run = Rehearsal({**values, "train": {"global_batch": 30, "steps": 80}, "optimizer": {"name": "adamw", "lr": 3e-2}})
    run.train(80)
    assert np.mean(run.losses[-5:]) < 0.6 * np.mean(run.losses[:5])


@pytest.mark.parametrize("family", ["gru", "birnn", "hrnn", "elman", "ctrnn", "rnn2", "lstm"])
def test_padding_that_would_be_read_as_values_is_refused(tmp_path: Path, family: str) -> None:
    prepare_dataset("ts", tmp_path / "d", {"path": series(tmp_path), "layout": "image", "test_fraction": 0})
    model = {**FAMILY, "family": family} | ({"chunk": 2} if family == "hrnn" else {})
    model |= {"embedding": 0} if family == "lstm" else {}
    with pytest.raises(
        InputError, match=rf"{family} reads 'image' step by step, and rows have padding: 'frames' is 4 of 8"
    ):
        survey(config_from_dict(config(tmp_path / "d", model)))
    survey(config_from_dict(config(tmp_path / "d", {**model, "frames": True})))
    prepare_dataset(
        "ts", tmp_path / "e", {"path": series(tmp_path), "layout": "image", "length": 4, "test_fraction": 0}
    )
    survey(config_from_dict(config(tmp_path / "e", {**model, "steps": 4})))


def test_a_reservoir_has_no_such_key_and_says_what_to_do(tmp_path: Path) -> None:
    prepare_dataset("ts", tmp_path / "d", {"path": series(tmp_path), "test_fraction": 0})
    model = {"family": "esn", "inputs": 1, "steps": 7, "washout": 1, "generate": 0, "units": 10}
    values = {**config(tmp_path / "d", model), "optimizer": {"name": "none"}}
    with pytest.raises(InputError, match=r"esn reads 'x' step by step(.|\n)*prepare rows of one length \(length=\)"):
        survey(config_from_dict(values))


def test_zeros_at_the_front_are_told_or_refused(tmp_path: Path) -> None:
    options = {"path": series(tmp_path), "pad": "front", "test_fraction": 0}
    manifest = prepare_dataset("ts", tmp_path / "d", {**options, "layout": "image"})
    assert "frames" not in manifest.columns
    (note,) = manifest.info["notes"]
    assert "fewer than 8 time points begin with zeros, which a recurrent family reads as values" in note
    with pytest.raises(InputError, match="frames` are counted from the first time point"):
        prepare_dataset("ts", tmp_path / "e", options)


def test_the_loss_is_that_of_the_whole_batch_however_it_is_cut(tmp_path: Path) -> None:
    """Micro-batches with unequally many values to predict weigh as the batch does."""
    draw = np.random.default_rng(0)
    rows = {
        "x": draw.normal(size=(32, 9, 1)).astype(np.float32),
        "frames": draw.integers(2, 10, 32),
    }
    path = written(tmp_path / "d", rows)
    model = {"family": "gru", "task": "values", "inputs": 1, "steps": 8, "units": 6, "frames": True}
    values, found = config(Path(path), model), []
    for micro_batch in (16, 4):
        run = Rehearsal({**values, "train": {**BASE["train"], "micro_batch": micro_batch}})
        run.train(6)
        found.append([value.detach().clone() for value in run.learner.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
