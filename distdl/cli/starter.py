"""A first config for a data set: the family that fits its columns, sizes that train in minutes, words for why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distdl.config.family import family_schema
from distdl.data.manifest import VARIABLE, Manifest
from distdl.errors import InputError

ANSWERS = ("label", "y", "mask")
"""Columns that are learned, not learned from, by the names that families read."""
STEPS, EPOCHS = 3000, (10, 100)
"""Optimizer steps that a table or pictures are worth, and the passes that this may be."""
TEXT_STEPS = 1000
TUNING_EPOCHS = 3
"""Of a model that has learned a language already."""
EVALUATIONS = 10


@dataclasses.dataclass(frozen=True)
class Perceptron:
    """What suits a perceptron on so many rows: few noisy ones are learned by heart."""

    hidden: tuple[int, ...]
    dropout: float
    lr: str = "1e-3"
    weight_decay: str = "1e-4"
    steps: int = 0
    """Optimizer steps in all; 0: as of any other family."""


PERCEPTRONS = {
    150: Perceptron((32,), 0.5, "3e-3", "1.0", 700),
    500: Perceptron((64, 32), 0.4, "2e-3", "1.0", 700),
    1_500: Perceptron((64, 32), 0.4, "2e-3", "1.0", 1500),
    20_000: Perceptron((128, 64), 0.2),
    math.inf: Perceptron((128, 64), 0.1),
}
"""By the rows that are learned from, fewer than so many. Chosen by public tables of one half, and checked on the other one
(benchmarks/public_tables.py): a strong weight decay, which pulls towards the mean, is what lets few rows end beside ridge
regression."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What there is to learn in a data set."""

    sample: str
    """The column that is learned from."""
    shape: tuple[int, ...]
    answer: str
    """`label`, `y` or `mask`; '': the sample itself."""
    classes: int
    """Numbers of classes, from 0, or of tokens where the sample is text."""
    rows: int
    steps: str = ""
    """Of a series that is read step by step, what is learned of it: its class (`rows`), or its next values (`values`)."""
    frames: bool = False
    """Whether a column says how many of the steps count."""
    beside: tuple[str, ...] = ()
    """Columns without which the sample would be taken for something else."""
    model: str = ""
    """Folder of a model whose tokenizer made the tokens."""
    unread: tuple[str, ...] = ()
    """Columns beside the sample that could be learned from, too, which no family reads together with it."""

    @property
    def tokens(self) -> bool:
        return self.sample == "tokens"


def contents(manifest: Manifest, train_split: str = "train") -> Contents:
    """What can be learned from a data set. InputError: nothing that a family of its own accord would take."""
    columns = {name: column for name, column in manifest.columns.items() if column.dtype != VARIABLE}
    samples = [name for name in columns if name not in ANSWERS and columns[name].shape]
    preferred = [name for name in ("tokens", "image", "x") if name in samples]
    if not samples or (len(samples) > 1 and not preferred):
        have = ", ".join(f"{name} {c.dtype} {list(c.shape)}" for name, c in manifest.columns.items())
        raise InputError(
            f"what is to be learned from the columns of the data set is not clear: {have}",
            fix="name the columns so that a family reads them: x or image, and label or y (docs/columns.md)",
        )
    sample = (preferred or samples)[0]
    unread = tuple(name for name in preferred if name != sample)
    answer = "" if sample == "tokens" else next((name for name in ANSWERS if name in columns), "")
    counted = sample if sample == "tokens" else answer
    known = {"label": len(_classes(manifest)), "tokens": int(manifest.info.get("vocabulary", 0))}
    highest = [values[counted].high for values in manifest.values.values() if counted in values]
    seen = 1 + int(max((high for high in highest if high is not None), default=0))
    record = manifest.preparation.get(sample, {})
    steps = {"label": "rows", "": "values"}.get(answer, "") if record.get("kind") == "series" else ""
    return Contents(
        sample,
        columns[sample].shape,
        answer,
        max(known.get(counted, 0), seen) if counted != "y" else 0,
        manifest.split(train_split).rows,
        steps if len(columns[sample].shape) == (3 if answer else 2) else "",
        "frames" in manifest.columns,
        tuple(record.get("beside", ())),
        unread=unread,
    )


def unread_in_words(found: Contents, manifest: Manifest) -> list[str]:
    """What the first config does not learn from, in a sentence each."""
    told = []
    for name in found.unread:
        made_of = [feature["name"] for feature in manifest.preparation.get(name, {}).get("features", ())]
        some = ", ".join(made_of[:10]) + (", ..." if len(made_of) > 10 else "")
        of = f", made of {some}," if made_of else ""
        told.append(f"the column {name}{of} is not learned from: the model reads {found.sample} alone")
    return told


def _classes(manifest: Manifest) -> list[str]:
    return list(manifest.preparation.get("label", {}).get("classes") or manifest.info.get("classes") or [])


# -- the model ---------------------------------------------------------------------------------------------------------


def choose_family(found: Contents) -> tuple[str, str]:
    """A family that learns this, and why it."""
    if found.tokens and found.model:
        return "huggingface", "the folder of the tokenizer holds a model, which is trained on"
    if found.tokens:
        return "gpt", "rows of tokens are text to continue"
    if found.steps:
        return "gru", "series, step by step: " + (
            "their classes" if found.answer else "each value from those before it"
        )
    picture = len(found.shape) == 3
    if found.answer == "mask":
        return "unet", "a picture, and the class of each of its pixels"
    if found.answer == "label" and picture and min(found.shape[1:]) >= 8:
        return "cnn", "pictures of classes"
    if found.answer == "label":
        return "mlp", "numbers of classes"
    if found.answer == "y":
        return "mlp", "numbers, and a number to predict"
    return "autoencoder", "samples without an answer"


def model_section(found: Contents, family: str) -> dict[str, Any]:
    """The `model:` section of any family: what follows from the data by the names of its fields, and modest sizes."""
    known = {field.name: field.default for field in dataclasses.fields(family_schema(family).config)}
    fits: dict[str, Any] = {"column": found.sample, "classes": max(2, found.classes), "image": list(found.shape)}
    whole_shape = isinstance(known.get("inputs"), tuple)
    fits["inputs"] = list(found.shape) if whole_shape else found.shape[-1]
    if found.tokens:
        fits = {"vocabulary": max(2, found.classes), "context": found.shape[0] - 1}
        if known.get("task") == "tokens":
            fits |= {"inputs": max(2, found.classes), "steps": found.shape[0] - 1}
        fits |= dict.fromkeys(found.beside, True)
    if family == "huggingface":
        if not found.model:
            what = "the family huggingface trains a model on, and no folder of one is named"
            raise InputError(what, fix="tokenizer=FOLDER, a folder of a model of transformers with its tokenizer")
        fits |= {"name": found.model}
    if found.answer == "y":
        del fits["classes"]
        fits["target"] = "value"
    fits |= _sizes(found, family)
    if {"task", "steps"} <= known.keys() and (found.steps or (len(found.shape) == 3 and found.answer == "label")):
        values = found.steps == "values"
        fits |= {"task": "values" if values else "rows", "steps": found.shape[-2] - values, "inputs": found.shape[-1]}
        fits |= {"embedding": 0, "frames": found.frames}
    return {"family": family, **{key: value for key, value in fits.items() if key in known and value != known[key]}}


def _sizes(found: Contents, family: str) -> dict[str, Any]:
    """What makes the first run short: the families' own defaults are those of their papers."""
    side = min(found.shape[1:]) if len(found.shape) == 3 else 0
    if family == "cnn":
        depth = max(1, min(4, int(math.log2(max(side, 4))) - 2))
        return {"stages": [[min(128, 32 << i), 3, 2] for i in range(depth)], "dense": [128], "dropout": 0.2}
    if family == "unet":
        depth = next((d for d in (3, 2, 1) if all(n % (1 << d) == 0 for n in found.shape[1:])), 1)
        return {
            "width": 16,
            "depth": depth,
            "padding": "same",
            "batch_norm": True,
            "border_weight": 0.0,
            "dropout": 0.0,
        }
    if family == "vit":
        patch = next((p for p in (16, 8, 7, 5, 4, 3, 2) if all(n % p == 0 and n // p > 3 for n in found.shape[1:])), 1)
        return {"patch": patch, "layers": 4, "heads": 4, "width": 128}
    sizes: dict[str, dict[str, Any]] = {
        "mlp": {"hidden": list(perceptron(found).hidden), "dropout": perceptron(found).dropout},
        "gpt": {"layers": 2, "heads": 4, "width": 128, "dropout": 0.1},
        "mamba": {"layers": 2, "width": 128},
        "autoencoder": {"hidden": [128, 64], "code": 16, "activation": "relu", "output": "linear", "error": "squared"},
        **{name: {"embedding": 64, "units": 128, "layers": 1, "dropout": 0.0} for name in ("lstm", "gru", "elman")},
    }
    return sizes.get(family, {})


def perceptron(found: Contents) -> Perceptron:
    """What suits a perceptron on these rows."""
    return next(suited for most, suited in PERCEPTRONS.items() if found.rows < most)


# -- the file ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the data set came to be, and what is to be said of it."""

    path: str
    """Of the data set."""
    source: str
    options: Mapping[str, Any]
    because: Mapping[str, str]
    """Option -> why it was chosen."""


def config_text(name: str, recipe: Recipe, manifest: Manifest, family: str = "") -> str:
    """A commented YAML that trains. `family`: which one; '': the one that fits. InputError: nothing fits."""
    found = dataclasses.replace(contents(manifest), model=_model_of(recipe))
    chosen, why = (family, "as you said") if family else choose_family(found)
    model = model_section(found, chosen)
    raw = recipe.options.get("path", "")
    raw = raw if isinstance(raw, str) else ", ".join(map(str, raw))
    lines = [
        f"# Written by `distdl init` for {raw or recipe.source}. `distdl config show` has every other key.".replace(
            "\n", " "
        )
    ]
    lines += [f"# {line}" for line in _about(found, manifest)]
    lines += [f"name: {name}", "model:"]
    lines += _block(model, 2, {"family": f"{why}; `distdl families {chosen}` tells its fields"})
    lines += ["data:", *_block({"path": recipe.path}, 2, {})]
    lines += [
        "  prepare:  # how the data set was written, and will be where it is not there",
        f"    source: {recipe.source}",
    ]
    lines += ["    options:", *_block(dict(recipe.options), 6, dict(recipe.because))] if recipe.options else []
    if "validation" in manifest.splits:
        lines.append("  eval_split: validation  # what is chosen, such as the best checkpoint, is chosen by it")
        if "test" in manifest.splits:
            lines.append("  test_split: test  # is evaluated once, when the run has ended: nothing was chosen by it")
    elif "test" not in manifest.splits:
        lines.append("  eval_split: null  # no rows are held out: test_fraction=0.1 of the source would")
    lines += _training(found, chosen)
    lines.append("runtime: {kind: local}  # processes of this machine; workers: 2 trains with two")
    return "\n".join(lines) + "\n"


def _model_of(recipe: Recipe) -> str:
    """The folder that the tokenizer is of, where it holds a model, too."""
    folder = str(recipe.options.get("tokenizer", ""))
    return folder if folder and (Path(folder) / "config.json").is_file() else ""


def _about(found: Contents, manifest: Manifest) -> list[str]:
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items())
    told = [f"{found.sample} {list(found.shape)}; rows: {rows}"]
    if found.answer == "label":
        names = _classes(manifest)
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        told.append(f"{found.classes} classes" + (f": {' '.join(shown.split())}" if names else ""))
    return [*told, *(" ".join(line.split()) for line in unread_in_words(found, manifest))]


def _training(found: Contents, family: str) -> list[str]:
    if family == "huggingface":
        batch, epochs = 16, TUNING_EPOCHS
        steps, long = math.ceil(epochs * found.rows / batch), f"  epochs: {epochs}"
        optimizer = "{name: adamw, lr: 2e-5, weight_decay: 0.01}"
    elif found.tokens:
        batch, steps, long = 16, TEXT_STEPS, f"  steps: {TEXT_STEPS}"
        optimizer = "{name: adamw, lr: 1e-3, betas: [0.9, 0.95], weight_decay: 0.1}"
    else:
        batch = 1 << min(8, max(4, round(math.log2(max(1, found.rows / 50)))))
        suited = perceptron(found) if family == "mlp" else Perceptron((), 0.0)
        epochs = min(max(math.ceil(STEPS * batch / found.rows), EPOCHS[0]), EPOCHS[1])
        if suited.steps:
            epochs = math.ceil(suited.steps * batch / found.rows)
        steps, long = math.ceil(epochs * found.rows / batch), f"  epochs: {epochs}"
        optimizer = f"{{name: adamw, lr: {suited.lr}, weight_decay: {suited.weight_decay}}}"
    every = math.ceil(steps / EVALUATIONS)
    return [
        "train:",
        f"  global_batch: {batch}  # samples a step, over all workers",
        f"{long}  # {steps:,} steps in all" if not found.tokens else long,
        "  clip_norm: 1.0",
        f"optimizer: {optimizer}",
        f"schedule: {{name: cosine, warmup_steps: {min(100, max(1, steps // 20))}}}",
        f"evaluate: {{every_steps: {every}}}",
        f"checkpoint: {{every_steps: {every}}}",
    ]


def _block(values: Mapping[str, Any], indent: int, notes: Mapping[str, str]) -> list[str]:
    """Keys of a YAML mapping, one a line, a comment behind those that have one."""
    lines = []
    for key, value in values.items():
        text = yaml.safe_dump({key: value}, default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]
        note = " ".join(notes[key].split()) if key in notes else ""
        lines.append(" " * indent + text + (f"  # {note}" if note else ""))
    return lines


def examples() -> dict[str, Path]:
    """Name -> the file of each shipped example: of the wheel, else of the checkout."""
    package = Path(__file__).parents[1]
    folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}
