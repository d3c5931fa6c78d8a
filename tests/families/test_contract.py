"""What every family promises, asked of every file in the folder.

Equality over ranks and layouts is asked in tests/parity/, bit-exact resume in tests/checkpoint/test_resume.py:
of every family, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distdl.config.family import family_names, family_schema
from distdl.data.manifest import Column, read_manifest
from distdl.data.write import DatasetWriter
from distdl.errors import InputError
from distdl.families import load_family, model_config
from distdl.metrics import add
from distdl.plan.refuse import AXES
from tests.families.common import Small, made, rows_of
from tests.small import MODELS, contract_config, small

every_family = pytest.mark.parametrize("family", family_names())


def test_every_family_has_a_small_config() -> None:
    assert set(MODELS) == set(family_names())


@every_family
def test_what_a_family_says_of_itself(family: str) -> None:
    cls = load_family(family)
    assert cls.layouts <= {"torch", "zero0", "zero1", "zero2", "zero3", *AXES} and "torch" in cls.layouts
    assert ("tensor" in cls.layouts) == bool(cls.tensor_plan) and ("sequence" in cls.layouts) == bool(
        cls.sequence_columns
    )
    assert cls.better in ("higher", "lower") and cls.learns
    columns = cls.columns(cls.Config())
    assert columns  # it reads something
    for name, column in columns.items():
        assert column.kind != "any" and column.meaning, f"{name} says neither its type nor its meaning"
        if column.kind == "class" or "token" in column.meaning:
            assert column.low == 0 and column.high is not None, f"{name} says no range"
    assert len(family_schema(family).summary) < 140
    doc = (cls.__module__ and __import__(cls.__module__, fromlist=["x"]).__doc__) or ""
    assert any(str(year) in doc for year in range(1943, 2027)), "the docstring names no paper"
    kinds = [base.__module__.removeprefix("distdl.").replace(".", "/") for base in cls.__mro__[1:]]
    shared = {f"{kind}.py" for kind in kinds if kind.startswith("learner/")} - {"learner/learner.py"}
    assert {file for file in shared if file not in doc} == set(), "the docstring does not say where its learning stands"


@every_family
def test_builds_on_the_meta_device_with_its_defaults(family: str) -> None:
    cls = load_family(family)
    with torch.device("meta"):
        learner = cls(cls.Config())
    if cls.learns == "back-propagation":
        assert any(p.requires_grad for p in learner.parameters())


@pytest.mark.slow
@every_family
def test_it_learns_and_every_trainable_parameter_moves(family: str, small_data: Path) -> None:
    told = small(family)["improves"]
    run = Small(family, small_data, train__steps=told["steps"])
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters() if p.requires_grad}
    largest = dict.fromkeys(before, 0.0)
    for name, p in run.learner.named_parameters():
        if p.requires_grad:
            p.register_hook(lambda grad, n=name: largest.update({n: max(largest[n], float(grad.abs().max()))}))
    first = run.evaluate()
    run.train(told["steps"])
    last = run.evaluate()
    assert [name for name, size in largest.items() if not size > 0] == []
    still = [n for n, p in run.learner.named_parameters() if n in before and torch.equal(p, before[n])]
    assert still == []
    primary, sign = run.learner.primary, 1 if run.learner.better == "higher" else -1
    if run.learner.learns.startswith("nothing"):  # weights that are given: right from the start, and to the end
        assert first == last and last[primary] == 1 and told["by"] == 0
        return
    gain = sign * (last[primary] - first[primary])
    assert gain >= told["by"] > 0, f"{primary} went from {first[primary]:.4g} to {last[primary]:.4g}"
    assert all(np.isfinite(v) for v in (*last.values(), *run.losses))


@every_family
def test_the_same_seed_gives_the_same_numbers(family: str, small_data: Path) -> None:
    def story(seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        run = Small(family, small_data, seed=seed, train__steps=6)
        run.train(6)
        state = {**dict(run.learner.named_parameters()), **dict(run.learner.named_buffers())}
        return run.losses, {name: t.detach().clone() for name, t in state.items()}

    (losses, weights), (losses_again, weights_again), (losses_other, _) = story(3), story(3), story(4)
    assert losses == losses_again
    assert [name for name in weights if not torch.equal(weights[name], weights_again[name])] == []
    learns = not load_family(family).learns.startswith("nothing")
    assert losses != losses_other or not learns  # other samples, at least


@every_family
def test_evaluations_of_parts_add_up_to_the_whole(family: str, small_data: Path) -> None:
    run = Small(family, small_data)
    rows = min(30, read_manifest(run.plan.data.path).split("test").rows)
    whole = rows_of(run.plan.data.path, range(rows), "test")
    run.learner.eval()
    at_once = run.engine.evaluate(whole)
    parts: dict[str, Any] = {}
    for part in (slice(0, rows // 3), slice(rows // 3, rows // 3 + 1), slice(rows // 3 + 1, rows)):
        if len(whole["id"][part]):
            add(parts, run.engine.evaluate({name: column[part] for name, column in whole.items()}))
    assert parts.keys() == at_once.keys() and run.learner.primary in parts
    for name, (total, count) in at_once.items():
        assert parts[name].count == count
        assert float(parts[name].total) == pytest.approx(float(total), rel=1e-4, abs=1e-4)


@every_family
def test_a_wrong_shape_names_the_expected_one(family: str, small_data: Path, tmp_path: Path) -> None:
    from distdl.config.load import config_from_dict
    from distdl.train.survey import data_facts

    values = contract_config(family, small_data)
    wanted = load_family(family).columns(model_config(values["model"]))
    manifest = read_manifest(values["data"]["path"])
    columns = {name: Column(c.dtype, (*c.shape, 3)) for name, c in manifest.columns.items()}
    with DatasetWriter(str(tmp_path / "wrong"), columns, "test", {}) as writer:
        for split in ("train", "test"):
            writer.write(split, {name: np.zeros((2, *c.shape), c.dtype) for name, c in columns.items()})
    values["data"]["path"] = str(tmp_path / "wrong")
    with pytest.raises(InputError) as caught:
        data_facts(config_from_dict(values))
    for name, column in wanted.items():
        assert f"expects '{name}' of shape {list(column.shape)} for a sample" in str(caught.value)
        assert str(list(columns[name].shape)) in str(caught.value)


@every_family
def test_fresh_weights_depend_on_the_seed_alone(family: str) -> None:
    first, again, other = (made(MODELS[family], seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    if not small(family).get("seedless"):
        assert any(not torch.equal(first[name], other[name]) for name in first)
