"""An MLflow model: rows as people have them in, names of classes and numbers in their units out.

    model = mlflow.pyfunc.load_model("exports/adult-mlflow")
    model.predict(pandas.DataFrame([{"age": 39, "work": "State-gov"}]))

It holds the checkpoint, the config and distdl itself, so that it answers as `distdl predict` does, whatever the family.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
import pandas as pd

import distdl
from distdl.errors import InputError
from distdl.export.check import Difference, add, cases, judge
from distdl.export.graph import quiet
from distdl.run.folder import RunFolder

if TYPE_CHECKING:
    from distdl.model.model import Model

# MLflow reads hints of `predict` as a schema, and asks for them where there are none.
warnings.filterwarnings("ignore", ".*Add type hints to the `predict` method")
RUN, TALKER = "run", ("mlflow",)
NEEDS = (
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "xxhash",
    "fsspec",
    "psutil",
    "mlflow",
)
"""What an answer needs beside distdl, which goes along. Named, because MLflow would take a minute to find out."""
FOR_FILES = {"huggingface": ("transformers",), "dqn": ("gymnasium",), "tabular": ("gymnasium",)}
EXAMPLES = 3
"""Rows of the input example; a single one would tell nothing of the number of rows."""


class Served(mlflow.pyfunc.PythonModel):
    """The answers of a run."""

    def load_context(self, context: Any) -> None:
        from distdl.model.model import Model

        run = Path(context.artifacts[RUN])
        (checkpoint,) = (run / "checkpoints").iterdir()
        self.model = Model(RunFolder(run), str(checkpoint))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as a schema
        """A DataFrame of the table's columns, texts, or arrays by the names of the columns that the model reads."""
        return answered(self.model, model_input, params or {})


def answered(model: Model, asked: Any, params: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each that was asked about. Raises InputError for one that cannot be read."""
    from distdl.data.asking.told import Wish

    if isinstance(asked, Mapping) and model.ways.asked.keys() <= asked.keys():
        asked = {name: cast(model, name, asked[name]) for name in model.ways.asked}
        if any(answer.kind in ("picture", "mask") for answer in model.tells.values()):
            return pd.DataFrame({name: list(values.tolist()) for name, values in model.answers(asked).items()})
    elif isinstance(asked, pd.DataFrame) and model.ways.tokenizer is not None and "text" in asked.columns:
        asked = [str(text) for text in asked["text"]]
    elif isinstance(asked, pd.DataFrame) and not model.ways.of_tables:
        asked = {name: cast(model, name, np.stack(list(map(np.asarray, asked[name])))) for name in asked.columns}
    wish = Wish(int(params.get("top_k", 1)), bool(params.get("probabilities", False)))
    return pd.DataFrame(model.told_of(asked, wish))


def cast(model: Model, name: str, values: Any) -> np.ndarray:
    """Numbers of JSON and Python are of double precision, and models compute in single: a signature would refuse them."""
    array = np.asarray(values)
    kind = model.ways.asked[name].kind
    if kind in ("class", "whole"):
        if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
            raise InputError(f"'{name}' has numbers with fractions, and the model reads whole ones")
        return array.astype(np.int64)
    return array.astype(np.float32) if array.dtype.kind in "fi" and kind != "any" else array


def write(folder: Path, model: Model, rows: Mapping[str, Any], precision: str = "fp32") -> Difference:
    """Writes the model into a folder that is there, and asks it as it is read back from the disk. In fp16 its weights are
    kept in half the bytes, and made single when it is loaded."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    from distdl.track.store import set_environment

    set_environment()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    raw = raw_rows(model, rows)
    params = ParamSchema([ParamSpec("probabilities", "boolean", False), ParamSpec("top_k", "long", 1)])
    signature = ModelSignature(inputs=schema(raw) if raw is not None else None, params=params)
    example = raw.head(EXAMPLES) if raw is not None else {n: t[:EXAMPLES].numpy() for n, t in rows.items()}
    with tempfile.TemporaryDirectory() as place, quiet(TALKER, logging.ERROR):
        run = copied(model, Path(place) / RUN, half=precision == "fp16")
        made = Path(place) / "model"
        mlflow.pyfunc.save_model(
            str(made),
            python_model=str(Path(__file__).with_name("mlflow_served.py")),
            artifacts={RUN: str(run)},
            code_paths=[str(Path(distdl.__file__).parent)],
            pip_requirements=requirements(str(model.config.family)),
            signature=signature,
            input_example=example,
        )
        shutil.copytree(made, folder, dirs_exist_ok=True)
    return checked(folder, model, rows, raw, precision)


def copied(model: Model, run: Path, half: bool = False) -> Path:
    """A run of the one checkpoint, without what only training needs."""
    from distdl.checkpoint.convert import Wish, convert

    run.mkdir()
    for file in model.folder.path.iterdir():
        if file.is_file() and (file.name in ("config.json", "plan.json") or file.suffix == ".py"):
            shutil.copy2(file, run / file.name)
    (run / "checkpoints").mkdir()
    wish = Wish("distdl", model.config, lambda config, step: {}, weights_only=True, half=half)
    convert(model.checkpoint, run / "checkpoints" / "step_00000000", wish)
    return run


def requirements(family: str) -> list[str]:
    """The packages of an answer, in the versions that are installed here."""
    found = []
    for name in (*NEEDS, *FOR_FILES.get(family, ())):
        try:
            found.append(f"{name}=={metadata.version(name).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return found


def raw_rows(model: Model, rows: Mapping[str, Any]) -> pd.DataFrame | None:
    """The rows as the table had them, where they come back; None for models that read no table."""
    from distdl.data.preparation import undo

    record = model.ways.record.get("x", {})
    if not model.ways.of_tables or set(rows) != {"x"}:
        return None
    found = pd.DataFrame(undo(record, rows["x"].numpy()))
    named = [feature["name"] for feature in record["features"]]
    return found[named] if set(named) <= set(found.columns) else None


def schema(raw: pd.DataFrame) -> Any:
    """The columns of a table. Of the numbers no type is told: MLflow would refuse whole ones and other precisions, which
    the preparation takes."""
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    return Schema([ColSpec("string" if raw[name].dtype.kind in "OUT" else AnyType(), name) for name in raw.columns])


def checked(
    folder: Path, model: Model, rows: Mapping[str, Any], raw: pd.DataFrame | None, precision: str = "fp32"
) -> Difference:
    """Asks the model on the disk and the run about the same rows. InputError: they differ."""
    with quiet(TALKER, logging.ERROR):
        loaded = mlflow.pyfunc.load_model(str(folder))
    found = Difference()
    for size, _, batch in cases(rows, {}):
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        want = answered(model, arrays, {})
        asked: Any = arrays if raw is None else raw_rows(model, batch)
        told = loaded.predict(asked)
        found.rows += size
        found.batches.append(size)
        compare(found, want, told)
    judge(found, precision)
    return found


def compare(found: Difference, want: pd.DataFrame, told: pd.DataFrame) -> None:
    """Numbers by their difference, words by whether they are the same."""
    if list(want.columns) != list(told.columns):
        raise InputError(f"the exported model answers {', '.join(told.columns)}, and the run {', '.join(want.columns)}")
    for name in want.columns:
        a, b = want[name], told[name]
        if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
            add(found, name, a.to_numpy(), b.to_numpy())
        elif a.dtype == object and isinstance(a.iloc[0], list):
            add(found, name, np.asarray(a.tolist()), np.asarray(b.tolist()))
        else:
            found.others += int((a.astype(str).to_numpy() != b.astype(str).to_numpy()).sum())
