"""-100 is no label: in no loss and in no metric, and what is left is divided by the labels of the whole global batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distdl.data.read import Dataset
from distdl.errors import InputError
from distdl.families import load_family, model_config
from distdl.learner.labels import mean_known, mean_loss
from tests.families.common import Rehearsal
from tests.ranks import run_ranks
from tests.small import BASE, MODELS, contract_config, curves, written

R = np.random.default_rng(0)
X = R.normal(size=(300, 8)).astype("f4")
LABEL = (X @ R.normal(size=(8, 3))).argmax(1)
HALF = np.where(R.random(300) < 0.5, -100, LABEL)
HALF[:7] = -100  # whole micro-batches, and a whole global batch below, without a label
LINEAR = {"family": "mlp", "inputs": [8], "column": "x", "hidden": [], "classes": 3}
DEEP = {**LINEAR, "hidden": [6]}


def config(path: str, **train: Any) -> dict[str, Any]:
    values = {"name": "a", **BASE, "model": LINEAR, "data": {"path": path, "threads": 0, "shuffle": "none"}}
    plain = {"optimizer": {"name": "sgd", "lr": 0.1}, "schedule": {"name": "constant", "warmup_steps": 0}}
    return {**values, **plain, "train": {"global_batch": 4, "steps": 20, **train}}


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_what_is_learned_and_measured_is_that_of_numpy(tmp_path: Path) -> None:
    """Softmax regression by hand, on the labelled rows of each batch of 4; the first one has none."""
    path = written(tmp_path / "set", {"x": X[:80], "label": HALF[:80]}, {"x": X[80:], "label": HALF[80:]})
    runs = {micro: Rehearsal(config(path, micro_batch=micro)) for micro in (4, 2, 1)}
    weight, bias = (p.detach().double().numpy().copy() for p in runs[4].learner.parameters())
    losses = []
    for start in range(0, 80, 4):
        x, label = X[start : start + 4].astype(float), HALF[start : start + 4]
        x, label = x[label >= 0], label[label >= 0]
        p = softmax(x @ weight.T + bias)
        losses.append(-np.log(p[np.arange(len(x)), label]).mean() if len(x) else 0.0)
        if len(x):
            slope = (p - np.eye(3)[label]) / len(x)
            weight, bias = weight - 0.1 * slope.T @ x, bias - 0.1 * slope.sum(0)
    assert losses[0] == 0
    x, label = X[80:][HALF[80:] >= 0], HALF[80:][HALF[80:] >= 0]
    p = softmax(x @ weight.T + bias)
    wanted = {"loss": -np.log(p[np.arange(len(x)), label]).mean(), "accuracy": (p.argmax(1) == label).mean()}
    for run in runs.values():
        run.train(20)
        assert run.losses == pytest.approx(losses, abs=1e-6)
        assert run.evaluate(batch=17) == pytest.approx(wanted, abs=1e-6)
    assert runs[4].plan.data.unlabelled == ("label",) and "'label' are missing" in runs[4].plan.notes[-1]


def test_without_a_missing_label_it_is_the_plain_mean_to_the_bit() -> None:
    losses, label = torch.rand(7, dtype=torch.float32), torch.arange(7)
    assert mean_loss(losses, {"label": label}) == losses.mean()
    assert mean_known(losses, label).total == losses.sum() and mean_known(losses, label).count == 7
    none = torch.full((7,), -100)
    assert mean_loss(losses, {"label": none}) == 0 and mean_known(losses, none) == (0, 0)


WITH_LABELS = [
    family
    for family, model in MODELS.items()
    if any(c.missing is not None for c in load_family(family).columns(model_config(model)).values())
]
PLAIN = {  # without what is drawn by place in the split or couples the batch, and without steps that see no label
    "snn": {"code": "current"},
    "analog": {"device": "digital"},
    "unet": {"batch_norm": False, "dropout": 0.0, "elastic": 0.0},
    "cnn": {"norm": "none"},
    "dbn": {"pretrain_steps": 0},
    "bilinear_dbn": {"gather_steps": 0, "pretrain_steps": 0},
}


def test_every_classifier_knows_what_no_label_is() -> None:
    for family in ("mlp", "lenet5", "lenet1989", "cnn", "alexnet", "vit", "snn", "mcdnn", "gru", "hrnn", "rnn2"):
        assert family in WITH_LABELS
    for family in ("perceptron", "dbn", "bilinear_dbn", "analog", "ensemble", "recnn", "rae", "unet", "deepdream"):
        assert family in WITH_LABELS


@pytest.mark.parametrize("family", WITH_LABELS)
def test_no_label_is_nothing_in_training_and_evaluation(family: str, small_data: Path, tmp_path: Path) -> None:
    """Half the labels are taken away, from whole samples: a micro-batch of 1 teaches what one of 8 does, whatever they
    hold; a held-out split says the same as one without those rows."""
    values = contract_config(family, small_data, train__global_batch=8)
    values["model"] = values["model"] | PLAIN.get(family, {})
    asked = load_family(family).columns(model_config(values["model"]))
    (name,) = (n for n, c in asked.items() if c.missing is not None)
    sets = {}
    for split in ("train", "test"):
        rows = Dataset(values["data"]["path"], split).gather(range(24))
        label = rows[name].astype("i8")
        gone = np.random.default_rng(3).random(24) < 0.5
        label[gone] = np.where(label[gone] == (asked[name].filler or -1), label[gone], -100)
        sets[split] = {**rows, name: label}
    whole = written(tmp_path / "whole", sets["train"], sets["test"])
    there = {column: array[~gone] for column, array in sets["test"].items()}
    values["data"] = {**values["data"], "path": whole, "shuffle": "none"}

    def run(micro: int, path: str = whole, steps: int = 6) -> Rehearsal:
        changed = {"data": values["data"] | {"path": path}, "train": values["train"] | {"micro_batch": micro}}
        one = Rehearsal(values | changed)
        one.train(steps)
        return one

    first = run(8)
    assert np.isfinite(first.losses).all()
    if not first.learner.batch_coupled or family == "unet":  # whose coupling is batch normalisation
        assert run(1).losses == pytest.approx(first.losses, rel=1e-4, abs=1e-5)
    alone = run(8, written(tmp_path / "alone", sets["train"], there), steps=0)
    alone.learner.load_state_dict(first.learner.state_dict())
    wanted, got = alone.evaluate(), first.evaluate()
    of_labels = {"accuracy", "error", "dice", "all_nodes", "root", "cross_entropy", "loss"}
    of_labels -= {"rae": {"loss", "error"}, "recnn": {"loss"}, "deepdream": {"loss"}}.get(
        family, set()
    )  # of all samples
    compared = of_labels & wanted.keys()
    assert compared and {n: got[n] for n in compared} == pytest.approx(
        {n: wanted[n] for n in compared}, rel=1e-5, abs=1e-6
    )


@pytest.mark.slow
def test_two_ranks_with_labels_on_one_of_them_learn_what_one_process_does(tmp_path: Path) -> None:
    """Of each global batch of 8 the first rank's half has one label or none; with ZeRO-1 and accumulation, and on the axes
    that cut the model."""
    label = np.where((np.arange(300) % 8 < 4) & (np.arange(300) % 24 != 1), -100, LABEL)
    path = written(tmp_path / "set", {"x": X, "label": label})
    cases = {}
    for micro in (4, 2, 1):
        cases[f"torch-{micro}"] = config(path, global_batch=8, micro_batch=micro, steps=10, clip_norm=10.0)
        cases[f"zero1-{micro}"] = {**cases[f"torch-{micro}"], "parallel": {"engine": "deepspeed", "zero": 1}}
    cases["one"] = config(path, global_batch=8, steps=10, clip_norm=10.0)
    cases = {name: {**case, "model": DEEP} for name, case in cases.items()}
    reference = run_ranks(curves, 1, {"one": cases.pop("one")})[0]["one"]
    for axis in ("tensor", "pipeline"):
        cases[axis] = {**cases["torch-2"], "parallel": {"engine": "deepspeed", "zero": 1, axis: 2}}
    for case in cases.values():
        case["runtime"] = {"kind": "local", "workers": 2}
    for rank in run_ranks(curves, 2, cases):
        for name, got in rank.items():
            assert got["loss"] == pytest.approx(reference["loss"], abs=1e-6), name
            assert got["norm"] == pytest.approx(reference["norm"], abs=1e-6), name
            assert got["evaluation"] == pytest.approx(reference["evaluation"], abs=1e-6), name


def test_ways_of_learning_leave_out_what_has_no_label(tmp_path: Path) -> None:
    """Pseudo-labels take any negative number for no label; an attack of no size is measured where accuracy is."""
    x = 1 / (1 + np.exp(-X))
    path = written(tmp_path / "minus_1", {"x": x, "label": np.where(HALF < 0, -1, HALF)})
    with pytest.raises(InputError, match="the class is -1"):
        Rehearsal(config(path))
    pseudo = Rehearsal({**config(path), "way": {"name": "pseudo_label", "threshold": 0.2}})
    pseudo.train(6)
    attacked = {**config(written(tmp_path / "set", {"x": x, "label": HALF}))}
    attacked["way"] = {"name": "adversarial", "epsilon": 1e-7, "column": "x"}
    hardened = Rehearsal(attacked)
    hardened.train(6)
    for run in (pseudo, hardened):
        told = run.evaluate()
        logits = run.learner.logits({"x": torch.from_numpy(x[HALF >= 0])}).argmax(-1).numpy()
        assert told["accuracy"] == pytest.approx((logits == HALF[HALF >= 0]).mean())
        assert np.isfinite(run.losses).all()
    assert told["robust_accuracy"] == told["accuracy"] and hardened.losses[0] == 0
