"""Runs a constructor without the memory of its weights, and makes them later, one by one, to the bit.

Within `recording` whatever is large has a shape and no memory, and what is done to it is written down, as with torchdistX's
deferred initialisation: to make a tensor is to do it again. What a constructor draws is the same to the bit as where it
draws it at once: torch's generator goes on by each draw, whose numbers are thrown away, and its state before is kept. So
the initial weights depend on seed and family alone, and on no layout; and every draw is made twice, in a fraction of the
memory. Where a seed is given, each draw has a generator of its own instead, seeded by that and by the name of the tensor
that it goes into: then nobody draws what lives elsewhere. What is small is made at once. A constructor that asks for a
number of a large tensor gets it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

from distdl.layout.process import alone
from distdl.parallel.birth import promise, promised
from distdl.plan.birth import NAMES, WHOLE

SMALL = 1250
"""Elements below which a tensor is made at once: the state of a generator takes as many bytes."""

_aten = torch.ops.aten
_MAKES = {
    *(_aten.empty.memory_format, _aten.empty_strided.default, _aten.zeros.default, _aten.ones.default),
    *(_aten.full.default, _aten.rand.default, _aten.randn.default),
}
"""What makes a tensor out of nothing, and may wait."""
_OVERWRITES = {
    *(_aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor, _aten.copy_.default),
    *(_aten.normal_.default, _aten.uniform_.default, _aten.random_.default, _aten.exponential_.default),
}
"""What leaves nothing of what was there before."""
_TOLD = ("tolist", "numpy", "__array__")
"""Methods by which numbers leave torch."""


class BornWhole(Exception):
    """A constructor that cannot be recorded; why, in words."""


Net = TypeVar("Net", bound=nn.Module)


def built(make: Callable[[], Net], how: str, seed: int) -> Net:
    """What a constructor makes, in the way that the plan says: as it is, or with promised parameters. Raises BornWhole."""
    if how == WHOLE:
        return make()
    with recording(seed if how == NAMES else None) as record:
        net = make()
    record.promise(net)
    return net


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor of the record: which memory it sees, and how."""

    memory: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclasses.dataclass(eq=False)
class _Step:
    """Something that was done, with views in place of tensors that are not there."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: list[int]
    """The memory that it needs as it was before."""
    made: list[tuple[int, _View]]
    """Place among its results -> one whose memory is new."""
    draws: bool = False
    state: Tensor | None = None
    """Of the generator that it draws from, before it does; None: there is a seed instead."""
    seed: int = 0


class Record:
    """What a constructor did to tensors that are not there."""

    def __init__(self, seed: int | None, draws: bool) -> None:
        self._seed, self._draws = seed, draws
        self._steps: list[_Step] = []
        self._writers: dict[int, list[tuple[int, bool]]] = {}
        """Memory -> the steps that wrote to it, and whether each left nothing of what was there."""
        self._alive: dict[int, Tensor] = {}
        """One tensor of each memory, so that no other gets its number. They take none."""

    def promise(self, net: nn.Module) -> None:
        """Promises the parameters of what was built, and makes what is no parameter. Raises BornWhole."""
        views: dict[int, str] = {}
        for name, parameter in net.named_parameters():
            if parameter.is_meta:
                view = self._view(parameter)
                if view.memory in views:
                    raise BornWhole(f"{name} and {views[view.memory]} are two views of the same memory")
                views[view.memory] = name
                self._name(view, name)
                promise(parameter, lambda view=view: self.value(view))  # type: ignore[misc]
        done: set[int] = set()
        for path, module in net.named_modules():
            if isinstance(module, nn.RNNBase):  # until they are born: what has weak references cannot be
                module._flat_weight_refs = []
            for name, thing in [*module._buffers.items(), *vars(module).items()]:
                for tensor in tree_iter(thing):
                    if isinstance(tensor, Tensor) and tensor.is_meta and id(tensor) not in done:
                        done.add(id(tensor))
                        self._make(tensor, views, f"{path}.{name}".lstrip("."))

    def _make(self, tensor: Tensor, parameters: Mapping[int, str], name: str) -> None:
        if promised(tensor):  # a parameter that a module holds beside
            return
        view = self._view(tensor)
        if view.memory in parameters:
            raise BornWhole(f"{name} is a view of the memory of {parameters[view.memory]}")
        self._name(view, name)
        torch.utils.swap_tensors(tensor, self.value(view).clone().requires_grad_(tensor.requires_grad))

    def _name(self, view: _View, name: str) -> None:
        """Seeds the draws that go into a tensor and have no seed yet by its name."""
        if self._seed is not None:
            draws = (step for index in sorted(self._needed(view.memory)) if (step := self._steps[index]).draws)
            for number, step in enumerate(draws):
                step.seed = step.seed or seed_of(self._seed, f"{name}/{number}")

    def value(self, view: _View) -> Tensor:
        """Makes a tensor by doing again what was done, in the same order, as far as it matters to this one."""
        there: dict[int, Any] = {}
        with alone, torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
            state = torch.get_rng_state()
            try:
                for index in sorted(self._needed(view.memory)):
                    self._again(self._steps[index], there)
            finally:
                torch.set_rng_state(state)
            return self._seen(view, there)

    def _needed(self, memory: int) -> set[int]:
        found: set[int] = set()
        asked = [(memory, len(self._steps))]
        while asked:
            where, end = asked.pop()
            for index, overwrites in reversed(self._writers.get(where, [])):
                if index >= end:
                    continue
                if index not in found:
                    found.add(index)
                    asked += [(other, index) for other in self._steps[index].reads]
                if overwrites:
                    break
        return found

    def _again(self, step: _Step, there: dict[int, Any]) -> None:
        args, kwargs = tree_map(lambda x: self._seen(x, there) if isinstance(x, _View) else x, (step.args, step.kwargs))
        if step.state is not None:
            (kwargs.get("generator") or torch.default_generator).set_state(step.state)
        elif step.draws:  # one whose numbers are asked for before it is known whose they are keeps its own
            step.seed = step.seed or seed_of(self._seed or 0, f"draw {self._steps.index(step)}")
            torch.default_generator.manual_seed(step.seed)
        results = list(tree_iter(step.function(*args, **kwargs)))
        for place, view in step.made:
            result = results[place]
            if result.stride() != view.stride:  # as it was told where it has no memory
                result = torch.empty_strided(view.size, view.stride, dtype=view.dtype).copy_(result)
            there[view.memory] = result.untyped_storage()

    def _seen(self, view: _View, there: dict[int, Any]) -> Tensor:
        if view.memory not in there:  # about to be overwritten
            size = self._alive[view.memory].untyped_storage().nbytes()
            there[view.memory] = torch.empty(size, dtype=torch.uint8).untyped_storage()
        return torch.empty(0, dtype=view.dtype).set_(there[view.memory], view.offset, view.size, view.stride)

    # -- what is written down --------------------------------------------------------------------------------------------

    def _view(self, tensor: Tensor) -> _View:
        memory = tensor.untyped_storage()._cdata
        self._alive.setdefault(memory, tensor.detach())
        return _View(memory, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    def makes(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor out of nothing: as large as asked, without memory."""
        result = function(*args, **{**kwargs, "device": "meta"})
        self._note(function, args, kwargs, result)
        return result

    def does(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Something with tensors of which one at least is not there."""
        written = _written(function, args, kwargs)
        if not all(tensor.is_meta for tensor in written):
            return self._at_once(function, args, kwargs, written)
        shapes = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, (args, kwargs))
        if "device" in shapes[1]:
            shapes[1]["device"] = torch.device("meta")
        try:
            result = function(*shapes[0], **shapes[1])
        except Exception as error:  # its result depends on numbers, not on shapes alone
            if written:
                raise BornWhole(f"{function} changes weights, and needs numbers for it") from error
            return self._at_once(function, args, kwargs, written)
        self._note(function, args, kwargs, result)
        return result

    def _at_once(self, function: Any, args: Any, kwargs: Any, written: list[Tensor]) -> Any:
        """The thing itself, done to what is made for it."""
        if any(tensor.is_meta for tensor in written):
            raise BornWhole(f"{function} changes weights, and needs numbers for it")
        return function(*self._true(args), **self._true(kwargs))

    def _true(self, values: Any) -> Any:
        return tree_map(lambda x: self.value(self._view(x)) if isinstance(x, Tensor) and x.is_meta else x, values)

    def _note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and x.is_meta]
        before = {t.untyped_storage()._cdata for t in tensors}
        results = list(tree_iter(result))
        made = [
            (place, self._view(t))
            for place, t in enumerate(results)
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in before
        ]
        written = _written(function, args, kwargs)
        if not made and not written:
            return  # another view of what is known
        whole = bool(written) and function in _OVERWRITES and _fills(written[0])
        reads = [t.untyped_storage()._cdata for t in tensors if not (whole and t is written[0])]
        views = tree_map(lambda x: self._kept(x) if isinstance(x, Tensor) else x, (args, kwargs))
        step = _Step(function, views[0], views[1], reads, made)
        if torch.Tag.nondeterministic_seeded in function.tags:
            self._draw(step, args, kwargs, written)
        index = len(self._steps)
        self._steps.append(step)
        for tensor in written:
            self._writers.setdefault(tensor.untyped_storage()._cdata, []).append((index, whole))
        for _, view in made:
            self._writers.setdefault(view.memory, []).append((index, True))

    def _kept(self, tensor: Tensor) -> Any:
        return self._view(tensor) if tensor.is_meta else tensor.clone()  # what is there may be changed later

    def _draw(self, step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> None:
        """Keeps where the generator is, and lets it go on as the draw does."""
        step.draws, generator = True, kwargs.get("generator")
        if generator is None and self._seed is not None:
            return
        step.state = (generator or torch.default_generator).get_state()
        if generator is not None:
            step.kwargs["generator"] = torch.Generator()
        if not self._draws:
            return
        changed = {id(t): torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in written}
        args, kwargs = tree_map(lambda x: changed.get(id(x), x) if isinstance(x, Tensor) else x, (args, kwargs))
        step.function(*self._true(args), **self._true(kwargs))


def seed_of(seed: int, name: str) -> int:
    """The seed of a draw, from 1 on."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest(), "big") + 1


def _written(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a function changes."""
    found: list[Tensor] = []
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            found += [x for x in tree_iter(value) if isinstance(x, Tensor)]
    return found


def _fills(tensor: Tensor) -> bool:
    """Whether a tensor sees all of its memory."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes() and tensor.is_contiguous()


class _Waiting(TorchDispatchMode):
    """Within it what is large waits, and what is done to it is written down."""

    def __init__(self, record: Record, from_count: int) -> None:
        super().__init__()
        self.record, self.from_count = record, from_count

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would load torch's compiler, 70 MB, to keep it out

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunction():
            if getattr(kwargs.get("device"), "type", "") == "meta":  # what a tensor that waits says of its place
                kwargs["device"] = torch.device("cpu")
            if any(isinstance(x, Tensor) and x.is_meta for x in tree_iter((args, kwargs))):
                return self.record.does(function, args, kwargs)
            if function in _MAKES and math.prod(args[0]) >= self.from_count:
                return self.record.makes(function, args, kwargs)
            return function(*args, **kwargs)


class _AsIfThere(TorchFunctionMode):
    """Within it a tensor that waits says that it is on the CPU, and tells its numbers to whoever asks."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = getattr(function, "__self__", None)
        if asked is torch.Tensor.is_meta:
            return False
        if asked is torch.Tensor.device:
            return torch.device("cpu")
        if getattr(function, "__name__", "") in _TOLD and args and args[0].is_meta:
            args = (self.record.value(self.record._view(args[0])), *args[1:])
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def recording(seed: int | None = None, draws: bool = True) -> Iterator[Record]:
    """Within it constructors run without the memory of their weights. `seed`: tensors are drawn by their names. Without
    `draws` torch's generator stays where it is: to see whether it can be done. Raises BornWhole, or whatever a constructor
    raises that it cannot be done with."""
    record = Record(seed, draws)
    with _AsIfThere(record), _Waiting(record, 1 if seed is not None else SMALL):
        yield record
