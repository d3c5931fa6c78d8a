"""A call that must not be the main thread's."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any


def aside(call: Callable[[], Any], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Calls it in a thread, and `meanwhile` now and then: there Ray takes no Ctrl-C for itself, which would end the workers
    before they wrote a checkpoint."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = Thread(target=run, name="distdl-ray", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        meanwhile()
    if ended and ended[0] is not None:
        raise ended[0]
