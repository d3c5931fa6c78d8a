"""Bare machines as a target, reached by the OpenSSH client alone.

The package goes to LAUNCH.FOLDER/.distdl/jobs/ID of every machine (once, where they share the folder). There,
distdl.jobs.ssh_node starts a Ray of its own on each: the head and the driver on the first one. It needs no connection
from then on, and ends all of it when the driver ends. Ray's token is made for the job and goes over stdin into a file that
only the user can read; it stands on no command line.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError
from distdl.jobs.drive import driven, stop_s
from distdl.jobs.package import EPOCH_S, digest, size_text
from distdl.jobs.target import Job, Package, State, refuse_other, start_variables, tracking_link

CONNECT_S = 15
UNKNOWN, ALIVE = 44, 3
"""Exit codes of our own: no such job there; it is alive."""
BROKEN = 255
"""ssh's exit code for a connection that failed or broke."""
PATIENCE = 10
"""Connections in a row that may break before `logs -f` gives up."""


class SshTarget:
    """Jobs on these machines; the first runs the head and the driver."""

    def __init__(self, hosts: Sequence[str], launch: Launch) -> None:
        if not hosts:
            raise InputError(
                "no machine is named", where="--on ssh", fix="launch.ssh.hosts: [gpu1, gpu2], or --on ssh://HOST"
            )
        for host in hosts:
            if host.startswith("-") or any(c.isspace() for c in host):
                raise InputError(f"{host!r} is no host", where="launch.ssh.hosts", allowed="HOST, USER@HOST")
        self.hosts, self.launch = [f"ssh://{h}" if ":" in h and "://" not in h else h for h in hosts], launch
        folder = launch.folder or os.getcwd()
        if not Path(folder).is_absolute():
            raise InputError(f"launch.folder = {folder!r} is not an absolute path", fix="begin it with /")
        self.folder, self.root = folder, f"{folder}/.distdl/jobs"

    # -- what every target can do --------------------------------------------------------------------------------------

    def dry_run(self, package: Package) -> str:
        """The commands, in order, and what goes into their stdin."""
        nonce, lines = "HASH", []
        for host in self.hosts:
            lines.append(f"{shlex.join(self._ssh(host))} {shlex.quote(self._receive(package.id, nonce))}")
            lines.append(f"  stdin: tar of {size_text(package.folder)}, sha256 {digest(package.folder)}")
        for node, host in enumerate(self.hosts):
            lines.append(f"{shlex.join(self._ssh(host))} {shlex.quote(self._node(package.id, 'start'))}")
            spec = self._spec(package, node, 1, "ADDRESS OF THE HEAD", "TOKEN, 64 RANDOM DIGITS")
            lines.append(f"  stdin: {json.dumps(spec)}")
        return "\n".join(lines)

    def submit(self, package: Package) -> Job:
        """See Target. Returns when Ray's head is up and the driver runs."""
        before = self._state(package.id)
        if before:
            refuse_other(_job(before), package, f"on {self.hosts[0]}")
        attempt = int(before.get("attempt", 0)) + 1
        self._send(package)
        token = secrets.token_hex(32)
        spec = self._spec(package, 0, attempt, "", token)
        address = json.loads(self._run(self.hosts[0], self._node(package.id, "start"), spec))["address"]
        try:
            self._on_others(
                lambda node, host: self._run(
                    host, self._node(package.id, "start"), self._spec(package, node, attempt, address, token)
                )
            )
        except DistdlError:
            self.stop(package.id)  # a cluster that lacks a machine would wait for it
            raise
        return Job(package.id, State.RUNNING, attempt=attempt, started_s=time.time())

    def jobs(self) -> list[Job]:
        """See Target."""
        every = f"{shlex.quote(self.root)}/*/package"
        command = (
            f"for p in {every}; do cd \"$p\" 2>/dev/null && exec {self._module('list', self.root)}; done; echo '[]'"
        )
        found = json.loads(self._run(self.hosts[0], command))
        return sorted((_job(told) for told in found), key=lambda job: -(job.started_s or 0))

    def job(self, id: str) -> Job:
        """See Target."""
        told = self._state(id)
        return _job(told) if told else Job(id, State.LOST, f"{self.hosts[0]} has no {self.root}/{id}")

    def logs(self, id: str, follow: bool = False) -> Iterator[str]:
        """See Target. A connection that breaks is made again, and goes on at the byte where it broke."""
        seen, rest, broken = 0, b"", 0
        while True:
            command = self._node(id, "logs", "--from", str(seen), *(["--follow"] if follow else []))
            process = subprocess.Popen(
                [*self._ssh(self.hosts[0]), command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdout and process.stderr
            try:
                while chunk := os.read(process.stdout.fileno(), 2**16):
                    seen, broken = seen + len(chunk), 0
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode("utf-8", "replace") for line in lines)
                code, words = process.wait(), process.stderr.read().decode("utf-8", "replace")
            finally:
                process.kill()
                process.wait()
            broken += 1
            if code != BROKEN or not follow or broken > PATIENCE:
                break
            time.sleep(2)
        if rest:
            yield rest.decode("utf-8", "replace")
        if code:
            raise self._error(self.hosts[0], id, code, words)

    def stop(self, id: str) -> Job:
        """See Target. The driver ends its workers, then Ray ends on every machine."""
        self._run(self.hosts[0], self._node(id, "stop"), id=id)
        try:
            self._on_others(lambda node, host: self._run(host, self._node(id, "end", "--node", str(node))))
        except DistdlError:
            pass  # that machine notices by itself that the head is gone
        job = self.job(id)
        if not job.state.ended:
            raise DistdlError(f"{id} was told to stop and is still alive: ask again")
        return job

    # -- how -----------------------------------------------------------------------------------------------------------

    def _spec(self, package: Package, node: int, attempt: int, head: str, token: str) -> dict[str, Any]:
        """What a machine is told on stdin."""
        launch = package.config.launch
        of_head = {
            "port": launch.ssh.port,
            "attempt": attempt,
            "run": package.config.name,
            "owner": package.owner,
            "drive": driven(package, self.folder),
            "stop_s": stop_s(package) + 30,
        }
        return {
            "node": node,
            "host": self.hosts[node].removeprefix("ssh://").rpartition("@")[2],
            "environment": {**start_variables(launch), **launch.environment},
            "token": token,
            **({"head": head} if node else of_head),
        }

    def _ssh(self, host: str) -> list[str]:
        own = ["-oBatchMode=yes", f"-oConnectTimeout={CONNECT_S}"]
        alive = ["-oServerAliveInterval=15", "-oServerAliveCountMax=4"]  # or a line that went dead blocks for ever
        return ["ssh", *own, *self.launch.ssh.options, *alive, host]

    def _module(self, *arguments: str) -> str:
        python = self.launch.ssh.python
        quoted = python if python.startswith("~/") else shlex.quote(python)  # the shell there knows its home
        former = "distdl.runtime.ssh_node"  # the name that packages of the last release know, too
        return f"{quoted} -m {former} {shlex.join(arguments)}"

    def _node(self, id: str, verb: str, *more: str) -> str:
        """The command line of ssh_node there, with the package's own code."""
        folder = shlex.quote(f"{self.root}/{id}/package")
        return f"cd {folder} 2>/dev/null || exit {UNKNOWN}; exec {self._module(verb, f'{self.root}/{id}', *more)}"

    def _receive(self, id: str, nonce: str) -> str:
        """The command line that unpacks stdin beside the old package and takes its place; nothing where `nonce` is there
        already, because the machines share the folder."""
        folder = f"{self.root}/{id}"
        steps = [
            "umask 077",
            f"mkdir -p {shlex.quote(folder)}",
            f"cd {shlex.quote(folder)}",
            f"{{ [ -e sent-{nonce} ] && cat >/dev/null && exit; rm -rf new sent-*; }}",
            "mkdir new",
            "tar -xf - -C new",
            "rm -rf package",
            "mv new package",
            f"touch sent-{nonce}",
        ]
        return " && ".join(steps)

    def _send(self, package: Package) -> None:
        data, nonce = packed(package.folder), secrets.token_hex(8)
        for host in self.hosts:  # one after the other: the second of two that share the folder finds the first one's
            self._run(host, self._receive(package.id, nonce), data)

    def _on_others(self, act: Any) -> None:
        """Calls act(node, host) for every machine but the first, at the same time. Raises the first error."""
        others = list(enumerate(self.hosts))[1:]
        if others:
            with ThreadPoolExecutor(min(32, len(others))) as pool:
                list(pool.map(lambda item: act(*item), others))

    def _state(self, id: str) -> dict[str, Any]:
        """What ssh_node tells of a job; {} where it is unknown."""
        done = self._call(self.hosts[0], self._node(id, "status"), b"")
        if done.returncode == UNKNOWN:
            return {}
        if done.returncode:
            raise self._error(self.hosts[0], id, done.returncode, done.stderr.decode("utf-8", "replace"))
        told: dict[str, Any] = json.loads(done.stdout)
        return told if "attempt" in told else {}

    def _run(self, host: str, command: str, stdin: bytes | dict[str, Any] = b"", id: str = "") -> str:
        """A command's output. Raises DistdlError for what failed."""
        data = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
        done = self._call(host, command, data)
        if done.returncode:
            raise self._error(host, id, done.returncode, done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "replace")

    def _call(self, host: str, command: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run([*self._ssh(host), command], input=data, capture_output=True)
        except FileNotFoundError:
            raise DistdlError("there is no ssh on this machine\n    fix: install OpenSSH's client") from None

    def _error(self, host: str, id: str, code: int, words: str) -> DistdlError:
        lines = [line.strip() for line in words.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {code}"
        if code == UNKNOWN:
            return InputError(f"{host} has no job {id!r} in {self.root}", fix="`distdl jobs list --on …`")
        if code == ALIVE:
            return InputError(f"the job {id} is alive on {host}", fix=f"`distdl jobs status {id}` tells whose it is")
        if code == BROKEN:
            return DistdlError(
                f"{host} cannot be reached: {last}\n    fix: `ssh {host} true` must work without a question"
            )
        if code == 127:
            return DistdlError(f"{host} has no {self.launch.ssh.python}\n    fix: launch.ssh.python: PATH of one")
        return DistdlError(f"{host}: {last}")


def packed(folder: Path) -> bytes:
    """A tar of a package: the same bytes for the same files, whoever packs them."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = EPOCH_S
        return info

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(folder, arcname=".", filter=plain)
    return data.getvalue()


def _job(told: dict[str, Any]) -> Job:
    code, message = told.get("code"), ""
    if told["alive"]:
        state = State.RUNNING
    elif code == 0:
        state = State.FINISHED
    elif told.get("stopped"):
        state = State.STOPPED
    else:
        state = State.FAILED
        message = "its machine, or its processes there, were ended from outside"
        if code is not None:
            message = f"exit code {code}: {told.get('cause', '')}".removesuffix(": ")
    whose = {name: str(told.get(name, "")) for name in ("run", "owner")}
    tracking = tracking_link([told["tracking"]])
    return Job(told["id"], state, message, int(told["attempt"]), told.get("started_s"), tracking, **whose)
