"""The tracking server of k8s/, started with the very commands of its manifests on a real Postgres and an S3-compatible
server: migration Job, init container, Deployment; then real runs log to it.

Only what a pod gets by its environment is replaced: addresses, secrets, and the folder of the mounted ConfigMap.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from distdl.track.uploader import upload_pending
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

TRACKING = REPOSITORY / "k8s" / "base" / "tracking"
INSIDE = "mlflow.distdl.svc.cluster.local:5000"
"""What a pod of the cluster calls the server."""
SECRETS = {
    "mlflow": {
        "postgres-password": "p g@ss'/%:1",
        "admin-password": "admin-secret-1",
        "session-key": "0123456789abcdef",
    },
    "object-store": {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"},
}
"""Invented; the password has what a URI would choke on."""
TRAINER = "trainer-secret-22"


class Server(NamedTuple):
    url: str
    log: Path
    store: Any
    """Client of the object store."""
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def manifest(file: str, kind: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((TRACKING / file).read_text(encoding="utf-8"))
    return next(document for document in documents if document["kind"] == kind)["spec"]["template"]["spec"]


def environment(container: dict[str, Any], **replaced: str) -> dict[str, str]:
    """What the container's process would see, secrets filled in; `replaced` must be names that the manifest sets, too."""
    values = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for source in container.get("envFrom", []):
        values |= SECRETS[source["secretRef"]["name"]]
    names = set()
    for variable in container["env"]:
        names.add(variable["name"])
        if "value" in variable:
            values[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            values[variable["name"]] = SECRETS[reference["name"]][reference["key"]]
    assert replaced.keys() <= names | {"MLFLOW_S3_ENDPOINT_URL", "AWS_DEFAULT_REGION"}, replaced.keys() - names
    return values | replaced


CONFINED = """mount --make-rprivate /; mount -o remount,bind,ro /; mount -t tmpfs tmpfs /tmp
exec setpriv --no-new-privs --bounding-set=-all "$@"
"""
"""The pod's security context: a root that nobody can write, a /tmp of its own, no capabilities. Not its user, who could not
read an interpreter in somebody's home."""


@pytest.fixture(scope="module")
def inside() -> list[str]:
    """Words before a command that confine it as the pod is, where this machine lets us; else none."""
    words = ["unshare", "--mount", "sh", "-ec", CONFINED, "sh"]
    look = f"open({str(TRACKING / 'basic_auth.ini')!r}); open('/tmp/x', 'w'); import mlflow"
    trial = shutil.which("unshare") and subprocess.run(
        [*words, sys.executable, "-c", look], cwd="/", capture_output=True
    )
    return words if trial and trial.returncode == 0 else []


def command(container: dict[str, Any]) -> list[str]:
    """Command and arguments as they stand; the ConfigMap lies in its folder of the repository."""
    words = [*container["command"], *container.get("args", [])]
    return [word.replace("/etc/mlflow", str(TRACKING)) for word in words]


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """A Postgres of its own, made as the image of the StatefulSet makes it. Yields what libpq needs to find it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    program = str(found[-1]) if found else shutil.which("initdb")
    if program is None:
        pytest.skip("Postgres is not installed (Debian: apt-get install postgresql)")
    # Not pytest's folder: each pytest that starts closes it to every other user, and Postgres refuses to run as root.
    programs, folder = Path(program).parent, Path(tempfile.mkdtemp(prefix="distdl-postgres-"))
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
    database, port, socket_folder = folder / "data", free_port(), folder
    settings = {v["name"]: v.get("value", "") for v in manifest("postgres.yaml", "StatefulSet")["containers"][0]["env"]}
    password = SECRETS["mlflow"]["postgres-password"]
    (folder / "password").write_text(password)
    run = {"cwd": folder, "check": True, "capture_output": True, "timeout": 120}
    initdb = [
        program,
        "-D",
        str(database),
        "-U",
        settings["POSTGRES_USER"],
        f"--pwfile={folder / 'password'}",
        "-E",
        "UTF8",
    ]
    subprocess.run([*user, *initdb, "--no-sync", *settings["POSTGRES_INITDB_ARGS"].split()], **run)
    options = [
        f"--port={port}",
        "--listen_addresses=127.0.0.1",
        f"--unix_socket_directories={socket_folder}",
        "--fsync=off",
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*user, str(programs / "postgres"), "-D", str(database), *options], cwd=folder, stdout=log, stderr=log
        )
    try:
        found_by = {"PGHOST": "127.0.0.1", "PGPORT": str(port)}
        client = {**os.environ, **found_by, "PGUSER": settings["POSTGRES_USER"], "PGPASSWORD": password}
        for _ in range(200):
            if subprocess.run([programs / "pg_isready"], env=client, capture_output=True).returncode == 0:
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        psql = [str(programs / "psql"), "-v", "ON_ERROR_STOP=1", "-d"]
        subprocess.run([*psql, "postgres", "-c", f"CREATE DATABASE {settings['POSTGRES_DB']}"], env=client, **run)
        subprocess.run([*psql, settings["POSTGRES_DB"], "-f", str(TRACKING / "init.sql")], env=client, **run)
        yield found_by
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """The address of an S3-compatible server with the empty bucket `distdl`."""
    moto = pytest.importorskip("moto.server", reason="moto[s3] is not installed")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        url = f"http://{host}:{port}"
        client(boto3, url).create_bucket(Bucket="distdl")
        yield url
    finally:
        server.stop()


def client(boto3: Any, url: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )


@pytest.fixture(scope="module")
def server(
    postgres: dict[str, str], object_store: str, inside: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The Deployment's server with the user `trainer`, after the migration Job and the init container."""
    pytest.importorskip("psycopg2", reason="the extra `server` is not installed")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    pod, job = manifest("mlflow.yaml", "Deployment"), manifest("migrate.yaml", "Job")["containers"][0]
    wait, main = pod["initContainers"][0], pod["containers"][0]
    home = {} if inside else {"HOME": str(folder)}
    at = "/" if inside else folder
    run = {"cwd": at, "capture_output": True, "text": True, "timeout": 240}

    waiting = subprocess.run([*inside, *command(wait), "0"], env=environment(wait, **postgres), **run)
    assert waiting.returncode == 1 and 'relation "alembic_version" does not exist' in waiting.stdout, waiting
    migrated = subprocess.run([*inside, *command(job)], env=environment(job, **postgres, **home), **run)
    assert migrated.returncode == 0, migrated.stderr[-3000:]
    ready = subprocess.run([*inside, *command(wait), "0"], env=environment(wait, **postgres), **run)
    assert ready.returncode == 0, ready.stdout + ready.stderr

    variables = environment(
        main,
        **postgres,
        **home,
        MLFLOW_HOST="127.0.0.1",
        MLFLOW_PORT=str(port),
        MLFLOW_AUTH_CONFIG_PATH=str(TRACKING / "basic_auth.ini"),
        MLFLOW_S3_ENDPOINT_URL=object_store,  # the component object-store sets both
        AWS_DEFAULT_REGION="us-east-1",
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*inside, *command(main)], cwd=at, env=variables, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            if status(f"{url}/health") == 200:
                break
            time.sleep(0.2)
        user = [*inside, sys.executable, str(TRACKING / "set_user.py"), "trainer"]
        for word, said in ((TRAINER + "-old", "made the user"), (TRAINER, "has a new password")):
            done = subprocess.run(user, input=word, env=variables, **run)
            assert done.returncode == 0 and said in done.stdout, done
        import boto3

        yield Server(url, folder / "log", client(boto3, object_store), process)
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    import signal

    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(15)
    except subprocess.TimeoutExpired:
        pass
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(15)


def status(url: str, user: str = "", password: str = "", host: str = "") -> int:
    """The HTTP status of a GET; 0 where nothing answers."""
    request = urllib.request.Request(url)
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_only_who_may_and_where_it_may(server: Server) -> None:
    """Password and Host header decide; the probes' path needs neither."""
    api = f"{server.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert status(f"{server.url}/health", host="10.1.2.3:5000") == 200
    assert status(api, "trainer", TRAINER) == 200
    for refused in (("", ""), ("trainer", "wrong"), ("trainer", TRAINER + "-old"), ("nobody", TRAINER)):
        assert status(api, *refused) == 401, refused
    for name in ("mlflow:5000", "mlflow.distdl:5000", "mlflow.distdl.svc:5000", INSIDE, "localhost:5000"):
        assert status(api, "trainer", TRAINER, host=name) == 200, name
    for name in ("evil.example", "evil.example:5000", "mlflow.other.svc.cluster.local:5000", "mlflow"):
        assert status(api, "trainer", TRAINER, host=name) == 403, name


def test_it_runs_no_jobs(server: Server) -> None:
    """MLflow's job runner is a process of its own, which is not there; asked for a job, the server refuses."""
    psutil = pytest.importorskip("psutil")
    lines = [" ".join(child.cmdline()) for child in psutil.Process(server.process.pid).children(recursive=True)]
    assert lines and not [line for line in lines if "huey" in line or "jobs" in line]
    assert "huey" not in server.log.read_text().lower()


def test_real_runs_log_to_it_and_a_wrong_password_loses_nothing(
    server: Server, tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once: one that may, with its files in the bucket; one that may not, which trains all the same."""
    config = yaml.safe_load((REPOSITORY / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    config["data"] = {"path": digits}
    config["train"] |= {"epochs": None, "steps": 6}
    config |= {"runtime": {"kind": "local", "workers": 1}, "parallel": {"engine": "torch"}}
    config |= {"track": {"uri": server.url, "experiment": "cluster", "every_steps": 2, "system_metrics_interval_s": 0}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    passwords = {"may": TRAINER, "may-not": "wrong-secret"}
    running = {name: train(name, password, tmp_path) for name, password in passwords.items()}
    printed = {name: process.communicate(timeout=200)[0] for name, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0], printed

    if (
        "tracked in MLflow run" not in printed["may"]
    ):  # a machine so busy that the half minute for the last events passed
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "trainer")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TRAINER)
        assert upload_pending(tmp_path / "runs" / "may", timeout_s=120).waiting == 0
    record = json.loads((tmp_path / "runs" / "may" / "tracking.json").read_text())
    run = get_run(server, record["mlflow_run_id"])
    assert run["info"]["status"] == "FINISHED"
    assert {"train/loss", "time/samples_per_s", "eval/loss"} <= {metric["key"] for metric in run["data"]["metrics"]}
    keys = {item["Key"] for item in server.store.list_objects_v2(Bucket="distdl").get("Contents", [])}
    stored = [key for key in keys if record["mlflow_run_id"] in key]
    assert any(key.startswith("mlflow/") and key.endswith("/config.yaml") for key in stored), keys
    body = server.store.get_object(Bucket="distdl", Key=next(k for k in stored if k.endswith("config.yaml")))[
        "Body"
    ].read()
    assert yaml.safe_load(body)["model"]["family"] == "lenet5"

    refused = tmp_path / "runs" / "may-not"
    assert json.loads((refused / "summary.json").read_text())["steps"] == 6
    assert "401" in printed["may-not"] and "sent when the run is continued" in printed["may-not"], printed["may-not"]
    assert len((refused / "events.jsonl").read_text().splitlines()) > 4
    assert json.loads((refused / "tracking.json").read_text())["mlflow_run_id"] is None
    for text in (printed["may-not"], (refused / "tracking.log").read_text(), (refused / "tracking.json").read_text()):
        assert "wrong-secret" not in text


def train(name: str, password: str, folder: Path) -> subprocess.Popen[str]:
    variables = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "MLFLOW_TRACKING_USERNAME": "trainer",
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    words = [sys.executable, "-m", "distdl", "train", "config.yaml", "--plain", f"name={name}"]
    return subprocess.Popen(
        words, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def get_run(server: Server, id: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{server.url}/api/2.0/mlflow/runs/get?run_id={id}")
    request.add_header("Authorization", "Basic " + base64.b64encode(f"trainer:{TRAINER}".encode()).decode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["run"]
