"""A worker reads the manifest of its data set once, however many splits it looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import distdl
from distdl.data import manifest as of_data
from distdl.data import preparation, read
from distdl.data.prepare import prepare_dataset
from distdl.train import worker


@pytest.mark.slow
def test_the_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_dataset("digits", "d", {"validation_fraction": 0.1})
    config = {
        "name": "once",
        "model": {"family": "mlp", "inputs": [1, 8, 8], "hidden": [4], "classes": 10},
        "data": {"path": "d", "threads": 0, "eval_split": "validation", "test_split": "test"},
        "train": {"global_batch": 16, "steps": 2},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "parallel": {"engine": "torch"},
        "runtime": {"kind": "local"},
        "track": {"enabled": False},
    }
    seen: list[str] = []

    def counted(path: Any) -> Any:
        seen.append(str(path))
        return of_data.read_manifest(path)

    whole = worker._train_from_checkpoint

    def watched(*args: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for module in (worker, read, preparation):
                patch.setattr(module, "read_manifest", counted)
            whole(*args)
        (tmp_path / "seen").write_text("\n".join(seen))

    monkeypatch.setattr(worker, "_train_from_checkpoint", watched)
    run = distdl.train(config)
    assert {"accuracy", "test_accuracy"} <= run.metrics.keys()
    assert len((tmp_path / "seen").read_text().splitlines()) == 1
