"""Show and Tell against its equations written out, beam search against every caption, BLEU against counts by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.families.captioner import BEGIN, END, PAD, bleu, spoken
from distdl.nn.googlenet import GoogLeNet
from distdl.nn.trunk import Trunk
from tests.families.common import made, parameters

SMALL = {"family": "captioner", "image": [1, 12, 10], "vocabulary": 6, "length": 4, "widths": [3, 4], "units": 5}
SMALL |= {"dropout": 0.0}


def rough(**changes: Any) -> Any:
    """In fp64, with weights far from their start so that no two words are equally likely."""
    learner = made(SMALL | changes).double()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    return learner


def test_the_default_model_has_the_agreed_number_of_parameters() -> None:
    with torch.device("meta"):
        googlenet = sum(p.numel() for p in GoogLeNet(3, 1000, auxiliary=False).parameters())
    assert googlenet == 6_624_904  # torchvision's
    trunk = googlenet - 1_025_000
    see, lstm, words = 1025 * 512, 4 * (512 * 1024 + 2 * 512), 12_000 * (512 + 512 + 1)
    assert parameters("captioner") == trunk + see + lstm + words == 20_525_952
    assert parameters("captioner", vocabulary=8843) == 20_525_952 - 1025 * (12_000 - 8843)
    small = 25 * (32 + 32 * 64 + 64 * 64) + 2 * 160 + (64 * 36 + 1) * 128
    own = parameters("captioner", image=(1, 42, 42), vocabulary=19, length=7, widths=(32, 64, 64), units=128)
    assert own == small + 4 * (128 * 256 + 256) + 19 * (128 + 129)


def cell(learner: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM of Hochreiter & Schmidhuber with a forget gate, written out; torch's order of gates."""
    net = learner.lstm
    sums = x @ net.weight_ih_l0.T + net.bias_ih_l0 + h @ net.weight_hh_l0.T + net.bias_hh_l0
    i, f, g, o = sums.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def log_p(learner: Any, image: Tensor, caption: list[int]) -> Tensor:
    """ln p(caption | picture (1, C, H, W)), by equations 10 to 12, word by word."""
    x = learner.see(learner.trunk.vector(image))
    h, c = cell(learner, x, torch.zeros_like(x), torch.zeros_like(x))
    total = torch.zeros((), dtype=torch.float64)
    for word, after in itertools.pairwise([BEGIN, *caption]):
        h, c = cell(learner, learner.words.weight[word][None], h, c)
        scores = h[0] @ learner.head.weight.T + learner.head.bias
        total = total + scores[after] - scores[PAD + 1 :].exp().sum().log()
    return total


def pictures(rows: int) -> Tensor:
    return torch.rand(rows, 1, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_the_likelihood_of_the_captions() -> None:
    """Value and gradients, with captions of different lengths; the picture enters once, before the first word."""
    learner, image = rough(), pictures(3)
    captions = [[4, 5, 1, END], [5, END], [4, 4, END]]
    rows = torch.tensor([[BEGIN, *caption, *[PAD] * (4 - len(caption))] for caption in captions])
    loss, _ = learner.loss({"image": image, "caption": rows}, 0)
    expected = -torch.stack([log_p(learner, image[i : i + 1], c) for i, c in enumerate(captions)]).sum() / (3 * 4)
    assert (loss - expected).abs() < 1e-6 and expected > 0.5  # logits are cast to fp32
    weights = [p for p in learner.parameters() if p.requires_grad]
    ours, theirs = torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-6
    assert min(b.abs().max() for b in theirs) > 1e-4


def every_caption(vocabulary: int, length: int) -> list[list[int]]:
    """All captions of at most `length` words that end where END stands, or are cut."""
    words = range(1, vocabulary)
    found = []
    for n in range(1, length + 1):
        for row in itertools.product(words, repeat=n):
            if END not in row[:-1] and (row[-1] == END or n == length):
                found.append(list(row))
    return found


def test_a_wide_beam_finds_the_likeliest_of_all_captions_and_a_beam_of_one_is_greedy() -> None:
    learner, improved = rough(), 0
    everything = every_caption(6, 4)
    assert len(everything) == 1 + 4 + 16 + 64 * 5
    for image in pictures(6).split(1):
        truth = torch.stack([log_p(learner, image, caption) for caption in everything]).detach()
        assert truth.exp().sum() == pytest.approx(1)
        captions, log_ps = learner.beam(image, 400)
        assert len(captions) == len(everything)
        best = truth.argsort(descending=True)[:20].tolist()
        assert [[w for w in row if w != PAD] for row in captions[:20].tolist()] == [everything[n] for n in best]
        assert torch.allclose(log_ps[:20].double(), truth[best], atol=1e-5)
        one, log_one = learner.beam(image, 1)
        assert torch.equal(one, learner.greedy(image)[:, : one.shape[1]])
        improved += float(log_ps[0]) > float(log_one[0]) + 1e-4
    assert improved >= 1  # otherwise the search would not be worth it


def test_greedy_takes_the_likeliest_word_each_time_and_stops_at_the_end() -> None:
    learner, image = rough(), pictures(20)
    with torch.no_grad():
        learner.head.bias[END] += 1
    found = learner.greedy(image)
    assert found.shape == (20, 4)
    rows = torch.cat([torch.full((20, 1), BEGIN), found], 1)
    likeliest = learner.scores({"image": image, "caption": rows}).argmax(-1)
    ends = 0
    for row, expected in zip(found.tolist(), likeliest.tolist()):
        n = row.index(END) + 1 if END in row else 4
        assert row[:n] == expected[:n] and row[n:] == [PAD] * (4 - n)
        ends += n < 4
    assert ends > 0


def test_evaluation_is_per_word_and_counts_whole_captions() -> None:
    learner, image = rough(), pictures(5)
    right = learner.greedy(image)
    rows = torch.cat([torch.full((5, 1), BEGIN), right], 1)
    rows[0, 1] = 1 + rows[0, 1] % 5  # one wrong word
    metrics = learner.evaluate({"image": image, "caption": rows, "id": torch.arange(5)})
    words = int((rows[:, 1:] != PAD).sum())
    assert metrics["exact_match"] == (4, 5) and metrics["loss"].count == words
    total = -sum(log_p(learner, image[i : i + 1], [w for w in rows[i, 1:].tolist() if w]).item() for i in range(5))
    assert float(metrics["loss"].total) == pytest.approx(total, rel=1e-5)


def test_the_trunk_keeps_places_or_averages_them() -> None:
    trunk = Trunk((1, 13, 10), (3, 4)).eval()
    image = torch.rand(2, 1, 13, 10)
    x = 2 * image - 1
    for conv, norm in ((trunk.maps[0], trunk.maps[1]), (trunk.maps[3], trunk.maps[4])):
        x = F.conv2d(x, conv.weight, stride=2, padding=2) / math.sqrt(1 + norm.eps)  # fresh: mean 0, variance 1
        x = x.relu()
    assert trunk(image).shape == (2, 4, 4, 3) and trunk.features == 48
    assert torch.allclose(trunk.vector(image), x.flatten(1), atol=1e-6) and x.std() > 0.1
    with torch.device("meta"):
        googlenet = Trunk((3, 224, 224), ())
        assert googlenet(torch.empty(2, 3, 224, 224)).shape == (2, 1024, 7, 7)
        assert googlenet.vector(torch.empty(2, 3, 224, 224)).shape == (2, 1024)
    assert sum(p.numel() for p in googlenet.parameters()) == 5_599_904


def test_bleu_is_that_of_the_paper() -> None:
    """Papineni et al. 2002, section 2: the clipped precision of "the the the ..." is 2/7; the rest counted by hand."""
    the, cat, is_, on, mat, there, a = range(10, 17)
    references = [[the, cat, is_, on, the, mat], [there, is_, a, cat, on, the, mat]]
    assert bleu([[the] * 7], [references], longest=1) == pytest.approx(2 / 7)
    assert bleu([[the] * 7], [references]) == 0.0
    assert bleu([references[0]], [references]) == pytest.approx(1)
    # 6 of 6 words are right, of 5 pairs: the cat, cat is, is on; of 4 triples the first two, of 3 quadruples the first
    expected = (6 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu([[the, cat, is_, on, a, mat]], [references]) == pytest.approx(expected)
    # too short by one word against the first reference alone: exp(1 - 6/5); all its n-grams are right
    assert bleu([references[0][:5]], [references[:1]]) == pytest.approx(math.exp(1 - 6 / 5))
    # a corpus adds up counts, not scores: a caption of two words has no 4-grams, and does not count as 0
    both = bleu([references[0], [the, mat]], [references[:1], [[the, mat]]])
    assert both == pytest.approx(1)
    halves = bleu([references[0], [a, mat]], [references[:1], [[the, mat]]])
    assert halves == pytest.approx((7 / 8 * 5 / 6 * 4 / 4 * 3 / 3) ** 0.25)
    assert spoken(torch.tensor([[5, 4, END, PAD], [7, 1, 4, 5]])) == [[5, 4], [7, 1, 4, 5]]


@pytest.mark.slow
def test_it_looks_at_the_picture() -> None:
    """On pictures of four kinds, one word each: right with the picture, guessing with another one."""
    torch.manual_seed(0)
    kinds = torch.randint(0, 4, (64,))
    image = torch.zeros(64, 1, 12, 10)
    image[torch.arange(64), 0, 2 * kinds, 2 * kinds] = 1
    caption = torch.stack([torch.full((64,), BEGIN), kinds % 2 + 4, kinds // 2 + 4, torch.full((64,), END)], 1)
    learner = made(SMALL | {"length": 3, "units": 16}).train()
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    for step in range(150):
        optimizer.zero_grad()
        learner.loss({"image": image, "caption": caption}, step)[0].backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    learner.eval()
    batch = {"image": image, "caption": caption, "id": torch.arange(64)}
    assert float(learner.evaluate(batch)["exact_match"].total) >= 62
    other = batch | {"image": image[torch.randperm(64)]}
    assert float(learner.evaluate(other)["exact_match"].total) < 32
