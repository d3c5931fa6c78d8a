"""MNIST row by row from both ends; and BLSTM-CTC (Graves et al. 2009) on strips of MNIST digits."""

from benchmarks.acceptance import Bench, Case

ROWS = ("model.inputs=28", "model.steps=28", "model.units=128", "train.epochs=3", "optimizer.lr=1e-3")
STRIPS = ("model.inputs=28", "model.steps=112", "model.frame=2", "model.units=100")


def mnist(bench: Bench) -> float:
    data = (f"data.path={bench.mnist()}", "evaluate.every_steps=0")
    return bench.train("birnn", *data, *ROWS).metrics["accuracy"]


def strings(bench: Bench) -> float:
    path = bench.data("mnist-strings", "digit_strings", path=bench.raw("mnist"))
    data = (f"data.path={path}", "evaluate.every_steps=0", "evaluate.batch=250")
    length = ("train.epochs=2", "optimizer.lr=4e-3")
    return bench.train("birnn_ctc", *data, *STRIPS, *length).metrics["label_error"]


CASES = [
    Case("birnn", "MNIST, 28 rows of 28 pixels", "test accuracy after 3 epochs, LSTM cells", 0.94, "higher", mnist),
    Case("birnn", "strings of 1 to 4 MNIST digits", "digit error rate after 2 epochs, CTC", 0.08, "lower", strings),
]
