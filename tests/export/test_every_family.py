"""Every family's answer is a graph that answers as it does, or it is said why not (`benchmarks/export.py`: all formats)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.export import RESULTS, markdown
from distdl.config.family import family_names
from distdl.errors import InputError
from distdl.export import check, graph, torch_export
from distdl.export.export import TARGETS
from tests.families.common import made
from tests.families.test_answers import ONLY_GENERATE, question
from tests.small import MODELS

NO_GRAPH = {
    "cvg": "a chart of parses grows as long as the sentence",
    "deep_speech": "a beam search keeps other strings for each row",
}
ANY_LENGTH = {
    "dnn_am",
    "elman",
    "esn",
    "frn",
    "gpt",
    "huggingface",
    "lstm",
    "mamba",
    "rae",
    "recnn",
    "rnn2",
    "word2vec",
}
"""Families whose small config reads rows of any length: those of other recurrent ones are pictures."""


def test_the_table_has_every_family_in_every_format() -> None:
    """Measured on a run, or refused for a reason; classes and tokens are the same."""
    rows = json.loads((RESULTS / "export.json").read_text())
    assert sorted(rows) == sorted(family_names())
    assert markdown(rows) == (RESULTS / "export.md").read_text(encoding="utf-8")
    refused = {}
    for family, row in rows.items():
        for to in TARGETS:
            if "why" in row[to]:
                refused.setdefault(family, set()).add(to)
                assert to == "huggingface" or len(row[to]["why"]) > 20
            else:
                assert row[to]["largest"] <= check.TOLERANCE["fp32"] and row[to]["others"] == 0, (family, to)
    refused = {family: formats - {"huggingface"} for family, formats in refused.items() if formats != {"huggingface"}}
    graphs = {"torch-export", "onnx"}
    assert refused == dict.fromkeys(NO_GRAPH, graphs) | dict.fromkeys(ONLY_GENERATE, graphs | {"mlflow"})


def test_what_hears_by_the_best_path_has_a_graph(small_data: Path) -> None:
    """As the refusal of a beam search says."""
    learner, rows = question("deep_speech", small_data)
    assert learner.no_graph.endswith("model.beam: 0 hears by the best path")
    asked = learner.asked(learner.config)
    other = made({**MODELS["deep_speech"], "beam": 0})
    free = [name for name, column in asked.items() if None in column.shape]
    found = graph.traced(other, check.example(rows, free), asked)
    assert {shape[0] for shape in found.inputs.values()} == {"batch"}


@pytest.mark.slow
@pytest.mark.parametrize("family", family_names())
def test_the_graph_of_a_family(family: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.families.test_answers.ROWS", 4)
    learner, rows = question(family, small_data)
    if family in ONLY_GENERATE:
        assert learner.tells(learner.config) == {}
        return
    asked = learner.asked(learner.config)
    free = [name for name, column in asked.items() if None in column.shape]
    if family in NO_GRAPH:
        with pytest.raises(InputError, match=NO_GRAPH[family]):
            graph.traced(learner, check.example(rows, free), asked)
        return
    found = graph.traced(learner, check.example(rows, free), asked)
    assert set(found.lengths) == set(free) and bool(free) == (family in ANY_LENGTH)
    torch_export.write(tmp_path, found, {})
    run = torch_export.asked(tmp_path, list(asked))
    difference = check.compared(run, learner, rows, found.lengths, "fp32", (found.inputs, found.outputs))
    assert difference.others == 0 and set(difference.batches) == {1, 2, 3, 4}
