"""Shakespeare byte by byte: a bound between two layers of 96 units with 8 states after 190 steps of an independent
implementation (1.99) and the pairs of letters alone (2.5)."""

from benchmarks.acceptance import Bench, Case
from benchmarks.acceptance.shakespeare import shakespeare


def text(bench: Bench) -> float:
    overrides = ("train.steps=300", "schedule.warmup_steps=30", "evaluate.every_steps=0", "evaluate.batch=256")
    data = f"data.path={shakespeare(bench, 64)}"
    return bench.train("mamba", "parallel={engine: torch}", data, *overrides).metrics["loss"]


CASES = [Case("mamba", "tiny Shakespeare", "held-out nats per character after 300 steps", 2.3, "lower", text)]
