"""Neocognitron: the cells against a transcription in loops, its learning by hand, and what it forgives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distdl.families.neocognitron import Config, Stage, candidates, gaussian
from tests.families.common import made

SMALL = {
    "family": "neocognitron",
    "image": (1, 16, 16),
    "planes": (5, 4),
    "s_window": (5, 3),
    "s_padding": (2, 0),
    "c_window": (5, 2),
    "c_padding": (-1, 0),
    "c_stride": (1, 2),
    "selectivity": (2.0, 1.5),
    "gain": (4.0, 16.0),
    "column": 3,
    "steps_per_stage": 6,
}


class OneRank:
    def all_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def batch_of(images: torch.Tensor, start: int = 0) -> dict[str, torch.Tensor]:
    return {"image": images, "position": torch.arange(start, start + len(images))}


def strokes(rows: int, seed: int = 0) -> torch.Tensor:
    """Two bright lines each, on black."""
    rng = np.random.default_rng(seed)
    images = np.zeros((rows, 1, 16, 16))
    for image in images[:, 0]:
        image[rng.integers(3, 13), 3:13] = rng.uniform(0.5, 1)
        image[3:13, rng.integers(3, 13)] = rng.uniform(0.5, 1)
    return torch.from_numpy(images)


def taught(steps: int = 12):
    learner = made(SMALL).double()
    for step in range(steps):
        learner.update(batch_of(strokes(8, step), 8 * step), OneRank(), step)
    return learner


def transcription(stage: Stage, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The three equations of the file's head, cell by cell. (K_below, H, W) -> u_S, u_C."""
    a, b, c, d = (t.numpy() for t in (stage.a, stage.b, stage.c[0], stage.d[:, 0]))

    def padded(x: np.ndarray, n: int) -> np.ndarray:
        return np.pad(x, ((0, 0), (n, n), (n, n))) if n >= 0 else x[:, -n:n, -n:n]

    u, side = padded(u, stage.s_padding), a.shape[-1]
    size = u.shape[-1] - side + 1
    s = np.zeros((len(a), size, size))
    for k in range(len(a)):
        for i in range(size):
            for j in range(size):
                window = u[:, i : i + side, j : j + side]
                v = np.sqrt((c * window**2).sum())
                excitation, inhibition = (a[k] * window).sum(), stage.r / (1 + stage.r) * b[k] * v
                s[k, i, j] = stage.r * max(0.0, (1 + excitation) / (1 + inhibition) - 1)
    cut, side = padded(s, stage.c_padding), d.shape[-1]
    size = (cut.shape[-1] - side) // stage.c_stride + 1
    blurred = np.zeros((len(a), size, size))
    for k in range(len(a)):
        for i in range(size):
            for j in range(size):
                y, x = i * stage.c_stride, j * stage.c_stride
                blurred[k, i, j] = (d[k] * cut[k, y : y + side, x : x + side]).sum()
    return s, blurred / (stage.alpha + blurred)


def test_the_default_is_the_net_of_1980() -> None:
    learner = made({"family": "neocognitron"})
    u, sizes = torch.rand(1, 1, 16, 16), []
    for stage in learner.stages:
        s, _ = stage.s_cells(u)
        u = stage(u)
        sizes += [tuple(s.shape[1:]), tuple(u.shape[1:])]
    assert sizes == [(24, 16, 16), (24, 10, 10), (24, 8, 8), (24, 6, 6), (24, 2, 2), (24, 1, 1)]
    assert [stage.a.numel() for stage in learner.stages] == [600, 14_400, 14_400]
    assert sum(stage.b.numel() for stage in learner.stages) == 72
    assert not list(learner.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_cells_are_their_transcription(dtype: torch.dtype, tolerance: float) -> None:
    learner = taught()
    image = strokes(1, 99)
    u = image[0].numpy()
    got = image.to(dtype)
    for stage in learner.stages:
        s, u = transcription(stage, u)
        answers, _ = stage.s_cells(got)
        got = stage(got)
        assert s.max() > 0.1 and np.abs(answers[0].double().numpy() - s).max() < tolerance
        assert np.abs(got[0].double().numpy() - u).max() < tolerance
    assert np.abs(learner.features(image.to(dtype))[0].double().numpy() - u.ravel()).max() < tolerance


def test_a_learned_cell_measures_the_cosine() -> None:
    """What the head of the file says of it: phi((1 + r) s - r), after much reinforcement."""
    stage = made(SMALL).double().stages[0]
    feature, other = torch.rand(2, 1, 5, 5, dtype=torch.float64)
    c = stage.c[0]
    stage.a[0], stage.b[0] = 1e9 * c * feature, 1e9 * (c * feature**2).sum().sqrt()
    cosine = (c * feature * other).sum() / ((c * feature**2).sum() * (c * other**2).sum()).sqrt()
    answers, _ = stage.s_cells(torch.stack([feature, other, 0.3 * feature, 1 - feature]))
    middle = answers[:, 0, 2, 2]
    assert middle[:3].tolist() == pytest.approx([1, 3 * float(cosine) - 2, 1], abs=1e-6) and 0 < middle[1] < 1


def test_only_the_plane_of_a_representative_changes_and_by_what_it_sees() -> None:
    learner = taught(3)
    stage = learner.stages[0]
    images = strokes(4, 50)
    before = {"a": stage.a.clone(), "b": stage.b.clone()}
    s, _ = stage.s_cells(images)
    free = s.numpy().copy()  # by hand: the strongest cell of every 3 x 3 column, then of every plane
    for n in range(4):
        for i in range(16):
            for j in range(16):
                column = s[n, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                free[n, :, i, j] *= (s[n, :, i, j] == column.max()).numpy()
    changed = []
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    learner.update(batch_of(images), OneRank(), 3)
    for k in range(5):
        if free[:, k].max() <= 0:
            continue
        n, i, j = np.unravel_index(free[:, k].argmax(), free[:, k].shape)
        seen, c = padded[n, :, i : i + 5, j : j + 5], stage.c[0].numpy()
        assert np.abs(stage.a[k].numpy() - before["a"][k].numpy() - 4 * c * seen).max() < 1e-12
        assert float(stage.b[k] - before["b"][k]) == pytest.approx(4 * np.sqrt((c * seen**2).sum()), abs=1e-12)
        changed.append(k)
    same = [k for k in range(5) if torch.equal(stage.a[k], before["a"][k]) and stage.b[k] == before["b"][k]]
    assert sorted(changed + same) == list(range(5)) and changed and same


def test_a_shift_within_the_blur_leaves_the_answer() -> None:
    """By one pixel: exactly where the blur is flat, and about the bell's width where it is a bell."""
    learner = taught(6)
    stage = learner.stages[0]
    stage.c_padding = 0
    stage.d = torch.ones(5, 1, 16, 16, dtype=torch.float64) / 256
    image = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    image[0, 0, 6:10, 5:9] = strokes(1, 3)[0, 0, 3:7, 3:7]
    moved = image.roll(1, 2)
    assert stage(image).max() > 0.001
    assert torch.allclose(stage(image), stage(moved), atol=1e-12)
    bell = made(SMALL).double().stages[0]  # the true blur: nearly
    bell.a, bell.b = stage.a, stage.b
    near = (bell(image) - bell(moved)).norm() / bell(image).norm()
    sharp, _ = bell.s_cells(image)
    sharp_moved, _ = bell.s_cells(moved)
    assert near < 0.5 * (sharp - sharp_moved).norm() / sharp.norm()


def test_stages_learn_one_after_the_other_and_then_rest() -> None:
    learner = made(SMALL).double()
    for step in range(14):
        before = [stage.a.clone() for stage in learner.stages]
        learner.update(batch_of(strokes(8, step), 8 * step), OneRank(), step)
        moved = [not torch.equal(stage.a, old) for stage, old in zip(learner.stages, before)]
        assert moved == [step < 6, 6 <= step < 12]


def test_an_s_column_has_one_winner() -> None:
    s = torch.rand(2, 3, 7, 7)
    free = candidates(s, 5)
    assert 2 * 1 <= (free > 0).sum() < 2 * 9
    for n in range(2):
        k, i, j = np.unravel_index(int(s[n].argmax()), (3, 7, 7))
        assert free[n, k, i, j] == s[n, k, i, j]
        around = free[n, :, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
        assert (around > 0).sum() == 1
    assert torch.equal(candidates(s, 1).amax(1), s.amax(1)) and float(gaussian(5).sum()) == pytest.approx(1)


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="s_window has 3 entries for 2 stages"):
        Config(planes=(3, 4))
    with pytest.raises(ValueError, match="choose an odd number"):
        Config(column=4)
