"""A model of Hugging Face's transformers with the same logits, for the families that have one there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distdl.checkpoint.dialects import dialects
from distdl.checkpoint.huggingface import CONFIG, OURS, WEIGHTS, is_folder, to_huggingface, write_theirs
from distdl.checkpoint.stream import whole, write_safetensors
from distdl.errors import InputError
from distdl.families.huggingface.hub import COMPANIONS
from distdl.files import read_json, write_json
from distdl.nn.images import to_unit
from distdl.nn.language import logits

if TYPE_CHECKING:
    from distdl.learner import Learner


def families() -> list[str]:
    """Those that have a model there."""
    return [*(dialect.family for dialect in dialects()), OURS]


def write(folder: Path, learner: Any, model: Mapping[str, Any], precision: str, classes: list[str]) -> None:
    """config.json and model.safetensors under their names. InputError for a family that has no equal there."""
    kept = {name: whole(tensor.detach()) for name, tensor in learner.named_parameters()}
    if model["family"] == OURS:
        kept |= {name: whole(tensor.detach()) for name, tensor in learner.named_buffers()}
        write_theirs(model, kept, folder)
        return
    config, tensors = to_huggingface(model, kept)
    if precision == "fp16":
        config["torch_dtype"] = "float16"
        tensors = {name: lazy.to(torch.float16) for name, lazy in tensors.items()}
    if classes and "id2label" in config:
        config |= {"id2label": dict(enumerate(classes)), "label2id": {word: i for i, word in enumerate(classes)}}
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, config)


def theirs(folder: Path) -> Any:
    """The model of transformers, as its users load it, in single precision. InputError: it is not the one that it names."""
    import transformers

    named = ((read_json(folder / CONFIG) or {}).get("architectures") or [""])[0]
    cls = getattr(transformers, named, None)
    if cls is None:
        raise InputError(f"{folder / CONFIG} names no class of transformers: {named!r}")
    return cls.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True).eval()


def both(learner: Learner, model: Any, family: str, batch: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of ours and of theirs for the same rows."""
    with torch.no_grad():
        mine, their = _LOGITS[family](learner, model, batch)
    return mine.float().numpy(), their.float().numpy()


def _gpt(learner: Any, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    tokens = batch["tokens"].long()[:, : learner.config.context]
    return learner.logits(tokens), model(input_ids=tokens).logits


def _bert(learner: Any, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    tokens, segments = batch["tokens"].long(), batch["segments"].long()
    real = (tokens != 0).long()
    told = model(input_ids=tokens, token_type_ids=segments, attention_mask=real)
    x = learner.through_layers(torch.stack([tokens, segments], -1))
    if learner.words is None:
        return x, told.logits
    words = torch.nn.functional.pad(learner.words(x), (0, 1), value=1.0)
    mine = logits(words, learner.vocabulary())
    there = told.prediction_logits if hasattr(told, "prediction_logits") else told.logits
    return mine[real.bool()], there[real.bool()]


def _vit(learner: Any, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return learner.logits(batch), model(pixel_values=2 * to_unit(batch["image"]) - 1).logits


def _mamba(learner: Any, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    tokens = batch["tokens"].long()
    return learner.logits(tokens), model(input_ids=tokens).logits


def _own(learner: Any, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if learner.config.task == "seq2seq":
        source = batch["source"].long()
        inputs = {
            "input_ids": source,
            "decoder_input_ids": source[:, :2],
            **learner.attended(learner.tokens.real(source)),
        }
    else:
        row = batch["tokens"].long()[:, : learner.config.context]
        inputs = {"input_ids": row, **learner.attended(learner.tokens.real(row))}
        if learner.config.segments:
            inputs["token_type_ids"] = batch["segments"].long()[:, : learner.config.context]
    return learner.logits(**inputs), model(**inputs).logits


_LOGITS = {"gpt": _gpt, "bert": _bert, "vit": _vit, "mamba": _mamba, OURS: _own}


def companions(folder: Path, start: str | None) -> str:
    """Copies tokenizer, chat template and generation settings of the folder of theirs that a run started from, byte by
    byte. Which they are, in words; '': it started from none."""
    if start is None or not is_folder(Path(start)):
        return ""
    found = [name for name in COMPANIONS if (Path(start) / name).is_file()]
    for name in found:
        shutil.copyfile(Path(start) / name, folder / name)
    return f"from {start}: {', '.join(found)}" if found else f"{start} has no tokenizer to take along"


def preprocessor(folder: Path, model: Mapping[str, Any]) -> None:
    """How transformers brings pictures to what a ViT of ours reads: from -1 to 1."""
    if model["family"] != "vit":
        return
    _, height, width = model["image"]
    channels = model["image"][0]
    half = [0.5] * channels
    size = {"height": height, "width": width}
    told = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size, "do_rescale": True}
    told |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": half, "image_std": half}
    (folder / "preprocessor_config.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
