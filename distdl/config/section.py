"""What every section of the YAML is made of: its base class, and the kinds of numbers and places that its keys hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LARGEST = 2**63 - 1  # of the int64 that steps, samples and seeds are counted in
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Natural = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Betas = Annotated[tuple[Fraction, Fraction], Field()]


def local_path(path: str) -> str:
    """The path, unless it is a URI: what is written there would lie in a local folder of that name. Raises ValueError."""
    if "://" in path:
        raise ValueError(
            f"{path.partition('://')[0]}:// is no part of the file system, with which it is written: give a folder, or "
            "mount the bucket and name where (only data sets are read from an object store)"
        )
    return path


LocalPath = Annotated[str, AfterValidator(local_path)]


class Section(BaseModel):
    """A section of the YAML: frozen, and closed to keys that nothing reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)
