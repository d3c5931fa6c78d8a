"""What an evaluation of each family leaves for its page: pictures, or the word why there are none; and that the arrays
which are drawn hold what the family has computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.config.family import family_names
from distdl.families import load_family
from distdl.layout import noise
from distdl.nn.watch import DRAWINGS, as_filters, shown
from distdl.track.pictures import looks
from distdl.track.pictures.arrays import MOST_BYTES, unpacked
from distdl.train.hooks.pictures import Pictures
from tests.families.common import made, rows_of
from tests.families.test_answers import MORE, lively, made_up
from tests.small import contract_config

ROWS = 4


def run_of(events: list[dict[str, Any]], learner: Any) -> Any:
    """What the hook asks of a run of one step."""
    plan = SimpleNamespace(steps=1, world=1, mesh=SimpleNamespace(pipeline=1, sequence=1, data=1))
    config = SimpleNamespace(track=SimpleNamespace(enabled=True))
    engine = SimpleNamespace(config=config, all_sum=lambda tensor: tensor)
    return SimpleNamespace(
        plan=plan,
        rank=0,
        preparation={},
        engine=engine,
        learner=learner,
        last=lambda step: True,
        event=lambda kind, **fields: events.append({"kind": kind, **fields}),
    )


def looked_at(learner: Any, *batches: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The events of one drawn evaluation."""
    events: list[dict[str, Any]] = []
    pictures = Pictures(run_of(events, learner))
    with pictures.look(1, "test"):
        for batch, _ in pictures.batches([(batch, True) for batch in batches]):
            evaluated(learner, batch)
    return events


def evaluated(learner: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """The totals, with the noise that an engine's evaluation has: of the samples, whatever was drawn before."""
    with noise.apart(0, batch["position"]):
        return {name: float(torch.as_tensor(m.total).detach()) for name, m in learner.evaluate(batch).items()}


def small_of(family: str, data: Path) -> tuple[Any, dict[str, Tensor]]:
    values = contract_config(family, data)
    return made(values["model"]), rows_of(values["data"]["path"], range(ROWS), "test")


def arrays_of(events: list[dict[str, Any]], drawing: str) -> list[dict[str, np.ndarray]]:
    (event,) = [event for event in events if event.get("drawing") == drawing]
    return [{name: unpacked(array) for name, array in call.items()} for call in event["calls"]]


@pytest.mark.parametrize("family", family_names())
def test_every_family_is_seen_in_a_picture_or_says_why_not(family: str, small_data: Path) -> None:
    learner, batch = small_of(family, small_data)
    before = evaluated(learner, batch)
    events = looked_at(learner, batch)
    assert [event["kind"] for event in events] == ["picture"] * len(events), events
    assert bool(events) != bool(load_family(family).nothing_to_show), [event["drawing"] for event in events]
    for event in events:
        if "calls" not in event:
            continue
        assert event["drawing"].partition(":")[0] in DRAWINGS
        for call in event["calls"]:
            for array in call.values():
                assert np.isfinite(unpacked(array)).all() and len(array["base64"]) <= 1.4 * MOST_BYTES
        ((title, figure),) = looks.of_look(event, [])
        assert title.replace(" ", "").isalnum() and figure.axes, "names that MLflow takes"
    assert evaluated(learner, batch) == before, "looking on has changed something"


@pytest.mark.parametrize("name", MORE)
def test_other_tasks_of_a_family_are_seen_too(name: str) -> None:
    """Those that read columns which can be made up: what is shown is drawn, and nothing fails in it."""
    learner = made(MORE[name])
    columns = type(learner).columns(learner.config)
    index = torch.arange(ROWS)
    batch = {column: made_up(kind, ROWS) for column, kind in columns.items()} | {"id": index, "position": index}
    try:
        evaluated(learner, batch)
    except Exception:
        pytest.skip("its columns depend on each other")
    for event in looked_at(learner, batch):
        assert event["kind"] == "picture", event
        assert "arrays" in event or looks.of_look(event, [])


def test_the_arrays_are_what_the_family_has_computed(small_data: Path) -> None:
    learner, batch = small_of("snn", small_data)
    fired: list[Tensor] = []
    learner.neurons[0].register_forward_hook(lambda *told: fired.append(told[2][0]))
    first, *_ = arrays_of(looked_at(lively(learner), batch), "spikes")
    assert np.array_equal(first["spikes"], fired[-1].detach().numpy()) and 0 < first["spikes"].mean() < 1

    learner, batch = small_of("som", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "map")
    rows, columns = learner.config.grid
    assert told["prototypes"].shape == (rows, columns, *learner.config.inputs)
    assert np.allclose(told["prototypes"].reshape(rows * columns, -1), learner.code)
    cell = learner.predict(batch)["cell"]
    assert told["winner"].tolist() == (cell[:, 0] * columns + cell[:, 1]).tolist()

    learner, batch = small_of("cnn", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "filters")
    first_convolution = next(m for m in learner.modules() if isinstance(m, torch.nn.Conv2d))
    assert np.allclose(told["filters"], first_convolution.weight.detach(), atol=1e-3)

    learner, batch = small_of("autoencoder", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "reconstructions")
    assert np.allclose(told["given"], batch["image"].float() / 255, atol=1 / 500)
    assert np.allclose(told["told"], learner.predict(batch)["restored"], atol=1 / 500)

    learner, batch = small_of("gan", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "samples")
    assert np.allclose(told["made"], learner.sample(16), atol=1e-2)

    learner = made({"family": "rbm", "inputs": [1, 8, 8], "hidden": 5, "chains": 20})
    learner.chains.uniform_()
    rows = {"image": torch.rand(ROWS, 1, 8, 8), "id": torch.arange(ROWS), "position": torch.arange(ROWS)}
    events = looked_at(learner, rows)
    assert np.allclose(arrays_of(events, "samples")[0]["made"].reshape(16, -1), learner.chains[:16], atol=1e-2), (
        "chains"
    )
    assert arrays_of(events, "filters")[0]["filters"].shape == (5, 1, 8, 8), "one of each hidden unit"

    learner, batch = small_of("unet", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "masks")
    with torch.no_grad():
        _, found, mask = learner.measured(batch)
    assert np.array_equal(told["told"], found) and np.array_equal(told["true"], mask)


def test_numbers_that_are_drawn_are_those_that_are_measured(small_data: Path) -> None:
    learner, batch = small_of("neural_field", small_data)
    ((told),) = arrays_of(looked_at(learner, batch, batch), "field")
    assert np.allclose(told["told"], learner.predict(batch)["value"].repeat(2, 1), atol=1e-6), "of both batches"
    assert np.allclose(told["place"][:ROWS], batch["x"]) and np.allclose(told["true"][:ROWS], batch["y"])

    learner, batch = small_of("pinn", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "field")
    assert np.allclose(told["told"], learner.predict(batch)["u"], atol=1e-6)

    learner, batch = small_of("nerf", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "view")
    assert np.allclose(told["told"], learner.predict(batch)["rgb"], atol=1e-6)

    for family in ("dqn", "tabular"):
        learner, batch = small_of(family, small_data)
        ((told),) = arrays_of(looked_at(learner, batch), "returns")
        assert told["returns"].shape == (ROWS,)
        assert told["returns"].sum() == pytest.approx(evaluated(learner, batch)["return"]), "an episode each"

    learner, batch = small_of("mamba", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "places")
    assert told["losses"].mean() == pytest.approx(evaluated(learner, batch)["loss"] / ROWS, rel=1e-5)

    learner, batch = small_of("frn", small_data)
    ((told),) = arrays_of(looked_at(learner, batch), "series")
    assert np.allclose(told["true"], batch["y"][0]) and told["told"].shape == told["true"].shape


def test_attention_is_that_of_the_model(small_data: Path) -> None:
    learner, batch = small_of("gpt", small_data)
    layers = arrays_of(looked_at(learner, batch), "attention")
    assert len(layers) == min(4, learner.config.layers)
    for layer in layers:
        assert np.allclose(layer["shares"].sum(-1), 1, atol=1e-2) and not np.triu(layer["shares"], 1).any(), "causal"

    learner, batch = small_of("vit", small_data)
    entered: list[Tensor] = []
    attention = learner.blocks[0].attn
    attention.qkv.register_forward_hook(lambda *told: entered.append(told[2]))
    first, *_ = arrays_of(looked_at(learner, batch), "attention")
    q, k, _ = entered[-1][0].view(entered[-1].shape[1], 3, -1, attention.head_width).permute(1, 2, 0, 3)
    by_hand = (q @ k.mT / attention.head_width**0.5).softmax(-1)[:4, :48, :48].detach()
    assert np.allclose(first["shares"], by_hand, atol=1e-3)


def test_rows_that_fill_up_are_not_drawn_and_one_failure_loses_nothing_else() -> None:
    learner = SimpleNamespace(training=False)
    events: list[dict[str, Any]] = []
    pictures = Pictures(run_of(events, learner))
    made_for: list[str] = []

    def heat(value: float) -> dict[str, Tensor]:
        made_for.append("heat")
        return {"values": torch.full((2, 2), value)}

    with pictures.look(1, "test"):
        for batch, real in pictures.batches([(0.0, True), (1.0, True), (2.0, False)]):
            shown("heat", lambda batch=batch: heat(batch))  # type: ignore[misc]
            shown("returns", lambda batch=batch: {"returns": torch.tensor([batch])})  # type: ignore[misc]
            shown("beside", lambda: {"told": torch.zeros(1) + torch.zeros(2, 3).view(7)})
            shown("filters", lambda: {"filters": torch.zeros(0)})
            assert real == (batch < 2)
    assert arrays_of(events, "heat")[0]["values"].tolist() == [[0, 0], [0, 0]] and made_for == ["heat"], (
        "the first batch"
    )
    assert arrays_of(events, "returns")[0]["returns"].tolist() == [0, 1]
    (message,) = [event for event in events if event["kind"] == "message"]
    assert "beside (RuntimeError" in message["text"] and message["level"] == "warning"
    assert {event.get("drawing") for event in events} == {"heat", "returns", None}, "no shard of a weight"


def test_only_the_first_worker_tells_and_nobody_is_asked_in_training() -> None:
    for rank, training in ((1, False), (0, True)):
        events: list[dict[str, Any]] = []
        run = run_of(events, SimpleNamespace(training=training))
        run.rank = rank
        pictures = Pictures(run)
        with pictures.look(1, "test"):
            for _ in pictures.batches([(0, True)]):
                shown("heat", lambda: {"values": torch.zeros(2, 2)})
        assert events == []
    shown("heat", lambda: pytest.fail("nobody looks on"))


def test_a_weight_whose_parts_lie_on_other_ranks_is_left_out() -> None:
    """ZeRO-3 leaves a shell of it outside the forward pass."""
    learner = made({"family": "rbm", "inputs": [1, 8, 8], "hidden": 5})
    assert as_filters(learner.weight, (1, 8, 8)).shape == (5, 1, 8, 8)
    assert as_filters(torch.zeros(0), (1, 8, 8)).numel() == 0
    events: list[dict[str, Any]] = []
    with Pictures(run_of(events, learner.eval())).look(1, "test"):
        shown("filters", lambda: {"filters": as_filters(torch.zeros(0), (1, 8, 8))})
    assert events == []
