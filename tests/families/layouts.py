"""Shows some families equal on every layout that they name, and bit-exact after a resume, without waiting for all:

python -m tests.families.layouts som gan
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest import mock

from tests import small
from tests.checkpoint import test_resume
from tests.parity import test_parity


def main(families: list[str]) -> None:
    chosen = {name: small.MODELS[name] for name in families}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(test_resume, "MODELS", chosen):
        data = Path(folder) / "data"
        cases = {name: small.contract_config(name, data) for name in chosen}
        reference = small.measured(1, cases)[0]
        for name, values in cases.items():
            for case, laid in test_parity.laid_out({name: values}, 2, accumulate=2).items():
                try:
                    test_parity.compare(reference, small.measured(2, {case: laid}))
                    print(f"{case}: equal on 2 ranks", flush=True)
                except AssertionError as error:
                    print(f"{case}: NOT equal: {str(error)[-3000:]}", flush=True)
        runs = test_resume.family_runs(data)
        test_resume.interrupt_and_compare(runs, Path(folder) / "runs")
        print(f"{', '.join(runs)}: bit-identical after a resume")


if __name__ == "__main__":
    main(sys.argv[1:])
