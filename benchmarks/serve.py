"""What a served answer costs over the model's own, beside a bare FastAPI loop and MLflow's server. See README.md.

    python benchmarks/serve.py [--requests N] [--rounds R] [--only WORD ...] [--output benchmarks/results/serve.md]

One small model, trained here, is asked about one row at a time by one client that keeps its connection, in blocks of N
requests that take turns, round by round; then by eight clients at once. Every server and client is a process of its own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parent.parent
TOWNS = ("Bonn", "Oslo", "Rome", "Turin")
CLIENTS = 8
BARE_MODEL, ROWS_TO_WORDS = "the model alone: learner.predict of one row", "the same with rows to words, without HTTP"
FASTAPI, HERE, SEVERAL, MLFLOW = (
    *("bare FastAPI, numbers in and out", "distdl serve", "distdl serve --replicas 2"),
    "mlflow models serve",
)
FASTAPI_SERVER = """
import sys
import distdl, torch, uvicorn
from fastapi import FastAPI

learner = distdl.load("runs/houses")
app = FastAPI()

@app.post("/predict")
async def predict(row: dict[str, list[float]]) -> dict[str, list[float]]:
    return {"probabilities": learner.predict({"x": torch.tensor([row["x"]])})["probabilities"][0].tolist()}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""
MLFLOW_MODEL = """
import mlflow, pandas
from distdl.data.asking.told import Wish
from distdl.model.model import Model
from distdl.run.folder import find_run

class Houses(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.model = Model(find_run("houses", "runs"))

    def predict(self, context, model_input: pandas.DataFrame):
        return self.model.told_of(model_input, Wish())

mlflow.models.set_model(Houses())
"""


@dataclass
class Contender:
    """A server, or a function, and how long it took."""

    name: str
    ask: Callable[[], None]
    connect: Callable[[], None] = lambda: None
    """Before a block: a server ends a connection that was idle while others had their turn."""
    port: int = 0
    path: str = ""
    body: bytes = b""
    ms: list[float] = field(default_factory=list)
    """Of each request."""
    per_s: list[float] = field(default_factory=list)
    """Requests in a second of eight clients, a round each."""

    def block(self, requests: int) -> None:
        """Asks so many times."""
        self.connect()
        self.ask()
        for _ in range(requests):
            began = time.perf_counter()
            self.ask()
            self.ms.append(1000 * (time.perf_counter() - began))


def houses(rows: int) -> list[dict[str, Any]]:
    """Ten numbers, three towns, and a class."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(rows, 10)).round(3).tolist()
    towns = rng.choice(TOWNS, (rows, 3)).tolist()
    columns = [{f"n{i}": value for i, value in enumerate(row)} for row in numbers]
    words = [{f"town {i}": town for i, town in enumerate(row)} for row in towns]
    found = []
    for a, b in zip(columns, words, strict=True):
        dear = a["n0"] + (b["town 0"] == "Rome") > 0.3
        found.append({**a, **b, "class": "dear" if dear else "cheap"})
    return found


def trained() -> dict[str, Any]:
    """Trains `runs/houses`; a row to ask about."""
    import distdl
    from distdl.data.prepare import prepare_dataset

    rows = houses(2000)
    Path("houses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_dataset("jsonl", "data", {"path": "houses.jsonl", "label": "class"})
    model = {"family": "mlp", "column": "x", "inputs": [22], "hidden": [64, 64], "classes": 2}
    run = {"runtime": {"kind": "local", "workers": 1}, "parallel": {"engine": "torch"}, "track": {"enabled": False}}
    train = {"train": {"global_batch": 64, "steps": 200}, "optimizer": {"name": "adamw", "lr": 1e-2}}
    distdl.train({"name": "houses", "model": model, "data": {"path": "data"}, **train, **run})
    return {name: value for name, value in rows[0].items() if name != "class"}


def functions(row: dict[str, Any]) -> Iterator[Contender]:
    """The model in this process."""
    import torch

    from distdl.model.model import Model
    from distdl.run.folder import find_run
    from distdl.serve.answers import Answerer, Asked

    model = Model(find_run("houses", "runs"))
    answerer = Answerer(model)
    (question,) = answerer.reader.questions([answerer.reader.read(row)[0]])
    batch = {"x": torch.from_numpy(question.rows["x"])}
    Path("x.json").write_text(json.dumps({"x": question.rows["x"][0].tolist()}))
    yield Contender(BARE_MODEL, lambda: model.learner.predict(batch) and None)
    yield Contender(ROWS_TO_WORDS, lambda: answerer.together([Asked([row])]) and None)


@contextmanager
def server(name: str, command: list[str], port: int, path: str, body: Any) -> Iterator[Contender]:
    """One that answers POST of this body at this path."""
    log = Path(f"{re.sub('[^a-z]+', '-', name)}.log")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        content, began = json.dumps(body).encode(), time.monotonic()
        held: list[http.client.HTTPConnection] = []

        def connect() -> None:
            held[:] = [http.client.HTTPConnection("127.0.0.1", port, timeout=60)]

        while True:
            try:
                connect()
                asked(held[0], path, content)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() - began > 300:
                    raise SystemExit(f"{name} does not answer:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.5)
        print(f"{name}: answers after {time.monotonic() - began:.1f} s", file=sys.stderr)
        yield Contender(name, lambda: asked(held[0], path, content), connect, port, path, content)
    finally:
        process.terminate()
        process.wait(60)


def asked(connection: http.client.HTTPConnection, path: str, content: bytes) -> None:
    """Raises what goes wrong."""
    connection.request("POST", path, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise SystemExit(f"{path} says {response.status}: {text[:300]!r}")


def servers(row: dict[str, Any]) -> Iterator[tuple[str, Callable[[], AbstractContextManager[Contender]]]]:
    """Name -> what starts it."""
    ports = free_ports(4)
    python = [sys.executable]
    serve = [*python, "-m", "distdl", "serve", "houses", "--port"]

    def fastapi() -> AbstractContextManager[Contender]:
        Path("fastapi_server.py").write_text(FASTAPI_SERVER)
        encoded = json.loads(Path("x.json").read_text())
        return server(FASTAPI, [*python, "fastapi_server.py", str(ports[0])], ports[0], "/predict", encoded)

    def of_mlflow() -> AbstractContextManager[Contender]:
        import mlflow

        Path("mlflow_model.py").write_text(MLFLOW_MODEL)
        mlflow.pyfunc.save_model("model", python_model="mlflow_model.py", pip_requirements=["mlflow"])
        command = [*python, "-m", "mlflow", "models", "serve", "-m", "model", "--env-manager", "local", "-w", "1"]
        body = {"dataframe_records": [row]}
        return server(MLFLOW, [*command, "-p", str(ports[3])], ports[3], "/invocations", body)

    yield FASTAPI, fastapi
    yield HERE, lambda: server(HERE, [*serve, str(ports[1])], ports[1], "/predict", row)
    yield SEVERAL, lambda: server(SEVERAL, [*serve, str(ports[2]), "--replicas", "2"], ports[2], "/predict", row)
    yield MLFLOW, of_mlflow


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def of_one_client(port: int, path: str, content: bytes, requests: int) -> int:
    """Asks so many times, and how many were answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(requests):
        asked(connection, path, content)
    return requests


def table(found: list[Contender]) -> str:
    """Medians, and what they are of others'."""
    median = {one.name: statistics.median(one.ms) for one in found}
    bare = median.get(BARE_MODEL, 0.0)
    heads = [
        "",
        "least, ms",
        "median, ms",
        "95 of 100 below, ms",
        "over the model alone, ms",
        "of FastAPI's",
        "of MLflow's",
    ]
    heads += ["8 clients, requests/s"]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for one in found:
        peers = [median.get(peer, 0.0) if one.port else 0.0 for peer in (FASTAPI, MLFLOW)]
        of = [f"{median[one.name] / peer:.2f}" if peer else "" for peer in peers]
        per_s = f"{statistics.median(one.per_s):,.0f}" if one.per_s else ""
        high = float(np.quantile(one.ms, 0.95))
        over = "" if one.name == BARE_MODEL else f"{median[one.name] - bare:.2f}"
        cells = [one.name, f"{min(one.ms):.2f}", f"{median[one.name]:.2f}", f"{high:.2f}", over, *of, per_s]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="of a block")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=[""], help="servers whose name has one of these words")
    parser.add_argument("--output", default="benchmarks/results/serve.md")
    args = parser.parse_args()
    output, before = Path(args.output).absolute(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="distdl-serve-") as folder, ExitStack() as stack:
        os.chdir(folder)
        stack.callback(os.chdir, REPOSITORY)
        row = trained()
        clients = stack.enter_context(ProcessPoolExecutor(CLIENTS, get_context("spawn")))
        found = list(functions(row))
        for name, start in servers(row):
            if any(word in name for word in args.only):
                found.append(stack.enter_context(start()))
        for one in found:
            one.block(args.requests)  # which fills caches
            one.ms.clear()
        for turn in range(args.rounds):
            for at in range(len(found)):
                found[(at + turn) % len(found)].block(args.requests)
            for one in (one for one in found if one.port):
                began = time.perf_counter()
                asking = (one.port, one.path, one.body, args.requests)
                given = [clients.submit(of_one_client, *asking) for _ in range(CLIENTS)]
                answered = sum(each.result() for each in given)
                assert answered == CLIENTS * args.requests, f"{one.name} lost some"
                one.per_s.append(answered / (time.perf_counter() - began))
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
    command = f"python benchmarks/serve.py --requests {args.requests} --rounds {args.rounds}"
    cores = len(os.sched_getaffinity(0))
    about = f"{cores} cores; the load average was {before:.1f} before and {os.getloadavg()[0]:.1f} after."
    told = f"# Serving\n\n`{command}`: {len(found[0].ms):,} requests of one row each. {about}\n\n{table(found)}\n"
    output.write_text(told)
    print(told)


if __name__ == "__main__":
    main()
