"""What is shown as `loss` while training is what evaluation calls so: a mean over the same things."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.layout import noise
from distdl.train import worker
from distdl.train.survey import survey
from tests.small import contract_config

COUNTS = ("transformer", "captioner", "word2vec", "mtdnn", "huggingface")
"""Families whose samples have unequally many tokens or answers."""


@pytest.mark.parametrize("family", COUNTS)
def test_training_and_evaluation_show_one_loss(family: str, small_data: Path) -> None:
    values = contract_config(family, small_data, train__threads_per_worker=1)
    config = config_from_dict(values)
    plan = survey(config)
    learner = worker.build_learner(config, None).eval()  # no dropout, and labels as they are
    engine, source = worker.make_engine(learner, plan, 0), worker.make_source(plan, 0)
    batch = next(engine.feed(source, 0))
    noise.begin(1, batch["position"])
    with torch.no_grad():
        told = learner.evaluate(batch)["loss"]
    noise.begin(1, batch["position"])
    shown = learner.update(batch, engine, 0)["loss"]
    noise.begin(0, None)
    source.close()
    assert float(shown.total) / shown.count == pytest.approx(float(told.total) / told.count, rel=1e-5)
