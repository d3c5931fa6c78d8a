"""What a model does without to save memory, or has done to it to save time; none of it changes the numbers.

checkpoint_activations   a layer keeps its input only, and is run again in the backward pass (Chen et al. 2016)
loss_chunk_tokens        the logits of a language model exist for some tokens at a time
compile                  each layer is compiled by torch.compile
fp8                      matrix products of linear layers in 8 bits (Micikevicius et al. 2022), by torchao
"""

from __future__ import annotations

from torch import nn

from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.learner import Learner

FP8_MULTIPLE = 16
"""Both sides of an 8-bit matrix product are multiples of this, or the layer stays as it is."""


def save_memory(learner: Learner, config: Config) -> None:
    """Sets up recomputation, chunked loss, 8-bit layers and compilation as the config asks, in place."""
    recompute = config.parallel.checkpoint_activations
    learner.recompute_every = {"none": 0, "all": 1}.get(recompute, 0) if isinstance(recompute, str) else recompute
    learner.loss_chunk_tokens = config.parallel.loss_chunk_tokens
    if config.train.precision == "fp8":
        _eight_bits(learner)
    if config.train.compile:
        for layer in learner.layers():
            for module in layer.modules:
                if module is layer.run:  # a block whose call is the layer
                    nn.Module.compile(module)


def _eight_bits(learner: nn.Module) -> None:
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError:
        raise InputError("train.precision is fp8 and torchao is not installed", fix="pip install torchao") from None

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and all(side % FP8_MULTIPLE == 0 for side in module.weight.shape)

    convert_to_float8_training(learner, module_filter_fn=fits)
