"""The optimizers of the config, as torch optimizers: the same objects under every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distdl.config.optimizer import OwnOptimizer
from distdl.config.schema import Config
from distdl.engine import own_optimizer
from distdl.engine.lbfgs import LBFGS
from distdl.engine.precision import head
from distdl.layout.axes import here
from distdl.learner.kinds import decays, kinds, mark


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, algorithm 2): u = sign(b1 m + (1-b1) g);  w -= lr (u + wd w);  m = b2 m + (1-b2) g."""

    def __init__(
        self,
        params: Iterable[Tensor] | list[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group in self.param_groups:
            lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                m = state["exp_avg"]
                update = m.lerp(p.grad, 1 - beta1).sign_()
                p.mul_(1 - lr * decay).add_(update, alpha=-lr)
                m.lerp_(p.grad, 1 - beta2)
        return loss


class Adagrad(torch.optim.Optimizer):
    """Adagrad (Duchi, Hazan & Singer 2011): s += g^2;  w -= lr g / (sqrt(s) + eps), g with the decay term wd w.

    The numbers of torch's own, whose parameter groups DeepSpeed 0.19 loses: ZeRO 1-3 build a torch.optim.Adagrad anew with
    the defaults of the first, and the first step fails.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | list[dict[str, Any]],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["sum"] = torch.zeros_like(p)
                grad = p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad
                state["sum"].addcmul_(grad, grad)
                p.addcdiv_(grad, state["sum"].sqrt().add_(group["eps"]), value=-group["lr"])
        return loss


class Muon(torch.optim.Optimizer):
    """torch's Muon for the groups that are `hidden`, its AdamW for the others: one optimizer, with one state."""

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        momentum: float,
        nesterov: bool,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        hidden = [group for group in self.param_groups if group["hidden"]]
        others = [group for group in self.param_groups if not group["hidden"]]
        self.parts: list[torch.optim.Optimizer] = []
        if hidden:
            look_ahead = {"momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
            self.parts.append(torch.optim.Muon(hidden, lr, **look_ahead))  # type: ignore[arg-type]
        if others:
            self.parts.append(torch.optim.AdamW(others, lr, betas, eps))
        for part in self.parts:  # whose groups are these very dictionaries
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for part in self.parts:
            part.step()
        return loss


def _adafactor(groups: Any, lr: float, beta2_decay: float, eps: float, clip: float) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr, beta2_decay, (None, eps), clip)


def _evaluated(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": Adagrad,
    "lion": Lion,
    "muon": Muon,
    "adafactor": _adafactor,
    "lbfgs": LBFGS,
    "sgd": torch.optim.SGD,
}


OF_A_PART = {"row_var", "col_var"}
"""States that are not like their parameter: Adafactor's."""
FUSED = {"adam", "adamw", "sgd"}
"""Optimizers that torch has in one kernel: a pass over weights, gradients and states, and not fourteen. There is nothing
left in them that torch.compile could put together."""


def make_optimizer(config: Config, module: nn.Module, device: str = "cpu") -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; weight decay for those that decay by what they are (learner/kinds.py).
    In one kernel, where there is one for that device; what a GPU offloads is stepped on the CPU.

    Experts that are cut along an axis are in groups of their own, named as DeepSpeed wants them.
    """
    options = config.optimizer.model_dump(exclude={"name", "weight_decay"})
    if config.optimizer.name in FUSED and (device == "cpu" or config.parallel.offload == "none"):
        options["fused"] = True
    mark(module)
    hidden = hidden_matrices(module) if config.optimizer.name == "muon" else set[int]()
    members: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            kind = getattr(p, "group_name", ""), not decays(p), id(p) in hidden
            members.setdefault(kind, []).append(p)
    groups = []
    for experts, still, of_muon in sorted(members):
        chosen = members[experts, still, of_muon]
        group: dict[str, Any] = {"params": chosen, "weight_decay": 0.0 if still else config.optimizer.weight_decay}
        group |= {"hidden": of_muon} if config.optimizer.name == "muon" else {}
        groups.append({**group, "moe": True, "name": experts} if experts else group)
    if isinstance(config.optimizer, OwnOptimizer):
        return own_optimizer.make(config.optimizer, groups)
    return _CLASSES[config.optimizer.name](groups, **options)


def hidden_matrices(module: nn.Module) -> set[int]:
    """Matrices (by id) that map one hidden layer to another: no embedding, and not those that the loss looks at."""
    of_head = head(module)
    last = {id(p) for layer in module.modules() if id(layer) in of_head for p in layer.parameters()}
    of_kind, named = kinds(module), dict(module.named_parameters())
    matrices = (p for name, p in named.items() if of_kind[name] == "matrix" and p.ndim == 2)
    return {id(p) for p in matrices} - last


def kept(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What an optimizer that steps whole tensors keeps of a parameter, but for the number of its steps: tensors like the
    parameter, or those of its rows and columns."""
    if hasattr(optimizer, "distdl_groups"):
        return own_optimizer.kept(optimizer, parameter)
    state = optimizer.state.get(parameter, {})
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "step" and (value.shape == parameter.shape or key in OF_A_PART)
    }


def keep(optimizer: torch.optim.Optimizer, parameter: Tensor, values: dict[str, Tensor], steps: int) -> None:
    """Gives an optimizer that steps whole tensors back what it has `kept`."""
    if hasattr(optimizer, "distdl_groups"):
        own_optimizer.keep(optimizer, parameter, values)
        return
    state = optimizer.state[parameter]
    for key, value in values.items():  # laid out in memory as the weight is, which a fused kernel takes for granted
        like = parameter if value.shape == parameter.shape else value
        state[key] = torch.empty_like(like, device=parameter.device, requires_grad=False).copy_(value)
    state["step"] = steps_taken(optimizer, parameter, steps)


def steps_taken(optimizer: torch.optim.Optimizer, parameter: Tensor, steps: int) -> Tensor:
    """The count of steps of a parameter's state as the optimizer keeps it: one of a single kernel beside the parameter."""
    fused = optimizer.param_groups[0].get("fused")
    return torch.tensor(float(steps), device=parameter.device if fused else None)


def add_penalties(
    config: Config, module: nn.Module, accumulate: int, loss_scale: Callable[[], float] = lambda: 1.0
) -> None:
    """Adds the gradient of l1*sum|w| + l2/2*sum w^2 over what decays to each micro-batch's gradient.

    As a gradient hook it is the same under every engine and sharding: autograd calls it with the weight present, before
    anything is reduced, and clipping sees it. Each of `accumulate` micro-batches adds its share. What gradients are
    multiplied by at the time (fp16 scales the loss by 65,536 and less) is asked of `loss_scale` in every pass.
    """
    l1, l2 = config.train.l1 / accumulate, config.train.l2 / accumulate
    if not l1 and not l2:
        return
    mark(module)
    for p in module.parameters():
        if p.requires_grad and decays(p):
            # Gradients are summed over the ranks that hold a parameter, and divided by the number of all of them.
            size = 1 if getattr(p, "allreduce", True) else here.expert.size
            p.register_hook(_penalty(p, l1 * size, l2 * size, loss_scale))


def _penalty(p: Tensor, l1: float, l2: float, loss_scale: Callable[[], float]) -> Callable[[Tensor], Tensor]:
    def hook(grad: Tensor) -> Tensor:
        weight, scale = p.detach(), loss_scale()
        return grad + (scale * l1) * weight.sign() + (scale * l2) * weight

    return hook
