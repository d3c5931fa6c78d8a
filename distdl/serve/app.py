"""The REST interface: JSON in, JSON out, and nothing else. What is wrong with a request is a 4xx that names the key, says
what is allowed and how to fix it; no text of Python's reaches whoever asks.

    POST /predict   a row, a list of rows, or {"rows": [...]}; ?top_k=3&probabilities=true&embeddings=true
    GET  /schema    what goes in and what comes out
    GET  /health    whether it answers
    GET  /metrics   counts and times, as Prometheus reads them
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from distdl.data.asking.told import Wish
from distdl.errors import did_you_mean
from distdl.serve.answers import Asked, Reply

MOST_ROWS = 10_000
"""Of a request."""
MOST_WAITING = 50_000
"""Rows of all requests that are not answered yet; what comes above them is sent away."""
DRAINED = 8
"""A body that is too large is read to its end, up to so many times what is allowed, and forgotten: who sends it reads no
answer before."""
ADDRESSES = "POST /predict, GET /schema, GET /health, GET /metrics"
TRUE, FALSE = ("true", "1", "yes", ""), ("false", "0", "no")


class Asks(Protocol):
    """Whom the rows are passed on to: the model in this process, or replicas of it."""

    async def ask(self, asked: Asked) -> Reply: ...
    async def health(self) -> dict[str, Any]:
        """`healthy`, and what else is known."""
        ...


class Refused(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, error: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(error)
        self.status, self.headers = status, dict(headers or {})
        self.told = {"error": error, **{key: value for key, value in more.items() if value}}


class Measured:
    """What is counted of the requests."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        name = "distdl_serve"
        self.requests = Counter(f"{name}_requests", "Requests to /predict, by status.", ["status"], registry=registry)
        self.rows = Counter(f"{name}_rows", "Rows that were answered.", registry=registry)
        self.set_aside = Counter(f"{name}_set_aside", "Rows that could not be read.", registry=registry)
        seconds = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, math.inf)
        what = "From the head of a request to its answer."
        self.seconds = Histogram(f"{name}_seconds", what, buckets=seconds, registry=registry)
        what = "Rows of the batch that a request was in."
        self.together = Histogram(f"{name}_batch_rows", what, buckets=[2**i for i in range(14)], registry=registry)


class App:
    """The interface of one model. `schema`: what `/schema` says; `hosts`: names by which this server may be called, None:
    any."""

    def __init__(self, asks: Asks, schema: Mapping[str, Any], most_bytes: int, hosts: Sequence[str] | None) -> None:
        self.asks, self.schema, self.most_bytes, self.hosts = asks, schema, most_bytes, hosts
        self.measured, self.waiting, self.answered = Measured(), 0, 0
        self.asgi = Starlette(
            routes=[
                Route("/predict", self._predict, methods=["POST"]),
                Route("/schema", self._schema),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={HTTPException: self._no_such, Refused: self._refused},
        )

    # -- what can be asked -------------------------------------------------------------------------------------------------

    async def _predict(self, request: Request) -> Response:
        began, status = time.perf_counter(), 500
        try:
            response = await self._answer(request)
            status = response.status_code
        except Refused as refused:
            status = refused.status
            raise
        except ClientDisconnect:
            status = 499
            response = Response(status_code=status)  # which nobody reads
        except Exception as error:
            response = failed(error)
        finally:
            self.measured.requests.labels(str(status)).inc()
            self.measured.seconds.observe(time.perf_counter() - began)
            self.answered += 1
        return response

    async def _answer(self, request: Request) -> Response:
        self._check_host(request)
        wish = wish_of(request.query_params.multi_items())
        rows = rows_of(parsed(await self._body(request)))
        if self.waiting + len(rows) > MOST_WAITING:
            raise Refused(
                503, f"{self.waiting:,} rows wait already", headers={"Retry-After": "1"}, fix="ask again later"
            )
        self.waiting += len(rows)
        try:
            reply = await self.asks.ask(Asked(rows, wish))
        finally:
            self.waiting -= len(rows)
        self.measured.rows.inc(len(rows) - reply.set_aside)
        self.measured.set_aside.inc(reply.set_aside)
        self.measured.together.observe(reply.together)
        return self._told(reply)

    def _told(self, reply: Reply) -> Response:
        """200 where a row was answered; 422 where none could be read."""
        told: dict[str, Any] = {"run": self.schema["run"], "step": self.schema["step"]}
        all_bad = reply.set_aside == len(reply.answers)
        if all_bad:
            first = reply.answers[0]
            told |= first if len(reply.answers) == 1 else {**first, "error": f"row 0: {first['error']}"}
        told["answers"] = reply.answers
        told |= {"set_aside": reply.set_aside} if reply.set_aside else {}
        told |= (
            {"notes": [f"{n:,} x {text}" if n > 1 else text for text, n in reply.notes.items()]} if reply.notes else {}
        )
        return as_json(told, 422 if all_bad else 200)

    async def _schema(self, request: Request) -> Response:
        self._check_host(request)
        return as_json(self.schema)

    async def _health(self, request: Request) -> Response:
        self._check_host(request)
        found = await self.asks.health()
        told = {"status": "ok" if found.pop("healthy") else "no answer", "run": self.schema["run"], **found}
        return as_json(told, 200 if told["status"] == "ok" else 503)

    async def _metrics(self, request: Request) -> Response:
        self._check_host(request)
        return Response(generate_latest(self.measured.registry), media_type=CONTENT_TYPE_LATEST)

    # -- what is not answered ----------------------------------------------------------------------------------------------

    def _check_host(self, request: Request) -> None:
        """A page of the web may call its own name this machine's, and read what is answered to that name."""
        told = request.headers.get("host", "")
        host = told[1:].partition("]")[0] if told.startswith("[") else told.partition(":")[0]
        if self.hosts is not None and host.lower() not in self.hosts:
            raise Refused(400, f"'{host:.80}' is no name of this server", allowed=", ".join(self.hosts))

    async def _body(self, request: Request) -> bytes:
        found, size = bytearray(), 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= self.most_bytes:
                found += chunk
            elif size > DRAINED * self.most_bytes:
                break
        if size > self.most_bytes:
            what = f"the body is larger than {self.most_bytes / 2**20:g} MiB"
            fix = "send the rows in several requests, or ask `distdl predict` about a file of them"
            raise Refused(413, what, fix=fix, headers={"Connection": "close"})
        return bytes(found)

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return as_json(error.told, error.status, error.headers)

    async def _no_such(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path:.80} is nothing that this server answers"
        return as_json({"error": what, "allowed": ADDRESSES}, error.status_code, error.headers)


# -- from bytes to rows, and back ----------------------------------------------------------------------------------------


def parsed(body: bytes) -> Any:
    """What a body says. Refused: it is no JSON, or says something twice."""
    if not body.strip():
        raise Refused(400, "the body is empty", fix="send a row as a JSON object; GET /schema shows one")
    try:
        value = json.loads(body, object_pairs_hook=_once, parse_constant=_no_number)
        if b"\\u" in body:  # half a character, which no text may hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(400, "a text holds half a character (a lone surrogate)", fix="send whole characters") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}", fix='such as {"rows": [{...}, {...}]}, in UTF-8') from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f"the key '{twice:.60}' stands there twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number there; null says that a value is not known")


def rows_of(value: Any) -> list[Any]:
    """Refused: there are none, or too many."""
    if isinstance(value, dict) and list(value) == ["rows"]:
        value = value["rows"]
        if not isinstance(value, list):
            raise Refused(400, f"'rows' is {value!r:.60}", allowed="a list of rows")
    rows = value if isinstance(value, list) else [value]
    if not rows:
        raise Refused(400, "there are no rows", fix='{"rows": [{...}, {...}]}')
    if len(rows) > MOST_ROWS:
        fix = "send them in several requests, or ask `distdl predict` about a file of them"
        raise Refused(413, f"{len(rows):,} rows", allowed=f"up to {MOST_ROWS:,} in a request", fix=fix)
    return rows


def wish_of(parameters: Sequence[tuple[str, str]]) -> Wish:
    """What is asked for in the address. Refused: something else."""
    found: dict[str, Any] = {}
    for key, text in parameters:
        if key == "top_k":
            if not (text.isdecimal() and 1 <= int(text[:9]) <= 100_000):
                raise Refused(400, f"top_k is '{text:.60}'", allowed="a whole number from 1 on")
            found[key] = int(text)
        elif key in ("probabilities", "embeddings"):
            if text.lower() not in TRUE + FALSE:
                raise Refused(400, f"{key} is '{text:.60}'", allowed="true or false")
            found[key] = text.lower() in TRUE
        else:
            known = ("top_k", "probabilities", "embeddings")
            raise Refused(400, f"'{key:.60}' is nothing that can be asked for", fix=did_you_mean(key, known))
    return Wish(**found, inline=True)


def failed(error: Exception) -> Response:
    """A mistake of ours, or of a family: told to whoever started the server."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    print(f"distdl: {type(error).__name__}: {error}\n    at {where.filename}:{where.lineno}", file=sys.stderr)
    if os.environ.get("DISTDL_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    return as_json({"error": "the model failed on this request; the server's own output says how"}, 500)


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON has no number that is not finite: such a value is null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(finite(value), ensure_ascii=False, default=str)
    return Response(text + "\n", status, headers, "application/json")


def finite(value: Any) -> Any:
    """With None for what is not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
