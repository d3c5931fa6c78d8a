"""Any causal, masked or sequence-to-sequence model of Hugging Face's transformers (Wolf et al. 2020, EMNLP demos).

    causal    -log p(x_t | x_<t)                             reads what the family gpt reads
    masked    -log p(x_t | x with some tokens hidden)        ... bert ...
    seq2seq   -log p(y_t | x, y_<t)                          ... transformer ...

The loss is the mean over the tokens that count, those of a step's whole global batch together, so that no row, micro-batch
or rank weighs more than another. Padding does not count and is not attended to; with `labels`, a column says what is to be
predicted at each place, and -100 that nothing is: a prompt, for example. Where the model's config asks for its balance loss
(a mixture of experts, `output_router_logits`), theirs is added, over what the ranks take at a time.

The network is theirs, from a folder, the hub, or fresh (`hub.py`), its dropout drawn by sample (`dropout.py`): every
layout trains the same. `distdl checkpoint convert RUN FOLDER --to huggingface` writes a trained model back for
`from_pretrained`, with the tokenizer and the generation settings it came with. The default is GPT-2 small: 124,439,808.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.columns import NO_LABEL, language_columns, sentences
from distdl.config.fields import Count, CountOrZero, StrictShare
from distdl.families.huggingface import answers, hub
from distdl.families.huggingface.dropout import KeyedDropout
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.labels import mean_of_counted
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    task: Literal["causal", "masked", "seq2seq"] = "causal"
    """The next token, hidden tokens, or a sentence for a sentence."""
    name: str = ""
    """Folder (of every worker) or hub name of a model; empty: a fresh one of `architecture`."""
    from_scratch: bool = False
    """Fresh weights in the shape of the model `name`."""
    architecture: str = "gpt2"
    """Where `name` is empty: a model type of transformers, such as gpt2, llama, bert, t5."""
    overrides: dict[str, Any] | None = None
    """Keys of the model's own config.json that differ: dropouts, or sizes where the weights are fresh."""
    context: Count = 1024
    """Tokens of a row that the model reads; a row of the task causal holds one more, the last target."""
    target_length: Count = 128
    """seq2seq: tokens that are predicted for a sentence; a row holds one more, the token it begins with."""
    labels: bool = False
    """The column `labels`, as long as the one that is predicted, says which token each place has, and -100: none counts."""
    documents: bool = False
    """causal: documents that share a row, told apart by the column `documents`, do not see each other, and each begins
    at place 0."""
    pad: Literal["model", "none"] | CountOrZero = "model"
    """The token of padding at a row's begin or end; model: that of its config or tokenizer, none where they have none."""
    segments: bool = False
    """masked: the model is told of the column `segments`, as BERT is."""
    mask: CountOrZero | None = None
    """masked: the token that stands for a hidden one; null: as the model's tokenizer says."""
    marks: tuple[CountOrZero, ...] | None = None
    """masked: tokens that are never hidden; null: the special tokens of the model's tokenizer or config."""
    hide: StrictShare = 0.15
    """masked: share of a row's tokens that is predicted; of these 80 % are hidden and 10 % replaced."""

    def __post_init__(self) -> None:
        if self.documents and self.task != "causal":
            raise ValueError(f"documents with task {self.task}, which has one in a row; leave documents out")
        if self.documents and not self.labels:
            raise ValueError(
                "documents without labels: the end of one would learn the begin of the next; labels: true, too"
            )


class HuggingFace(Learner):
    targets, any_length = frozenset({"labels", "target"}), frozenset({"tokens", "source", "documents", "segments"})
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, theirs = config, hub.config_of(config)
        self.tokens = hub.special_tokens(config, theirs)
        self.model: Any = hub.network(config, theirs)  # its methods and its config are not those of torch
        self.balance = hub.Balance(self.model, theirs) if hub.of(theirs, "output_router_logits") else None
        self.batch_coupled = self.balance is not None
        if config.name and not config.from_scratch:
            self.born_whole = "transformers reads its weights as a whole"
        self.borders = hub.borders(self.model, theirs) if config.documents else None

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        size, row, key = hub.config_of(config).get_text_config().vocab_size, (config.context,), "overrides.vocab_size"
        if config.task == "seq2seq":
            target = Column.tokens(size, (config.target_length + 1,), key=key)
            columns = {"source": Column.tokens(size, row, key=key), "target": target}
        elif config.task == "causal":
            columns = language_columns(size, config.context, config.labels, config.documents, key)
        else:
            columns = sentences(size, config.context)
            columns = columns if config.segments else {"tokens": columns["tokens"]}
        predicted = columns["target" if config.task == "seq2seq" else "tokens"].shape
        labels = {"labels": Column(predicted, "whole", 0, size - 1, NO_LABEL, "token", key)} if config.labels else {}
        return columns | labels

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return answers.tells(config.task)

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return answers.of(self, batch)

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        theirs = hub.config_of(Config(**{key: value for key, value in model.items() if key != "family"}))
        layers = {"num_hidden_layers": 2} if hasattr(theirs, "num_hidden_layers") else {}
        lengths = {"context": min(model["context"], 32), "target_length": min(model["target_length"], 32)}
        return {**model, **lengths, "from_scratch": True, "overrides": {**(model["overrides"] or {}), **layers}}

    def counted(self, batch: Batch) -> Tensor:
        if self.config.task == "masked" and not self.config.labels:
            return self.number_hidden(self.hideable(batch["tokens"].long())).sum()
        return (self.predicted(batch) != NO_LABEL).sum()

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, counts, hits, balance = self.losses(batch)
        loss, metrics = mean_of_counted(losses, counts, batch), self.accuracy(counts, hits)
        if balance is not None and self.balance:
            loss, metrics["balance_loss"] = loss + self.balance.weight * balance, mean(balance)
        return loss, metrics

    def evaluate(self, batch: Batch) -> Metrics:
        losses, counts, hits, _ = self.losses(batch)
        shown("places", lambda: {"losses": losses})
        return {"loss": Mean(losses.sum(), float(counts.sum())), **self.accuracy(counts, hits)}

    def accuracy(self, counts: Tensor, hits: Tensor) -> Metrics:
        return {"masked_accuracy": Mean(hits.sum(), float(counts.sum()))} if self.config.task == "masked" else {}

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Of every place (B, T): cross entropy, 0 where it does not count, whether it does, and whether the best guess is
        right there; and the balance loss of a mixture that trains."""
        config, tokens = self.config, self.tokens
        targets = self.predicted(batch)  # (B, T)
        if config.task == "causal":
            row = batch["tokens"].long()  # (B, T + 1)
            inputs = {"input_ids": row[:, :-1]}
            if self.borders:
                inputs |= self.borders(batch["documents"][:, :-1])
            else:
                inputs |= self.attended(tokens.real(row)[:, :-1])
        elif config.task == "seq2seq":
            source, target = batch["source"].long(), batch["target"].long()  # (B, S), (B, T + 1)
            inputs = {"input_ids": source, "decoder_input_ids": target[:, :-1], **self.attended(tokens.real(source))}
        else:
            row = batch["tokens"].long()  # (B, T)
            inputs = {"input_ids": row, **self.attended(tokens.real(row))}
            if not config.labels:
                inputs["input_ids"], targets = self.hidden(row)
            if config.segments:
                inputs["token_type_ids"] = batch["segments"].long()
        output = self.output(**inputs)
        logits = output.logits
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")  # 0 at NO_LABEL
        balance = output.aux_loss if self.balance and self.training else None
        return losses.view(targets.shape), targets != NO_LABEL, logits.argmax(-1) == targets, balance

    def predicted(self, batch: Batch) -> Tensor:
        """(B, T): the tokens that are to be predicted, where none are hidden, and NO_LABEL."""
        row = batch["target" if self.config.task == "seq2seq" else "tokens"].long()
        first = 0 if self.config.task == "masked" else 1
        if self.config.labels:
            return batch["labels"][:, first:].long()
        return row.masked_fill(~self.tokens.real(row), NO_LABEL)[:, first:]

    def attended(self, real: Tensor) -> dict[str, Tensor]:
        """The attention mask. A row of nothing but padding attends to all of it: attention to nothing is not a number."""
        return {} if self.tokens.pad is None else {"attention_mask": (real | ~real.any(1, keepdim=True)).long()}

    def logits(self, **inputs: Tensor) -> Tensor:
        """(B, T, V) of their network."""
        return self.output(**inputs).logits

    def output(self, **inputs: Tensor) -> Any:
        """What their network says."""
        with contextlib.ExitStack() as stack:
            if self.training and noise.active():
                stack.enter_context(KeyedDropout())
            how = {} if self.config.task == "masked" else {"use_cache": False}
            if self.balance:
                how["output_router_logits"] = self.training
                stack.enter_context(self.balance.over_ranks())
            return self.model(**inputs, **how)

    def hideable(self, tokens: Tensor) -> Tensor:
        """bool (B, T)"""
        real = self.tokens.real(tokens)
        for mark in self.tokens.marks:
            real &= tokens != mark
        return real

    def number_hidden(self, hideable: Tensor) -> Tensor:
        """(B, 1): `hide` of those that can be, and one at least where there is one."""
        number = hideable.sum(-1, keepdim=True)
        return torch.minimum((self.config.hide * number).round().clamp(min=1), number)

    def hidden(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) tokens with some of them hidden, and those that were there, NO_LABEL elsewhere."""
        B, T = tokens.shape
        if noise.active():
            drawn = noise.uniform(B, 3, T, device=tokens.device)
        else:
            drawn = torch.rand(B, 3, T, generator=torch.Generator().manual_seed(0)).to(tokens.device)
        order, kind, other = drawn.unbind(1)  # (B, T) each
        real = self.hideable(tokens)
        rank = order.masked_fill(~real, 2.0).argsort(dim=-1, stable=True).argsort(dim=-1)
        chosen = rank < self.number_hidden(real)  # (B, T)
        another = (other * self.model.config.vocab_size).long()
        changed = torch.where(kind < 0.8, self.tokens.mask, torch.where(kind < 0.9, another, tokens))
        return torch.where(chosen, changed, tokens), tokens.masked_fill(~chosen, NO_LABEL)

    def save(self, folder: Path) -> None:
        """Writes the model as theirs is written, in safetensors, and what it came with beside it."""
        self.model.tie_weights()
        self.model.save_pretrained(folder)
        if self.config.name:
            hub.copy_companions(self.config.name, folder)
