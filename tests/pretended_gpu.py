"""A GPU that is pretended on a CPU: tensors know on which of the two they would lie; what would go wrong or wait is noted.

    with PretendedGPU() as gpu:
        engine = ...                        # built on the CPU
        gpu.take(engine)                    # its tensors move
        ...                                 # steps
    gpu.wrong                               # operations that mix devices, CPU tensors in collectives
    gpu.reads                               # where the host would wait for a number

Not seen: what happens inside C++ (the backward passes of torch's own operations), kernels that lack a type, several ranks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
READS = {
    *("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__", "cpu", "numpy"),
    *("nonzero", "argwhere", "masked_select", "unique", "_unique2", "unique_consecutive", "bincount"),
    *("equal", "allclose", "repeat_interleave", "linalg_eigh", "linalg_svd", "linalg_solve"),
}
"""Functions whose result, or its size, the host has to know."""
TO_NUMPY = {"numpy", "__array__"}
TAKES_OTHERS = {
    "copy_",
    "to",
    "type_as",
    "__getitem__",
    "__setitem__",
    "index_put_",
    "__format__",
    "__repr__",
    "is_same_size",
}
"""Functions that may be given tensors of both devices."""
NO_SCALAR = {
    "stack",
    "cat",
    "linear",
    "conv2d",
    "embedding",
    "gather",
    "scatter",
    "index_select",
    "matmul",
    "addmm",
    "bmm",
}
"""Functions that take no number from the CPU, either."""
OF_SELF = {"T", "mT", "H", "mH", "data", "real", "imag", "grad"}
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "broadcast",
    "all_to_all_single",
    "reduce_scatter_tensor",
    "all_gather_into_tensor",
)


def on_gpu(tensor: Any) -> bool | None:
    """Whether a tensor would lie there; None: nobody said."""
    return getattr(tensor, "_on_gpu", None)


def put(value: Any, there: bool) -> Any:
    """The value, its tensors marked as lying on the GPU, or on the CPU."""
    for tensor in tensors(value):
        tensor._on_gpu = there  # type: ignore[attr-defined]
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def place() -> str:
    """file:function that called torch: the nearest of distdl's or DeepSpeed's, else torch's optimizer."""
    frame: Any = sys._getframe(1)
    while frame:
        path = Path(frame.f_code.co_filename)
        for package in ("distdl", "deepspeed"):
            if package in path.parts and "tests" not in path.parts:
                inside = "/".join(path.parts[len(path.parts) - path.parts[::-1].index(package) :])
                return f"{'' if package == 'distdl' else 'deepspeed/'}{inside}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


class PretendedGPU(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.wrong: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self._replaced = ExitStack()

    def __enter__(self) -> PretendedGPU:
        patch = self._replaced.enter_context(pytest.MonkeyPatch.context())
        for name in COLLECTIVES:
            patch.setattr(dist, name, self._watched(name, getattr(dist, name)))
        for module in (
            "torch.nn.utils.clip_grad",
            "torch.optim.optimizer",
        ):  # they ask C++, which knows the true device
            patch.setattr(sys.modules[module], "_group_tensors_by_device_and_dtype", _grouped)
        if accelerator := sys.modules.get("deepspeed.accelerator"):
            patch.setattr(accelerator.get_accelerator(), "current_device_name", lambda: "cuda:0")
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._replaced.close()

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*args: Any, **kwargs: Any) -> Any:
            if any(on_gpu(tensor) is False for tensor in tensors([*args, kwargs])):
                self.wrong[f"{name} of a CPU tensor over NCCL in {place()}"] += 1
            return function(*args, **kwargs)

        return collective

    def take(self, engine: Any) -> None:
        """Moves an engine, and makes it move batches."""
        learner = engine.learner
        for module in learner.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and not name.startswith("_"):
                    self.wrong[f"{type(module).__name__}.{name} is a plain tensor, which stays on the CPU"] += 1
        put([*learner.parameters(), *learner.buffers()], True)
        for inner in getattr(engine, "engines", {}).values():
            optimizer = inner.optimizer
            optimizer.device = str(GPU)
            for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "bit16_groups_flat"):
                put(list(getattr(optimizer, name, None) or []), True)
            put([group["params"] for group in optimizer.param_groups], True)
        engine.device = GPU
        engine.to_device = lambda batch: {name: put(t.view_as(t), True) for name, t in batch.items()}
        whole = engine.all_sum

        def all_sum(tensor: Tensor) -> Tensor:
            if on_gpu(tensor) is False:
                self.wrong[f"all_sum of a CPU tensor in {place()}"] += 1
            return whole(tensor)

        engine.all_sum = all_sum

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._attribute(func, args, kwargs)
        if name == "__set__":
            return func(*args, **kwargs)
        if name == "backward":
            return self._backward(func, args, kwargs)
        args, wanted = _elsewhere(name, args, kwargs)
        given = list(tensors([*args, kwargs]))
        there = [on_gpu(tensor) for tensor in given]
        self._judge(name, args, given, there, wanted, bool(kwargs.get("non_blocking")))
        return self._placed(func, name, args, kwargs, there, wanted)

    @staticmethod
    def _attribute(func: Any, args: Any, kwargs: Any) -> Any:
        name, tensor = getattr(getattr(func, "__self__", None), "__name__", ""), args[0]
        if isinstance(tensor, Tensor) and name in ("device", "is_cuda", "is_cpu"):
            gpu = bool(on_gpu(tensor))
            return {"device": GPU if gpu else CPU, "is_cuda": gpu, "is_cpu": not gpu}[name]
        found = func(*args, **kwargs)
        if isinstance(found, Tensor) and name in OF_SELF and on_gpu(found) is None and on_gpu(tensor) is not None:
            put(found, bool(on_gpu(tensor)))
        return found

    def _backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """With the mode on in hooks and in backward passes that are written in Python."""
        tensor = args[0] if isinstance(args[0], Tensor) else next(iter(args[0]))
        gradient = args[1] if len(args) > 1 and args[1] is not None else kwargs.get("gradient")
        if kwargs.get("create_graph") or kwargs.get("retain_graph") or kwargs.get("inputs"):
            return func(*args, **kwargs)
        super().__enter__()
        try:
            engine = torch.autograd.Variable._execution_engine
            gradient = torch.ones_like(tensor) if gradient is None else gradient
            return engine.run_backward(
                (tensor,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
        finally:
            super().__exit__(None, None, None)

    def _judge(
        self, name: str, args: Any, given: list[Tensor], there: list[Any], wanted: Any, waits_for_nothing: bool
    ) -> None:
        if True not in there:
            if name == "__getitem__" and any(on_gpu(i) for i in tensors(args[1:])):
                self.wrong[f"a CPU tensor is indexed by one on the GPU in {place()}"] += 1
            return
        if name in TO_NUMPY:
            self.wrong[f"{name} of a GPU tensor in {place()}"] += 1
        masks = name == "__getitem__" and any(t.dtype in (torch.bool, torch.uint8) for t in tensors(args[1:]))
        if name == "repeat_interleave" and not isinstance(args[1], Tensor):
            return  # so many times each: the size is known
        to_host = (name == "to" and wanted == CPU) or (name == "copy_" and there[:2] == [False, True])
        if name in READS or masks or (to_host and not waits_for_nothing):
            self.reads[place()] += 1
        if name not in TAKES_OTHERS and wanted is None:
            for tensor, gpu in zip(given, there):
                if gpu is False and (tensor.dim() or name in NO_SCALAR):
                    self.wrong[f"{name} mixes devices in {place()}"] += 1

    @staticmethod
    def _placed(func: Any, name: str, args: Any, kwargs: Any, there: list[Any], wanted: Any) -> Any:
        found = func(*args, **kwargs)
        if name in ("tolist", "item") or not isinstance(found, Tensor | list | tuple | dict):
            return found
        if name in ("cpu", "to") and isinstance(found, Tensor) and found is args[0]:
            found = found.view_as(found)  # the same tensor must not lie on both
        if name in ("copy_", "__setitem__"):
            gpu = there[0] if there else None
        elif name == "cpu":
            gpu = False
        elif wanted is not None:
            gpu = wanted == GPU
        else:
            gpu = True in there if (there and None not in there) or True in there else None if there else False
        known = {id(tensor) for tensor in tensors([*args, kwargs]) if on_gpu(tensor) is not None}
        for tensor in tensors(found) if gpu is not None else ():
            if id(tensor) not in known:  # torch's optimizers sort their tensors, which stay where they are
                put(tensor, gpu)
        return found


def _grouped(tensorlistlist: Any, with_indices: bool = False) -> Any:
    """torch's function of this name, with the pretended devices."""
    found = _foreach_utils._group_tensors_by_device_and_dtype(tensorlistlist, with_indices)
    return {
        (GPU if on_gpu(lists[0][0]) else device, dtype): (lists, indices)
        for (device, dtype), (lists, indices) in found.items()
    }


def _elsewhere(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, torch.device | None]:
    """(arguments that a CPU takes, the device that they had asked for)."""
    wanted: torch.device | None = None
    if kwargs.get("device") is not None:
        wanted = torch.device(kwargs["device"])
        if wanted.type == "cuda":
            kwargs["device"] = CPU
    if name == "to":
        rest = list(args[1:])
        for i, value in enumerate(rest):
            if isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda")):
                wanted = torch.device(value)
                rest[i] = CPU
            elif isinstance(value, Tensor):
                wanted = GPU if on_gpu(value) else CPU
        args = (args[0], *rest)
    if wanted is not None and wanted.type == "meta":
        return args, None
    return args, wanted if wanted is None or wanted.type == "cpu" else GPU
