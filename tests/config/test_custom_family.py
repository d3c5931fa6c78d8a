"""A family of the user's own: the example of docs/custom_family.md is run, and what is wrong with a file is told."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import torch
from pydantic import Field

from distdl.checkpoint.load import Checkpoint, latest, refuse_other_model
from distdl.config.family import FIELDS, FamilyName, _is_plain, family_schema
from distdl.config.json_schema import json_schema
from distdl.config.load import load_config
from distdl.config.marks import TRAINING_ONLY
from distdl.config.yaml_file import read_yaml
from distdl.driver import prepare_if_missing
from distdl.errors import InputError
from distdl.families import build, load_family
from distdl.jobs.kubernetes.rayjob import render
from distdl.jobs.package import make_package
from distdl.jobs.records import record
from distdl.run.folder import find_run, saved_config
from distdl.track.provenance import gather_tags
from distdl.train import worker
from distdl.train.survey import survey
from tests.conftest import REPOSITORY, Result, distdl

DOC = (REPOSITORY / "docs" / "custom_family.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", DOC, re.DOTALL)[1]  # type: ignore[index]
CONFIG = re.search(r"```yaml\n(name: .*?)```", DOC, re.DOTALL)[1]  # type: ignore[index]
COMMANDS = re.search(r"```bash\n(.*?)```", DOC, re.DOTALL)[1].splitlines()  # type: ignore[index]
Command = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two files of the document in a folder, in which the test works."""
    monkeypatch.setenv("DISTDL_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "digits").symlink_to(digits)
    (folder / "gated.py").write_text(EXAMPLE)
    (folder / "gated.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    return folder


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


# -- two rows ----------------------------------------------------------------------------------------------------------


def broken(old: str, new: str) -> str:
    assert old in EXAMPLE
    return EXAMPLE.replace(old, new)


LOSS = 'return F.cross_entropy(logits, label), {"accuracy": mean((logits.argmax(-1) == label).float())}'
MISTAKES = {
    "no super": (broken("super().__init__()", "pass"), "does not call super().__init__(), which must come first", 35),
    "one return": (
        broken(LOSS, "return F.cross_entropy(logits, label)"),
        "returns a tensor of shape () and type float32",
        42,
    ),
    "no scalar": (
        broken(LOSS, "return logits, {}"),
        "returns a tensor of shape (2, 10) and type float32 as the loss",
        42,
    ),
    "no gradient": (broken(LOSS, "return F.cross_entropy(logits, label).detach(), {}"), "nothing would be learned", 42),
    "no metrics": (
        broken(LOSS, "return F.cross_entropy(logits, label), None"),
        "returns None (NoneType) as the metrics",
        42,
    ),
    "a float": (
        broken(LOSS, 'return F.cross_entropy(logits, label), {"accuracy": 0.5}'),
        "gives 0.5 (float) as the metric",
        42,
    ),
    "not primary": (broken(LOSS, "return F.cross_entropy(logits, label), {}"), "does not tell 'accuracy'", None),
    "no column": (broken('to_unit(batch["image"])', 'to_unit(batch["imag"])'), "the batch has no 'imag'", 43),
    "a shape": (
        broken("F.cross_entropy(logits, label)", "F.cross_entropy(logits, label[:, None])"),
        "multi-target",
        45,
    ),
    "no step": (
        broken("batch: Batch, step: int)", "batch: Batch)"),
        "takes 2 positional arguments but 3 were given",
        42,
    ),
    "constructor": (broken("nn.Linear(math.prod(config.inputs)", "nn.Linear(config.units"), "no attribute 'units'", 35),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file_is_told_with_its_line_before_anything_starts(project: Path, name: str) -> None:
    source, told, line = MISTAKES[name]
    (project / "gated.py").write_text(source)
    text = refusal(lambda: survey(load_config("gated.yaml").config))
    assert told in text, text
    assert (f"gated.py:{line}: " if line else "learner.py:") in text, text


def test_a_layout_that_is_none_is_refused(project: Path) -> None:
    (project / "gated.py").write_text(broken('"zero3"', '"zero3", "tensr"'))
    text = refusal(lambda: survey(load_config("gated.yaml").config))
    assert "gated.py: Gated.layouts names 'tensr'" in text and "did you mean 'tensor'?" in text and "zero0" in text


@pytest.mark.slow
def test_what_fails_in_a_run_names_the_line_of_the_file(project: Path, command: Command) -> None:
    (project / "gated.py").write_text(
        broken("        value, gate", "        if step == 1:\n            raise ValueError('odd')\n        value, gate")
    )
    done = command("train", "gated.yaml", "--plain", *ALONE[:-1], "train.steps=3")
    assert (
        done.code == 1 and "ValueError: odd" in done.stderr and "gated.py:44: `raise ValueError('odd')`" in done.stderr
    )


# -- the document ------------------------------------------------------------------------------------------------------


def test_the_example_is_short_and_its_commands_are_real(project: Path, command: Command) -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 40
    asked = [line.split("#")[0].split()[1:] for line in COMMANDS]
    assert [words[0] for words in asked] == ["families", "plan", "parity", "train"]
    told = command(*asked[0])
    assert told.code == 0 and told.stdout.startswith("A perceptron with gated units")
    assert "family: ./gated.py" in told.stdout and "hidden: 64\n      Gated units." in told.stdout
    told = command(*asked[1])
    assert told.code == 0 and "gated, 4,490 parameters" in told.stdout
    schema = jsonschema.Draft202012Validator(json_schema())
    schema.validate(read_yaml("gated.yaml")[0])


@pytest.mark.slow
def test_it_learns_on_two_processes_and_equals_one(project: Path) -> None:
    done = distdl("train", "gated.yaml", "--plain", "track.enabled=false", cwd=project)
    assert done.code == 0, done.stdout + done.stderr
    summary = json.loads((project / "runs" / "gated" / "summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.93
    proven = distdl("parity", "gated.yaml", "--layouts", "torch,zero1,zero3", "--worlds", "2", cwd=project)
    assert proven.code == 0, proven.stdout + proven.stderr
    assert len(re.findall(r"zero1|zero3", proven.stdout)) >= 2


@pytest.mark.slow
def test_a_run_goes_on_with_the_file(project: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = ["runtime.workers=1", "parallel.engine=torch", "track.enabled=false", "train.epochs=null"]
    assert command("train", "gated.yaml", "--plain", *alone, "train.steps=20").code == 0
    run = project / "runs" / "gated"
    assert json.loads((run / "config.json").read_text())["model"]["family"] == "./gated.py"  # no path of this machine
    assert (run / "gated.py").read_text() == EXAMPLE
    tags = gather_tags(run, None)
    assert tags["distdl.family_sha256"] == hashlib.sha256(EXAMPLE.encode()).hexdigest()
    moved = project.parent / "moved"
    (project / "runs").rename(moved)
    (project / "gated.py").rename(project / "gone")
    monkeypatch.chdir(moved)
    assert saved_config(find_run("gated", ".")).model["family"] == str(moved / "gated" / "gated.py")
    (moved.parent / "data").symlink_to(project / "data")
    monkeypatch.chdir(moved.parent)
    more = command("train", "--resume", "moved/gated", "--plain", "train.steps=40", "runs=moved")
    assert more.code == 0, more.stderr
    assert json.loads((moved / "gated" / "summary.json").read_text())["steps_this_time"] == 20
    told = command("evaluate", "moved/gated", "--json")
    assert told.code == 0 and json.loads(told.stdout)["metrics"]["accuracy"] > 0.5


@pytest.mark.slow
def test_weights_of_another_model_are_refused(project: Path, command: Command) -> None:
    alone = ["runtime.workers=1", "parallel.engine=torch", "track.enabled=false", "train.epochs=null", "train.steps=1"]
    assert command("train", "gated.yaml", "--plain", *alone).code == 0
    checkpoint = latest(project / "runs" / "gated" / "checkpoints")[0]
    assert isinstance(checkpoint, Checkpoint) and checkpoint.manifest["family"] == "gated"
    model = checkpoint.manifest["model"]
    refuse_other_model(model, load_config("gated.yaml").config, "it")
    with pytest.raises(InputError, match="hidden is 32 there and 16"):
        refuse_other_model(model, load_config("gated.yaml", ["model.hidden=16"]).config, "it")
    (project / "gated.py").write_text(EXAMPLE.replace("hidden", "units"))
    with pytest.raises(InputError, match="with hidden, which this one has not"):
        other = (project / "gated.yaml").read_text().replace("hidden", "units")
        (project / "gated.yaml").write_text(other)
        refuse_other_model(model, load_config("gated.yaml").config, "it")


ALONE = ["runtime.workers=1", "parallel.engine=torch", "track.enabled=false", "train.epochs=null", "train.steps=1"]
DECIDED = [
    *("train.precision=fp32", "train.deterministic=true", "train.vocabulary_multiple=1", "train.channels_last=false"),
]
"""What the plan would decide: the config that is kept is the one that is planned."""


@pytest.mark.slow
def test_a_checkpoint_fits_whatever_a_field_of_training_says(project: Path, command: Command) -> None:
    assert command("train", "gated.yaml", "--plain", *ALONE).code == 0
    for name in ("marked", "bare"):  # a run that is to start from what another one has become
        shutil.copytree(project / "runs" / "gated" / "checkpoints", project / "runs" / name / "checkpoints")
    changed = [*ALONE[:-1], *DECIDED, "train.steps=2", "model.dropout=0.4"]
    assert command("train", "gated.yaml", "--plain", *changed, "name=marked").code == 0
    summary = json.loads((project / "runs" / "marked" / "summary.json").read_text())
    assert (summary["steps"], summary["steps_this_time"]) == (2, 1)
    plan = json.loads((project / "runs" / "marked" / "plan.json").read_text())
    assert plan["config"] == json.loads((project / "runs" / "marked" / "config.json").read_text())
    (project / "gated.py").write_text(EXAMPLE.replace(", TRAINING_ONLY]", "]"))
    told = command("train", "gated.yaml", "--plain", *changed, "name=bare")
    assert told.code == 2 and "holds another gated: dropout is 0.1 there and 0.4 in the config" in told.stderr


@pytest.mark.slow
def test_weights_are_refused_where_a_field_differs_that_shapes_do_not_show(project: Path, command: Command) -> None:
    text = EXAMPLE.replace("import TRAINING_ONLY", "import INVISIBLE, TRAINING_ONLY")
    text = text.replace("import Annotated\n", "import Annotated, Literal\n")
    field = '    gate: Annotated[Literal["sigmoid", "relu"], INVISIBLE] = "sigmoid"\n    """What opens a gate."""\n'
    text = text.replace("    hidden: Count", f"{field}    hidden: Count")
    (project / "gated.py").write_text(text)
    assert command("train", "gated.yaml", "--plain", *ALONE).code == 0
    other = ["name=other", "start={weights: gated}", "model.gate=relu"]
    told = command("train", "gated.yaml", "--plain", *ALONE, *other)
    assert told.code == 2 and "was trained with model.gate=sigmoid, and here it is relu" in told.stderr
    assert not (project / "runs" / "other").exists()
    (project / "gated.py").write_text(text.replace(", INVISIBLE]", ', "no mark"]'))
    assert command("train", "gated.yaml", "--plain", *ALONE, *other).code == 0
    plan = json.loads((project / "runs" / "other" / "plan.json").read_text())
    assert plan["config"]["start"]["weights"] == str(project / "runs" / "gated" / "checkpoints" / "step_00000001")


def test_the_worker_in_the_drivers_process_reads_the_runs_copy_too(
    project: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the user's file while it trains."""
    seen: list[str] = []
    monkeypatch.setattr(worker, "run", lambda plan, *_: seen.append(plan.settings.model["family"]))
    assert command("train", "gated.yaml", "--plain", *ALONE).code == 1  # no summary was written
    assert seen == [str(project / "runs" / "gated" / "gated.py")]


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        ("Annotated[float, Field(ge=0), TRAINING_ONLY]", True),
        ("Annotated[float, TRAINING_ONLY] | None", True),
        ("tuple[Annotated[int, TRAINING_ONLY], ...]", True),
        ("Annotated[float, INVISIBLE]", False),
        ("float", False),
    ],
)
def test_a_mark_is_found_wherever_it_stands_and_runs_no_code(tmp_path: Path, annotation: str, found: bool) -> None:
    text = f"@dataclass(frozen=True)\nclass Config:\n    chance: {annotation} = 0\n"
    (tmp_path / "own.py").write_text(text)
    schema = family_schema(str(tmp_path / "own.py"))
    assert schema.marked(TRAINING_ONLY) == ({"chance"} if found else set())
    assert _is_plain(ast.parse(text).body[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "own", "file", "label", "portable"),
    [
        ("mlp", False, None, "mlp", "mlp"),
        ("package.gated", True, None, "package.gated", "package.gated"),
        ("../mine/gated.py", True, Path("../mine/gated.py"), "gated", "./gated.py"),
        ("", False, None, "", ""),
    ],
)
def test_what_a_family_is_named_by(text: str, own: bool, file: Path | None, label: str, portable: str) -> None:
    name = FamilyName(text)
    assert (name.own, name.file, name.label, name.portable.text) == (own, file, label, portable)
    assert name.beside(Path("/a/b")).text == ("/a/mine/gated.py" if file else text)


def test_it_is_packed_and_found_where_it_is_unpacked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "code").mkdir()
    (project / "gated.py").rename(project / "code" / "gated.py")
    (project / "gated.yaml").write_text(CONFIG.replace("./gated.py", "./code/gated.py"))
    package = make_package("gated.yaml", [], directory=project / "out")
    assert (package.folder / "code" / "gated.py").read_text() == EXAMPLE
    assert package.config.family == "gated" and package.plan.model.parameters == 4490
    known = record(package, "ssh")
    (project / "code" / "gated.py").unlink()
    assert known.config().model["family"] == str(known.folder / "package" / "code" / "gated.py")
    monkeypatch.chdir(package.folder)
    there = load_config("config.yaml", ["runtime.kind=ray"]).config
    assert there.model["family"] == str(package.folder / "code" / "gated.py")
    assert "code comes with the image" in refusal(lambda: render(package))
    outside = CONFIG.replace("./gated.py", "../gated.py")
    (project.parent / "gated.py").write_text(EXAMPLE)
    (project / "outside.yaml").write_text(outside)
    words = refusal(lambda: make_package(str(project / "outside.yaml"), [], directory=project / "out2"))
    assert "model.family: '../gated.py' does not lie below the config's folder" in words
    assert "outside.yaml:2" in words


def test_the_document_lists_the_types_of_fields_as_they_are() -> None:
    table = re.findall(r"^\| `(\w+)` \| `(.+?)` \| ", DOC, re.MULTILINE)
    known = {"Annotated": Annotated, "Literal": Literal, "Field": Field, **FIELDS}
    assert sorted(name for name, _ in table) == sorted(FIELDS)
    for name, text in table:
        assert repr(eval(text, known)) == repr(FIELDS[name]), name


NUMBERS = "Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, max_length=2)]"
SAME = [  # (a field by names, the same written out)
    ("width: Count = 8", "width: Annotated[int, Field(gt=0)] = 8"),
    ("norm: Literal[Norm, 'rms'] = 'rms'", "norm: Literal['none', 'batch', 'layer', 'group', 'rms'] = 'rms'"),
    ("few: Annotated[SomeCounts, Field(max_length=2)] = (3,)", f"few: {NUMBERS} = (3,)"),
]


@pytest.mark.parametrize(("field", "same"), SAME, ids=[field for field, _ in SAME])
def test_a_types_name_says_what_its_annotation_says(project: Path, field: str, same: str) -> None:
    """The JSON schema, and what is told of a wrong value."""
    found = []
    for line in (field, same):
        text = EXAMPLE.replace("    hidden: Count", f"    {line}\n    hidden: Count")
        text = text.replace("import Count, Shape", f"import {', '.join(FIELDS)}")
        (project / "gated.py").write_text(text.replace("import Annotated\n", "import Annotated, Literal\n"))
        name = field.partition(":")[0]
        wrong = refusal(lambda name=name: load_config("gated.yaml", [f"model.{name}=-3"]))  # type: ignore[misc]
        schema = family_schema(str(project / "gated.py"))
        found.append((wrong, schema.adapter.json_schema(), load_config("gated.yaml").config.model))
        learner = build(found[-1][2])
        assert getattr(type(learner).Config(), name) == schema.config.__dataclass_fields__[name].default
    assert found[0] == found[1] and f"model.{name} = -3" in found[0][0]


# -- what is wrong -----------------------------------------------------------------------------------------------------

WRONG = [  # (what the file becomes, words of the message, at which line; 0: none)
    (EXAMPLE.replace("class Config:", "class Config(:"), "not valid Python: invalid syntax", 20),
    (EXAMPLE.replace("class Config:", "class Configuration:"), "the family has no class Config", 0),
    (EXAMPLE.replace("(frozen=True)", ""), "Config is not a frozen dataclass", 20),
    (EXAMPLE.replace("hidden: Count", "hidden: torch.dtype"), "name 'torch' is not defined", 23),
    (EXAMPLE.replace("= (1, 8, 8)", "= [1, 8, 8]"), "mutable default", 0),
    (EXAMPLE.replace("Count", "Cuont"), f"has no type 'Cuont'\n    allowed: {', '.join(FIELDS)}\n", 11),
    (EXAMPLE.replace("Count", "Cuont"), "did you mean 'Count'?", 11),
    (EXAMPLE.replace("hidden: Count", "hidden: Cuont"), "name 'Cuont' is not defined\n    allowed: builtins", 23),
    (EXAMPLE.replace("hidden: Count", "hidden: Cuont"), ", Count, CountOrZero, Counts, ", 23),
    (EXAMPLE.replace("hidden: Count", "hidden: Amount"), "uses Amount, which is not imported", 23),
    (EXAMPLE.replace("import Count,", "import Count as Count2,"), "uses Count, which is not imported", 23),
    (EXAMPLE.replace("import Count, Shape", "import Shape\nCount = float"), "uses Count, which is not imported", 24),
]


@pytest.mark.parametrize(("text", "words", "line"), WRONG, ids=[words[:40] for _, words, _ in WRONG])
def test_a_file_that_is_no_family_is_told_before_torch_is_loaded(
    project: Path, text: str, words: str, line: int
) -> None:
    (project / "gated.py").write_text(text)
    message = refusal(lambda: load_config("gated.yaml"))
    assert words in message and str(project / "gated.py") in message
    assert not line or f"gated.py:{line}: " in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (EXAMPLE.replace("class Gated(Learner)", "class Gated(nn.Module)"), "this file has none"),
        (EXAMPLE + "\nclass Other(Gated):\n    pass\n", "this file has Gated and Other"),
        (EXAMPLE.replace("from torch.nn import functional as F", "import torhc"), "gated.py:9: the family cannot be"),
    ],
)
def test_a_file_without_a_learner_is_told_before_anything_starts(project: Path, text: str, words: str) -> None:
    (project / "gated.py").write_text(text)
    config = load_config("gated.yaml").config
    prepare_if_missing(config)
    assert words in refusal(lambda: survey(config))


def test_a_family_that_is_not_there_is_told(project: Path, command: Command) -> None:
    message = refusal(lambda: load_config("gated.yaml", ["model.family=./gatde.py"]))
    assert f"there is no family file {project / 'gatde.py'}" in message and "argument 'model.family" in message
    assert "did you mean './gated.py'?" in refusal(lambda: load_config("gated.yaml", ["model.family=gated"]))
    message = refusal(lambda: load_config("gated.yaml", ["model.family=nowhere.gated"]))
    assert "the family's module nowhere.gated cannot be imported on" in message and "PYTHONPATH" in message
    assert "os.path" in refusal(lambda: load_config("gated.yaml", ["model.family=os.path.nothing"]))
    assert command("families", "./gatde.py").code == 2
    message = refusal(lambda: load_config("gated.yaml", ["model.hiden=3"]))
    assert "did you mean 'model.hidden'?" in message and "model.hiden" in message
    post = "    def __post_init__(self):\n        math.prod(self.inputs)\n\nclass Gated("
    (project / "gated.py").write_text(EXAMPLE.replace("class Gated(", post))
    assert "NameError: name 'math' is not defined" in refusal(lambda: load_config("gated.yaml"))


# -- modules -----------------------------------------------------------------------------------------------------------


def test_columns_that_fail_are_the_files_mistake(project: Path, command: Command) -> None:
    broken = EXAMPLE.replace("Column.sample(", "Column.sampled(")
    assert broken != EXAMPLE
    (project / "gated.py").write_text(broken)
    told = command("plan", "gated.yaml")
    assert told.code == 2 and "`columns` of the family gated fails: AttributeError" in told.stderr, told.stderr
    assert "gated.py:" in told.stderr and "internal error" not in told.stderr


@pytest.fixture
def package(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example as a module of a package whose own code fails as soon as the module runs."""
    (project / "mine" / "deep").mkdir(parents=True)
    (project / "mine" / "__init__.py").write_text("import torch\nLOADED = True\n")
    (project / "mine" / "deep" / "__init__.py").write_text("")
    (project / "mine" / "deep" / "gated.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(str(project))
    yield "mine.deep.gated"
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_module_is_a_family(project: Path, package: str) -> None:
    config = load_config("gated.yaml", [f"model.family={package}"]).config
    assert config.model["family"] == config.family == package and config.model["hidden"] == 32
    assert "mine" not in sys.modules  # checked without running the package
    plan = survey(config)
    assert plan.model.family == package and plan.model.parameters == 4490
    assert load_family(package).__module__ == package
    (project / "mine" / "deep" / "gated.py").unlink()
    assert "cannot be imported on" in refusal(lambda: load_family(package))


def test_the_same_file_is_the_same_module_wherever_it_lies(project: Path) -> None:
    (project / "copy").mkdir()
    (project / "copy" / "gated.py").write_text(EXAMPLE)
    one, two = (load_family(str(project / folder / "gated.py")) for folder in (".", "copy"))
    assert one is two and re.fullmatch(r"distdl_custom_gated_\w{12}", one.__module__)
    (project / "gated.py").write_text(EXAMPLE.replace("2 * config.hidden", "2*config.hidden"))
    assert load_family(str(project / "gated.py")) is not one  # changed, as long as before or not
    assert not list(project.rglob("__pycache__"))  # nothing is left in the user's folder
    model = load_config("gated.yaml").config.model
    torch.manual_seed(0)
    assert sum(p.numel() for p in build(model).parameters()) == 4490
