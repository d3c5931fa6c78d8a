"""The `search:` section is checked before anything starts: what is wrong, where, what is allowed, and a near name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distdl.config.load import load_config
from distdl.errors import InputError
from distdl.tune.check import checked
from distdl.tune.values import given, of_trial, put, write_yaml

BASE = """\
name: s
model: {family: mlp, inputs: [1, 8, 8], hidden: [16], dropout: 0.1}
data: {path: data/digits}
train: {global_batch: 32, steps: 60}
optimizer: {name: adamw, lr: 1e-3}
evaluate: {every_steps: 10}
runtime: {kind: local}
search:
"""
LR = "  space: {optimizer.lr: {log_uniform: [1e-4, 1e-1]}}\n"


def check(folder: Path, section: str, *overrides: str) -> Any:
    path = folder / "c.yaml"
    path.write_text(BASE + section)
    loaded = load_config(str(path), overrides)
    return checked(loaded, given(str(path), overrides, loaded.config))


def refused(folder: Path, section: str, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        check(folder, section, *overrides)
    return str(error.value)


def test_a_search_that_fits_is_taken(tmp_path: Path) -> None:
    search = check(tmp_path, LR + "  algorithm: random\n  trials: 5\n")
    assert search.space["optimizer.lr"].extremes == [1e-4, 1e-1] and search.count() == 5
    nested = check(tmp_path, LR, "search.space.model.dropout={uniform: [0, 0.5]}", "search.trials=7")
    assert set(nested.space) == {"optimizer.lr", "model.dropout"} and nested.count() == 7
    other = check(tmp_path, LR, "search.space.optimizer.lr={uniform: [0.1, 0.5]}")
    assert other.space["optimizer.lr"].extremes == [0.1, 0.5]
    narrower = check(tmp_path, LR, "search.space.optimizer.lr.log_uniform=[1e-3, 1e-2]")
    assert narrower.space["optimizer.lr"].extremes == [1e-3, 1e-2]
    as_sections = check(
        tmp_path, "  space: {optimizer: {lr: {uniform: [0.1, 0.2]}}, model: {dropout: {choice: [0.0]}}}\n"
    )
    assert set(as_sections.space) == {"optimizer.lr", "model.dropout"}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("  space: {optimizer.lr: {log_unifrom: [1, 2]}}\n", ["c.yaml:9", "did you mean", "log_uniform"]),
        ("  space: {optimizer.lr: {uniform: [2, 1]}}\n", ["is no range", "c.yaml:9"]),
        ("  space: {optimizer.lr: {uniform: [1, 2], choice: [1]}}\n", ["exactly one of", "uniform and choice"]),
        ("  space: {optimizer.lr: {log_uniform: [0, 1]}}\n", ["greater than 0"]),
        ("  space: {optimizer.lr: {choice: []}}\n", ["at least 1"]),
        ("  space: {}\n", ["search.space"]),
        (LR + "  algorithm: bayes\n", ["'grid', 'random' or 'tpe'", "c.yaml:10"]),
        (LR + "  trails: 3\n", ["did you mean 'search.trials'?", "c.yaml:10"]),
        ("  space: {optimizer.lrr: {uniform: [1, 2]}}\n", ["search.space.optimizer.lrr", "did you mean 'optimizer.lr'?"]),
        ("  space: {optimiser.lr: {uniform: [1, 2]}}\n", ["search.space.optimiser.lr", "did you mean 'optimizer'?"]),
        ("  space: {optimizer.lr: {uniform: [-1, 2]}}\n", ["would try -1.0", "greater than 0", "c.yaml:9"]),
        ("  space: {model.dropout: {uniform: [0, 1]}}\n", ["would try 1.0", "less than 1"]),
        ("  space: {model.hidden: {choice: [[8], 8]}}\n", ["would try 8", "a list"]),
        ("  space: {train.global_batch: {uniform: [8, 64]}}\n", ["would try 8.0", "a whole number"]),
        ("  space: {runs: {choice: [a, b]}}\n", ["says where and how a run is trained"]),
        ("  space: {optimizer.lr: {grid: [1e-3, 1e-2]}}\n", ["goes through no grid", "choice: […]"]),
        (LR + "  algorithm: grid\n", ["a grid has no log_uniform values"]),
        ("  space: {optimizer.lr: {grid: [1e-3, 1e-2]}}\n  algorithm: grid\n  trials: 3\n", ["the grid has 2 points"]),
        (LR + "  reduction: 3\n", ["search.reduction is not read by the scheduler none", "search.scheduler: asha"]),
        (LR + "  scheduler: asha\n  perturb_every_steps: 5\n", ["is not read by the scheduler asha"]),
        ("  space: {model.hidden: {choice: [[8]]}}\n  scheduler: pbt\n  algorithm: random\n", ["cannot change then"]),
        (LR + "  scheduler: pbt\n", ["a population begins with values that are drawn at random"]),
        ("  space: {train.steps: {integer: [5, 9]}}\n  scheduler: asha\n", ["compares trials at the same steps"]),
        (LR + "  gpus_per_trial: 1.5\n", ["several are taken whole"]),
    ],
)  # fmt: skip
def test_a_search_that_does_not_fit_is_refused_with_the_cure(tmp_path: Path, section: str, said: list[str]) -> None:
    text = refused(tmp_path, section)
    assert [part for part in said if part not in text] == [], text


def test_values_that_do_not_fit_together_are_found_before_anything_starts(tmp_path: Path) -> None:
    section = (
        "  space: {optimizer.name: {choice: [adamw, sgd]}, optimizer.nesterov: {choice: [true]}}\n  algorithm: random\n"
    )
    assert "nesterov" in refused(tmp_path, section)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.eval_split=null", "a search compares evaluations"),
        ("evaluate.every_steps=0", "asha compares trials on their way"),
    ],
)
def test_what_a_search_needs_of_its_config(tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(tmp_path, LR + "  scheduler: asha\n", override)


def test_a_population_may_change_what_training_only_reads(tmp_path: Path) -> None:
    space = "  space: {optimizer.lr: {log_uniform: [1e-4, 1e-1]}, model.dropout: {uniform: [0, 0.5]}}\n"
    assert check(tmp_path, space + "  scheduler: pbt\n  algorithm: random\n").scheduler == "pbt"


def test_a_config_without_a_section_says_what_one_looks_like(tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "c.yaml").write_text(BASE.removesuffix("search:\n"))
    result = command("tune", tmp_path / "c.yaml")
    assert result.code == 2 and "has no search section" in result.stderr and "log_uniform" in result.stderr


def test_a_refused_search_leaves_nothing(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(BASE + "  space: {optimizer.lr: {uniform: [-1, 2]}}\n")
    result = command("tune", "c.yaml", "--trials", "3")
    assert result.code == 2 and [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_train_and_config_check_take_the_section_as_it_stands(tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "c.yaml").write_text(BASE + LR)
    assert command("config", "check", tmp_path / "c.yaml").code == 0


def test_the_yaml_of_a_trial_says_what_it_holds(tmp_path: Path) -> None:
    """Whatever YAML 1.1 would read into a text."""
    (tmp_path / "c.yaml").write_text(BASE + LR)
    loaded = load_config(str(tmp_path / "c.yaml"))
    values = given(str(tmp_path / "c.yaml"), ["seed=3"], loaded.config)
    assert "search" not in values and values["seed"] == 3
    values = put(of_trial(values, loaded.config, "s-001", tmp_path / "s", 2.0), {"optimizer.lr": 1e-05})
    write_yaml(tmp_path / "t.yaml", values, ["of a test"])
    config = load_config(str(tmp_path / "t.yaml")).config
    assert (config.name, config.optimizer.lr, config.train.threads_per_worker) == ("s-001", 1e-05, 2)
    assert config.runtime.kind == "local" and yaml.safe_load((tmp_path / "c.yaml").read_text())["name"] == "s"
    for text in ("1e-3", "no", "2020-01-01", "0x10"):
        write_yaml(tmp_path / "t.yaml", put(values, {"data.path": text}), [])
        assert load_config(str(tmp_path / "t.yaml")).config.data.path == text
