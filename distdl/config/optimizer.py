"""The `optimizer:` and `schedule:` sections: how a gradient becomes a step, and how large the steps are over the run."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from distdl.config.section import Betas, Fraction, Natural, NonNegative, Positive, PositiveFloat, Section


class SGD(Section):
    """Stochastic gradient descent (Robbins & Monro 1951), momentum as in Sutskever et al. 2013."""

    name: Literal["sgd"]
    lr: PositiveFloat
    """Learning rate at its peak; the schedule scales it."""
    momentum: Fraction = 0.0
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    weight_decay: NonNegative = 0.0
    """Decay of the weights, per unit of learning rate, matrices only."""


class Adam(Section):
    """Adam (Kingma & Ba 2015)."""

    name: Literal["adam"]
    lr: PositiveFloat
    """Learning rate at its peak; the schedule scales it."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.0
    """L2 term added to the gradient, matrices only."""


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]
    lr: PositiveFloat
    """Learning rate at its peak; the schedule scales it."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.01
    """Decay of the weights, per unit of learning rate, matrices only."""


class RMSprop(Section):
    """RMSprop (Tieleman & Hinton 2012)."""

    name: Literal["rmsprop"]
    lr: PositiveFloat
    """Learning rate at its peak; the schedule scales it."""
    alpha: Fraction = 0.99
    """Decay of the mean square."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""
    momentum: Fraction = 0.0
    """Share of the last update that is kept."""
    weight_decay: NonNegative = 0.0
    """L2 term added to the gradient, matrices only."""


class Adagrad(Section):
    """Adagrad (Duchi, Hazan & Singer 2011)."""

    name: Literal["adagrad"]
    lr: PositiveFloat
    """Learning rate at its peak; the schedule scales it."""
    eps: PositiveFloat = 1e-10
    """Added to the root of the sum of squares."""
    weight_decay: NonNegative = 0.0
    """L2 term added to the gradient, matrices only."""


class Lion(Section):
    """Lion, the sign of an interpolated momentum (Chen et al. 2023)."""

    name: Literal["lion"]
    lr: PositiveFloat
    """Learning rate at its peak, usually 3-10 times smaller than AdamW's."""
    betas: Betas = (0.9, 0.99)
    """Interpolation of the update and decay of the momentum."""
    weight_decay: NonNegative = 0.0
    """Decay of the weights, per unit of learning rate, matrices only."""


class Muon(Section):
    """Muon (Jordan et al. 2024): steps of hidden matrices are made orthogonal. Embeddings, the head, biases and gains have
    AdamW's. The update has AdamW's root mean square (Liu et al. 2025), so that one learning rate fits both."""

    name: Literal["muon"]
    lr: PositiveFloat
    """Learning rate at its peak, as AdamW's; the schedule scales it."""
    momentum: Fraction = 0.95
    """Share of the last gradients that is kept for a matrix."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    betas: Betas = (0.9, 0.95)
    """AdamW's decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """AdamW's: added to the root of the second moment."""
    weight_decay: NonNegative = 0.1
    """Decay of the weights, per unit of learning rate, matrices only."""


class Adafactor(Section):
    """Adafactor (Shazeer & Stern 2018): second moments of a matrix by its rows and columns alone, and no first moment.
    Steps are relative to the size of each tensor."""

    name: Literal["adafactor"]
    lr: PositiveFloat = 0.01
    """Largest step, as a share of a tensor's root mean square; from step n on it is 1/sqrt(n) at most. The schedule scales
    it."""
    beta2_decay: Annotated[float, Field(lt=0, ge=-1)] = -0.8
    """The second moment's decay is 1 - n^this in step n."""
    eps: PositiveFloat = 1e-3
    """Smallest root mean square that a tensor counts with."""
    clip: Annotated[float, Field(ge=1)] = 1.0
    """Largest root mean square of an update, before the learning rate."""
    weight_decay: NonNegative = 0.0
    """Decay of the weights, per unit of learning rate, matrices only."""


class LBFGS(Section):
    """L-BFGS (Liu & Nocedal 1989), each step several iterations on its batch, each with a strong Wolfe line search."""

    name: Literal["lbfgs"]
    lr: PositiveFloat = 1.0
    """First length that a line search tries; the schedule scales it."""
    iterations: Positive = 20
    """Iterations of a step, all on its batch; each takes a forward and a backward pass or more."""
    history: Annotated[int, Field(gt=0, lt=1000)] = 50
    """Last moves and changes of the gradient that stand for the curvature."""
    weight_decay: ClassVar[float] = 0.0


class OwnOptimizer(Section):
    """An optimizer of the user's own or of an installed package: `optimizer: {name: module:Class, lr: 1e-3}`."""

    name: Literal["own"]
    use: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`module:Class`, as `name` may say it at once: a subclass of torch.optim.Optimizer that every worker can import."""
    lr: PositiveFloat
    """Learning rate at its peak; the schedule scales it."""
    weight_decay: NonNegative = 0.0
    """What the parameter groups of matrices get as `weight_decay`; those of biases, gains and the like get 0."""
    options: dict[str, Any] = {}
    """Further arguments of its constructor."""
    elementwise: bool = False
    """A step does the same to each number, whatever tensor it is part of: then ZeRO 1-3 and every axis may cut what it is
    shown. Nobody checks that: `distdl parity` measures it."""


class NoOptimizer(Section):
    """For families that learn without a gradient: sums, rules, closed forms."""

    name: Literal["none"]
    lr: ClassVar[float] = 0.0
    weight_decay: ClassVar[float] = 0.0


Optimizer = Annotated[
    SGD | Adam | AdamW | RMSprop | Adagrad | Lion | Muon | Adafactor | LBFGS | OwnOptimizer | NoOptimizer,
    Field(discriminator="name"),
]


def by_module(section: Any) -> Any:
    """An `optimizer:` section whose name is `module:Class`, as what that stands for."""
    if isinstance(section, dict) and ":" in str(section.get("name")):
        return {**section, "name": "own", "use": section["name"]}
    return section


WHOLE_MATRICES = {"muon", "adafactor"}
"""Optimizers that make something of a matrix as a whole, of which a rank must not hold a part only."""


class Constant(Section):
    """The peak learning rate, after the warm-up."""

    name: Literal["constant"] = "constant"
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from 0."""


class Linear(Section):
    """From the peak in a straight line to `final` times the peak at the last step."""

    name: Literal["linear"]
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from 0."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the last step, as a share of the peak."""


class Cosine(Section):
    """From the peak along half a cosine to `final` times the peak at the last step (Loshchilov & Hutter 2017)."""

    name: Literal["cosine"]
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from 0."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the last step, as a share of the peak."""


class Step(Section):
    """Multiplied by `gamma` every `every_steps` steps after the warm-up."""

    name: Literal["step"]
    every_steps: Positive
    """Steps between two drops."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each drop."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from 0."""


class WarmUpStableDecay(Section):
    """The peak until the last steps, then down to `final` times the peak (Hu et al. 2024: MiniCPM). A run that is given
    more steps before it comes down goes on as if it had always had them."""

    name: Literal["wsd"]
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps, at the end, in which it comes down."""
    shape: Literal["sqrt", "linear", "cosine"] = "sqrt"
    """How it comes down: 1 - sqrt(share of the way) (Haegele et al. 2024), in a straight line, along half a cosine."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the last step, as a share of the peak."""


class OneCycle(Section):
    """Up along half a cosine, then down along another, momentum untouched (Smith & Topin 2018)."""

    name: Literal["one_cycle"]
    warmup_steps: Positive
    """Steps on the way up."""
    initial: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Learning rate at the first step, as a share of the peak."""
    final: Annotated[float, Field(ge=0, le=1)] = 4e-6
    """Learning rate at the last step, as a share of the peak."""


Schedule = Annotated[Constant | Linear | Cosine | Step | WarmUpStableDecay | OneCycle, Field(discriminator="name")]
