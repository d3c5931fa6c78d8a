"""`distdl.serve.on_cluster:app`, which Ray Serve deploys by itself: it answers as `distdl serve` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distdl.errors import InputError
from distdl.serve import on_cluster
from distdl.track.server import free_port
from tests.conftest import Result
from tests.serve.common import Client, all_kinds, as_table
from tests.serve.test_serve_rows import predicted, same

Command = Callable[..., Result]


def test_what_its_arguments_cannot_be_is_said(place: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "is not told which run it serves"),
        ({"run": "runs/houses", "checkpont": "best"}, "did you mean 'checkpoint'"),
        ({"run": "runs/houses", "max_batch": 0}, "max_batch is 0"),
        ({"run": "runs/houses", "unknown": "guess"}, "unknown is 'guess'"),
        ({"run": "runs/nothing"}, "nothing"),
    ]
    for args, said in cases:
        with pytest.raises(InputError) as refused:
            on_cluster.app(args)
        assert said in str(refused.value)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(600)
def test_ray_serve_answers_as_distdl_serve_does(place: Path, command: Command) -> None:
    from ray import serve

    from distdl.runtime.ray import joined

    rows = all_kinds(40, seed=11)
    as_table(place / "more.jsonl", rows)
    port = free_port("127.0.0.1", 18_000)
    with joined("local", {"OMP_NUM_THREADS": "1"}, 2):
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(on_cluster.app({"run": str(place / "runs" / "houses")}), name="houses", route_prefix="/")
            client = Client(port)
            status, told = client(rows)
            assert status == 200
            same(told["answers"], predicted(command, "houses", "more.jsonl"))
            status, refused = client({**rows[0], "town": "Paris"})
            assert status == 422 and "none of those learned from" in refused["error"]
            status, schema = client.ask("GET", "/schema")
            assert status == 200 and schema["run"] == "houses"
            assert client.ask("GET", "/health")[0] == 200 and client.ask("GET", "/-/healthz")[0] == 200
            client.close()
        finally:
            serve.shutdown()
