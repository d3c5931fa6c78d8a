"""What BERT and ViT have in common: the names of a block's parts, and of the labels."""

from __future__ import annotations

from typing import Any

from distdl.checkpoint.dialects import Rule, Values

SIZES = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"}


def encoder_rules(layer: str, attention: str, before: str, after: str) -> tuple[Rule, ...]:
    """The rules of a block: where its attention's maps are, and the names of its two layer norms."""
    return (
        Rule("blocks.*.attn.qkv", tuple(f"{layer}.{attention}.{name}" for name in ("query", "key", "value"))),
        Rule("blocks.*.attn.out", f"{layer}.attention.output.dense"),
        Rule("blocks.*.up", f"{layer}.intermediate.dense"),
        Rule("blocks.*.down", f"{layer}.output.dense"),
        Rule("blocks.*.ln1", f"{layer}.{before}"),
        Rule("blocks.*.ln2", f"{layer}.{after}"),
    )


def encoder_config(ours: Any) -> Values:
    return {"intermediate_size": ours.inner or 4 * ours.width, "hidden_dropout_prob": ours.dropout}


def encoder_model(config: Values) -> Values:
    return {
        "inner": int(config["intermediate_size"]),
        "dropout": float(config.get("hidden_dropout_prob", 0.0)),
    }


def labels(classes: int) -> Values:
    names = [f"LABEL_{k}" for k in range(classes)]
    return {"id2label": {str(k): name for k, name in enumerate(names)}, "label2id": {n: k for k, n in enumerate(names)}}


def classes_of(config: Values) -> int:
    return len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
