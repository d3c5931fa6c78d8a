"""The multi-task network against scikit-learn, one network for each task, and the perceptron."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError
from distdl.families import model_config
from distdl.families.mtdnn import AlphaDropout
from distdl.metrics import Metrics, add, values
from tests.families.common import Small, made, parameters
from tests.small import small

SMALL = small("mtdnn")["model"] | {"dropout": 0.0, "input_dropout": 0.0}


def batch(rows: int, tasks: int = 5, first: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (rows, 8), generator=draw, dtype=torch.uint8)
    y = torch.tensor([0, 0, 1, 255])[torch.randint(0, 4, (rows, tasks), generator=draw)]
    return {"x": x, "y": y, "id": torch.arange(first, first + rows)}


def test_parameters_are_those_of_the_papers() -> None:
    assert parameters("mtdnn") == 1_037_012  # MoleculeNet's 1024-1000-12
    assert parameters("mtdnn", hidden=(2000, 100), tasks=259) == 2_276_259  # Ramsundar et al. 2015, section 3.2
    assert parameters("mtdnn", hidden=(), tasks=1) == 1025
    assert parameters("mtdnn", chosen=(3, 5)) == 1024 * 1000 + 1000 + 2 * 1001


def test_bits_come_in_the_order_of_numpy() -> None:
    learner = made(SMALL | {"hidden": []})
    given = batch(7)
    bits = torch.from_numpy(np.unpackbits(given["x"].numpy(), axis=1)).float()
    assert torch.equal(learner.logits(given), learner.heads(bits))
    plain = made(SMALL | {"hidden": [], "packed": False})
    assert torch.equal(plain.logits({**given, "x": bits}), learner.logits(given))


def test_the_loss_is_the_sum_of_the_tasks_losses() -> None:
    learner, given = made(SMALL), batch(40)
    y = given["y"].numpy()
    p = torch.sigmoid(learner.logits(given).double()).detach().numpy()
    there = y != 255
    of_tasks = [log_loss(y[there[:, t], t], p[there[:, t], t], labels=[0, 1], normalize=False) for t in range(5)]
    loss, metrics = learner.loss(given, 0)
    assert loss.item() == pytest.approx(sum(of_tasks) / (40 * 5 * 0.8), rel=1e-6)
    assert values(metrics)["present"] == pytest.approx(there.mean())
    held_out = values(learner.evaluate(given))
    assert held_out["loss"] == pytest.approx(sum(of_tasks) / there.sum(), rel=1e-6)


def test_missing_answers_teach_nothing() -> None:
    gradients = []
    for missing in (255, -1, 7, float("nan")):
        learner, given = made(SMALL), batch(20)
        there = given["y"] != 255
        given["y"] = torch.where(there, given["y"].float(), missing)
        given["y"][:, 2] = missing
        learner.loss(given, 0)[0].backward()
        gradients.append(learner.trunk[1].weight.grad)
        assert not learner.heads.weight.grad[2].any() and learner.heads.weight.grad[1].any()
    assert all(torch.equal(g, gradients[0]) and g.any() for g in gradients)


def test_one_task_without_gaps_is_a_perceptron() -> None:
    """A sigmoid is a softmax of two classes of which the first always scores 0."""
    model: dict[str, Any] = {"hidden": [6, 4]}
    one = made({"family": "mtdnn", "inputs": 8, "packed": False, "tasks": 1, "dropout": 0, "input_dropout": 0, **model})
    mlp = made({"family": "mlp", "inputs": [8], "column": "x", "classes": 2, **model})
    x, y = torch.randn(30, 8), torch.randint(0, 2, (30,))
    with torch.no_grad():
        for mine, theirs in zip(list(one.trunk.parameters()), list(mlp.net[:-1].parameters()), strict=True):
            theirs.copy_(mine)
        for mine, theirs in zip(one.heads.parameters(), mlp.net[-1].parameters()):
            theirs.copy_(torch.cat([torch.zeros_like(mine), mine]))
    ours = one.loss({"x": x, "y": y[:, None], "id": y}, 0)[0]
    expected = mlp.loss({"x": x, "label": y, "id": y}, 0)[0]
    ours.backward()
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(one.trunk[1].weight.grad, mlp.net[0].weight.grad, atol=1e-6)


def test_the_area_is_scikit_learns_over_the_whole_split() -> None:
    learner, given = made(SMALL), batch(3000)
    with torch.no_grad():
        logits = learner.logits(given).numpy()
    y = given["y"].numpy()
    there = [np.flatnonzero(y[:, t] != 255) for t in range(5)]
    rounded = np.mean([roc_auc_score(y[rows, t], np.rint(logits[rows, t] * 256)) for t, rows in enumerate(there)])
    exact = np.mean([roc_auc_score(y[rows, t], logits[rows, t]) for t, rows in enumerate(there)])
    assert abs(rounded - exact) < 1e-4 and exact != rounded
    for sizes in ([3000], [1, 700, 2299], [1000] * 3):  # whatever the batches; each time from row 0
        told: Metrics = {}
        for i, start in enumerate(np.cumsum([0, *sizes])[:-1]):
            add(told, learner.evaluate({name: column[start : start + sizes[i]] for name, column in given.items()}))
        assert values(told)["auc"] == pytest.approx(rounded, abs=1e-9)


def test_a_task_with_one_answer_only_has_no_area() -> None:
    learner, given = made(SMALL), batch(200)
    given["y"][:, 1:] = 0
    with torch.no_grad():
        score = np.rint(learner.logits(given)[:, 0].numpy() * 256)
    y = given["y"][:, 0].numpy()
    assert values(learner.evaluate(given))["auc"] == pytest.approx(roc_auc_score(y[y < 2], score[y < 2]), abs=1e-9)


def test_chosen_tasks_are_learned_alone() -> None:
    alone, given = made(SMALL | {"chosen": [3, 1]}), batch(50)
    assert alone.logits(given).shape == (50, 2)
    y, present = alone.answers(given)
    assert torch.equal(present, given["y"][:, [3, 1]] < 2) and torch.equal(y == 1, given["y"][:, [3, 1]] == 1)


def test_dropout_of_self_normalising_layers_keeps_mean_and_variance() -> None:
    x = torch.nn.functional.selu(torch.randn(400, 1000, generator=torch.Generator().manual_seed(1)))
    drop = AlphaDropout(0.3)
    assert torch.equal(drop.eval()(x), x)
    torch.manual_seed(0)
    dropped = drop.train()(x)
    assert abs(float(dropped.mean() - x.mean())) < 0.01 and abs(float(dropped.var() - x.var())) < 0.02
    assert float((dropped != x).float().mean()) > 0.99
    torch.manual_seed(0)
    peer = torch.nn.AlphaDropout(0.3)(x)
    assert sorted(peer.unique(return_counts=True)[1])[-1] / x.numel() == pytest.approx(0.3, abs=0.01)
    assert float(dropped.min()) == pytest.approx(float(peer.min()), rel=1e-4)


def test_tasks_help_each_other_where_answers_are_few(tmp_path: Path) -> None:
    """Twelve tests of the same few causes: of one test alone less is learned."""
    prepare_dataset("assays", tmp_path / "d", {"molecules": 800, "bits": 64, "missing": 0.5, "test_fraction": 0.5})
    test = Dataset(str(tmp_path / "d"), "test")
    held_out = {name: torch.from_numpy(c) for name, c in test.gather(np.arange(test.rows)).items()}
    held_out["id"] = torch.arange(test.rows)
    reached = []
    for chosen in ([], [0], [1], [2]):
        model = {"family": "mtdnn", "inputs": 64, "hidden": [48], "dropout": 0.3, "input_dropout": 0.1, "present": 0.5}
        changes = {"data__path": str(tmp_path / "d"), "train__steps": 300, "train__global_batch": 64}
        run = Small("mtdnn", tmp_path, model=model | {"chosen": chosen}, **changes)
        run.train(300)
        with torch.no_grad():
            logits = run.learner.eval().logits(held_out)
        for task in range(3):
            if chosen in ([], [task]):
                rows = held_out["y"][:, task] != 255
                column = 0 if chosen else task
                reached.append(roc_auc_score(held_out["y"][rows, task], logits[rows, column]))
    together, alone = np.mean(reached[:3]), np.mean(reached[3:])
    assert together > 0.75 and together > alone + 0.01, (together, alone)


def test_made_up_assays(tmp_path: Path) -> None:
    manifest = prepare_dataset("assays", tmp_path / "d", {"molecules": 2000, "bits": 64, "tasks": 3, "missing": 0.25})
    assert manifest.split("train").rows + manifest.split("test").rows == 2000
    rows = Dataset(str(tmp_path / "d"), "train").gather(np.arange(1000))
    assert rows["x"].shape == (1000, 8) and rows["x"].dtype == np.uint8
    assert set(np.unique(rows["y"])) == {0, 1, 255}
    assert np.mean(rows["y"] == 255) == pytest.approx(0.25, abs=0.03)
    assert np.mean(rows["y"][rows["y"] < 2]) == pytest.approx(1 / 8, abs=0.03)
    for options, what in (({"bits": 12}, "a multiple of 8 bits"), ({"missing": 1.0}, "below 1")):
        with pytest.raises(InputError, match=what):
            prepare_dataset("assays", tmp_path / "e", options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": 60}, "not a whole number of bytes"),
        ({"chosen": [5]}, "different tasks from 0 to 4"),
        ({"chosen": [1, 1]}, "different tasks"),
    ],
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(SMALL | change)
