"""The REST interface: what it answers, what it refuses and how it says so, and what a batch is."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distdl.model.model import Model
from distdl.run.folder import find_run
from distdl.serve import app as interface
from distdl.serve import batch
from distdl.serve.answers import Answerer, Asked, Reply
from distdl.serve.server import listen
from tests.serve.common import MOST_BYTES, Client, all_kinds, served


@pytest.fixture(scope="module")
def answerer(place: Path) -> Answerer:
    return Answerer(Model(find_run("houses", str(place / "runs"))))


@pytest.fixture
def client(answerer: Answerer) -> Iterator[Client]:
    with served(answerer) as found:
        yield found


def test_a_row_rows_and_a_list_of_rows_are_answered(client: Client) -> None:
    rows = all_kinds(3)
    for row in rows:
        row.pop("price"), row.pop("class")
    status, told = client(rows)
    assert status == 200 and told.keys() == {"run", "step", "answers"} and told["step"] == 60
    assert [list(answer) for answer in told["answers"]] == [["class", "probability"]] * 3
    assert client({"rows": rows}) == (200, told)
    alone = client(rows[1])[1]["answers"]
    assert alone[0]["class"] == told["answers"][1]["class"] and len(alone) == 1
    status, more = client(rows, "?top_k=2&probabilities=true&embeddings")
    assert status == 200 and {"class 2", "class=cheap", "embedding"} <= more["answers"][0].keys()
    assert client.ask("GET", "/health") == (200, {"status": "ok", "run": "houses", "replicas": 1})
    status, schema = client.ask("GET", "/schema")
    assert status == 200 and client(schema["example"])[0] == 200


REFUSED = [
    (b"", 400, "the body is empty"),
    (b'{"size": 3', 400, "the body is no JSON: Expecting"),
    (b"size=3", 400, "the body is no JSON: Expecting value"),
    (b'{"size": NaN}', 400, "NaN is no number there; null says"),
    (b'{"size": 1, "size": 2}', 400, "the key 'size' stands there twice"),
    (b"\xff\xfe{}", 400, "the body is no JSON"),
    (b'{"town": "\\ud800"}', 400, "half a character"),
    (b"[" * 90_000, 400, "nested too deeply"),
    (b'{"size": ' + b"1" * 9000 + b"}", 400, "the body is no JSON"),
    (b"[]", 400, "there are no rows"),
    (b'{"rows": 3}', 400, "'rows' is 3"),
    (b"[" + b"1," * 10_000 + b"1]", 413, "10,001 rows"),
    (b'"' + b"x" * 2 * MOST_BYTES + b'"', 413, "the body is larger than"),
    (b"3", 422, "the row is 3, which is no object"),
    (b"{}", 422, "the row has no 'size', which the model reads"),
    (b"[{}, {}]", 422, "row 0: the row has no 'size'"),
]


@pytest.mark.parametrize(("body", "status", "text"), REFUSED, ids=[text for *_, text in REFUSED])
def test_what_cannot_be_answered_is_refused_with_the_cause(client: Client, body: bytes, status: int, text: str) -> None:
    found, told = client(body)
    assert (found, text in told["error"]) == (status, True), told
    assert "allowed" in told or "fix" in told or "nested" in text
    assert client(all_kinds(1))[0] == 200, "and the next request is answered"


def test_a_wrong_address_method_and_parameter_are_told(client: Client) -> None:
    assert client.ask("GET", "/predicts")[0] == 404 and client.ask("GET", "/predict")[0] == 405
    status, told = client.ask("GET", "/")
    assert status == 404 and told["allowed"] == interface.ADDRESSES
    status, told = client(all_kinds(1), "?top-k=2")
    assert status == 400 and told["fix"] == "did you mean 'top_k'?"
    assert [client(all_kinds(1), f"?{wrong}")[0] for wrong in ("top_k=0", "top_k=x", "probabilities=maybe")] == [
        400
    ] * 3


def test_good_rows_beside_bad_ones_are_answered(client: Client) -> None:
    rows = all_kinds(3)
    rows[1]["size"] = "big"
    status, told = client(rows)
    assert status == 200 and told["set_aside"] == 1 and "'big'" in told["answers"][1]["error"]
    assert "class" in told["answers"][0] and "class" in told["answers"][2]
    assert told["notes"] == ["3 x 'price' is no column that the model reads, and is left alone"]


def test_a_body_whose_length_is_not_told_is_measured_as_it_comes(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw:
        raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"x" * 50_000
        for _ in range(4):
            raw.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        raw.sendall(b"0\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")


def test_who_calls_this_machine_by_another_name_is_sent_away(client: Client) -> None:
    assert client(all_kinds(1), Host="localhost:8000")[0] == client(all_kinds(1), Host="[::1]:8000")[0] == 200
    for method, path in (("POST", "/predict"), ("GET", "/schema"), ("GET", "/metrics"), ("GET", "/health")):
        status, told = client.ask(method, path, all_kinds(1), Host="evil.example")
        assert status == 400 and told["error"] == "'evil.example' is no name of this server"


def test_a_failure_of_the_model_is_told_in_words_and_spoils_no_other(
    answerer: Answerer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answerer.together

    def together(asked: Any) -> list[Reply]:
        if any(row.get("size") == 13 for one in asked for row in one.rows):
            raise RuntimeError("out of luck")
        return whole(asked)

    monkeypatch.setattr(answerer, "together", together)
    with served(answerer, wait_s=0.3) as client:
        clients = [Client(client.port) for _ in range(4)]
        found: list[tuple[int, Any]] = [(0, None)] * 4

        def ask(i: int) -> None:
            found[i] = clients[i]({**all_kinds(1)[0], "size": 13 if i == 2 else 50 + i})

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for one in clients:
            one.close()
    assert [status for status, _ in found] == [200, 200, 500, 200]
    assert "the model failed on this request" in found[2][1]["error"] and "luck" not in found[2][1]["error"]
    assert "RuntimeError: out of luck" in capfd.readouterr().err


def test_requests_that_come_together_are_one_batch(answerer: Answerer) -> None:
    with served(answerer, most_rows=8, wait_s=5.0) as client:
        clients = [Client(client.port) for _ in range(8)]
        threads = [threading.Thread(target=one, args=(all_kinds(1)[0],)) for one in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        metrics = client.ask("GET", "/metrics")[1]["text"]
        for one in clients:
            one.close()
    assert 'distdl_serve_batch_rows_bucket{le="4.0"} 0.0' in metrics
    assert 'distdl_serve_batch_rows_bucket{le="8.0"} 8.0' in metrics
    assert 'distdl_serve_requests_total{status="200"} 8.0' in metrics and "distdl_serve_rows_total 8.0" in metrics


@pytest.mark.parametrize(("quick_s", "second"), [(1000.0, "MainThread"), (0.0, "distdl-model")])
def test_only_a_batch_that_may_take_a_while_is_in_another_thread(
    quick_s: float, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "QUICK_S", quick_s)
    threads: list[str] = []

    def together(asked: Any) -> list[Reply]:
        threads.append(threading.current_thread().name.split("_")[0])
        return [Reply([{}]) for _ in asked]

    async def ask_twice() -> None:
        batcher = batch.Batcher(together, 8)
        for _ in range(2):
            await batcher.ask(Asked([1]))
        batcher.close()

    asyncio.run(ask_twice())
    assert threads == ["distdl-model", second]


def test_a_server_with_too_much_to_do_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "MOST_WAITING", 2)
    assert client(all_kinds(2))[0] == 200
    status, told = client(all_kinds(3))
    assert status == 503 and told["fix"] == "ask again later"


def test_a_number_that_is_not_finite_is_null() -> None:
    response = interface.as_json({"answers": [{"a": float("nan"), "b": [1.5, float("inf")]}]})
    assert json.loads(bytes(response.body)) == {"answers": [{"a": None, "b": [1.5, None]}]}


def test_a_port_that_is_taken_is_told(answerer: Answerer) -> None:
    from distdl.errors import InputError

    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="not an address to listen on"):
        listen("no.such.name.invalid", 0)
