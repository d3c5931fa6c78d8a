"""Recurrent families: files that were made of some steps take any number of them, and say so."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distdl.errors import InputError
from distdl.export import check, graph, onnx, torch_export
from distdl.nn.recurrence import over_time, written_out
from tests.export.common import asked, traced

TOKENS = {"task": "tokens", "inputs": 9, "steps": 12, "units": 6}
VALUES = {"task": "values", "inputs": 3, "steps": 12, "units": 6}
CASES: dict[str, dict[str, Any]] = {
    "elman": {"family": "elman", **TOKENS, "layers": 2},
    "lstm": {"family": "lstm", **TOKENS, "embedding": 5, "layers": 2},
    "lstm of 1997": {"family": "lstm", **TOKENS, "embedding": 0, "forget_gate": False},
    "gru": {"family": "gru", **VALUES},
    "gru, reset after": {"family": "gru", **VALUES, "reset_after": True},
    "ctrnn": {"family": "ctrnn", **VALUES, "solver": "rk4"},
    "rnn2": {"family": "rnn2", **TOKENS},
    "hrnn, clockwork": {"family": "hrnn", **TOKENS, "form": "clockwork", "units": 8, "groups": 2},
    "frn": {"family": "frn", "inputs": 2, "outputs": 2, "units": 5},
    "esn": {"family": "esn", "inputs": 1, "steps": 30, "units": 10, "washout": 2, "generate": 4},
    "mamba": {"family": "mamba", "vocabulary": 30, "context": 24, "layers": 2, "width": 8, "chunk": 4},
}
FAST = {"elman", "gru, reset after"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_any_number_of_steps(case: str, tmp_path: Path) -> None:
    learner, rows = asked(CASES[case])
    (column,) = rows
    found = traced(learner, rows)
    assert found.inputs[column][:2] == ("batch", "steps") and column in found.lengths
    torch_export.write(tmp_path, found, {})
    program = torch_export.asked(tmp_path, [column])
    difference = check.compared(program, learner, rows, found.lengths, "fp32", (found.inputs, found.outputs))
    assert {1, 2, 7} <= set(difference.batches) and len(set(difference.lengths)) > 2 and max(difference.lengths) == 23
    onnx.write(tmp_path, found, {})
    inputs, outputs = onnx.shapes(tmp_path, found.outputs)
    assert inputs[column][:2] == ("batch", "steps")
    run = onnx.asked(tmp_path, found.outputs)
    assert check.compared(run, learner, rows, found.lengths, "fp32", (inputs, outputs)).largest <= 1e-5


def test_steps_that_are_written_out_as_a_loop_would_be_fixed_and_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch makes of `nn.LSTM` and of a loop of Python: the example's length."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: False)
    learner, rows = asked(CASES["elman"])
    found = traced(learner, rows)
    assert found.lengths == {} and found.inputs["tokens"] == ("batch", 16)


def test_a_file_whose_output_has_the_length_of_its_example_is_refused() -> None:
    shapes = {"x": ("batch", "steps", 2)}, {"activity": ("batch", 7, 3)}
    rows = {"x": torch.zeros(4, 9, 2)}
    check.check_shape("activity", (shapes[0], {"activity": ("batch", "steps", 3)}), rows, (4, 9, 3))
    check.check_shape("activity", (shapes[0], {"activity": ("batch", "steps + 1", 3)}), rows, (4, 10, 3))
    with pytest.raises(InputError, match=r"says that 'activity' has the shape \['batch', 7, 3\], and answers with"):
        check.check_shape("activity", shapes, rows, (4, 9, 3))
    with pytest.raises(InputError, match="takes only 5 rows of 'x'"):
        check.refuse_fixed({"x": (5, "steps", 2)}, ["x"])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_layers_of_torch_written_out_are_the_same(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layer, x = kind(3, 5, batch_first=True), torch.randn(2, 6, 3)
    told, last = layer(x)
    again, _ = layer(x, last)
    with written_out(layer):
        other, end = layer(x)
        more, _ = layer(x, end)
    torch.testing.assert_close(other, told)
    torch.testing.assert_close(end, last)
    torch.testing.assert_close(more, again)
    assert torch.equal(layer(x)[0], told)  # by its own kernel again


def test_a_layer_that_is_not_written_out_is_named() -> None:
    with pytest.raises(NotImplementedError, match="in one direction"), written_out(nn.GRU(3, 5, 2, batch_first=True)):
        pass


def test_over_time_is_the_loop() -> None:
    x = torch.randn(2, 5, 3)
    told, last = over_time(lambda sums, now: (sums + now, 2 * now), torch.zeros(2, 3), x)
    assert torch.equal(told, 2 * x)
    torch.testing.assert_close(last, x.sum(1))


def test_lengths_beyond_what_a_model_reads_are_refused() -> None:
    learner, rows = asked({"family": "gpt", "vocabulary": 30, "context": 16, "layers": 1, "heads": 2, "width": 8})
    found = traced(learner, rows)
    assert found.lengths["tokens"][1] == 16
    run = found.program.module()
    with torch.no_grad():
        run(rows["tokens"][:, :16])
        with pytest.raises(Exception, match="16"), contextlib.nullcontext():
            run(rows["tokens"][:, :17])
    assert max(steps for _, steps, _ in check.cases(rows, found.lengths)) == 16
    assert graph.in_words("s27 + 1", {"s27": "steps"}) == "steps + 1"
