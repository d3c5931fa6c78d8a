"""Qwen3: a Llama with a norm of each head's query and key, and heads that are 128 wide where config.json says nothing.

https://huggingface.co/docs/transformers/model_doc/qwen3
"""

from __future__ import annotations

from distdl.checkpoint.dialects._llama import llama_like
from distdl.checkpoint.dialects._qwen import window_here, window_there

DIALECT = llama_like(
    "Qwen3",
    "qwen3",
    choices={"biases": ("none",), "qk_norm": (True,)},
    fixed={"attention_bias": (False,)},
    window=(window_there, window_here),
    head_width=128,
)
