"""The order of classes."""

from __future__ import annotations

import pytest

from distdl.data.classes import in_order, same_numbers


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["10.0", "0.0", "2.0", "1.0"], ["0.0", "1.0", "2.0", "10.0"]),
        (["0", "-1.5", "-10"], ["-10", "-1.5", "0"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        (["nan", "2", "10"], ["10", "2", "nan"]),  # the name of a class, not a number
        (["1e400", "2", "10"], ["10", "1e400", "2"]),
        (["1.0", "01", "1"], ["01", "1", "1.0"]),
    ],
)
def test_numbers_stand_as_numbers_and_all_else_as_text(names: list[str], expected: list[str]) -> None:
    assert in_order(names) == in_order(reversed(names)) == expected


def test_one_number_in_several_writings_is_noticed() -> None:
    assert same_numbers(["1.0", "01", "2", "1", "a", "nan", "inf"]) == [["01", "1", "1.0"]]
    assert same_numbers(["1", "2"]) == []
