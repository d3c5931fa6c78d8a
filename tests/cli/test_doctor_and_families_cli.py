"""What `doctor`, `families` and `plan` print, and how they end."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distdl.cli import doctor
from distdl.config.family import family_names, family_schema
from distdl.config.load import config_from_dict
from distdl.plan.plan import Plan
from tests.conftest import REPOSITORY, Result, distdl
from tests.small import small_config

Command = Callable[..., Result]

YAML = """\
name: small
model: {{family: mlp, inputs: [1, 8, 8], hidden: [24]}}
data: {{path: {digits}}}
train: {{global_batch: 60, epochs: 2}}
optimizer: {{name: adamw, lr: 1e-3}}
runtime: {{kind: local, workers: 2}}
"""


@pytest.fixture
def yaml(tmp_path: Path, digits: str) -> Path:
    (tmp_path / "small.yaml").write_text(YAML.format(digits=digits))
    return tmp_path / "small.yaml"


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_on_this_machine(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it looks for was installed with this suite, so only the machine itself may be unfit."""
    monkeypatch.chdir(tmp_path)
    code, out, err = command("doctor")
    lines = out.splitlines()
    assert {line[:8].strip() for line in lines[:-2]} <= {"ok", "note", "PROBLEM"}, out
    problems = [line for line in lines if line.startswith("PROBLEM")]
    assert code == (1 if problems else 0) and err == ""
    assert lines[-1] == (
        "this machine is fit to train" if not problems else f"{len(problems)} problem{'s'[: len(problems) - 1]}"
    )
    assert not [line for line in problems if "GiB" not in line], "only a small machine may be unfit"
    for name, floor in doctor.FLOORS.items():
        assert re.search(rf"^ok       {name} \S+ \(needs {re.escape(floor)} or newer\)$", out, re.MULTILINE)
    assert all(f"port {port} " in out for port in (5000, 6379, 8265))
    assert list(tmp_path.iterdir()) == []  # it only looks


def test_doctors_floors_are_those_of_the_project() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    needs = dict(re.findall(r'^    "(\w+)(?:\[[\w,]+\])?>=([\d.]+)"', text, re.MULTILINE))
    assert {name: needs[name] for name in doctor.FLOORS} == doctor.FLOORS


def test_doctor_counts_problems(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def taken(self: socket.socket, address: Any) -> int:
        return 0

    monkeypatch.setattr(doctor, "FLOORS", {"torch": "99.1", "pydantic": "2.7", "no-such-package": "1.0"})
    monkeypatch.setattr(socket.socket, "connect_ex", taken)
    code, out, _ = command("doctor", "--runs", tmp_path / "a" / "b")
    assert code == 1
    assert re.search(r"^PROBLEM  torch \S+ \(needs 99.1 or newer\)$", out, re.MULTILINE)
    assert "PROBLEM  no-such-package is not installed; needs 1.0 or newer: make install\n" in out
    assert "note     port 5000 (distdl ui) is in use\n" in out  # a taken port is no reason not to train
    assert f"of disk free for {tmp_path}/a/b/" in out and f"{tmp_path} is writable" in out
    assert int(out.splitlines()[-1].split()[0]) == out.count("PROBLEM") >= 2


@pytest.mark.parametrize(
    ("version", "floor", "enough"),
    [("2.10.0", "2.9", True), ("2.9.1", "2.10", False), ("2.13.0+cpu", "2.13", True), ("3.0rc1", "2.99.9", True)],
)
def test_versions_are_compared_as_numbers(version: str, floor: str, enough: bool) -> None:
    assert (doctor._parts(version) >= doctor._parts(floor)) is enough


# -- families ----------------------------------------------------------------------------------------------------------


def test_families_lists_the_folder(command: Command) -> None:
    code, out, err = command("families")
    assert code == 0 and err == ""
    names = [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")][:-1]
    assert names == family_names()
    for name in names:
        assert f"{name:<13} {family_schema(name).summary}\n" in out
    assert "61,706 trainable by default; learns by back-propagation\n" in out
    assert "proven on torch, zero0, zero1, zero2, zero3\n" in out
    assert "124,439,808 trainable by default" in out
    assert out.endswith("distdl families NAME lists the fields of its model: section\n")


@pytest.mark.parametrize("name", family_names())
def test_families_name_lists_every_field(command: Command, name: str) -> None:
    code, out, _ = command("families", name)
    schema = family_schema(name)
    assert code == 0 and out.startswith(f"{schema.summary}\n\nmodel:\n  family: {name}\n")
    fields = dataclasses.fields(schema.config)
    assert re.findall(r"^  (\w+):", out, re.MULTILINE) == ["family", *(f.name for f in fields)]
    for f in fields:
        assert f"  {f.name}: {json.dumps(f.default)}\n      {schema.docs[f.name]}\n" in out


def test_an_unknown_family(command: Command) -> None:
    code, out, err = command("families", "lenet55")
    assert (code, out) == (2, "")
    assert err == "distdl: there is no family 'lenet55'\n    fix: did you mean 'lenet5'?\n"
    assert command("families", "xyz").stderr.endswith(f"    fix: one of: {', '.join(family_names())}\n")


# -- plan --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plan_as_json(yaml: Path) -> None:
    """Nothing but JSON on stdout, and it is the plan that would run."""
    code, out, err = distdl("plan", yaml, "--json", cwd=yaml.parent)
    assert (code, err) == (0, "")
    plan = Plan.from_dict(json.loads(out))
    assert (plan.world, plan.global_batch, plan.micro_batch, plan.accumulate) == (2, 60, 30, 1)
    assert (plan.steps, plan.data.train_rows, plan.data.eval_rows) == (48, 1438, 359)  # 2 * 1438 / 60 = 47.93
    assert plan.model.parameters == 64 * 24 + 24 + 24 * 10 + 10 and plan.layout == "zero1"
    assert plan.config == config_from_dict(plan.config).model_dump(mode="json")
    assert plan.deepspeed is not None and plan.deepspeed["train_batch_size"] == 60
    assert [p.name for p in yaml.parent.iterdir()] == ["small.yaml"]  # nothing was started


def test_plan_for_other_numbers_of_workers(yaml: Path, command: Command) -> None:
    plans = {}
    for workers in (1, 3, 60):
        code, out, _ = command("plan", yaml, "--workers", workers, "--json")
        assert code == 0
        plans[workers] = json.loads(out)
    assert {w: p["micro_batch"] for w, p in plans.items()} == {1: 60, 3: 20, 60: 1}
    assert {p["steps"] for p in plans.values()} == {48} and {p["global_batch"] for p in plans.values()} == {60}
    code, out, err = command("plan", yaml, "--workers", 7)
    assert code == 2 and out == "" and "a global batch of 60 samples cannot be shared evenly by 7 workers" in err
    code, _, err = command("plan", yaml, "--workers", 0)
    assert code == 2 and "argument 'runtime.workers=0': runtime.workers = 0\n    allowed: greater than 0" in err
    assert command("plan", yaml, "--workers", "many").code == 2


def test_plan_as_a_table(yaml: Path, command: Command) -> None:
    code, out, _ = command("plan", yaml, "train.micro_batch=10", "--workers", 3, "train.clip_norm=0.5")
    assert code == 0
    rows = dict(re.findall(r"^(\S+(?: \S+)?)  +(\S.*?) *$", out, re.MULTILINE))
    assert rows["model"] == "mlp, 1,810 parameters (1,810 trainable)"
    assert rows["workers"].startswith("3 by local, ")
    assert rows["global batch"] == "60 = 3 data-parallel × 2 accumulated × 10 per forward"
    assert rows["steps"] == "48 (23.97 per epoch)"
    assert rows["layout"] == "zero1, 3-way data parallel, fp32"
    assert json.loads(out[out.index("DeepSpeed: ") + 11 :])["gradient_clipping"] == 0.5


def test_plan_prepares_only_where_it_may(tmp_path: Path, yaml: Path, command: Command) -> None:
    missing = f"data.path={tmp_path / 'new'}"
    code, out, err = command("plan", yaml, missing)
    assert (code, out) == (2, "") and "distdl data prepare" in err
    recipe = ("plan", yaml, missing, "data.prepare.source=digits")
    code, out, _ = command(*recipe)
    rows = dict(re.findall(r"^(\S+(?: \S+)?)  +(\S.*?) *$", out, re.MULTILINE))
    assert code == 0 and rows["data"].endswith("new, which is not there yet") and "fingerprint" not in rows
    assert rows["steps"] == "2 epochs of so many steps as there are rows" and "plan --prepare" in out
    assert command(*recipe, "train.steps=7", "train.epochs=null").stdout.count("steps          7\n") == 1
    code, out, err = command(*recipe, "--json")
    assert (code, out) == (2, "") and "needs the rows of its data set" in err
    assert not (tmp_path / "new").exists(), "a plan writes nothing"
    code, out, _ = command(*recipe, "--prepare")
    assert code == 0 and out.startswith(f"preparing digits in {tmp_path / 'new'} …\nprepared ")
    assert (tmp_path / "new" / "manifest.json").is_file()
    assert json.loads(command(*recipe, "--prepare", "--json").stdout)["data"]["train_rows"] == 1438


def test_plan_of_a_run_folder(tmp_path: Path, digits: str, command: Command) -> None:
    values = config_from_dict(small_config("mlp", digits, "")).model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps(values))
    code, out, _ = command("plan", tmp_path, "--json", "--workers", 4, "train.steps=7")
    plan = json.loads(out)
    assert code == 0 and (plan["world"], plan["steps"], plan["layout"]) == (4, 7, "torch")
    code, _, err = command("plan", tmp_path, "train.stpes=7")
    assert code == 2 and "did you mean 'train.steps'?" in err


def test_bad_command_lines(command: Command, tmp_path: Path, yaml: Path) -> None:
    for line in (["paln"], [], ["plan"], ["plan", yaml, "--jsn"], ["doctor", "a=b"], ["families", "mlp", "x=1"]):
        assert command(*line).code == 2, line
    assert command("--version").stdout.startswith("distdl ")
    helped = command("--help")
    assert helped.code == 0 and "examples:" in helped.stdout


def test_ctrl_c_before_a_command_has_begun_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distdl.cli.families.add_parser", interrupted)
    assert command("families") == (130, "", "distdl: interrupted\n")


def test_a_mistake_of_ours_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("by us")

    monkeypatch.setattr("distdl.cli.families.family_names", broken)
    code, out, err = command("families")
    assert (code, out) == (1, "")
    assert err.startswith("distdl: internal error: ZeroDivisionError: by us\n    at ") and "Traceback" not in err
    monkeypatch.setenv("DISTDL_DEBUG", "1")
    assert "Traceback" in command("families").stderr
