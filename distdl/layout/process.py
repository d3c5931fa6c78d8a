"""The one owner of what a layout keeps for the whole process, so that no engine meets what another one left there.

    with ProcessState():
        engine = make_engine(learner, plan, rank)      # trains, evaluates; afterwards all is as it was before

A family is written as if there were one device: nobody hands its blocks their place on the mesh, they ask for it
(`axes.here`), as they ask which samples the noise is for. DeepSpeed keeps groups in modules and, for ZeRO-3, replaces a
function of torch, whose sums are rounded in another order. Whoever keeps or changes such a thing says so by `owns`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch


class _Thing(NamedTuple):
    """One value that the whole process shares."""

    get: Callable[[], Any]
    put: Callable[[Any], None]
    fresh: Callable[[], Any]
    """What it is before there is an engine."""


alone = threading.RLock()
"""Held by whoever uses what the whole process shares, torch's random numbers among it: threads take turns."""
_things: dict[tuple[int, str], _Thing] = {}
_entered: list[ProcessState] = []


def owns(holder: Any, **fresh: Any) -> None:
    """Says that engines change these attributes of an object or a module, and what they are before there is an engine.
    Said again, it changes nothing."""
    for name, value in fresh.items():
        if (id(holder), name) not in _things:
            get, put = partial(getattr, holder, name), partial(setattr, holder, name)
            _add((id(holder), name), _Thing(get, put, partial(copy.copy, value)))


def _add(key: tuple[int, str], thing: _Thing) -> None:
    _things[key] = thing
    for state in _entered:  # as if a library that is loaded late had been there
        state._before[key] = thing.get()
        thing.put(thing.fresh())


class ProcessState:
    """Within it the process is as before any engine; then it is put back as it was. Entered again, it is as it was left, so
    that several engines can take turns."""

    def __init__(self) -> None:
        self._own: dict[tuple[int, str], Any] = {}
        self._before: dict[tuple[int, str], Any] = {}

    def __enter__(self) -> ProcessState:
        alone.acquire()
        try:
            assert self not in _entered, "it is entered already"
            self._before = {key: thing.get() for key, thing in _things.items()}
            for key, thing in list(_things.items()):
                thing.put(self._own[key] if key in self._own else thing.fresh())
            _entered.append(self)
        except BaseException:
            alone.release()  # nobody will leave what was not entered
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            left = _entered.pop()
            assert left is self, "states are left in the order opposite to that in which they were entered"
            self._own = {key: thing.get() for key, thing in _things.items()}
            for key, value in self._before.items():
                _things[key].put(value)
            self._before = {}
        finally:
            alone.release()


def _set_deterministic(chosen: tuple[bool, bool]) -> None:
    if chosen != _deterministic():  # setting it loads torch's compiler, which takes a second
        torch.use_deterministic_algorithms(chosen[0], warn_only=chosen[1])


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _fill(now: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = now  # type: ignore[attr-defined]


def _filled() -> bool:
    return bool(torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]


def _left_as_it_is(name: str, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
    _add((0, name), _Thing(get, put, get))


# What a worker sets as its plan says; until then a new state has what is there.
_cudnn, _cuda = torch.backends.cudnn, torch.backends.cuda
_left_as_it_is("threads", torch.get_num_threads, torch.set_num_threads)
_left_as_it_is("deterministic", _deterministic, _set_deterministic)
_left_as_it_is("fill", _filled, _fill)
_left_as_it_is("fp32 products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
_left_as_it_is("fp32 convolutions", partial(getattr, _cudnn, "allow_tf32"), partial(setattr, _cudnn, "allow_tf32"))
_left_as_it_is("convolutions tried", partial(getattr, _cudnn, "benchmark"), partial(setattr, _cudnn, "benchmark"))
_left_as_it_is("cuDNN's attention", _cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp)
