"""How far a step's gradient in bf16 is from that in fp32, on every layout. See README.md.

    python -m benchmarks.gradient_error [--output benchmarks/results/gradient_error.md]

The errors that `tests/engine/test_gradient_error.py` looks at, as a table. Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from distdl.data.prepare import prepare_dataset
from tests.engine.test_gradient_error import MICRO_BATCHES, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="benchmarks/results/gradient_error.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare_dataset("stdlib", Path(folder) / "text", {"max_bytes": "40000", "context": "16"})
        found = errors(str(Path(folder) / "text"))
    what = (
        "the small GPT on two CPUs, one sample a micro-batch: |g - f| / |f| of a step's gradient g and that in fp32, f"
    )
    lines = [
        f"# Gradients in bf16\n\n`python -m benchmarks.gradient_error`: {what}.\nPlain autocast: a loop in one process.\n",
        "| micro-batches | " + " | ".join(map(str, MICRO_BATCHES)) + " |",
        "| --- |" + " ---: |" * len(MICRO_BATCHES),
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{100 * of[n]:.2f} %" for n in MICRO_BATCHES) + " |" for name, of in found.items()
    ]
    table = "\n".join(lines) + "\n"
    Path(args.output).write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
