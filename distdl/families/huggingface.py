"""Any causal, masked or sequence-to-sequence model of Hugging Face's transformers (Wolf et al. 2020, EMNLP demos).

    causal    -log p(x_t | x_<t), the mean over the tokens of a row                  reads what the family gpt reads
    masked    -log p(x_t | x with some tokens hidden), the mean over a row's hidden  ... bert ...
    seq2seq   -log p(y_t | x, y_<t), summed over a sentence and divided by its row   ... transformer ...

The network is theirs, from a folder, the hub, or fresh; weights are read from safetensors only, and code that comes with a
model is never run. The loss and the way to hide are ours, so that no micro-batch weighs more than another, and each dropout
of the network is drawn by `nn/noise.py` (see `KeyedDropout`): every layout trains the same. `distdl checkpoint convert RUN
FOLDER --to huggingface` writes a trained model back for `from_pretrained`. The default is GPT-2 small: 124,439,808.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from distdl.columns import sentences
from distdl.errors import InputError, did_you_mean
from distdl.family_schema import DOCS
from distdl.learner import Batch, Column, Learner
from distdl.metrics import Mean, Metrics, mean
from distdl.nn import noise

CLASSES = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}


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
    context: Annotated[int, Field(gt=0)] = 1024
    """Tokens of a row that the model reads; a row of the task causal holds one more, the last target."""
    target_length: Annotated[int, Field(gt=0)] = 128
    """seq2seq: tokens that are predicted for a sentence; a row holds one more, the token it begins with."""
    pad: Annotated[int, Field(ge=0)] = 0
    """masked and seq2seq: the token of padding."""
    segments: bool = False
    """masked: the model is told of the column `segments`, as BERT is."""
    mask: Annotated[int, Field(ge=0)] = 103
    """masked: the token that stands for a hidden one."""
    marks: tuple[Annotated[int, Field(ge=0)], ...] = (101, 102)
    """masked: tokens that are never hidden."""
    hide: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """masked: share of a row's tokens that is predicted; of these 80 % are hidden and 10 % replaced."""


class HuggingFace(Learner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model: nn.Module = network(config)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        size = config_of(config).get_text_config().vocab_size
        row, key = (config.context,), "overrides.vocab_size"
        if config.task == "seq2seq":
            target = Column.tokens(size, (config.target_length + 1,), key=key)
            return {"source": Column.tokens(size, row, key=key), "target": target}
        if config.task == "causal":
            return {"tokens": Column.tokens(size, (config.context + 1,), key=key)}
        both = sentences(size, config.context)
        return both if config.segments else {"tokens": both["tokens"]}

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        theirs = config_of(Config(**{key: value for key, value in model.items() if key != "family"}))
        layers = {"num_hidden_layers": 2} if hasattr(theirs, "num_hidden_layers") else {}
        lengths = {"context": min(model["context"], 32), "target_length": min(model["target_length"], 32)}
        return {**model, **lengths, "from_scratch": True, "overrides": {**(model["overrides"] or {}), **layers}}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, shares, hits = self.losses(batch)
        metrics = {"masked_accuracy": mean((hits * shares).sum(-1))} if self.config.task == "masked" else {}
        return (losses * shares).sum(-1).mean(), metrics

    def evaluate(self, batch: Batch) -> Metrics:
        losses, shares, hits = self.losses(batch)
        if self.config.task == "seq2seq":  # per token
            real = (shares > 0).float()
            return {"loss": Mean((losses * real).sum(), float(real.sum()))}
        metrics = {"masked_accuracy": mean((hits * shares).sum(-1))} if self.config.task == "masked" else {}
        return {"loss": mean((losses * shares).sum(-1)), **metrics}

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of every place (B, T): cross entropy, its share of the sample's loss, whether the best guess is right."""
        config = self.config
        if config.task == "causal":
            tokens = batch["tokens"].long()  # (B, T + 1)
            logits, targets = self.logits(input_ids=tokens[:, :-1]), tokens[:, 1:]
            shares = torch.full(targets.shape, 1 / targets.shape[1], device=targets.device)
        elif config.task == "seq2seq":
            source, target = batch["source"].long(), batch["target"].long()  # (B, S), (B, T + 1)
            real = (source != config.pad).long()
            logits = self.logits(input_ids=source, attention_mask=real, decoder_input_ids=target[:, :-1])
            targets = target[:, 1:]
            shares = (targets != config.pad).float() / targets.shape[1]
        else:
            targets = batch["tokens"].long()  # (B, T)
            hidden, shares = self.hidden(targets)
            segments = {"token_type_ids": batch["segments"].long()} if config.segments else {}
            logits = self.logits(input_ids=hidden, attention_mask=(targets != config.pad).long(), **segments)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.view(targets.shape), shares, logits.argmax(-1) == targets

    def logits(self, **inputs: Tensor) -> Tensor:
        """(B, T, V) of their network."""
        with KeyedDropout() if self.training and noise.active() else contextlib.nullcontext():
            cache = {} if self.config.task == "masked" else {"use_cache": False}
            return self.model(**inputs, **cache).logits  # type: ignore[no-any-return]

    def hidden(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) tokens with some of them hidden, and each token's share of the sample's loss."""
        config, (B, T) = self.config, tokens.shape
        if noise.active():
            drawn = noise.uniform(B, 3, T, device=tokens.device)
        else:
            drawn = torch.rand(B, 3, T, generator=torch.Generator().manual_seed(0)).to(tokens.device)
        order, kind, other = drawn.unbind(1)  # (B, T) each
        real = tokens != config.pad
        for mark in config.marks:
            real &= tokens != mark
        count = (config.hide * real.sum(-1, keepdim=True)).round().clamp(min=1)  # (B, 1)
        rank = order.masked_fill(~real, 2.0).argsort(dim=-1, stable=True).argsort(dim=-1)
        chosen = real & (rank < count)  # (B, T)
        another = (other * self.model.config.vocab_size).long()
        changed = torch.where(kind < 0.8, config.mask, torch.where(kind < 0.9, another, tokens))
        return torch.where(chosen, changed, tokens), chosen / chosen.sum(-1, keepdim=True).clamp(min=1)

    def save(self, folder: Path) -> None:
        """Writes the model as theirs is written, in safetensors."""
        self.model.tie_weights()  # type: ignore[operator]
        self.model.save_pretrained(folder)  # type: ignore[operator]


class KeyedDropout(TorchFunctionMode):
    """While it is entered, each dropout draws its mask by sample, wherever in foreign code it is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return noise.Dropout(p)(input) if training else input  # type: ignore[no-any-return]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **how: Any
) -> Tensor:
    """Attention whose shares are dropped by sample. (B, H, T, D), (B, H, S, D) twice -> (B, H, T, D)."""
    if how.get("enable_gqa"):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (how.get("scale") or query.shape[-1] ** -0.5)  # (B, H, T, S)
    if how.get("is_causal"):
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return noise.Dropout(dropout_p)(scores.softmax(-1).to(value)) @ value  # type: ignore[no-any-return]


# -- their library -----------------------------------------------------------------------------------------------------


def network(config: Config) -> nn.Module:
    """Their network, with fresh weights or read ones. Raises InputError."""
    auto, theirs = getattr(_transformers(), CLASSES[config.task]), config_of(config)
    longest = getattr(theirs, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < config.context:
        raise InputError(f"model.context is {config.context}", allowed=f"at most {longest}, the places of the model")
    fresh = not config.name or config.from_scratch
    with _told(config):
        if fresh or torch.get_default_device().type == "meta":  # to be counted, not to compute
            return auto.from_config(theirs, trust_remote_code=False, dtype=torch.float32)  # type: ignore[no-any-return]
        options = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
        return auto.from_pretrained(config.name, config=theirs, **options)  # type: ignore[no-any-return]


def config_of(config: Config) -> Any:
    """Their config of the model. Raises InputError."""
    auto, overrides = _transformers().AutoConfig, config.overrides or {}
    with _told(config):
        if config.name:
            theirs = auto.from_pretrained(config.name, trust_remote_code=False, **overrides)
        else:
            theirs = auto.for_model(config.architecture)
    known = theirs.to_dict().keys() | theirs.attribute_map.keys()
    for key in overrides:
        if key not in known:
            raise InputError(
                f"model.overrides.{key}: a {theirs.model_type} has no such key", fix=did_you_mean(key, known)
            )
    with _told(config):
        return theirs if config.name else auto.for_model(config.architecture, **overrides)


@contextlib.contextmanager
def _told(config: Config) -> Iterator[None]:
    """What their library raises, in words."""
    what = f"model.name = {config.name!r}" if config.name else f"model.architecture = {config.architecture!r}"
    if config.name.startswith((".", "/", "~")) and not Path(config.name).is_dir():
        raise InputError(f"{what}: there is no such folder", fix="a folder with config.json and model.safetensors")
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        words = " ".join(str(error).split())
        fix = "a folder with config.json and model.safetensors, or a hub name that can be reached or is in the cache"
        if "trust_remote_code" in words:
            words, fix = "it needs code of its own", f"code that comes with a model is never run; see {DOCS}"
        elif not config.name:
            fix = "a model type of transformers for this task, and overrides that fit it"
        raise InputError(f"{what} with the task {config.task}: {words[:400]}", fix=fix) from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        what = f"the family huggingface needs the package transformers: {error}"
        raise InputError(what, fix="pip install 'distdl[huggingface]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
