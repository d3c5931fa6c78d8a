"""`distdl parity`: a cell is equal, differs, failed or refused, and the command fails where it must."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.errors import TrainingFailed
from distdl.parity import matrix, processes
from distdl.parity.cell import Cell, compare
from distdl.parity.layouts import data_ranks, laid_out
from distdl.parity.passes import nudged, on_layout, passes
from distdl.parity.rounded import summed_in_parts
from distdl.train.survey import model_facts, survey
from tests.conftest import REPOSITORY, Result
from tests.small import shipped, small_config

WEIGHT = "weights/ln.weight"
CURVE: dict[str, Any] = {
    "loss": [2.0, 1.0],
    "norm": [0.5, 0.25],
    "evaluation": {"accuracy": 0.5},
    "positions": [],
    "start": {WEIGHT: torch.ones(4)},
    "end": {WEIGHT: torch.tensor([1.0, 1.1, 0.9, 1.0])},
}
SIZE = 2**0.5 / 10
"""Length of its movement."""


@pytest.fixture
def config_file(digits: str, tmp_path: Path) -> str:
    """configs/families/mlp.yaml on a data set that is there."""
    path = tmp_path / "mlp.yaml"
    text = shipped("mlp").read_text(encoding="utf-8")
    path.write_text(text.replace("path: data/digits", f"path: {digits}"), encoding="utf-8")
    return str(path)


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Curves by layout instead of processes that train, the same for all passes; CURVE where a layout is not in it."""
    told: dict[str, dict[str, Any]] = {}

    def curves(world: int, cases: dict[str, Any], timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, runs in cases.items():
            result = told.get(name, CURVE)
            yield name, result if "error" in result else dict.fromkeys(runs, result)

    monkeypatch.setattr(matrix, "curves", curves)
    return told


# -- the real thing ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_layouts_that_are_equal(command: Callable[..., Result], config_file: str, tmp_path: Path) -> None:
    report = tmp_path / "cells.json"
    asked = ("--layouts", "zero1,zero1+tensor2", "--worlds", "2", "--json", report)
    code, out, _ = command("parity", config_file, *asked)
    assert code == 0, out
    lines = out.splitlines()
    assert lines[0].startswith("mlp, 3,466 parameters, 20 steps, clipped at half the first gradient;")
    assert [line.split()[0] for line in lines[1:]] == ["layout", "zero1", "zero1+tensor2", "2"]
    assert lines[-1] == "2 equal"
    cells = json.loads(report.read_text())
    assert [(cell["layout"], cell["world"], cell["status"]) for cell in cells] == [
        ("zero1", 2, "equal"),
        ("zero1+tensor2", 2, "equal"),
    ]
    for cell in cells:
        assert 0 <= cell["loss"] < 1e-5 and 0 <= cell["norm"] < 1e-3 and 0 <= cell["evaluation"] < 1e-5
        assert 0 <= cell["own"] < 5e-3 and 0 <= cell["sgd"] < 2e-4 and 0 <= cell["long"] < 5e-3
        assert cell["reason"] == "" and cell["furthest"]


def small_run(digits: str, **changes: Any) -> dict[str, Any]:
    return small_config("mlp", digits, "", train__steps=2, **changes)


@pytest.mark.slow
def test_a_case_that_dies_costs_itself_only(digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rank vanishes without a word; the cases after it have the numbers that they have alone."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if len(sys.argv) and 'RANK' in os.environ:\n"
        "    import distdl.train.worker as worker\n"
        "    build = worker.build_learner\n"
        "    def made(config, *rest):\n"
        "        if config.seed == 666 and os.environ['RANK'] == '1':\n"
        "            os._exit(9)\n"
        "        return build(config, *rest)\n"
        "    worker.build_learner = made\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    values = laid_out(small_run(digits), "torch", 2)
    cases = {"dies": values | {"seed": 666}, "well": values, "well too": values}
    found = dict(processes.curves(2, {name: {"own": case} for name, case in cases.items()}, 100))
    assert list(found) == list(cases)
    assert found["dies"]["error"]  # that of the rank which lost its neighbour, if it noticed in time
    well, too = found["well"]["own"], found["well too"]["own"]
    assert well["loss"] == too["loss"] and len(well["loss"]) == 2
    assert all(torch.equal(tensor, too["end"][name]) for name, tensor in well["end"].items())


@pytest.mark.slow
def test_a_gradient_norm_is_told_where_the_guard_is_off(digits: str) -> None:
    values = laid_out(small_run(digits, train__clip_norm=0.5, guard__nonfinite=False), "zero0", 1)
    told = dict(processes.curves(1, {"zero0": {"own": values}}, 100))["zero0"]["own"]
    assert len(told["norm"]) == 2 and all(norm > 0 for norm in told["norm"])


WITHOUT_TENSORS = {"own": {"loss": [1.0], "start": {}, "end": {}}}


# -- processes that end badly ------------------------------------------------------------------------------------------


def wait_for(code: str, folder: Path, timeout_s: float) -> dict[str, Any]:
    with (folder / "output").open("wb") as output:
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    try:
        return processes._wait(folder, 0, [process], timeout_s)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("code", "timeout_s", "result"),
    [
        ("open('case-0.json', 'w').write('{\"own\": {\"loss\": [1.0]}}')", 30, WITHOUT_TENSORS),
        ("import os; os._exit(7)", 30, {"error": "a process died: it said nothing"}),
        ("print('one'); print('out of memory'); raise SystemExit(1)", 30, {"error": "a process died: out of memory"}),
        ("import os; os.kill(os.getpid(), 9)", 30, {"error": "a process died: it said nothing"}),
        ("import time; time.sleep(60)", 0.5, {"error": "did not end within 0 s"}),
    ],
)
def test_how_a_case_ends(code: str, timeout_s: float, result: dict[str, Any], tmp_path: Path) -> None:
    begin = time.monotonic()
    assert wait_for(code, tmp_path, timeout_s) == result
    assert time.monotonic() - begin < 20


def test_the_first_failure_counts(tmp_path: Path) -> None:
    """The others lose a connection because of it."""
    for rank, (when, what) in enumerate([(5.0, "connection reset"), (4.0, "ValueError: the cause")]):
        (tmp_path / f"failed-{rank}.json").write_text(json.dumps({"time": when, "error": what}))
    assert wait_for("import os; os._exit(1)", tmp_path, 30) == {"error": "ValueError: the cause"}


# -- what the command makes of them ------------------------------------------------------------------------------------


def test_a_layout_that_differs_fails_the_command(
    command: Callable[..., Result], config_file: str, invented: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    invented["zero2"] = CURVE | {"loss": [2.0, 1.0 + 2e-5]}
    report = tmp_path / "cells.json"
    code, out, _ = command("parity", config_file, "--layouts", "zero1,zero2", "--worlds", "2", "--json", report)
    assert code == 1
    assert out.splitlines()[-1] == "1 equal, 1 differs"
    (bad,) = [line for line in out.splitlines() if "DIFFERS" in line]
    assert bad.split()[:8] == ["zero2", "2", "2.0e-05", *["0.0e+00"] * 5]
    assert bad.endswith("DIFFERS: the loss differs by 2.0e-05, and 1e-05 is allowed")
    assert [cell["status"] for cell in json.loads(report.read_text())] == ["equal", "differs"]


def test_a_layout_that_fails_fails_the_command_and_the_others_run(
    command: Callable[..., Result], config_file: str, invented: dict[str, dict[str, Any]]
) -> None:
    invented["zero1"] = {"error": "a process died: killed\nby the kernel"}
    code, out, _ = command("parity", config_file, "--layouts", "zero1,zero2", "--worlds", "2")
    assert code == 1
    assert "  failed: a process died: killed\n" in out
    assert out.splitlines()[-1] == "1 equal, 1 failed"


@pytest.mark.parametrize("run", ["first", "own", "sgd"])
def test_a_reference_that_fails_is_no_proof(
    command: Callable[..., Result], config_file: str, invented: dict[str, dict[str, Any]], run: str
) -> None:
    invented[run] = {"error": "ValueError: no"}
    code, _, err = command("parity", config_file, "--layouts", "zero1", "--worlds", "2")
    assert code == TrainingFailed.exit_code == 1
    assert "the reference, one process of plain PyTorch, does not run: ValueError: no" in err


def test_a_family_that_does_not_run_in_16_bits_is_compared_without(
    command: Callable[..., Result], config_file: str, invented: dict[str, dict[str, Any]]
) -> None:
    invented["long 128"] = {"error": "ValueError: no bf16\nhere"}
    code, out, _ = command("parity", config_file, "--layouts", "zero1", "--worlds", "2")
    assert code == 0 and "  refused: the reference does not run in bf16: ValueError: no bf16\n" in out
    assert out.splitlines()[-1] == "1 equal, 1 refused"


def test_refused_cells_carry_the_reason(
    command: Callable[..., Result], config_file: str, invented: dict[str, dict[str, Any]]
) -> None:
    names = "zero3+pipeline2,zero1+sequence2,zero1+pipeline2,zero1+tensor3"
    code, out, _ = command("parity", config_file, "--layouts", names, "--worlds", "2")
    assert code == 0
    assert "ZeRO-3 would scatter after each" in out
    assert "refused: the family mlp does not declare sequence parallelism" in out
    assert "refused: 2 workers cannot be laid out as tensor 3" in out
    assert out.splitlines()[-1] == "1 equal, 3 refused"


def test_all_layouts_are_tried_where_none_is_named(
    command: Callable[..., Result], config_file: str, invented: dict[str, dict[str, Any]]
) -> None:
    _, out, _ = command("parity", config_file, "--worlds", "1,2")
    tried = [tuple(line.split()[:2]) for line in out.splitlines()[2:-1]]
    one = [(f"zero{stage}", "1") for stage in range(4)]
    two = [(name, "2") for name in ("torch", "zero0", "zero1", "zero2", "zero3")]
    two += [(f"zero{stage}+{axis}2", "2") for axis in ("pipeline", "tensor") for stage in range(4)]
    two += [("+sequence", "2"), ("+expert", "2")]  # one line each, that the family has no such axis
    assert sorted(tried) == sorted(one + two)
    assert out.splitlines()[-1] == "14 equal, 5 refused"  # among them ZeRO-0, 2 and 3 in a pipeline


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--layouts", "zero4"), "--layouts zero4: no such layout"),
        (("--layouts", "zero1,tensor2"), "--layouts tensor2: no such layout"),
        (("--layouts", "zero1+tenser2"), "--layouts zero1+tenser2: no such layout"),
        (("--layouts", "zero1+tensor"), "--layouts zero1+tensor: no such layout"),
        (("--layouts", "zero1+tensor0"), "--layouts zero1+tensor0: no such layout"),
        (("--layouts", "torch+tensor2"), "--layouts torch+tensor2: no such layout"),
        (("--layouts", "torch2"), "--layouts torch2: no such layout"),
        (("--layouts", "zero1+tensor2+tensor4"), "no such layout"),
        (("--layouts", "zero1,"), "no such layout"),
        (("--layouts", "torch", "--worlds", "1"), "--layouts torch --worlds 1: that is the reference itself"),
        (("--worlds", "3"), "--worlds 3: the rehearsal has 16 samples a step"),
        (("--worlds", "0"), "--worlds 0: the rehearsal"),
        (("--worlds", "two"), "--worlds two"),
        (("--worlds", "2,,4"), "--worlds 2,,4"),
    ],
)
def test_what_is_no_layout_or_number_is_refused(
    command: Callable[..., Result], config_file: str, asked: tuple[str, str], said: str
) -> None:
    code, _, err = command("parity", config_file, *asked)
    assert code == 2 and said in err
    assert "    allowed: " in err or "    fix: " in err


def test_a_report_that_cannot_be_written_is_told_before_anything_runs(
    command: Callable[..., Result], config_file: str, tmp_path: Path
) -> None:
    code, out, err = command("parity", config_file, "--worlds", "1", "--json", tmp_path / "no" / "cells.json")
    assert code == 2 and "--json" in err and "zero1" not in out and "fix: " in err


# -- a cell ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "precision", "status"),
    [
        ({}, "fp32", "equal"),
        ({"loss": [2.0, 1.0 + 5e-6]}, "fp32", "equal"),
        ({"loss": [2.0 - 2e-5, 1.0]}, "fp32", "differs"),
        ({"loss": [2.0 - 2e-5, 1.0]}, "bf16", "equal"),
        ({"loss": [2.0, float("nan")]}, "fp32", "differs"),
        ({"norm": [0.5, 0.25 * 1.002]}, "fp32", "differs"),
        ({"norm": [0.5, None]}, "fp32", "differs"),
        ({"norm": [float("nan"), 0.25]}, "fp32", "differs"),
        ({"evaluation": {"accuracy": 0.51}}, "fp32", "differs"),
        ({"evaluation": {"accuracy": float("nan")}}, "fp32", "differs"),
    ],
)
def test_when_two_curves_are_the_same(change: dict[str, Any], precision: str, status: str) -> None:
    assert compare("zero1", 2, {"own": CURVE}, {"own": CURVE | change}, precision).status == status


def moved(*by: float) -> dict[str, Any]:
    return CURVE | {"end": {WEIGHT: CURVE["end"][WEIGHT] + torch.tensor(by)}}


@pytest.mark.parametrize(
    ("run", "change", "said"),
    [
        ("own", moved(3e-3 * SIZE, 0, 0, 0), ""),
        ("own", moved(6e-3 * SIZE, 0, 0, 0), "the movement of ln.weight differs by 6.0e-03, and 0.005 is allowed"),
        ("sgd", moved(1e-4 * SIZE, 0, 0, 0), ""),
        ("sgd", moved(1e-3 * SIZE, 0, 0, 0), "the movement of ln.weight with plain SGD differs by 1.0e-03"),
        ("long 128", moved(4e-3 * SIZE, 0, 0, 0), ""),
        ("long 128", moved(6e-3 * SIZE, 0, 0, 0), "in bf16 after a long accumulation differs by 6.0e-03"),
        ("sgd", moved(float("nan"), 0, 0, 0), "by inf"),
        ("sgd", CURVE | {"end": {}}, "by inf"),
        ("sgd", CURVE | {"end": {WEIGHT: torch.ones(5)}}, "by inf"),
        ("sgd", CURVE | {"start": {WEIGHT: torch.ones(4) * 1.001}}, "the initial ln.weight with plain SGD differs"),
    ],
)
def test_when_weights_have_moved_alike(run: str, change: dict[str, Any], said: str) -> None:
    cell = compare("zero1", 2, {run: CURVE, f"{run} rounded": CURVE}, {run: change}, "fp32")
    assert cell.status == ("differs" if said else "equal") and said in cell.reason, cell
    assert cell.furthest == "ln.weight"


def test_a_move_of_rounding_noise_may_differ_as_the_reference_does_from_itself() -> None:
    """Attention's key biases have no gradient, and Adam moves them all the same."""
    noisy = {"own": CURVE | {"noise": {"ln.weight": 0.01}}}
    assert compare("zero1", 2, noisy, {"own": moved(0.04 * SIZE, 0, 0, 0)}, "fp32").status == "equal"
    assert compare("zero1", 2, noisy, {"own": moved(0.06 * SIZE, 0, 0, 0)}, "fp32").status == "differs"


def test_a_choice_on_the_edge_of_a_knife_is_compared_with_starts_a_rounding_away() -> None:
    """Of each pass alone, or of both: what one of them leads to says nothing of the other."""
    far, farther = moved(0.1 * SIZE, 0, 0, 0), moved(0.2 * SIZE, 0, 0, 0)
    reference = {"own": CURVE, "sgd": CURVE}
    reference |= {nudged(run, n): far | {"loss": [2.0, 1.0 + 1e-6]} for run in reference for n in matrix.NUDGES[:1]}
    reference |= {nudged(run, n): CURVE for run in ("own", "sgd") for n in matrix.NUDGES[1:]}
    for result, equal in [
        ({"own": CURVE, "sgd": far}, True),
        ({"own": far, "sgd": CURVE}, True),
        ({"own": far, "sgd": far}, True),
        ({"own": CURVE, "sgd": farther}, False),
    ]:
        cell = compare("zero1", 2, reference, result, "fp32")
        assert cell.status == "differs"
        found = matrix.nearest_start(cell, 2, reference, result, "fp32")
        assert (found.status == "equal") is equal and (found.start_loss is None) is not equal
        assert found.start_loss is None or 0 < found.start_loss < 1e-5


def test_sums_of_16_bits_along_the_tensor_axis_may_differ_as_the_reference_does_that_sums_alike() -> None:
    noisy = {"long 128": CURVE | {"noise": {"ln.weight": 0.01}}, "long 128 rounded": CURVE}
    for layout, by, status in [
        ("zero1+tensor2", 0.04, "equal"),
        ("zero1+tensor2", 0.06, "differs"),
        ("zero0+tensor2", 0.04, "equal"),
        ("zero1", 0.04, "differs"),
    ]:
        assert compare(layout, 2, noisy, {"long 128": moved(by * SIZE, 0, 0, 0)}, "fp32").status == status, layout


def test_which_of_several_experts_shows_a_rounding_is_chance() -> None:
    names = [f"weights/moe.experts.{n}.up" for n in range(3)]
    still = {name: torch.ones(4) for name in (*names, "weights/ln")}

    def ended(**by: float) -> dict[str, Any]:
        end = {name: torch.ones(4) * (2 + by.get(name.rpartition("/")[2].replace(".", "_"), 0.0)) for name in still}
        return CURVE | {"start": still, "end": end}

    noisy = matrix._noisy(ended(), ended(moe_experts_1_up=0.1), alike=True)["noise"]
    assert all(noisy[name.partition("/")[2]] == pytest.approx(0.1, rel=1e-3) for name in names) and noisy["ln"] == 0.0
    noisy = matrix._noisy(ended(), ended(moe_experts_1_up=0.1))["noise"]
    assert [round(noisy[f"moe.experts.{n}.up"], 3) for n in range(3)] == [0.0, 0.1, 0.0]


def test_a_layer_that_adds_up_parts_is_the_same_but_for_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 32)
    x = torch.randn(8, 64, generator=generator)

    def both(dtype: torch.dtype) -> list[torch.Tensor]:
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = layer(inputs)
        y.float().square().sum().backward()
        assert inputs.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
        return [y.detach().float(), inputs.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]

    whole, halved = both(torch.float32), both(torch.bfloat16)
    with summed_in_parts(3):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(whole, both(torch.float32), strict=True))
        parted = both(torch.bfloat16)
    apart = [float((a - b).norm() / a.norm()) for a, b in zip(halved, parted, strict=True)]
    assert all(1e-4 < gap < 1e-2 for gap in apart), apart
    assert torch.equal(both(torch.float32)[0], whole[0]), "torch's own function is put back"


def test_a_weight_that_hardly_moves_may_differ_by_its_rounding() -> None:
    still = CURVE | {"end": {WEIGHT: torch.ones(4)}}
    up = CURVE | {"end": {WEIGHT: torch.ones(4) + torch.finfo(torch.float32).eps}}
    far = CURVE | {"end": {WEIGHT: torch.ones(4) * 1.0001}}
    assert compare("zero1", 2, {"sgd": still}, {"sgd": up}, "fp32").status == "equal"
    assert compare("zero1", 2, {"sgd": still}, {"sgd": far}, "fp32").sgd == math.inf


def test_whole_numbers_are_the_same_or_not() -> None:
    def counted(n: int) -> dict[str, Any]:
        return CURVE | {when: {"buffers/count": torch.tensor(n)} for when in ("start", "end")}

    assert compare("zero1", 2, {"own": counted(3)}, {"own": counted(3)}, "fp32").status == "equal"
    assert compare("zero1", 2, {"own": counted(3)}, {"own": counted(4)}, "fp32").status == "differs"


def test_a_run_without_gradients_has_no_norm() -> None:
    still = CURVE | {"norm": [None, None]}
    cell = compare("torch", 2, {"own": still}, {"own": still}, "fp32")
    assert cell == Cell("torch", 2, "equal", 0.0, None, 0.0, 0.0, furthest="ln.weight")


def test_a_report_of_fewer_steps_is_no_equal_one() -> None:
    cell = compare("zero1", 2, {"own": CURVE}, {"own": CURVE | {"loss": [2.0], "norm": [0.5]}}, "fp32")
    assert (cell.status, cell.reason) == ("failed", "1 steps instead of 2")


def test_a_report_is_strict_json() -> None:
    cell = compare("zero1", 2, {"own": CURVE}, {"own": CURVE | {"loss": [2.0, float("nan")]}}, "fp32")
    assert json.loads(json.dumps(cell.to_dict(), allow_nan=False))["loss"] == "inf"


# -- the passes --------------------------------------------------------------------------------------------------------


def test_every_pass_clips_moves_and_accumulates(digits: str) -> None:
    """Whatever the config says: clipping above the norms, hardly a learning rate, no decay."""
    values = small_config("mlp", digits, "", train__clip_norm=20.0, optimizer__lr=1e-9, optimizer__weight_decay=0.0)
    facts = model_facts(config_from_dict(values))
    first = {"norm": [3.0], "start": {"weights/w": torch.full((4,), 5.0), "buffers/b": torch.full((4,), 9.0)}}
    runs = passes(values, facts, first)
    assert runs["own"]["train"]["clip_norm"] == runs["sgd"]["train"]["clip_norm"] == 1.5
    assert runs["own"]["optimizer"] == values["optimizer"]
    sgd = runs["sgd"]["optimizer"]
    assert sgd["lr"] * 1.5 == pytest.approx(0.005 * 10)  # the weights' length is 10
    assert sgd["weight_decay"] * 10 == pytest.approx(0.1 * 1.5)
    for layout, world in [("zero1", 4), ("zero1+tensor2", 2), ("zero1+pipeline2", 4)]:
        laid = on_layout(runs, layout, world, facts)
        plans = {name: survey(config_from_dict(run)) for name, run in laid.items()}
        assert list(plans) == ["own", "sgd", f"long {64 * data_ranks(layout, world)}"]
        assert [plan.accumulate for plan in plans.values()] == [*[4 if "pipeline" in layout else 2] * 2, 64]
        assert [plan.config["train"]["precision"] for plan in plans.values()] == ["fp32", "fp32", "bf16"]
    assert list(passes(values, facts, first | {"norm": [None]})) == ["own", "sgd"]  # one step would prove nothing


def test_a_config_may_say_how_its_layouts_attend(
    command: Callable[..., Result], config_file: str, invented: dict[str, dict[str, Any]]
) -> None:
    """The keys of an axis are read where the layouts cut it, though the config's own does not."""
    ring, by_time = "parallel.attention=ring", "parallel.balance=time"
    code, out, err = command("parity", config_file, ring, by_time, "--worlds", "2")
    assert code == 0, err
    code, out, err = command("parity", config_file, by_time, "--worlds", "2", "--layouts", "zero1+pipeline2")
    assert (code, out.splitlines()[-1]) == (0, "1 equal"), err
    code, _, err = command("parity", config_file, ring, "--worlds", "2", "--layouts", "zero1+pipeline2")
    assert code == 2 and "parallel.attention is not read: parallel.sequence is 1" in err
