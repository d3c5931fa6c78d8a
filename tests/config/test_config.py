"""Every config key is consumed or the run stops, with file:line, the value, what is allowed and the nearest key."""

from __future__ import annotations

import dataclasses
import itertools
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from distdl.config import yaml_nodes
from distdl.config.family import FamilyName, family_names, family_schema
from distdl.config.json_schema import json_schema
from distdl.config.load import Loaded, config_from_dict, load_config
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.config.schema import Config
from distdl.config.yaml_file import apply_override, read_yaml
from distdl.errors import InputError, Problem
from tests.conftest import REPOSITORY, Result, distdl, python

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

BASE = """\
name: base
model:
  family: mlp
  inputs: [1, 8, 8]
data:
  path: data/digits
  prepare: {source: digits}
train:
  global_batch: 64
  epochs: 2
optimizer: {name: adamw, lr: 2e-3}
schedule: {name: cosine, warmup_steps: 20}
runtime: {kind: ray, workers: 2}
"""


def load(folder: Path, *overrides: str, text: str = BASE) -> Loaded:
    (folder / "c.yaml").write_text(text)
    return load_config(str(folder / "c.yaml"), overrides)


def problems(folder: Path, *overrides: str, text: str = BASE) -> list[Problem]:
    """All mistakes; the folder is cut from their places."""
    with pytest.raises(InputError) as caught:
        load(folder, *overrides, text=text)
    assert caught.value.exit_code == 2
    return [dataclasses.replace(p, where=p.where.replace(f"{folder}/", "")) for p in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert BASE.count(old) == 1
    return BASE.replace(old, new)


# -- precedence --------------------------------------------------------------------------------------------------------


def test_defaults_then_yaml_then_arguments(tmp_path: Path) -> None:
    plain = load(tmp_path).config
    assert (plain.seed, plain.train.epochs, plain.optimizer.lr) == (0, 2.0, 2e-3)
    text = BASE + "seed: 7\n"
    assert load(tmp_path, text=text).config.seed == 7
    config = load(tmp_path, "seed=9", "optimizer.lr=1e-4", "model.hidden=[32]", "seed=11", text=text).config
    assert (config.seed, config.optimizer.lr) == (11, 1e-4)  # the last word counts
    assert config.model["hidden"] == [32] and config.model["inputs"] == [1, 8, 8]
    assert config.optimizer.name == "adamw" and config.train.epochs == 2.0  # neighbours stay


def test_an_argument_can_replace_make_and_remove_sections(tmp_path: Path) -> None:
    swapped = load(tmp_path, "optimizer={name: sgd, lr: 0.1}", "train.epochs=null", "train.steps=5").config
    assert swapped.optimizer.model_dump() == {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
    }
    assert (swapped.train.epochs, swapped.train.steps) == (None, 5)
    assert load(tmp_path, "early_stopping.patience=3").config.early_stopping.patience == 3  # type: ignore[union-attr]
    assert load(tmp_path, "data.prepare=null").config.data.prepare is None


def test_the_family_fills_in_its_own_defaults(tmp_path: Path) -> None:
    assert load(tmp_path).config.model == {
        "family": "mlp",
        "inputs": [1, 8, 8],
        "column": "image",
        "target": "class",
        "hidden": [512, 512],
        "classes": 10,
        "activation": "relu",
        "loss": "default",
        "norm": "none",
        "init": "default",
        "dropout": 0.0,
    }


def test_a_resolved_config_loads_as_itself(tmp_path: Path) -> None:
    for path in CONFIGS:
        config = load_config(str(path)).config
        assert config_from_dict(json.loads(json.dumps(config.model_dump(mode="json")))) == config


# -- mistakes ----------------------------------------------------------------------------------------------------------

UNKNOWN_KEYS = {  # what is written -> line, key, value, fix
    "top level": (BASE + "sed: 3\n", 14, "sed", 3, "did you mean 'seed'?"),
    "data": (changed("path: data/digits", "path: x\n  shufle: none"), 7, "data.shufle", "none", "'data.shuffle'"),
    "train": (changed("epochs: 2", "epoch: 2"), 10, "train.epoch", 2, "'train.epochs'"),
    "prepare": (
        changed("{source: digits}", "{source: digits, optoins: {}}"),
        7,
        "data.prepare.optoins",
        {},
        "options'",
    ),
    "optimizer": (changed("lr: 2e-3", "lr: 2e-3, beta: 3"), 11, "optimizer.beta", 3, "'optimizer.betas'"),
    "schedule": (changed("warmup_steps", "warmup"), 12, "schedule.warmup", 20, "'schedule.warmup_steps'"),
    "runtime": (changed("workers", "worker"), 13, "runtime.worker", 2, "'runtime.workers'"),
    "nullable": (BASE + "early_stopping: {patiense: 3}\n", 14, "early_stopping.patiense", 3, "early_stopping.patience"),
    "a block": (changed("{kind: ray, workers: 2}", "\n  kind: ray\n  workrs: 2"), 15, "runtime.workrs", 2, "workers"),
    "family": (changed("inputs: [1, 8, 8]", "hiden: [3]"), 4, "model.hiden", [3], "'model.hidden'"),
    "far off": (changed("epochs: 2", "epochs: 2\n  xyzzy: 2"), 11, "train.xyzzy", 2, "remove it"),
}


@pytest.mark.parametrize("case", UNKNOWN_KEYS)
def test_unknown_keys_at_every_depth(tmp_path: Path, case: str) -> None:
    text, line, key, value, fix = UNKNOWN_KEYS[case]
    found = {p.what: p for p in problems(tmp_path, text=text)}
    owner = f"the section {key.rpartition('.')[0]}" if "." in key else "a config"
    problem = found[f"{key} = {value!r}: {owner} has no such key"]
    assert problem.where == f"c.yaml:{line}" and fix in problem.fix
    meant = fix.strip("'?").rpartition(".")[2].rpartition("'")[2]
    assert problem.allowed and (fix == "remove it" or meant in problem.allowed.split(", "))


def test_allowed_keys_are_those_of_the_chosen_variant(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, text=changed("name: adamw, ", "name: lion, eps: 1e-8, "))
    assert problem.allowed == "betas, lr, name, weight_decay"


@pytest.mark.parametrize(
    ("key", "home"), [("zero", "parallel.zero"), ("lr", "optimizer.lr"), ("epochs", "train.epochs")]
)
def test_a_misplaced_key_is_sent_home(tmp_path: Path, key: str, home: str) -> None:
    (problem,) = problems(tmp_path, text=BASE + f"{key}: 3\n")
    assert problem.fix == f"did you mean '{home}'?"


def test_a_misplaced_key_stops_the_run(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, text=BASE + "zero: 3\n")
    assert (problem.where, problem.what) == ("c.yaml:14", "zero = 3: a config has no such key")
    assert problem.allowed == ", ".join(sorted(Config.model_fields))


BAD_VALUES = {  # what is written -> line, what, allowed, fix
    "word for a number": (
        "global_batch: 64",
        "global_batch: many",
        9,
        "train.global_batch = 'many'",
        "whole number",
        "",
    ),
    "fraction for a whole": (
        "global_batch: 64",
        "global_batch: 64.5",
        9,
        "train.global_batch = 64.5",
        "whole number",
        "",
    ),
    "negative": ("global_batch: 64", "global_batch: -1", 9, "train.global_batch = -1", "greater than 0", ""),
    "truth for a number": ("epochs: 2", "epochs: true", 10, "train.epochs = True", "number", ""),
    "number for a word": ("name: base", "name: 3", 1, "name = 3", "text", ""),
    "not a number": ("lr: 2e-3", "lr: .nan", 11, "optimizer.lr = nan", "finite", ""),
    "infinite": ("lr: 2e-3", "lr: .inf", 11, "optimizer.lr = inf", "finite", ""),
    "in a list": ("[1, 8, 8]", "[1, a, 8]", 4, "model.inputs.1 = 'a'", "whole number", ""),
    "of a family": ("[1, 8, 8]", "[1, 8, 8]\n  dropout: 1.0", 5, "model.dropout = 1.0", "less than 1", ""),
    "out of range": ("lr: 2e-3", "lr: 2e-3, betas: [0.9, 1.5]", 11, "optimizer.betas.1 = 1.5", "less than 1", ""),
    "no list": ("lr: 2e-3", "lr: 2e-3, betas: 0.9", 11, "optimizer.betas = 0.9", "list", ""),
    "bad choice": (
        "epochs: 2",
        "epochs: 2\n  precision: fp23",
        11,
        "train.precision = 'fp23'",
        "'fp32', 'fp64', 'bf16', 'fp16' or 'fp8'",
        "did you mean 'fp32'?",
    ),
    "choice of a family": (
        "[1, 8, 8]",
        "[1, 8, 8]\n  activation: rellu",
        5,
        "model.activation = 'rellu'",
        "'relu', 'leaky_relu', 'elu'",
        "did you mean 'relu'?",
    ),
    "unknown variant": (
        "name: cosine",
        "name: cosin",
        12,
        "schedule.name = 'cosin' is unknown",
        "constant, linear, cosine, step, wsd, one_cycle",
        "did you mean 'cosine'?",
    ),
    "unknown family": (
        "family: mlp",
        "family: mpl",
        3,
        "model.family = 'mpl' is not a family",
        ", ".join(family_names()),
        "did you mean 'mlp'?",
    ),
    "null section": (
        "data:\n  path: data/digits\n  prepare: {source: digits}",
        "data:",
        5,
        "data = None",
        "mapping",
        "",
    ),
    "null model": ("model:\n  family: mlp\n  inputs: [1, 8, 8]", "model:", 2, "model = None", "mapping", ""),
    "word for a section": ("{kind: ray, workers: 2}", "ray", 13, "runtime = 'ray'", "", ""),
    "path for a name": ("name: base", "name: ../x", 1, "name: must match '^[A-Za-z0-9][A-Za-z0-9._-]*$'", "", ""),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(tmp_path: Path, case: str) -> None:
    old, new, line, what, allowed, fix = BAD_VALUES[case]
    (problem,) = problems(tmp_path, text=changed(old, new))
    assert (problem.where, problem.what, problem.fix) == (f"c.yaml:{line}", what, fix)
    assert allowed in problem.allowed


@pytest.mark.parametrize("key", ["runs", "data.cache", "launch.folder"])
def test_what_is_written_is_no_uri(tmp_path: Path, key: str) -> None:
    """It would be written to a local folder `s3:`, and be gone with it on another machine."""
    (problem,) = problems(tmp_path, f"{key}=s3://bucket/x")
    assert (
        problem.what.startswith(f"{key}: s3:// is no part of the file system")
        and problem.where == f"argument '{key}=s3://bucket/x'"
    )
    assert load(tmp_path, "data.path=s3://bucket/x").config.data.path == "s3://bucket/x"


def test_no_command_writes_to_a_uri(
    tmp_path: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(BASE)
    for words in (
        ("k8s", "render", "c.yaml", "-o", "s3://bucket/x"),
        ("checkpoint", "convert", "run", "s3://bucket/x"),
        ("config", "schema", "mlp", "--output", "s3://bucket/x"),
        ("train", "c.yaml", "runs=s3://bucket/x"),
        ("launch", "c.yaml", "--on", "http://127.0.0.1:9", "runs=s3://bucket/x"),
        ("k8s", "render", "c.yaml", "runs=s3://bucket/x"),
    ):
        told = command(*words)
        assert told.code == 2 and "s3:// is no part of the file system" in told.stderr, (words, told)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


MISSING = {  # what is cut -> key, where, what the fix says
    "name: base\n": ("name", "c.yaml", "name: …"),
    "model:\n  family: mlp\n  inputs: [1, 8, 8]\n": ("model", "c.yaml", "model: …"),
    "  path: data/digits\n": ("data.path", "c.yaml:5", "data.path: …"),
    "  global_batch: 64\n": ("train.global_batch", "c.yaml:8", "train.global_batch: …"),
    ", lr: 2e-3": ("optimizer.lr", "c.yaml:11", "optimizer.lr: …"),
    "name: adamw, ": ("optimizer.name", "c.yaml:11", "optimizer.name: …"),
    "kind: ray, ": ("runtime.kind", "c.yaml:13", "runtime.kind: …"),
    "optimizer: {name: adamw, lr: 2e-3}\n": ("optimizer", "c.yaml", "optimizer: …"),
    "source: digits": ("data.prepare.source", "c.yaml:7", "data.prepare.source: …"),
    "  family: mlp\n": ("model.family", "c.yaml:2", "family: NAME"),
}


@pytest.mark.parametrize("cut", MISSING)
def test_missing_keys(tmp_path: Path, cut: str) -> None:
    key, where, fix = MISSING[cut]
    (problem,) = problems(tmp_path, text=changed(cut, ""))
    assert problem.what == f"{key} is missing" and fix in problem.fix
    assert problem.where == where
    if key == "model.family":
        assert problem.allowed == ", ".join(family_names())


def test_an_empty_file_lacks_everything_that_has_no_default(tmp_path: Path) -> None:
    found = [p.what for p in problems(tmp_path, text="")]
    assert found == [f"{key} is missing" for key in ("name", "model", "data", "train", "optimizer")]


def test_keys_given_twice(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, text=BASE + "train: {global_batch: 3, steps: 1}\n")
    assert (problem.where, problem.what) == ("c.yaml:14", "train is given twice") and "c.yaml:8" in problem.fix
    (problem,) = problems(tmp_path, text=changed("epochs: 2", "epochs: 2\n  epochs: 3"))
    assert (problem.where, problem.what) == ("c.yaml:11", "train.epochs is given twice")
    (problem,) = problems(tmp_path, text=changed("lr: 2e-3", "lr: 2e-3, lr: 1e-3"))
    assert (problem.where, problem.what) == ("c.yaml:11", "optimizer.lr is given twice")


def test_a_folder_in_place_of_a_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"is a folder, not a config file(?s:.*)give the path of a YAML file"):
        read_yaml(str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text(BASE)
    with pytest.raises(InputError, match=r"give the file in it: .*run/config.yaml"):
        read_yaml(str(tmp_path / "run"))


def test_merge_keys_take_over_what_a_mapping_does_not_say_itself(tmp_path: Path) -> None:
    """Own keys go first, then those of the earlier mapping, as YAML's merge type says; lines are where a key stands."""
    (tmp_path / "m.yaml").write_text(
        "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: &c\n  <<: *a\n  x: 5\n"
        "d: {<<: [*a, *b], w: 6}\ne: {<<: *c}\nf: [{<<: *a, y: 7}]\ng: {'<<': 8}\n"
    )
    values, origins = read_yaml(str(tmp_path / "m.yaml"))
    assert values["c"] == {"x": 5, "y": 2} and values["d"] == {"w": 6, "x": 1, "y": 2, "z": 4}
    assert values["e"] == {"x": 5, "y": 2} and values["f"] == [{"x": 1, "y": 7}] and values["g"] == {"<<": 8}
    assert [origins["c", key].rpartition(":")[2] for key in "xy"] == ["5", "1"]
    config = load(tmp_path, text=BASE + "parallel: &p {zero: 2}\n" + "evaluate: {<<: {every_steps: 3}}\n").config
    assert config.evaluate.every_steps == 3
    (wrong,) = problems(tmp_path, text=BASE + "evaluate: {<<: 3}\n")
    assert wrong.where == "c.yaml:14" and "takes over the keys of a mapping" in wrong.what


def test_a_key_of_another_kind_of_the_section_is_not_offered_again(tmp_path: Path) -> None:
    (betas,) = problems(tmp_path, "optimizer.betas=[0.9, 0.99]", "optimizer.name=sgd")
    assert betas.fix == "remove it; it is a key of optimizer.name: adam or adamw or lion or muon"
    (workers,) = problems(tmp_path, "runtime={kind: local, workers: 2, address: auto}")
    assert workers.fix == "remove it; it is a key of runtime.kind: ray"


def test_whole_numbers_that_nothing_can_count_to(tmp_path: Path) -> None:
    """Seeds, steps and sizes are int64 wherever they go."""
    assert load(tmp_path, f"seed={2**63 - 1}").config.seed == 2**63 - 1
    for key in ("seed", "train.global_batch", "checkpoint.keep_last"):
        (large,) = problems(tmp_path, f"{key}=99999999999999999999")
        assert large.what == f"{key} = 99999999999999999999" and "9223372036854775807" in large.allowed


def test_either_epochs_or_steps(tmp_path: Path) -> None:
    (both,) = problems(tmp_path, text=changed("epochs: 2", "epochs: 2\n  steps: 3"))
    assert (both.where, both.what) == ("c.yaml:11", "train needs either epochs or steps; both are given")
    (both,) = problems(tmp_path, "train.steps=3")
    assert both.where == "argument 'train.steps=3'"
    (neither,) = problems(tmp_path, text=changed("  epochs: 2\n", ""))
    assert (neither.where, neither.what) == ("c.yaml:8", "train needs either epochs or steps; neither is given")


def test_sections_that_contradict_each_other(tmp_path: Path) -> None:
    (zero,) = problems(tmp_path, text=BASE + "parallel:\n  engine: torch\n  zero: 1\n")
    assert (zero.where, zero.what) == ("c.yaml:16", "parallel.zero is not read by the torch engine")
    (zero,) = problems(tmp_path, "parallel.zero=2", text=BASE + "parallel: {engine: torch}\n")
    assert zero.where == "argument 'parallel.zero=2'"
    (zero,) = problems(tmp_path, "parallel={engine: torch, zero: 1}")
    assert zero.where == "argument 'parallel={engine: torch, zero: 1}'"
    (keys,) = problems(tmp_path, "parallel.engine=torch", "parallel.deepspeed.wall_clock_breakdown=true")
    assert keys.what == "parallel.deepspeed is not read by the torch engine"
    for key, value in {"attention": "ring", "balance": "time", "nvme_path": "disk"}.items():
        (unread,) = problems(tmp_path, f"parallel.{key}={value}")
        assert unread.what.startswith(f"parallel.{key} is not read: ") and unread.fix == "remove it"
        assert unread.where == f"argument 'parallel.{key}={value}'"
    used = "parallel={sequence: 2, attention: ring, zero: 3, offload: nvme, nvme_path: disk}"
    assert load(tmp_path, used).config.parallel.attention == "ring"
    (nesterov,) = problems(tmp_path, "optimizer={name: sgd, lr: 0.1, nesterov: true}")
    assert nesterov.what == "optimizer.nesterov needs a momentum above 0"
    (stopping,) = problems(tmp_path, "data.eval_split=null", "early_stopping.patience=3")
    assert stopping.what.startswith("early_stopping needs evaluations")
    assert stopping.where == "argument 'early_stopping.patience=3'"
    (heads,) = problems(tmp_path, "model={family: gpt, width: 97}")
    assert heads.what == "model: width 97 cannot be split over 12 heads; choose a divisor of it"


BAD_OVERRIDES = {
    "train.epochs": ("an override is written key=value", "for example train.epochs=3"),
    "=3": ("an override is written key=value", "for example train.epochs=3"),
    "train..epochs=3": ("an override is written key=value", "for example train.epochs=3"),
    "-seed=3": ("an override is written key=value", "for example train.epochs=3"),
    "train.steps=[": ("the value is not valid YAML", "quote it"),
    "seed=!!int zz": ("the value is not valid YAML", "quote it"),
    "trian.epochs=3": ("trian = {'epochs': 3}: a config has no such key", "did you mean 'train'?"),
    "train.epohcs=3": ("train.epohcs = 3: the section train has no such key", "did you mean 'train.epochs'?"),
    "train.epochs=many": ("train.epochs = 'many'", ""),
    "train=3": ("train = 3", ""),
    "name.first=x": ("name = {'first': 'x'}", ""),
    "model=mlp": ("model.family is missing", "write model: {family: NAME, …}"),
    "model.hiden=[3]": ("model.hiden = [3]: the section model has no such key", "did you mean 'model.hidden'?"),
    "optimizer={name: sgd, lr: 1, momentm: 0}": (
        "optimizer.momentm = 0: the section optimizer has no such key",
        "did you mean 'optimizer.momentum'?",
    ),
}


@pytest.mark.parametrize("text", BAD_OVERRIDES)
def test_bad_overrides_name_the_argument(tmp_path: Path, text: str) -> None:
    what, fix = BAD_OVERRIDES[text]
    (problem,) = problems(tmp_path, text)
    assert (problem.where, problem.what) == (f"argument '{text}'", what)
    assert fix in problem.fix


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = BASE.replace("64", "-3").replace("cosine", "cosin").replace("[1, 8, 8]", "8") + "sed: 3\n"
    found = problems(tmp_path, "train.epochz=3", "nonsense", text=text)
    assert {(p.where, p.what.split(" = ")[0]) for p in found} == {
        ("argument 'nonsense'", "an override is written key=value"),
        ("c.yaml:4", "model.inputs"),
        ("c.yaml:9", "train.global_batch"),
        ("argument 'train.epochz=3'", "train.epochz"),
        ("c.yaml:12", "schedule.name"),
        ("c.yaml:14", "sed"),
    }
    assert len(found) == 6  # each once


# -- YAML --------------------------------------------------------------------------------------------------------------


def test_plain_scalars_mean_what_they_look_like(tmp_path: Path) -> None:
    text = """
numbers: [1e-3, 1E5, .5, 5., -2, +3, 010, 08, 2.5e+3, -.inf]
words: [no, on, off, yes, y, 2020-01-01, 1:30, 1_000, 0x10, 1e, e5, "3", 1.2.3, None]
truths: [true, False, TRUE]
nothing: [null, ~, ]
empty:
"""
    (tmp_path / "y.yaml").write_text(text)
    values, origins = read_yaml(str(tmp_path / "y.yaml"))
    assert values["numbers"] == [1e-3, 1e5, 0.5, 5.0, -2, 3, 10, 8, 2500.0, -float("inf")]
    assert [type(v) for v in values["numbers"]] == [*[float] * 4, *[int] * 4, float, float]
    words = "no on off yes y 2020-01-01 1:30 1_000 0x10 1e e5 3 1.2.3 None"
    assert values["words"] == words.split()
    assert values["truths"] == [True, False, True]
    assert values["nothing"] == [None, None] and values["empty"] is None
    assert origins[("empty",)].endswith("y.yaml:6")


NOT_YAML = {
    "a: [1,\n b: 2": ("c.yaml:2", "this is not valid YAML"),
    "name:\tx\n\tb: 3\n": ("c.yaml:1", "this is not valid YAML"),
    BASE + "---\nname: y\n": ("c.yaml:14", "another document"),
    "- 1\n": ("c.yaml:1", "a config is a mapping of sections"),
    "just words": ("c.yaml:1", "a config is a mapping of sections"),
    BASE + "runs: !!python/object/apply:os.getcwd []\n": ("c.yaml:14", "constructor for the tag"),
    BASE + "runs: !!binary aGk=\n": ("c.yaml:14", "constructor for the tag"),
    BASE + "runs: !!timestamp 2020-01-01\n": ("c.yaml:14", "constructor for the tag"),
    BASE + "seed: !!int zz\n": ("c.yaml", "invalid literal"),
    BASE + "runs: &x {b: *x}\n": ("c.yaml:14", "an alias stands within its own anchor"),
}


@pytest.mark.parametrize("text", NOT_YAML, ids=range(len(NOT_YAML)))
def test_what_is_not_yaml(tmp_path: Path, text: str) -> None:
    where, what = NOT_YAML[text]
    (problem,) = problems(tmp_path, text=text)
    assert problem.where == where and what in problem.what


def test_aliases_are_counted_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = ["seed: &a 3", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcd"))]
    (tmp_path / "c.yaml").write_text("\n".join(levels))
    assert read_yaml(str(tmp_path / "c.yaml"))[0]["c"] == [[3] * 9] * 9
    monkeypatch.setattr(yaml_nodes, "MOST_NODES", 900)  # b, c and d have 10, 91 and 820 of them
    (problem,) = problems(tmp_path, text="\n".join(levels))
    assert problem.where == "c.yaml:1" and "927 values with its aliases written out; 900 are the most" in problem.what
    text = "runs=[&a [3, 3, 3], *a, *a, *a]"
    monkeypatch.setattr(yaml_nodes, "MOST_NODES", 9)
    assert apply_override({}, {}, text) is not None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(BASE)
    with pytest.raises(
        InputError, match=r"there is no config file .*quikstart.yaml(?s:.*)did you mean .*quickstart.yaml"
    ):
        load_config(str(tmp_path / "quikstart.yaml"))
    with pytest.raises(InputError, match="is a folder, not a config file"):
        load_config(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read"):
        load_config(str(tmp_path / "latin.yaml"))


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_command_refuses_a_bad_config(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BASE + "sed: 3\n")
    for verb in (["config", "check"], ["train"]):
        code, out, err = distdl(*verb, "bad.yaml", "train.epochs=many", cwd=tmp_path)
        assert code == 2 and out == ""
        assert err.startswith("distdl: argument 'train.epochs=many': train.epochs = 'many'\n")
        assert "bad.yaml:14: sed = 3" in err and "did you mean 'seed'?" in err and "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.yaml"]  # nothing was begun


def test_nothing_heavy_is_imported_before_a_config_is_sound(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BASE + "sed: 3\n")
    (tmp_path / "good.yaml").write_text(BASE)
    script = """
import contextlib, io, json, sys
from distdl.cli.main import main

codes = []
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            codes.append(main(line.split()))
        except SystemExit as end:
            codes.append(end.code)
heavy = {"torch", "ray", "mlflow", "deepspeed", "pyarrow", "sklearn", "numpy"}
print(json.dumps([codes, sorted(heavy & set(sys.modules))]))
"""
    lines = {
        "--help": 0,
        "--version": 0,
        "train --help": 0,
        "config check bad.yaml": 2,
        "train bad.yaml": 2,
        "plan bad.yaml": 2,
        "train nosuch.yaml": 2,
        "train": 2,
        "nonsense": 2,
        "config check good.yaml": 0,
        "config show good.yaml": 0,
        "config schema": 0,
        "families mlp": 0,
        "families mpl": 2,
    }
    code, out, err = python("-c", script, *lines, cwd=tmp_path)
    assert code == 0, err
    codes, heavy = json.loads(out)
    assert dict(zip(lines, codes)) == lines
    assert heavy == []


def test_show_says_where_each_value_came_from(tmp_path: Path, command: Callable[..., Result]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE)
    code, out, _ = command(
        "config", "show", path, "optimizer.lr=1e-4", "model.hidden=[32]", "early_stopping={patience: 3}"
    )
    assert code == 0
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}
    origin = {key: (rest.split("  ")[0].strip(), rest.split("  ")[-1].strip()) for key, rest in rows.items()}
    assert origin["name"] == ('"base"', f"{path}:1")
    assert origin["model.inputs"] == ("[1, 8, 8]", f"{path}:4")
    assert origin["schedule.warmup_steps"] == ("20", f"{path}:12")
    assert origin["optimizer.lr"] == ("0.0001", "argument 'optimizer.lr=1e-4'")
    assert origin["model.hidden"] == ("[32]", "argument 'model.hidden=[32]'")
    assert origin["early_stopping.patience"] == ("3", "argument 'early_stopping={patience: 3}'")
    for key in (
        "seed",
        "model.dropout",
        "optimizer.eps",
        "schedule.final",
        "parallel.zero",
        "early_stopping.min_delta",
    ):
        assert origin[key][1] == "default", key
    as_json = json.loads(command("config", "show", path, "--json").stdout)
    assert as_json == load_config(str(path)).config.model_dump(mode="json")


def test_check_accepts_every_config(command: Callable[..., Result]) -> None:
    assert len(CONFIGS) >= 4
    for path in CONFIGS:
        data = load_config(str(path)).config.data
        assert data.prepare is not None
        missing = f"{data.path} is not there yet; `distdl train` and `distdl plan --prepare` write it from the source"
        told = f"{path} is valid; its data were not checked: {missing} {data.prepare.source}\n"
        assert command("config", "check", path) == Result(0, told, "")


def test_check_calls_no_config_valid_that_its_data_contradict(
    tmp_path: Path, digits: str, command: Callable[..., Result]
) -> None:
    (tmp_path / "good.yaml").write_text(BASE)
    path, there = tmp_path / "good.yaml", f"data.path={digits}"
    assert command("config", "check", path, there) == Result(0, f"{path} is valid, and its data fit\n", "")
    code, out, error = command("config", "check", path, there, "model.inputs=[1,9,9]")
    assert (
        (code, out) == (2, "")
        and "expects 'image' of shape [1, 9, 9]" in error
        and "the data set has [1, 8, 8]" in error
    )
    code, out, _ = command("config", "check", path, there, "model.classes=5", "model.column=x", "--json")
    found = json.loads(out)
    assert (
        code == 2
        and not found["valid"]
        and {"x", "class"}
        == {
            word
            for problem in found["problems"]
            for word in ("x", "class")
            if f"column '{word}'" in problem["what"] or f"the {word} is 9" in problem["what"]
        }
    )
    code, _, error = command("config", "check", path, there, "data.eval_split=val")
    assert code == 2 and "no split 'val'" in error
    nowhere = command("config", "check", path, f"data.path={tmp_path / 'nowhere'}", "data.prepare=null")
    assert nowhere.code == 0 and "nowhere is not there yet" in nowhere.stdout
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "manifest.json").write_text("{")
    assert command("config", "check", path, f"data.path={tmp_path / 'torn'}").code == 2
    assert json.loads(command("config", "check", path, there, "--json").stdout)["unchecked"] == ""


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_every_config_names_a_source_and_its_options_rightly(path: Path) -> None:
    """`data.prepare.options` are read only when the data set is missing; a typo must not wait until then."""
    from distdl.data.prepare import parse_options

    recipe = load_config(str(path)).config.data.prepare
    assert recipe is not None
    parse_options(recipe.source, recipe.options)


# -- the JSON Schema ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_the_json_schema_accepts_every_config(validator: jsonschema.Draft202012Validator, path: Path) -> None:
    values, _ = read_yaml(str(path))
    assert [e.message for e in validator.iter_errors(values)] == []
    resolved = load_config(str(path)).config.model_dump(mode="json")
    assert [e.message for e in validator.iter_errors(resolved)] == []


@pytest.mark.parametrize(
    "text",
    [
        BASE + "sed: 3\n",
        changed("path: data/digits", "pth: data/digits"),
        changed("inputs: [1, 8, 8]", "inptus: [1, 8, 8]"),
        changed("family: mlp", "family: mpl"),
        changed("lr: 2e-3", "lr: fast"),
        changed("lr: 2e-3", "lr: 2e-3, momentum: 0.9"),  # a key of another optimizer
        changed("  family: mlp\n  inputs: [1, 8, 8]", "  family: mlp\n  vocabulary: 3"),  # a key of another family
        changed("  global_batch: 64\n", ""),
        changed("kind: ray", "kind: slrm"),
    ],
)
def test_the_json_schema_rejects_what_the_loader_rejects(
    validator: jsonschema.Draft202012Validator, tmp_path: Path, text: str
) -> None:
    assert problems(tmp_path, text=text)
    assert not validator.is_valid(read_yaml(str(tmp_path / "c.yaml"))[0])


def test_the_schema_explains_every_field(tmp_path: Path, command: Callable[..., Result]) -> None:
    assert command("config", "schema", "--output", tmp_path / "s.json") == Result(0, "", "")
    schema = json.loads((tmp_path / "s.json").read_text())
    assert schema == json_schema() == json.loads(command("config", "schema").stdout)
    sections = [schema, *schema["$defs"].values(), *schema["properties"]["model"]["oneOf"]]
    silent = [
        f"{section.get('title')}.{name}"
        for section in sections
        for name, field in section.get("properties", {}).items()
        if not field.get("description") and not {"const", "$ref", "discriminator"} & field.keys()
    ]
    assert silent == []
    assert all(section.get("description") for section in sections[1:])  # a reference is explained where it leads
    assert all(section.get("additionalProperties") is False for section in schema["$defs"].values())


# -- families ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", family_names())
def test_the_schema_read_from_the_source_is_the_class_that_runs(name: str) -> None:
    from distdl.families import load_family

    read, real = family_schema(name).config, load_family(name).Config
    assert real.__module__ == FamilyName(name).module
    hints = [typing.get_type_hints(c, include_extras=True) for c in (read, real)]
    assert {k: repr(v) for k, v in hints[0].items()} == {k: repr(v) for k, v in hints[1].items()}
    assert _fields(read) == _fields(real)
    assert dataclasses.asdict(read()) == dataclasses.asdict(real())
    assert family_schema(name).docs.keys() == {f.name for f in dataclasses.fields(real)}  # a sentence under each field
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(real(), dataclasses.fields(real)[0].name, 0)


@pytest.mark.parametrize("name", family_names())
def test_what_every_family_means_alike_is_marked_alike(name: str) -> None:
    schema = family_schema(name)
    fields = {field.name for field in dataclasses.fields(schema.config)}
    training, invisible = schema.marked(TRAINING_ONLY), schema.marked(INVISIBLE)
    assert fields & {"dropout", "attention_dropout", "input_dropout", "balance_loss", "router_z_loss"} <= training
    assert fields & {"heads", "activation", "norm", "cell"} <= invisible
    assert not training & invisible


def _fields(config: type) -> list[tuple[str, Any, Any]]:
    return [(f.name, f.default, f.default_factory) for f in dataclasses.fields(config)]


def test_a_file_that_is_not_there_is_likened_by_its_name_without_the_ending(tmp_path: Path) -> None:
    (tmp_path / "e9.yaml").write_text(BASE)
    (tmp_path / "quickstart.yml").write_text(BASE)
    with pytest.raises(InputError) as caught:
        load_config(str(tmp_path / "nofile.yaml"))
    assert "did you mean" not in str(caught.value), "an ending is no likeness"
    with pytest.raises(InputError, match=r"did you mean .*quickstart\.yml"):
        load_config(str(tmp_path / "quikstart.yaml"))


def test_gpus_of_local_workers_are_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BASE)
    with pytest.raises(InputError) as caught:
        load_config(str(tmp_path / "c.yaml"), ["runtime={kind: local, workers: 1, gpus_per_worker: 1}"])
    assert "local workers take the GPUs that are there" in str(caught.value) and "runtime.kind: ray" in str(
        caught.value
    )
    assert "did you mean" not in str(caught.value)
