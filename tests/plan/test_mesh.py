"""The mesh against brute force and against DeepSpeed's own grid; contiguous parts against every partition."""

from __future__ import annotations

import itertools
import random

import pytest

from distdl.plan.mesh import AXES, Mesh, balanced

SIZES = list(itertools.product((1, 2, 3), repeat=4))
"""(pipeline, data, sequence, tensor)"""
MESHES = [
    Mesh(data=d, tensor=t, pipeline=p, sequence=s, expert=e)
    for p, d, s, t in SIZES
    for e in (1, 2, 3)
    if p * d * s * t <= 16 and d % e == 0
]


def coordinates(mesh: Mesh) -> list[tuple[int, ...]]:
    """(pipeline, data, sequence, tensor) of every rank: the odometer whose last wheel turns fastest."""
    return list(itertools.product(*(range(getattr(mesh, axis)) for axis in AXES)))


def test_a_rank_is_the_number_of_its_place() -> None:
    assert len(MESHES) > 70
    for mesh in MESHES:
        places = coordinates(mesh)
        assert len(places) == mesh.world
        for rank, place in enumerate(places):
            got = mesh.place(rank)
            assert tuple(got[axis] for axis in AXES) == place
            assert got["expert"] == place[1] % mesh.expert
            p, d, s, t = place
            assert rank == ((p * mesh.data + d) * mesh.sequence + s) * mesh.tensor + t
        assert mesh.model_parallel == (mesh.world > mesh.data or mesh.expert > 1)


def test_a_line_holds_the_ranks_that_differ_along_its_axes_only() -> None:
    """All lines of all meshes, along every subset of the axes."""
    lines = [axes for n in range(5) for axes in itertools.combinations(AXES, n)]
    for mesh in MESHES:
        places = coordinates(mesh)
        for rank, axes in itertools.product(range(mesh.world), lines):
            fixed = [i for i, axis in enumerate(AXES) if axis not in axes]
            want = [other for other, place in enumerate(places) if all(place[i] == places[rank][i] for i in fixed)]
            assert mesh.line(rank, *axes) == want, (mesh, rank, axes)


def test_experts_are_shared_by_neighbouring_data_ranks() -> None:
    """`expert`: every expert once, on consecutive data ranks; `replica`: the ranks with the same experts."""
    for mesh in MESHES:
        places = coordinates(mesh)
        for rank in range(mesh.world):
            here, (pipeline, _, sequence, tensor) = mesh.place(rank), places[rank]
            beside = [places.index((pipeline, data, sequence, tensor)) for data in range(mesh.data)]
            assert beside == mesh.line(rank, "data")
            first = here["data"] // mesh.expert * mesh.expert
            expert = mesh.line(rank, "expert")
            assert expert == beside[first : first + mesh.expert]
            assert [mesh.place(r)["expert"] for r in expert] == list(range(mesh.expert))
            replica = mesh.line(rank, "replica")
            assert replica == beside[here["expert"] :: mesh.expert]
            both = mesh.line(rank, "replica", "sequence")
            assert both == sorted(r for slice_ in mesh.line(rank, "sequence") for r in mesh.line(slice_, "replica"))


def test_lines_of_an_axis_part_the_world() -> None:
    """Every rank lies on one line of each kind: the process groups do not overlap."""
    for mesh in MESHES:
        single = [(axis,) for axis in (*AXES, "expert", "replica")]
        for axes in (*single, ("data", "sequence"), ("replica", "sequence"), ("data", "sequence", "tensor")):
            lines = {tuple(mesh.line(rank, *axes)) for rank in range(mesh.world)}
            assert sorted(itertools.chain(*lines)) == list(range(mesh.world)), (mesh, axes)
            assert len({len(line) for line in lines}) == 1


def test_the_picture_says_who_holds_what() -> None:
    assert Mesh(data=2).picture() == "rank 0: samples 1/2\nrank 1: samples 2/2"
    assert Mesh(data=2, expert=2).picture() == "rank 0: samples 1/2, experts 1/2\nrank 1: samples 2/2, experts 2/2"
    assert Mesh(data=1, tensor=2, sequence=2).picture() == (
        "ranks 0-3: samples 1/1, 2 slices of the sequence x 2 parts of every cut tensor"
    )
    assert Mesh(data=2, tensor=2, pipeline=2).picture(["embedding to block 0", "block 1 to head"]) == (
        "ranks 0-1: stage 1/2 (embedding to block 0), samples 1/2, 2 parts of every cut tensor\n"
        "ranks 2-3: stage 1/2 (embedding to block 0), samples 2/2, 2 parts of every cut tensor\n"
        "ranks 4-5: stage 2/2 (block 1 to head), samples 1/2, 2 parts of every cut tensor\n"
        "ranks 6-7: stage 2/2 (block 1 to head), samples 2/2, 2 parts of every cut tensor"
    )


def test_every_rank_is_in_the_picture_once() -> None:
    for mesh in MESHES:
        lines = mesh.picture().splitlines()
        assert len(lines) == mesh.pipeline * mesh.data
        shown: list[int] = []
        for line in lines:
            first, _, last = line.split(":")[0].split()[1].partition("-")
            shown += range(int(first), int(last or first) + 1)
            assert f"samples {mesh.place(int(first))['data'] + 1}/{mesh.data}" in line
        assert shown == list(range(mesh.world))


@pytest.mark.slow
def test_the_order_is_that_of_deepspeeds_own_grid() -> None:
    """The pipeline engine lays its ranks out by itself: ours must lie there too."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    for p, d, t in itertools.product((1, 2, 3, 4), repeat=3):
        mesh, grid = Mesh(data=d, tensor=t, pipeline=p), PipeModelDataParallelTopology(num_pp=p, num_mp=t, num_dp=d)
        assert grid.world_size() == mesh.world
        for rank in range(mesh.world):
            place = mesh.place(rank)
            assert grid.get_rank(pipe=place["pipeline"], data=place["data"], model=place["tensor"]) == rank
        for axis, name in (("pipeline", "pipe"), ("data", "data"), ("tensor", "model")):
            lines = {tuple(mesh.line(rank, axis)) for rank in range(mesh.world)}
            if getattr(mesh, axis) > 1:
                assert lines == set(map(tuple, grid.get_axis_comm_lists(name)))


# -- contiguous parts --------------------------------------------------------------------------------------------------


def heaviest(weights: list[float], bounds: list[int]) -> float:
    return max(sum(weights[a:b]) for a, b in itertools.pairwise(bounds))


def lightest_possible(weights: list[float], parts: int) -> float:
    """The heaviest part of the best of all partitions into contiguous parts that are not empty."""
    inner = itertools.combinations(range(1, len(weights)), parts - 1)
    return min(heaviest(weights, [0, *cut, len(weights)]) for cut in inner)


@pytest.mark.parametrize("kind", ["integers", "floats", "zeros", "one giant"])
def test_balanced_is_the_best_of_all_partitions(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(300):
        n = draw.randint(1, 9)
        weights = [float(draw.randint(1, 20)) if kind == "integers" else draw.random() for _ in range(n)]
        if kind == "zeros":  # layers without parameters
            weights = [w * draw.choice((0.0, 1.0)) for w in weights]
        if kind == "one giant":
            weights[draw.randrange(n)] = 1e9
        for parts in range(1, n + 1):
            bounds = balanced(weights, parts)
            assert bounds[0] == 0 and bounds[-1] == n and len(bounds) == parts + 1
            assert all(a < b for a, b in itertools.pairwise(bounds)), "a stage without a layer"
            assert heaviest(weights, bounds) == pytest.approx(lightest_possible(weights, parts), rel=1e-9), weights


def test_balanced_of_a_large_model() -> None:
    """GPT-2 small: the embedding outweighs five blocks, and the head is next to nothing."""
    weights = [39_383_808.0, *[7_087_872.0] * 12, 1536.0]
    for parts, best in ((2, 9 * 7_087_872 + 1536), (4, 39_383_808), (8, 39_383_808)):
        assert heaviest(weights, balanced(weights, parts)) == best
    assert balanced(weights, 14) == list(range(15))
