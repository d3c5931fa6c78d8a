"""Refuses a `search:` section that could not be searched, with all that is wrong, before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distdl.config.family import family_schema
from distdl.config.load import Loaded, load_values
from distdl.config.marks import TRAINING_ONLY
from distdl.config.schema import Config
from distdl.config.search import UNSEARCHED, Search
from distdl.config.yaml_file import flatten
from distdl.errors import InputError, Problem, did_you_mean
from distdl.plan.plan import Plan
from distdl.tune.space import drawn, grid
from distdl.tune.values import put

MID_RUN = ("train.clip_norm", "train.l1", "train.l2")
"""Beside the numbers of the optimizer and of the schedule, and what a family marks as of training only: keys that may
change while a run goes on. Whatever else learns something different from the first step on."""
READ_BY = {"first_rung_steps": "asha", "reduction": "asha", "perturb_every_steps": "pbt"}
"""Keys that one scheduler reads."""
MOST_POINTS = 100_000


def checked(loaded: Loaded, given: Mapping[str, Any]) -> Search:
    """The section of a config. `given`: what its YAML says, without the search. Raises InputError."""
    search = loaded.config.search
    if search is None:
        what = f"{loaded.path} has no search section"
        example = "search: {space: {optimizer.lr: {log_uniform: [1e-4, 1e-1]}}, trials: 20}"
        raise InputError(what, where=loaded.path, allowed=example, fix="add one (docs/tune.md)")
    problems = [
        *_keys(search, loaded, given),
        *_algorithm(search, loaded),
        *_scheduler(search, loaded),
        *_evaluations(search, loaded),
    ]
    if not problems:
        problems = list(_together(search, loaded, given))
    if problems:
        raise InputError(*problems)
    return search


def _where(loaded: Loaded, *path: str) -> str:
    """`file:line` of a key of the section, or of what stands above it."""
    keys = ("search", *path)
    dotted = [(*keys[:2], *keys[2].split("."))] if len(keys) > 2 else []  # as it may be nested
    for whole in (keys, *dotted):
        for end in range(len(whole), 1, -1):
            if whole[:end] in loaded.origins:
                return loaded.origins[whole[:end]]
    return loaded.origins.get(("search",), loaded.path)


def _keys(search: Search, loaded: Loaded, given: Mapping[str, Any]) -> Iterator[Problem]:
    """Each key by itself: it is one of the config, and takes the ends of its range or all that is listed."""
    for key, space in search.space.items():
        where = _where(loaded, "space", key)
        if key.split(".")[0] in UNSEARCHED:
            what = f"search.space.{key}: {key.split('.')[0]} says where and how a run is trained, not what it learns"
            yield Problem(what, where, fix="take it out; `distdl tune CONFIG key=value` sets it for all trials")
            continue
        known = {".".join(path) for path, _ in flatten(loaded.config.model_dump(mode="json"))}
        for value in space.extremes:
            try:
                load_values(put(given, {key: value}))
            except InputError as error:
                for p in error.problems:
                    fix = p.fix or (did_you_mean(key, known) if "no such key" in p.what else "")
                    yield dataclasses.replace(
                        p, what=f"search.space.{key} would try {value!r}: {p.what}", where=where, fix=fix
                    )
                break


def _algorithm(search: Search, loaded: Loaded) -> Iterator[Problem]:
    if search.algorithm != "grid":
        for key, space in search.space.items():
            if space.grid is not None:
                what = f"search.space.{key}.grid: algorithm {search.algorithm} draws values and goes through no grid"
                yield Problem(what, _where(loaded, "space", key), fix="choice: […], or search.algorithm: grid")
        return
    for key, space in search.space.items():
        if space.listed is None:
            what = f"search.space.{key}: a grid has no {space.kind} values"
            yield Problem(
                what, _where(loaded, "space", key), "grid: [1, 2, …]", "list them, or search.algorithm: random"
            )
            return
    points = search.model_copy(update={"trials": None}).count()
    if points > MOST_POINTS:
        what = f"the grid has {points:,} points, more than {MOST_POINTS:,}"
        yield Problem(what, _where(loaded, "space"), fix="search.algorithm: random, or tpe")
    elif search.trials is not None and search.trials != points:
        what = f"search.trials = {search.trials}: the grid has {points} points"
        fix = "take it out; search.algorithm: random tries some of them"
        yield Problem(what, _where(loaded, "trials"), f"{points}, or none", fix)


def _scheduler(search: Search, loaded: Loaded) -> Iterator[Problem]:
    for key, of in READ_BY.items():
        if of != search.scheduler and any(path[:2] == ("search", key) for path in loaded.origins):
            what = f"search.{key} is not read by the scheduler {search.scheduler}"
            yield Problem(what, _where(loaded, key), fix=f"remove it, or search.scheduler: {of}")
    if search.scheduler == "none":
        return
    for key in search.space:
        if key.startswith(("evaluate.", "train.steps", "train.epochs", "train.global_batch", "data.")):
            what = f"search.space.{key}: {search.scheduler} compares trials at the same steps, and this moves them"
            yield Problem(what, _where(loaded, "space", key), fix="take it out, or search.scheduler: none")
    if search.scheduler == "pbt":
        yield from _population(search, loaded)


def _population(search: Search, loaded: Loaded) -> Iterator[Problem]:
    config = loaded.config
    model = sorted(f"model.{name}" for name in family_schema(config.model["family"]).marked(TRAINING_ONLY))
    of = [(name, getattr(config, name).model_dump()) for name in ("optimizer", "schedule")]
    may = [f"{section}.{key}" for section, values in of for key in values if key != "name"]
    may = [*may, *MID_RUN, *model]
    for key in search.space:
        if key not in may:
            what = f"search.space.{key}: pbt changes values while a run goes on, and {key} cannot change then"
            fix = "take it out, or search.scheduler: asha"
            yield Problem(what, _where(loaded, "space", key), ", ".join(may), fix)
    if config.early_stopping:
        what = "early_stopping ends members of a population while others wait for them"
        yield Problem(what, loaded.origin(("early_stopping",)), fix="early_stopping: null")
    if search.algorithm != "random":
        what = f"search.algorithm = {search.algorithm!r}: a population begins with values that are drawn at random"
        yield Problem(what, _where(loaded, "algorithm"), "random", "search.algorithm: random")
    if search.count() < 2:
        yield Problem("a population has two members or more", _where(loaded, "trials"), fix="search.trials: 8")


def _evaluations(search: Search, loaded: Loaded) -> Iterator[Problem]:
    config = loaded.config
    if config.data.eval_split is None:
        where = loaded.origin(("data", "eval_split"))
        yield Problem("a search compares evaluations, and data.eval_split is null", where, fix="data.eval_split: test")
    if search.scheduler != "none" and config.evaluate.every_steps == 0:
        what = (
            f"{search.scheduler} compares trials on their way, and evaluate.every_steps = 0 evaluates at the end alone"
        )
        yield Problem(what, loaded.origin(("evaluate", "every_steps")), fix="evaluate.every_steps: 100")


def _together(search: Search, loaded: Loaded, given: Mapping[str, Any]) -> Iterator[Problem]:
    """The values of each trial that are known before anything starts."""
    if search.algorithm == "grid":
        points = grid(search.space)
    else:
        seed = loaded.config.seed if search.seed is None else search.seed
        points = [drawn(search.space, seed, number) for number in range(1, min(search.count(), 1000) + 1)]
    for values in points:
        try:
            load_values(put(given, values))
        except InputError as error:
            said = ", ".join(f"{key}={value}" for key, value in values.items())
            p = error.problems[0]
            what = f"values that the search would try together do not fit ({said}): {p.what}"
            yield dataclasses.replace(p, what=what, where=_where(loaded, "space"))
            return


def fits_plan(search: Search, plan: Plan, loaded: Loaded) -> None:
    """What only a plan knows: how many steps there are. Raises InputError."""
    for key in ("first_rung_steps", "perturb_every_steps"):
        steps = getattr(search, key)
        if steps is not None and steps >= plan.steps:
            what = f"search.{key} = {steps}: a trial has {plan.steps:,} steps"
            raise InputError(what, where=_where(loaded, key), allowed=f"less than {plan.steps}")


def path_of(config: Config) -> Path:
    """The folder of a config's search."""
    return Path(config.runs) / f"{config.name}-search"
