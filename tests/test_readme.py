"""Every command of the README and every config is executed, and counted, so that none slips by."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from distdl.config.family import family_names
from distdl.config.load import load_config
from tests.conftest import REPOSITORY, Result, distdl, made_by_make, python
from tests.ranks import run_ranks
from tests.small import MODELS, prepared, small, trained
from tests.test_architecture import PACKAGE, House

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FAMILIES = (REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """The lines of a page's bash blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


COMMANDS = commands(README)
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
BY_ITSELF = {"make quickstart", "make test", "make bench"}
WALKED = set(commands((REPOSITORY / "docs" / "walks.md").read_text(encoding="utf-8")))
"""Those that need files of the user's: tests/test_walks.py executes them, with public data."""


def substitutes(config: str, data: Path) -> list[str]:
    """Overrides for a config whose raw data is not part of a clone: the small data set of its family."""
    for told in map(small, MODELS):
        for name, overrides in told.get("configs", {}).items():
            if name == config:
                return [f"data.path={prepared(told['prepare'], data)}", "data.prepare=null", *overrides]
    return []


TWO_WORKERS = {"quickstart", "mlp", "gpt_llama", "gpt_moe", "gan", "dbn", "som"}
"""Executed by the two workers that they ask for, one config of each kind of learner: the first by the command, which costs
ten seconds, the others one after the other in one group of processes. What is left runs its six steps as one worker, and
tests/parity/test_parity.py trains every family on two ranks."""
ONE_WORKER = {"lenet1989", "esn_mackey_glass", "dqn", "tune"}
"""Configs that say one: ten pictures a step, a single row, a step that is over before two had added up their gradients, and
many runs side by side."""

AFTER_ANOTHER = {
    "distill": "way=null",
    "fine_tune": "start=null",
    "from_masked_images": "start=null",
    "lora": "start=null",
}
"""Configs that begin with the run of another one, and what takes that out of them."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_config_is_executed(tmp_path: Path, small_data: Path) -> None:
    """Shortened to six steps; what a family is worth in full is in benchmarks/results/acceptance.md."""
    short = ["train.steps=6", "train.epochs=null", "runtime.kind=local", "track.enabled=false"]
    lines = {path: [str(path), *short, *substitutes(path.stem, small_data)] for path in CONFIGS}
    in_a_group = {}
    for path in CONFIGS:
        if path.stem == "quickstart":
            result = distdl("train", *lines[path], cwd=tmp_path)
            assert result.code == 0, f"{path}\n{result.stdout}{result.stderr}"
        elif path.stem in TWO_WORKERS:
            values = load_config(str(path), [*lines[path][1:], *made(path, small_data)]).config.model_dump(mode="json")
            in_a_group[path.stem] = {"values": values, "folder": str(tmp_path / "runs" / path.stem)}
    assert [run["values"]["runtime"]["workers"] for run in in_a_group.values()] == [2] * (len(TWO_WORKERS) - 1)
    assert run_ranks(trained, 2, in_a_group) == [dict.fromkeys(in_a_group, "")] * 2
    in_order = sorted(CONFIGS, key=lambda path: path.stem in AFTER_ANOTHER)
    alone = [["train", *lines[path], "runtime.workers=1"] for path in in_order if path.stem not in TWO_WORKERS]
    script = (
        "import json, sys\nfrom distdl.cli.main import main\n"
        "for line in json.load(open('lines.json')):\n    print(line, flush=True)\n    assert main(line) == 0, line"
    )
    (tmp_path / "lines.json").write_text(json.dumps(alone))
    result = python("-c", script, cwd=tmp_path, timeout_s=900)
    assert result.code == 0, f"{result.stdout[-3000:]}{result.stderr[-3000:]}"
    finished = {path.parent.name for path in (tmp_path / "runs").glob("*/summary.json")}
    assert finished == {path.stem for path in CONFIGS} and len(CONFIGS) >= len(MODELS)


def made(path: Path, data: Path, *overrides: str) -> list[str]:
    """More overrides for a config that says how its data comes to be: these data, prepared."""
    if substitutes(path.stem, data):
        return []
    recipe = load_config(str(path), overrides).config.data.prepare
    assert recipe is not None, "a config says how its data comes to be"
    return [f"data.path={prepared({'source': recipe.source, 'options': recipe.options}, data)}"]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_planned_as_it_stands(path: Path, small_data: Path) -> None:
    from distdl.train.survey import survey

    of_test = [AFTER_ANOTHER[path.stem]] if path.stem in AFTER_ANOTHER else []
    overrides = [*substitutes(path.stem, small_data), *made(path, small_data, *of_test), *of_test]
    config = load_config(str(path), overrides).config
    plan = survey(config)
    assert plan.world == (1 if path.stem in ONE_WORKER else 2)
    assert path.read_text(encoding="utf-8").startswith("# ") and config.name == path.stem


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(1500)
def test_every_readme_command_is_executed(tmp_path: Path) -> None:
    """In the order of the README, in a folder that has what a clone has."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    executed = 0
    serving: list[str] = []
    for command in COMMANDS:
        if command in BY_ITSELF | WALKED:
            continue
        words = shlex.split(command)
        if words[:2] == ["distdl", "ui"]:
            serve(words[1:], tmp_path, look_at_page)
        elif words[:2] == ["distdl", "serve"]:
            serving = words[1:]
        elif words[0] == "curl":
            serve(serving, tmp_path, functools.partial(ask, words))
        else:
            assert words[0] == "distdl", command
            result = distdl(*words[1:], cwd=tmp_path)
            assert result.code == 0, f"{command}\n{result.stdout}{result.stderr}"
        executed += 1
    assert executed == len(COMMANDS) - len((BY_ITSELF | WALKED) & set(COMMANDS)) == 36


GUIDE = {page: (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("first_run", "own_data")}


@pytest.mark.slow
def test_every_command_of_the_guide_is_executed(tmp_path: Path) -> None:
    """In the order of the pages, in one process, with the configs of a clone and those that the pages show."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    for block in re.findall(r"```yaml\n(.*?)```", "".join(GUIDE.values()), re.DOTALL):
        if name := yaml.safe_load(block).get("name"):  # else it is a part of one
            (tmp_path / f"{name}.yaml").write_text(block, encoding="utf-8")
    lines = [shlex.split(line) for page in GUIDE.values() for line in commands(page) if not line.startswith("source ")]
    assert [line[0] for line in lines] == ["distdl"] * 5 + ["python"] + ["distdl"] * 11
    script = (
        "import json\nfrom distdl.cli.main import main\n"
        "for program, *words in json.load(open('lines.json')):\n"
        "    print(words, flush=True)\n"
        "    if program == 'python':\n        exec(words[1])\n"
        "    else:\n        assert main([*words, *(['track.enabled=false'] if words[0] == 'train' else [])]) == 0, words"
    )
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    result = python("-c", script, cwd=tmp_path)
    assert result.code == 0, f"{result.stdout[-3000:]}{result.stderr[-3000:]}"
    accuracies = re.findall(r"^accuracy +([0-9.]+)", result.stdout, re.MULTILINE)
    assert float(accuracies[1]) > 0.8 and float(accuracies[-1]) > 0.9, "both pages learn"


def test_the_first_run_shows_the_quickstart_as_it_is() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", GUIDE["first_run"], re.DOTALL)
    (path,) = [path for path in CONFIGS if path.stem == "quickstart"]
    assert yaml.safe_load(shown) == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_first_page_is_short() -> None:
    assert len(README.encode()) <= 10_000


def look_at_page(port: str) -> None:
    """Raises OSError while nothing is served."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
        assert b"MLflow" in page.read()


def ask(words: list[str], port: str) -> None:
    """What the line of the README says to a model that is served there. Raises OSError while nothing is."""
    done = subprocess.run([*words, "--max-time", "60"], capture_output=True, text=True)
    if done.returncode == 7:  # curl's number for a connection that is refused
        raise OSError(done.stderr)
    assert done.returncode == 0 and f":{port}/predict" in words[-3], done
    (answer,) = json.loads(done.stdout)["answers"]
    assert answer.keys() == {"next", "probability"} and 0 < answer["probability"] <= 1


def serve(words: list[str], folder: Path, look: Callable[[str], None]) -> None:
    """Starts a server, looks at it, ends it with Ctrl-C."""
    port = words[words.index("--port") + 1]
    process = subprocess.Popen([sys.executable, "-m", "distdl", *words], cwd=folder, start_new_session=True)
    try:
        for _ in range(240):
            try:
                look(port)
                break
            except OSError:
                assert process.poll() is None, f"distdl {words[0]} ended"
                time.sleep(0.25)
        else:
            raise AssertionError(f"distdl {words[0]} served nothing in a minute")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_make_quickstart(quickstart: tuple[Path, Result]) -> None:
    """The very command, in a copy of the checkout, with the environment that is running this."""
    folder, (code, out, error) = quickstart
    if not made_by_make():
        pytest.skip("this interpreter's environment was not made by `make install`")
    assert code == 0, out + error
    accuracy = re.findall(r"^accuracy +([0-9.]+)", out, re.MULTILINE)
    assert float(accuracy[-1]) >= 0.97
    assert (folder / "runs" / "quickstart" / "summary.json").is_file()


def test_each_command_installs_what_it_needs_and_no_more(tmp_path: Path) -> None:
    """`make quickstart` brings no tools of development; each step says what it does and how long it takes."""
    installs = {"quickstart": ["-e ."], "docs": ["-e .", '-e ".[docs]"'], "test": ["-e .", '-e ".[dev]"']}
    for target, expected in installs.items():
        plan = subprocess.run(
            ["make", "-n", target, f"VENV={tmp_path / 'venv'}"], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert plan.returncode == 0, plan.stderr
        lines = plan.stdout.splitlines()
        assert [line.partition("-c constraints.txt ")[2] for line in lines if " pip install " in line] == expected
        said = [line for line in lines if line.startswith("echo ")]
        assert len(said) >= len(expected) and re.search(r"\d GB and \w+ to \w+ minutes", said[0])
    assert "minute" in said[-1], "how long the tests take"


ONLY_WHERE_ASKED_FOR = {
    "ale_py",
    "captum",
    "datasets",
    "h5py",
    "jiwer",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "sacrebleu",
    "soundfile",
    "tokenizers",
    "torchao",
    "torchmetrics",
    "torchvision",
    "transformers",
}
"""Imported by the one family, key, source or command that needs them, which says how to install them."""


def test_what_a_run_imports_is_what_the_quickstart_installs() -> None:
    """Nothing that only the tests bring: every import of distdl/ is of a dependency, or of what one brings along."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    installed = brought_along(re.findall(r'^    "(.*?)"', block, re.MULTILINE))
    owners = metadata.packages_distributions()
    for found in House(PACKAGE).imports:
        if found.ours or found.target in sys.stdlib_module_names:
            continue
        if installed.isdisjoint(map(canonicalize_name, owners.get(found.target, []))):
            assert found.target in ONLY_WHERE_ASKED_FOR and not found.top, (
                f"{found.source}:{found.line}: {found.target}"
            )


def brought_along(requirements: list[str]) -> set[str]:
    """The distributions that pip installs for these, by what the installed ones say of themselves."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        below = [] if key in found else metadata.requires(key[0]) or []
        found.add(key)
        for requirement in map(Requirement, below):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                waiting.append(requirement)
    return {name for name, _ in found}


def test_make_test_and_check_run_the_tests() -> None:
    for target, words in {
        "test": ["pytest tests"],
        "check": ["ruff check", "mypy", "pytest tests"],
        "bench": ["overhead.py", "step.py"],
        "parity": ["benchmarks.parity"],
        "long": ["pytest tests -m long"],
        "docs": ["docs/site/build.py"],
    }.items():
        plan = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True)
        assert plan.returncode == 0 and all(word in plan.stdout for word in words)
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert "make test" in ci and "make docs" in ci


@pytest.mark.parametrize("target", ["test", "check"])
def test_every_test_is_in_one_of_two_parts_that_report_what_takes_long(target: str) -> None:
    """Side by side, and alone; the second is run where the first has failed, too, and then the target fails."""
    command = ["make", "-n", target, "REPORTS=folder", "-o", ".venv/.installed"]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in said.splitlines() if "pytest tests" in line)
    beside, alone = (part.split() for part in line.split("; first=$?; "))
    assert "-n" in beside and "-n" not in alone and alone[-3:] == ["&&", "exit", "$first"]
    for words, name in ((beside, "beside"), (alone, "alone")):
        assert {"--durations=40", f"--junitxml=folder/{name}.xml"} <= set(words)
    told = [re.findall('-m "(.*?)"', " ".join(words))[0] for words in (beside, alone)]
    assert told[0].removesuffix(" and not alone") == told[1].removesuffix(" and alone") != told[0]
    assert "make test REPORTS=" in (REPOSITORY / ".ci" / "run").read_text()


def test_what_the_readme_names_is_there() -> None:
    for page in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:tests|configs|docs|benchmarks)/[\w/.-]+)`", text):
            assert "NAME" in name or (REPOSITORY / name).exists(), f"{page.name}: {name}"


def test_the_table_of_families_is_the_folder_and_the_configs() -> None:
    """Every family has a row, a config that names it, and the acceptance figure that was measured last."""
    rows = {row[0]: row for row in re.findall(r"^\| `(\w+)` \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|$", FAMILIES, re.MULTILINE)}
    configs = {path.name: yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["family"] for path in CONFIGS}
    assert set(rows) == set(family_names()) == set(configs.values())
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "acceptance.json").read_text())["cases"]
    assert {case["family"] for case in results} == set(family_names())
    for name, (_, _, config, _, reached) in rows.items():
        assert {configs[c] for c in re.findall(r"configs/(?:\w+/)?([\w.]+)", config)} == {name}
        figures = [f"{case['reached']:.4g}" for case in results if case["family"] == name]
        assert any(figure in reached for figure in figures), f"{name}: {reached} names none of {figures}"


def test_help_names_every_command() -> None:
    out = python("-m", "distdl", "--help", cwd=REPOSITORY).stdout
    from distdl.cli.main import COMMANDS as NAMES

    assert all(re.search(rf"^    {name}\b", out, re.MULTILINE) for name in NAMES)
