"""The methods: what each shows, what it cannot show, whose it is, and which families it says something of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from distdl.analyse.probe import Inputs, Probe
from distdl.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Method:
    title: str
    shows: str
    cannot: str
    paper: str
    address: str


METHODS: dict[str, Method] = {
    "saliency": Method(
        "Saliency",
        "It shows where a small change of the input would change the answer the most: the size of the gradient.",
        "It says nothing of what an answer owes to a part as a whole, and where units are saturated it is small though the "
        "part matters.",
        "Simonyan, Vedaldi & Zisserman 2014, Deep inside convolutional networks, ICLR workshop",
        "https://arxiv.org/abs/1312.6034",
    ),
    "integrated_gradients": Method(
        "Integrated gradients",
        "They share out the difference between the answer to the row and the answer to a baseline among the parts of the "
        "input: the shares add up to it.",
        "They depend on the baseline, and share out what parts do together by a convention; that a part has a share "
        "does not say that it causes anything in the world.",
        "Sundararajan, Taly & Yan 2017, Axiomatic attribution for deep networks, ICML",
        "https://arxiv.org/abs/1703.01365",
    ),
    "gradcam": Method(
        "Grad-CAM",
        "It shows roughly where the last convolution saw what speaks for the answer.",
        "It is as coarse as that layer's map, and blind to what layers behind it do with places and to what speaks "
        "against.",
        "Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks, ICCV",
        "https://arxiv.org/abs/1610.02391",
    ),
    "occlusion": Method(
        "Occlusion",
        "It shows by how much the answer falls when a part of the input is replaced by the baseline: no gradient is "
        "needed.",
        "Rows with a part replaced may be like none that the model learned from, and parts that stand for each other hide "
        "each other's worth.",
        "Zeiler & Fergus 2014, Visualizing and understanding convolutional networks, ECCV",
        "https://arxiv.org/abs/1311.2901",
    ),
    "robustness": Method(
        "Adversarial robustness",
        "It shows how accurate the model stays when each number of the input is changed by at most epsilon in the "
        "worst way that an attack finds; of tokens, when a few of them are replaced by others.",
        "A stronger attack may find worse: the curves are bounds from above, and say nothing of changes of other kinds.",
        "Goodfellow, Shlens & Szegedy 2015, ICLR (FGSM); Madry et al. 2018, ICLR (PGD); Ebrahimi et al. 2018, ACL "
        "(HotFlip)",
        "https://arxiv.org/abs/1706.06083",
    ),
    "groups": Method(
        "Error by group",
        "It shows for which rows the model is wrong more often.",
        "Small groups differ by chance, and a difference does not say where it comes from.",
        "Buolamwini & Gebru 2018, Gender shades, FAT*",
        "https://proceedings.mlr.press/v81/buolamwini18a.html",
    ),
    "neighbours": Method(
        "Nearest neighbours",
        "It shows which of the rows that the model learned from it takes for the most alike: those whose embeddings "
        "are nearest.",
        "Near in the last layer is near for this task only, and the distance has no unit.",
        "Papernot & McDaniel 2018, Deep k-nearest neighbors; Caruana et al. 1999, AMIA",
        "https://arxiv.org/abs/1803.04765",
    ),
    "features": Method(
        "Feature visualisation",
        "It shows an input that the answer is strongest for, found by gradient ascent from noise, kept smooth and small.",
        "It is no row of the data, one of many such inputs, and what it looks like depends on what keeps it smooth.",
        "Olah, Mordvintsev & Schubert 2017, Feature visualization, Distill; Erhan et al. 2009",
        "https://distill.pub/2017/feature-visualization/",
    ),
}
GRADIENT = ("saliency", "integrated_gradients", "gradcam", "robustness", "features")
"""Methods that need the slope of the answer."""


def chosen(text: str) -> tuple[str, ...]:
    """The methods that are named, with commas between; '': all. InputError: one of them is none."""
    names = [name.strip().replace("-", "_") for name in text.split(",") if name.strip()] or list(METHODS)
    for name in names:
        if name not in METHODS:
            what = f"there is no method '{name}'"
            raise InputError(what, allowed=", ".join(METHODS), fix=did_you_mean(name, METHODS))
    return tuple(name for name in METHODS if name in names)


def refusals(probe: Probe, inputs: Inputs) -> dict[str, str]:
    """Method -> why it does not apply to this family; '': it does."""
    found = dict.fromkeys(METHODS, "")
    if probe.no_gradient:
        found |= dict.fromkeys(GRADIENT, probe.no_gradient)
    elif last_convolution(probe, inputs) is None:
        found["gradcam"] = "no convolution of it makes a map of its input"
    subject = probe.subject
    if not (subject.classes or subject.value):
        found["groups"] = "its answer is no class and no number that the data has the truth of"
    elif type(probe.learner).columns(probe.learner.config)[subject.truth].shape:
        found["groups"] = f"what the data knows of a row ('{subject.truth}') is more than one class or number"
    if probe.tokens:
        if subject.form not in ("log-odds", "score"):
            no_class = "its answer is no class and no token, which could become another"
            found["robustness"] = found["robustness"] or no_class
        found["features"] = found["features"] or "its input is tokens, and no token lies a little beside another"
    elif found["groups"]:
        found["robustness"] = found["robustness"] or found["groups"]
    if probe.learner.read_out() is None and all(answer.kind != "embedding" for answer in probe.tells.values()):
        found["neighbours"] = "it has no layer whose input stands for the whole row"
    return found


def last_convolution(probe: Probe, inputs: Inputs) -> tuple[str, nn.Module] | None:
    """Name and module of the convolution that runs last and once, and makes a map of more than one place of each row,
    along as many sides as the input has."""
    seen: list[nn.Module] = []
    rows, sides = len(inputs.thing), inputs.numbers[0].ndim
    named: dict[nn.Module, str] = {
        m: name for name, m in probe.learner.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d)
    }

    def see(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if len(output) == rows and output.ndim == sides and output[0, 0].numel() > 1:
            seen.append(module)

    handles = [module.register_forward_hook(see) for module in named]
    try:
        with torch.no_grad():
            probe.of(inputs)(*inputs.numbers, *inputs.more)
    finally:
        for handle in handles:
            handle.remove()
    once: Sequence[nn.Module] = [module for module in seen if seen.count(module) == 1]
    return (named[once[-1]], once[-1]) if once else None
