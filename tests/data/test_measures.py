"""How right answers are: as the reference library of each field says it, on cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distdl.data.asking import measures_of_media
from distdl.data.asking.measures import calibration_error, confusion, of_classes
from distdl.data.asking.measures_of_media import (
    in_decibels,
    notes_of_pictures,
    of_masks,
    of_pictures,
    of_tasks,
    of_texts,
)


def test_classes_are_measured_as_torchmetrics_does() -> None:
    from torchmetrics.functional import classification as reference

    random = np.random.default_rng(0)
    chances = torch.from_numpy(random.dirichlet([1, 1, 1, 1], 400)).float()
    truth = torch.from_numpy(random.integers(0, 4, 400))
    told = chances.argmax(1)
    found = of_classes(truth.numpy(), told.numpy(), chances.numpy(), None, 4)
    assert found["f1"] == pytest.approx(float(reference.multiclass_f1_score(told, truth, 4)))
    assert found["precision"] == pytest.approx(float(reference.multiclass_precision(told, truth, 4)))
    assert found["balanced_accuracy"] == pytest.approx(float(reference.multiclass_accuracy(told, truth, 4)))
    assert found["roc_auc"] == pytest.approx(float(reference.multiclass_auroc(chances, truth, 4)), abs=1e-6)
    assert found["pr_auc"] == pytest.approx(float(reference.multiclass_average_precision(chances, truth, 4)), abs=1e-6)
    error = reference.multiclass_calibration_error(chances, truth, 4, n_bins=15)
    assert found["calibration_error"] == pytest.approx(float(error), abs=1e-6)
    assert calibration_error(chances.max(1).values.numpy(), (told == truth).numpy()) == pytest.approx(float(error))
    table = reference.multiclass_confusion_matrix(told, truth, 4).tolist()
    assert confusion(truth.numpy(), told.numpy(), 4) == table


def test_texts_are_measured_as_their_libraries_do() -> None:
    right = ["the cat sat on the mat .", "a dog barked at night .", ""]
    said = ["the cat sat on a mat .", "a dog barked at night .", "no"]
    found, notes = of_texts(right, said, "sentence")
    assert found["exact_match"] == pytest.approx(1 / 3) and found["wer"] == pytest.approx(1 / 13)
    letters = sum(map(len, right))
    assert found["cer"] == pytest.approx(3 / letters)  # the -> a
    precisions = [12 / 13, 9 / 11, 6 / 9, 4 / 7]  # of n-grams, by hand
    assert found["bleu"] == pytest.approx(100 * np.prod(precisions) ** 0.25)
    assert notes == ["1 rows have an empty text, which error rates and BLEU leave out"]
    found, _ = of_texts(["342", "7"], ["352", "7"], "character")
    assert found == {"exact_match": 0.5, "cer": 0.25}
    found, _ = of_texts(["ah b"], ["ah d b"], "word")
    assert found == {"exact_match": 0, "wer": 0.5}
    assert of_texts([""], ["x"], "sentence")[0] == {"exact_match": 0}


def test_without_their_libraries_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures_of_media, "library", lambda name: None)
    found, notes = of_texts(["a"], ["a"], "sentence")
    assert found == {"exact_match": 1} and "jiwer and sacrebleu: pip install 'distdl[metrics]'" in notes[0]
    assert "pip install 'distdl[metrics]'" in notes_of_pictures(20)[0]


def test_pictures_are_measured_as_torchmetrics_does() -> None:
    from torchmetrics.functional import image as reference

    random = torch.Generator().manual_seed(0)
    truth = torch.rand(5, 3, 14, 17, generator=random)
    told = (truth + 0.1 * torch.randn(truth.shape, generator=random)).clamp(0, 1)
    found = of_pictures(truth.numpy(), told.numpy())
    psnr = reference.peak_signal_noise_ratio(told, truth, data_range=1.0)
    assert in_decibels(found["squared_error"].mean()) == pytest.approx(float(psnr), abs=1e-4)
    ssim = reference.structural_similarity_index_measure(told, truth, data_range=1.0)
    assert found["ssim"].shape == (5,) and found["ssim"].mean() == pytest.approx(float(ssim), abs=1e-6)
    small = of_pictures(truth[..., :8, :8].numpy(), told[..., :8, :8].numpy())
    assert small.keys() == {"squared_error"} and "have 8 on a side" in notes_of_pictures(8)[0]
    assert in_decibels(0.0) == float("inf") and in_decibels(0.01) == pytest.approx(20)


def test_masks_are_measured_as_torchmetrics_does() -> None:
    from torchmetrics.functional import classification as reference

    random = torch.Generator().manual_seed(1)
    truth, told = torch.randint(3, (2, 6, 6), generator=random), torch.randint(3, (2, 6, 6), generator=random)
    counts = np.array(confusion(truth.flatten().numpy(), told.flatten().numpy(), 3))
    found = of_masks(counts)
    assert found["mean_iou"] == pytest.approx(float(reference.multiclass_jaccard_index(told, truth, 3)))
    assert found["dice"] == pytest.approx(float(reference.multiclass_f1_score(told, truth, 3)))
    assert found["pixel_accuracy"] == pytest.approx(float((told == truth).float().mean()))
    assert of_masks(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))["mean_iou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert of_masks(np.zeros((2, 2), int)) == {}


def test_tasks_without_an_answer_count_nowhere() -> None:
    from torchmetrics.functional import classification as reference

    truth = np.array([[0, 1], [1, -1], [1, 1], [0, 2], [1, 1]])
    chances = np.array([[0.2, 0.9], [0.7, 0.1], [0.3, 0.4], [0.4, 0.5], [0.9, 0.8]])
    found = of_tasks(truth, chances, ["one", "two"])
    first = reference.binary_auroc(torch.from_numpy(chances[:, 0]), torch.from_numpy(truth[:, 0]))
    assert found["roc_auc"] == found["roc_auc one"] == pytest.approx(float(first)) and "roc_auc two" not in found
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert of_tasks(np.full((2, 2), -1), np.zeros((2, 2))) == {}
