"""A run's model as files of another format, published when they are shown to answer as the run does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl import __version__
from distdl.checkpoint.layout import PREPARATION as RECORD
from distdl.columns import Column
from distdl.errors import InputError
from distdl.export import check, rows
from distdl.export.folder import PREPARATION, published, seal
from distdl.export.preparation import Front, described
from distdl.files import read_json, write_json
from distdl.nn.lora import merge

if TYPE_CHECKING:
    from distdl.model.model import Model

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "huggingface": ("transformers",)}
WIDEST = 200
"""Columns of a table that a graph has as inputs of its own; of more it takes `x`."""
EXTRA = {"onnx": "export", "huggingface": "huggingface"}
FAMILY_MAKES = "the family {family} says of no question what its answer is: it only makes samples"


@dataclass(frozen=True)
class Wish:
    """What is asked of an export."""

    to: str
    output: Path
    precision: str = "fp32"
    """fp32, or fp16: weights in half the bytes, which are made single where they are used."""
    data: str = ""
    """Rows that it is checked on, where not those of the run's data set."""
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    manifest: dict[str, Any]
    difference: check.Difference
    notes: tuple[str, ...] = ()


def export(model: Model, wish: Wish, graphs: dict[str, Any] | None = None) -> Exported:
    """Writes a model in another format. Raises InputError where it has no such form, or answers otherwise than the run.
    `graphs`: by precision those of the same model that were traced already, and this one afterwards."""
    refuse_missing(wish.to)
    real, where = rows.real_rows(model, wish.data)
    writing = _Writing(model, wish, real, {} if graphs is None else graphs)
    with published(wish.output, wish.overwrite) as folder:
        if record := read_json(model.checkpoint / RECORD):
            write_json(folder / PREPARATION, record)
        difference = writing.run(folder)
        told = {**difference.as_dict(wish.precision), "of": where}
        about = {**writing.about(), "notes": list(writing.notes), "check": told}
        manifest = seal(folder, about)
    if wish.to == "mlflow":
        from distdl.export.mlflow_registry import register

        writing.notes.append(register(wish.output, model.folder, model.step, is_best(model)))
    return Exported(wish.output, manifest, difference, tuple(writing.notes))


def front_of(model: Model) -> Front | None:
    """What prepares the columns of a table within a graph; None: it takes what the model reads."""
    record = model.ways.record.get("x", {})
    fits = model.ways.of_tables and set(model.ways.asked) == {"x"} and Front.fits(record)
    return Front(record) if fits and len(record["features"]) <= WIDEST else None


def is_best(model: Model) -> bool:
    """Whether its checkpoint is the run's best, of those that are kept."""
    from distdl.checkpoint.prune import best

    better = model.learner.better
    return next(iter(best(model.folder.checkpoints, better)), None) == model.checkpoint


def refuse_missing(to: str) -> None:
    """InputError where a format's packages are not installed."""
    if missing := [name for name in PACKAGES.get(to, ()) if importlib.util.find_spec(name) is None]:
        what = f"an export to {to} needs {', '.join(missing)}, which is not installed"
        raise InputError(what, fix=f"pip install 'distdl[{EXTRA[to]}]'")


class _Writing:
    """One export on its way."""

    def __init__(self, model: Model, wish: Wish, real: Mapping[str, Any], graphs: dict[str, Any]) -> None:
        self.model, self.wish, self.real, self.graphs = model, wish, real, graphs
        self.learner = model.learner
        merge(self.learner)  # adapters: other programs know none, and a merged map computes the same in one product
        self.front = front_of(model)
        self.notes: list[str] = []
        self.said: dict[str, Any] = {}

    def run(self, folder: Path) -> check.Difference:
        """Writes the files and checks them."""
        return _FORMATS[self.wish.to](self, folder)

    def about(self) -> dict[str, Any]:
        """What the export is of."""
        model = self.model
        return {
            "to": self.wish.to,
            "distdl": __version__,
            "run": model.folder.path.name,
            "family": str(model.config.family),
            "step": model.step,
            "precision": self.wish.precision,
            "answers": rows.meanings(model),
            **self.said,
        }

    # -- formats -----------------------------------------------------------------------------------------------------------

    def safetensors(self, folder: Path) -> check.Difference:
        from distdl.config.family import portable
        from distdl.export import safetensors

        safetensors.write(folder, self.learner, self.wish.precision)
        write_json(folder / safetensors.CONFIG, {"model": portable(dict(self.model.config.model))})
        back = safetensors.load(folder, self.model.config.model)
        if self.model.tells:
            return self._compared(safetensors.ask(back))
        found = check.Difference(rows=3, batches=[3])  # what only makes samples is compared by those
        check.add(found, "samples", self.learner.sample(3).numpy(), back.sample(3).numpy())
        check.judge(found, self.wish.precision)
        return found

    def huggingface(self, folder: Path) -> check.Difference:
        from distdl.export import huggingface

        family, wish = str(self.model.config.model["family"]), self.wish
        if family not in huggingface.families():
            what = f"transformers has no model that the family {family} equals"
            raise InputError(what, allowed=", ".join(huggingface.families()), fix="--to safetensors, onnx or mlflow")
        classes = rows.meanings(self.model).get("class", {}).get("classes", [])
        huggingface.write(folder, self.learner, self.model.config.model, wish.precision, classes)
        huggingface.preprocessor(folder, self.model.config.model)
        if came := huggingface.companions(folder, getattr(self.model.config.start, "weights", None)):
            self.notes.append(came)
        other, found = huggingface.theirs(folder), check.Difference()
        for size, _, batch in check.cases(self.real, {}):
            mine, theirs = huggingface.both(self.learner, other, family, batch)
            check.add(found, "logits", mine, theirs)
            found.rows += size
            found.batches.append(size)
        check.judge(found, wish.precision)
        return found

    def torch_export(self, folder: Path) -> check.Difference:
        from distdl.export import torch_export

        graph = self._graph()
        torch_export.write(folder, graph, self._meta())
        ask = torch_export.asked(folder, list(graph.inputs))
        return self._compared(ask, graph.lengths, (graph.inputs, graph.outputs), self._raw)

    def onnx(self, folder: Path) -> check.Difference:
        from distdl.export import onnx

        graph = self._graph()
        onnx.write(folder, graph, self._meta())
        inputs, outputs = onnx.shapes(folder, self.model.tells)
        asked = [name for name in self._free() if name in inputs]
        inputs = {name: inputs.get(name, shape) for name, shape in graph.inputs.items()}
        fixed = check.refuse_fixed(inputs, asked)
        if lost := [name for name in fixed if name in graph.lengths]:
            what = (
                f"the ONNX file says that '{lost[0]}' has exactly {inputs[lost[0]][1]} steps, and any number was asked"
            )
            raise InputError(what, fix="--to torch-export or --to mlflow")
        self.said["inputs"] = {name: list(shape) for name, shape in inputs.items()}
        self.said["outputs"] = {name: list(shape) for name, shape in outputs.items()}
        return self._compared(onnx.asked(folder, self.model.tells), graph.lengths, (inputs, outputs), self._raw)

    def mlflow(self, folder: Path) -> check.Difference:
        if not self.model.tells:
            raise InputError(FAMILY_MAKES.format(family=self.model.config.family), allowed="--to safetensors")
        from distdl.export import graph, mlflow

        if self.wish.precision == "fp16":
            graph.halved(self.learner)  # refuses weights that are too large
        return mlflow.write(folder, self.model, self.real, self.wish.precision)

    def _compared(self, ask: check.Ask, lengths: Any = None, shapes: Any = None, raw: Any = None) -> check.Difference:
        return check.compared(ask, self.learner, self.real, lengths or {}, self.wish.precision, shapes, raw)

    def _raw(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The columns that a graph takes: those of the table, where it prepares them itself."""
        return self.front.back(batch["x"].numpy()) if self.front else batch

    def _free(self) -> Sequence[str]:
        """Columns that may have any number of steps."""
        return [name for name, column in self.model.ways.asked.items() if None in column.shape]

    def _graph(self) -> Any:
        from distdl.export import graph

        if not self.model.tells:
            what = FAMILY_MAKES.format(family=self.model.config.family)
            raise InputError(what, allowed="--to safetensors", fix="`distdl sample RUN` draws from it")
        half = self.wish.precision == "fp16"
        if half:
            graph.halved(self.learner)  # refuses weights that are too large
        free = self._free()
        asked: Mapping[str, Any] = self.model.ways.asked
        if self.front:
            asked = {name: Column(()) for name in self.front.names}
            self.said["columns"] = described(self.model.ways.record["x"])
        real, found = self._raw(self.real), self.graphs.get(self.wish.precision)
        if found is None:
            found = graph.traced(self.learner, check.example(real, free), asked, half, self.front)
            if any(name not in found.lengths for name in free):  # then those of the rows themselves
                found = graph.traced(self.learner, check.example(real, ()), asked, half, self.front)
            self.graphs[self.wish.precision] = found
        for name in (name for name in free if name not in found.lengths):
            self.notes.append(f"'{name}' has exactly {found.inputs[name][1]} steps: the file refuses other lengths")
        self.said |= {
            "inputs": {name: list(shape) for name, shape in found.inputs.items()},
            "outputs": {name: list(shape) for name, shape in found.outputs.items()},
            "lengths": {name: list(span) for name, span in found.lengths.items()},
        }
        return found

    def _meta(self) -> dict[str, Any]:
        """What is written into a file itself."""
        record = read_json(self.model.checkpoint / RECORD) or {}
        return {"distdl": self.about(), "preparation": record}


_FORMATS: dict[str, Callable[[_Writing, Path], check.Difference]] = {
    "safetensors": _Writing.safetensors,
    "huggingface": _Writing.huggingface,
    "torch-export": _Writing.torch_export,
    "onnx": _Writing.onnx,
    "mlflow": _Writing.mlflow,
}
TARGETS = tuple(_FORMATS)
