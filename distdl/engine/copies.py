"""Batches on their way to a GPU, on a stream of their own: the next one travels while the present one is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distdl.learner import Batch


class BatchCopies:
    """One batch ahead. Copies from pinned memory (`data/source.py` gathers into it) neither stop the host nor the GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self._sent: dict[int, tuple[Tensor, Tensor]] = {}
        """id of a tensor of the next batch -> it, and where it travels to."""
        self._arrived: Any = None

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        """Starts the copies of a batch that will be asked for next."""
        if self._sent.keys() == {id(tensor) for tensor in batch.values()}:
            return
        with torch.cuda.stream(self.stream):
            self._sent = {id(t): (t, t.to(self.device, non_blocking=True)) for t in batch.values()}
            self._arrived = self.stream.record_event()

    def of(self, batch: Mapping[str, Tensor]) -> Batch:
        """The batch on the device; what has not set off yet does now. The host waits for nothing: the GPU does."""
        sent: dict[int, tuple[Tensor, Tensor]] = {}
        if not self._sent.keys().isdisjoint(map(id, batch.values())):
            sent, self._sent = self._sent, {}
            torch.cuda.current_stream(self.device).wait_event(self._arrived)
        found: dict[str, Tensor] = {}
        for name, tensor in batch.items():
            if there := sent.get(id(tensor)):
                # Its memory is not given away before this stream is done with it.
                there[1].record_stream(torch.cuda.current_stream(self.device))
                found[name] = there[1]
            else:
                found[name] = tensor.to(self.device, non_blocking=True)
        return found
