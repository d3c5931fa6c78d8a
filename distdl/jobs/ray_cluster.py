"""A running Ray cluster as a target: Ray Jobs, the REST interface of its dashboard.

- A job is one submission per attempt, ID-1, ID-2, …: Ray keeps the ended ones, and a name is taken for good.
- The driver runs on the head node, in the unpacked package, whose distdl is also the one that the workers import.
- Ray Jobs never starts a driver again. distdl.jobs.drive does while the head node lives; a cluster that lost its head
  has forgotten its jobs, and `distdl jobs resume` submits the job anew, which continues its run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distdl import __version__
from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError
from distdl.jobs.cause import of_message
from distdl.jobs.drive import driven, stop_s
from distdl.jobs.package import digest, size_text
from distdl.jobs.target import Job, Package, State, refuse_other, start_variables, tracking_link

STATES = {
    "PENDING": State.QUEUED,
    "RUNNING": State.RUNNING,
    "STOPPED": State.STOPPED,
    "SUCCEEDED": State.FINISHED,
    "FAILED": State.FAILED,
}
DASHBOARD_PORT = 8265
PATIENCE = 10
"""Questions, 3 s apart, that a cluster may leave unanswered before `logs -f` gives up."""
TOKEN_HELP = "set RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token to the token that its head was started with"


class RayJobsTarget:
    """Jobs of one Ray cluster, by the address of its dashboard or of its Ray Client server (ray://)."""

    def __init__(self, address: str, launch: Launch) -> None:
        self.address, self.launch = address.rstrip("/"), launch
        self._client: Any = None

    # -- what every target can do --------------------------------------------------------------------------------------

    def dry_run(self, package: Package) -> str:
        """The body of the POST to /api/jobs/ of a first submission, and the files of its working directory."""
        body = json.dumps(self._request(package, 1), indent=2)
        files = sorted(str(p.relative_to(package.folder)) for p in package.folder.rglob("*") if p.is_file())
        outside = [name for name in files if not name.startswith("distdl/")]
        return "\n".join(
            [
                f"POST {self.address}/api/jobs/",
                body,
                f"working_dir: {size_text(package.folder)}, sha256 {digest(package.folder)}",
                *(f"  {name}" for name in outside),
                f"  distdl/ ({len(files) - len(outside)} files of distdl {__version__})",
            ]
        )

    def submit(self, package: Package) -> Job:
        """See Target."""
        request = self._request(package, 0)  # what is wrong with the config is told before anything is reached
        attempts = self._attempts(package.id)
        if attempts:
            refuse_other(_job(attempts[-1]), package, f"at {self.address}")
        number = max((_attempt(details) for details in attempts), default=0) + 1
        request = self._request(package, number)
        with self._told():
            # A working_dir is filtered by the .gitignore files in it; the package is complete as it is.
            os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"
            self._connected().submit_job(**request)
        return Job(package.id, State.QUEUED, attempt=number)

    def jobs(self) -> list[Job]:
        """See Target."""
        latest: dict[str, Any] = {}
        for details in sorted(self._all(), key=lambda d: d.start_time or 0):
            latest[details.metadata["distdl_job"]] = details  # a later attempt takes the place of an earlier one
        return [_job(details) for details in reversed(latest.values())]

    def job(self, id: str) -> Job:
        """See Target."""
        attempts = self._attempts(id)
        if not attempts:
            return Job(
                id, State.LOST, "the Ray cluster knows nothing of it; one that was restarted has forgotten its jobs"
            )
        with self._told():
            log = self._connected().get_job_logs(attempts[-1].submission_id)
        return _job(attempts[-1], tracking_link(log.splitlines()))

    def logs(self, id: str, follow: bool = False) -> Iterator[str]:
        """See Target. A stream that breaks is taken up again where it broke."""
        submission = self._latest(id).submission_id
        if not follow:
            with self._told():
                yield from self._connected().get_job_logs(submission).splitlines()
            return
        seen, rest = 0, ""
        while True:
            again = 0  # characters of this stream so far; a new one begins at the log's first
            try:
                for chunk in self._stream(submission):
                    new = chunk[max(0, seen - again) :]
                    again += len(chunk)
                    seen = max(seen, again)
                    *lines, rest = (rest + new).split("\n")
                    yield from lines
            except (OSError, RuntimeError, asyncio.TimeoutError):
                pass  # the state below, not the stream, says whether the job has ended
            if self._has_ended(id):
                break
            time.sleep(1)
        if rest:
            yield rest

    def stop(self, id: str) -> Job:
        """See Target. Waits until the driver has ended its workers."""
        details = self._latest(id)
        if STATES[details.status].ended:
            return self.job(id)
        with self._told():
            self._connected().stop_job(details.submission_id)
        patience_s = float(details.metadata.get("distdl_stop_s", 120)) + 30
        end = time.monotonic() + patience_s
        while not STATES[(details := self._latest(id)).status].ended:
            if time.monotonic() > end:
                raise DistdlError(f"{id} was told to stop and is still alive after {patience_s:g} s: ask again")
            time.sleep(0.5)
        return self.job(id)

    # -- how -----------------------------------------------------------------------------------------------------------

    def _request(self, package: Package, number: int) -> dict[str, Any]:
        """What `number` sends: the arguments of submit_job, which are the fields of the REST request."""
        launch, config = package.config.launch, package.config
        folder = launch.folder
        if folder is None and not (Path(config.runs).is_absolute() and _absolute(config.data.path)):
            fix = "launch.folder: the absolute path of a folder that every node of the cluster mounts"
            raise InputError("a Ray cluster does not see this folder: launch.folder is missing", fix=fix)
        if folder is not None and not Path(folder).is_absolute():
            raise InputError(f"launch.folder = {folder!r} is not an absolute path", fix="begin it with /")
        command = ["python", "-m", "distdl.jobs.drive", *driven(package, folder)]
        variables = {
            **start_variables(launch),
            **launch.environment,
            "RAY_JOB_STOP_WAIT_TIME_S": f"{stop_s(package) + 10:g}",  # 3 by default: too few to save in
            "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # the driver sets the threads of its plan on top of these
        }
        return {
            "entrypoint": f"exec {shlex.join(command)}",
            "submission_id": f"{package.id}-{number}",
            "runtime_env": {"working_dir": str(package.folder), "env_vars": variables},
            "metadata": {
                "job_name": package.id,
                "distdl_job": package.id,
                "distdl_run": config.name,
                "distdl_owner": package.owner,
                "distdl_attempt": str(number),
                "distdl_stop_s": f"{stop_s(package):g}",
                "distdl_version": __version__,
            },
        }

    def _connected(self) -> Any:
        """Ray's client. Raises DistdlError, in words, where nothing answers."""
        if self._client is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            from ray.job_submission import JobSubmissionClient

            with self._told():
                address = self.address if not self.address.startswith("ray://") else dashboard(self.address)
                _probe(address)
                if _answers_otherwise(address):
                    fix = f"give http://HOST:{DASHBOARD_PORT} of the head: its dashboard, without a path behind it"
                    raise InputError(f"what answers at {self.address} is no Ray dashboard", fix=fix)
                self._client = JobSubmissionClient(address, headers=_authorization())
            for name in list(logging.root.manager.loggerDict):
                if name.split(".")[0] == "ray":  # it tells of every upload and of every connection that ends
                    logging.getLogger(name).setLevel(logging.WARNING)
        return self._client

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what Ray's client raises into a sentence."""
        try:
            yield
        except DistdlError:
            raise
        except Exception as error:
            text = str(error)
            if type(error).__name__ == "AuthenticationError":
                why = "refuses the token" if "failed" in text.splitlines()[0] else "wants a token"
                raise DistdlError(f"the Ray cluster at {self.address} {why}\n    fix: {TOKEN_HELP}") from error
            if isinstance(error, OSError):  # requests' errors are; the head has died, or restarts
                _probe(self.address)
                what = f"the Ray cluster at {self.address} broke off its answer ({type(error).__name__})"
                fix = "ask again; a head that was restarted has forgotten its jobs"
                raise DistdlError(f"{what}\n    fix: {fix}") from error
            line = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
            raise DistdlError(f"Ray Jobs at {self.address}: {line[:300]}") from error

    def _all(self) -> list[Any]:
        with self._told():
            found = self._connected().list_jobs()
        return [details for details in found if "distdl_job" in (details.metadata or {})]

    def _attempts(self, id: str) -> list[Any]:
        """The submissions of a job, the first one first."""
        return sorted((d for d in self._all() if d.metadata["distdl_job"] == id), key=_attempt)

    def _latest(self, id: str) -> Any:
        attempts = self._attempts(id)
        if not attempts:
            raise InputError(f"the Ray cluster at {self.address} has no job {id!r}", fix="`distdl jobs list --on …`")
        return attempts[-1]

    def _has_ended(self, id: str) -> bool:
        """Whether the latest attempt has; a cluster that does not answer for a while may come back."""
        for attempt in range(PATIENCE):
            try:
                return STATES[self._latest(id).status].ended
            except InputError:  # it answers, and has forgotten the job
                raise
            except DistdlError:
                if attempt == PATIENCE - 1:
                    raise
                time.sleep(3)
        return False

    def _stream(self, submission: str) -> Iterator[str]:
        """Chunks of a job's log from its beginning, as they are written."""
        stream = self._connected().tail_job_logs(submission)
        loop = asyncio.new_event_loop()
        try:
            while True:
                yield loop.run_until_complete(stream.__anext__())
        except StopAsyncIteration:
            return
        finally:
            loop.run_until_complete(stream.aclose())
            loop.close()


def stop_submission(submission: str) -> None:
    """Ends a job of the cluster whose head is this machine. Raises what Ray raises."""
    from ray.job_submission import JobSubmissionClient

    JobSubmissionClient(f"http://127.0.0.1:{DASHBOARD_PORT}", headers=_authorization()).stop_job(submission)


def dashboard(address: str) -> str:
    """The dashboard of the cluster behind ray://HOST:PORT: HOST:8265 where something answers, else the port that the
    cluster itself tells a Ray Client (which needs the same versions of Ray and Python as the cluster)."""
    host = _host_port(address)[0]
    usual = f"http://{_bracketed(host)}:{DASHBOARD_PORT}"
    if _answers(host, DASHBOARD_PORT) and not _answers_otherwise(usual):
        return usual
    _probe(address)
    import ray

    try:
        told = ray.init(address, logging_level="ERROR", log_to_driver=False).dashboard_url
    finally:
        ray.shutdown()
    if not told:
        raise DistdlError(f"the Ray cluster at {address} runs no dashboard; give http://HOST:PORT of one")
    return f"http://{_bracketed(host)}:{str(told).rpartition(':')[2]}"  # its host may be 127.0.0.1, as the head sees it


def _answers_otherwise(url: str) -> bool:
    """Whether something other than a Ray dashboard listens there."""
    import requests

    try:
        reply = requests.get(f"{url}/api/version", headers=_authorization(), timeout=5)
    except requests.RequestException:
        return True
    return not (reply.status_code in (401, 403) or (reply.ok and "ray_version" in reply.text))


def _authorization() -> dict[str, str]:
    """The header with the user's Ray token, where there is one: Ray's own client sends it only if RAY_AUTH_MODE says so."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = file.read_text(encoding="utf-8") if file.is_file() else ""
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _probe(address: str) -> None:
    """Raises at once where nothing listens: Ray itself tries for many seconds, and then for minutes."""
    host, port = _host_port(address)
    if not _answers(host, port):
        raise DistdlError(f"no Ray cluster answers at {address}\n    fix: `ray start --head` there, or another --on")


def _answers(host: str, port: int, timeout_s: float = 5.0) -> bool:
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError:
        return False
    return True


def _host_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    usual = {"ray": 10001, "https": 443}.get(parts.scheme, 80 if parts.scheme == "http" else DASHBOARD_PORT)
    return parts.hostname or "", parts.port or usual


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _absolute(path: str) -> bool:
    return "://" in path or Path(path).is_absolute()


def _attempt(details: Any) -> int:
    return int(details.metadata["distdl_attempt"])


def _job(details: Any, tracking: str = "") -> Job:
    message = "" if details.status in ("RUNNING", "SUCCEEDED") else of_message(details.message or "")
    started = details.start_time / 1000 if details.start_time else None
    told, state = details.metadata, STATES[details.status]
    whose = {"run": told.get("distdl_run", ""), "owner": told.get("distdl_owner", "")}
    return Job(told["distdl_job"], state, message, _attempt(details), started, tracking, **whose)
