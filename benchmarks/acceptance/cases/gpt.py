"""Shakespeare byte by byte with nanoGPT's model for a CPU (1.88): 4 layers, 4 heads, width 128, context 64, batch 12."""

from benchmarks.acceptance import Bench, Case
from benchmarks.acceptance.shakespeare import shakespeare
from benchmarks.acceptance.walks import walk_figure


def text(bench: Bench) -> float:
    model = ("model.layers=4", "model.heads=4", "model.width=128", "model.context=64", "model.dropout=0.0")
    train = ("train.global_batch=12", "train.micro_batch=12", "train.steps=2000", "optimizer.lr=2e-3")
    schedule = (
        "optimizer.betas=[0.9, 0.99]",
        "schedule.warmup_steps=100",
        "evaluate.every_steps=0",
        "evaluate.batch=256",
    )
    return bench.train(
        "gpt", "parallel={engine: torch}", f"data.path={shakespeare(bench, 64)}", *model, *train, *schedule
    ).metrics["loss"]


CASES = [
    Case("gpt", "tiny Shakespeare", "held-out nats per character after 2,000 steps", 1.90, "lower", text),
    Case("gpt", "tiny Shakespeare", "test nats per byte of the walk: text", 2.2, "lower", walk_figure("A text")),
]
