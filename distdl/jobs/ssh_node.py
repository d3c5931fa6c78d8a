"""The part of an SSH job that runs on its machines: starts Ray there, runs the driver, and ends what it started.

    python -m distdl.jobs.ssh_node start DIR < spec.json     the job's processes of this machine, in the background
    python -m distdl.jobs.ssh_node status|stop|end DIR       what the first machine says of the job; how it is ended
    python -m distdl.jobs.ssh_node logs DIR [--from BYTE] [--follow]
    python -m distdl.jobs.ssh_node list JOBS

DIR is the job's folder, which the machines may share; the files of machine N carry its number. A lock that the process in
the background holds says that it is alive: it goes with the process, however that ends.

    package/  log  token  state.json  node-N.{spec,lock,pid,log}
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from distdl.jobs.cause import cause

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)."""
TRACKING = b"tracking: "
"""As distdl.jobs.target has it, whose imports would take this file a second."""
SILENT_S = 30.0
"""Seconds for which a worker's machine looks for a head that does not answer; then it ends its Ray."""
HEAD_STARTS = 3
"""How often a head that does not come up is started."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distdl.jobs.ssh_node")
    parser.add_argument("verb", choices=("start", "run", "status", "stop", "end", "logs", "list"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--node", type=int, default=0)
    parser.add_argument("--from", dest="begin", type=int, default=0)
    parser.add_argument("--follow", action="store_true")
    args = parser.parse_args(argv)
    os.umask(0o077)
    folder = args.folder
    if args.verb == "start":
        return start(folder, json.load(sys.stdin))
    if args.verb == "run":
        return run(folder, args.node)
    if args.verb == "logs":
        return logs(folder, args.begin, args.follow)
    if args.verb == "end":
        end(folder, args.node)
        return 0
    if args.verb == "stop":
        stop(folder)
    found = [p.parent for p in folder.glob("*/state.json")] if args.verb == "list" else [folder]
    told = [status(path) for path in found]
    print(json.dumps(told if args.verb == "list" else told[0]))
    return 0


# -- in front ----------------------------------------------------------------------------------------------------------


def start(folder: Path, spec: dict[str, Any]) -> int:
    """Starts the machine's process in the background; prints {"address": …}, where its Ray is, once it is up. Exit code 3
    where the job is alive already, 1 where Ray did not start."""
    node = spec["node"]
    if alive(folder, node):
        print(f"the job in {folder} is alive", file=sys.stderr)
        return 3
    token = folder / (f"token-{node}" if node else "token")
    token.unlink(missing_ok=True)
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(spec.pop("token"))
    write(_file(folder, node, "spec"), {**spec, "token_path": str(token)})
    ready = _file(folder, node, "ready")
    ready.unlink(missing_ok=True)
    log = _file(folder, node, "log")
    with log.open("ab") as out:
        command = [sys.executable, "-m", "distdl.jobs.ssh_node", "run", str(folder), "--node", str(node)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    while process.poll() is None and not ready.is_file():
        time.sleep(0.05)
    if not ready.is_file():
        print("\n".join(log.read_text(errors="replace").splitlines()[-5:]), file=sys.stderr)
        return 1
    print(ready.read_text())
    return 0


def status(folder: Path) -> dict[str, Any]:
    """The job's state.json and whether it is alive; `log` is its size in bytes."""
    values = read(folder / "state.json")
    log = folder / "log"
    size = log.stat().st_size if log.is_file() else 0
    told = {"alive": alive(folder, 0), "log": size, "tracking": _tracking(log)}
    why = {"cause": _cause(log, size)} if values.get("code") else {}
    return {"id": folder.name, **values, **told, **why}


def stop(folder: Path) -> None:
    """Asks the driver to end, and waits for it and for Ray. Does nothing where the job has ended."""
    state = read(folder / "state.json")
    if not alive(folder, 0):
        return
    write(folder / "state.json", {**state, "stopped": True})
    if state.get("driver"):
        _signal_group(state["driver"], signal.SIGTERM)
    elif pid := read(_file(folder, 0, "pid")).get("pid"):
        _signal(pid, signal.SIGTERM)  # Ray was still starting
    until = time.monotonic() + state.get("stop_s", 150.0)
    while alive(folder, 0) and time.monotonic() < until:
        time.sleep(0.1)


def end(folder: Path, node: int) -> None:
    """Ends the Ray of a worker's machine."""
    if alive(folder, node) and (pid := read(_file(folder, node, "pid")).get("pid")):
        _signal(pid, signal.SIGTERM)
        until = time.monotonic() + 20
        while alive(folder, node) and time.monotonic() < until:
            time.sleep(0.1)


def logs(folder: Path, begin: int, follow: bool) -> int:
    """Writes the log from a byte on; with `follow`, until the job has ended."""
    log = folder / "log"
    while follow and not log.is_file() and alive(folder, 0):
        time.sleep(0.2)
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(begin)
        while True:
            goes_on = follow and alive(folder, 0)  # asked before reading: what was written until then is read below
            while chunk := file.read(2**16):
                sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            if not goes_on:
                return 0
            time.sleep(0.2)


def alive(folder: Path, node: int) -> bool:
    """Whether the process in the background holds its lock."""
    try:
        with _file(folder, node, "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


# -- in the background -------------------------------------------------------------------------------------------------


def run(folder: Path, node: int) -> int:
    """The process in the background: Ray, and on the first machine the driver, until one of them ends."""
    spec = read(_file(folder, node, "spec"))
    with _file(folder, node, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_inheritable(lock.fileno(), False)
        write(_file(folder, node, "pid"), {"pid": os.getpid()})
        signal.signal(signal.SIGTERM, _leave)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans below become children: `_end_children`
        temp = tempfile.mkdtemp(prefix="ddl")  # short: Ray's socket paths must stay below 107 characters
        try:
            return head(folder, spec, temp) if node == 0 else worker(folder, spec, temp)
        except SystemExit:
            return 143
        finally:
            _end_children()
            shutil.rmtree(temp, ignore_errors=True)
            Path(spec["token_path"]).unlink(missing_ok=True)


def head(folder: Path, spec: dict[str, Any], temp: str) -> int:
    """The head of the Ray cluster and the driver, whose output goes to the job's log."""
    state = {
        "attempt": spec["attempt"],
        "run": spec.get("run", ""),
        "owner": spec.get("owner", ""),
        "stop_s": spec["stop_s"],
        "started_s": time.time(),
        "code": None,
        "stopped": False,
    }
    write(folder / "state.json", state)
    code = 1
    try:
        address = own_address(spec["host"])
        _refuse_taken(address, spec["port"])
        where = f"{address}:{spec['port']}"
        _start_head(spec, temp, address, where)
        with (folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "distdl.jobs.drive", *spec["drive"]]
            variables = {**_environment(spec), "RAY_ADDRESS": where}
            driver = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        state = {**state, "driver": driver.pid}
        write(folder / "state.json", state)
        write(_file(folder, 0, "ready"), {"address": where})
        code = driver.wait()
    finally:
        stopped = read(folder / "state.json").get("stopped", False)
        write(folder / "state.json", {**state, "code": code, "stopped": stopped, "ended_s": time.time()})
    return code


def worker(folder: Path, spec: dict[str, Any], temp: str) -> int:
    """A node of the Ray cluster, for as long as its head answers."""
    address = own_address(spec["host"])
    write(_file(folder, spec["node"], "ready"), {"address": address})
    heard = time.monotonic()
    while time.monotonic() - heard < SILENT_S:
        if _answers(spec["head"]):
            heard = time.monotonic()
            if not _node_lives():
                _start_ray(spec, temp, address, f"--address={spec['head']}")
        time.sleep(2)
    return 0


def own_address(host: str) -> str:
    """The address of this machine in the cluster: the IP address that it was reached by, where that is one of its own;
    else '', and Ray finds one."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
        if host.replace(".", "").isdigit() or ":" in host:
            return host
    except OSError:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # the interface of the default route; sends nothing
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _start_head(spec: dict[str, Any], temp: str, address: str, where: str) -> None:
    """Ray's head. Raises RuntimeError where it does not come up."""
    for _ in range(HEAD_STARTS):
        if _start_ray(spec, temp, address, "--head", f"--port={spec['port']}", "--include-dashboard=false"):
            return
    raise RuntimeError(f"Ray's head at {where} did not come up")


def _start_ray(spec: dict[str, Any], temp: str, address: str, *options: str) -> bool:
    """`ray start` with ports that are free, because another Ray may run on the machine. Returns whether the node is up:
    Ray gives up after 30 s, which a busy machine may need."""
    _end_children()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"]
    command += [f"--node-ip-address={address}", f"--temp-dir={temp}"]
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "runtime-env-agent-port",
    )
    command += [f"--{name}={port}" for name, port in zip(names, _free_ports(len(names)))]
    command += ["--min-worker-port=0", "--max-worker-port=0", *options]
    variables = {k: v for k, v in _environment(spec).items() if k != "RAY_ADDRESS"}
    return subprocess.run(command, env=variables, stdin=subprocess.DEVNULL).returncode == 0


def _node_lives() -> bool:
    """Whether Ray's node daemon runs; orphans are our children (PR_SET_CHILD_SUBREAPER)."""
    children = psutil.Process().children()
    return any(c.name().startswith("raylet") and c.status() != psutil.STATUS_ZOMBIE for c in children)


def _environment(spec: dict[str, Any]) -> dict[str, str]:
    """Of Ray and the driver: the package comes first where they import from."""
    ours = {"PYTHONPATH": os.getcwd(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": spec["token_path"]}
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    return {**inherited, **spec["environment"], **ours, "PYTHONUNBUFFERED": "1"}


def _refuse_taken(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            why = f"port {port} of {address} is taken ({error.strerror}): give another launch.ssh.port"
            raise RuntimeError(why) from None


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _answers(where: str) -> bool:
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        return False
    return True


def _end_children() -> None:
    """Kills every process below this one. SIGTERM would let Ray drain for half a minute, and nothing is left to drain."""
    for process in psutil.Process().children(recursive=True):
        _signal(process.pid, signal.SIGKILL)


def _leave(*_: Any) -> None:
    raise SystemExit(143)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


def _file(folder: Path, node: int, kind: str) -> Path:
    return folder / f"node-{node}.{kind}"


def _tracking(log: Path) -> str:
    """The last line of the log that tells of an MLflow run, or ''."""
    last = b""
    if log.is_file():
        with log.open("rb") as file:
            for line in file:
                last = line if TRACKING in line else last
    return last.decode("utf-8", "replace").rstrip()


def _cause(log: Path, size: int) -> str:
    """Why the driver ended, by the last lines of the log."""
    if not size:
        return ""
    with log.open("rb") as file:
        file.seek(max(0, size - 2**16))
        return cause(file.read().decode("utf-8", "replace"))


def read(path: Path) -> dict[str, Any]:
    """A JSON file; {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write(path: Path, values: dict[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


if __name__ == "__main__":
    sys.exit(main())
