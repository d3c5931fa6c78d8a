"""What in an input attributions are told of: columns of the user's table, pixels, steps of time, tokens, or single
numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from distdl.analyse.probe import Inputs, Probe

Kind = Literal["columns", "pixels", "steps", "tokens", "numbers"]
Sum = Literal["sum", "amax", "mean"]


@dataclass(frozen=True)
class Parts:
    """Which part each number of a row belongs to."""

    kind: Kind
    of: tuple[Tensor, ...]
    """Of each column that is differentiated the parts' numbers, in the shape of a row."""
    names: tuple[str, ...]
    """'' of pixels."""
    shape: tuple[int, ...]
    """(P,), or height and width."""

    def told(self, values: Sequence[Tensor], how: Sum) -> Tensor:
        """Attributions in the shape of the inputs -> (B, *shape) of the parts: summed up, the largest, or the mean."""
        flat = torch.cat([value.reshape(len(value), -1) for value in values], 1).double()
        at = torch.cat([part.flatten() for part in self.of]).to(flat.device).expand(len(flat), -1)
        count = int(torch.tensor(self.shape).prod())
        empty = torch.zeros(len(flat), count, dtype=flat.dtype, device=flat.device)
        return empty.scatter_reduce(1, at, flat, how, include_self=False).view(-1, *self.shape)


def parts_of(probe: Probe, inputs: Inputs, record: Mapping[str, Mapping[str, Any]], words: Sequence[str] = ()) -> Parts:
    """Of rows. `record`: how columns of the data set came from those of the file; `words`: of the tokens of the row."""
    first = inputs.numbers[0]
    if inputs.place is not None:
        T = first.shape[1]
        names = tuple(words) if len(words) == T else tuple(map(str, inputs.place.ids))
        return Parts("tokens", (torch.arange(T)[:, None].expand(first.shape[1:]),), names, (T,))
    name = probe.names[0]
    if len(probe.names) == 1 and first.ndim == 4:
        height, width = first.shape[2:]
        places = torch.arange(height * width).view(1, height, width).expand(first.shape[1:])
        return Parts("pixels", (places,), (), (height, width))
    if len(probe.names) == 1 and first.ndim == 3:
        T = first.shape[1]
        return Parts("steps", (torch.arange(T)[:, None].expand(first.shape[1:]),), tuple(map(str, range(T))), (T,))
    features = record.get(name, {}).get("features") if record.get(name, {}).get("kind") == "features" else None
    if len(probe.names) == 1 and features:
        from distdl.data.table.encode import outputs

        groups = [i for i, feature in enumerate(features) for _ in outputs(feature)]
        if len(groups) == first[0].numel():
            return Parts("columns", (torch.tensor(groups),), tuple(f["name"] for f in features), (len(features),))
    return _single(probe, inputs)


def _single(probe: Probe, inputs: Inputs) -> Parts:
    """Each number by itself."""
    at, names, first = [], [], 0
    for name, column in zip(probe.names, inputs.numbers):
        n = column[0].numel()
        at.append(torch.arange(first, first + n).view(column.shape[1:]))
        names += [f"{name}[{i}]" for i in range(n)] if n > 1 or column.ndim > 1 else [name]
        first += n
    return Parts("numbers", tuple(at), tuple(names), (first,))
