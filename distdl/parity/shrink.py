"""A run made small enough to rehearse on a CPU: a small model of the same family, a few steps, a few samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.data.manifest import VARIABLE, Column
from distdl.data.read import Dataset
from distdl.data.write import DatasetWriter
from distdl.families import load_family, model_config

STEPS, GLOBAL_BATCH = 20, 16
ROWS = 64
"""Rows of the small copy of each split; the run goes through them several times."""


def shrunk(config: Config, folder: Path) -> dict[str, Any]:
    """The config as plain values, small: what it leaves of each layout's choices is the user's.

    The model is what the family makes of it (`Learner.shrunk`); the data are the first rows, cut to the smaller shapes.
    """
    family = load_family(config.model["family"])
    model = family.shrunk(config.model)
    values = config.model_dump(mode="json")
    values |= {"model": model, "runtime": {"kind": "local", "workers": 1}, "early_stopping": None, "start": None}
    values["train"] |= {"global_batch": GLOBAL_BATCH, "micro_batch": None, "epochs": None, "steps": STEPS}
    values["train"] |= {"clip_norm": None, "compile": False}  # each pass says where it clips
    precision = config.train.precision
    if precision not in ("fp32", "fp64"):
        values["train"]["precision"] = "fp32" if precision == "auto" else "bf16"
    values["train"] |= {"tf32": False, "deterministic": True}  # layouts are compared to the last digits
    values["schedule"]["warmup_steps"] = min(config.schedule.warmup_steps, STEPS // 4)
    values["guard"] |= {"parity_every_steps": 5, "nonfinite": True}  # the guard makes ZeRO-0 tell its gradient norm
    values["track"]["enabled"] = False
    values["evaluate"] = {"batch": 10}
    values["parallel"].update(offload="none", offload_parameters="none", deepspeed={})
    values["data"] |= {"path": str(_small_data(config, model, folder)), "prepare": None, "threads": 0, "cache": None}
    config_from_dict(values)
    return values


def _small_data(config: Config, model: dict[str, Any], folder: Path) -> Path:
    """A copy of the first rows, cut to what the small model reads."""
    wanted = load_family(config.model["family"]).columns(model_config(model))
    target = folder / "data"
    train = Dataset(config.data.path, config.data.train_split, verify="first_touch", cache_dir=config.data.cache)
    columns = {}
    for name, column in train.columns.items():
        asked = wanted[name].shape if name in wanted else column.shape
        shape = tuple(have if want is None else min(have, want) for have, want in zip(column.shape, asked))
        columns[name] = column if column.dtype == VARIABLE else Column(column.dtype, shape)
    with DatasetWriter(target, columns, "rehearsal", {}) as writer:
        for split in filter(None, (config.data.train_split, config.data.eval_split, config.data.test_split)):
            part = Dataset(config.data.path, split, cache_dir=config.data.cache)
            rows = part.gather(np.arange(min(ROWS, part.rows)))
            writer.write(split, {name: _cut(rows[name], column) for name, column in columns.items()})
    return target


def _cut(rows: Any, column: Column) -> Any:
    return rows if column.dtype == VARIABLE else rows[tuple(slice(size) for size in (len(rows), *column.shape))]
