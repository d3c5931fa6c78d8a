"""word2vec: its loss pair by pair, gensim's updates, what is drawn and counted, and the words of a text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError
from distdl.layout import noise
from tests.families.common import Small, made, parameters

MODEL: dict[str, Any] = {"family": "word2vec", "vocabulary": 30, "context": 12, "width": 6, "window": 3, "negatives": 4}
methods = pytest.mark.parametrize("method", ["skipgram", "cbow"])


@pytest.fixture
def drawn() -> Iterator[None]:
    noise.begin(4, torch.arange(5))
    yield
    noise.begin(0, None)


def learner(**model: Any) -> Any:
    made_ = made({**MODEL, **model}, seed=2)
    torch.nn.init.normal_(made_.answers.weight)
    torch.nn.init.normal_(made_.words.weight)
    return made_


def test_two_matrices() -> None:
    assert parameters("word2vec", vocabulary=3_000_000) == 1_800_000_000
    assert parameters("word2vec", vocabulary=9259, width=100) == 2 * 9259 * 100


@methods
def test_the_loss_word_by_word(method: str, drawn: None) -> None:
    """The formulas of the paper in plain loops over the same draws."""
    ours = learner(method=method, subsample=0.01)
    ours.counts.copy_(torch.arange(30, 0, -1) ** 2)
    tokens = torch.randint(0, 30, (5, 12))
    draws = noise.uniform(5, 12, 6).double()
    noise.layer(-1)
    losses, answers = ours.losses(tokens)
    share = (ours.counts.double() / ours.counts.sum()).tolist()
    ends = np.cumsum(np.array(ours.counts.tolist(), float) ** 0.75)
    word, answer = ours.words.weight.double().tolist(), ours.answers.weight.double().tolist()
    dropped = 0
    for row in range(5):
        told, count, left = 0.0, 0, []
        for t, w in enumerate(tokens[row].tolist()):
            if draws[row, t, 0] < math.sqrt(0.01 / share[w]) + 0.01 / share[w]:
                left.append(w)
        dropped += 12 - len(left)
        for t, w in enumerate(left):
            reach = 1 + int(3 * draws[row, t, 1])
            wrong = [int(np.searchsorted(ends, float(u) * ends[-1], side="right")) for u in draws[row, t, 2:]]
            around = [left[o] for o in range(max(0, t - reach), min(len(left), t + reach + 1)) if o != t]
            if method == "skipgram":
                pairs = [(word[w], o) for o in around]
            else:
                pairs = [(np.mean([word[o] for o in around], 0).tolist(), w)] if around else []
            for given, right in pairs:
                count += 1
                told -= math.log(sigmoid(given, answer[right]))
                told -= sum(math.log(1 - sigmoid(given, answer[k])) for k in wrong if k != right)
        assert float(losses[row].detach()) == pytest.approx(told, rel=1e-5) and int(answers[row]) == count
    assert 5 < dropped < 45


def sigmoid(a: list[float], b: list[float]) -> float:
    return 1 / (1 + math.exp(-sum(x * y for x, y in zip(a, b))))


class Table(torch.autograd.Function):
    """softplus, whose derivative is the sigmoid as gensim and word2vec.c look it up: of a score that is cut to 1/83."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turned: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.turned = turned
        return torch.nn.functional.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        score = -x if ctx.turned else x
        looked_up = torch.sigmoid(12 * ((score + 6) * 83).floor() / 1000 - 6)
        return grad * (1 - looked_up if ctx.turned else looked_up), None


@methods
def test_two_updates_are_gensims(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence of two words and one noise word, with gensim's table for the sigmoid."""
    gensim = pytest.importorskip("gensim.models", reason="the independent word2vec")
    sg = int(method == "skipgram")
    theirs = gensim.Word2Vec(vector_size=8, window=1, min_count=1, sg=sg, negative=1, sample=0, workers=1, seed=1)
    theirs.build_vocab([["x", "y", "c"], ["x", "y"], ["x"]])
    assert theirs.wv.index_to_key == ["x", "y", "c"]
    theirs.cum_table = np.array([0, 0, 2**31 - 1], np.uint32)  # c is the noise, always
    random = np.random.default_rng(0)
    vectors, answers = (random.normal(size=(3, 8)).astype(np.float32) for _ in range(2))
    theirs.wv.vectors, theirs.syn1neg = vectors.copy(), answers.copy()
    ours = learner(vocabulary=3, context=2, width=8, window=1, negatives=1, method=method)
    with torch.no_grad():
        ours.words.weight.copy_(torch.from_numpy(vectors))
        ours.answers.weight.copy_(torch.from_numpy(answers))
    theirs.train([["x", "y"]], total_examples=1, epochs=1, start_alpha=0.025, end_alpha=0.025)
    given = {"skipgram": ([1, 0], [0, 1]), "cbow": ([0, 1], [1, 0])}[
        method
    ]  # gensim's skipgram has the pair turned round
    places, noise_word = torch.tensor([[1], [0]]), torch.full((1, 2, 1), 2)
    step = ours.of_pairs if method == "skipgram" else ours.of_means
    optimizer = torch.optim.SGD(ours.parameters(), 0.025)
    turns = itertools.cycle([True, False])  # the right answer is asked for first, then the noise
    monkeypatch.setattr("distdl.families.word2vec.F", SimpleNamespace(softplus=lambda x: Table.apply(x, next(turns))))
    for words in given:
        optimizer.zero_grad()
        loss, count = step(torch.tensor([words]), noise_word, places, torch.tensor([[[True], [False]]]))
        assert int(count) == 1
        loss.sum().backward()
        optimizer.step()
    assert np.abs(theirs.wv.vectors - vectors).max() > 5e-3 and np.abs(theirs.syn1neg - answers).max() > 5e-3
    np.testing.assert_allclose(ours.words.weight.detach().numpy(), theirs.wv.vectors, atol=1e-6)
    np.testing.assert_allclose(ours.answers.weight.detach().numpy(), theirs.syn1neg, atol=1e-6)


def test_noise_words_and_windows_are_drawn_as_the_paper_says(drawn: None) -> None:
    ours = learner(vocabulary=5)
    ours.counts.copy_(torch.tensor([1000, 500, 100, 10, 1]))
    words = ours.noise_words(noise.uniform(5, 40000))
    wanted = ours.counts.double() ** 0.75
    got = torch.bincount(words.flatten(), minlength=5) / words.numel()
    torch.testing.assert_close(got.double(), wanted / wanted.sum(), rtol=0.1, atol=2e-3)
    assert words.max() < 5 and ours.noise_words(torch.tensor([0.0, 1.0])).tolist() == [0, 4]


def test_what_a_step_has_seen_counts_from_the_next(small_data: Path) -> None:
    """Over micro-batches, too, and after a restart: it is all in buffers."""
    whole = Small("word2vec", small_data)
    parts = Small("word2vec", small_data, train__micro_batch=4)
    for run in (whole, parts):
        run.train(2)
    assert whole.plan.accumulate == 1 and parts.plan.accumulate == 4
    for name in ("counts", "seen", "at"):
        assert torch.equal(getattr(whole.learner, name), getattr(parts.learner, name))
    assert whole.losses == pytest.approx(parts.losses, abs=1e-6)
    assert whole.learner.counts.sum() == 400 + 16 * 32 and whole.learner.seen.sum() == 16 * 32
    assert int(whole.learner.at) == 1
    saved = {name for name, _ in whole.learner.named_buffers()}
    assert saved == {"counts", "seen", "at"}


# -- the words of a text -----------------------------------------------------------------------------------------------


def test_words_by_frequency(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat, the dog; the CAT's été! x1 rare\n" * 3 + "once")
    options = {"path": str(tmp_path / "a.txt"), "context": "5", "min_count": "2", "test_fraction": "0"}
    manifest = prepare_dataset("words", tmp_path / "w", options)
    names = manifest.info["words"]
    assert names == ["the", "cat", "dog", "rare", "s", "x", "été"] and manifest.info["vocabulary"] == 7
    tokens: Tensor = torch.from_numpy(Dataset(str(tmp_path / "w"), "train").gather(np.arange(6))["tokens"].astype(int))
    text = [names[i] for i in tokens.flatten().tolist()]
    assert text == (["the", "cat", "the", "dog", "the", "cat", "s", "été", "x", "rare"] * 3)[:30]
    few = prepare_dataset("words", tmp_path / "f", {**options, "vocabulary": "2"})
    assert few.info["words"] == ["the", "cat"] and few.splits["train"].rows == 3
    with pytest.raises(InputError, match="0 words occur 99 times"):
        prepare_dataset("words", tmp_path / "n", {**options, "min_count": "99"})
    with pytest.raises(InputError, match="there is no file"):
        prepare_dataset("words", tmp_path / "n", {"path": "nowhere.txt"})
    with pytest.raises(InputError, match="context is 1"):
        prepare_dataset("words", tmp_path / "n", {"context": "1"})


def test_a_word_is_whole_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distdl.data.raw.READ_BYTES", 7)
    (tmp_path / "a.txt").write_text("alpha beta gamma " * 40)
    options = {"path": str(tmp_path / "a.txt"), "context": "3", "test_fraction": "0"}
    assert prepare_dataset("words", tmp_path / "w", options).info["words"] == ["alpha", "beta", "gamma"]
