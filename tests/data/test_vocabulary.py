"""Sentences as numbers of words, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distdl.data.asking.texts import UNKNOWN_WORDS, Sentences, of_texts
from distdl.data.preparation import undo
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.vocabulary import MARKS, record_of, sentence, tokens, words_in

RECORD = record_of([*MARKS, "the", "cat", "sat", "."], 6, begin=False)
NUMBERS = {word: i for i, word in enumerate(RECORD["words"])}


def test_a_sentence_comes_back_as_its_words() -> None:
    row = tokens(words_in("The cat sat."), NUMBERS, 6, begin=False)
    assert row == [4, 5, 6, 7, 3, 0] and sentence(RECORD, row) == "the cat sat ."
    assert sentence(RECORD, [2, 4, 1, 3, 0, 0, -1]) == "the <unknown>" and sentence(RECORD, [9]) == "9"
    assert undo(RECORD, np.array([row, [4, 3, 0, 0, 0, 0]])) == ["the cat sat .", "the"]


def test_sentences_are_asked_about_as_they_were_learned_from() -> None:
    texts = [("a:1", "The cat sat."), ("a:2", " "), ("a:3", "The dog sat, the cat sat")]
    (question,) = of_texts(Sentences("source", RECORD), texts)
    assert question.rows["source"].tolist() == [[4, 5, 6, 7, 3, 0], [4, 1, 6, 1, 4, 3]]
    assert question.real.tolist() == [True, False, True] and question.bad[0].where == "a:2"
    assert question.notes == {UNKNOWN_WORDS: 2, "sentences are longer than 5 words and are cut": 1}


def test_a_data_set_of_translations_says_its_words(tmp_path: Path) -> None:
    sides = {"source": ["Der Hund .", "Die Katze ."], "target": ["The dog.", "The cat."]}
    for name, lines in sides.items():
        (tmp_path / name).write_text("\n".join(lines * 20))
    paths = {"path": str(tmp_path / "source"), "target_path": str(tmp_path / "target")}
    manifest = prepare_dataset("translation", str(tmp_path / "d"), {**paths, "test_fraction": "0.1"})
    rows = Dataset(str(tmp_path / "d"), "train").gather(np.arange(10))
    for name, lines in sides.items():
        found = undo(manifest.preparation[name], rows[name])
        assert set(found) <= {" ".join(words_in(line)) for line in lines}
    assert manifest.preparation["target"]["begin"] and not manifest.preparation["source"]["begin"]
