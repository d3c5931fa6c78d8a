"""Which method says something of which family: the table in docs/analyse.md is what trying each family finds.

`python -m tests.analyse.test_families` writes it anew.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.analyse.attribution import baseline_of, gradcam, integrated, occlusion, saliency
from distdl.analyse.methods import METHODS, refusals
from distdl.analyse.parts import parts_of
from distdl.analyse.probe import Probe
from distdl.config.family import family_names
from distdl.errors import InputError
from distdl.families import load_family
from tests.conftest import REPOSITORY
from tests.families.test_answers import question

PAGE = REPOSITORY / "docs" / "analyse.md"
BEGIN, END = "<!-- families -->", "<!-- end of families -->"
HEADS = {
    "saliency": "saliency",
    "integrated_gradients": "integrated gradients",
    "gradcam": "Grad-CAM",
    "occlusion": "occlusion",
    "robustness": "robustness",
    "groups": "groups",
    "neighbours": "neighbours",
    "features": "features",
}
APPLIES = "yes"
REASON = re.compile(r"no \((\d+)\)")


def opened(family: str, data: Path) -> tuple[Probe, dict[str, Any]]:
    """A family's small form as a function, and rows that it reads. InputError: it cannot be analysed."""
    learner, batch = question(family, data)
    generator = torch.Generator().manual_seed(0)
    for buffer in learner.buffers():  # what is learned without a gradient has not been yet
        if buffer.is_floating_point() and not buffer.any():
            buffer += 0.1 * torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
    rows = {name: column.numpy() for name, column in batch.items()}
    cls = load_family(family)
    return Probe.on(learner, cls.asked(learner.config), cls.tells(learner.config), rows, family), rows


def told(family: str, data: Path) -> list[str]:
    """Of each method that it applies to the family, or why it does not."""
    try:
        probe, rows = opened(family, data)
    except InputError as error:
        what = error.problems[0].what
        return [(what.partition(": ")[2] or what).partition(", and no single")[0]] * len(HEADS)
    inputs = probe.inputs({name: column[:1] for name, column in rows.items()})
    refused = refusals(probe, inputs)
    return [refused[method] or APPLIES for method in HEADS]


def lines(data: Path) -> list[str]:
    """The table, and below it the reasons by their numbers."""
    heads, reasons = ["family", *HEADS.values()], list[str]()
    rows = []
    for family in family_names():
        cells = told(family, data)
        reasons += [cell for cell in dict.fromkeys(cells) if cell not in (APPLIES, *reasons)]
        rows.append(
            [f"`{family}`", *(cell if cell == APPLIES else f"no ({reasons.index(cell) + 1})" for cell in cells)]
        )
    table = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return [*table, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]


def in_docs() -> dict[str, list[str]]:
    """Family -> what the docs say of each method, as `told`."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index(BEGIN) : text.index(END)]
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", table, re.MULTILINE))
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| `")
    ]

    def said(cell: str) -> str:
        found = REASON.fullmatch(cell)
        return reasons[found[1]] if found else cell

    return {row[0].strip("`"): [said(cell) for cell in row[1:]] for row in rows}


def test_the_table_has_every_family_and_every_method() -> None:
    assert list(in_docs()) == list(family_names()) and list(HEADS) == list(METHODS)
    assert all(len(row) == len(HEADS) for row in in_docs().values())
    assert all(cell == APPLIES or len(cell) > 10 for row in in_docs().values() for cell in row), (
        "a refusal has a reason"
    )


@pytest.mark.parametrize("family", family_names())
def test_the_table_says_what_trying_finds(family: str, small_data: Path) -> None:
    assert in_docs()[family] == told(family, small_data)


@pytest.mark.parametrize(
    "family", [f for f in family_names() if APPLIES in (in_docs() if PAGE.exists() else {}).get(f, ())]
)
def test_attributions_are_numbers_and_shares_add_up(family: str, small_data: Path) -> None:
    """Of each family whose answer can be explained: nothing but finite numbers, and the axiom of completeness."""
    probe, rows = opened(family, small_data)
    count = 1 if probe.tokens else 2
    inputs = probe.inputs({name: column[:count] for name, column in rows.items()})
    mean = tuple(n.mean(0, keepdim=True) for n in inputs.numbers)
    parts, baseline = parts_of(probe, inputs, {}), baseline_of(probe, inputs, mean)
    found = [parts.told(occlusion(probe, inputs, baseline, parts, 16), "mean")]
    refused = refusals(probe, inputs)
    if not refused["saliency"]:
        found.append(parts.told(saliency(probe, inputs), "amax"))
        assert float(found[-1].max()) > 0
        shares = integrated(probe, inputs, baseline, 64)
        total = parts.told(shares.values, "sum").flatten(1).sum(1)
        if family not in NOT_SMOOTH:
            torch.testing.assert_close(total, (shares.row - shares.baseline).double(), rtol=0.05, atol=0.02)
    if not refused["gradcam"]:
        found.append(gradcam(probe, inputs)[1])
        assert found[-1].shape[1:] == parts.shape
    for values in found:
        assert len(values) == count and bool(values.isfinite().all())


NOT_SMOOTH = {
    "maml": "it learns from the support rows in between, without a slope along them",
    "nerf": "the places are waves of high frequencies, too rough for 512 steps",
    "mcdnn": "it brings a picture to a width that it measures, and that jumps",
    "rae": "vectors of words have the length 1 for it: all the way from zero is one jump",
}
"""Families whose shares do not add up to the difference of their answers; the report says so of each such row."""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join([BEGIN, "", *lines(Path(folder)), "", END])
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")
