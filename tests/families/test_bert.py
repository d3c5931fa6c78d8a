"""BERT against transformers', what it hides, its classifier, and its weights both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from distdl.checkpoint.convert import Wish, convert, open_source
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.families import build
from distdl.layout import noise
from tests.families.common import made, parameters
from tests.small import BASE

SMALL = {"family": "bert", "vocabulary": 61, "context": 20, "layers": 2, "heads": 4, "width": 32, "inner": 48}
SMALL |= {"dropout": 0.0, "attention_dropout": 0.0, "mask": 3, "marks": [1, 2]}


def pairs(rows: int = 8, context: int = 20) -> dict[str, Tensor]:
    """[CLS] words [SEP] words [SEP], all of the same length but the last, which is padded."""
    torch.manual_seed(1)
    tokens = torch.randint(4, 61, (rows, context))
    tokens[:, 0], tokens[:, 9], tokens[:, -1] = 1, 2, 2
    segments = (torch.arange(context) > 9).long().expand(rows, -1).clone()
    tokens[-1, 12:], segments[-1, 12:] = 0, 0
    return {"tokens": tokens, "segments": segments, "label": torch.arange(rows) % 2, "position": torch.arange(rows)}


def scores(learner: Any, tokens: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, V) of the words and (B, 2) of the next sentence, with nothing hidden."""
    x = torch.stack([tokens, segments], -1)
    for layer in learner.layers():
        x = layer.run(x)
    return F.linear(F.pad(learner.words(x), (0, 1), value=1.0), learner.vocabulary()), learner.classify(x)


def test_counts_of_the_models_that_have_names() -> None:
    assert parameters("bert") == 110_106_428
    assert parameters("bert", task="mask") == 109_514_298
    head = 2 * 768 + 2
    assert parameters("bert", task="classify") - head == 109_482_240
    assert parameters("bert", task="classify") - head - 768 * 769 == 108_891_648
    large = {"layers": 24, "heads": 16, "width": 1024}
    assert parameters("bert", task="classify", **large) - (2 * 1024 + 2) == 335_141_888


# -- what is hidden ----------------------------------------------------------------------------------------------------


def drawn(learner: Any, batch: dict[str, Tensor], rows: slice = slice(None), epoch: int = 0) -> tuple[Tensor, ...]:
    part = {name: column[rows] for name, column in batch.items()}
    noise.begin(7, part["position"] + 1000 * epoch)
    found = learner.chosen(part)
    assert all(torch.equal(a, b) for a, b in zip(found, learner.chosen(part)))  # whenever it is asked
    noise.begin(0, None)
    return found


def test_15_percent_are_predicted_80_10_10() -> None:
    learner = made(SMALL | {"vocabulary": 1000, "context": 128})
    tokens = torch.randint(4, 1000, (4000, 128))
    tokens[:, 0], tokens[:, 64] = 1, 2
    tokens[::2, 100:] = 0
    places, shares, hidden = drawn(learner, {"tokens": tokens, "position": torch.arange(4000)})
    real = shares > 0
    assert real[::2].sum(-1).eq(15).all() and real[1::2].sum(-1).eq(19).all()  # round(0.15 * 100), round(0.15 * 128)
    assert torch.allclose(shares.sum(-1), torch.ones(4000))
    before, after = tokens.gather(1, places), hidden.gather(1, places)
    assert before[real].min() >= 4  # no mark, no padding
    assert torch.equal((hidden != tokens).sum(), ((after != before) & real).sum())  # nothing else changes
    as_mask, kept = after[real] == 3, after[real] == before[real]
    count = int(real.sum())
    assert float(as_mask.float().mean()) == pytest.approx(0.8, abs=4 * (0.16 / count) ** 0.5)
    assert float(kept.float().mean()) == pytest.approx(0.1, abs=0.005)
    counts = torch.zeros(128).scatter_add(0, places[real], torch.ones(count))
    assert counts[[0, 64]].sum() == 0 and counts[1:64].min() > 0.8 * counts[1:64].max()  # every place alike


def test_what_is_hidden_depends_on_the_sample_and_the_epoch_alone() -> None:
    learner, batch = made(SMALL), pairs()
    whole, part, later = drawn(learner, batch), drawn(learner, batch, slice(3, 6)), drawn(learner, batch, epoch=1)
    assert all(torch.equal(a[3:6], b) for a, b in zip(whole, part))
    assert not torch.equal(whole[0], later[0])


def test_a_loss_of_parts_is_the_loss_of_the_whole() -> None:
    learner, batch = made(SMALL | {"dropout": 0.2, "attention_dropout": 0.2}).train(), pairs()

    def loss(rows: slice) -> float:
        part = {name: column[rows] for name, column in batch.items()}
        noise.begin(5, part["position"])
        value = float(learner.loss(part, 0)[0].detach())
        noise.begin(0, None)
        return value

    assert loss(slice(8)) == pytest.approx((loss(slice(4)) + loss(slice(4, 8))) / 2, rel=1e-6)


def test_padding_changes_nothing() -> None:
    learner, batch = made(SMALL).double(), pairs()
    short = made(SMALL | {"context": 12, "places": 20}).double()
    short.load_state_dict(learner.state_dict())
    with torch.no_grad():
        words, following = scores(learner, batch["tokens"][-1:], batch["segments"][-1:])
        cut = scores(short, batch["tokens"][-1:, :12], batch["segments"][-1:, :12])
    assert torch.allclose(words[:, :12], cut[0], atol=1e-12) and torch.allclose(following, cut[1], atol=1e-12)


# -- transformers ------------------------------------------------------------------------------------------------------


def config_of(model: dict[str, Any]) -> Any:
    return config_from_dict({"name": "bert", **BASE, "model": model, "data": {"path": "none"}})


@pytest.mark.slow
def test_weights_cross_both_ways_and_compute_the_same(tmp_path: Path) -> None:
    """The model of pre-training: its words, its next sentence, and its loss."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    torch.manual_seed(3)
    settings = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=20,
    )  # fmt: skip
    peer = transformers.BertForPreTraining(settings).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    peer.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors", Wish("safetensors"))
    model = open_source(tmp_path / "theirs").model
    assert model is not None and model == SMALL | {"task": "pretrain", "dropout": 0.1, "attention_dropout": 0.1}
    learner, batch = build(model).eval(), pairs()
    learner.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    tokens, segments = batch["tokens"], batch["segments"]
    seen = {"token_type_ids": segments, "attention_mask": (tokens != 0).long()}

    def agree(peer: Any) -> None:
        with torch.no_grad():
            theirs, (words, following) = peer(tokens, **seen), scores(learner, tokens, segments)
        real = tokens != 0
        assert (theirs.prediction_logits - words)[real].abs().max() < 1e-5 and words.std() > 0.1
        assert (theirs.seq_relationship_logits - following).abs().max() < 1e-5 and following.std() > 0.01

    agree(peer)
    even = {name: column[:-1] for name, column in batch.items()}  # as many predictions in each sample
    places, _, hidden = learner.chosen(even)
    labels = torch.full_like(hidden, -100).scatter(1, places, even["tokens"].gather(1, places))
    with torch.no_grad():
        mask = {name: column[:-1] for name, column in seen.items()}
        theirs = peer(hidden, **mask, labels=labels, next_sentence_label=even["label"]).loss
        loss, metrics = learner.loss(even, 0)
    assert float(loss) == pytest.approx(float(theirs), abs=1e-5)
    assert {"masked_loss", "masked_accuracy", "next_accuracy"} == metrics.keys()

    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_file(learner.state_dict(), tmp_path / "changed.safetensors")
    convert(tmp_path / "changed.safetensors", tmp_path / "back", Wish("huggingface", config_of(model)))
    agree(transformers.BertForPreTraining.from_pretrained(tmp_path / "back").eval())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mask", "classify"])
def test_the_other_heads_cross_too(tmp_path: Path, task: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    model = SMALL | {"task": task, "classes": 3} if task == "classify" else SMALL | {"task": task}
    learner, batch = made(model), pairs()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_file(learner.state_dict(), tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "hf", Wish("huggingface", config_of(model)))
    kind = {"mask": "BertForMaskedLM", "classify": "BertForSequenceClassification"}[task]
    peer, told = getattr(transformers, kind).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    tokens, segments = batch["tokens"], batch["segments"]
    x = torch.stack([tokens, segments], -1)
    with torch.no_grad():
        theirs = peer.eval()(tokens, token_type_ids=segments, attention_mask=(tokens != 0).long()).logits
        for layer in learner.layers():
            x = layer.run(x)
        if task == "mask":
            x = F.linear(F.pad(learner.words(x), (0, 1), value=1.0), learner.vocabulary())
            x, theirs = x[tokens != 0], theirs[tokens != 0]
    assert (theirs - x).abs().max() < 1e-5 and x.std() > 0.01
    peer.save_pretrained(tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "back.safetensors", Wish("safetensors", config_of(model)))
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == learner.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in learner.state_dict().items())
    assert open_source(tmp_path / "again").model == model | {"dropout": 0.0}


def test_a_bert_that_ours_is_not_is_refused(tmp_path: Path) -> None:
    model = SMALL | {"task": "mask"}
    save_file(made(model).state_dict(), tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "hf", Wish("huggingface", config_of(model)))
    config, weights = (tmp_path / "hf" / name for name in ("config.json", "model.safetensors"))
    text, tensors = config.read_text(), load_file(weights)
    for change, said in (
        ('"hidden_act": "gelu"|"hidden_act": "relu"', "hidden_act is 'relu'"),
        ('"model_type": "bert"|"model_type": "roberta"', "model of the type 'roberta'"),
    ):
        assert change.split("|")[0] in text
        config.write_text(text.replace(*change.split("|")))
        with pytest.raises(InputError, match=said):
            open_source(tmp_path / "hf")
    config.write_text(text)
    decoder = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone()}
    save_file(tensors | decoder, weights)  # some write out what is tied
    assert len(open_source(tmp_path / "hf").tensors) == len(made(model).state_dict())
    save_file(tensors | {name: tensor + 1 for name, tensor in decoder.items()}, weights)
    with pytest.raises(InputError, match=r"a head of its own \(cls.predictions.decoder.weight\)"):
        open_source(tmp_path / "hf")
    save_file({n: t for n, t in tensors.items() if "layer.1.attention.self.key.weight" not in n}, weights)
    with pytest.raises(InputError, match=r"has no bert.encoder.layer.\*.attention.self.key"):
        open_source(tmp_path / "hf")


# -- classes -----------------------------------------------------------------------------------------------------------


def test_a_classifier_takes_the_pre_trained_part_over() -> None:
    """What both tasks have carries the same names and shapes; the classifier alone is new."""
    pretrained, classifier = made(SMALL), made(SMALL | {"task": "classify", "classes": 5}, seed=1)
    state = {name: tensor for name, tensor in pretrained.state_dict().items() if not name.startswith("head.")}
    left = classifier.load_state_dict(state, strict=False)
    assert left.missing_keys == ["head.weight", "head.bias"]
    assert all(name.startswith("words.") for name in left.unexpected_keys)
    batch = pairs()
    x = torch.stack([batch["tokens"], batch["segments"]], -1)
    for ours, theirs in zip(pretrained.layers()[:-1], classifier.layers()[:-1]):
        assert torch.equal(ours.run(x), theirs.run(x))
        x = ours.run(x)


@pytest.mark.slow
def test_a_classifier_learns_which_word_is_there() -> None:
    learner = made(SMALL | {"task": "classify", "classes": 3}).train()
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-2)
    torch.manual_seed(4)
    tokens = torch.randint(10, 61, (192, 20))
    tokens[:, 0] = 1
    label = torch.arange(192) % 3
    tokens[torch.arange(192), torch.randint(1, 4, (192,))] = 4 + label
    batch = {"tokens": tokens, "segments": torch.zeros_like(tokens), "label": label}
    for _ in range(60):
        optimizer.zero_grad()
        learner.loss(batch, 0)[0].backward()
        optimizer.step()
    assert learner.primary == "accuracy"
    told = learner.eval().evaluate(batch | {"id": label})["accuracy"]
    assert float(told.total) / told.count > 0.95


def test_no_token_needs_to_be_a_mark() -> None:
    assert made({**SMALL, "marks": []}).config.marks == ()
