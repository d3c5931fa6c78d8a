"""What a model does without to save memory: the numbers stay the same up to rounding.

checkpoint_activations   a layer keeps its input only, and is run again in the backward pass (Chen et al. 2016)
loss_chunk_tokens        the logits of a language model exist for some tokens at a time
"""

from __future__ import annotations

from distdl.config.schema import Config
from distdl.learner import Learner


def save_memory(learner: Learner, config: Config) -> None:
    """Sets up recomputation and chunked loss as the config asks, in place."""
    recompute = config.parallel.checkpoint_activations
    every = {"none": 0, "all": 1}.get(recompute, 0) if isinstance(recompute, str) else recompute
    learner.save_memory(recompute_every=every, loss_chunk_tokens=config.parallel.loss_chunk_tokens)
