"""Mamba, as transformers has it (from the pure PyTorch path of state-spaces/mamba-...-hf).

https://huggingface.co/docs/transformers/model_doc/mamba
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from distdl.checkpoint.dialects import Dialect, Rule, Values
from distdl.errors import InputError


def _config(ours: Any) -> Values:
    inner = ours.expand * ours.width
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {
        "architectures": ["MambaForCausalLM"],
        "intermediate_size": inner,
        "time_step_rank": ours.rank,
        **({} if ours.vocabulary == 50280 else ends),
    }


def _model(config: Values, names: Collection[str]) -> Values:
    width, inner = int(config["hidden_size"]), int(config.get("expand", 2)) * int(config["hidden_size"])
    if (config.get("intermediate_size") or inner) != inner:
        what = f"intermediate_size is {config['intermediate_size']}"
        raise InputError(f"{what}; the family mamba has expand x hidden_size = {inner}")
    rank = config.get("time_step_rank", "auto")
    return {"delta_rank": math.ceil(width / 16) if rank == "auto" else int(rank)}


DIALECT = Dialect(
    family="mamba",
    title="Mamba",
    model_type="mamba",
    prefix="backbone.",
    rules=(
        Rule("blocks.*.mixer.into", "backbone.layers.*.mixer.in_proj"),
        Rule("blocks.*.mixer.conv", "backbone.layers.*.mixer.conv1d"),
        Rule("blocks.*.mixer.choose", "backbone.layers.*.mixer.x_proj"),
        Rule("blocks.*.mixer.delta", "backbone.layers.*.mixer.dt_proj"),
        Rule("blocks.*.mixer.A_log", "backbone.layers.*.mixer.A_log"),
        Rule("blocks.*.mixer.D", "backbone.layers.*.mixer.D"),
        Rule("blocks.*.mixer.out", "backbone.layers.*.mixer.out_proj"),
        Rule("blocks.*.norm", "backbone.layers.*.norm"),
        Rule("embedding", "backbone.embeddings"),
        Rule("norm", "backbone.norm_f"),
    ),
    sizes={
        "vocabulary": "vocab_size",
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "states": "state_size",
        "expand": "expand",
        "convolution": "conv_kernel",
    },
    fixed={
        "hidden_act": ("silu", "swish"),
        "layer_norm_epsilon": (1e-5,),
        "use_bias": (False,),
        "use_conv_bias": (True,),
        "tie_word_embeddings": (True,),
    },
    to_config=_config,
    to_model=_model,
    tied={"lm_head.weight": "backbone.embeddings.weight"},
)
