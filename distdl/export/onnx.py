"""An ONNX file, by torch's exporter of graphs; run and checked by onnxruntime.

Dimensions are called `batch` and `steps`. The metadata `distdl` and `preparation` (JSON) say what the answers mean and
how raw values become what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distdl.errors import InputError
from distdl.export.check import Arrays, Ask
from distdl.export.graph import Graph, Shape, quiet

FILE = "model.onnx"
IN_ONE_FILE = 1 << 30
"""Bytes of weights that go into the file itself; those of more lie beside it, as protobuf ends at 2 GiB."""


def write(folder: Path, graph: Graph, meta: Mapping[str, Any]) -> None:
    """The file. InputError: the graph has something that ONNX has no word for."""
    import onnx
    import torch

    size = sum(tensor.nbytes for tensor in graph.program.state_dict.values())
    try:
        with quiet(), torch.no_grad():  # with gradients the steps of a loop would keep what only training needs
            program: Any = torch.onnx.export(
                graph.program,
                (),
                input_names=[f"{_MINE}{name}" for name in graph.inputs],
                output_names=[f"{_MINE}{called(name, graph.inputs)}" for name in graph.outputs],
                dynamo=True,
                verbose=False,
            )
            program.save(str(folder / FILE), external_data=size > IN_ONE_FILE)
    except Exception as error:
        words = str(error).partition("## Exception summary")[2].strip() or str(error)
        words = next((line.strip() for line in words.splitlines() if line.strip()), type(error).__name__)
        what = f"ONNX has no form of this graph: {words[:300]}"
        raise InputError(what, fix="export it --to torch-export or --to mlflow") from error
    model = onnx.load(str(folder / FILE), load_external_data=False)
    _name(model.graph)
    _call(model, graph)
    for name, value in meta.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    onnx.save(model, str(folder / FILE))
    with quiet():
        onnx.checker.check_model(str(folder / FILE))


def called(answer: str, columns: Collection[str]) -> str:
    """An answer's name in the file, where no two things have one name."""
    return f"predicted_{answer}" if answer in columns else answer


_MINE = "distdl: "
"""Begins the names of inputs and outputs until what torch has called within the graph is out of their way."""


def _name(graph: Any) -> None:
    """Gives inputs and outputs their names, and what has one of them within the graph another."""
    mine = [value.name.removeprefix(_MINE) for value in (*graph.input, *graph.output)]
    _rename(graph, {**{name: f"{name} (within)" for name in mine}, **{f"{_MINE}{name}": name for name in mine}})


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _call(model: Any, graph: Graph) -> None:
    """Gives the dimensions of inputs and outputs the names of the graph, and everywhere else the same ones."""
    called: dict[str, str] = {}
    for value in model.graph.input:
        for dimension, name in zip(value.type.tensor_type.shape.dim, graph.inputs[value.name]):
            if isinstance(name, str) and dimension.dim_param:
                called[dimension.dim_param] = name
    for value in _values(model.graph):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in called:
                dimension.dim_param = called[dimension.dim_param]
            elif dimension.dim_param:
                dimension.dim_param = _renamed(dimension.dim_param, called)


def _renamed(text: str, called: Mapping[str, str]) -> str:
    from distdl.export.graph import in_words

    return in_words(text, called)


def _values(graph: Any) -> Iterator[Any]:
    yield from (*graph.input, *graph.output, *graph.value_info)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _values(attribute.g)


def shapes(folder: Path, answers: Collection[str]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """What the file itself says of its inputs, and of its outputs by the answers that they are."""
    import onnx

    model = onnx.load(str(folder / FILE), load_external_data=False)

    def said(values: Any) -> dict[str, Shape]:
        return {v.name: tuple(d.dim_param or int(d.dim_value) for d in v.type.tensor_type.shape.dim) for v in values}

    inputs, outputs = said(model.graph.input), said(model.graph.output)
    return inputs, {name: outputs[f"predicted_{name}" if f"predicted_{name}" in outputs else name] for name in answers}


def asked(folder: Path, answers: Collection[str]) -> Ask:
    """The exported file, run by onnxruntime on the CPU; `answers`: what it gives."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        words = str(error).splitlines()[0][:300]
        fix = "nothing was written; export it --to torch-export or --to mlflow"
        raise InputError(f"onnxruntime does not load the exported file: {words}", fix=fix) from error
    reads = {value.name for value in session.get_inputs()}
    given = {value.name for value in session.get_outputs()}
    names = {answer: f"predicted_{answer}" if f"predicted_{answer}" in given else answer for answer in answers}

    def ask(batch: Arrays) -> dict[str, np.ndarray]:
        try:
            told = session.run(list(names.values()), {name: column for name, column in batch.items() if name in reads})
        except Exception as error:
            words = str(error).splitlines()[0][:300]
            sizes = ", ".join(f"{name} {list(column.shape)}" for name, column in batch.items())
            raise InputError(f"onnxruntime does not run the exported file on {sizes}: {words}") from error
        return dict(zip(names, told, strict=True))

    return ask
