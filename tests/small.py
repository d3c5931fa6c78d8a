"""Small configs of every family, and one function that trains them on any layout and tells the whole story in numbers."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from distdl.parity.layouts import laid_out

FOLDER = Path(__file__).parent / "families" / "small"
"""One YAML per family: its small `model`, the data it is prepared from, what differs from BASE, how much it improves."""

BASE: dict[str, Any] = {
    "data": {"threads": 0},
    "train": {"global_batch": 16, "steps": 20, "clip_norm": 0.5, "deterministic": True},
    "optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.05},
    "schedule": {"name": "cosine", "warmup_steps": 3},
    "parallel": {"engine": "torch"},
    "guard": {"parity_every_steps": 5},
    "runtime": {"kind": "local", "workers": 1},
    "track": {"enabled": False, "every_steps": 5},
    "seed": 3,
}

SOME_STEPS = 10
"""Of runs that show one more way to compute the same steps, where the family learns in one way from first to last."""


def small(family: str) -> dict[str, Any]:
    """The family's file in FOLDER."""
    return yaml.safe_load((FOLDER / f"{family}.yaml").read_text(encoding="utf-8"))


def shipped(name: str) -> Path:
    """The shipped config of this name, in whichever folder below configs/ it lies."""
    (found,) = (Path(__file__).parent.parent / "configs").rglob(f"{name}.yaml")
    return found


layout = laid_out
"""The same run on another layout, named as the plan does."""

MODELS: dict[str, dict[str, Any]] = {path.stem: small(path.stem)["model"] for path in sorted(FOLDER.glob("*.yaml"))}


def small_config(family: str, digits: str, text: str, **changes: Any) -> dict[str, Any]:
    """A complete config as plain values, of a family that reads digits or text; `changes` are `section__key=value`."""
    values = {"name": family, **copy.deepcopy(BASE), "model": copy.deepcopy(MODELS[family])}
    values["data"]["path"] = text if family == "gpt" else digits
    for path, value in changes.items():
        section, key = path.split("__")
        values[section][key] = value
    return values


def contract_config(family: str, data: Path, **changes: Any) -> dict[str, Any]:
    """A complete config of any family as its file in FOLDER says; the data set is prepared below `data` once."""
    told = small(family)
    values = {"name": family, **copy.deepcopy(BASE), "model": told["model"]}
    for section in told.keys() & values.keys() - {"model"}:
        if section == "optimizer" or (section == "schedule" and "name" in told[section]):
            values[section] = told[section]
        else:
            values[section] = values[section] | told[section]
    values["data"]["path"] = prepared(told["prepare"], data)
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    return values


def prepared(prepare: dict[str, Any], data: Path) -> str:
    """The path of a data set below `data`, written when it is first asked for."""
    from distdl.data.prepare import prepare_dataset
    from distdl.track.run import file_lock

    name = f"{prepare['source']}-{hashlib.sha256(json.dumps(prepare, sort_keys=True).encode()).hexdigest()[:8]}"
    path = data / name
    data.mkdir(parents=True, exist_ok=True)
    with file_lock(data / f".{name}.lock"):  # of several workers of pytest-xdist one writes it
        if not path.exists():
            prepare_dataset(prepare["source"], path, prepare.get("options", {}))
    return str(path)


def written(path: Path, train: dict[str, Any], test: dict[str, Any] | None = None) -> str:
    """The path of a data set of these arrays, a row for each of their first dimension; `test`: the same as `train`."""
    from distdl.data.manifest import Column
    from distdl.data.write import DatasetWriter

    columns = {name: Column(str(array.dtype), array.shape[1:]) for name, array in train.items()}
    with DatasetWriter(path, columns, "test", {}) as writer:
        writer.write("train", train)
        writer.write("test", test or train)
    return str(path)


def curve(rank: int, values: dict[str, Any], file: Path | None = None) -> dict[str, Any]:
    """`distdl.parity.curve`, imported when a process needs it."""
    from distdl.parity.curve import curve

    return curve(rank, values, file)


def curves(rank: int, world: int, cases: dict[str, dict[str, Any]], folder: str = "") -> dict[str, Any]:
    """`curve` of several configs, one after the other, in one process group. `folder`: where the weights are kept."""
    files = [Path(folder) / f"{index}-{rank}" if folder else None for index in range(len(cases))]
    return {name: curve(rank, values, file) for (name, values), file in zip(cases.items(), files)}


def measured(world: int, cases: dict[str, dict[str, Any]], timeout_s: float = 500) -> list[dict[str, Any]]:
    """Each rank's curves of several configs; the first rank's with the `start` and `end` of all weights and buffers."""
    from distdl.parity.movement import kept
    from tests.ranks import run_ranks

    with tempfile.TemporaryDirectory() as folder:
        ranks = run_ranks(curves, world, cases, folder, timeout_s=timeout_s)
        for index, found in enumerate(ranks[0].values()):
            found |= kept(list(Path(folder).glob(f"{index}-*")))
    return ranks


def trained(rank: int, world: int, runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """`worker.run` for several runs: name -> {values, folder, die_after, copied}. -> what ended each run ('' = its end).

    `copied`: (a step, a folder that does not exist yet): the run's folder is copied to it before anything is told of this
    step, as it would be found if the power had gone then.
    """
    import shutil
    import time
    from pathlib import Path

    import torch

    from distdl.config.load import config_from_dict
    from distdl.engine.base import Engine
    from distdl.run.folder import RunFolder
    from distdl.train import worker
    from distdl.train.hooks.log import Log
    from distdl.train.survey import survey

    ended = {}
    whole, feed = Log.after_step, Engine.feed

    def watched(self: Any, source: Any, step: int) -> Any:
        self.seen = []

        def told() -> Any:
            for batch in source:
                self.seen += batch["id"].tolist()
                yield batch

        return feed(self, told(), step)

    Engine.feed = watched  # type: ignore[method-assign]
    for name, run in runs.items():
        plan = survey(config_from_dict(run["values"]))

        folder = RunFolder(Path(run["folder"]))
        folder.path.mkdir(parents=True, exist_ok=True)
        attempt = sum(1 for _ in folder.path.glob("samples-*-0.jsonl"))
        seen = folder.path / f"samples-{attempt}-{rank}.jsonl"

        def after_step(
            self: Any,
            step: int,
            metrics: Any,
            die_after: int = run.get("die_after", 0),
            copied: tuple[int, str] = run.get("copied", (0, "")),
            path: Path = folder.path,
            seen: Path = seen,
            attempt: int = attempt,
        ) -> None:
            if step == die_after:
                raise RuntimeError("power cut")
            if step == copied[0]:
                torch.distributed.barrier()  # nobody writes meanwhile
                while list(path.glob("checkpoints/.writing-*")):
                    time.sleep(0.01)
                if rank == 0:
                    shutil.copytree(path, copied[1])
                torch.distributed.barrier()
            with seen.open("a") as file:
                rows = self.run.engine.seen
                file.write(json.dumps({"step": step, "attempt": attempt, "rows": rows}) + "\n")
            whole(self, step, metrics)

        Log.after_step = after_step  # type: ignore[method-assign]
        torch.distributed.barrier()
        try:
            worker.run(plan, folder, rank)
            ended[name] = ""
        except Exception as error:
            ended[name] = str(error)
        torch.set_num_threads(1)
    return ended
