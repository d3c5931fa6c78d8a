"""Classes that weigh in the loss, or are drawn equally often: equal on every layout, and rare classes are learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distdl.cli.checkpoint import _data_state
from distdl.config.load import config_from_dict
from distdl.data import first_pass
from distdl.data.manifest import read_manifest
from distdl.data.read import Dataset
from distdl.errors import InputError
from distdl.families import load_family, model_config
from distdl.learner.labels import mean_loss
from distdl.plan.plan import Plan
from distdl.train.survey import survey
from tests.families.common import Rehearsal
from tests.learner.test_labels import DEEP, HALF, LABEL, PLAIN, X, config
from tests.ranks import run_ranks
from tests.small import MODELS, contract_config, curves, written

RARE = np.where((LABEL == 2) & (np.arange(300) % 5 > 0), 0, LABEL)  # 122, 104 and the rest


def weighed(path: str, weights: Any, **train: Any) -> dict[str, Any]:
    return config(path, class_weights=weights, **train)


def test_the_loss_is_that_of_torch_over_the_whole_global_batch(tmp_path: Path) -> None:
    path = written(tmp_path / "set", {"x": X[:80], "label": HALF[:80]})
    runs = {micro: Rehearsal(weighed(path, [0.2, 1.0, 7.0], micro_batch=micro)) for micro in (4, 2, 1)}
    weight, bias = (p.detach().clone().requires_grad_() for p in runs[4].learner.parameters())
    losses = []
    for start in range(0, 80, 4):
        x, label = torch.from_numpy(X[start : start + 4]), torch.from_numpy(HALF[start : start + 4])
        if not (label >= 0).any():
            losses.append(0.0)
            continue
        loss = F.cross_entropy(x @ weight.T + bias, label, weight=torch.tensor([0.2, 1.0, 7.0]))
        losses.append(loss.item())
        slopes = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            weight -= 0.1 * slopes[0]
            bias -= 0.1 * slopes[1]
    for run in runs.values():
        run.train(20)
        assert run.losses == pytest.approx(losses, abs=1e-6)
    plain = Rehearsal(config(path))
    plain.learner.load_state_dict(runs[4].learner.state_dict())
    assert plain.evaluate() == runs[4].evaluate(), "an evaluation weighs nothing"


def test_equal_weights_change_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "set", {"x": X, "label": HALF})
    runs = [Rehearsal(config(path)), Rehearsal(weighed(path, [3.0, 3.0, 3.0]))]
    for run in runs:
        run.train(20)
    assert runs[1].losses == pytest.approx(runs[0].losses, abs=1e-6)


def test_balanced_weights_are_those_of_the_training_split(tmp_path: Path) -> None:
    label = np.repeat([0, 2, -100], [30, 10, 7])
    path = written(tmp_path / "set", {"x": X[:47], "label": label}, {"x": X[:3], "label": LABEL[:3]})
    plan = survey(config_from_dict(weighed(path, "balanced")))
    assert plan.data.class_weights == (("label", (40 / 60, 0.0, 2.0)),) and plan.data.class_rows == (30, 0, 10)
    assert Plan.from_dict(plan.to_dict()).data == plan.data
    assert "2 classes of 10 to 30 rows: the losses of 'label' weigh 0.667 to 2" in plan.notes
    told_once = "model.classes is 3, and class 1 has no row in the split 'train': it is never learned"
    assert [note for note in plan.notes if "no row" in note] == [told_once]
    told = read_manifest(path)
    with pytest.MonkeyPatch.context() as no_pass:
        no_pass.setattr(first_pass, "_passed", None)
        assert first_pass.class_rows(path, told, "train", "label", 3, str(tmp_path / "empty")) == [30, 0, 10]
    older = dataclasses.replace(told, statistics={})  # no such count: by a pass over the shards
    assert first_pass.class_rows(path, older, "train", "label", 3, str(tmp_path / "other")) == [30, 0, 10]
    drawn = survey(config_from_dict({**config(path), "data": {"path": path, "sampling": "balanced"}}))
    assert drawn.data.balanced == "label" and drawn.data.class_weights == ()
    assert (
        "2 classes of 10 to 30 rows, drawn equally often: the rows of the rarest come 2 times an epoch" in drawn.notes
    )
    both = survey(config_from_dict({**weighed(path, "balanced"), "data": {"path": path, "sampling": "balanced"}}))
    assert any(note.startswith("rare classes count twice") for note in both.notes)


CHANGED = {**PLAIN, "bert": {"task": "classify", "classes": 2}}
WEIGHED = [
    family
    for family, model in MODELS.items()
    if (
        c := load_family(family)
        .columns(model_config(model | CHANGED.get(family, {})))
        .get(load_family(family).class_column)
    )
    and not c.shape
]


def test_every_classifier_can_be_weighed() -> None:
    for family in (
        "mlp",
        "lenet5",
        "lenet1989",
        "cnn",
        "alexnet",
        "vit",
        "snn",
        "mcdnn",
        "gru",
        "rnn2",
        "perceptron",
        "bert",
    ):
        assert family in WEIGHED, family


@pytest.mark.parametrize("family", WEIGHED)
def test_no_accumulation_changes_what_weighs(family: str, small_data: Path, tmp_path: Path) -> None:
    values = contract_config(family, small_data, train__global_batch=8)
    values["model"] = values["model"] | CHANGED.get(family, {})
    classes = int(load_family(family).columns(model_config(values["model"]))["label"].high or 0) + 1
    rows = Dataset(values["data"]["path"], "train").gather(range(24))
    values["data"] = {**values["data"], "path": written(tmp_path / "set", rows), "shuffle": "none"}
    weights = [0.1 + 3.0 * (number % 3) for number in range(classes)]

    def run(micro: int, weights: list[float] | None) -> Rehearsal:
        one = Rehearsal(values | {"train": values["train"] | {"micro_batch": micro, "class_weights": weights}})
        one.train(4)
        return one

    first = run(8, weights)
    assert first.losses != pytest.approx(run(8, None).losses, rel=1e-3)
    if not first.learner.batch_coupled:
        assert run(2, weights).losses == pytest.approx(first.losses, rel=1e-4, abs=1e-5)


def test_a_converted_checkpoint_goes_on_with_balanced_draws(tmp_path: Path) -> None:
    path = written(tmp_path / "set", {"x": X, "label": RARE})
    run = Rehearsal({**config(path), "data": {"path": path, "threads": 0, "sampling": "balanced"}})
    run.train(7)
    assert _data_state(run.config, 7) == run.source.state_dict() and run.source.state_dict()["balanced"] == "label"


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_does(tmp_path: Path) -> None:
    """Weights and balanced draws, with ZeRO-1 and accumulation, and on the axes that cut the model."""
    path = written(tmp_path / "set", {"x": X, "label": np.where(np.arange(300) % 7 == 0, -100, RARE)})
    plain = {**weighed(path, "balanced", global_batch=8, steps=10, clip_norm=10.0), "model": DEEP}
    plain["data"] = {"path": path, "threads": 0, "sampling": "balanced"}
    reference = run_ranks(curves, 1, {"one": plain})[0]["one"]
    cases: dict[str, Any] = {}
    for micro in (4, 1):
        cases[f"torch-{micro}"] = {**plain, "train": {**plain["train"], "micro_batch": micro}}
        cases[f"zero1-{micro}"] = {**cases[f"torch-{micro}"], "parallel": {"engine": "deepspeed", "zero": 1}}
    for axis in ("tensor", "pipeline"):
        cases[axis] = {**plain, "parallel": {"engine": "deepspeed", "zero": 1, axis: 2}}
        cases[axis]["train"] = {**plain["train"], "micro_batch": 2}
    for case in cases.values():
        case["runtime"] = {"kind": "local", "workers": 2}
    for rank in run_ranks(curves, 2, cases):
        for name, got in rank.items():
            assert got["loss"] == pytest.approx(reference["loss"], abs=1e-6), name
            assert got["evaluation"] == pytest.approx(reference["evaluation"], abs=1e-6), name


def test_a_class_of_one_in_fifty_is_learned_with_either_and_not_without(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    sets = []
    for rows in (4080, 10_200):
        label = (np.arange(rows) % 51 == 0).astype("i8")
        sets.append(
            {"x": (draw.normal(size=(rows, 8)) + 2 * label[:, None] * (np.arange(8) == 0)).astype("f4"), "label": label}
        )
    path = written(tmp_path / "set", *sets)
    values = config(path, global_batch=64, steps=300)
    values |= {"model": {**values["model"], "classes": 2}, "optimizer": {"name": "sgd", "lr": 0.3}}
    values["data"] = {"path": path, "threads": 0}
    changes: dict[str, dict[str, Any]] = {
        "neither": {},
        "weights": {"train": {**values["train"], "class_weights": "balanced"}},
        "draws": {"data": {**values["data"], "sampling": "balanced"}},
    }
    found = {}
    rare = sets[1]["label"] == 1
    for name, change in changes.items():
        run = Rehearsal({**values, **change})
        run.train(300)
        guess = run.learner.logits({"x": torch.from_numpy(sets[1]["x"])}).argmax(-1).numpy()
        found[name] = (guess == 1)[rare].mean(), (guess == 0)[~rare].mean()
    assert found["neither"][0] < 0.4, found
    for name in ("weights", "draws"):
        assert found[name][0] > 0.7 and found[name][1] > 0.7, found


PAIRS = {"family": "bert", "context": 8, "vocabulary": 260, "width": 8, "heads": 1, "layers": 1, "task": "pretrain"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train.class_weights": [1.0, 2.0]},
            r"class_weights has 2 numbers, and there are 3 classes \(model.classes\)",
        ),
        ({"train.class_weights": [0.0, 0.0, 0.0]}, "class_weights are all 0"),
        (
            {"train.class_weights": "balanced", "model.target": "value"},
            "train.class_weights weighs the loss of classes",
        ),
        ({"data.sampling": "balanced", "model.target": "value"}, "data.sampling: balanced draws from classes"),
        ({"train.class_weights": "balanced", "model": PAIRS}, "this bert is not weighed so"),
        ({"train.class_weights": "balanced", "way": {"name": "pseudo_label"}}, "train.class_weights weighs the loss"),
        ({"train.class_weights": [-1.0, 1.0, 1.0]}, "train.class_weights"),
        ({"train.class_weights": "even"}, "train.class_weights"),
    ],
)
def test_what_cannot_be_weighed_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    tokens = {"tokens": np.ones((300, 8), "u1"), "segments": np.ones((300, 8), "u1")}
    path = written(tmp_path / "set", {"x": X, "label": np.minimum(LABEL, 1), "y": X[:, 0].copy(), **tokens})
    values = config(path)
    values["data"] = {"path": path, "threads": 0}
    values["model"] = dict(values["model"])
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    with pytest.raises(InputError, match=said):
        survey(config_from_dict(values))


def test_a_batch_of_its_own_is_divided_by_its_weights() -> None:
    losses, label = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, -100])
    batch = {"label": label, "label.weight": torch.tensor([1.0, 3.0, 0.0])}
    assert mean_loss(losses, batch).item() == pytest.approx((1 + 6) / 4)
