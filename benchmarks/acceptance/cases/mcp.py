"""McCulloch & Pitts 1943: logic, exactly."""

from benchmarks.acceptance import Bench, Case

NETS = ("and", "or", "not", "xor", "half_adder")


def truth_tables(bench: Bench) -> float:
    """The worst of the gallery."""
    data = {n: bench.data(f"truth_table{n}", "synthetic", task="truth_table", length=n) for n in (1, 2)}
    return min(
        bench.train("mcp", f"data.path={data[1 if net == 'not' else 2]}", f"model.net={net}").metrics["accuracy"]
        for net in NETS
    )


CASES = [Case("mcp", "truth tables", "rows right, worst of and, or, not, xor, half adder", 1.0, "higher", truth_tables)]
