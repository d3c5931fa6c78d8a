"""Listens, answers until it is told to end, and then answers what is under way."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from distdl.errors import InputError
from distdl.serve.answers import Answerer, Asked, Reply
from distdl.serve.app import App
from distdl.serve.batch import Batcher
from distdl.track.server import free_port, is_free, url_of

END_S = 60
"""Seconds for requests that are under way when the server is told to end."""
IDLE_S = 75
"""Seconds that a connection may be idle. Of uvicorn's 5 many a client that keeps one learns by losing a request."""
BACKLOG = 2048
"""Connections that wait to be taken."""
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine for itself."""


class Here:
    """The model in this process."""

    def __init__(self, answerer: Answerer, most_rows: int, wait_s: float) -> None:
        self._batcher = Batcher(answerer.together, most_rows, wait_s)

    async def ask(self, asked: Asked) -> Reply:
        return await self._batcher.ask(asked)

    async def health(self) -> dict[str, Any]:
        return {"healthy": True, "replicas": 1}

    def close(self) -> None:
        self._batcher.close()


def is_local(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """InputError: the port is taken, or the address is none of this machine's."""
    if not is_free(host, port):
        fix = f"--port {free_port(host, port + 1)}"
        raise InputError(f"port {port} of {host} is in use, or no address of this machine", where="--port", fix=fix)
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    return listening


def server_of(app: App) -> uvicorn.Server:
    """What speaks HTTP."""
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "lifespan": "off"}
    quiet |= {"timeout_graceful_shutdown": END_S, "timeout_keep_alive": IDLE_S}
    return uvicorn.Server(uvicorn.Config(app.asgi, **quiet))


def answer(app: App, listening: socket.socket, say: Callable[[str], None]) -> None:
    """Answers until SIGINT, SIGTERM or SIGHUP, and then what is under way. `say` is told the address."""
    server = server_of(app)

    def end(*_: Any) -> None:
        server.should_exit = True

    # uvicorn takes SIGINT and SIGTERM itself while it runs, and sends them again when it has ended. A terminal that is
    # closed must not leave a server behind.
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        listening.listen(BACKLOG)  # who connects from now on is answered
        say(url_of(*listening.getsockname()[:2]))
        server.run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
