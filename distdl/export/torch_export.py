"""A program of torch.export, in one file without pickle's code: torch.export.load(FILE).module()(columns, in order).

It refuses rows of a shape that it does not take. Its extra files `distdl.json` and `preparation.json` say what the answers
mean and how raw values become what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distdl.export.check import Arrays, Ask, as_tensors
from distdl.export.graph import Graph, quiet

FILE = "model.pt2"


def write(folder: Path, graph: Graph, meta: Mapping[str, Any]) -> None:
    """The program, with what it means within."""
    extra = {f"{name}.json": json.dumps(value) for name, value in meta.items()}
    with quiet():
        torch.export.save(graph.program, str(folder / FILE), extra_files=extra)


def asked(folder: Path, names: Sequence[str]) -> Ask:
    """The exported program, read back from the disk; `names`: the order of its columns."""
    with quiet():
        run = torch.export.load(str(folder / FILE)).module()

    def ask(batch: Arrays) -> dict[str, np.ndarray]:
        columns = as_tensors(batch)
        with torch.no_grad():
            return {name: tensor.numpy() for name, tensor in run(*(columns[name] for name in names)).items()}

    return ask
