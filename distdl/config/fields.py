"""Types of what families' Configs repeat, each with its bounds: `units: Count = 256` for `Annotated[int, Field(gt=0)]`.

A Config is read without running its file (family.py), and these names are known there, in a user's own family, too.
So this file imports no torch and holds nothing but types: to read a stranger's Config must do nothing. The list in
docs/custom_family.md is compared with it by a test.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

__all__ = [
    "Activation", "Amount", "AmountOrZero", "Count", "CountOrZero", "Counts", "ImageShape", "Init", "Norm", "OpenShare",
    "Pair", "SequenceTask", "Several", "Shape", "Share", "SomeCounts", "SomeShare", "StrictShare",
]  # fmt: skip

# -- numbers -----------------------------------------------------------------------------------------------------------

Count = Annotated[int, Field(gt=0)]
"""How many there are, 1 or more: units, layers, steps, a side in pixels."""
CountOrZero = Annotated[int, Field(ge=0)]
"""How many there are, and 0 where there need be none."""
Several = Annotated[int, Field(gt=1)]
"""How many there are of what one alone makes no sense of: classes, tokens of a vocabulary."""
Amount = Annotated[float, Field(gt=0)]
"""A number above 0: a rate, a scale, a width."""
AmountOrZero = Annotated[float, Field(ge=0)]
"""A number from 0, which often means none: the weight of a penalty, the strength of noise."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, from none to all."""
OpenShare = Annotated[float, Field(ge=0, lt=1)]
"""A part of a whole, from none to less than all: a dropout, the memory of a moving average."""
SomeShare = Annotated[float, Field(gt=0, le=1)]
"""A part of a whole, more than none, to all."""
StrictShare = Annotated[float, Field(gt=0, lt=1)]
"""A part of a whole, more than none and less than all."""

# -- several numbers ---------------------------------------------------------------------------------------------------

Counts = tuple[Count, ...]
"""One number for each of what may be none: the units of each hidden layer."""
SomeCounts = Annotated[tuple[Count, ...], Field(min_length=1)]
"""One number for each of what is at least one."""
Shape = tuple[Count, ...]
"""The shape of one sample, of any dimensions."""
ImageShape = tuple[Count, Count, Count]
"""The shape of one picture: channels, height, width."""
Pair = tuple[Count, Count]
"""Two numbers: height and width, the first and the second stage."""

# -- words, which can be added to: Literal[Norm, "rms"] ----------------------------------------------------------------

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"]
"""Non-linearities, of `nn/blocks.py`."""
Norm = Literal["none", "batch", "layer", "group"]
"""Normalisations of a layer's sums, of `nn/blocks.py`."""
Init = Literal[
    "default",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
]
"""How fresh weights are drawn, by `nn/blocks.py`."""
SequenceTask = Literal["rows", "tokens", "values"]
"""What is learned of a sequence, by `learner/sequence.py`."""
