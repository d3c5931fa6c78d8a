"""Mordvintsev et al. 2015 show pictures. Measured is what they show: the layer sees more in a dream than in the digit it
began with (half as much again in an independent implementation), and the carrier takes a dreamt class for that class."""

import torch

from benchmarks.acceptance import Bench, Case, Trained


def dreamt(bench: Bench, *overrides: str) -> Trained:
    """600 steps for the carrier, 100 for the dreams."""
    mnist = [f"data.path={bench.mnist()}", "model.image=[1, 28, 28]", "model.jitter=2", "model.octaves=3"]
    steps = ["model.carrier_steps=600", "train.steps=700", "evaluate.every_steps=0"]
    return bench.train("deepdream", *mnist, *steps, *overrides)


@torch.no_grad()
def activation(bench: Bench) -> float:
    learner = dreamt(bench).learner()
    before, after = (learner.value(learner.carrier, x).mean() for x in (learner.start, learner.pictures()))
    return float(after / before)


def confidence(bench: Bench) -> float:
    return dreamt(bench, "name=deepdream-class", "model.objective=class", "model.start=grey").metrics["confidence"]


CASES = [
    Case("deepdream", "MNIST", "mean squared activation after 100 steps, over before", 1.4, "higher", activation),
    Case("deepdream", "MNIST", "confidence in the dreamt class after 100 steps", 0.9, "higher", confidence),
]
