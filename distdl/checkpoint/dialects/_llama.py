"""What Llama, Mistral and Qwen have in common: all but biases, windows and the norm of queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from distdl.checkpoint.dialects import Dialect, Rule, Values
from distdl.errors import InputError
from distdl.nn.rotary import FEW_TURNS, MANY_TURNS

LAYER = "model.layers.*"
RULES = (
    Rule("blocks.*.attn.q", f"{LAYER}.self_attn.q_proj"),
    Rule("blocks.*.attn.kv", (f"{LAYER}.self_attn.k_proj", f"{LAYER}.self_attn.v_proj")),
    Rule("blocks.*.attn.qkv", tuple(f"{LAYER}.self_attn.{name}_proj" for name in "qkv")),  # to them; back, q and kv
    Rule("blocks.*.attn.out", f"{LAYER}.self_attn.o_proj"),
    Rule("blocks.*.attn.q_norm", f"{LAYER}.self_attn.q_norm"),
    Rule("blocks.*.attn.k_norm", f"{LAYER}.self_attn.k_norm"),
    Rule("blocks.*.gate_up", (f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj")),
    Rule("blocks.*.down", f"{LAYER}.mlp.down_proj"),
    Rule("blocks.*.ln1", f"{LAYER}.input_layernorm"),
    Rule("blocks.*.ln2", f"{LAYER}.post_attention_layernorm"),
    Rule("wte", "model.embed_tokens"),
    Rule("ln", "model.norm"),
    Rule("lm_head", "lm_head"),
)
SIZES = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
}
WRITTEN = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu"}


def llama_like(
    title: str,
    model_type: str,
    choices: dict[str, tuple[Any, ...]],
    fixed: dict[str, tuple[Any, ...]],
    window: tuple[Callable[[Any], Values], Callable[[Values], int]] = (lambda ours: {}, lambda config: 0),
    head_width: int = 0,
) -> Dialect:
    """A dialect of these. `choices`: of our config, beside those that all have. `window`: what config.json says of ours,
    and ours of config.json. `head_width`: where that says none; 0: the width over the heads."""

    def to_config(ours: Any) -> Values:
        return {
            "architectures": [title + "ForCausalLM"],
            "intermediate_size": ours.hidden,
            "num_key_value_heads": ours.key_value_heads or ours.heads,
            "head_dim": ours.of_head,
            "rms_norm_eps": ours.norm_eps,
            "tie_word_embeddings": ours.tied,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
            **_rope_there(ours),
            **window[0](ours),
        }

    def to_model(config: Values, names: Collection[str]) -> Values:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        of_head = int(config.get("head_dim") or head_width or width // heads)
        return {
            **WRITTEN,
            **{name: values[0] for name, values in choices.items() if name != "window"},
            "inner": int(config["intermediate_size"]),
            "key_value_heads": int(config.get("num_key_value_heads") or heads),
            "head_width": 0 if of_head * heads == width else of_head,
            "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
            "tied": _ties(config),
            "window": window[1](config),
            **_rope_here(config),
        }

    return Dialect(
        family="gpt",
        title=title,
        model_type=model_type,
        prefix="model.",
        rules=RULES,
        sizes=SIZES,
        fixed={"hidden_act": ("silu",), **fixed},
        to_config=to_config,
        to_model=to_model,
        tied={"lm_head.weight": "model.embed_tokens.weight"},
        ties=_ties,
        ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # a buffer of older versions
        choices={name: (value,) for name, value in WRITTEN.items()} | choices,
    )


def _ties(config: Values) -> bool:
    return bool(config.get("tie_word_embeddings", False))


def _rope_there(ours: Any) -> Values:
    """As version 5 of transformers reads it, and as those before."""
    told: Values = {"rope_type": "default", "rope_theta": ours.rope_theta}
    if ours.rope_stretch != 1.0:
        told |= {"rope_type": "llama3", "factor": ours.rope_stretch, "low_freq_factor": FEW_TURNS}
        told |= {"high_freq_factor": MANY_TURNS, "original_max_position_embeddings": ours.rope_trained}
    scaling = told if ours.rope_stretch != 1.0 else None
    return {"rope_parameters": told, "rope_theta": ours.rope_theta, "rope_scaling": scaling}


def _rope_here(config: Values) -> Values:
    told = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = told.get("rope_type", told.get("type", "default"))
    theta = {"rope_theta": float(told.get("rope_theta") or config.get("rope_theta") or 10_000.0)}
    turned = told.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if turned != 1.0:
        raise InputError(f"partial_rotary_factor is {turned}; the family gpt turns whole heads")
    if kind == "default":
        return theta
    turns = (told.get("low_freq_factor"), told.get("high_freq_factor"))
    if kind != "llama3" or turns != (FEW_TURNS, MANY_TURNS):
        what = f"positions are stretched by rope_type {kind!r}"
        what += f" with low_freq_factor and high_freq_factor {turns}" if kind == "llama3" else ""
        raise InputError(what, allowed=f"default, or llama3 with {FEW_TURNS} and {MANY_TURNS}")
    trained = int(told["original_max_position_embeddings"])
    return {**theta, "rope_stretch": float(told["factor"]), "rope_trained": trained}
