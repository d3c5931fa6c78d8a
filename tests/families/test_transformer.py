"""The encoder-decoder Transformer against torch's, its sight, its loss and its translations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.families.transformer import sinusoids
from distdl.layout import noise
from tests.families.common import made, parameters

SMALL = {"family": "transformer", "vocabulary": 17, "source_vocabulary": 13, "source_length": 7, "target_length": 5}
SMALL |= {"layers": 2, "heads": 4, "width": 16, "inner": 24, "dropout": 0.0}


def sentences(rows: int = 6) -> tuple[Tensor, Tensor]:
    """(B, 7) and (B, 6) of random words, padded to different lengths."""
    torch.manual_seed(1)
    source, target = torch.randint(1, 13, (rows, 7)), torch.randint(1, 17, (rows, 6))
    for row in range(rows):
        source[row, 3 + row % 5 :] = 0
        target[row, 2 + row % 5 :] = 0
    return source, target


def rough(learner: Any) -> Any:
    """In fp64 with weights far from their start, gains and biases too."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in learner.double().parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    return learner


def test_the_base_model_has_as_many_parameters_as_the_paper_and_torch() -> None:
    with torch.device("meta"):
        body = sum(p.numel() for p in nn.Transformer().parameters())
    assert body == 44_140_544  # which has a layer norm of its own behind either side: 2 * 2 * 512
    assert parameters("transformer") == body - 2_048 + 37_000 * 512 == 63_082_496
    own = parameters("transformer", vocabulary=5000, source_vocabulary=6000)
    assert own == 44_138_496 + 11_000 * 512


def torch_twin(learner: Any) -> nn.Transformer:
    """torch's Transformer with the weights of ours, whose fused maps are laid out the same."""
    peer = nn.Transformer(16, 4, 2, 2, 24, dropout=0.0, batch_first=True).double()
    peer.encoder.norm = peer.decoder.norm = None
    twins: dict[str, nn.Parameter] = {}

    def linear(theirs: str, ours: nn.Module) -> None:
        twins.update({f"{theirs}weight": ours.weight, f"{theirs}bias": ours.bias})

    for i, block in enumerate(learner.blocks):
        side, number, last = ("encoder", i, 2) if i < 2 else ("decoder", i - 2, 3)
        path = f"{side}.layers.{number}."
        linear(f"{path}self_attn.in_proj_", block.attn.qkv)
        linear(f"{path}self_attn.out_proj.", block.attn.out)
        linear(f"{path}linear1.", block.up)
        linear(f"{path}linear2.", block.down)
        linear(f"{path}norm1.", block.after_attn.ln)
        linear(f"{path}norm{last}.", block.after_mlp.ln)
        if side == "decoder":
            for kind in ("weight", "bias"):
                both = torch.cat([getattr(m, kind) for m in (block.cross.query, block.cross.key_value)])
                twins[f"{path}multihead_attn.in_proj_{kind}"] = nn.Parameter(both.detach())
            linear(f"{path}multihead_attn.out_proj.", block.cross.out)
            linear(f"{path}norm2.", block.after_cross.ln)
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.copy_(twins.pop(name))
    assert not twins
    return peer


def test_it_is_torchs_transformer_with_padding_in_both_sentences() -> None:
    learner = rough(made(SMALL))
    peer, (source, target) = torch_twin(learner), sentences()
    ours = learner.through({"source": source, "target": target})
    ours.square().sum().backward()
    x, y = learner.source_embedding.weight[source], learner.embedding.weight[target[:, :-1]]
    theirs = peer(
        4 * x.detach() + sinusoids(7, 16),
        4 * y.detach() + sinusoids(5, 16),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64),
        src_key_padding_mask=source == 0,
        memory_key_padding_mask=source == 0,
    )
    theirs.square().sum().backward()
    assert (ours - theirs).abs().max() < 1e-10 and ours.std() > 0.1
    for i, block in enumerate(learner.blocks[2:]):
        their = peer.decoder.layers[i].multihead_attn.in_proj_weight.grad
        assert torch.allclose(block.cross.key_value.weight.grad, their[16:], atol=1e-10) and their.abs().max() > 0.01


def test_places_are_sines_and_cosines() -> None:
    table = sinusoids(9, 6)
    assert table.shape == (9, 6)
    for t in range(9):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert float(table[t, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[t, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


def test_it_sees_all_of_the_source_but_padding_and_no_future_word() -> None:
    learner = rough(made(SMALL))
    source, target = torch.randint(1, 13, (3, 7)), torch.randint(1, 17, (3, 5))
    with torch.no_grad():
        before = learner.logits(source, target)
        for place in range(7):
            other = source.clone()
            other[:, place] = source[:, place] % 12 + 1
            assert (learner.logits(other, target) - before).abs().amax(-1).min() > 1e-4
        for place in range(1, 5):
            other = target.clone()
            other[:, place] = target[:, place] % 16 + 1
            after = learner.logits(source, other)
            assert torch.allclose(after[:, :place], before[:, :place], atol=1e-12)
            assert (after[:, place:] - before[:, place:]).abs().amax(-1).min() > 1e-4
        short = source.clone()
        short[:, 4:] = 0
        longer = made(SMALL | {"source_length": 4})
        longer.load_state_dict(learner.state_dict())
        assert torch.allclose(longer.double().logits(short[:, :4], target), learner.logits(short, target), atol=1e-12)


@pytest.mark.parametrize("chunk", [0, 4])
def test_the_loss_is_smoothed_cross_entropy_over_the_places_of_a_row(chunk: int) -> None:
    learner = rough(made(SMALL | {"smoothing": 0.1}))
    learner.loss_chunk_tokens = chunk
    source, target = sentences()
    batch = {"source": source, "target": target}
    goal = target[:, 1:].flatten()
    scores = learner.logits(source, target[:, :-1]).flatten(0, 1)
    smooth = F.cross_entropy(scores, goal, ignore_index=0, label_smoothing=0.1, reduction="sum")
    assert float(learner.train().loss(batch, 0)[0]) == pytest.approx(float(smooth) / 30, rel=1e-5)
    plain = F.cross_entropy(scores, goal, ignore_index=0, reduction="sum")
    told = learner.eval().evaluate(batch)["loss"]
    assert told.count == int((goal != 0).sum()) and float(told.total) == pytest.approx(float(plain), rel=1e-5)


def test_a_loss_of_parts_is_the_loss_of_the_whole() -> None:
    """However much padding a micro-batch has."""
    learner = rough(made(SMALL)).train()
    source, target = sentences()
    whole = learner.loss({"source": source, "target": target}, 0)[0]
    parts = [learner.loss({"source": source[i : i + 3], "target": target[i : i + 3]}, 0)[0] for i in (0, 3)]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-9)


def test_a_translation_is_the_likeliest_word_after_word() -> None:
    learner = rough(made(SMALL))
    source, _ = sentences()
    written = learner.translate(source, begin=2, end=3)
    assert written.shape == (6, 5)
    begun = torch.cat([torch.full((6, 1), 2), written], 1)
    likeliest = learner.logits(source, begun[:, :-1]).argmax(-1)
    for row, words in enumerate(written.tolist()):
        length = words.index(3) + 1 if 3 in words else 5
        assert words[:length] == likeliest[row, :length].tolist() and not any(words[length:])


def test_dropout_is_keyed_by_the_sample() -> None:
    learner = made(SMALL | {"dropout": 0.3}).train()
    source, target = sentences()

    def loss(rows: slice) -> float:
        noise.begin(5, torch.arange(6)[rows])
        value = float(learner.loss({"source": source[rows], "target": target[rows]}, 0)[0].detach())
        noise.begin(0, None)
        return value

    assert loss(slice(6)) == pytest.approx((loss(slice(3)) + loss(slice(3, 6))) / 2, rel=1e-5)


def test_fresh_maps_are_glorots() -> None:
    learner = made(SMALL | {"width": 64, "inner": 256})
    block = learner.blocks[-1]
    for fused, maps in ((block.attn.qkv, 3), (block.cross.key_value, 2), (block.cross.query, 1)):
        for part in fused.weight.detach().chunk(maps):
            assert float(part.abs().max()) == pytest.approx((6 / 128) ** 0.5, rel=0.01)
    assert float(learner.embedding.weight.detach().std()) == pytest.approx(1 / 8, rel=0.1)
