"""What is drawn for a trial: from the distribution that the space names, and by seed and number alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from distdl.config.search import Search, Space
from distdl.tune.record import Trial
from distdl.tune.samplers import sampler
from distdl.tune.space import drawn, grid, moved

DRAWS = 4000


def draws(**space: object) -> list:
    spaces = {"key": Space(**space)}
    return [drawn(spaces, 0, number)["key"] for number in range(1, DRAWS + 1)]


def test_uniform_numbers_are_uniform() -> None:
    assert stats.kstest(draws(uniform=[2.0, 5.0]), stats.uniform(2, 3).cdf).pvalue > 0.01


def test_log_uniform_numbers_are_uniform_in_their_logarithm() -> None:
    found = np.log(draws(log_uniform=[1e-4, 1e-1]))
    assert stats.kstest(found, stats.uniform(math.log(1e-4), math.log(1e3)).cdf).pvalue > 0.01
    assert math.exp(found.min()) >= 1e-4 and math.exp(found.max()) <= 1e-1 * (1 + 1e-12)


def test_whole_numbers_reach_both_ends_alike() -> None:
    found = draws(integer=[3, 6])
    assert stats.chisquare([found.count(n) for n in (3, 4, 5, 6)]).pvalue > 0.01 and len(found) == DRAWS
    assert all(type(n) is int for n in found)


def test_log_whole_numbers_have_the_share_of_their_neighbourhood() -> None:
    found, ends = draws(log_integer=[1, 50]), (0.5, 50.5)
    shares = [math.log((n + 0.5) / (n - 0.5)) / math.log(ends[1] / ends[0]) for n in range(1, 51)]
    counts = [found.count(n) for n in range(1, 51)]
    assert sum(counts) == DRAWS  # nothing is drawn that lies outside
    assert stats.chisquare(counts, [share * DRAWS for share in shares]).pvalue > 0.01


def test_choices_are_drawn_alike() -> None:
    found = draws(choice=[[32], [64, 64], "both"])
    assert stats.chisquare([found.count(value) for value in ([32], [64, 64], "both")]).pvalue > 0.01


def test_numbers_are_as_short_as_a_person_reads() -> None:
    assert all(float(f"{value:.6g}") == value for value in draws(log_uniform=[1e-4, 1e-1]))


SPACES = {
    "a": Space(log_uniform=[1e-4, 1e-1]),
    "b": Space(integer=[1, 9]),
    "c": Space(choice=["x", [1, 2]]),
}


def test_a_trial_is_drawn_by_seed_and_number_alone() -> None:
    assert drawn(SPACES, 7, 3) == drawn(SPACES, 7, 3)
    assert drawn(SPACES, 7, 3) != drawn(SPACES, 7, 4) and drawn(SPACES, 7, 3) != drawn(SPACES, 8, 3)
    without = {key: SPACES[key] for key in ("c", "a")}  # a key more or less, or another order, moves no other
    assert drawn(without, 7, 3) == {key: drawn(SPACES, 7, 3)[key] for key in ("c", "a")}


def test_a_grid_has_every_point_once() -> None:
    points = grid({"a": Space(grid=[1, 2]), "b": Space(choice=["x", "y", "z"])})
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y", "z")]


@pytest.mark.parametrize("algorithm", ["grid", "random", "tpe"])
def test_the_same_seed_gives_the_same_trials(algorithm: str) -> None:
    """Of TPE, too, where the same has been found before: and where the search goes on after a crash."""
    kind = "grid" if algorithm == "grid" else "choice"
    space = {"a": Space(**{kind: [1, 2, 3, 4]}), "b": Space(**{kind: list("uvwxyz")})}
    if algorithm != "grid":
        space["c"] = Space(log_uniform=[1e-4, 1e-1])
    search = Search(space=space, algorithm=algorithm, trials=None if algorithm == "grid" else 16)

    def trials(seed: int) -> list[dict]:
        found: list[Trial] = []
        for number in range(1, search.count() + 1):
            values = sampler(search, seed, "lower")(number, found)  # made anew each time, as after a crash
            cost = values["a"] + "uvwxyz".index(values["b"]) + values.get("c", 0.0)
            found.append(Trial(number, "t", values, "finished", 10, cost, [(10, cost)]))
        return [trial.values for trial in found]

    first = trials(1)
    assert first == trials(1)
    assert algorithm == "grid" or first != trials(2)
    assert algorithm != "grid" or len(first) == 24


def test_parzen_goes_where_it_was_good() -> None:
    """It is worth its library: it comes nearer to the best of a bowl than random draws do."""
    space = {"lr": Space(log_uniform=[1e-5, 1.0]), "width": Space(integer=[1, 100])}

    def cost(values: dict) -> float:
        return (math.log10(values["lr"]) + 2) ** 2 + ((values["width"] - 30) / 30) ** 2

    means = {}
    for algorithm in ("random", "tpe"):
        search, last = Search(space=space, algorithm=algorithm, trials=30), []
        for seed in range(4):
            found: list[Trial] = []
            ask = sampler(search, seed, "lower")
            for number in range(1, 31):
                values = ask(number, found)
                found.append(Trial(number, "t", values, "finished", 1, cost(values), [(1, cost(values))]))
            last += [trial.objective or 0.0 for trial in found[15:]]
        means[algorithm] = np.mean(last)
    assert means["tpe"] < 0.5 * means["random"]


def test_parzen_is_told_of_trials_that_were_stopped_and_of_those_that_run() -> None:
    search = Search(space={"lr": Space(uniform=[0.0, 1.0])}, algorithm="tpe", trials=20)
    ask = sampler(search, 0, "lower")
    behind = [Trial(n, "t", {"lr": n / 20}, "stopped", 10, n / 20, [(10, n / 20)]) for n in range(1, 11)]
    assert ask(11, behind) != ask(11, [])
    failed = [Trial(n, "t", {"lr": n / 20}, "failed") for n in range(1, 11)]
    assert ask(11, failed) == ask(11, [])  # of which nothing is known
    ask(12, [*behind, Trial(11, "t", {"lr": 0.5})])


def test_a_copy_stays_in_its_range() -> None:
    random = np.random.default_rng(0)
    for space in (
        Space(uniform=[0.0, 1.0]),
        Space(log_uniform=[0.1, 1.0]),
        Space(integer=[1, 4]),
        Space(log_integer=[1, 4]),
    ):
        value = space.extremes[-1]
        seen = [value := moved(value, space, random) for _ in range(200)]
        assert min(seen) >= space.extremes[0] and max(seen) <= space.extremes[1] and len(set(seen)) > 2
    listed = Space(choice=["a", "b", "c"])
    assert {moved("b", listed, random) for _ in range(50)} == {"a", "b", "c"}
