"""Mistral: a Llama whose tokens may look back through a window. Where config.json says nothing of it, it is 4,096 wide.

https://huggingface.co/docs/transformers/model_doc/mistral
"""

from __future__ import annotations

from distdl.checkpoint.dialects._llama import llama_like

DIALECT = llama_like(
    "Mistral",
    "mistral",
    choices={"biases": ("none",), "qk_norm": (False,)},
    fixed={},
    window=(
        lambda ours: {"sliding_window": ours.window or None},
        lambda config: int(config.get("sliding_window", 4096) or 0),
    ),
)
