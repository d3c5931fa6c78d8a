"""Zhong, Liu & Liu 2011: a network begun by a projection and learning without labels, where labels are few.

The protocol of `dbn`: the projection and the fine-tuning see the same 1,000 labels. The numbers of steps were chosen on
other seeds than the one of this case. What is gained is gained without labels: with `gather_steps: 0`, no projection, the
accuracy is 0.896, no less, and after half the `pretrain_steps` it is the projection that lies behind by a point."""

from benchmarks.acceptance import Bench, Case

LAYERS, GATHER_STEPS, PRETRAIN_STEPS, FINE_TUNE_STEPS = 3, 120, 720, 2000


def accuracy(bench: Bench, pretrain_steps: int) -> float:
    """784-576-441-361-10 on 60,000 pictures, of which 1,000 have labels; fine-tuning is as long from random weights."""
    before = GATHER_STEPS + LAYERS * pretrain_steps if pretrain_steps else 0
    model = f"family: bilinear_dbn, label_every: 60, gather_steps: {GATHER_STEPS}, pretrain_steps: {pretrain_steps}"
    run = bench.train(
        "bilinear_dbn",
        f"name=bilinear_dbn-mnist-{pretrain_steps}",
        f"data.path={bench.mnist()}",
        f"model={{{model}}}",
        "train.global_batch=500",
        f"train.steps={before + FINE_TUNE_STEPS}",
        "optimizer={name: adam, lr: 1e-3}",
        "schedule={name: cosine}",
        "evaluate={every_steps: 0, batch: 1000}",
    )
    return run.metrics["accuracy"]


def gain(bench: Bench) -> float:
    pretrained, scratch = accuracy(bench, PRETRAIN_STEPS), accuracy(bench, 0)
    print(f"bilinear_dbn: accuracy {pretrained:.4f} after pre-training, {scratch:.4f} from random weights", flush=True)
    return pretrained - scratch


CASES = [
    Case(
        "bilinear_dbn",
        "MNIST, 1,000 labels",
        "test accuracy after the projection and pre-training on 60,000 pictures, less from random weights",
        0.02,
        "higher",
        gain,
    ),
]
