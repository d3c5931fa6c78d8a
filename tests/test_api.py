"""distdl from Python: the command line's numbers, errors and ways to continue; light to import, a guest where it runs."""

from __future__ import annotations

import inspect
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import distdl
from distdl import api
from distdl.checkpoint.load import Checkpoint
from distdl.config.yaml_file import as_overrides
from distdl.run.folder import RunFolder
from tests.config.test_custom_family import EXAMPLE
from tests.conftest import REPOSITORY, Result, python

Command = Callable[..., Result]


def values(digits: str, **more: Any) -> dict[str, Any]:
    """A config whose one worker trains in this process."""
    return {
        "name": "small",
        "model": {"family": "mlp", "inputs": [1, 8, 8], "hidden": [24]},
        "data": {"path": digits, "threads": 0},
        "train": {"global_batch": 60, "steps": 40},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "parallel": {"engine": "torch"},
        "evaluate": {"every_steps": 20},
        "checkpoint": {"every_steps": 20},
        "track": {"enabled": False, "every_steps": 10},
        "runtime": {"kind": "local", "workers": 1},
        **more,
    }


@pytest.fixture
def config(tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # train() sets it for good otherwise
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values(digits)))
    yield "small.yaml"


def weights(checkpoint: Path | None) -> dict[str, torch.Tensor]:
    assert checkpoint is not None
    opened = Checkpoint(checkpoint)
    return {name: opened.read(name) for name in opened.tensors}


# -- importing ---------------------------------------------------------------------------------------------------------


def test_importing_distdl_imports_nothing_else() -> None:
    code = "import sys, distdl; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(python("-c", code, cwd=REPOSITORY).stdout.split())
    assert "distdl" in loaded and not loaded & {"torch", "numpy", "pydantic", "yaml", "ray", "mlflow", "rich"}
    code = "import sys, distdl; distdl.train, distdl.Run; print('torch' in sys.modules)"
    assert python("-c", code, cwd=REPOSITORY).stdout == "False\n"  # not even to look the functions up


def test_a_room_and_a_verb_of_one_name() -> None:
    """`distdl.plan` is a package; importing from it must not take the function away, nor the function the package."""
    code = """\
import distdl
before = distdl.plan
import distdl.plan.plan
from distdl.plan.plan import Plan
print(distdl.plan is before, distdl.plan.plan.Plan is Plan)
try: distdl.plan("nowhere.yaml")
except distdl.InputError as error: print(error)
"""
    assert python("-c", code, cwd=REPOSITORY).stdout.startswith("True True\nthere is no config file nowhere.yaml")


def test_every_public_name_is_there() -> None:
    assert all(callable(getattr(distdl, name)) for name in distdl.__all__) and set(distdl.__all__) <= set(dir(distdl))
    stub = (REPOSITORY / "distdl" / "__init__.pyi").read_text()
    assert set(re.findall(r" as (\w+)$", stub, re.MULTILINE)) == set(distdl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        distdl.trian  # noqa: B018


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_the_command_lines_to_the_bit(
    config: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = distdl.train(config, overrides={"name": "from-python"})
    assert capsys.readouterr().out == ""  # quiet: this is no terminal
    code, out, err = command("train", config, "name=from-shell")
    assert code == 0, out + err
    other = distdl.open_run("from-shell")
    mine, theirs = weights(run.last), weights(other.last)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert run.metrics == other.metrics and run.metrics["accuracy"] > 0.5

    assert (
        run.finished and run.steps == 40 and run.plan.steps == 40 and run.folder == Path("runs/from-python").absolute()
    )
    assert [(row["step"], row["split"]) for row in run.history] == [
        (10, "train"), (20, "train"), (20, "test"), (30, "train"), (40, "train"), (40, "test")
    ]  # fmt: skip
    assert run.history[-1] == {"step": 40, "split": "test", **run.metrics} and run.history[0]["lr"] == 1e-2
    assert repr(run).startswith("Run(from-python: finished, step 40, accuracy 0.") and len(repr(run)) < 120

    assert distdl.evaluate(run) == distdl.evaluate("from-python") == pytest.approx(run.metrics)
    steps = [int(path.name[-8:]) for path in sorted((run.folder / "checkpoints").iterdir())]
    accuracies = {step: row["accuracy"] for step in steps for row in run.history if row["split"] == "test"
                  and row["step"] == step}  # fmt: skip
    assert run.best is not None and int(run.best.name[-8:]) == max(accuracies, key=lambda step: accuracies[step])
    assert distdl.evaluate(run, which="best")["accuracy"] == pytest.approx(max(accuracies.values()))


@pytest.mark.slow
def test_a_trained_model_is_a_module(config: str, digits: str) -> None:
    from distdl.data.read import Dataset

    run = distdl.train(config)
    model = distdl.load(run)
    assert isinstance(model, torch.nn.Module) and not model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    batch = {name: torch.as_tensor(column) for name, column in Dataset(digits, "test").gather(range(359)).items()}
    with torch.no_grad():
        found = model.logits(batch).argmax(-1)
    assert float((found == batch["label"]).float().mean()) == pytest.approx(run.metrics["accuracy"])


@pytest.mark.slow
def test_a_run_of_the_users_own_family_is_opened_from_anywhere(
    config: str, digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gated.py").write_text(EXAMPLE)
    model = {"family": "./gated.py", "hidden": 8}
    folder = distdl.train(values(digits, model=model), overrides={"train.steps": 2}).folder
    monkeypatch.chdir("/")
    family = distdl.open_run(folder).plan.settings.family_name
    assert family.source().read_text() == EXAMPLE and family.source().parent == folder.resolve()


@pytest.mark.slow
def test_it_continues_as_the_command_does(config: str, command: Command) -> None:
    """Finished: nothing is trained. More steps: the same run. `fresh`: another one. Both doors lead to the same run."""
    run = distdl.train(config)
    written = run.last.stat().st_mtime_ns if run.last else 0
    again = distdl.train(config)
    assert again.folder == run.folder and again.finished and again.last == run.last
    assert again.last.stat().st_mtime_ns == written and again.metrics == run.metrics
    assert distdl.train(config, overrides={"train": {"steps": 50}}).steps == 50
    assert distdl.resume(run, overrides={"train.steps": 60}).folder == run.folder
    assert command("train", "--resume", "small", "train.steps=70").code == 0
    assert distdl.open_run("small").steps == 70
    assert distdl.train(config, fresh=True).folder.name == "small-2"
    with pytest.raises(distdl.InputError, match=r"was started with another config: optimizer\.lr: 0\.01 there"):
        distdl.train(config, overrides={"optimizer.lr": 0.5})


@pytest.mark.slow
def test_progress_is_shown_where_asked(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    distdl.train(config, show=True)
    out = capsys.readouterr().out
    assert out.startswith("small: mlp, ") and "evaluation at step 40 (test)" in out


@pytest.mark.slow
def test_it_trains_in_another_thread(config: str) -> None:
    """Only the main thread may say what a signal does; a server or a notebook's widget trains in another."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(distdl.train(config))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], distdl.Run) and found[0].finished, found[0]


@pytest.mark.slow
def test_an_interrupted_run_raises_and_the_same_call_goes_on(config: str) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    long = {"train.steps": 1_000_000}

    def interrupt() -> None:
        end = time.monotonic() + 120
        while not any(Path("runs/small/checkpoints").glob("step_*")) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step [\d,]+; the same command continues from its"):
        distdl.train(config, overrides=long)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run = distdl.open_run("small")
    assert not run.finished and run.last is not None and "not finished" in repr(run)
    done = distdl.train(config, overrides={"train.steps": run.steps + 20})
    assert done.finished and done.steps == run.steps + 20 and done.folder == run.folder


@pytest.mark.slow
def test_the_process_is_left_as_it_was(config: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run = distdl.train(config, overrides={"train.deterministic": True, "train.threads_per_worker": 3})
    distdl.evaluate(run)
    distdl.load(run)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[1:]


# -- what is given -----------------------------------------------------------------------------------------------------


def test_a_mapping_is_a_config_too(config: str, digits: str) -> None:
    whole = distdl.plan(values(digits), workers=2)
    assert whole.world == 2 and whole.steps == 40
    assert whole.to_dict() == distdl.plan(config, workers=2).to_dict()
    with pytest.raises(distdl.InputError, match=r"the config: optimizer\.lr = 'much'"):
        distdl.plan(values(digits, optimizer={"name": "adamw", "lr": "much"}))


def test_overrides_are_those_of_the_command_line() -> None:
    given = {
        "train.epochs": 3,
        "train": {"steps": None, "clip_norm": 1e-7},
        "model": {"hidden": (24, 12)},
        "optimizer.lr": np.float32(0.5),
        "data.path": Path("a b"),
        "name": "010",
        "track.enabled": False,
    }
    assert as_overrides(given) == [
        "train.epochs=3", "train.steps=null", "train.clip_norm=1e-07", "model.hidden=[24, 12]", "optimizer.lr=0.5",
        "data.path=a b", 'name="010"', "track.enabled=false",
    ]  # fmt: skip
    assert as_overrides(["train.epochs=3"]) == ["train.epochs=3"]
    for wrong in ({"train.steps": object()}, "train.steps=3"):
        with pytest.raises(distdl.InputError):
            as_overrides(wrong)  # type: ignore[arg-type]


def test_an_error_has_the_text_of_the_command_line(config: str, command: Command) -> None:
    for key, value in (("train.stps", 3), ("optimizer.lr", "much"), ("model.hidden", [0]), ("name", "../up")):
        with pytest.raises(distdl.InputError) as caught:
            distdl.train(config, overrides={key: value})
        told = command("train", config, *as_overrides({key: value}))
        assert (told.code, told.stderr) == (2, f"distdl: {caught.value}\n")
    for call in (distdl.open_run, distdl.evaluate, distdl.load, distdl.resume):
        with pytest.raises(distdl.InputError, match="there is no run 'nobody'"):
            call("nobody")


def test_the_page_has_every_function_with_its_arguments() -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", page, re.MULTILINE))
    functions = {name for name in distdl.__all__ if name[0].islower()}
    assert told.keys() == functions
    for name in functions:
        expected = inspect.signature(getattr(api, name)).parameters.values()
        words = [p.name + ("=" if p.default is not p.empty else "") for p in expected]
        assert told[name] == ", ".join(words), name
    table = page[page.index("| of a `Run`") : page.index("## A model")]
    public = {name for name in dir(distdl.Run) if not name.startswith("_")} | set(distdl.Run.__dataclass_fields__)
    assert {
        name for row in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)
    } == public


# -- where it is used --------------------------------------------------------------------------------------------------

SCRIPT = """\
import distdl

for seed in (0, 1):
    run = distdl.train("small.yaml", overrides={"seed": seed, "name": f"seed-{seed}", "runtime.workers": 2})
    print(run.finished, distdl.evaluate(run).keys() == run.metrics.keys())
"""


@pytest.mark.slow
def test_a_script_needs_no_guard_and_trains_twice(config: str, tmp_path: Path) -> None:
    """Worker processes are spawned, and do not run the script again that called: `if __name__ ==` is not needed."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = python("script.py", cwd=tmp_path)
    assert done.stdout == "True True\nTrue True\n", done.stderr


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, from first to last cell, as a reader would."""
    import nbformat
    from nbclient import NotebookClient

    path = REPOSITORY / "docs" / "notebooks" / "first_run.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 6 and all(not cell.outputs for cell in code)  # what it prints is made, never stored
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "accuracy on the test images" in text and (tmp_path / "runs" / "notebook").is_dir()


def test_a_source_is_told_of_null_as_null(config: str, tmp_path: Path) -> None:
    """Not as a text: `None` is no number of rows."""
    prepare = {"source": "digits", "options": {"train_rows": None}}
    recipe = values(str(tmp_path / "all"), data={"path": str(tmp_path / "all"), "prepare": prepare})
    with pytest.raises(distdl.InputError, match="prepare=True"):
        distdl.plan(recipe)
    assert not (tmp_path / "all").exists()
    assert distdl.plan(recipe, prepare=True).data.train_rows == 1438


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_the_runs_config_as_it_is(config: str, tmp_path: Path) -> None:
    run = distdl.train(config, overrides={"train.steps": 2})
    first = (run.folder / "config.yaml").read_text()
    (tmp_path / config).write_text(first + "# another text of the same config\n")
    with RunFolder(run.folder).locked(), pytest.raises(distdl.InputError, match="trained by another process"):
        distdl.train(config, overrides={"train.steps": 4})
    assert (run.folder / "config.yaml").read_text() == first
    distdl.train(config, overrides={"train.steps": 4})
    assert (run.folder / "config.yaml").read_text() == (tmp_path / config).read_text()


@pytest.mark.slow
def test_threads_take_turns_where_a_run_is_in_the_process(config: str, digits: str) -> None:
    """Each ends on the numbers that it has alone, while another thread loads and evaluates."""
    want = distdl.train(values(digits, name="alone")).metrics
    found: dict[str, Any] = {}

    def one(name: str) -> None:
        try:
            found[name] = distdl.train(values(digits, name=name)).metrics
        except BaseException as error:
            found[name] = error

    threads = [threading.Thread(target=one, args=(f"run{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert distdl.evaluate("alone") == want and not distdl.load("alone").training
        time.sleep(0.1)  # who waits for a turn gets it
    for thread in threads:
        thread.join(timeout=120)
    assert found == {f"run{n}": want for n in range(4)}


@pytest.mark.slow
def test_what_the_caller_is_in_the_middle_of_does_not_matter(config: str) -> None:
    with torch.no_grad():
        assert distdl.train(config).finished


def test_help_shows_what_a_verb_takes(config: str) -> None:
    """`distdl.train` and `distdl.plan` are packages, too."""
    for verb, function in ((distdl.train, api.train), (distdl.plan, api.plan)):
        assert verb.__doc__ == function.__doc__ and inspect.signature(verb) == inspect.signature(function)


def test_arrays_and_empty_sections_are_overrides_and_other_things_are_not() -> None:
    given = {"model": {"hidden": np.array([3, 4])}, "train": {}, "optimizer": {"lr": torch.tensor(0.5)}}
    assert as_overrides(given) == ["model.hidden=[3, 4]", "optimizer.lr=0.5"]
    for wrong in (None, [3], "train.epochs=3"):
        with pytest.raises(distdl.InputError, match="a mapping or a list of key=value texts"):
            as_overrides(wrong)  # type: ignore[arg-type]
