"""What a field of a family's Config says of itself beside its type, for the code that compares two models:

dropout: Annotated[float, Field(ge=0, lt=1), TRAINING_ONLY] = 0.1
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Mark(Enum):
    """Stands in the `Annotated[...]` of a field."""

    TRAINING_ONLY = "training only"
    INVISIBLE = "invisible"


TRAINING_ONLY: Final = Mark.TRAINING_ONLY
"""The field changes how the model learns, not what it computes: a checkpoint fits whatever it says."""
INVISIBLE: Final = Mark.INVISIBLE
"""The field changes what the weights mean, and perhaps no shape of theirs: `start.weights` are refused where it differs."""
