"""Windows of Qwen, which it may have in some layers and not in others; a gpt of ours has them in all or in none."""

from __future__ import annotations

from typing import Any

from distdl.checkpoint.dialects import Values
from distdl.errors import InputError


def window_there(ours: Any) -> Values:
    kind = "sliding_attention" if ours.window else "full_attention"
    return {
        "use_sliding_window": ours.window > 0,
        "sliding_window": ours.window or None,
        "max_window_layers": 0 if ours.window else ours.layers,
        "layer_types": [kind] * ours.layers,
    }


def window_here(config: Values) -> int:
    if not config.get("use_sliding_window", False):
        return 0
    layers, first = int(config["num_hidden_layers"]), int(config.get("max_window_layers", 28))
    kinds = config.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(layers)
    ]
    if len(set(kinds)) > 1:
        few = sum(kind == "sliding_attention" for kind in kinds)
        raise InputError(f"{few} of {layers} layers look back through a window; in the family gpt all do, or none")
    return int(config["sliding_window"]) if kinds[0] == "sliding_attention" else 0
