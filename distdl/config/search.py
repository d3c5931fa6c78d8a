"""The `search:` section: which keys of the same YAML `distdl tune` tries, and how it chooses among them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distdl.config.section import LARGEST, Natural, NonNegative, Positive, PositiveFloat, Section

Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
Values = Annotated[list[Any], Field(min_length=1)]
PAIR = Field(min_length=2, max_length=2)
KINDS = ("uniform", "log_uniform", "integer", "log_integer", "choice", "grid")
"""What a key's values are drawn from."""
UNSEARCHED = ("name", "runs", "search", "launch", "runtime", "track", "checkpoint", "guard")
"""Sections and keys of a config that say where and how a run is trained and kept, not what it learns."""


class Space(Section):
    """What is tried for one key: exactly one of these."""

    uniform: Annotated[list[Finite], PAIR] | None = None
    """[from, to]: any number between them, all alike."""
    log_uniform: Annotated[list[PositiveFloat], PAIR] | None = None
    """[from, to]: any number between them, as many from 0.001 to 0.01 as from 0.01 to 0.1."""
    integer: Annotated[list[Whole], PAIR] | None = None
    """[from, to]: any whole number from the first to the last, both included, all alike."""
    log_integer: Annotated[list[Positive], PAIR] | None = None
    """[from, to]: the same, as many from 1 to 10 as from 10 to 100."""
    choice: Values | None = None
    """Any of these values, all alike."""
    grid: Values | None = None
    """Each of these values, with each of the other keys' (`algorithm: grid`)."""

    @property
    def kind(self) -> str:
        """Which of them is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def listed(self) -> list[Any] | None:
        """Its values where they are listed; None: it is a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def extremes(self) -> list[Any]:
        """What must be a value of its key: the ends of a range, or all that is listed."""
        return list(self.listed if self.listed is not None else getattr(self, self.kind))

    @model_validator(mode="after")
    def _one_kind(self) -> Space:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(KINDS)} says what is tried; {' and '.join(given) or 'none'} is given"
            )
        if self.listed is None:
            low, high = getattr(self, given[0])
            if not low < high:
                raise ValueError(
                    f"{given[0]}: [{low:g}, {high:g}] is no range: the first number must be below the second"
                )
        return self


class Search(Section):
    """Which keys `distdl tune` tries, and how. `distdl train` does not read it."""

    space: Annotated[dict[str, Space], Field(min_length=1)]
    """Dotted key of this config -> what is tried for it, such as `optimizer.lr: {log_uniform: [1e-4, 1e-1]}`."""
    algorithm: Literal["grid", "random", "tpe"] = "tpe"
    """grid: every combination of the listed values; random: each trial drawn by itself; tpe: drawn where earlier trials
    were good (tree-structured Parzen estimator, Bergstra et al. 2011; Optuna's)."""
    trials: Positive | None = None
    """Runs that are trained; null: 20, or every point of a grid."""
    metric: str | None = None
    """Metric of the evaluations that is compared; null: the one that decides in the family, as for the best checkpoint."""
    mode: Literal["min", "max"] | None = None
    """Whether a smaller or a larger metric is better; null: as the family says."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """none: every trial is trained to its end; asha: trials are stopped that are behind others at the same step (Li et al.
    2020); pbt: all are trained together, the worst go on from copies of the best with changed values (Jaderberg et al.
    2017)."""
    first_rung_steps: Positive | None = None
    """asha: steps after which a trial may be stopped for the first time; null: at the first evaluation."""
    reduction: Annotated[int, Field(ge=2, le=100)] = 3
    """asha: of how many trials at a rung one goes on, and how many times as many steps the next rung has."""
    perturb_every_steps: Positive | None = None
    """pbt: steps after which the worst copy the best; null: with every evaluation."""
    at_once: Positive | None = None
    """Trials that are trained at the same time; null: as many as the machine has room for."""
    cpus_per_trial: PositiveFloat = 1.0
    """CPUs of the machine that a trial takes; parts of one are allowed."""
    gpus_per_trial: NonNegative | None = None
    """GPUs that a trial takes: whole ones, or a part of one that trials share; null: one where the machine has any."""
    seed: Natural | None = None
    """Seed of what is drawn; null: that of the config."""

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, space: Any) -> Any:
        """Keys may be nested, too, as the sections are that they belong to."""
        return _flat(space, "") if isinstance(space, dict) else space

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_or_shared(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"{gpus:g} GPUs: a part of a GPU can be shared, several are taken whole")
        return gpus

    def count(self) -> int:
        """How many trials there are."""
        points = math.prod(len(space.extremes) for space in self.space.values())
        return (points if self.algorithm == "grid" else 20) if self.trials is None else self.trials


def _flat(values: dict[str, Any], above: str) -> dict[str, Any]:
    """Nested mappings as one of dotted keys, down to what says what is tried. Raises ValueError for a key that is there
    twice."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        nested = isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values())
        for inner, what in (_flat(value, f"{name}.") if nested else {name: value}).items():
            if inner in found:
                raise ValueError(f"{inner} is there twice")
            found[inner] = what
    return found
