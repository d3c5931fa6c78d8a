"""What a parameter is: a matrix, which weight decay and penalties pull towards zero, or something that they leave alone.

A shape does not tell. A bias may have a map's shape (12, 8, 8), the rates of a recurrence fill a matrix, and the weights of
a Boltzmann machine are a list. So a module says it where it makes the parameter, by a class attribute:

    class Mixer(nn.Module):
        parameter_kinds = {"A_log": "state"}          # parameter, or module with all of its -> one of KINDS

What no module speaks of goes by the type of its module (a norm's are gains and biases) and by its name (`bias`,
`hidden_bias`), then by its shape: one dimension is a vector, more are a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from distdl.errors import InputError

KINDS = {
    "matrix": True,  # a map's weights, however they are stored
    "embedding": True,  # vectors that are looked up by a word
    "bias": False,  # what is added
    "gain": False,  # what something is multiplied by
    "place": False,  # what every sample begins with or has added: class tokens, positions
    "state": False,  # rates, constants and first values of a recurrence
    "vector": False,  # of one dimension, and nothing more is known
}
"""Kind of parameter -> whether it decays."""

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
NORM_NAME = re.compile(r"Norm(\d+d)?(Gated)?$")
"""Foreign norms by the name of their class: LlamaRMSNorm, T5LayerNorm, MambaRMSNormGated."""

BIAS = re.compile(r"(^|_)bias(es)?($|_)")
"""bias, hidden_bias, bias_ih_l0."""

FOREIGN = {"A_log": "state", "weight_g": "gain", "cls_token": "place", "mask_token": "place", "pos_embed": "place"}
"""Parameters of other people's modules, by the name that the field has given them."""


def kinds(net: nn.Module) -> dict[str, str]:
    """Name of every parameter -> its kind. One that several modules share is what the first of them says."""
    said, found = _said(net), {}
    for path, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in found:
                found[id(parameter)] = said.get(id(parameter)) or _guessed(module, path, name, parameter)
    return {name: found[id(parameter)] for name, parameter in net.named_parameters()}


def mark(net: nn.Module) -> None:
    """Writes onto each parameter whether it decays, where that is not written yet: engines wrap and cut modules, whose
    names and types are others then."""
    parameters = dict(net.named_parameters())
    for name, kind in kinds(net).items():
        if not hasattr(parameters[name], "distdl_decays"):
            parameters[name].distdl_decays = KINDS[kind]  # type: ignore[attr-defined]


def decays(parameter: nn.Parameter) -> bool:
    """Whether a parameter that is marked decays."""
    return parameter.distdl_decays  # type: ignore[attr-defined]


def _said(net: nn.Module) -> dict[int, str]:
    """What modules say of their parameters, by id. Raises InputError for a parameter or a kind that there is not."""
    said: dict[int, str] = {}
    for module in net.modules():
        told = getattr(module, "parameter_kinds", None)
        if not isinstance(told, Mapping):
            continue
        for name, kind in told.items():
            where = f"{type(module).__name__}.parameter_kinds"
            if kind not in KINDS:
                raise InputError(f"{where} says that {name!r} is a {kind!r}", fix=f"one of {', '.join(KINDS)}")
            if not hasattr(module, name):
                raise InputError(f"{where} speaks of {name!r}, which the module has not", fix="the parameter's name")
            thing = getattr(module, name)  # None: left out of this one
            for parameter in thing.parameters() if isinstance(thing, nn.Module) else [thing]:
                said.setdefault(id(parameter), kind)
    return said


def _guessed(module: nn.Module, path: str, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, NORMS) or NORM_NAME.search(type(module).__name__):
        return "bias" if BIAS.search(name) else "gain"
    if name in FOREIGN:
        return FOREIGN[name]
    table = isinstance(module, nn.Embedding | nn.ParameterList | nn.ParameterDict)  # may be a bias as a whole
    if BIAS.search(name) or (table and BIAS.search(path.rpartition(".")[2])):
        return "bias"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if name == "original0" and any(type(part).__name__ == "_WeightNorm" for part in module.children()):
        return "gain"  # of torch's weight norm: the length of each row
    return "matrix" if parameter.ndim >= 2 else "vector"
