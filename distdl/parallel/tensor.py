"""Tensor parallelism (Shoeybi et al. 2019): replaces modules by ones that hold this rank's part of the weights.

    column    outputs are cut; the input's gradient is summed          y_t = x W_t^T + b_t
    row       inputs are cut already; the outputs are summed           y = sum_t x_t W_t^T + b
    gather    outputs are cut and put together again at once, so that nothing around the module need know
    vocab     rows of an embedding are cut; a word that is elsewhere counts zero, and the sum finds it. The same of a head
              of its own, which puts out this rank's words

The weights are cut from the whole ones, so a layout enters neither the initial weights nor a checkpoint. Nor does what a
vocabulary is padded with: rows of zeros, which stand for no word, get no gradient and stay zero under every optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout.axes import Axis, Shard, copied, gathered, here, shard_of, summed
from distdl.learner import Learner


def to_cut(learner: Learner) -> Iterator[tuple[str, nn.Linear | nn.Conv2d | nn.Embedding, str]]:
    """(path, module, how) of every module that the learner's `tensor_plan` names; the first pattern that fits counts."""
    for path, module in list(learner.named_modules()):
        how = next((how for pattern, how in learner.tensor_plan.items() if fnmatchcase(path, pattern)), None)
        if how is not None and isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            yield path, module, how


def cut_parameters(module: nn.Module, how: str) -> list[nn.Parameter]:
    """Those of a module's parameters that are cut: all, but the bias of a `row`, which is added after the sum."""
    return [p for name, p in module.named_parameters(recurse=False) if (how, name) != ("row", "bias")]


def fill_up(learner: Learner, multiple: int) -> None:
    """Pads the vocabularies that the learner's `tensor_plan` names, where one rank has all of them, in place."""
    for _, module, how in to_cut(learner):
        if how == "vocab":
            for parameter in cut_parameters(module, how):
                shard = Shard(Axis(), 0, tuple(parameter.shape), multiple=multiple)
                if shard.rows(parameter.shape[0]) > parameter.shape[0]:
                    _fit(parameter, shard)
                    parameter.distdl_shard = shard  # type: ignore[attr-defined]


def cut_tensors(learner: Learner, axis: Axis, multiple: int = 1) -> None:
    """Replaces the modules that the learner's `tensor_plan` names, in place. Each rank's part of a vocabulary is filled up
    to a `multiple`."""
    for path, module, how in to_cut(learner):
        parent, _, name = path.rpartition(".")
        owner = learner.get_submodule(parent)
        new = _parallel(module, how, axis, multiple)
        if isinstance(owner, nn.Sequential | nn.ModuleList):
            owner[int(name)] = new
        else:
            setattr(owner, name, new)


def _parallel(module: nn.Linear | nn.Conv2d | nn.Embedding, how: str, axis: Axis, multiple: int) -> nn.Module:
    kind, _, blocks = how.partition("/")
    outputs = module.weight.shape[0]
    for parameter in cut_parameters(module, how):
        dim, of_rows = 1 if kind == "row" else 0, multiple if kind == "vocab" else 1
        shard = Shard(axis, dim, tuple(parameter.shape), int(blocks or 1), of_rows)
        _fit(parameter, shard)
        mark(parameter, shard)
    if isinstance(module, nn.Embedding):
        assert kind == "vocab"
        return VocabularyEmbedding(module)
    if kind == "row":
        return RowLinear(module)
    assert kind in ("column", "gather", "vocab")
    return ColumnParallel(module, outputs if kind == "gather" else None)


def _fit(parameter: nn.Parameter, shard: Shard) -> None:
    """Leaves of a parameter this rank's part."""
    if parameter.device.type == "meta":
        shape = list(parameter.shape)
        shape[shard.dim] = shard.blocks * shard.rows(shape[shard.dim] // shard.blocks)
        parameter.data = parameter.data.new_empty(shape)
    else:
        parameter.data = shard.cut(parameter.data).clone()


def mark(parameter: nn.Parameter, shard: Shard) -> None:
    """Says that a parameter is a part: to us, and to DeepSpeed's norm, which counts whole ones on one rank only."""
    parameter.distdl_shard = shard  # type: ignore[attr-defined]
    parameter.model_parallel = parameter.tensor_model_parallel = True  # type: ignore[attr-defined]


class ColumnParallel(nn.Module):
    """A linear map or a convolution (B, C, ...) that computes this rank's outputs; `gather`: outputs to put together."""

    def __init__(self, module: nn.Linear | nn.Conv2d, gather: int | None) -> None:
        super().__init__()
        self.weight, self.bias, self.gather = module.weight, module.bias, gather
        self.convolution: dict[str, Any] | None = None
        if isinstance(module, nn.Conv2d):
            assert module.groups == 1 and module.padding_mode == "zeros"
            self.convolution = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}

    def forward(self, x: Tensor) -> Tensor:
        x = copied(x)
        if self.convolution is None:
            y, dim = F.linear(x, self.weight, self.bias), -1
        else:
            y, dim = F.conv2d(x, self.weight, self.bias, **self.convolution), 1
        return y if self.gather is None else gathered(y, dim).narrow(dim, 0, self.gather)


class RowLinear(nn.Module):
    """A linear map (..., D/T) -> (..., K) of inputs that are cut; the bias is added once, after the sum."""

    def __init__(self, module: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        assert isinstance(module, nn.Linear)
        self.weight, self.bias = module.weight, module.bias

    def forward(self, x: Tensor) -> Tensor:
        y = summed(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


class VocabularyEmbedding(nn.Module):
    """An embedding whose rows are cut. int64 (...) -> (..., D)."""

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__()
        self.weight = module.weight

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        local = tokens - rows * here.tensor.index
        mine = (local >= 0) & (local < rows)
        found = F.embedding(local.clamp(0, rows - 1), self.weight)
        return summed(found.masked_fill(~mine.unsqueeze(-1), 0.0))


def whole(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Collective along the tensor axis: the one-process tensor of which `tensor` is this rank's part."""
    shard = shard_of(parameter)
    return tensor if shard is None else shard.join(tensor)


def part(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """This rank's part of a one-process tensor."""
    shard = shard_of(parameter)
    return tensor if shard is None else shard.cut(tensor)
