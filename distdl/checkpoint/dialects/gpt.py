"""GPT-2. Its Conv1D layers compute x W + b with W of (in, out), the transpose of a linear layer's.

https://huggingface.co/docs/transformers/model_doc/gpt2
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from distdl.checkpoint.dialects import Dialect, Rule, Values, transposed
from distdl.errors import InputError


def _config(ours: Any) -> Values:
    if ours.hidden != 4 * ours.width:
        raise InputError(f"model.inner is {ours.inner}; a GPT-2 of ours has 4 times its width, {4 * ours.width}")
    end = 50256 if ours.vocabulary == 50257 else None  # <|endoftext|> of GPT-2's own vocabulary
    dropout = {"resid_pdrop": ours.dropout, "embd_pdrop": ours.dropout, "attn_pdrop": 0.0}
    return {"architectures": ["GPT2LMHeadModel"], **dropout, "bos_token_id": end, "eos_token_id": end}


def _model(config: Values, names: Collection[str]) -> Values:
    inner = 4 * int(config["n_embd"])
    if (config.get("n_inner") or inner) != inner:
        raise InputError(f"n_inner is {config['n_inner']}; the family gpt has 4 n_embd = {inner}")
    return {"dropout": float(config.get("resid_pdrop", 0.1))}


DIALECT = Dialect(
    family="gpt",
    title="GPT-2",
    model_type="gpt2",
    prefix="transformer.",
    rules=(
        Rule("blocks.*.attn.qkv", "transformer.h.*.attn.c_attn", transposed, transposed),
        Rule("blocks.*.attn.out", "transformer.h.*.attn.c_proj", transposed, transposed),
        Rule("blocks.*.up", "transformer.h.*.mlp.c_fc", transposed, transposed),
        Rule("blocks.*.down", "transformer.h.*.mlp.c_proj", transposed, transposed),
        Rule("blocks.*.ln1", "transformer.h.*.ln_1"),
        Rule("blocks.*.ln2", "transformer.h.*.ln_2"),
        Rule("wte", "transformer.wte"),
        Rule("wpe", "transformer.wpe"),
        Rule("ln", "transformer.ln_f"),
    ),
    sizes={
        "vocabulary": "vocab_size",
        "context": "n_positions",
        "layers": "n_layer",
        "heads": "n_head",
        "width": "n_embd",
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    to_config=_config,
    to_model=_model,
    choices={
        "positions": ("learned",),
        "norm": ("layer",),
        "norm_eps": (1e-5,),
        "feed_forward": ("gelu",),
        "biases": ("all",),
        "key_value_heads": (0,),
        "head_width": (0,),
        "qk_norm": (False,),
        "window": (0,),
        "tied": (True,),
    },
    tied={"lm_head.weight": "transformer.wte.weight"},
    ignored=r"h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask, a buffer of older versions
)
