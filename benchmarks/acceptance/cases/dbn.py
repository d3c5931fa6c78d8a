"""Hinton, Osindero & Teh 2006: learning without labels first helps most where labels are few."""

from benchmarks.acceptance import Bench, Case

LAYERS, PRETRAIN_STEPS, FINE_TUNE_STEPS = 3, 360, 2000


def accuracy(bench: Bench, pretrain_steps: int) -> float:
    """784-500-500-2000-10 on 60,000 pictures, of which 1,000 have labels; the schedule of fine-tuning is the same."""
    run = bench.train(
        "dbn",
        f"name=dbn-mnist-{pretrain_steps}",
        f"data.path={bench.mnist()}",
        f"model={{family: dbn, label_every: 60, pretrain_steps: {pretrain_steps}}}",
        "train.global_batch=500",
        f"train.steps={LAYERS * pretrain_steps + FINE_TUNE_STEPS}",
        "optimizer={name: adam, lr: 1e-3}",
        "schedule={name: cosine}",
        "evaluate={every_steps: 0, batch: 1000}",
    )
    return run.metrics["accuracy"]


def gain(bench: Bench) -> float:
    pretrained, scratch = accuracy(bench, PRETRAIN_STEPS), accuracy(bench, 0)
    print(f"dbn: accuracy {pretrained:.4f} after pre-training, {scratch:.4f} from random weights", flush=True)
    return pretrained - scratch


CASES = [
    Case(
        "dbn",
        "MNIST, 1,000 labels",
        "test accuracy after pre-training on 60,000 pictures, less from random weights",
        0.02,
        "higher",
        gain,
    ),
]
