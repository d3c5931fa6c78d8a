"""Every family's answer is a graph that answers as it does, or it is said why not (`benchmarks/export.py`: all formats)."""

from __future__ import annotations

from pathlib import Path

import pytest

from distdl.config.family import family_names
from distdl.errors import InputError
from distdl.export import check, graph, torch_export
from tests.families.test_answers import ONLY_GENERATE, question

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
