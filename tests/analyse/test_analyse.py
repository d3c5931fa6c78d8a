"""`distdl analyse`: what it finds is true where the truth is known beforehand, and the report needs nothing but itself."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import distdl
from distdl.analyse import attribution, features, flips, look, robustness
from distdl.analyse.methods import METHODS
from distdl.analyse.parts import parts_of
from distdl.analyse.probe import Inputs, Probe
from distdl.analyse.rows import Row, Sample
from distdl.analyse.subject import Subject
from distdl.data.preparation import undo
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.families import load_family, model_config
from tests.cli.test_predict import trained, written
from tests.conftest import Result
from tests.families.common import made
from tests.small import MODELS
from tests.small import written as data_set

Command = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("here")


def probe_of(model: dict[str, Any], rows: dict[str, np.ndarray], seed: int = 0) -> Probe:
    """A family with fresh weights as a function."""
    learner, config = made(model, seed), model_config(model)
    family = load_family(model["family"])
    return Probe.on(learner, family.asked(config), family.tells(config), rows, model["family"])


LINEAR = {"family": "mlp", "column": "x", "inputs": [5], "hidden": [], "classes": 3}
X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def looking(probe: Probe, rows: dict[str, np.ndarray]) -> look.Look:
    """A look at rows, of a model that came from no run."""
    ways = SimpleNamespace(record={}, tokenizer=None)
    model = SimpleNamespace(learner=probe.learner, ways=ways, batch=256, device=torch.device("cpu"))
    n = len(next(iter(rows.values())))
    sample = Sample([Row(f"row {i}", {name: column[i] for name, column in rows.items()}) for i in range(n)])
    return look.Look(model, probe, sample)  # type: ignore[arg-type]


# -- attributions -------------------------------------------------------------------------------------------------------


def test_the_slope_of_a_linear_model_is_its_weights() -> None:
    model = {**LINEAR, "classes": 2}
    probe = probe_of(model, {"x": X})
    inputs = probe.inputs({"x": X})
    weight = probe.learner.net[0].weight.detach()  # type: ignore[index, union-attr]
    (slope,) = attribution.saliency(probe, inputs)
    torch.testing.assert_close(slope, (weight[inputs.thing] - weight[1 - inputs.thing]).abs())


def test_log_odds_do_not_fade_where_the_model_is_sure() -> None:
    subject = Subject("probabilities", "log-odds", "label", truth="label")
    logits = torch.tensor([[40.0, 0.0, -10.0]], requires_grad=True)
    number = subject.number({"probabilities": logits.softmax(-1)}, torch.tensor([0]))
    assert number.item() == pytest.approx(40 - np.log(1 + np.exp(-10)), abs=1e-4)
    (slope,) = torch.autograd.grad(number.sum(), logits)
    assert slope[0, 0] == pytest.approx(1, abs=1e-5) and slope[0, 1] == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_integrated_gradients_are_complete(activation: str) -> None:
    """Sundararajan et al., proposition 1: they add up to the difference from the baseline."""
    probe = probe_of({**LINEAR, "hidden": [16, 16], "activation": activation}, {"x": 20 * X})
    inputs = probe.inputs({"x": 20 * X})
    baseline = (torch.from_numpy(X.mean(0, keepdims=True)).expand(6, 5),)
    shares = attribution.integrated(probe, inputs, baseline, batch=64)
    with torch.no_grad():
        row = probe.of(inputs)(*inputs.numbers, *inputs.more)
        start = probe.of(inputs)(*baseline, *inputs.more)
    difference = row - start
    torch.testing.assert_close(shares.values[0].sum(1), difference, rtol=0.011, atol=1e-3)
    assert float(difference.abs().max()) > 0.5, "there is something to share out"


def test_a_row_whose_parts_do_nothing_has_no_shares_of_them() -> None:
    probe = probe_of({**LINEAR, "hidden": [8]}, {"x": X})
    with torch.no_grad():
        probe.learner.net[0].weight[:, 3] = 0  # type: ignore[index, union-attr]
    inputs = probe.inputs({"x": X})
    baseline = attribution.baseline_of(probe, inputs, (torch.zeros(1, 5),))
    parts = parts_of(probe, inputs, {})
    shares = attribution.integrated(probe, inputs, baseline, 64).values
    for values in (
        shares,
        attribution.saliency(probe, inputs),
        attribution.occlusion(probe, inputs, baseline, parts, 64),
    ):
        told = parts.told(values, "sum")
        assert float(told[:, 3].abs().max()) == 0 and float(told[:, 0].abs().min()) > 0


SIZE = {"name": "size", "kind": "number", "indicator": True, "scale": {"method": "standard", "shift": 9, "divide": 4}}
TOWN = {"name": "town", "kind": "category", "encoding": "onehot", "levels": ["Bonn", "Rome"], "other": True}
RECORD = {"x": {"kind": "features", "features": [SIZE, TOWN]}}


def test_words_of_one_column_are_told_as_that_column() -> None:
    probe = probe_of(LINEAR, {"x": X})
    parts = parts_of(probe, probe.inputs({"x": X}), RECORD)
    assert parts.kind == "columns" and parts.names == ("size", "town")
    told = parts.told((torch.tensor([[1.0, 2, 3, 4, 5]]),), "sum")
    assert told.tolist() == [[3, 12]] and parts.told((torch.tensor([[1.0, 2, 9, 4, 5]]),), "amax").tolist() == [[2, 9]]


def test_pictures_that_are_bytes_are_read_as_the_family_reads_them() -> None:
    """lenet1989 makes numbers from -1 to 1 of bytes, and takes other numbers as they are."""
    image = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    for family in ("lenet1989", "cnn"):
        probe = probe_of(MODELS[family], {"image": image})
        assert probe.readings["image"] == ((2.0, -1.0) if family == "lenet1989" else (1.0, 0.0))
        inputs = probe.inputs({"image": image})
        assert float(inputs.numbers[0].min()) >= 0 and float(inputs.numbers[0].max()) <= 1
        said = probe.subject.numbers(probe.said(inputs, *inputs.numbers))
        raw = probe.learner.predict({"image": torch.from_numpy(image)})[probe.subject.name]
        torch.testing.assert_close(said, raw)


@pytest.mark.parametrize("family", ["gpt", "elman", "lstm", "mamba", "huggingface", "recnn", "rnn2"])
def test_vectors_in_the_place_of_tokens_say_what_the_tokens_say(family: str, small_data: Path) -> None:
    from tests.analyse.test_families import opened

    probe, rows = opened(family, small_data)
    assert probe.tokens
    inputs = probe.inputs({name: column[:1] for name, column in rows.items()})
    said = probe.of(inputs)(*inputs.numbers, *inputs.more)
    found = probe.learner.predict({n: torch.from_numpy(c[:1]) for n, c in rows.items()})
    torch.testing.assert_close(said.detach(), probe.subject.number(found, inputs.thing), rtol=1e-4, atol=1e-4)
    other = probe.of(inputs)(torch.zeros_like(inputs.numbers[0]), *inputs.more)
    assert (said - other).abs().item() > 1e-6, "and others say something else"


# -- attacks ------------------------------------------------------------------------------------------------------------


def test_fgsm_on_a_linear_model_is_the_closed_form() -> None:
    """x' = x - epsilon sign(w_true - w_other)."""
    label = np.array([0, 1, 0, 1, 1, 0])
    probe = probe_of({**LINEAR, "classes": 2}, {"x": X})
    seen = looking(probe, {"x": X, "label": label})
    weight = probe.learner.net[0].weight.detach()  # type: ignore[index, union-attr]
    true = torch.from_numpy(label)
    for epsilon in (0.01, 0.3):
        found = robustness.attacked(seen, seen.opened[0], epsilon, None)
        expected = torch.from_numpy(X) - epsilon * (weight[true] - weight[1 - true]).sign()
        torch.testing.assert_close(found["fgsm"][0], expected)
        torch.testing.assert_close(found["pgd"][0], expected, rtol=0, atol=1e-5)  # of a linear model there is no worse


def test_words_are_not_attacked() -> None:
    probe = probe_of({**LINEAR, "hidden": [8]}, {"x": X})
    seen = looking(probe, {"x": X, "label": np.array([0, 1, 2, 0, 1, 2])})
    seen.model.ways.record |= RECORD  # type: ignore[operator]
    found = robustness.attacked(seen, seen.opened[0], 0.3, robustness.changed(seen))
    for numbers in found.values():
        moved = (numbers[0] - seen.opened[0].inputs.numbers[0]).abs()
        assert 0.05 < float(moved[:, 0].max()) <= 0.3 + 1e-6
        assert float(moved[:, 1:].max()) == 0, "neither the town nor whether the size is empty"
    torch.testing.assert_close((found["fgsm"][0][:, 0] - torch.from_numpy(X)[:, 0]).abs(), torch.full((6,), 0.3))
    section = robustness.robustness(seen, (0.0, 0.5))
    assert next(t for t in section.tables if t.name == "robustness-units").rows == [("size", 2.0)]


def test_pieces_follow_the_number_that_is_attacked() -> None:
    """A model that reads the pieces alone is attacked through the number that they are made of."""
    scale = {"method": "standard", "shift": 10.0, "divide": 2.0}
    feature = {"name": "size", "kind": "number", "indicator": False, "scale": scale, "edges": [6.0, 9.0, 12.0, 16.0]}
    number = np.random.default_rng(2).uniform(-1.8, 2.8, 40)
    pieces = np.clip((number[:, None] - [-2, -0.5, 1]) / [1.5, 1.5, 2], 0, 1)
    x = np.column_stack([number, pieces, np.zeros(40)]).astype(np.float32)
    probe = probe_of({**LINEAR, "hidden": [8], "classes": 2}, {"x": x})
    probe.learner.net[0].weight.data[:, [0, 4]] = 0  # type: ignore[index, union-attr]
    seen = looking(probe, {"x": x, "label": np.arange(40) % 2})
    bit = {"name": "bit", "kind": "boolean", "indicator": False}
    seen.model.ways.record |= {"x": {"kind": "features", "features": [feature, bit]}}  # type: ignore[operator]
    for (numbers,) in robustness.attacked(seen, seen.opened[0], 0.2, robustness.changed(seen)).values():
        moved = numbers.numpy()
        assert 0.1 < np.abs(moved - x)[:, 0].max() <= 0.2 + 1e-6 and (moved[:, 4] == 0).all()
        expected = np.clip((moved[:, :1].astype(np.float64) - [-2, -0.5, 1]) / [1.5, 1.5, 2], 0, 1)
        np.testing.assert_allclose(moved[:, 1:4], expected, atol=1e-6)


def test_attacked_pictures_stay_pictures_within_epsilon() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    probe = probe_of(MODELS["cnn"], {"image": image})
    seen = looking(probe, {"image": image, "label": np.array([0, 1, 2, 3])})
    for numbers in robustness.attacked(seen, seen.opened[0], 0.1, None).values():
        moved = (numbers[0] - seen.opened[0].inputs.numbers[0]).abs()
        assert 0.05 < float(moved.max()) <= 0.1 + 1e-6
        assert float(numbers[0].min()) >= 0 and float(numbers[0].max()) <= 1


def test_pgd_is_never_weaker_than_fgsm() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    probe = probe_of({**LINEAR, "hidden": [32, 32]}, {"x": x}, seed=3)
    label = probe.inputs({"x": x}).thing.numpy()  # what it says is true: all right without a change
    found = robustness.robustness(looking(probe, {"x": x, "label": label}), (0.0, 0.05, 0.2, 0.5)).numbers
    assert found["clean"] == found["fgsm"][0] == found["pgd"][0] == 1
    assert all(p <= f for f, p in zip(found["fgsm"], found["pgd"])) and found["pgd"][-1] < found["pgd"][0]


def test_where_several_steps_find_nothing_the_one_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = probe_of({**LINEAR, "hidden": [32, 32]}, {"x": X})
    seen = looking(probe, {"x": X, "label": probe.inputs({"x": X}).thing.numpy()})
    attacked = robustness.attacked
    monkeypatch.setattr(robustness, "attacked", lambda *a: {**attacked(*a), "pgd": seen.opened[0].inputs.numbers})
    found = robustness.robustness(seen, (0.0, 2.0)).numbers
    assert found["pgd"] == found["fgsm"] and found["fgsm"][1] < 1


# -- tokens ---------------------------------------------------------------------------------------------------------------


def all_single(probe: Probe, row: dict[str, np.ndarray], tokens: list[int], thing: int) -> dict[tuple[int, int], float]:
    """(place, token) -> what it makes of the number that is explained, by asking about each."""
    found = {}
    for at in range(len(row["tokens"])):
        for token in tokens:
            other = row["tokens"].copy()
            other[at] = token
            said = probe.learner.predict({"tokens": torch.from_numpy(other[None])})
            found[at, token] = float(probe.subject.number(said, torch.tensor([thing])))
    return found


def test_the_token_that_is_replaced_is_the_worst_of_those_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(0, 6, (5, 7))
    probe = probe_of({**MODELS["gpt"], "vocabulary": 6}, {"tokens": tokens})
    with torch.no_grad():
        for parameter in probe.learner.parameters():
            parameter *= 3  # fresh weights say the same of everything
    monkeypatch.setattr(flips, "TRIED", 10_000)
    for row in ({"tokens": one} for one in tokens):
        right = int(probe.inputs({"tokens": row["tokens"][None]}).thing)
        found = flips.sought(probe, row, right, torch.arange(6))
        best = all_single(probe, row, list(range(6)), right)
        assert found.flips and best[found.flips[0][0], found.flips[0][2]] == pytest.approx(min(best.values()))
        other = row["tokens"].copy()
        for at, old, new in found.flips:
            assert other[at] == old != new
            other[at] = new
        told = int(probe.inputs({"tokens": other[None]}).thing)
        assert told == found.told and found.other == (told != right) and len(found.flips) <= flips.MOST
        assert len({at for at, _, _ in found.flips}) == len(found.flips), "no token is replaced twice"


def test_what_the_slope_promises_is_worth_more_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the replacements the slope chooses a few; the best of these is lower than the mean of all."""
    tokens = np.random.default_rng(1).integers(0, 6, (6, 7))
    probe = probe_of({**MODELS["lstm"], "inputs": 6}, {"tokens": tokens}, seed=2)
    monkeypatch.setattr(flips, "TRIED", 2)
    monkeypatch.setattr(flips, "MOST", 1)
    for row in ({"tokens": one} for one in tokens):
        right = int(probe.inputs({"tokens": row["tokens"][None]}).thing)
        ((at, _, new),) = flips.sought(probe, row, right, torch.arange(6)).flips
        single = all_single(probe, row, list(range(6)), right)
        assert single[at, new] < np.mean(list(single.values()))


def test_accuracy_falls_with_the_tokens_that_are_replaced(small_data: Path) -> None:
    from tests.analyse.test_families import opened

    probe, rows = opened("rnn2", small_data)
    told = probe.subject.told(probe.answer(probe.tensors(rows))).numpy()
    label = np.array([told[0], *((told[1:] + 1) % 2)]) if len(told) > 1 else told
    seen = looking(probe, {**rows, probe.subject.truth: label})
    found = flips.flips(seen)
    kept = found.numbers["hotflip"]
    assert found.numbers["measure"] == "accuracy" and kept[0] == pytest.approx(np.mean(told == label))
    assert all(b <= a for a, b in itertools.pairwise(kept)) and found.numbers["tokens_replaced"] == [0, 1, 2, 3, 4]
    assert len(found.tables[1].rows) == len(label)


# -- slopes of families that once had none ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["pinn", "navier_stokes", "som", "concepts", "clv_agent"])
def test_slopes_are_those_of_small_differences(case: str, small_data: Path) -> None:
    from tests.analyse.test_families import opened

    if case == "navier_stokes":
        x = np.random.default_rng(0).uniform(1, 2, (3, 3)).astype(np.float32)
        probe, rows = probe_of({"family": "pinn", "equation": case, "layers": 2, "width": 8}, {"x": x}), {"x": x}
    else:
        probe, rows = opened(case, small_data)
    assert not probe.no_gradient
    inputs = probe.inputs({name: column[:3] for name, column in rows.items()})
    probe.learner.double()
    numbers = tuple(n.double() for n in inputs.numbers)
    inputs = Inputs(numbers, inputs.fixed, inputs.thing, inputs.place)
    slope = attribution.saliency(probe, inputs)
    along = tuple(torch.randn(n.shape, generator=torch.Generator().manual_seed(0), dtype=n.dtype) for n in numbers)
    signed = signed_slopes(probe, inputs)
    assert all(torch.equal(a, b.abs()) for a, b in zip(slope, signed)) and float(slope[0].max()) > 0
    function, by = probe.of(inputs), 1e-5
    off = 0.05 if case == "concepts" else 1e-3  # its logits are of single precision
    with torch.no_grad():
        up, down = (
            function(*(n + sign * by * a for n, a in zip(numbers, along)), *inputs.more) for sign in (1.0, -1.0)
        )
    expected = sum((s * a).flatten(1).sum(1) for s, a in zip(signed, along))
    torch.testing.assert_close((up - down) / (2 * by), expected, rtol=off, atol=off)


def signed_slopes(probe: Probe, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    numbers = tuple(n.clone().requires_grad_() for n in inputs.numbers)
    return torch.autograd.grad(probe.of(inputs)(*numbers, *inputs.more).sum(), numbers)


def test_a_family_without_a_slope_says_why(small_data: Path) -> None:
    from tests.analyse.test_families import opened

    for family, why in {"mcp": "at a threshold", "perceptron": "association: 0", "snn": "code: current"}.items():
        assert why in opened(family, small_data)[0].no_gradient
    image = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    for family, more in {"perceptron": {"association": 0, "average": False}, "snn": {"code": "current"}}.items():
        probe = probe_of({**MODELS[family], **more}, {"image": image})
        with torch.no_grad():
            for parameter in probe.learner.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        assert not Probe.on(probe.learner, probe.asked, probe.tells, {"image": image}, family).no_gradient


# -- a table ------------------------------------------------------------------------------------------------------------

TOWNS = ("Bonn", "Rome", "Oslo", "Wien")


def people(n: int, seed: int) -> list[dict[str, Any]]:
    """Rows whose class hangs on the town alone; of those from Oslo in group b the label is turned round."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        town, group = str(rng.choice(TOWNS)), str(rng.choice(["a", "b"]))
        south = town in ("Rome", "Wien") or (town == "Oslo" and group == "b")
        age, size = round(float(rng.uniform(18, 80)), 1), round(float(rng.normal(170, 10)), 1)
        found.append({"age": age, "town": town, "size": size, "group": group, "class": "south" if south else "north"})
    return found


@pytest.fixture(scope="module")
def table(place: Path) -> Path:
    """The folder of a run on such rows, without the column `group`; its report on all held-out rows, and on a new file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        written(place / "people.csv", people(500, 0), "age", "town", "size", "group", "class")
        prepare_dataset("csv", "people", {"path": "people.csv", "label": "class", "drop": "group"})
        model = {"family": "mlp", "column": "x", "inputs": [6], "hidden": [16], "classes": 2}
        trained("people", model, place / "people")
        written(place / "new.csv", people(200, 1), "age", "town", "size", "group", "class")
    return place / "runs" / "people"


@pytest.fixture(scope="module")
def report(table: Path) -> Path:
    from distdl.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(table.parent.parent)
        assert main(["analyse", "people", "--rows", "1000", "--split", "test"]) == 0
    return table / "analysis"


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder: Path) -> Any:
    return json.loads((folder / "analysis.json").read_text())


@pytest.mark.slow
def test_a_table_whose_label_hangs_on_one_column_says_so(report: Path) -> None:
    methods = numbers(report)["methods"]
    for method in ("saliency", "integrated_gradients", "occlusion"):
        share = methods[method]["share"]
        assert set(share) == {"age", "town", "size"} and share["town"] > 0.8, (method, share)
        assert sum(share.values()) == pytest.approx(1)
    rows = table_of(report / "integrated_gradients-mean.csv")
    assert rows[0]["column"] == "town"
    assert float(rows[0]["share of all"]) == methods["integrated_gradients"]["share"]["town"]
    assert "no convolution" in methods["gradcam"]["refused"]


def test_the_accuracy_without_a_change_is_that_of_evaluate(report: Path, command: Command) -> None:
    told = json.loads(command("evaluate", "people", "--split", "test", "--json").stdout)
    found = numbers(report)
    assert found["rows"] == found["rows_there"] > 30
    robust = found["methods"]["robustness"]
    assert robust["clean"] == pytest.approx(told["metrics"]["accuracy"], abs=1e-12)
    assert 0.6 < robust["clean"] < 1, "Oslo cannot be told from what it reads"
    (whole,) = found["methods"]["groups"].values()
    assert whole["metrics"]["accuracy"] == pytest.approx(robust["clean"], abs=1e-12)
    assert all(p <= f for f, p in zip(robust["fgsm"], robust["pgd"]))
    rows = table_of(report / "robustness.csv")
    assert [float(row["FGSM"]) for row in rows] == robust["fgsm"]


def test_of_a_table_only_numbers_are_attacked_and_epsilon_is_told_in_their_units(report: Path, table: Path) -> None:
    rows = {row["column"]: row for row in table_of(report / "robustness-units.csv")}
    assert set(rows) == {"age", "size"}
    ages = [person["age"] for person in people(500, 0)]
    assert float(rows["age"]["epsilon 0.1"]) == pytest.approx(0.1 * np.std(ages), rel=0.1)
    robust = numbers(report)["methods"]["robustness"]
    assert robust["pgd"][-1] > robust["clean"] - 0.15, "the town, which decides, cannot be changed a little"


def test_error_by_group_is_that_of_evaluate_by(table: Path, command: Command) -> None:
    done = command("analyse", "people", "new.csv", "--by", "group", "--methods", "groups", "--output", "by-group")
    assert done.code == 0, done.stderr
    told = json.loads(command("evaluate", "people", "--data", "new.csv", "--by", "group", "--json").stdout)
    found = numbers(Path("by-group"))["methods"]["groups"]["new.csv"]
    assert found["groups"] == told["groups"] and set(found["groups"]) == {"a", "b"}
    rows = {row["group"]: row for row in table_of(Path("by-group/groups-by.csv"))}
    assert float(rows["b"]["accuracy"]) == told["groups"]["b"]["accuracy"]


def test_error_by_group_of_the_runs_own_split_needs_no_file(table: Path, command: Command) -> None:
    """The record in the data set says which town each row had, and what the label is called in the file."""
    for by in ("town", "class"):
        done = command("analyse", "people", "--by", by, "--methods", "groups", "--output", f"own-{by}")
        assert done.code == 0, done.stderr
    (towns,) = numbers(Path("own-town"))["methods"]["groups"].values()
    test = Dataset("people", "test")
    rows = test.gather(np.arange(test.rows))
    lived = np.array([row["town"] for row in undo(test.manifest.preparation["x"], rows["x"])])
    assert {town: int(group["rows"]) for town, group in towns["groups"].items()} == {
        town: int((lived == town).sum()) for town in TOWNS
    }
    told = distdl.load(table).predict({"x": torch.from_numpy(rows["x"])})["class"].numpy()
    right = told == rows["label"]
    for town, group in towns["groups"].items():
        assert group["accuracy"] == pytest.approx(right[lived == town].mean()), town
    assert towns["groups"]["Oslo"]["accuracy"] < 0.8 < towns["groups"]["Bonn"]["accuracy"]
    (classes,) = numbers(Path("own-class"))["methods"]["groups"].values()
    assert set(classes["groups"]) == {"north", "south"}
    done = command("predict", "people", "people", "--keep", "town,age", "--format", "jsonl")
    kept = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["town"] for row in kept] == lived.tolist()
    assert {row["age"] for row in kept} <= {person["age"] for person in people(500, 0)}, "as the file had them"


def test_a_row_that_was_learned_from_is_its_own_nearest_neighbour(table: Path, command: Command) -> None:
    done = command("analyse", "people", "--split", "train", "--rows", 20, "--methods", "neighbours", "-o", "near")
    assert done.code == 0, done.stderr
    rows = [row for row in table_of(Path("near/neighbours.csv")) if row["nearest"] == "1"]
    assert len(rows) == 20 and all(float(row["distance"]) < 1e-6 for row in rows)
    same = [row["row"] == f"row {row['row of the training split']}" for row in rows]
    assert np.mean(same) > 0.9, "but for rows that say the same"


def test_the_page_loads_nothing_and_says_what_each_method_cannot_show(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page and "<link" not in page and "@import" not in page
    sources = re.findall(r"""\bsrc\s*=\s*["']([^"']*)""", page)
    assert len(sources) >= 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page and "srcset" not in page
    links = re.findall(r'<a href="(https?://[^"]*)"', page)
    assert sorted(links) == sorted(method.address for method in METHODS.values())
    assert len(re.findall(r"https?://", re.sub(r'<a href="[^"]*">', "", page))) == 0
    for method in METHODS.values():
        assert method.title in page
    assert "It does not apply here: no convolution of it makes a map of its input." in page


def test_words_of_the_data_are_no_html(table: Path, command: Command) -> None:
    rows = people(40, 2)
    rows[0]["town"] = "<script>alert(1)</script>"
    written(Path("evil<b>.csv"), rows, "age", "town", "size", "group", "class")
    done = command("analyse", "people", "evil<b>.csv", "--methods", "saliency,groups", "--by", "town", "-o", "evil")
    assert done.code == 0, done.stderr
    page = Path("evil/report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "evil<b>" not in page


def test_mistakes_are_told_in_words(table: Path, command: Command) -> None:
    wrong = {
        ("--methods", "salency"): "did you mean 'saliency'",
        ("--by", "group"): "has no column 'group' of one value a row",  # left out when it was prepared
        ("--by", "town", "--methods", "saliency"): "--by town is about the method groups",
        ("--rows", "0"): "--rows is 0",
        ("nofile.csv",): "nofile.csv",
        ("new.csv", "--by", "twon"): "twon",
    }
    for args, said in wrong.items():
        done = command("analyse", "people", *args, "-o", "wrong")
        assert done.code == 2 and said in done.stderr and "Traceback" not in done.stderr, (args, done.stderr)
    assert command("analyse", "people", "--methods", "saliency", "-o", "twice").code == 0
    done = command("analyse", "people", "--methods", "saliency", "-o", "twice")
    assert done.code == 2 and "is there already" in done.stderr and "--overwrite" in done.stderr
    assert command("analyse", "people", "--methods", "occlusion", "-o", "twice", "--overwrite").code == 0
    assert not list(Path("twice").glob("saliency*")), "numbers of another report are gone"
    Path("mine").mkdir()
    Path("mine/saliency.csv").write_text("not of a report")
    done = command("analyse", "people", "--methods", "saliency", "-o", "mine")
    assert done.code == 2 and "mine/saliency.csv is there already" in done.stderr
    assert Path("mine/saliency.csv").read_text() == "not of a report"


def test_rows_that_cannot_be_read_are_named_and_the_rest_is_done(table: Path, command: Command) -> None:
    rows = people(30, 3)
    rows[4]["age"] = "old"
    written(Path("bad.csv"), rows, "age", "town", "size", "class")
    done = command("analyse", "people", "bad.csv", "--methods", "saliency", "-o", "bad")
    assert done.code == 1 and "bad.csv:6" in done.stderr and "'old'" in done.stderr
    found = numbers(Path("bad"))
    assert found["rows"] == 29 and found["rows_set_aside"] == 1


def test_the_rows_are_drawn_evenly_and_alike_for_a_seed(table: Path, command: Command) -> None:
    named = {}
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        command("analyse", "people", "new.csv", "--rows", 30, "--seed", seed, "--methods", "saliency", "-o", folder)
        named[folder] = [int(answer["row"].split()[1]) for answer in numbers(Path(folder))["answers"]]
    assert named["one"] == named["two"] != named["three"]
    assert named["one"] == sorted(set(named["one"])) and len(named["one"]) == 30
    assert min(named["one"]) < 60 and max(named["one"]) > 140


def test_without_truth_what_needs_it_says_so(table: Path, command: Command) -> None:
    written(Path("blind.csv"), people(20, 4), "age", "town", "size")
    done = command("analyse", "people", "blind.csv", "--methods", "saliency,robustness,groups", "-o", "blind")
    assert done.code == 0, done.stderr
    methods = numbers(Path("blind"))["methods"]
    assert "share" in methods["saliency"] and "not known what is true" in methods["robustness"]["refused"]
    assert methods["groups"]["refused"]


# -- a number, pictures, series -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_number_is_explained_in_the_units_of_the_file(place: Path, command: Command) -> None:
    rng = np.random.default_rng(0)
    rows = [{"size": s, "noise": n, "price": 1000 * s} for s, n in rng.uniform(10, 90, (300, 2)).round(2).tolist()]
    written(place / "prices.csv", rows, "size", "noise", "price")
    prepare_dataset("csv", "prices", {"path": "prices.csv", "target": "price"})
    model = {"family": "mlp", "column": "x", "inputs": [2], "hidden": [16], "target": "value"}
    trained("prices", model, place / "prices")
    done = command("analyse", "prices", "--rows", 500)
    assert done.code == 0, done.stderr
    found = numbers(place / "runs" / "prices" / "analysis")
    assert found["methods"]["integrated_gradients"]["share"]["size"] > 0.9
    told = json.loads(command("evaluate", "prices", "--json").stdout)["metrics"]
    assert found["methods"]["robustness"]["clean"] == pytest.approx(told["rmse"], rel=1e-4)
    assert found["methods"]["robustness"]["pgd"][-1] > 2 * told["rmse"]
    answers = [answer["answer"] for answer in found["answers"]]
    assert min(answers) > 5_000 and max(answers) < 100_000


CORNER = (slice(0, 4), slice(0, 4))


@pytest.fixture(scope="module")
def corner(place: Path) -> Path:
    """The report on pictures of noise, of which those of the class 1 have a bright upper left corner."""
    from distdl.cli.main import main

    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        image = rng.integers(0, 120, (300, 1, 16, 16), dtype=np.uint8)
        label = rng.integers(0, 2, 300)
        image[label == 1, 0, 0:4, 0:4] = 250
        data_set(place / "corner", {"image": image, "label": label})
        model = {"family": "cnn", "image": [1, 16, 16], "stages": [[8, 3, 1], [8, 3, 2]], "dense": [], "average": True}
        model["classes"] = 2
        trained("corner", model, place / "corner", steps=60)
        assert main(["analyse", "corner", "--rows", "60"]) == 0
    return place / "runs" / "corner" / "analysis"


@pytest.mark.slow
def test_a_picture_whose_class_is_one_corner_has_its_maps_there(corner: Path) -> None:
    found = numbers(corner)
    assert found["methods"]["robustness"]["clean"] == 1
    bright = np.array([answer["told"] == "1" for answer in found["answers"]])
    with np.load(corner / "arrays.npz") as arrays:
        for method in ("gradcam", "occlusion", "integrated_gradients"):
            maps = arrays[f"{method}_maps"][bright].clip(min=0)  # what speaks for the class
            assert maps.shape[1:] == (16, 16)
            inside = maps[:, CORNER[0], CORNER[1]].mean((1, 2))
            outside = (maps.sum((1, 2)) - maps[:, CORNER[0], CORNER[1]].sum((1, 2))) / (256 - 16)
            assert (inside > 3 * outside).mean() > 0.9, method
        inputs = arrays["features_inputs"]
    assert inputs.shape == (2, 1, 16, 16) and inputs.min() >= 0 and inputs.max() <= 1
    assert inputs[1, 0][CORNER].mean() > inputs[0, 0][CORNER].mean() + 0.3, (
        "bright for the class 1, dark for the class 0"
    )


@pytest.mark.slow
def test_the_page_of_pictures_shows_them(corner: Path) -> None:
    page = (corner / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 7 and "The last convolution is the layer" in page
    near = numbers(corner)["methods"]["neighbours"]
    assert near["share_of_the_same_class"] > 0.95 and near["reference_rows"] == near["training_rows"] == 300


def test_the_ascent_of_a_seed_is_the_same_again_and_goes_up() -> None:
    probe = probe_of({**LINEAR, "hidden": [8]}, {"x": X})
    with torch.no_grad():
        for parameter in probe.learner.parameters():
            parameter *= 4  # fresh weights are flat
    seen = looking(probe, {"x": X})
    start = Inputs((torch.zeros(3, 5),), (), torch.arange(3))
    (one,), before, after = features.ascended(seen, start)
    (two,), _, _ = features.ascended(seen, start)
    assert torch.equal(one, two) and (after > before + 2).all()


@pytest.mark.slow
def test_a_text_is_explained_token_by_token(place: Path, command: Command, text: str) -> None:
    model = {**MODELS["gpt"]}
    trained("writer", model, Path(text), steps=4)
    Path("lines.txt").write_text("import os\n<b>def f(x):\n")
    done = command("analyse", "writer", "lines.txt", "-o", "writer")
    assert done.code == 0, done.stderr
    rows = table_of(Path("writer/integrated_gradients.csv"))
    first = [row for row in rows if row["row"] == "import os"]
    assert "".join(row["token"] for row in first) == "import os"
    sums = {row["row"]: row for row in table_of(Path("writer/integrated_gradients-completeness.csv"))}
    total = sum(float(row["attribution"]) for row in first)
    whole = sums["import os"]
    assert total == pytest.approx(float(whole["answer"]) - float(whole["answer to the baseline"]), abs=0.02)
    page = Path("writer/report.html").read_text()
    assert "<b>def" not in page and "no token lies a little beside another" in page
    robust = numbers(Path("writer"))["methods"]["robustness"]
    assert robust["measure"] == "share of answers that stay" and robust["clean"] == 1
    lines = table_of(Path("writer/robustness-rows.csv"))
    assert len(lines) == 2 and all(line["told then"] for line in lines)


def test_a_series_is_explained_over_time() -> None:
    """The class of a row is that of its last step: what lies long before has less to do with it."""
    model = {"family": "gru", "task": "values", "inputs": 2, "steps": 12, "units": 6}
    x = np.random.default_rng(0).normal(size=(3, 12, 2)).astype(np.float32)
    probe = probe_of(model, {"x": x})
    inputs = probe.inputs({"x": x})
    parts = parts_of(probe, inputs, {})
    assert parts.kind == "steps" and parts.shape == (12,)
    baseline = attribution.baseline_of(probe, inputs, (torch.zeros(1, 1, 2),))
    for values in (attribution.saliency(probe, inputs), attribution.occlusion(probe, inputs, baseline, parts, 64)):
        told = parts.told(tuple(v.abs() for v in values), "amax")
        assert bool((told[:, -1] > 3 * told[:, 0]).all())


@pytest.mark.slow
def test_a_family_without_one_number_of_its_answer_is_refused(place: Path, command: Command, digits: str) -> None:
    trained("ae", {**MODELS["autoencoder"]}, Path(digits), steps=2)
    done = command("analyse", "ae")
    assert done.code == 2 and "its answer is a picture and an embedding" in done.stderr and "fix:" in done.stderr


def test_without_captum_the_command_says_how_to_get_it(
    table: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "captum.attr", None)
    done = command("analyse", "people", "-o", "none")
    assert done.code == 2 and "pip install 'distdl[analyse]'" in done.stderr
    assert not Path("none").exists()
