"""Models of Hugging Face's transformers: their configs, networks and special tokens, for the family huggingface.

Only this file imports their library. Weights are read from safetensors only, and code that comes with a model is never run.
`config` is the family's own Config throughout, `theirs` the config of their library.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from distdl.config.family import DOCS
from distdl.errors import InputError, did_you_mean
from distdl.layout.gather import gathered
from distdl.nn.language import begins_of, places_within

CLASSES = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("chat_template.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "source.spm"),
    *("target.spm", "sentencepiece.bpe.model", "bpe.codes", "tekken.json", "tiktoken.model"),
)
COMPANIONS = (*TOKENIZER, "generation_config.json")
"""Files beside a model's weights that it is used with: all are data, none is code."""
ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""Keys of published configs that their library keeps in `rope_parameters`."""
ASKED = r"config\.{0}\b|attr\(\s*\w*\.?config,\s*['\"]{0}['\"]"
"""How code of theirs asks a config for a key; many that published configs have are no fields of the config's class."""
RENAMED = r"kwargs\.(pop|get)\(\s*['\"]{0}['\"]"
"""How a config's class takes a key of an earlier time."""


def transformers() -> Any:
    """Their library. Raises InputError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        what = f"the family huggingface needs the package transformers: {error}"
        raise InputError(what, fix="pip install 'distdl[huggingface]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def network(config: Any, theirs: Any) -> nn.Module:
    """Their network, with fresh weights or read ones. Raises InputError."""
    auto = getattr(transformers(), CLASSES[config.task])
    longest, kind = getattr(theirs, "max_position_embeddings", None), cast("Any", type(theirs))
    if isinstance(longest, int) and any("def create_position_ids_from_input_ids" in text for text in _sources(kind)):
        longest -= (of(theirs, "pad_token_id") or 0) + 1  # RoBERTa's places begin behind that of padding
    if isinstance(longest, int) and 0 < longest < config.context:
        raise InputError(f"model.context is {config.context}", allowed=f"at most {longest}, the places of the model")
    fresh = not config.name or config.from_scratch
    with told(config):
        if fresh or torch.get_default_device().type == "meta":  # to be counted, not to compute
            return auto.from_config(theirs, trust_remote_code=False, dtype=torch.float32)
        options = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
        return auto.from_pretrained(config.name, config=theirs, **options)


@contextlib.contextmanager
def told(config: Any) -> Iterator[None]:
    """What their library raises, in words: whatever it is, for the values that it dislikes are a user's."""
    what = f"model.name = {config.name!r}" if config.name else f"model.architecture = {config.architecture!r}"
    if config.name.startswith((".", "/", "~")) and not Path(config.name).is_dir():
        raise InputError(f"{what}: there is no such folder", fix="a folder with config.json and model.safetensors")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        words = " ".join(str(error).split()) or "no reason given"
        if not isinstance(error, (OSError, ValueError)):
            words = f"{type(error).__name__}: {words}"
        fix = "a folder with config.json and model.safetensors, or a hub name that can be reached or is in the cache"
        if "trust_remote_code" in words:
            words, fix = "it needs code of its own", f"code that comes with a model is never run; see {DOCS}"
        elif config.overrides:
            fix = f"model.overrides that fit it (given: {', '.join(config.overrides)})"
        elif not config.name:
            fix = "a model type of transformers for this task, and overrides that fit it"
        raise InputError(f"{what} with the task {config.task}: {words[:400]}", fix=fix) from error


# -- their config, and what differs from it ----------------------------------------------------------------------------


def config_of(config: Any) -> Any:
    """Their config of the model, with our `overrides`. Raises InputError."""
    auto, overrides = transformers().AutoConfig, config.overrides or {}
    with told(config):
        if config.name:
            theirs = auto.from_pretrained(config.name, trust_remote_code=False)
        else:
            theirs = auto.for_model(config.architecture)
    known = {*theirs.to_dict(), *theirs.attribute_map} - {"dtype"}
    for key in overrides:
        if key in ("dtype", "torch_dtype"):
            what = f"model.overrides.{key} has no effect: weights are read as fp32"
            raise InputError(what, fix="train.precision, which says in what the model computes")
        if key not in known and not _reads(theirs, key, ASKED) and not _reads(theirs, key, RENAMED):
            what = f"model.overrides.{key}: a {theirs.model_type} has no such key"
            raise InputError(what, fix=did_you_mean(key, {name for name in known if name[0] != "_"}))
    with told(config):
        theirs = _overridden(theirs, overrides) if config.name else auto.for_model(config.architecture, **overrides)
    vocabulary, pad = of(theirs, "vocab_size"), of(theirs, "pad_token_id")
    if isinstance(vocabulary, int) and isinstance(pad, int) and pad >= vocabulary:
        what = f"a {theirs.model_type} has its padding at pad_token_id {pad}, beyond its {vocabulary} tokens"
        raise InputError(what, fix=f"model.overrides: {{pad_token_id: 0}}, for example, or a vocab_size above {pad}")
    if "router_aux_loss_coef" in overrides and not of(theirs, "output_router_logits"):
        what = "model.overrides.router_aux_loss_coef has no effect: the balance of the experts is not asked for"
        raise InputError(what, fix="model.overrides.output_router_logits: true beside it")
    return theirs


def of(theirs: Any, key: str) -> Any:
    """A key of their config, or of the part of it that describes the text."""
    value = getattr(theirs, key, None)
    return getattr(theirs.get_text_config(), key, None) if value is None else value


def _reads(theirs: Any, key: str, how: str) -> bool:
    """Whether the code of the model reads a key, in one of the two ways."""
    if key.startswith("_") or not key.isidentifier() or callable(getattr(type(theirs), key, None)):
        return False
    if key in ROPE:
        return hasattr(theirs, "rope_parameters")
    kind: Any = type(theirs)
    return any(re.search(how.format(key), source) for source in _sources(kind))


@functools.cache
def _sources(kind: Any) -> list[str]:
    """The source of a config's class and of the networks that are made from it."""
    autos = [getattr(transformers(), name)._model_mapping for name in CLASSES.values()]
    models = [model for auto in autos if kind in auto for model in _several(auto[kind])]
    modules = {cls.__module__ for cls in (kind, *models)}
    return [inspect.getsource(sys.modules[name]) for name in sorted(modules)]


def _several(found: Any) -> Sequence[Any]:
    return found if isinstance(found, (tuple, list)) else (found,)


def _overridden(theirs: Any, overrides: dict[str, Any]) -> Any:
    """The config of a folder or the hub, changed. Raises InputError for what would have no effect."""
    for key, value in overrides.items():
        now: Any = getattr(theirs, key, None)
        if key in (*ROPE, "rope_parameters") and hasattr(theirs, "rope_parameters"):
            rope = theirs.rope_parameters or {}
            if rope and "rope_type" not in rope:  # one for each kind of layer
                fix = f"model.overrides.rope_parameters, whole: {rope}"
                if key != "rope_parameters":
                    raise InputError(f"model.overrides.{key}: each kind of layer has one of its own", fix=fix)
                rope = {}
            theirs.rope_parameters = {**rope, **(value if isinstance(value, dict) else {key: value})}
        elif isinstance(value, dict) and hasattr(now, "to_dict"):
            setattr(theirs, key, type(now)(**{**now.to_dict(), **value}))
        elif hasattr(theirs, key) or _reads(theirs, key, ASKED):
            setattr(theirs, key, value)
        else:
            what = f"model.overrides.{key} is an old name of a {theirs.model_type}'s key, read where a model is new"
            raise InputError(what, fix="the new name, as `distdl checkpoint convert` or transformers writes it")
    return theirs


# -- special tokens ----------------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """Tokens that are no text."""

    pad: int | None
    """None: rows have no padding."""
    pad_begins: bool
    """The token of padding also begins a text: the last one in front of it does."""
    pad_ends: bool
    """... and ends one: the first one behind it does."""
    mask: int
    marks: tuple[int, ...]
    """Never hidden."""

    def real(self, tokens: Tensor) -> Tensor:
        """(B, T) -> bool (B, T): what is not padding, which stands at the begin or the end of a row."""
        if self.pad is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        pad = (tokens == self.pad).int()
        before, behind = pad.cumprod(1).bool(), pad.flip(1).cumprod(1).flip(1).bool()
        none = torch.zeros_like(before[:, :1])
        if self.pad_begins:
            before = torch.cat([before[:, :-1] & before[:, 1:], none], 1)
        if self.pad_ends:
            behind = torch.cat([none, behind[:, 1:] & behind[:, :-1]], 1)
        return ~(before | behind)


def special_tokens(config: Any, theirs: Any) -> Tokens:
    """Those of the model: of its config, else of its tokenizer, else as the family's config says. Raises InputError where
    they contradict each other, or where nothing says them."""
    hides = config.task == "masked" and not config.labels
    pad = of(theirs, "pad_token_id")
    pad = pad if isinstance(pad, int) and pad >= 0 else None
    asks = config.name and (hides or pad is None) and config.pad != "none"
    tokenizer = _tokenizer(config.name) if asks else None
    if pad is None and tokenizer is not None:
        pad = tokenizer.pad_token_id
    if isinstance(config.pad, int):
        if pad is not None and pad != config.pad:
            what = f"model.pad is {config.pad}, and the padding of this {theirs.model_type} is the token {pad}"
            raise InputError(what, fix=f"leave model.pad out, or model.overrides.pad_token_id: {config.pad}")
        pad = config.pad
    pad = None if config.pad == "none" else pad
    mask, marks = _hiding(config, theirs, tokenizer) if hides else (0, ())
    vocabulary = of(theirs, "vocab_size")
    for name, token in [("pad", pad), ("mask", mask), *(("marks", mark) for mark in marks)]:
        if isinstance(vocabulary, int) and token is not None and token >= vocabulary:
            raise InputError(f"model.{name}: there is no token {token}", allowed=f"0 to {vocabulary - 1}")
    begins, ends = (pad is not None and pad in _several(of(theirs, f"{end}_token_id")) for end in ("bos", "eos"))
    return Tokens(pad, begins, ends, mask, marks)


def _hiding(config: Any, theirs: Any, tokenizer: Any) -> tuple[int, tuple[int, ...]]:
    """The token that hides, and those that are never hidden."""
    mask = tokenizer.mask_token_id if tokenizer is not None else None
    named = [of(theirs, f"{name}_token_id") for name in ("bos", "eos", "cls", "sep")]
    marks = {token for found in named for token in _several(found) if token is not None}
    if tokenizer is not None:
        marks |= set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if config.mask is not None:
        if mask not in (None, config.mask):
            what = f"model.mask is {config.mask}, and the mask of this {theirs.model_type} is the token {mask}"
            raise InputError(what, fix="leave model.mask out")
        mask = config.mask
    if config.marks is not None:
        if missing := sorted(marks - {mask} - {*config.marks} - {of(theirs, "pad_token_id")}):
            what = f"model.marks {list(config.marks)} would have special tokens of the model hidden: {missing}"
            raise InputError(what, fix="leave model.marks out, or name these, too")
        marks = {*config.marks}
    if mask is None or not (marks or config.marks is not None):
        unknown = "mask" if mask is None else "marks"
        what = f"model.{unknown}: neither the config of the {theirs.model_type} nor a tokenizer says it"
        fix = {"mask": "model.mask=103, for example: the token", "marks": "model.marks=[101, 102], for example: tokens"}
        words = {"mask": "that stands for a hidden one", "marks": "that are never hidden; [] for none"}
        raise InputError(what, fix=f"{fix[unknown]} {words[unknown]}")
    return mask, tuple(sorted(marks))


@functools.cache
def _tokenizer(name: str) -> Any:
    """The tokenizer beside a model, or None. Raises InputError where there is one that cannot be read."""
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER):
        return None
    try:
        return transformers().AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        if not folder.is_dir():  # the hub has none, or is not reached; the model itself says more
            return None
        what = f"model.name = {name!r}: its tokenizer cannot be read: {' '.join(str(error).split())[:300]}"
        raise InputError(what, fix="model.pad: none, where rows have no padding; or mend the folder") from error


# -- documents that share a row ----------------------------------------------------------------------------------------


def borders(model: nn.Module, theirs: Any) -> Callable[[Tensor], dict[str, Tensor]] | None:
    """Documents (B, T) -> what the model is told so that those of one row do not see each other; None where it cannot
    compute yet.

    Positions that begin again are enough for most: their library sees the borders in them, and keeps the windows of a
    model's attention. Others need a mask, which would take the place of such windows. Which it is, a row of two short
    documents shows: either must be as if it were alone. Raises InputError where it never is, such as for a recurrence.
    """
    if next(model.parameters()).is_meta:
        return _positions
    size = theirs.get_text_config().vocab_size
    first, second = (torch.arange(n)[None] * 7 % size for n in (5, 6))
    documents = torch.tensor([[1] * 5 + [2] * 6])
    row, was = torch.cat([first, second], 1), model.training
    model.eval()

    def logits(**inputs: Tensor) -> Tensor:
        return cast("Any", model)(**inputs, use_cache=False).logits.float()

    with torch.no_grad():
        alone = torch.cat([logits(input_ids=first), logits(input_ids=second)], 1)
        leak = (logits(input_ids=row) - alone).abs().max()
        windows = any(isinstance(of(theirs, key), int) for key in ("sliding_window", "window_size", "attention_window"))
        for how in (_positions,) if windows else (_positions, _positions_and_mask):
            try:
                apart = (logits(input_ids=row, **how(documents)) - alone).abs().max()
            except (TypeError, ValueError, RuntimeError):
                continue
            if apart < 0.01 * leak:
                model.train(was)
                return how
    what = f"model.documents: a {theirs.model_type} cannot be told where a document in a row begins"
    raise InputError(
        what, fix="prepare the data with packing=none, a row for each document, and leave model.documents out"
    )


def _positions(documents: Tensor) -> dict[str, Tensor]:
    return {"position_ids": places_within(begins_of(documents))}


def _positions_and_mask(documents: Tensor) -> dict[str, Tensor]:
    numbers = begins_of(documents).cumsum(1)
    mask = (numbers[:, :, None] == numbers[:, None, :]).tril()  # (B, T, T)
    return {**_positions(documents), "attention_mask": mask[:, None]}


# -- what a model is used with -----------------------------------------------------------------------------------------


def copy_companions(name: str, target: Path) -> None:
    """Copies tokenizer, chat template and generation settings of a folder or hub model, byte by byte. Nothing else."""
    for file in COMPANIONS:
        found = transformers().utils.cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found:
            shutil.copyfile(found, target / file)


# -- the balance of a mixture's experts --------------------------------------------------------------------------------


class Balance:
    """The loss that keeps a mixture's experts in equal use, as their library computes it, where the model's config asks
    for it (`output_router_logits`): over the tokens of the micro-batches that all ranks take at a time."""

    def __init__(self, model: nn.Module, theirs: Any) -> None:
        self.module: Any = sys.modules[type(model).__module__]
        coefficients = [of(theirs, key) for key in ("router_aux_loss_coef", "aux_loss_coef")]
        weight = next((float(value) for value in coefficients if isinstance(value, (int, float))), None)
        if weight is None or not hasattr(self.module, "load_balancing_loss_func") or theirs.is_encoder_decoder:
            what = f"output_router_logits: the balance loss of a {theirs.model_type} is not known here"
            raise InputError(what, fix="model.overrides.output_router_logits: false, and it trains without")
        self.weight = weight

    @contextlib.contextmanager
    def over_ranks(self) -> Iterator[None]:
        """While it is entered, their function sees the routers' scores of all ranks' tokens."""
        whole = self.module.load_balancing_loss_func

        def function(gate_logits: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(gate_logits, tuple):
                return whole(gate_logits, *args, **kwargs)
            args = tuple(gathered(a) if isinstance(a, Tensor) else a for a in args)  # the attention mask
            kwargs = {name: gathered(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}
            return whole(tuple(gathered(scores) for scores in gate_logits), *args, **kwargs)

        self.module.load_balancing_loss_func = function
        try:
            yield
        finally:
            self.module.load_balancing_loss_func = whole
