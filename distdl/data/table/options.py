"""The options of every source of tables: what is to be predicted, and what becomes of the other columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distdl.data.splits import SplitOptions
from distdl.data.table.values import NA


@dataclass(frozen=True, kw_only=True)
class TableOptions(SplitOptions):
    """A source of tables takes these over, and adds its own (`path` among them)."""

    label: str = ""
    """Column that holds the class: text or whole numbers."""
    target: str = ""
    """Column that holds the number to predict, instead of a label."""
    features: tuple[str, ...] = ()
    """Columns that make up `x`, in this order; without it all columns but the label or target, as their kinds say."""
    drop: tuple[str, ...] = ()
    """Columns that are left out."""
    rename: tuple[str, ...] = ()
    """New names, as `old:new,old:new`; all other options use the new ones."""
    kinds: tuple[str, ...] = ()
    """Kinds of columns that would be taken for others, as `age:number,zip:category`: number, category, boolean, date,
    vector; text, id and group are left out of `x`."""
    scale: Literal["standard", "minmax", "robust", "log", "none"] = "standard"
    """What numbers become: standard (mean 0, deviation 1), minmax (0 to 1), robust (median 0, the middle half 1 wide),
    log (log(1 + |x|) with the sign of x, then standard), none (as they are)."""
    pieces: int = 0
    """Pieces that the range of a number is cut into, at quantiles of the training rows: beside the number each piece is a
    column of `x` that goes from 0 to 1 while the number crosses it (piecewise linear encoding, Gorishniy et al. 2022). 0:
    none."""
    target_scale: Literal["standard", "minmax", "robust", "log", "none"] = "standard"
    """The same of the number to predict; metrics and answers are in the file's units all the same."""
    missing: Literal["mean", "median", "most_frequent", "zero", "drop", "refuse"] = "mean"
    """What an empty number becomes; drop leaves its row out. A column with empty values gets one more that says where.
    Empty categories and dates become unknown, whatever is said here, but for drop and refuse."""
    categories: Literal["onehot", "index"] = "onehot"
    """A category as one column of `x` for each of its values, or as one column with its rank from 1; 0 is unknown."""
    max_categories: int = 64
    """Values of a category that are told apart, the most frequent ones; all others are one more, `other`."""
    date_format: str = ""
    """Pattern of the dates, as of strptime: `%d.%m.%Y`; without it the usual ones are tried."""
    na: tuple[str, ...] = NA
    """Words that stand for an empty value, beside no word at all."""
    unlabelled: Literal["drop", "keep", "refuse"] = "drop"
    """Rows whose label or target is empty: left out, kept (with the class number -100, which counts nowhere) or refused."""

    size: tuple[int, int] | None = None
    """Height and width, as 224x224: pictures become pixels, uint8 (C, H, W); of a table with a label or target the column
    that names them (paths from the table's folder) or holds their files becomes `image`."""
    channels: int = 3
    """Of these pixels: 3 for colour, 1 for grey."""
