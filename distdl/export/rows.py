"""Real rows of a run: what an export is checked on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distdl.columns import Column
from distdl.errors import DistdlError, InputError

if TYPE_CHECKING:
    from distdl.model.model import Model

ROWS = 12


def real_rows(model: Model, data: str = "", split: str = "") -> tuple[dict[str, Tensor], str]:
    """The first rows of the run's held-out split, or of `data` (a data set, or a file as `distdl predict` reads them), as
    the columns that the model reads; and where they are from. InputError: there are none."""
    asked = model.ways.asked
    fix = "--data PATH names rows like those that it learned from"
    if data:
        from distdl.data.asking.open import How, questions

        found = questions(model.ways, data, How(split=split or "test"))
        return _first(found, data), data
    from distdl.data.asking.data_sets import of_data_set
    from distdl.data.manifest import read_manifest

    path = model.config.data.path
    try:
        manifest = read_manifest(path)
    except DistdlError as error:
        raise InputError(f"the rows of the run are not there to check an export on: {error}", fix=fix) from None
    chosen = next((s for s in (split, model.config.data.eval_split, "test", "train") if s in manifest.splits), "")
    present = {name: column for name, column in asked.items() if name in manifest.columns}
    made = {name: column for name, column in asked.items() if name not in present}
    rows = _first(of_data_set(path, chosen, present), path) if present else {}
    where = f"{path} ({chosen})" if present else ""
    if made:
        n = len(next(iter(rows.values()))) if rows else ROWS
        rows |= {name: made_up(column, n) for name, column in made.items()}
        where += f"{'; ' if where else ''}made up: {', '.join(made)}, which the data set has not"
    return {name: rows[name] for name in asked}, where


def _first(found: Any, path: str) -> dict[str, Tensor]:
    for question in found:
        if question.real.any():
            return {
                name: torch.from_numpy(np.ascontiguousarray(column[:ROWS])) for name, column in question.rows.items()
            }
    raise InputError(f"there is no row in {path}", fix="--data PATH names rows like those that it learned from")


def made_up(column: Column, n: int, steps: int = 6) -> Tensor:
    """Values within the range of a column: of a family that learns from an environment, and has no rows."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, *(steps if size is None else size for size in column.shape))
    if column.kind in ("class", "whole", "answer"):
        low, high = int(column.low or 0), int(column.high if column.high is not None else 3)
        return torch.randint(low, high + 1, shape, generator=generator)
    low_, high_ = column.low or 0.0, 1.0 if column.high is None else column.high
    return low_ + (high_ - low_) * torch.rand(shape, generator=generator)


def meanings(model: Model) -> dict[str, dict[str, Any]]:
    """Answer -> its kind, what it means, and the classes or the unit that it speaks."""
    found: dict[str, dict[str, Any]] = {}
    for name, answer in model.tells.items():
        record: Mapping[str, Any] = model.ways.record.get(answer.of, {})
        found[name] = {"kind": answer.kind, "meaning": answer.meaning}
        if record.get("name"):
            found[name]["column"] = record["name"]
        if record.get("classes"):
            found[name]["classes"] = [str(word) for word in record["classes"]]
        if record.get("kind") == "number":
            found[name]["unit"] = f"as in the column '{record['name']}'" if record.get("name") else "as in the file"
    return found
