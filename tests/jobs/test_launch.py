"""What is packed and what never is, what is remembered, where `--on` points, and the words of `launch` and `jobs`."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError
from distdl.jobs import package as packing
from distdl.jobs import records, targets
from distdl.jobs.cause import cause, of_message
from distdl.jobs.kubernetes import rayjob_driver
from distdl.jobs.package import digest, left_out, make_package
from distdl.jobs.ray_cluster import RayJobsTarget
from distdl.jobs.target import Job, Package, State, job_id, refuse_other
from tests.conftest import REPOSITORY, Result

Command = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with config.yml, in which the test works; nothing is remembered yet."""
    monkeypatch.setenv("DISTDL_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write(folder)
    return folder


def write(folder: Path, **launch: Any) -> Path:
    values = {
        "name": "digits-1",
        "model": {"family": "mlp", "inputs": [1, 8, 8], "classes": 10},
        "data": {"path": "data/digits"},
        "train": {"global_batch": 16, "steps": 100},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "runtime": {"kind": "local", "workers": 2, "max_restarts": 5},
        "launch": launch,
    }
    path = folder / "config.yml"
    path.write_text("# my words\n" + yaml.safe_dump(values))
    return path


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


# -- packing -----------------------------------------------------------------------------------------------------------


def test_a_package_is_the_users_text_and_our_source(project: Path) -> None:
    package = make_package("config.yml", ["train.steps=50"], directory=project / "out")
    files = {str(p.relative_to(package.folder)) for p in package.folder.rglob("*") if p.is_file()}
    source = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "distdl").rglob("*.py")}
    assert source | {"config.yaml"} <= files and not any("__pycache__" in name for name in files)
    assert (package.folder / "config.yaml").read_text() == (project / "config.yml").read_text()
    assert package.id == "digits-1" and package.overrides == ("train.steps=50",)
    runtime = package.config.runtime
    assert (runtime.kind, runtime.workers, runtime.max_restarts) == ("ray", 2, 5), "a local YAML keeps what both have"
    assert (package.plan.world, package.plan.steps) == (2, 50)
    assert package.config.data.path == package.plan.data.path == "data/digits", "relative paths stay relative"
    modes = {p.stat().st_mode & 0o077 for p in [package.folder, *package.folder.rglob("*")]}
    assert modes == {0}, "others can read it"


def test_the_same_input_gives_the_same_bytes(project: Path) -> None:
    write(project, files=["extra"])
    (project / "extra").mkdir()
    (project / "extra" / "a.txt").write_text("a")
    first = make_package("config.yml", [], directory=project / "one")
    os.utime(project / "extra" / "a.txt", (1, 1))
    second = make_package("config.yml", [], directory=project / "two")
    assert digest(first.folder) == digest(second.folder)
    assert first.folder.joinpath("extra/a.txt").stat().st_mtime == second.folder.joinpath("config.yaml").stat().st_mtime
    (project / "extra" / "a.txt").write_text("b")
    assert digest(make_package("config.yml", [], directory=project / "two").folder) != digest(first.folder)


SECRETS = [
    ".env",
    "prod.env",
    "server.pem",
    "id_ed25519",
    ".netrc",
    "aws-credentials.json",
    "my.key",
    "Kubeconfig.yaml",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_file_that_looks_like_a_secret_never_travels(project: Path, name: str) -> None:
    (project / "extra" / "deep").mkdir(parents=True)
    (project / "extra" / "deep" / name).write_text("x")
    (project / "extra" / "plain.txt").write_text("x")
    write(project, files=[f"extra/deep/{name}"])
    assert "looks like a secret" in refusal(lambda: make_package("config.yml", []))
    write(project, files=["extra"])
    folder = make_package("config.yml", []).folder
    assert (folder / "extra" / "plain.txt").is_file() and not (folder / "extra" / "deep").exists()
    assert left_out("config.yml", []) == (f"extra/deep/{name}",)


def test_what_is_in_a_file_counts_more_than_its_name(project: Path) -> None:
    (project / "extra").mkdir()
    (project / "extra" / "notes.txt").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA")
    (project / "extra" / "tracker.ini").write_text("uri = https://me:hunter2@mlflow.example")
    (project / "extra" / ".git").mkdir()
    (project / "extra" / ".git" / "config").write_text("x")
    write(project, files=["extra"])
    assert not (make_package("config.yml", []).folder / "extra").exists()
    assert left_out("config.yml", []) == ("extra/notes.txt", "extra/tracker.ini")


ENVIRONMENT = [
    ("AWS_SECRET_ACCESS_KEY", "x", True),
    ("HF_TOKEN", "x", True),
    ("WANDB_API_KEY", "x", True),
    ("MLFLOW_TRACKING_PASSWORD", "x", True),
    ("PGPASSWORD", "x", True),
    ("DATABASE", "postgres://me:pw@db/x", True),
    ("WHATEVER", "ghp_" + "a" * 36, True),
    ("NCCL_SOCKET_IFNAME", "eth0", False),
    ("TOKENIZERS_PARALLELISM", "false", False),
    ("AWS_SHARED_CREDENTIALS_FILE", "/run/aws", False),
    ("MLFLOW_TRACKING_URI", "http://mlflow:5000", False),
]


@pytest.mark.parametrize(("key", "value", "secret"), ENVIRONMENT)
def test_a_secret_in_the_environment_is_refused(project: Path, key: str, value: str, secret: bool) -> None:
    write(project, environment={key: value})
    if not secret:
        assert make_package("config.yml", []).config.launch.environment == {key: value}
        return
    told = refusal(lambda: make_package("config.yml", []))
    assert f"launch.environment.{key}" in told and "config.yml:" in told and "fix: " in told
    assert value == "x" or value not in told


def test_a_password_in_a_uri_is_refused_wherever_it_stands(project: Path) -> None:
    uri = "http://me:hunter2@mlflow:5000"
    told = refusal(lambda: make_package("config.yml", [f"track.uri={uri}"]))
    assert "track.uri holds a password" in told and "hunter2" not in told
    (project / "config.yml").write_text((project / "config.yml").read_text() + f"# was {uri}\n")
    told = refusal(lambda: make_package("config.yml", []))
    assert "config.yml:" in told and "hunter2" not in told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside", "does not lie below"),
        ("/etc/hosts", "does not lie below"),
        ("absent", "there is no"),
        ("distdl", "part of every package"),
        ("link", "is a link to"),
    ],
)
def test_a_file_that_cannot_travel_is_told(project: Path, name: str, words: str) -> None:
    (project / "link").symlink_to("/etc/hosts")
    write(project, files=[name])
    assert words in refusal(lambda: make_package("config.yml", []))


def test_too_much_is_refused_with_what_is_large(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "weights.bin").write_bytes(b"0" * 3_000_000)
    write(project, files=["weights.bin"])
    make_package("config.yml", [])
    monkeypatch.setattr(packing, "LIMIT_BYTES", 2_000_000)
    told = refusal(lambda: make_package("config.yml", []))
    assert "weights.bin (3 MiB)" in told and "launch.folder" in told


# -- remembering -------------------------------------------------------------------------------------------------------


def test_a_record_gives_back_the_very_package(project: Path) -> None:
    package = make_package("config.yml", ["train.steps=50"], fresh=True, directory=records.draft("digits-1"))
    made = digest(package.folder)
    records.record(package, "http://head:8265")
    found = records.find_record("digits-1")
    assert found and found.on == "http://head:8265" and found.id == "digits-1"
    again = found.package()
    assert (again.config, again.plan, again.overrides) == (package.config, package.plan, package.overrides)
    assert digest(again.folder) == made and again.folder == found.folder / "package"
    assert not again.fresh, "a resumed job continues the run that --fresh began"
    assert list(records.home().iterdir()) == [found.folder], "drafts are left behind"
    assert found.folder.stat().st_mode & 0o777 == 0o700
    assert (found.folder / "record.json").stat().st_mode & 0o777 == 0o600

    records.record(again, "http://head:8265")  # sent again
    assert [digest(r.package().folder) for r in records.records()] == [made]


def test_a_run_on_two_targets_is_two_jobs(project: Path) -> None:
    """Each with what was sent there; neither hides the other, and none is guessed."""
    folders = {"http://head:8265": "/a", "http://other:8265": "/b"}
    for on, folder in folders.items():
        records.record(make_package("config.yml", [f"launch.folder={folder}"]), on)
    for namespace in ("one", "two"):
        records.record(make_package("config.yml", [f"launch.kubernetes.namespace={namespace}"]), "kubernetes")
    for on, folder in folders.items():
        found = records.find_record("digits-1", on)
        assert found and found.config().launch.folder == folder
    found = records.find_record("digits-1", "kubernetes, namespace two")
    assert found and found.config().launch.kubernetes.namespace == "two"
    for on in (None, "kubernetes"):
        told = refusal(lambda: records.find_record("digits-1", on))  # noqa: B023
        assert "several places" in told and "digits-1 --on 'kubernetes, namespace one'" in told
    assert records.find_record("digits-1", "ssh") is None


def test_a_record_of_the_version_before_is_found_and_replaced(project: Path) -> None:
    """jobs/ID without a target; the id of a name that had to be changed had no hash."""
    package = replace(make_package("config.yml", ["name=My_Run"]), id="my-run")
    old = records.record(package, "http://head:8265").folder.rename(records.home() / "my-run")
    values = json.loads((old / "record.json").read_text())
    del values["run"]
    (old / "record.json").write_text(json.dumps(values))
    for name in ("my-run", "My_Run"):
        found = records.find_record(name)
        assert found and (found.id, found.run, found.package().id) == ("my-run", "My_Run", "my-run")
    assert records.find_record("my.run") is None, "that is another run"
    records.record(package, "http://head:8265")
    assert len(records.records()) == 1 and not old.exists()


def test_a_damaged_record_hides_no_other(project: Path) -> None:
    kept = records.record(make_package("config.yml", []), "ssh").folder
    (records.home() / "broken").mkdir()
    (records.home() / "broken" / "record.json").write_text("{")
    assert [r.id for r in records.records()] == ["digits-1"]
    (kept / "record.json").write_text(
        json.dumps({"id": "digits-1", "on": "ssh", "submitted_s": 1, "config": {}, "plan": {}, "overrides": []})
    )
    assert "launch the config again" in refusal(lambda: records.records()[0].package())


# -- where to ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "kind"),
    [
        ("http://head:8265", "RayJobsTarget"),
        ("https://ray.example/prefix", "RayJobsTarget"),
        ("ray://h:1", "RayJobsTarget"),
        ("ssh://me@gpu1", "SshTarget"),
        ("ssh", "SshTarget"),
    ],
)
def test_an_address_names_its_target(on: str, kind: str) -> None:
    launch = Launch.model_validate({"ssh": {"hosts": ["gpu1", "gpu2"]}})
    assert type(targets.target_at(on, launch)).__name__ == kind


@pytest.mark.parametrize(
    ("on", "fix"),
    [
        ("slrum", "did you mean 'slurm'?"),
        ("kubernets:ctx", "did you mean 'kubernetes'?"),
        ("k8s", "did you mean 'kubernetes'?"),
        ("head:8265", "did you mean 'http://head:8265'?"),
        ("http://", "names no host"),
        ("ssh", "launch.ssh.hosts"),
        ("ssh://-oProxyCommand=touch", "is no host"),
    ],
)
def test_an_address_of_no_kind_is_told_with_what_was_meant(on: str, fix: str) -> None:
    assert fix in refusal(lambda: targets.target_at(on, Launch()))


# -- the commands ------------------------------------------------------------------------------------------------------


class Place:
    """A target that remembers what it was asked."""

    def __init__(self) -> None:
        self.known: dict[str, Job] = {}
        self.sent: list[Package] = []
        self.asked = 0
        self.unreachable = ""

    def _reach(self) -> None:
        if self.unreachable:
            raise DistdlError(self.unreachable)

    def dry_run(self, package: Package) -> str:
        return f"would send {package.id}"

    def submit(self, package: Package) -> Job:
        self._reach()
        if package.id in self.known:
            refuse_other(self.known[package.id], package, "there")
        attempt = self.known[package.id].attempt + 1 if package.id in self.known else 1
        self.sent.append(package)
        whose = {"run": package.config.name, "owner": package.owner}
        started_s = time.time() - 7200
        self.known[package.id] = Job(package.id, State.RUNNING, attempt=attempt, started_s=started_s, **whose)
        return self.known[package.id]

    def jobs(self) -> list[Job]:
        self._reach()
        self.asked += 1
        return list(self.known.values())

    def job(self, id: str) -> Job:
        self._reach()
        return self.known.get(id, Job(id, State.LOST))

    def logs(self, id: str, follow: bool = False) -> Iterator[str]:
        yield "tracking: http://mlflow/#/runs/1"
        if follow:
            raise KeyboardInterrupt

    def stop(self, id: str) -> Job:
        self.known[id] = Job(id, State.STOPPED, "ended on request", tracking="http://mlflow/#/runs/1")
        return self.known[id]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place()
    monkeypatch.setattr(targets, "target_at", lambda on, launch: made)
    return made


@pytest.fixture
def targets_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Place]:
    """The target of each address."""
    made: dict[str, Place] = {}
    monkeypatch.setattr(targets, "target_at", lambda on, launch: made.setdefault(on, Place()))
    return lambda on: made.setdefault(on, Place())


def test_a_job_from_launch_to_resume(project: Path, place: Place, command: Command) -> None:
    assert command("launch", "config.yml", "--on", "http://h:1", "--dry-run").stdout == "would send digits-1\n"
    assert not place.sent and not records.records()
    told = command("launch", "config.yml", "--on", "http://h:1", "--fresh", "train.steps=9")
    assert told.code == 0, told
    for line in (
        "digits-1 was sent to http://h:1: running",
        "distdl jobs logs -f digits-1",
        "distdl jobs stop digits-1",
    ):
        assert line in told.stdout
    assert place.sent[0].fresh and place.sent[0].plan.steps == 9

    refused = command("launch", "config.yml", "--on", "http://h:1", "train.steps=8")
    assert refused.code == 2 and "is alive" in refused.stderr
    kept = records.find_record("digits-1")
    assert kept and kept.package().plan.steps == 9, "a refused launch changed what is remembered"
    assert list(records.home().iterdir()) == [kept.folder]

    listed = command("jobs", "list").stdout.splitlines()
    assert listed[0].split() == ["ID", "STATE", "ATTEMPT", "SENT", "ON"] and listed[1].split()[:3] == [
        "digits-1",
        "running",
        "1",
    ]
    assert "started  " in command("jobs", "status").stdout, "the only job needs no ID"
    followed = command("jobs", "logs", "-f", "digits-1")
    assert followed.code == 130 and "tracking: http" in followed.stdout and "digits-1 goes on" in followed.stdout
    stopped = command("jobs", "stop", "digits-1")
    assert "digits-1: stopped (ended on request)" in stopped.stdout and "distdl jobs resume digits-1" in stopped.stdout
    resumed = command("jobs", "resume", "digits-1")
    assert resumed.code == 0 and "attempt 2" in resumed.stdout
    assert not place.sent[1].fresh and digest(place.sent[1].folder) == digest(kept.folder / "package")


def test_jobs_as_json(project: Path, place: Place, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of what is known, the keys that docs/command_line.md names, and nothing else on stdout."""
    assert json.loads(command("jobs", "list", "--json").stdout) == []
    command("launch", "config.yml", "--on", "http://h:1")
    place.known["theirs"] = Job("theirs", State.QUEUED, "x" * 300, owner="bob@there")
    ours, others = json.loads(command("jobs", "list", "--on", "http://h:1", "--json").stdout)
    assert ours == {
        "id": "digits-1",
        "state": "running",
        "attempt": 1,
        "sent_s": ours["sent_s"],
        "on": "http://h:1",
        "note": "",
    }
    assert time.time() - 600 < ours["sent_s"] <= time.time()
    assert (others["id"], others["state"], others["note"]) == (
        "theirs",
        "queued",
        "not launched from here; of bob@there",
    )

    status = json.loads(command("jobs", "status", "digits-1", "--json").stdout)
    assert (status["id"], status["state"], status["run"], status["on"]) == (
        "digits-1",
        "running",
        "digits-1",
        "http://h:1",
    )
    page = (REPOSITORY / "docs" / "command_line.md").read_text(encoding="utf-8")
    for words, found in (("jobs list", ours), ("jobs status", status)):
        row = next(line for line in page.splitlines() if line.startswith(f"| `distdl {words}`"))
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == found.keys()

    monkeypatch.setattr("distdl.cli.k8s._target", lambda args: place)
    theirs = json.loads(command("k8s", "status", "--json").stdout)
    assert [job["id"] for job in theirs] == ["digits-1", "theirs"] and theirs[1]["message"] == "x" * 300
    row = next(line for line in page.splitlines() if line.startswith("| `distdl k8s status`"))
    assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == theirs[0].keys()
    assert json.loads(command("k8s", "status", "digits-1", "--json").stdout) == [theirs[0]]

    place.unreachable = "nobody answers at http://h:1"
    (unknown,) = json.loads(command("jobs", "list", "--json").stdout)
    assert (unknown["state"], unknown["attempt"], unknown["note"]) == ("?", None, "nobody answers at http://h:1")


def test_the_list_shows_what_cannot_be_asked_and_what_others_launched(
    project: Path, place: Place, command: Command
) -> None:
    assert "no job was launched" in command("jobs", "list").stdout
    command("launch", "config.yml", "--on", "http://h:1")
    place.known["theirs"] = Job("theirs", State.QUEUED)
    assert "theirs" not in command("jobs", "list").stdout
    assert "not launched from here" in command("jobs", "list", "--on", "http://h:1").stdout
    del place.known["digits-1"]
    assert "lost" in command("jobs", "list").stdout
    place.unreachable = "nobody answers at http://h:1"
    told = command("jobs", "list")
    assert told.code == 0 and "digits-1" in told.stdout and "nobody answers" in told.stdout
    status = command("jobs", "status", "digits-1")
    assert status.code == 1 and "nobody answers" in status.stderr


SWEEP = "gpt-sweep-learning-rate-batch-size-layers-seed"


def test_no_two_runs_have_one_id() -> None:
    names = [*(f"{SWEEP}-{n:04d}" for n in range(1, 4)), "My_Run", "my.run", "my-run", "MY-RUN", "my-run-", "2026-run"]
    ids = [job_id(name) for name in names]
    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", id) for id in ids), ids
    assert [job_id(name) for name in ("gpt", "my-run", "a" * 40)] == ["gpt", "my-run", "a" * 40], "as before"
    assert [job_id(id) for id in ids] == ids, "an id is its own id"


RUNNING, ENDED = (
    Job("a", State.RUNNING, run="a", owner="me@here"),
    Job("a", State.FAILED, "x", run="a", owner="me@here"),
)


@pytest.mark.parametrize(
    ("job", "told", "advice", "never"),
    [
        (ENDED, "", "", ""),
        (replace(ENDED, run="", owner=""), "", "", ""),  # of an earlier version
        (replace(RUNNING, state=State.LOST, run="b"), "", "", ""),
        (RUNNING, "is alive there: running", "distdl jobs stop a", ""),
        (replace(RUNNING, run="b"), "belongs to the run b", "name=OTHER", "jobs stop"),
        (replace(ENDED, run="b"), "failed (x), and belongs to the run b", "name=OTHER", "DISTDL_OWNER"),
        (replace(RUNNING, owner="bob@there"), "belongs to bob@there", "DISTDL_OWNER=bob@there", "jobs stop"),
        (replace(ENDED, owner="bob@there"), "belongs to bob@there", "name=OTHER", "jobs stop"),
        (replace(ENDED, run="b", owner="bob@there"), "the run b of bob@there", "name=OTHER", "DISTDL_OWNER"),
    ],
)
def test_what_is_not_ones_own_is_neither_replaced_nor_ended(
    project: Path, job: Job, told: str, advice: str, never: str
) -> None:
    package = replace(make_package("config.yml", ["name=a"]), owner="me@here")
    if not told:
        refuse_other(job, package, "there")
        return
    words = refusal(lambda: refuse_other(job, package, "there"))
    assert told in words and advice in words and (not never or never not in words)


def test_the_words_of_a_job_that_is_somebody_elses(
    project: Path, place: Place, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTDL_OWNER", "bob@there")
    command("launch", "config.yml", "--on", "ssh")
    assert place.sent[0].owner == "bob@there"
    monkeypatch.setenv("DISTDL_OWNER", "me@here")
    monkeypatch.setenv("DISTDL_HOME", str(project / "mine"))
    refused = command("launch", "config.yml", "--on", "ssh")
    assert refused.code == 2 and "belongs to bob@there" in refused.stderr and not records.records()
    stopped = command("jobs", "stop", "digits-1", "--on", "ssh")
    assert stopped.code == 2 and "was sent by bob@there" in stopped.stderr and not stopped.stdout
    assert place.known["digits-1"].state is State.RUNNING
    assert "not launched from here; of bob@there" in command("jobs", "list", "--on", "ssh").stdout
    assert "owner    bob@there" in command("jobs", "status", "digits-1", "--on", "ssh").stdout
    monkeypatch.setenv("DISTDL_OWNER", "bob@there")
    stopped = command("jobs", "stop", "digits-1", "--on", "ssh")
    assert stopped.code == 0 and "resume" not in stopped.stdout, "nothing is remembered here that could be sent again"
    lost = command("jobs", "stop", "nosuch", "--on", "ssh")
    assert lost.code == 1 and "nosuch: lost" in lost.stdout and "stopping" not in lost.stdout


def test_an_owner_stays_when_the_machines_name_changes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTDL_OWNER", raising=False)
    first = records.owner()
    records.draft("x")
    monkeypatch.setattr(records, "_user_at_host", lambda: "other@name")
    assert records.owner() == first and "@" in first


def test_a_second_target_hides_no_job_and_is_told_of_the_first(
    project: Path, command: Command, targets_of: Any
) -> None:
    first, second = targets_of("http://h:1"), targets_of("http://h:2")
    told = command("launch", "config.yml", "--on", "http://h:1", "launch.folder=/a")
    assert told.code == 0 and "note: digits-1" not in told.stdout
    command("launch", "config.yml", "--on", "http://h:1", "name=other", "launch.folder=/b")
    told = command("launch", "config.yml", "--on", "http://h:2", "launch.folder=/c")
    assert told.code == 0 and "digits-1 is running on http://h:1, too; `distdl jobs stop" in told.stdout
    assert "distdl jobs logs -f digits-1 --on 'http://h:2'" in told.stdout

    first.asked = second.asked = 0
    rows = [line.split() for line in command("jobs", "list", "--on", "http://h:1").stdout.splitlines()[1:]]
    assert sorted(row[0] for row in rows) == ["digits-1", "other"], "a job is listed twice"
    assert (first.asked, second.asked) == (1, 0)
    rows = [line.split() for line in command("jobs", "list").stdout.splitlines()[1:]]
    assert len(rows) == 3 and (first.asked, second.asked) == (2, 1)
    stopped = command("jobs", "stop", "digits-1")
    assert stopped.code == 2 and "several places" in stopped.stderr
    assert command("jobs", "stop", "digits-1", "--on", "http://h:1").code == 0
    assert second.known["digits-1"].state is State.RUNNING
    second.unreachable = "nobody answers"
    told = command("jobs", "resume", "digits-1", "--on", "http://h:1")
    assert told.code == 0 and "http://h:2, too, which cannot be asked: nobody answers" in told.stdout
    assert first.sent[-1].config.launch.folder == "/a", "what was sent elsewhere"


def test_kubernetes_alone_means_the_cluster_of_the_launch(
    project: Path, command: Command, targets_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one that kubectl's current context has come to mean since."""
    (project / "kubectl").write_text(f"#!/bin/sh\ncat {project}/context\n")
    (project / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}:{os.environ['PATH']}")
    (project / "context").write_text("dev\n")
    assert "sent to kubernetes:dev" in command("launch", "config.yml", "--on", "kubernetes").stdout
    (project / "context").write_text("prod\n")
    dev, prod = targets_of("kubernetes:dev"), targets_of("kubernetes:prod")
    prod.known["digits-1"] = dev.known["digits-1"]
    assert "not launched from here" in command("jobs", "list", "--on", "kubernetes").stdout
    assert command("jobs", "stop", "digits-1").code == 0
    states = [place.known["digits-1"].state for place in (dev, prod)]
    assert states == [State.STOPPED, State.RUNNING]
    (project / "kubectl").unlink()
    monkeypatch.setenv("PATH", str(project))
    assert targets.pinned("kubernetes") == "kubernetes"


def test_an_id_that_another_run_has_now_is_told(project: Path, place: Place, command: Command) -> None:
    """Ids of the version before: two runs could share one."""
    command("launch", "config.yml", "--on", "ssh", f"name={SWEEP}-0001")
    [old] = records.records()
    values = json.loads((old.folder / "record.json").read_text())
    (old.folder / "record.json").write_text(json.dumps({**values, "id": "gpt-sweep"}))
    place.known = {"gpt-sweep": Job("gpt-sweep", State.RUNNING, run=f"{SWEEP}-0002")}
    for verb in ("status", "logs", "stop", "resume"):
        told = command("jobs", verb, f"{SWEEP}-0001")
        assert told.code == 2 and f"{SWEEP}-0002" in told.stderr, verb
    assert place.known["gpt-sweep"].state is State.RUNNING and len(place.sent) == 1
    assert "lost" in command("jobs", "list").stdout
    place.known = {"gpt-sweep": Job("gpt-sweep", State.RUNNING, run=f"{SWEEP}-0001")}
    told = command("launch", "config.yml", "--on", "ssh", f"name={SWEEP}-0001")
    assert told.code == 2 and "alive there as the job gpt-sweep" in told.stderr


def test_wrong_words_are_answered_with_the_right_ones(project: Path, place: Place, command: Command) -> None:
    told = command("launch", "config.yml")
    assert told.code == 2 and "neither --on nor launch.on" in told.stderr and "kubernetes" in told.stderr
    command("launch", "config.yml", "--on", "ssh")
    told = command("jobs", "status", "digit-1")
    assert told.code == 2 and "did you mean 'digits-1'?" in told.stderr
    assert command("jobs", "resume", "other", "--on", "ssh").code == 2
    command("launch", "config.yml", "--on", "ssh", "name=second")
    told = command("jobs", "stop")
    assert told.code == 2 and "digits-1" in told.stderr and "second" in told.stderr, "stop must not guess"


LOG = "job_manager.py:581 -- Runtime env is setting up.\ntracking: x\ndistdl: no data\n    allowed: a\n    fix: it\n"


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (LOG, "no data; allowed: a; fix: it"),
        (f"distdl: earlier\n{LOG}\nsaid behind\n", "no data; allowed: a; fix: it"),
        ("a\nKilled\n\n", "Killed"),
        ("", ""),
        ("x" * 20000, f"{'x' * 499}…"),
    ],
)
def test_why_a_driver_ended_is_found_in_its_output(log: str, why: str) -> None:
    assert cause(log) == why
    told = of_message(f"Job entrypoint command failed with exit code 2, last available logs (truncated …):\n{log}")
    assert told == (f"exit code 2: {why}" if why else "exit code 2")
    assert of_message("Job\n was stopped") == "Job was stopped"


def test_ray_jobs_sends_what_dry_run_prints(project: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    told = command("launch", "config.yml", "--on", "http://127.0.0.1:9", "--dry-run")
    assert told.code == 2 and "launch.folder" in told.stderr
    arguments = (
        "launch",
        "config.yml",
        "--on",
        "http://127.0.0.1:9",
        "launch.folder=/shared",
        "launch.deadline_hours=5",
    )
    shown = command(*arguments, "--dry-run").stdout
    sent: dict[str, Any] = {}

    class Client:
        def list_jobs(self) -> list[Any]:
            return []

        def submit_job(self, **request: Any) -> None:
            sent.update(request)

    monkeypatch.setattr(RayJobsTarget, "_connected", lambda self: Client())
    assert command(*arguments).code == 0
    body = json.loads(shown[shown.index("{") : shown.rindex("}") + 1])
    for request in (body, sent):
        request["runtime_env"].pop("working_dir")  # a folder of its own each time; its sha256 is printed
    assert body == sent
    assert (
        "-C /shared --take-over" in sent["entrypoint"]
        and "--deadline-hours 5 --retries 3 --grace-s 120" in sent["entrypoint"]
    )


@pytest.mark.parametrize(("code", "ended"), [(0, []), (1, []), (2, ["demo-x1"]), (130, [])])
def test_the_driver_of_a_rayjob_ends_its_job_for_bad_input_only(
    monkeypatch: pytest.MonkeyPatch, code: int, ended: list[str]
) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(rayjob_driver, "WAIT_S", 0)
    monkeypatch.setattr("distdl.jobs.ray_cluster.stop_submission", stopped.append)
    monkeypatch.setattr(runpy, "run_module", lambda name, run_name: sys.exit(code))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert rayjob_driver.main([]) == code and not stopped, "no job of Ray's"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "demo-x1"}}))
    assert rayjob_driver.main([]) == code and stopped == ended


def test_what_answers_in_the_place_of_a_ray_cluster_is_told(project: Path, command: Command) -> None:
    """Another service on the port; then nothing, in the middle of a question."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    told = command("jobs", "list", "--on", url)
    assert f"what answers at {url} is no Ray dashboard" in told.stdout
    target = RayJobsTarget(url, Launch())
    with pytest.raises(DistdlError, match="broke off its answer") as caught, target._told():
        raise requests.ConnectionError("HTTPConnectionPool(host=…): Max retries exceeded")
    assert "HTTPConnectionPool" not in str(caught.value)
    server.shutdown()
    server.server_close()
    with pytest.raises(DistdlError, match="no Ray cluster answers at"), target._told():
        raise requests.ConnectionError("HTTPConnectionPool(host=…): Max retries exceeded")


# -- the driver's keeper -----------------------------------------------------------------------------------------------

DRIVER = """
import os, signal, sys, time
from pathlib import Path
starts = Path("starts")
starts.open("a").write(" ".join(sys.argv[1:]) + "\\n")
what = sys.argv[1]
if what == "die" and len(starts.read_text().splitlines()) < 3:
    os.kill(os.getpid(), signal.SIGKILL)
if what in ("wait", "deaf"):
    signal.signal(signal.SIGTERM, (lambda *_: sys.exit(130)) if what == "wait" else signal.SIG_IGN)
    Path("ready").touch()
    time.sleep(60)
sys.exit(int(sys.argv[2]))
"""


def drive(folder: Path, *arguments: str, hours: float = 1, retries: int = 3) -> subprocess.Popen[str]:
    """The keeper with a stand-in for distdl."""
    (folder / "fake" / "distdl" / "jobs").mkdir(parents=True)
    for package in (folder / "fake" / "distdl", folder / "fake" / "distdl" / "jobs"):
        (package / "__init__.py").touch()
    (folder / "fake" / "distdl" / "__main__.py").write_text(DRIVER)
    (folder / "fake" / "distdl" / "jobs" / "drive.py").write_text(
        (REPOSITORY / "distdl" / "jobs" / "drive.py").read_text().replace("PAUSE_S = 5.0", "PAUSE_S = 0.0")
    )
    numbers = ["--deadline-hours", str(hours), "--retries", str(retries), "--grace-s", "120"]
    command = [sys.executable, "-m", "distdl.jobs.drive", *numbers, "--"]
    variables = {**os.environ, "PYTHONPATH": str(folder / "fake")}
    return subprocess.Popen(
        [*command, *arguments], cwd=folder, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize(
    ("arguments", "retries", "code", "starts"),
    [
        (("end", "0"), 3, 0, 1),
        (("end", "1"), 3, 1, 1),  # a failure that was told: the workers were restarted before it
        (("end", "2"), 3, 2, 1),
        (("die", "0", "--fresh"), 3, 0, 3),
        (("die", "0"), 1, 137, 2),
    ],
)
def test_a_killed_driver_is_started_again_and_no_other(
    tmp_path: Path, arguments: tuple[str, ...], retries: int, code: int, starts: int
) -> None:
    process = drive(tmp_path, *arguments, retries=retries)
    output, _ = process.communicate(timeout=30)
    lines = (tmp_path / "starts").read_text().splitlines()
    assert (process.returncode, len(lines)) == (code, starts), output
    assert ["--fresh" in line for line in lines] == ["--fresh" in arguments, *[False] * (starts - 1)]


@pytest.mark.slow
def test_a_driver_ends_at_its_deadline_and_on_request(tmp_path: Path) -> None:
    process = drive(tmp_path, "wait", "0", hours=1.5 / 3600)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "the deadline of" in output and "distdl jobs resume" in output
    (tmp_path / "again").mkdir()
    process = drive(tmp_path / "again", "wait", "0")
    while not (tmp_path / "again" / "ready").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert len((tmp_path / "again" / "starts").read_text().splitlines()) == 1
