"""A learner's answer as one graph of torch.export, for any number of rows and, where the family has them, of steps."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distdl.columns import Column
from distdl.errors import InputError
from distdl.export.preparation import Front
from distdl.layout import noise
from distdl.learner import Learner
from distdl.nn.recurrence import written_out

BATCH, STEPS = "batch", "steps"
Shape = tuple[int | str, ...]
"""Of a tensor in a file: a number where it is fixed, else the name of a dimension, or something of it: `steps + 1`."""


class Answering(nn.Module):
    """Columns in, in the order of `names`, answers out: what `Learner.predict` does around `answer`, as something that can
    be traced. `front` makes the column `x` of those of a table."""

    def __init__(self, learner: Learner, names: Sequence[str], front: Front | None = None) -> None:
        super().__init__()
        self.learner, self.names, self.front = learner, ["x"] if front else list(names), front

    def forward(self, *columns: Tensor) -> dict[str, Tensor]:
        rows = columns[0]
        if self.front is not None:
            columns = (self.front(*columns),)
        with noise.apart(0, rows.new_zeros(rows.shape[0], dtype=torch.long)):  # drawn alike for each row
            found = self.learner.answer(dict(zip(self.names, columns, strict=True)))
        return {name: found[name] for name in self.learner.tells(self.learner.config)}


class Halved(nn.Module):
    """The same with weights that are kept in half precision, and made single where they are used: every processor can
    compute that, and a weight is all that is rounded."""

    def __init__(self, answering: Answering) -> None:
        super().__init__()
        self.bare, self.names = [answering], {}
        for name, tensor in {**dict(answering.named_parameters()), **dict(answering.named_buffers())}.items():
            kept = tensor.detach().half() if tensor.dtype == torch.float32 else tensor.detach()
            self.names[name] = name.replace(".", "__")
            self.register_buffer(self.names[name], kept)

    def forward(self, *columns: Tensor) -> dict[str, Tensor]:
        kept = {name: getattr(self, key) for name, key in self.names.items()}
        single = {name: w.float() if w.dtype == torch.float16 else w for name, w in kept.items()}
        return torch.func.functional_call(self.bare[0], single, columns)


def halved(learner: Learner) -> Learner:
    """A copy whose weights are rounded to half precision. InputError: one of them is too large for it."""
    found = copy.deepcopy(learner)
    for name, tensor in {**dict(found.named_parameters()), **dict(found.named_buffers())}.items():
        if tensor.dtype != torch.float32:
            continue
        with torch.no_grad():
            rounded = tensor.half().float()
            if bool((rounded.isinf() & ~tensor.isinf()).any()):
                what = f"{name} has the value {float(tensor.abs().max()):g}, and half precision ends at 65504"
                raise InputError(what, fix="--precision fp32")
            tensor.copy_(rounded)
    return found


@dataclass(frozen=True)
class Graph:
    """What was traced."""

    program: torch.export.ExportedProgram
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    lengths: dict[str, tuple[int, int | None]]
    """Column of any number of steps -> the least and the most that the graph takes; None: any."""


def traced(
    learner: Learner,
    example: Mapping[str, Tensor],
    asked: Mapping[str, Column],
    half: bool = False,
    front: Front | None = None,
) -> Graph:
    """The graph of what the learner answers to such columns; with `front` to those of a table. InputError says where torch
    cannot follow it."""
    bare = Answering(learner.eval(), list(asked), front)
    answering: nn.Module = Halved(bare) if half else bare
    auto = torch.export.Dim.AUTO
    free = tuple(
        {0: auto, **{i: auto for i, n in enumerate(column.shape, 1) if n is None}} for column in asked.values()
    )
    columns = tuple(example[name] for name in asked)
    try:
        with torch.no_grad(), written_out(learner), quiet():
            learner.settle()
            program = torch.export.export(answering, columns, dynamic_shapes=(free,))
    except Exception as error:
        raise not_followed(learner, error) from error
    inputs, outputs, lengths = _shapes(program, list(asked), list(learner.tells(learner.config)))
    for name, shape in [*inputs.items(), *outputs.items()]:
        if not shape or not isinstance(shape[0], str):
            what = f"the graph of {_family(learner)} takes exactly {shape[:1]} rows at '{name}'"
            raise InputError(what, fix="export it --to mlflow or --to safetensors, which compute as the run does")
    return Graph(program, inputs, outputs, lengths)


def _shapes(
    program: Any, columns: Sequence[str], answers: Sequence[str]
) -> tuple[dict[str, Shape], dict[str, Shape], dict[str, tuple[int, int | None]]]:
    """Of inputs and outputs, and the range of each dimension that may be of any length."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = dict(zip(columns, (values[name] for name in signature.user_inputs), strict=True))
    outputs = dict(zip(answers, (values[name] for name in signature.user_outputs), strict=True))
    called: dict[str, str] = {}
    lengths: dict[str, tuple[int, int | None]] = {}
    for column, value in inputs.items():
        for place, size in enumerate(value.shape):
            if isinstance(fixed(size), int):
                continue
            symbol = str(size)
            if symbol not in called:
                steps = STEPS if STEPS not in called.values() else f"{column}_{STEPS}"
                called[symbol] = BATCH if place == 0 else steps
            if place > 0:
                found = program.range_constraints[size.node.expr]
                high = int(found.upper) if found.upper < 2**31 else None
                lengths[column] = (max(1, int(found.lower)), high)

    def named(value: Any) -> Shape:
        return tuple(n if isinstance(n := fixed(size), int) else in_words(str(n), called) for size in value.shape)

    return {n: named(v) for n, v in inputs.items()}, {n: named(v) for n, v in outputs.items()}, lengths


def fixed(size: Any) -> Any:
    """A size as a number, where torch has found that it can be no other; else as it is."""
    return int(size) if isinstance(size, int) or size.node.expr.is_number else size


def in_words(size: str, called: Mapping[str, str]) -> str:
    """A size with the names of dimensions for torch's: `s27 + 1` as `steps + 1`."""
    return re.sub(r"\bs\d+\b", lambda found: called.get(found[0], found[0]), size)


def not_followed(learner: Learner, error: Exception) -> InputError:
    """The refusal of an answer that is no graph: where it stands, and what torch says of it."""
    where, seen, last = "", error.__traceback__, None
    while seen is not None:
        if "/distdl/" in (file := seen.tb_frame.f_code.co_filename) and "/distdl/export/" not in file:
            last = f"distdl/{file.rsplit('/distdl/', 1)[1]}:{seen.tb_lineno}"
        seen = seen.tb_next
    where = f" at {last}" if last else ""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    reason = learner.no_graph or words[:200]
    what = f"what {_family(learner)} answers is no graph that torch.export can write down{where}: {reason}"
    return InputError(what, fix="export it --to mlflow or --to safetensors, which compute as the run does")


def _family(learner: Learner) -> str:
    return f"the family {type(learner).__module__.rsplit('.', 1)[-1]}"


TALKERS = ("torch.onnx", "torch.export", "torch._export", "onnxscript")


@contextlib.contextmanager
def quiet(names: Sequence[str] = TALKERS, level: int = logging.CRITICAL) -> Iterator[None]:
    """Without what libraries say of themselves while they export: what went wrong is found by the check."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, old in zip(loggers, before):
            logger.setLevel(old)
