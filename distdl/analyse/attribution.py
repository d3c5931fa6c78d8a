"""Saliency, integrated gradients, Grad-CAM and occlusion of rows of one shape, by Captum."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.analyse.methods import last_convolution
from distdl.analyse.parts import Parts
from distdl.analyse.probe import Inputs, Probe, slopes
from distdl.errors import InputError

STEPS = (32, 128, 512)
"""Places on the way from the baseline to the row; more where the shares do not add up."""
COMPLETE = 0.01
"""Share of the difference by which the sum of the shares may miss it before more steps are taken."""
WINDOWS = 8
"""Places along each side of a picture, or along time, at which a window hides something; it is twice as wide as they
are apart."""


def captum() -> Any:
    """The library. InputError: it is not installed."""
    try:
        import captum.attr
        import captum.robust
    except ModuleNotFoundError as error:
        raise InputError(f"attributions are Captum's, and {error.name} is not installed", fix=INSTALL) from None
    return captum


INSTALL = "pip install 'distdl[analyse]'"


@dataclass(frozen=True)
class Shares:
    """Integrated gradients, and how well they add up."""

    values: tuple[Tensor, ...]
    """In the shape of the inputs."""
    row: Tensor
    """(B,) the answer to the row, and"""
    baseline: Tensor
    """(B,) to the baseline."""
    steps: int
    """Of the row that took the most."""


def baseline_of(probe: Probe, inputs: Inputs, mean: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
    """What stands for nothing: black of pictures, a vector of zeros of tokens, else the mean of the rows looked at
    (`mean`)."""
    if mean is None or probe.tokens or inputs.numbers[0].ndim == 4:
        return tuple(torch.zeros_like(n) for n in inputs.numbers)
    return tuple(m.to(n).expand_as(n) for m, n in zip(mean, inputs.numbers))


def saliency(probe: Probe, inputs: Inputs) -> tuple[Tensor, ...]:
    with slopes():
        numbers = tuple(n.clone().requires_grad_() for n in inputs.numbers)
        found = captum().attr.Saliency(probe.of(inputs)).attribute(numbers, additional_forward_args=inputs.more)
    return tuple(f.detach() for f in found)


def integrated(probe: Probe, inputs: Inputs, baseline: tuple[Tensor, ...], batch: int) -> Shares:
    """With so many steps for each row that its shares add up to the difference, as far as the most allow."""
    function = probe.of(inputs)
    with torch.no_grad():
        row, start = function(*inputs.numbers, *inputs.more), function(*baseline, *inputs.more)
    values = tuple(torch.zeros_like(n) for n in inputs.numbers)
    left, steps = torch.arange(len(row), device=row.device), 0
    with slopes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # batches that are smaller than the rows are taken one step at a time
        for steps in STEPS:
            found = (
                captum()
                .attr.IntegratedGradients(function)
                .attribute(
                    tuple(n[left] for n in inputs.numbers),
                    baselines=tuple(b[left] for b in baseline),
                    additional_forward_args=tuple(m[left] for m in inputs.more),
                    n_steps=steps,
                    internal_batch_size=max(batch, len(left)),
                )
            )
            for all_rows, some in zip(values, found):
                all_rows[left] = some.detach().to(all_rows.dtype)
            missed = torch.stack([v.flatten(1).double().sum(1) for v in values]).sum(0) - (row - start).double()
            far = missed.abs() > COMPLETE * (row - start).abs().clamp(min=1e-3)
            if not bool(far.any()):
                break
            left = far.nonzero()[:, 0]
    return Shares(values, row, start, steps)


def gradcam(probe: Probe, inputs: Inputs) -> tuple[str, Tensor]:
    """Name of the layer, and its map (B, H, W) or (B, T), brought to the size of the input."""
    found = last_convolution(probe, inputs)
    assert found is not None
    name, layer = found
    with slopes():
        numbers = tuple(n.clone().requires_grad_() for n in inputs.numbers)
        seen = (
            captum()
            .attr.LayerGradCam(probe.of(inputs), layer)
            .attribute(numbers, additional_forward_args=inputs.more, relu_attributions=True)
        )
    seen, shape = seen.detach(), inputs.numbers[0].shape
    if len(shape) == 4:
        return name, F.interpolate(seen, shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return name, F.interpolate(seen, shape[1], mode="linear", align_corners=False)[:, 0]  # along time


def occlusion(
    probe: Probe, inputs: Inputs, baseline: tuple[Tensor, ...], parts: Parts, batch: int
) -> tuple[Tensor, ...]:
    """By how much the answer falls without each part: windows of a picture or of time, else one part after the other."""
    function, together = probe.of(inputs), max(1, batch // len(inputs.thing))
    more: dict[str, Any] = {"additional_forward_args": inputs.more, "perturbations_per_eval": together}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if parts.kind in ("pixels", "steps"):
            window, stride = windows(inputs.numbers[0].shape[1:], parts.kind == "pixels")
            attribution = captum().attr.Occlusion(function)
            found = attribution.attribute(
                inputs.numbers, sliding_window_shapes=(window,), strides=(stride,), baselines=baseline, **more
            )
        else:
            masks = tuple(of[None].to(probe.device) for of in parts.of)
            attribution = captum().attr.FeatureAblation(function)
            found = attribution.attribute(inputs.numbers, baselines=baseline, feature_mask=masks, **more)
    return tuple(f.detach() for f in found)


def windows(shape: torch.Size | tuple[int, ...], picture: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the window, and how far the next one is: over all channels of a picture (C, H, W), all variables of
    (T, D)."""
    apart = [max(1, side // WINDOWS) for side in (shape[1:] if picture else shape[:1])]
    wide = [min(2 * step, side) for step, side in zip(apart, shape[1:] if picture else shape[:1])]
    return ((shape[0], *wide), (shape[0], *apart)) if picture else ((*wide, shape[1]), (*apart, shape[1]))
