"""When the values of a series are: by the moment of the first and the frequency, as `.tsf` files name it."""

from __future__ import annotations

import calendar
import re
from datetime import datetime, timedelta

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "dai": 86_400, "day": 86_400, "week": 604_800}
MONTHS = {"month": 1, "quarter": 3, "year": 12}
FREQUENCY = re.compile(rf"(?:(\d+|half)_)?({'|'.join((*SECONDS, *MONTHS))})(?:s|ly)?")
"""`daily`, `10_minutes`, `half_hourly`, `quarterly` ..."""


def moment(start: datetime, frequency: str, n: int) -> datetime | None:
    """When the value of the number n is, the first of which is 0; None: nobody knows such a frequency, or year."""
    found = FREQUENCY.fullmatch(frequency.strip().lower())
    if found is None:
        return None
    times = 0.5 if found[1] == "half" else float(found[1] or 1)
    try:
        if found[2] in SECONDS:
            return start + timedelta(seconds=n * times * SECONDS[found[2]])
        months = n * times * MONTHS[found[2]]
        if months % 1:
            return None
        year, month = divmod(start.year * 12 + start.month - 1 + int(months), 12)
        last = calendar.monthrange(year, month + 1)[1]
        return start.replace(year=year, month=month + 1, day=min(start.day, last))
    except (OverflowError, ValueError):
        return None
