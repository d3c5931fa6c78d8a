"""The characters of Shakespeare (Karpathy's char-rnn, 1,115,394 bytes), of which the last tenth is held out."""

from pathlib import Path

from benchmarks.acceptance import Bench


def shakespeare(bench: Bench, context: int) -> str:
    """The path of the data set, `tokens` of `context` + 1 bytes."""
    text = Path(bench.raw("tinyshakespeare/input.txt")).read_bytes()
    cut = len(text) * 9 // 10
    train, test = bench.scratch / "shakespeare-train.txt", bench.scratch / "shakespeare-test.txt"
    train.write_bytes(text[:cut])
    test.write_bytes(text[cut:])
    return bench.data(f"shakespeare{context}", "text", path=str(train), test_path=str(test), context=context)
