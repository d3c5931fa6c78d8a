"""A family of the user's own is tried on two rows before anything starts: what it returns is looked at, and what fails is
told with the line of the user's file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distdl.config.family import DOCS
from distdl.config.schema import Config
from distdl.data.fit import conversions
from distdl.data.manifest import read_manifest
from distdl.data.read import Dataset
from distdl.data.source import EvalSource
from distdl.errors import InputError, line_in
from distdl.layout import noise
from distdl.learner import Learner
from distdl.metrics import named
from distdl.ways import assemble, columns_read, learner_class

ROWS = 2
MOST_PARAMETERS = 50_000_000
"""A larger model would take seconds and gigabytes here; the run itself is its rehearsal."""


def rehearse(config: Config, parameters: int) -> None:
    """Asks the family of a config for the loss and the evaluation of two training rows, on the CPU. Raises InputError.

    A family with an `update` of its own asks an engine for things; of it the evaluation alone is tried.
    """
    if not config.family_name.own or config.way is not None or parameters > MOST_PARAMETERS:
        return
    kind = learner_class(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        learner = assemble(config)
        batch = _two_rows(config)
        noise.begin(config.seed, batch["position"])
        try:
            if kind.update is Learner.update:
                told = _call(learner, "loss", lambda: learner.loss(batch, 0), config, batch)
                _check_loss(learner, told)
            if kind.update is Learner.update or kind.evaluate is not Learner.evaluate:
                learner.eval()
                with torch.no_grad():
                    metrics = _call(learner, "evaluate", lambda: learner.evaluate(batch), config, batch)
                _check_evaluation(learner, metrics)
        finally:
            noise.begin(0, None)


def _two_rows(config: Config) -> dict[str, Any]:
    path = config.data.path
    read_as = conversions(read_manifest(path), columns_read(config), learner_class(config).fp64)
    with_rows = Dataset(path, config.data.train_split, config.data.verify, config.data.cache, read_as=read_as)
    return dict(next(iter(EvalSource(with_rows, batch=ROWS, rank=0, world=1)))[0])


def _call(learner: Learner, method: str, do: Callable[[], Any], config: Config, batch: Mapping[str, Any]) -> Any:
    """What a method says of the batch. Whatever it raises is the user's to mend."""
    try:
        return do()
    except InputError:
        raise
    except Exception as error:
        where, code = line_in(error, config.family_name.source())
        shapes = ", ".join(f"{name} {tuple(getattr(value, 'shape', ()))}" for name, value in batch.items())
        what = (
            f"{type(learner).__name__}.{method} fails on {ROWS} rows of {config.data.path}: {_in_words(error, batch)}"
        )
        what += f"\n    in the line `{code}`" if code else ""
        signature = f"; it is called with (batch, {'0' if method == 'loss' else ''})".replace(", )", ")")
        fix = f"mend it{'' if code else signature} ({DOCS})"
        raise InputError(
            what, where=where or _place(learner, method), allowed=f"the batch has {shapes}", fix=fix
        ) from error


def _in_words(error: Exception, batch: Mapping[str, Any]) -> str:
    if isinstance(error, KeyError) and error.args and error.args[0] not in batch:
        return f"the batch has no {error.args[0]!r}; it has the columns that `columns` names, id and position"
    return f"{type(error).__name__}: {error}"


def _check_loss(learner: Learner, told: Any) -> None:
    wanted = "a pair: the scalar loss, and the metrics as a dict, such as `return loss, {}`"
    if not isinstance(told, tuple) or len(told) != 2:
        raise _wrong(learner, "loss", f"returns {_shown(told)}", wanted)
    loss, metrics = told
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        fix = "the mean over the batch, such as losses.mean()"
        raise _wrong(
            learner, "loss", f"returns {_shown(loss)} as the loss", "one floating-point number, as a tensor", fix
        )
    if not loss.requires_grad and any(p.requires_grad for p in learner.parameters()):
        what = "returns a loss that no parameter has part in: nothing would be learned"
        raise _wrong(learner, "loss", what, "a loss with a gradient", "take out .detach(), .item() or torch.no_grad()")
    _check_metrics(learner, "loss", metrics)


def _check_evaluation(learner: Learner, metrics: Any) -> None:
    _check_metrics(learner, "evaluate", metrics)
    means = named({name: float(total) / max(float(count), 1e-9) for name, (total, count) in metrics.items()})
    if learner.primary not in means:
        what = f"does not tell {learner.primary!r}, which `primary` names as the metric that decides"
        raise _wrong(
            learner, "evaluate", what, f"it tells {', '.join(means)}", "add it, or name one of these as `primary`"
        )


def _check_metrics(learner: Learner, method: str, metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise _wrong(learner, method, f"returns {_shown(metrics)} as the metrics", "a dict of name -> Mean", "{}")
    for name, value in metrics.items():
        pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor) and not value[0].ndim
        if not pair:
            allowed = "a total and a count, which add up over batches and ranks"
            fix = "distdl.metrics.mean(values), or Mean(total, count)"
            raise _wrong(learner, method, f"gives {_shown(value)} as the metric {name!r}", allowed, fix)


def _wrong(learner: Learner, method: str, what: str, allowed: str, fix: str = "") -> InputError:
    what = f"{type(learner).__name__}.{method} {what}"
    return InputError(what, where=_place(learner, method), allowed=allowed, fix=fix or f"mend it ({DOCS})")


def _place(learner: Learner, method: str) -> str:
    """Where the method that was called begins."""
    function = getattr(type(learner), method)
    try:
        return f"{os.path.relpath(Path(inspect.getsourcefile(function) or ''))}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return type(learner).__module__


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    return (
        f"{value!r} ({type(value).__name__})"
        if isinstance(value, (int, float, str, type(None)))
        else type(value).__name__
    )
