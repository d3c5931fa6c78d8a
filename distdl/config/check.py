"""Checks a config's values against the schema: a mistake becomes a Problem with place, what is allowed and cure."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args

import pydantic

from distdl.config import deepspeed_keys
from distdl.config.family import FamilyName, family_names, family_schema
from distdl.config.optimizer import Optimizer, Schedule, by_module
from distdl.config.schema import Config, Runtime
from distdl.config.secret_text import secret_problem, secrets_in
from distdl.config.ways import Way
from distdl.config.yaml_file import KeyPath, flatten
from distdl.errors import InputError, Problem, did_you_mean, nearest

IN_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid array": "a list, such as [3, 4]",
    "a valid tuple": "a list, such as [3, 4]",
    "an object": "a mapping of keys",
    "a valid dictionary": "a mapping of keys",
}
"""What pydantic calls the kinds of values, in the words of a YAML file."""


INSTEAD = {"runtime.gpus_per_worker": ": local workers take the GPUs that are there, one each"}
"""What is true without a key that another kind of its section has."""


class Checker:
    """Checks values against the schema and collects the problems, each with its place."""

    def __init__(self, origins: dict[KeyPath, str], file: str, beside: Path, cut: Collection[str] = ()) -> None:
        self.origins, self.file, self.beside, self.cut = origins, file, beside, cut
        self.problems: list[Problem] = []

    def check(self, values: dict[str, Any]) -> Config | None:
        """The config, or None where `problems` says why not."""
        model = self._model(values.get("model"))
        try:
            given = values if values.get("model") is None else {**values, "model": model or {}}
            if "optimizer" in given:
                given = {**given, "optimizer": by_module(given["optimizer"])}
            config: Config | None = Config.model_validate_json(json.dumps(given))
        except pydantic.ValidationError as error:
            config = None
            self._explain(error, (), values)
        if config is not None:
            self._cross_check(config)
        return config if not self.problems else None

    def where(self, path: KeyPath) -> str:
        """`file:line` of the key, or of the nearest section above it."""
        return next((self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins), self.file)

    def _model(self, section: Any) -> dict[str, Any] | None:
        """The `model:` section with the family's defaults filled in."""
        if section is None:
            return None  # reported as a missing key by the schema
        names = ", ".join(family_names())
        if not isinstance(section, dict) or not isinstance(section.get("family"), str):
            fix = "write model: {family: NAME, …}"
            self.problems.append(Problem("model.family is missing", self.where(("model", "family")), names, fix))
            return None
        name, at = FamilyName(section["family"]).beside(self.beside), self.where(("model", "family"))
        family = name.text
        if family not in family_names() and not name.own:
            beside = (self.beside / f"{family}.py").is_file()
            fix = f"did you mean './{family}.py'?" if beside else did_you_mean(family, family_names())
            self.problems.append(Problem(f"model.family = {family!r} is not a family", at, names, fix))
            return None
        try:
            schema = family_schema(family)
        except InputError as error:
            self.problems += [dataclasses.replace(p, where=p.where or at) for p in error.problems]
            return None
        fields = {k: v for k, v in section.items() if k != "family"}
        try:
            built = schema.adapter.validate_json(json.dumps(fields))
        except pydantic.ValidationError as error:
            self._explain(error, ("model",), fields, [f.name for f in dataclasses.fields(schema.config)])
            return None
        except Exception as error:
            if not name.own:
                raise
            self.problems.append(Problem(f"Config of {family}: {type(error).__name__}: {error}", at))
            return None
        return {"family": family, **json.loads(json.dumps(dataclasses.asdict(built)))}

    def _explain(
        self, error: pydantic.ValidationError, above: KeyPath, values: Any, keys: list[str] | None = None
    ) -> None:
        for item in error.errors():
            loc = tuple(str(part) for part in item["loc"])
            known = keys
            if above == ():
                loc, known = _without_tags(loc)
            path = (*above, *loc)
            self.problems.append(self._problem(path, item, known))

    def _problem(self, path: KeyPath, item: Any, known: list[str] | None) -> Problem:
        name, where, kind = ".".join(path), self.where(path), item["type"]
        value = item.get("input")
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            owner = f"the section {'.'.join(path[:-1])}" if len(path) > 1 else "a config"
            match = nearest(path[-1], known or [])
            meant = ".".join((*path[:-1], match)) if match else home_of(path[-1])
            fix = f"did you mean '{meant}'?" if meant else "remove it"
            if meant == name:  # a key of another kind of this section
                tag = UNIONS[path[0]][1]
                kinds = [kind for kind, keys in _kinds(path[0]).items() if path[-1] in keys]
                fix = f"remove it{INSTEAD.get(name, '')}; it is a key of {path[0]}.{tag}: {' or '.join(kinds)}"
            return Problem(f"{name} = {value!r}: {owner} has no such key", where, ", ".join(sorted(known or [])), fix)
        if kind in ("missing", "missing_argument", "union_tag_not_found"):
            tag = ".name" if kind == "union_tag_not_found" and path[-1] != "runtime" else ""
            tag = ".kind" if kind == "union_tag_not_found" and path[-1] == "runtime" else tag
            allowed = str(item.get("ctx", {}).get("expected_tags", ""))
            return Problem(f"{name}{tag} is missing", where, allowed, f"add it: {name}{tag}: …")
        context = {k: v for k, v in (item.get("ctx") or {}).items() if k != "error"}
        if kind == "union_tag_invalid":
            name, value = f"{name}.{context['discriminator'].strip(chr(39))}", context["tag"]
            options = [t.strip(" '") for t in str(context["expected_tags"]).split(",")]
            where = self.where((*path, context["discriminator"].strip("'")))
            return Problem(f"{name} = {value!r} is unknown", where, ", ".join(options), did_you_mean(value, options))
        if kind in ("value_error", "string_pattern_mismatch"):
            reason = item["msg"].removeprefix("Value error, ").replace("String should match pattern", "must match")
            return Problem(f"{name}: {reason}", where)
        allowed = item["msg"].removeprefix("Input should be ")
        allowed = IN_WORDS.get(allowed, allowed)
        fix = did_you_mean(str(value), re.findall(r"'([^']+)'", allowed)) if kind == "literal_error" else ""
        return Problem(f"{name} = {value!r}", where, allowed, fix if fix.startswith("did") else "")

    def _cross_check(self, config: Config) -> None:
        """What one section says about another; a key that nothing would read stops the run."""
        train, parallel = config.train, config.parallel
        if (train.epochs is None) == (train.steps is None):
            neither = train.epochs is None
            given = "neither is given" if neither else "both are given"
            fix = "give one of them" if neither else "take one out: train.epochs=null or train.steps=null"
            at = self.where(("train", "steps") if train.steps is not None else ("train",))
            self.problems.append(Problem(f"train needs either epochs or steps; {given}", at, fix=fix))
        if parallel.engine == "torch":
            for key in ("zero", "deepspeed"):
                if ("parallel", key) in self.origins:
                    what = f"parallel.{key} is not read by the torch engine"
                    fix = f"remove it, or set parallel.engine: deepspeed (argument 'parallel.{key}=…' counts too)"
                    self.problems.append(Problem(what, self.where(("parallel", key)), fix=fix))
        whole = {axis for axis in ("sequence", "pipeline") if getattr(parallel, axis) == 1} - set(self.cut)
        unread = {
            "attention": ("parallel.sequence is 1", "sequence" in whole and parallel.attention != "auto"),
            "balance": ("parallel.pipeline is 1", "pipeline" in whole and parallel.balance != "parameters"),
            "nvme_path": (
                "nothing is offloaded to nvme",
                "nvme" not in (parallel.offload, parallel.offload_parameters),
            ),
        }
        for key, (why, unused) in unread.items():
            if unused and getattr(parallel, key) is not None and ("parallel", key) in self.origins:
                what = f"parallel.{key} is not read: {why}"
                self.problems.append(Problem(what, self.where(("parallel", key)), fix="remove it"))
        for path in secrets_in(flatten(config.model_dump(mode="json"))):
            self.problems.append(secret_problem(".".join(path), self.where(path)))
        for path, problem in deepspeed_keys.check(parallel.deepspeed):
            at = self.where(("parallel", "deepspeed", *path))
            self.problems.append(dataclasses.replace(problem, where=at))
        if config.early_stopping and config.data.eval_split is None:
            at = self.where(("early_stopping",))
            self.problems.append(
                Problem("early_stopping needs evaluations, and data.eval_split is null", at, fix="name a split")
            )
        if config.data.test_split and config.data.test_split in (config.data.eval_split, config.data.train_split):
            what = f"data.test_split = {config.data.test_split!r} is the split that the run learns or is chosen by"
            at, fix = self.where(("data", "test_split")), "data.eval_split: validation, or data.test_split: null"
            self.problems.append(Problem(what, at, fix=fix))
        if config.optimizer.name == "sgd" and config.optimizer.nesterov and not config.optimizer.momentum:
            at = self.where(("optimizer", "nesterov"))
            self.problems.append(
                Problem("optimizer.nesterov needs a momentum above 0", at, fix="optimizer.momentum: 0.9")
            )


def home_of(key: str, section: Any = Config, above: str = "") -> str | None:
    """Where the schema has a key of this name: `parallel.zero` for `zero`; of `seed`, the config itself has one."""
    if not above and key in section.model_fields:
        return None
    for name, field in section.model_fields.items():
        if name == key and above:
            return above + name
        for inner in _sections(field.annotation):
            if found := home_of(key, inner, f"{above}{name}."):
                return found
    return None


def _sections(annotation: Any) -> Iterator[Any]:
    """The sections that an annotation may hold, those of a union included."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


UNIONS: dict[str, tuple[Any, str]] = {
    "optimizer": (Optimizer, "name"),
    "schedule": (Schedule, "name"),
    "runtime": (Runtime, "kind"),
    "way": (Way, "name"),
}
"""Sections that are one of several, and the key that says which."""


def variant(section: str, tag: Any) -> Any:
    """The class of a section whose tag is this, or None."""
    union, key = UNIONS[section]
    variants = get_args(get_args(union)[0])
    return next((v for v in variants if tag in get_args(v.model_fields[key].annotation)), None)


def _kinds(section: str) -> dict[str, list[str]]:
    """Kind -> its keys, for a section that is one of several."""
    union, key = UNIONS[section]
    fields = [variant.model_fields for variant in get_args(get_args(union)[0])]
    return {str(kind): list(f) for f in fields for kind in get_args(f[key].annotation)}


def _without_tags(loc: KeyPath) -> tuple[KeyPath, list[str]]:
    """A location without pydantic's union tags, and the keys of the section that it ends in."""
    if loc and loc[0] in UNIONS and len(loc) > 1:
        found = variant(loc[0], loc[1])
        if found is not None:
            return (loc[0], *loc[2:]), list(found.model_fields)
    section: Any = Config
    for part in loc[:-1]:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        candidates = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
        section = next((a for a in candidates if issubclass(a, pydantic.BaseModel)), section)
    return loc, list(section.model_fields)
