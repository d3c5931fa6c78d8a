"""How accurate a model stays when its input is changed by at most epsilon: FGSM and PGD, by Captum.

    FGSM   x' = x + epsilon sign(slope of the loss)                                   one step
    PGD    so many steps of 2.5 epsilon / steps, each brought back to within epsilon

The loss is minus the log-odds (or the score) of the true class, whose slope has the signs of the cross entropy's and
does not vanish where the model is sure; of a number the squared error. A row counts as upset by PGD where either
attack of that size upsets it: the point that FGSM finds is one of those that PGD looks for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distdl.analyse import drawings
from distdl.analyse.attribution import captum
from distdl.analyse.look import Look, Opened
from distdl.analyse.probe import slopes
from distdl.analyse.section import Picture, Section, Table, Value
from distdl.columns import NO_LABEL

EPSILONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
PGD_STEPS = 20
ATTACKS = ("fgsm", "pgd")


def robustness(look: Look, epsilons: Sequence[float] = EPSILONS) -> Section:
    """The section: accuracy of classes, root mean square error of numbers, over epsilon."""
    section = Section()
    if look.truth is None or (look.probe.subject.classes and (look.truth == NO_LABEL).all()):
        return Section(refused="it is not known what is true of these rows")
    masks = changed(look)
    if masks is not None and not any(bool(mask.any()) for mask in masks):
        return Section(refused="its columns are all words, which cannot be changed a little")
    found = {attack: [] for attack in ATTACKS}  # type: dict[str, list[float]]
    for epsilon in epsilons:
        wrong = {attack: [] for attack in ATTACKS}  # type: dict[str, list[np.ndarray]]
        for one in look.opened:
            for attack, errors in _errors(look, one, epsilon, masks).items():
                wrong[attack].append(errors)
        for attack in ATTACKS:
            found[attack].append(_measure(look, np.concatenate(wrong[attack])))
    name = "accuracy" if look.probe.subject.classes else "rmse"
    rows: list[tuple[Value, ...]] = [(e, *(found[a][i] for a in ATTACKS)) for i, e in enumerate(epsilons)]
    section.tables.append(Table("robustness", f"{name} by epsilon", ("epsilon", "FGSM", "PGD"), rows))
    drawn = drawings.curves(epsilons, {a.upper(): found[a] for a in ATTACKS}, f"epsilon, {_unit(look)}", name)
    section.pictures.append(Picture(f"{name} over epsilon, {len(look.rows):,} rows.", drawn))
    section.numbers = {
        "epsilon": list(epsilons),
        "unit": _unit(look),
        "measure": name,
        **found,
        "clean": found["fgsm"][0],
    }
    section.sentences += [
        f"Epsilon is {_unit(look)}; PGD takes {PGD_STEPS} steps.",
        f"Without a change the {name} is {found['fgsm'][0]:.6g} on these {len(look.rows):,} rows.",
    ]
    _in_file_units(look, epsilons, section)
    return section


def attacked(
    look: Look, one: Opened, epsilon: float, masks: tuple[Tensor, ...] | None
) -> dict[str, tuple[Tensor, ...]]:
    """Attack -> the numbers that it finds, in the place of the inputs'."""
    probe, inputs = look.probe, one.inputs
    truth = torch.from_numpy(np.asarray(look.truth)[one.place]).to(probe.device)
    classes = probe.subject.classes
    thing = truth.clamp(min=0).long() if classes else inputs.thing

    def loss(number: Tensor, target: Tensor) -> Tensor:
        return -number if classes else (number - target).square()

    target = truth if classes else look.model.learner.in_file_units(truth)
    low, high = (0.0, 1.0) if probe.bytes_of else (-torch.inf, torch.inf)
    more = {"target": target, "additional_forward_args": (*inputs.fixed, thing)}
    if masks is not None:
        more["mask"] = tuple(mask.expand_as(n) for mask, n in zip(masks, inputs.numbers))
    numbers = tuple(n.clone() for n in inputs.numbers)
    if epsilon == 0:
        return dict.fromkeys(ATTACKS, numbers)
    robust = captum().robust
    of, follow = probe.of(inputs), following(look)
    fgsm = robust.FGSM(lambda x, *more: of(follow(x), *more), loss, low, high)
    pgd = robust.PGD(lambda x, *more: of(follow(x), *more), loss, low, high)
    fgsm.zero_thresh = pgd.fgsm.zero_thresh = 0.0  # what is a small slope depends on the unit
    with slopes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it asks for the gradients itself
        one_step = fgsm.perturb(numbers, epsilon, **more)
        several = pgd.perturb(numbers, epsilon, 2.5 * epsilon / PGD_STEPS, PGD_STEPS, **more)
    found = {"fgsm": one_step, "pgd": several}
    return {name: (follow(first).detach(), *(n.detach() for n in rest)) for name, (first, *rest) in found.items()}


def _errors(look: Look, one: Opened, epsilon: float, masks: tuple[Tensor, ...] | None) -> dict[str, np.ndarray]:
    """Attack -> (B,) 1 where the class is wrong, else 0, NaN without a label; of numbers the error in the file's units."""
    truth, subject = np.asarray(look.truth)[one.place], look.probe.subject
    found: dict[str, np.ndarray] = {}
    for attack, numbers in attacked(look, one, epsilon, masks).items():
        with torch.no_grad():
            said = look.probe.said(one.inputs, *numbers, *one.inputs.fixed)
        if subject.classes:
            told = subject.told(said).cpu().numpy()
            found[attack] = np.where(truth == NO_LABEL, np.nan, told != truth)
        else:
            found[attack] = np.abs(subject.numbers(said)[:, 0].cpu().numpy() - look.in_units(truth))
    found["pgd"] = np.fmax(found["fgsm"], found["pgd"])
    return found


def _measure(look: Look, errors: np.ndarray) -> float:
    if look.probe.subject.classes:
        return float(1 - np.nanmean(errors))
    return float(np.sqrt(np.mean(errors.astype(np.float64) ** 2)))


def _features(look: Look) -> list[dict[str, Any]] | None:
    """The columns of the user's table that the input was made of; None: it was made of something else."""
    names = look.probe.names
    record = look.record.get(names[0], {}) if len(names) == 1 else {}
    return record["features"] if look.opened[0].parts.kind == "columns" and record.get("kind") == "features" else None


def changed(look: Look) -> tuple[Tensor, ...] | None:
    """Of a table 1 where a number stands: words, dates and what is empty are not changed; None: everything is."""
    features = _features(look)
    if features is None:
        return None
    from distdl.data.table.encode import outputs

    marks: list[float] = []
    for feature in features:
        width = len(outputs(feature))
        numbers = {"number": 1, "vector": feature.get("length", 0)}.get(feature["kind"], 0)
        marks += [1.0] * numbers + [0.0] * (width - numbers)
    return (torch.tensor(marks, device=look.probe.device).view(look.opened[0].inputs.numbers[0].shape[1:]),)


def following(look: Look) -> Callable[[Tensor], Tensor]:
    """Rows -> the same rows, in which the pieces that numbers of a table are cut into are those of the numbers."""
    from distdl.data.table.encode import outputs
    from distdl.data.table.scale import edges_of

    cut: list[tuple[int, Tensor]] = []
    first = 0
    for feature in _features(look) or ():
        if "edges" in feature:
            cut.append((first, torch.from_numpy(edges_of(feature)).to(look.probe.device)))
        first += len(outputs(feature))

    def follow(x: Tensor) -> Tensor:
        if not cut:
            return x
        found = x.flatten(1).clone()
        for at, edges in cut:
            number = x.flatten(1)[:, at : at + 1].double()
            found[:, at + 1 : at + len(edges)] = ((number - edges[:-1]) / edges.diff()).clamp(0, 1).to(x.dtype)
        return found.view_as(x)

    return follow


def _unit(look: Look) -> str:
    if look.probe.bytes_of:
        return "a share of the range of a pixel or byte (1 is 255)"
    if _features(look) is not None:
        return "in the units that the model reads its number columns in, scaled as the data set was"
    return "in the units of the input as the data set has it"


def _in_file_units(look: Look, epsilons: Sequence[float], section: Section) -> None:
    """What the largest epsilon is, of each number column in the units of the file."""
    rows: list[tuple[Value, ...]] = []
    for feature in _features(look) or ():
        if feature["kind"] == "number" and feature["scale"]["method"] != "log":
            rows.append((feature["name"], *(epsilon * float(feature["scale"]["divide"]) for epsilon in epsilons[1:])))
    if rows:
        heads = ("column", *(f"epsilon {epsilon:g}" for epsilon in epsilons[1:]))
        section.tables.append(Table("robustness-units", "Epsilon in the units of the file", heads, rows))
    if logs := [f["name"] for f in _features(look) or () if f["kind"] == "number" and f["scale"]["method"] == "log"]:
        section.sentences.append(
            f"Of {', '.join(logs)} the logarithm is read: there epsilon is a factor, not a difference."
        )
