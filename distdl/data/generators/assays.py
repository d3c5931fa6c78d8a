"""Assays of made-up molecules: bits of a fingerprint, and the answers of related tests, of which some were never made.

Real ones (Tox21 and others, with fingerprints from RDKit) are an archive of two arrays, which the source `npz` reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError

MISSING = 255
CAUSES = 8
"""Hidden properties of a molecule, from which all its answers follow."""


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `assays`."""

    molecules: int = 5000
    """Rows."""
    bits: int = 256
    """Bits of a fingerprint, a multiple of 8."""
    tasks: int = 12
    """Assays."""
    missing: float = 0.2
    """Share of the answers that is missing."""
    test_fraction: float = field(default=0.2, kw_only=True)
    """Part of the rows held out as the split `test`."""
    seed: int = 0
    """Seed of what is drawn."""


def prepare(options: Options) -> Prepared:
    """`x` uint8 (bits / 8,), eight bits in a byte, and `y` uint8 (tasks,): 0, 1, or 255 for missing."""
    if options.bits < 8 or options.bits % 8 or min(options.molecules, options.tasks) < 1:
        what = f"molecules={options.molecules} bits={options.bits} tasks={options.tasks}"
        raise InputError(what, allowed="1 or more molecules and tasks, and a multiple of 8 bits")
    if not 0 <= options.missing < 1:
        raise InputError(f"missing={options.missing}", allowed="from 0 to below 1")
    splitter = Splitter(options)
    draw = np.random.default_rng(options.seed)
    bits = draw.random((options.molecules, options.bits)) < draw.beta(1, 8, options.bits)
    # A cause is that enough of its few bits are set; an assay weighs the causes, and one molecule in eight is active.
    of_cause = draw.normal(size=(options.bits, CAUSES)) * (draw.random((options.bits, CAUSES)) < 0.3)
    causes = np.maximum(bits @ of_cause, 0)
    scores = causes @ draw.normal(size=(CAUSES, options.tasks))
    scores += 0.3 * scores.std(0) * draw.normal(size=scores.shape)
    answers = (scores > np.quantile(scores, 7 / 8, axis=0)).astype(np.uint8)
    answers[draw.random(answers.shape) < options.missing] = MISSING
    rows = {"x": np.packbits(bits, axis=1), "y": answers}
    columns = {"x": Column("uint8", (options.bits // 8,)), "y": Column("uint8", (options.tasks,))}
    return Prepared(columns, splitter.parts(lambda: [rows]), {"split": splitter.record()})
