"""GPT-2 as Hugging Face's transformers keeps it: config.json and model.safetensors, to and from the family gpt.

Its Conv1D layers compute x W + b with W of (in, out), the transpose of a linear layer's (out, in). The head is tied to the
embedding and not stored. https://huggingface.co/docs/transformers/model_doc/gpt2
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distdl.checkpoint.stream import Lazy, open_safetensors
from distdl.errors import InputError
from distdl.families import model_config

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FAMILIES = {"gpt": "GPT2LMHeadModel"}
"""Our family -> the class of transformers that computes the same."""

_BLOCK = {  # ours -> theirs, within a block; a True: transposed
    "ln1": ("ln_1", False),
    "attn.qkv": ("attn.c_attn", True),
    "attn.out": ("attn.c_proj", True),
    "ln2": ("ln_2", False),
    "up": ("mlp.c_fc", True),
    "down": ("mlp.c_proj", True),
}
_OUTSIDE = {"wte": "wte", "wpe": "wpe", "ln": "ln_f"}
_IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, a buffer of older versions
_FIXED = {  # key of config.json -> the values that the family gpt has; absent means the first
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def refuse_other(model: Mapping[str, Any], names: Mapping[str, Lazy]) -> None:
    """Raises InputError where a model has no equal in transformers."""
    allowed = "the families " + ", ".join(FAMILIES)
    if model.get("family") not in FAMILIES:
        raise InputError(f"the family {model.get('family')} has no Hugging Face model", allowed=allowed)
    if any("experts" in name for name in names):
        raise InputError("a gpt with a mixture of experts has no Hugging Face model", allowed="gpt with dense blocks")
    if strangers := [name for name in names if _theirs(name) is None]:
        raise InputError(f"a gpt with {', '.join(strangers[:3])} has no Hugging Face model")


def to_huggingface(model: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> tuple[dict[str, Any], dict[str, Lazy]]:
    """(config.json, tensors under their names) of our gpt. Raises InputError."""
    refuse_other(model, tensors)
    ours = model_config(model)
    end = 50256 if ours.vocabulary == 50257 else None  # <|endoftext|> of GPT-2's own vocabulary
    config = {
        "architectures": [FAMILIES["gpt"]],
        "model_type": "gpt2",
        "vocab_size": ours.vocabulary,
        "n_positions": ours.context,
        "n_embd": ours.width,
        "n_layer": ours.layers,
        "n_head": ours.heads,
        "resid_pdrop": ours.dropout,
        "embd_pdrop": ours.dropout,
        "attn_pdrop": 0.0,
        **{key: values[0] for key, values in _FIXED.items()},
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    out = {}
    for name, tensor in tensors.items():
        theirs, transposed = _theirs(name) or ("", False)
        out[f"transformer.{theirs}"] = tensor.t() if transposed else tensor
    return config, out


def from_huggingface(path: Path) -> tuple[dict[str, Any] | None, dict[str, Lazy]]:
    """(`model` section, or None without a config.json; tensors under our names) of a folder or file. Raises InputError."""
    folder = path if path.is_dir() else path.parent
    config = _read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    model = None if config is None else _model(config, folder / CONFIG)
    tensors: dict[str, Lazy] = {}
    for file in _files(path):
        tensors |= open_safetensors(file)[0]
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    head = theirs.pop("lm_head.weight", None)
    if head is not None and ("wte.weight" not in theirs or not torch.equal(head.read(), theirs["wte.weight"].read())):
        raise InputError(f"{path} has a head of its own (lm_head.weight); the head of gpt is tied to its embedding")
    out = {}
    for name, tensor in theirs.items():
        if _IGNORED.fullmatch(name):
            continue
        ours = _ours(name)
        if ours is None:
            raise InputError(f"{path} holds {name}, which a GPT-2 has not", allowed=f"weights of {FAMILIES['gpt']}")
        out[ours[0]] = tensor.t() if ours[1] and len(tensor.shape) == 2 else tensor
    return model, out


def is_gpt2(names: Mapping[str, Any]) -> bool:
    """Tensor names of a Hugging Face GPT-2."""
    return any(name.removeprefix("transformer.") == "h.0.attn.c_attn.weight" for name in names)


def _theirs(ours: str) -> tuple[str, bool] | None:
    """Their name, and whether it is transposed."""
    path, _, kind = ours.rpartition(".")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
    if match and match[2] in _BLOCK:
        name, linear = _BLOCK[match[2]]
        return f"h.{match[1]}.{name}.{kind}", linear and kind == "weight"
    return (f"{_OUTSIDE[path]}.{kind}", False) if path in _OUTSIDE else None


def _ours(theirs: str) -> tuple[str, bool] | None:
    path, _, kind = theirs.rpartition(".")
    match = re.fullmatch(r"h\.(\d+)\.(.+)", path)
    for ours, (name, linear) in _BLOCK.items():
        if match and match[2] == name:
            return f"blocks.{match[1]}.{ours}.{kind}", linear and kind == "weight"
    return next(((f"{ours}.{kind}", False) for ours, name in _OUTSIDE.items() if path == name), None)


def _model(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """The `model` section of a config.json. Raises InputError for anything but a GPT-2 that gpt computes exactly."""
    if config.get("model_type") != "gpt2":
        allowed = "gpt2, for the family gpt"
        raise InputError(f"{file} describes a model of the type {config.get('model_type')!r}", allowed=allowed)
    for key, values in _FIXED.items():
        if config.get(key, values[0]) not in values:
            allowed = " or ".join(map(str, values))
            raise InputError(f"{file}: {key} is {config[key]!r}, which the family gpt has not", allowed=allowed)
    try:
        width = int(config["n_embd"])
        if (config.get("n_inner") or 4 * width) != 4 * width:
            raise InputError(f"{file}: n_inner is {config['n_inner']}; the family gpt has 4 n_embd = {4 * width}")
        sizes = {"vocabulary": "vocab_size", "context": "n_positions", "layers": "n_layer", "heads": "n_head"}
        model = {ours: int(config[theirs]) for ours, theirs in sizes.items()}
        return {"family": "gpt", **model, "width": width, "dropout": float(config.get("resid_pdrop", 0.1))}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is no config of a GPT-2: {error!r}") from None


def _files(path: Path) -> list[Path]:
    """The file of the weights, or the several that an index names."""
    if path.is_file():
        return [path]
    if not (path / INDEX).is_file():
        return [path / WEIGHTS]
    names = sorted({str(name) for name in _read_json(path / INDEX).get("weight_map", {}).values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{path / INDEX} names a file outside its folder: {outside[0]}")
    return [path / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value
