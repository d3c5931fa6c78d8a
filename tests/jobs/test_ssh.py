"""Jobs over a real sshd on this machine, under two of its loopback addresses: one machine runs the head, both train."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from distdl.checkpoint.layout import checkpoints
from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError
from distdl.jobs import ssh_node
from distdl.jobs.package import make_package
from distdl.jobs.ssh import SshTarget, packed
from distdl.jobs.target import State
from tests.runtime.cluster import command_line, wait_for

HOSTS = ["127.0.1.1", "127.0.1.2"]
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
STEPS = 1500


class Machines(NamedTuple):
    options: list[str]
    """Of ssh, so that it finds the machines' keys and port and nothing of this user's."""
    home: Path
    shared: Path
    port: int
    """Of Ray's head."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """An sshd of our own: keys, configuration and port."""
    if not Path(SSHD).is_file() or not shutil.which("ssh-keygen"):
        pytest.skip("openssh-server is not installed")
    tmp = tmp_path_factory.mktemp("ssh")
    tmp.chmod(0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    port = free_port()
    lines = [f"ListenAddress {host}:{port}" for host in HOSTS] + [
        f"HostKey {tmp / 'host'}",
        f"AuthorizedKeysFile {tmp / 'user.pub'}",
        f"PidFile {tmp / 'sshd.pid'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
    ]
    (tmp / "sshd_config").write_text("\n".join(lines) + "\n")
    with (tmp / "sshd.log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp / "sshd_config")], stderr=log)
    key = (tmp / "host.pub").read_text().split(None, 2)[:2]
    (tmp / "known").write_text("".join(f"[{host}]:{port} {' '.join(key)}\n" for host in HOSTS))
    options = ["-F", "/dev/null", f"-p{port}", "-i", str(tmp / "user"), f"-oUserKnownHostsFile={tmp / 'known'}"]
    options += ["-oStrictHostKeyChecking=yes", "-oIdentitiesOnly=yes"]
    (tmp / "shared").mkdir()
    (tmp / "home").mkdir()
    try:
        made = Machines(options, tmp / "home", tmp / "shared", free_port())
        yield made
    finally:
        for process in belonging(made):  # of a test that failed
            process.kill()
        server.terminate()
        server.wait(10)


def config(machines: Machines, name: str, digits: str, **changes: Any) -> Path:
    values = {
        "name": name,
        "model": {"family": "mlp", "inputs": [1, 8, 8], "hidden": [16], "classes": 10},
        "data": {"path": digits, "threads": 0},
        "train": {"global_batch": 16, "steps": STEPS},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "parallel": {"engine": "torch"},
        "checkpoint": {"every_steps": 100},
        "track": {"system_metrics_interval_s": 0},
        "runtime": {"kind": "ray", "workers": 2},
        "launch": {
            "on": "ssh",
            "folder": str(machines.shared),
            "ssh": {"hosts": HOSTS, "python": sys.executable, "port": machines.port, "options": machines.options},
            **changes,
        },
    }
    path = machines.shared.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def call(machines: Machines, *arguments: object, code: int = 0) -> str:
    command, variables = command_line(machines.home, *arguments)
    done = subprocess.run(command, env=variables, cwd=machines.home, capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def belonging(machines: Machines) -> list[psutil.Process]:
    """Processes of a job of the machines: what runs it, its Ray and its driver."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        token = (process.info["environ"] or {}).get("RAY_AUTH_TOKEN_PATH", "")
        if token.startswith(str(machines.shared)) or f"run {machines.shared}" in " ".join(
            process.info["cmdline"] or []
        ):
            found.append(process)
    return found


def left_behind(machines: Machines) -> list[str]:
    """Their command lines."""
    return [" ".join(process.info["cmdline"] or []) for process in belonging(machines)]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_two_machines_train_stop_and_resume(machines: Machines, digits: str) -> None:
    told = call(machines, "launch", config(machines, "bare", digits))
    assert "bare was sent to ssh: running" in told
    assert "bare is alive on 127.0.1.1: running" in call(
        machines, "launch", machines.shared.parent / "bare.yaml", code=2
    )
    token = (machines.shared / ".distdl" / "jobs" / "bare" / "token").read_text()
    assert len(token) == 64
    job = machines.shared / ".distdl" / "jobs" / "bare"
    assert (job.stat().st_mode & 0o777, (job / "token").stat().st_mode & 0o777) == (0o700, 0o600)
    assert not [w for w in left_behind(machines) if token in w], "the token stands on a command line"
    wait_for(lambda: sum("raylet/raylet " in w for w in left_behind(machines)) == 2, "two nodes")
    nodes = {w for w in left_behind(machines) if "raylet/raylet " in w}
    assert {host for host in HOSTS if any(f"node_ip_address={host}" in w for w in nodes)} == set(HOSTS)

    run = machines.shared / "runs" / "bare"
    wait_for(lambda: any(step >= 100 for step, _ in checkpoints(run / "checkpoints")), "a checkpoint of step 100")
    stopped = call(machines, "jobs", "stop", "bare")
    assert "bare: stopped" in stopped and "tracking " in stopped
    wait_for(lambda: not left_behind(machines), "end of everything", 30)
    done = max(step for step, _ in checkpoints(run / "checkpoints"))
    assert 100 <= done < STEPS

    resumed = call(machines, "jobs", "resume", "bare", "-f")
    assert "attempt 2" in resumed and resumed.rstrip().endswith("bare: finished")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert any(e["kind"] == "restart" and e["step"] == done for e in events), "it began anew"
    status = call(machines, "jobs", "status", "bare")
    link = [line.split()[1:] for line in stopped.splitlines() if "tracking" in line]
    assert "bare: finished" in status and link[-1][0] in status, "another MLflow run"
    assert "bare  finished  2" in call(machines, "jobs", "list")
    assert "step 1,500" in call(machines, "jobs", "logs", "bare")
    wait_for(lambda: not left_behind(machines), "end of everything, on the second machine too", 60)
    assert not [p for p in (machines.shared / ".distdl" / "jobs" / "bare").iterdir() if p.name.startswith("token")]


def test_what_cannot_be_reached_is_told(machines: Machines, digits: str) -> None:
    for changes, words in (
        ({"hosts": ["127.0.1.9"]}, "cannot be reached"),
        ({"hosts": HOSTS, "python": "/no/such/python"}, "launch.ssh.python"),
    ):
        ssh = {"options": machines.options, "python": sys.executable, **changes}
        package = make_package(str(config(machines, "unreached", digits, ssh=ssh)), [])
        with pytest.raises(DistdlError) as caught:
            SshTarget(changes["hosts"], package.config.launch).submit(package)
        assert words in str(caught.value) and "fix: " in str(caught.value)
        assert not left_behind(machines)
    package = make_package(str(config(machines, "unreached", digits)), [])
    target = SshTarget(HOSTS, package.config.launch)
    assert target.job("unknown").state is State.LOST
    assert {job.id for job in target.jobs()} <= {"bare"}, "a job that never began is none"
    with pytest.raises(InputError, match="has no job 'unknown'"):
        target.stop("unknown")
    with pytest.raises(InputError, match="has no job 'unknown'"):
        list(target.logs("unknown", follow=True))


def test_dry_run_prints_the_commands_that_are_run(
    machines: Machines, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_package(str(config(machines, "dry", digits)), ["train.steps=5"])
    target = SshTarget(HOSTS, package.config.launch)
    shown = target.dry_run(package)
    ran: list[tuple[list[str], bytes]] = []

    def run(command: list[str], input: bytes, **_: Any) -> Any:
        ran.append((command, input))
        code = 44 if "ssh_node status" in command[-1] else 0
        return subprocess.CompletedProcess(command, code, b'{"address": "10.0.0.1:6379"}', b"")

    monkeypatch.setattr(subprocess, "run", run)
    target.submit(package)
    import shlex

    expected = [shlex.split(line) for line in shown.splitlines() if not line.startswith("  stdin")]
    nonce = next(word for c, _ in ran for word in c[-1].split() if word.startswith("sent-") and "*" not in word)
    made = [[text.replace(nonce, "sent-HASH") for text in command] for command, _ in ran[1:]]
    assert made == expected
    assert ran[1][1] == ran[2][1] == packed(package.folder)
    specs = [json.loads(data) for command, data in ran if "ssh_node start" in command[-1]]
    assert len({spec["token"] for spec in specs}) == 1 and len(specs[0]["token"]) == 64
    assert specs[0]["token"] not in shown and not any(specs[0]["token"] in " ".join(c) for c, _ in ran)
    assert specs[1]["head"] == "10.0.0.1:6379"


def test_a_host_is_never_an_option() -> None:
    for host in ("-oProxyCommand=touch", "a b", ""):
        with pytest.raises(InputError):
            SshTarget([host] if host else [], Launch())


def test_a_log_is_followed_to_its_end_and_a_dead_job_is_told(tmp_path: Path) -> None:
    """The machine's own words, without a network: the lock says that the job lives, and nothing else does."""
    job = tmp_path / "job"
    job.mkdir()
    code = f"""
import fcntl, sys, time
lock = open({str(job / "node-0.lock")!r}, "w"); fcntl.flock(lock, fcntl.LOCK_EX)
log = open({str(job / "log")!r}, "a")
for i in range(5):
    log.write(f"line {{i}}\\n"); log.flush(); time.sleep(0.1)
log.write("tracking: http://mlflow/#/1\\nend"); log.flush()
time.sleep(float(sys.argv[1]))
"""
    process = subprocess.Popen([sys.executable, "-c", code, "0"])
    while not ssh_node.alive(job, 0):
        time.sleep(0.01)
    command = [sys.executable, "-m", "distdl.jobs.ssh_node", "logs", str(job), "--follow", "--from", "7"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    assert output == "line 1\nline 2\nline 3\nline 4\ntracking: http://mlflow/#/1\nend"
    process.wait()
    ssh_node.write(job / "state.json", {"attempt": 3, "started_s": 1.0, "code": None, "stopped": False})
    from distdl.jobs.ssh import _job

    told = _job(ssh_node.status(job))
    assert (told.state, told.attempt, told.tracking) == (State.FAILED, 3, "http://mlflow/#/1")
    assert "ended from outside" in told.message
    process = subprocess.Popen([sys.executable, "-c", code, "60"])
    while not ssh_node.alive(job, 0):
        time.sleep(0.01)
    assert _job(ssh_node.status(job)).state is State.RUNNING
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _job(ssh_node.status(job)).state is State.FAILED
