"""Llama, 1 to 3.3, and whatever names itself so: no biases, no windows.

https://huggingface.co/docs/transformers/model_doc/llama
"""

from __future__ import annotations

from distdl.checkpoint.dialects._llama import llama_like

DIALECT = llama_like(
    "Llama",
    "llama",
    choices={"biases": ("none",), "qk_norm": (False,), "window": (0,)},
    fixed={"attention_bias": (False,), "mlp_bias": (False,)},
)
