"""Data sets that many tests read, and the real command in a process of its own."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.forks import REPOSITORY, SERVERS

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: small tensors, and other tests beside this one

HOME = tempfile.TemporaryDirectory(prefix="distdl-home-")
os.environ["DISTDL_HOME"] = HOME.name  # what tests launch, train and trust is not this user's own


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


def distdl(*args: object, cwd: str | Path, timeout_s: float = 300) -> Result:
    """`python -m distdl ARGS`, as a user would run it in the folder `cwd`, in a process that is forked (`tests.forks`)."""
    if any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd")):  # the forks have a CPU's DeepSpeed
        return python("-m", "distdl", *args, cwd=cwd, timeout_s=timeout_s)
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder) / "out", Path(folder) / "error"
        process = SERVERS[0].fork("distdl", [*map(str, args)], variables(), Path(cwd).absolute(), out, error)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return Result(code, out.read_text(), error.read_text())


def python(*args: object, cwd: str | Path, timeout_s: float = 300) -> Result:
    """A fresh interpreter that finds this checkout."""
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=variables(), capture_output=True, text=True, timeout=timeout_s)
    return Result(done.returncode, done.stdout, done.stderr)


def variables() -> dict[str, str]:
    """The environment of a command."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}


FIRST = (
    *("test_resume", "test_end_to_end", "test_tune", "test_parity", "test_readme", "test_memory", "test_compiled"),
    *(
        "test_pipeline",
        "test_sequence",
        "test_moe",
        "test_gpu_first",
        "test_mutants",
        "test_ways",
        "test_mlflow_server",
    ),
)
"""Files that take long, the longest first. Where several are run side by side, nothing is left that starts one when all
others are done."""
APART = {
    *(
        "test_resume",
        "test_end_to_end",
        "test_memory",
        "test_compiled",
        "test_sequence",
        "test_accumulation",
        "test_readme",
    ),
    *("test_spike", "test_vocabulary", "test_api", "test_gpu_first"),
}
"""Files whose slow tests share nothing that takes long: each goes to the worker that is free."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For a worker of pytest-xdist: tests of one file stay together, with their fixtures, but for the slow ones of `APART`;
    the long files come first."""
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            apart = item.path.stem in APART and item.get_closest_marker("slow")
            item.add_marker(pytest.mark.xdist_group(item.nodeid if apart else item.nodeid.split("::")[0]))
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    """What was imported stays, and each run and engine of this process need not look through it for garbage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """What a command or an engine sets for its own process is not left to the tests that follow in this one, which differ
    from run to run."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
    if noise := sys.modules.get("distdl.layout.noise"):
        noise.begin(0, None)
    if process := sys.modules.get("distdl.layout.process"):
        assert not process.alone._is_owned(), "who trains next in another thread would wait for ever"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The same command line inside this process: without the seconds of importing torch once more."""
    from distdl.cli.main import main

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # main() sets it for good otherwise
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:  # argparse's way out
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test file's own."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`place` is the working folder, for tests that ask for this (`pytest.mark.usefixtures`)."""
    monkeypatch.chdir(place)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """`make quickstart`, the very command, in a copy of the checkout with the environment that is running this; without one
    that `make install` has made, what it calls. -> The folder, and how it ended. For tests of the group `ray`."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    environment = Path(sys.prefix)
    if not made_by_make():
        return folder, distdl("train", "configs/quickstart.yaml", "--fresh", cwd=folder)
    command = ["make", "quickstart", f"VENV={environment}", "-o", str(environment / ".installed-run")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return folder, Result(done.returncode, done.stdout, done.stderr)


def made_by_make() -> bool:
    """Whether this interpreter's environment is what `make install` makes."""
    return (Path(sys.prefix) / ".installed").is_file()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the data sets that the small runs of all families read, one for all workers of pytest-xdist; each is
    written when first asked for."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "small"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def digits(small_data: Path) -> str:
    """scikit-learn's 1,797 digits as a data set: 1,438 training and 359 test images of (1, 8, 8)."""
    from tests.small import prepared

    return prepared({"source": "digits"}, small_data)


@pytest.fixture(scope="session")
def text(small_data: Path) -> str:
    """40 kB of the standard library's source as samples of 17 bytes."""
    from tests.small import prepared

    return prepared({"source": "stdlib", "options": {"context": "16", "max_bytes": "40000"}}, small_data)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder in $DISTDL_DATA with real raw data."""
    folder = os.environ.get("DISTDL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DISTDL_DATA does not name a folder of raw data")
    return Path(folder)
