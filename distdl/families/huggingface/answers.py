"""What a model of Hugging Face's answers: the token that comes next, the row with its hidden tokens, the other sentence."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distdl.learner.answers import NEXT_TOKEN, Answer, in_rows, last_real, window
from distdl.learner.learner import Batch


def tells(task: str) -> dict[str, Answer]:
    """Of each task."""
    if task == "causal":
        return NEXT_TOKEN
    if task == "masked":
        return {"tokens": Answer("tokens", "the row, its hidden tokens filled in", of="tokens")}
    return {"target": Answer("tokens", "the likeliest token at each place", of="target")}


def of(learner: Any, batch: Batch) -> dict[str, Tensor]:
    """The answers of a learner of this family."""
    task, context = learner.config.task, learner.config.context
    if task == "seq2seq":
        return {"target": written(learner, batch["source"].long())}
    row, length = window(batch["tokens"].long(), batch.get("length"), context)
    inputs = {"input_ids": row, **learner.attended(learner.tokens.real(row))}
    if task == "causal":
        if learner.borders and "documents" in batch:
            documents, _ = window(batch["documents"], batch.get("length"), context)
            inputs = {"input_ids": row, **learner.borders(documents)}
        return {"next": last_real(learner.logits(**inputs), length).float().softmax(-1)}
    if learner.config.segments:
        inputs["token_type_ids"] = window(batch["segments"].long(), None, context)[0]
    return {"tokens": learner.logits(**inputs).argmax(-1).where(row == learner.tokens.mask, row)}


def written(learner: Any, source: Tensor) -> Tensor:
    """(B, S) -> (B, T): the likeliest token at each place, given those before it."""
    how = {"do_sample": False, "num_beams": 1, "max_new_tokens": learner.config.target_length}
    settings = learner.model.generation_config
    if settings.decoder_start_token_id is None and settings.bos_token_id is None:  # t5 begins with its padding
        how["decoder_start_token_id"] = learner.tokens.pad or 0
    rows = learner.model.generate(source, **learner.attended(learner.tokens.real(source)), **how)[:, 1:]
    ends = settings.eos_token_id
    marks = {*(ends if isinstance(ends, list) else [ends]), learner.tokens.pad}
    found = []
    for row in rows.tolist():
        stop = next((i for i, token in enumerate(row) if token in marks), len(row))
        found.append(row[:stop])
    return in_rows(found, source)
