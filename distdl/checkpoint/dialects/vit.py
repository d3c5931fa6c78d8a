"""ViT with the head of a classifier.

https://huggingface.co/docs/transformers/model_doc/vit
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from distdl.checkpoint.dialects import Dialect, Rule, Values
from distdl.checkpoint.dialects._encoder import SIZES, classes_of, encoder_config, encoder_model, encoder_rules, labels


def _config(ours: Any) -> Values:
    return {
        "architectures": ["ViTForImageClassification"],
        **encoder_config(ours),
        "attention_probs_dropout_prob": 0.0,
        "image_size": list(ours.image[1:]) if ours.image[1] != ours.image[2] else ours.image[1],
        "num_channels": ours.image[0],
        "layer_norm_eps": ours.epsilon,
        **labels(ours.classes),
    }


def _model(config: Values, names: Collection[str]) -> Values:
    size = config["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return {
        "image": [int(config.get("num_channels", 3)), int(height), int(width)],
        "classes": classes_of(config),
        **encoder_model(config),
        "epsilon": float(config.get("layer_norm_eps", 1e-12)),
    }


DIALECT = Dialect(
    family="vit",
    title="ViT",
    model_type="vit",
    prefix="vit.",
    rules=(
        *encoder_rules("vit.encoder.layer.*", "attention.attention", "layernorm_before", "layernorm_after"),
        Rule("embed.patch", "vit.embeddings.patch_embeddings.projection"),
        Rule("embed.cls", "vit.embeddings.cls_token"),
        Rule("embed.places", "vit.embeddings.position_embeddings"),
        Rule("ln", "vit.layernorm"),
        Rule("head", "classifier"),
    ),
    sizes={"patch": "patch_size", **SIZES},
    fixed={"hidden_act": ("gelu",), "qkv_bias": (True,)},
    to_config=_config,
    to_model=_model,
    ignored=r"pooler\.dense\.(weight|bias)|embeddings\.mask_token",  # of a bare model, which a classifier does not use
)
