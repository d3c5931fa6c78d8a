"""Birth in pieces: a large model is never whole on a rank that needs a part of it only.

with recording() as record:                       # parallel/record.py: constructors run as they were written
    learner = Family(config)
record.promise(learner)                           # its parameters have shapes, and know what they will be
... the mesh cuts shapes, drops layers and experts ...
for parameter in learner.parameters():
    bear(parameter, device)                       # the whole of one is made, and this rank's part of it kept
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distdl.parallel.tensor import part


def promise(parameter: Tensor, value: Callable[[], Tensor]) -> None:
    """Says what a parameter will be: `value` makes the one-process tensor on the CPU, each time that it is asked."""
    parameter.distdl_promise = value  # type: ignore[attr-defined]


def promised(parameter: Tensor) -> Callable[[], Tensor] | None:
    """What makes a parameter that is not there yet; None: it is there, or it lives on other ranks."""
    return getattr(parameter, "distdl_promise", None) if parameter.is_meta else None


def bear(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Makes this rank's part of a promised parameter, in place; one that is there stays as it is. The promise is kept, for
    whoever needs the value again."""
    if (value := promised(parameter)) is None:
        return
    born = part(parameter, value()).detach().to(device, dtype or parameter.dtype)
    new = nn.Parameter(born, parameter.requires_grad)
    vars(new).update(vars(parameter))
    torch.utils.swap_tensors(parameter, new)  # whoever holds the parameter holds it still


def bear_all(
    net: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None = None,
    then: Callable[[nn.Parameter], None] = lambda parameter: None,
) -> None:
    """Makes every promised parameter of a network, and does with each what comes `then` before the next is made."""
    for parameter in net.parameters():
        bear(parameter, device, dtype)
        then(parameter)
    for module in net.modules():
        if isinstance(module, nn.RNNBase):  # looks by these whether somebody has put others in their place
            weights = module._flat_weights
            module._flat_weight_refs = [None if w is None else weakref.ref(w) for w in weights]


def as_made(parameter: nn.Parameter) -> Callable[[], Tensor]:
    """What gives this rank's part of a parameter as it is now, or as it will be made: kept on the CPU, or made again."""
    if value := promised(parameter):
        return lambda: part(parameter, value())
    kept = parameter.detach().cpu()
    return lambda: kept


def put(parameter: Tensor, value: Callable[[], Tensor]) -> None:
    """Gives a parameter or buffer the value that a file has: at once where it is there, else when it is born."""
    if promised(parameter):
        promise(parameter, value)
    else:
        with torch.no_grad():
            parameter.copy_(value())
