"""What a run does with the classes of its training split: `train.class_weights` and `data.sampling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distdl.columns import Column
from distdl.config.schema import Config
from distdl.data.first_pass import class_rows
from distdl.data.manifest import Manifest
from distdl.errors import InputError, Problem
from distdl.ways import columns_read, learner_class


def class_facts(config: Config, manifest: Manifest, reads: Mapping[str, Column], look: bool) -> dict[str, Any]:
    """The fields of `DataFacts` that speak of classes. `reads`: the columns that the family reads; `look`: count the rows
    of each class, where that is asked for. Raises InputError where there are no classes, or not so many."""
    weights, balanced = config.train.class_weights, config.data.sampling == "balanced"
    if weights is None and not balanced:
        return {}
    problems, facts = [], dict[str, Any]()
    column = _classes_of_samples(reads)
    weighed = learner_class(config).class_column
    if balanced and not column:
        what = f"data.sampling: balanced draws from classes, and this {config.family} reads none of a whole sample"
        problems.append(Problem(what, fix="data.sampling: natural"))
    if weights is not None and (not column or weighed != column or reads[column].missing is None):
        what = f"train.class_weights weighs the loss of classes, and that of this {config.family} is not weighed so"
        own = "class_weights" in config.model
        problems.append(Problem(what, fix="model.class_weights" if own else "train.class_weights: null"))
    if problems:
        raise InputError(*problems)
    classes = int(reads[column].high or 0) + 1
    if isinstance(weights, tuple):
        facts["class_weights"] = ((column, _given(weights, classes, reads[column].key)),)
    if balanced:
        facts["balanced"] = column
    if look:
        rows = class_rows(config.data.path, manifest, config.data.train_split, column, classes, config.data.cache)
        facts["class_rows"] = tuple(rows)
        if weights == "balanced":
            facts["class_weights"] = ((column, balanced_weights(rows)),)
    return facts


def balanced_column(config: Config) -> str:
    """The column whose classes a run draws equally often; "": it draws samples as they are."""
    if config.data.sampling != "balanced":
        return ""
    return _classes_of_samples(next(iter(columns_read(config, others=False).values())))


def balanced_weights(rows: list[int]) -> tuple[float, ...]:
    """n / (K n_c) of K classes that have rows, n in all; 0 for a class without any."""
    counts = np.array(rows, np.float64)
    there = counts > 0
    weights = np.zeros_like(counts)
    weights[there] = counts.sum() / (there.sum() * counts[there])
    return tuple(weights.tolist())


def _classes_of_samples(reads: Mapping[str, Column]) -> str:
    """The column that says the class of a whole sample; "": there is none."""
    return next((name for name, c in reads.items() if c.kind == "class" and not c.shape and c.high is not None), "")


def _given(weights: tuple[float, ...], classes: int, key: str) -> tuple[float, ...]:
    told = f" (model.{key})" if key else ""
    if len(weights) != classes:
        what = f"train.class_weights has {len(weights)} numbers, and there are {classes} classes{told}"
        raise InputError(what, allowed="a number for each class, or balanced")
    if not any(weights):
        raise InputError(
            "train.class_weights are all 0: there is nothing to learn from", allowed="one above 0 at least"
        )
    return weights
