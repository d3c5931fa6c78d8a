"""What importing DeepSpeed is made to do."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from distdl.engine.deepspeed_import import import_deepspeed


def test_no_step_starts_a_process_to_count_the_parts_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 asks for the number of devices in every step, which on a CPU is what `numactl` says."""
    deepspeed = import_deepspeed("cpu")
    from deepspeed.accelerator import get_accelerator

    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    first = get_accelerator().device_count()

    def started(*command: Any, **options: Any) -> None:
        raise AssertionError(f"{command} was started")

    monkeypatch.setattr(subprocess, "check_output", started)
    assert get_accelerator().device_count() == first >= 1 and deepspeed
