"""Spoken digits: 3,000 recordings of six speakers (FSDD); takes 0 to 4 of each digit are the official test."""

from benchmarks.acceptance import Bench, Case


def accuracy(bench: Bench, config: str, *overrides: str) -> float:
    data = bench.data("fsdd-80", "speech", path=bench.raw("fsdd/recordings.zip"), frames=80)
    told = (f"data.path={data}", "data.prepare=null", "evaluate={every_steps: 0, batch: 100}")
    return bench.train(config, *told, *overrides).metrics["accuracy"]


def dnn(bench: Bench) -> float:
    return accuracy(bench, "dnn_am", "train.epochs=5")


def cnn(bench: Bench) -> float:
    return accuracy(bench, "dnn_am_cnn", "train.epochs=6", "optimizer.lr=2e-3")


def dbn_hmm(bench: Bench) -> float:
    return accuracy(bench, "dnn_hmm", "model.pretrain_steps=60", "model.flat_steps=100", "train.steps=940")


FSDD = "FSDD, spoken digits, official test"
CASES = [
    Case("dnn_am", FSDD, "word accuracy, rectified DNN with dropout, 5 epochs", 0.90, "higher", dnn),
    Case("dnn_am", FSDD, "word accuracy, CNN with limited weight sharing, HMM, 6 epochs", 0.95, "higher", cnn),
    Case("dnn_am", FSDD, "word accuracy, pre-trained DBN-HMM, 940 steps", 0.90, "higher", dbn_hmm),
]
