"""LeCun et al. 1998: 12.0 % test error of a linear classifier and 3.05-4.7 % of two- and three-layer nets on MNIST.

The small tables come with scikit-learn, whose own MLPs of the same sizes reach 0.974, 0.983 and R^2 0.483 there.
"""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Bench, Case
from benchmarks.acceptance.walks import walk_figure


def mnist(bench: Bench) -> float:
    return bench.train(
        "mlp",
        f"data.path={bench.mnist()}",
        "model.inputs=[1, 28, 28]",
        "model.hidden=[512, 512]",
        "model.dropout=0.2",
        "train.global_batch=128",
        "train.epochs=4",
        "optimizer={name: adam, lr: 1e-3}",
        "schedule={name: linear, warmup_steps: 50}",
        "evaluate.every_steps=0",
    ).metrics["accuracy"]


def softmax(bench: Bench) -> float:
    return bench.train(
        "softmax",
        f"data.path={bench.mnist()}",
        "model.inputs=[1, 28, 28]",
        "train.global_batch=128",
        "train.epochs=5",
        "optimizer.lr=2e-3",
        "evaluate.every_steps=0",
    ).metrics["accuracy"]


def table(bench: Bench, name: str, *overrides: str) -> list[dict[str, float]]:
    """Five runs on a table of scikit-learn's, each with another fifth held out and scaled by what the others say."""
    from sklearn import datasets
    from sklearn.model_selection import KFold

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    role = "target" if name == "diabetes" else "label"
    evaluations = []
    for fold, parts in enumerate(KFold(5, shuffle=True, random_state=0).split(x)):
        known = parts[0]
        columns = (x - x[known].mean(0)) / x[known].std(0)
        wanted = (y - y[known].mean()) / y[known].std() if role == "target" else y
        paths = [bench.scratch / f"{name}-{fold}-{split}.csv" for split in ("train", "test")]
        for path, rows in zip(paths, parts):
            header = ",".join([*(f"x{i}" for i in range(x.shape[1])), "wanted"])
            values = np.column_stack([columns, wanted])[rows]
            np.savetxt(path, values, "%.9g", ",", header=header, comments="")
        options = {"path": str(paths[0]), "test_path": str(paths[1]), role: "wanted"}
        shape = [f"data.path={bench.data(f'{name}-{fold}', 'csv', **options)}", f"model.inputs=[{x.shape[1]}]"]
        plain = ["model.column=x", "model.dropout=0", "train.global_batch=32", "evaluate.every_steps=0"]
        evaluations.append(bench.train("mlp", *shape, *plain, *overrides).metrics)
        evaluations[-1]["variance"] = float(wanted[parts[1]].var())
    return evaluations


def breast_cancer(bench: Bench) -> float:
    done = table(bench, "breast_cancer", "model.hidden=[100]", "model.classes=2", "train.epochs=30")
    return float(np.mean([fold["accuracy"] for fold in done]))


def wine(bench: Bench) -> float:
    done = table(bench, "wine", "model.hidden=[100]", "model.classes=3", "train.epochs=60")
    return float(np.mean([fold["accuracy"] for fold in done]))


def diabetes(bench: Bench) -> float:
    """R^2 = 1 - squared error / variance."""
    done = table(bench, "diabetes", "model.hidden=[32]", "model.target=value", "train.epochs=30")
    return float(np.mean([1 - fold["loss"] / fold["variance"] for fold in done]))


CASES = [
    Case("mlp", "MNIST", "test accuracy of 784-512-512-10 after 4 epochs", 0.975, "higher", mnist),
    Case("mlp", "MNIST", "test accuracy of softmax regression after 5 epochs", 0.915, "higher", softmax),
    Case("mlp", "breast cancer (569)", "accuracy of 30-100-2, five-fold", 0.96, "higher", breast_cancer),
    Case("mlp", "wine (178)", "accuracy of 13-100-3, five-fold", 0.96, "higher", wine),
    Case(
        "mlp",
        "adult",
        "test accuracy of the walk: adult",
        0.861,
        "higher",
        walk_figure("A table of mixed columns"),
    ),
    Case(
        "mlp",
        "tox21",
        "test area under ROC of the walk: tox21",
        0.93,
        "higher",
        walk_figure("Assays of molecules"),
    ),
    Case("mlp", "diabetes (442)", "R^2 of 10-32-1, five-fold", 0.43, "higher", diabetes),
]
