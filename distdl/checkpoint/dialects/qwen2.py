"""Qwen2 and 2.5: a Llama whose maps of queries, keys and values have biases.

https://huggingface.co/docs/transformers/model_doc/qwen2
"""

from __future__ import annotations

from distdl.checkpoint.dialects._llama import llama_like
from distdl.checkpoint.dialects._qwen import window_here, window_there

DIALECT = llama_like(
    "Qwen2",
    "qwen2",
    choices={"biases": ("qkv",), "qk_norm": (False,)},
    fixed={},
    window=(window_there, window_here),
)
