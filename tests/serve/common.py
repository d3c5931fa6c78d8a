"""A served model in a thread of the test's process, and somebody who asks it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distdl.data.manifest import read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.serve.answers import Answerer
from distdl.serve.app import App
from distdl.serve.server import LOCAL, Here, listen, server_of
from tests.cli.test_predict import TOWNS, houses, trained

MOST_BYTES = 100_000


def all_kinds(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Houses with a column of each kind, as JSON has them. Some cells are empty."""
    found = []
    for i, row in enumerate(houses(rows, seed)):
        more = {"built on": f"{1950 + i % 60}-{1 + i % 12:02d}-17", "pool": ("no", "yes")[i % 2]}
        more |= {"spot": [round(0.01 * i, 2), float(i % 7)], "rooms": i % 5 if i % 11 else None}
        found.append({**row, **more, "town": TOWNS[i % 3] if i % 13 else None})
    return found


def as_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained_on_all_kinds(folder: Path) -> None:
    """The run `houses`, below the working folder. A column is renamed on the way."""
    options = {"label": "class", "drop": "price", "rename": "built on:built"}
    prepare_dataset("jsonl", "houses-data", {"path": str(as_table(folder / "houses.jsonl", all_kinds(400))), **options})
    width = read_manifest("houses-data").columns["x"].shape[0]
    model = {"family": "mlp", "column": "x", "inputs": [width], "hidden": [16], "classes": 2, "norm": "batch"}
    trained("houses", model, folder / "houses-data", steps=60)


class Client:
    """Asks over one connection, as long as it is kept open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __call__(self, body: Any, query: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
        """(status, what is said) of rows, or of bytes as they are."""
        return self.ask("POST", f"/predict{query}", body, **headers)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self._connection.request(method, path, content, headers)
        response = self._connection.getresponse()
        text = response.read().decode()
        assert "Traceback" not in text
        of_json = response.headers["content-type"].startswith("application/json")
        return response.status, json.loads(text, parse_constant=_no_json) if of_json else {"text": text}

    def close(self) -> None:
        self._connection.close()


def _no_json(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


@contextmanager
def served(answerer: Answerer, most_rows: int = 256, wait_s: float = 0.0) -> Iterator[Client]:
    """Somebody who asks this model over HTTP."""
    here = Here(answerer, most_rows, wait_s)
    server = server_of(App(here, answerer.schema(), MOST_BYTES, LOCAL))
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    client = Client(listening.getsockname()[1])
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield client
    finally:
        client.close()
        server.should_exit = True
        thread.join(30)
        here.close()
    assert not thread.is_alive(), "the server does not end"
