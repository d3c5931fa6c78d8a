"""Shakespeare byte by byte with transformers' GPT-2, as small and trained as the family gpt is, and asked for as much."""

from benchmarks.acceptance import Bench, Case
from benchmarks.acceptance.shakespeare import shakespeare

SIZES = "vocab_size: 256, n_positions: 64, n_embd: 128, n_layer: 4, n_head: 4"
DROPOUTS = "resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0"


def text(bench: Bench) -> float:
    model = ("model.architecture=gpt2", f"model.overrides={{{SIZES}, {DROPOUTS}}}")
    train = ("train.global_batch=12", "train.micro_batch=12", "train.steps=2000", "optimizer.lr=2e-3")
    schedule = (
        "optimizer.betas=[0.9, 0.99]",
        "schedule.warmup_steps=100",
        "evaluate.every_steps=0",
        "evaluate.batch=256",
    )
    data = f"data.path={shakespeare(bench, 64)}"
    return bench.train("huggingface", "parallel={engine: torch}", data, *model, *train, *schedule).metrics["loss"]


CASES = [Case("huggingface", "tiny Shakespeare", "held-out nats per character after 2,000 steps", 1.90, "lower", text)]
