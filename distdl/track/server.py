"""The MLflow UI of this project's own store, as one process group that ends as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from distdl.errors import DistdlError, InputError
from distdl.track import database
from distdl.track.run import (
    ARTIFACTS_NAME,
    INFO_NAME,
    STORE_NAME,
    TRAINING_MODE,
    default_tracking_uri,
    load,
    store_folder,
)
from distdl.track.store import ENVIRONMENT

START_TIMEOUT_S = 120.0
CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_TOKEN")
"""Of tracking servers elsewhere."""
STOP_TIMEOUT_S = 5.0


class UiServer:
    """A running MLflow UI. `start` returns when it answers; `stop` ends all its processes."""

    def __init__(self, runs_dir: str | Path, host: str = "127.0.0.1", port: int = 5000) -> None:
        self.runs_dir = store_folder(Path(runs_dir))
        self.host = host
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def url(self) -> str:
        return url_of(self.host, self.port)

    @property
    def page(self) -> str:
        """Where the runs of the folder are listed, those of the experiment that was tracked last, as runs that train."""
        found = self._experiment()
        return f"{self.url}/#/experiments/{found}/runs?{TRAINING_MODE}" if found else self.url

    def _experiment(self) -> str:
        own, newest, found = default_tracking_uri(self.runs_dir), -1.0, ""
        for file in self.runs_dir.glob(f"*/{INFO_NAME}"):
            with contextlib.suppress(DistdlError, OSError):
                info, changed_s = load(file.parent), file.stat().st_mtime
                if info and info.tracking_uri == own and info.experiment_id and changed_s > newest:
                    newest, found = changed_s, info.experiment_id
        return found

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Raises InputError for a runs folder without a store or a port that is taken, DistdlError if it does not come up, or
        for a store that cannot be read.
        """
        if not (self.runs_dir / STORE_NAME).is_file():
            raise InputError(
                f"{self.runs_dir} holds no {STORE_NAME}: nothing was tracked there yet",
                where="--runs",
                fix="name the folder that holds your runs (`--runs DIR`), or train something first",
            )
        database.ready(self.runs_dir / STORE_NAME)
        if not is_free(self.host, self.port):
            raise InputError(
                f"port {self.port} of {self.host} is in use",
                where="--port",
                fix=f"--port {free_port(self.host, self.port + 1)}",
            )
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,  # a group of its own: killing only the parent would leave its workers behind
            # Its database is a file, which needs no credentials, and may name places for the files of its runs that it
            # would show them to.
            env={key: value for key, value in os.environ.items() if key not in CREDENTIALS}
            | {**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
        self._wait_until_it_answers()

    def wait(self) -> int:
        """Blocks until the server ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Ends every process of the group: politely, then by force."""
        if self._process is None:
            return
        group = self._process.pid
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, sign)
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            while time.monotonic() < deadline_s:
                self._process.poll()
                if not _group_lives(group):
                    break
                time.sleep(0.05)
            else:
                continue
            break
        self._process.wait()

    def output(self) -> str:
        """The last lines that the server printed."""
        if self._output is None:
            return ""
        self._output.seek(0)
        return "\n".join(self._output.read().decode("utf-8", "replace").splitlines()[-15:])

    def _command(self) -> list[str]:
        artifacts = (self.runs_dir.resolve() / ARTIFACTS_NAME).as_uri()
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            self.host,
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            default_tracking_uri(self.runs_dir),
            "--serve-artifacts",
            "--artifacts-destination",
            artifacts,
        ]

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise DistdlError(f"the MLflow UI ended while starting:\n{self.output()}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # localhost: never by a proxy
                if opener.open(f"{self.url}/health", timeout=2.0).status == 200:
                    return
            time.sleep(0.2)
        self.stop()
        raise DistdlError(f"the MLflow UI did not answer within {START_TIMEOUT_S:.0f} s:\n{self.output()}")


def free_port(host: str, first: int) -> int:
    """The first free port from `first` on (any free one if none near is)."""
    for port in range(first, min(first + 100, 65536)):
        if is_free(host, port):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """The address that a browser of this machine opens."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there. InputError: nobody can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last owner just left is free
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise InputError(f"port {port} needs special rights", where="--port", fix="--port 5000") from error
        except (socket.gaierror, OverflowError) as error:
            raise InputError(
                f"{host}:{port} is not an address to listen on",
                where="--host",
                fix="--host 127.0.0.1",
            ) from error
        except OSError:
            return False
    return True


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
