"""`distdl serve`, the command: it says how it is asked, loses no request, answers what is under way when it is to end, and
is the same with one model as with several replicas, of which one may die."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.conftest import Result, variables
from tests.serve.common import Client, all_kinds, as_table
from tests.serve.test_serve_rows import predicted, same

Command = Callable[..., Result]
CLIENTS, REQUESTS = 8, 125
ANSWER_S = 300


class Started(NamedTuple):
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    said: list[str]
    """Its first lines."""


@contextmanager
def started(folder: Path, *args: object) -> Iterator[Started]:
    """`distdl serve houses ARGS` on a free port, when it answers."""
    command = [sys.executable, "-m", "distdl", "serve", "houses", "--port", "0", *map(str, args)]
    process = subprocess.Popen(
        command, cwd=folder, env=variables(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        while not said or not said[-1].endswith("/schema\n"):
            line = process.stdout.readline()
            assert line, f"it ended: {said}"
            said.append(line)
        (port,) = re.findall(r"answers on http://127\.0\.0\.1:(\d+)", "".join(said))
        yield Started(process, int(port), said)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def all_answered(port: int, rows: list[dict[str, Any]], meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
    """What `CLIENTS` clients are told of all rows, each in as many requests as it takes, of one to three rows."""
    answers: list[Any] = [None] * len(rows)
    lost: list[Any] = []
    share = len(rows) // CLIENTS

    def ask(number: int) -> None:
        client, at, end = Client(port), number * share, (number + 1) * share
        sizes = [1 + (number + i) % 3 for i in range(REQUESTS)]
        for size in sizes:
            some = rows[at : min(at + size, end)]
            status, told = client(some)
            if status != 200 or told.get("set_aside"):
                lost.append(told)
            else:
                answers[at : at + len(some)] = told["answers"]
            at += len(some)
        client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join(ANSWER_S)
    assert not lost and not any(thread.is_alive() for thread in threads)
    return answers


@pytest.mark.slow
def test_a_thousand_requests_of_eight_clients_lose_none(place: Path, command: Command) -> None:
    rows = all_kinds(CLIENTS * 250, seed=9)
    as_table(place / "many.jsonl", rows)
    with started(place) as server:
        answers = all_answered(server.port, rows)
        client = Client(server.port)
        metrics = client.ask("GET", "/metrics")[1]["text"]
        client.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert server.process.stdout is not None
        assert f"ended; requests: {CLIENTS * REQUESTS:,}" in server.process.stdout.read()
    assert f'distdl_serve_requests_total{{status="200"}} {CLIENTS * REQUESTS}.0' in metrics
    told = [answer for answer in answers if answer is not None]
    expected = [one for one, answer in zip(predicted(command, "houses", "many.jsonl"), answers) if answer is not None]
    assert len(told) > CLIENTS * REQUESTS
    same(told, expected)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_under_way_is_answered_when_it_is_to_end(place: Path, sign: signal.Signals) -> None:
    """The line that it prints is asked, by curl; and somebody waits when the signal comes."""
    with started(place, "--wait-ms", 1500) as server:
        (line,) = [line for line in server.said if line.strip().startswith("curl") and "/predict" in line]
        done = subprocess.run([*shlex.split(line), "-s"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "class" in json.loads(done.stdout)["answers"][0], done
        found: list[Any] = []
        client = Client(server.port)
        thread = threading.Thread(target=lambda: found.append(client(all_kinds(2))))
        thread.start()
        time.sleep(0.4)
        os.killpg(server.process.pid, sign)
        thread.join(60)
        client.close()
        assert found and found[0][0] == 200 and len(found[0][1]["answers"]) == 2
        assert server.process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(900)
def test_replicas_lose_no_request_though_one_of_them_dies(place: Path, command: Command) -> None:
    rows = all_kinds(CLIENTS * 250, seed=11)
    as_table(place / "more.jsonl", rows)
    with started(place, "--replicas", 2, "--wait-ms", 60) as server:  # so that both have something when one dies
        assert "houses (mlp, step 60, 2 replicas) answers on" in "".join(server.said)
        client = Client(server.port)
        assert client.ask("GET", "/health") == (200, {"status": "ok", "run": "houses", "replicas": 2, "of": 2})

        def kill_one() -> None:
            time.sleep(0.5)
            below = psutil.Process(server.process.pid).children(recursive=True)
            copies = [one for one in below if "ServeReplica" in " ".join(one.cmdline())]
            assert len(copies) == 2, [one.cmdline() for one in below]
            copies[0].kill()

        answers = all_answered(server.port, rows, kill_one)
        processes = psutil.Process(server.process.pid).children(recursive=True)
        client.close()
        os.killpg(server.process.pid, signal.SIGINT)  # Ctrl-C reaches all processes of a terminal
        assert server.process.wait(120) == 0
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    told = [answer for answer in answers if answer is not None]
    expected = [one for one, answer in zip(predicted(command, "houses", "more.jsonl"), answers) if answer is not None]
    assert len(told) > CLIENTS * REQUESTS
    same(told, expected)


@pytest.mark.slow
def test_what_cannot_be_served_is_said_before_anything_is_loaded(place: Path, command: Command) -> None:
    cases = [
        (("nothing",), "there is no run 'nothing'"),
        (("houses", "--replicas", 0), "--replicas is 0"),
        (("houses", "--max-batch", 0, "--wait-ms", -1), "--wait-ms is -1"),
        (("houses", "--port", 70000), "--port is 70000"),
        (("houses", "--checkpoint", 7), "there is no checkpoint of step 7\n    allowed: 58, 60"),
        (("houses", "--checkpoint", "nowhere"), "there is no checkpoint 'nowhere'"),
        (("houses", "--host", "no.such.name.invalid", "--port", 0), "is not an address to listen on"),
    ]
    for args, text in cases:
        done = command("serve", *args)
        assert done.code == 2 and text in done.stderr, (args, done.stderr)


def test_another_host_than_this_machine_is_said_in_words(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts: list[Any] = []
    monkeypatch.setattr("distdl.serve.server.answer", lambda app, *_: hosts.append(app.hosts))
    told = command("serve", "houses", "--host", "0.0.0.0", "--port", 0, "--checkpoint", 60)
    assert told.code == 0 and "everyone who can reach 0.0.0.0:0 may ask this model: there is no password" in told.stderr
    assert command("serve", "houses", "--port", 0).stderr == ""
    assert hosts == [None, ["localhost", "127.0.0.1", "::1", "127.0.0.1"]]
