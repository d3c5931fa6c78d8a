"""Pictures are drawn from small counts that an evaluation has spooled, in another process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distdl.learner.labels import accuracy
from distdl.learner.units import Units, of_numbers
from distdl.nn.watch import seen, watching
from distdl.track.pictures import MOST_CLASSES, MOST_CURVES, MOST_POINTS
from distdl.track.pictures.draw import draw
from distdl.track.pictures.figures import rates
from distdl.track.spool import SpoolReader, SpoolWriter
from distdl.train.hooks.pictures import Pictures, of_classes
from tests.track.conftest import spool

PNG = b"\x89PNG"


def test_counts_of_classes_by_hand_and_by_parts() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.15, 0.8, 0.05], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
    label = torch.tensor([0, 1, 2, -100])
    counted = of_classes(logits, label)
    assert counted["confusion"].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]], "true by told; no label counts nowhere"
    assert counted["sure"][:, 0].sum() == 3 and counted["sure"][:, 2].sum() == 2
    assert counted["scores"].shape == (3, 2, 100) and counted["scores"].sum((1, 2)).tolist() == [3, 3, 3]
    halves = [of_classes(logits[part], label[part]) for part in (slice(0, 2), slice(2, 4))]
    for name, whole in counted.items():
        assert torch.allclose(halves[0][name] + halves[1][name], whole), name
    many = torch.randn(8, MOST_CURVES + 1)
    assert "scores" not in of_classes(many, torch.zeros(8, dtype=torch.long))


def test_areas_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    draws = np.random.default_rng(0)
    true = draws.integers(0, 2, 500)
    score = np.clip(0.5 + 0.2 * (true - 0.5) + 0.2 * draws.standard_normal(500), 0, 0.999)
    binned = (score * 100).astype(int)
    counts = np.stack([np.bincount(binned[true == side], minlength=100) for side in (0, 1)])
    hit, false_alarm, precision, area = rates(counts)
    assert area == pytest.approx(roc_auc_score(true, binned)) and hit[-1] == false_alarm[-1] == 1
    assert precision[-1] == pytest.approx(true.mean())
    assert rates(counts * [[1], [0]])[0] is None, "a class without rows has no curve"


def run_of(tmp_path: Path, **mesh: int) -> Any:
    """What the hook asks of a run of 100 steps."""
    writer = SpoolWriter(tmp_path / "events.jsonl")
    plan = SimpleNamespace(
        steps=100, world=1, mesh=SimpleNamespace(**{"pipeline": 1, "sequence": 1, "data": 1, **mesh})
    )
    config = SimpleNamespace(track=SimpleNamespace(enabled=True))
    return SimpleNamespace(
        plan=plan,
        rank=0,
        spool=writer,
        preparation={"columns": {"label": {"classes": ["cat", "dog"]}}},
        engine=SimpleNamespace(config=config, all_sum=lambda tensor: tensor),
        learner=SimpleNamespace(training=False),
        last=lambda step: step == 100,
        event=writer.write,
    )


def test_an_evaluation_spools_what_it_saw_at_most_eleven_times_a_run(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    pictures = Pictures(run)
    logits, label = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    for step in range(1, 101):
        with pictures.look(step, "test"):
            for batch, _ in pictures.batches([("a", True), ("b", True), ("unreal", False)]):
                accuracy(logits, label)
                accuracy(1 - logits, label)  # another head of the same batch
                of_numbers(torch.tensor([1.0]), torch.tensor([2.0]), Units(divide=10.0, shift=1.0))
                assert batch
    accuracy(logits, label)
    run.spool.close()
    found = SpoolReader(tmp_path / "events.jsonl").poll()
    steps = [event["step"] for event in found if event["drawing"] == "classes"]
    assert steps == [1, *range(11, 100, 10), 100]
    first, second = found[:2]
    assert first["arrays"]["confusion"] == [[2, 2], [0, 0]] and first["names"] == ["cat", "dog"]
    assert second["drawing"] == "numbers" and second["arrays"]["points"] == [[11.0, 21.0]] * 2, "in the file's units"
    assert max(len(json.dumps(event)) for event in found) < 10_000


@pytest.mark.parametrize("mesh", [{"pipeline": 2}, {"sequence": 2}])
def test_ranks_that_see_parts_of_answers_spool_none(tmp_path: Path, mesh: dict[str, int]) -> None:
    run = run_of(tmp_path, **mesh)
    assert not Pictures(run).due(100)
    run.spool.close()


def test_training_and_too_many_classes_are_not_counted(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    pictures = Pictures(run)
    with pictures.look(1, "test"):
        accuracy(torch.randn(4, MOST_CLASSES + 1), torch.zeros(4, dtype=torch.long))
        run.learner.training = True
        accuracy(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))
    run.spool.close()
    assert SpoolReader(tmp_path / "events.jsonl").poll() == []


def test_watching_ends_with_its_block() -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError), watching(lambda kind, *_: told.append(kind)):
        seen("classes", torch.zeros(1), torch.zeros(1))
        raise RuntimeError
    seen("classes", torch.zeros(1), torch.zeros(1))
    assert told == ["classes"]


class Client:
    """What drawing asks of MLflow."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int]] = []
        self.files: list[str] = []

    def log_image(self, run_id: str, image: np.ndarray, *, key: str, step: int, synchronous: bool) -> None:
        assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 1, "not an empty page"
        self.images.append((key, step))

    def log_artifact(self, run_id: str, path: str, folder: str) -> None:
        assert Path(path).read_bytes().startswith(PNG) and folder == "pictures"
        self.files.append(Path(path).name)


@pytest.mark.slow
def test_everything_is_drawn_once(run_dir: Path) -> None:
    spool(run_dir, range(5), loss=lambda step: 5.0 - step)
    writer = SpoolWriter(run_dir / "events.jsonl")
    classes = {name: counts.tolist() for name, counts in of_classes(torch.eye(3), torch.arange(3)).items()}
    for step in (2, 4):
        writer.write("picture", step=step, split="test", drawing="classes", arrays=classes, names=["a", "b", "c"])
        writer.write("evaluation", step=step, split="test", values={"loss": 1.0 / step, "accuracy": step / 4})
    points = [[float(i), i + 0.5] for i in range(MOST_POINTS)]
    writer.write("picture", step=4, split="test", drawing="numbers", arrays={"points": points})
    writer.close()
    client = Client()
    draw(run_dir, client, "id")
    by_class = ["confusion matrix", "calibration", "ROC and precision"]
    assert client.images == [
        *[(name, 2) for name in by_class],
        *[(name, 4) for name in by_class],
        ("predictions beside targets", 4),
        ("learning curves", 4),
    ]
    assert set(client.files) == {path.name for path in (run_dir / "pictures").glob("*.png")} and len(client.files) == 5
    again = Client()
    assert draw(run_dir, again, "id") == ["learning_curves.png"] and again.files == ["learning_curves.png"]
