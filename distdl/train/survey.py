"""Looks at the family, the data set and the machine once, so that the plan can stay a pure function of that."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from distdl.config.schema import Config
from distdl.errors import DistdlError, InputError, did_you_mean
from distdl.plan import birth
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.plan import Plan, make_plan
from distdl.plan.refuse import AXES

if TYPE_CHECKING:
    from distdl.data.manifest import Values
    from distdl.learner import Learner


KNOWN_LAYOUTS = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", *AXES})
"""What a learner's `layouts` may name."""


def survey(config: Config) -> Plan:
    """The plan of a config on this machine. Raises InputError for a data set that is missing or does not fit."""
    data = data_facts(config, look=True)
    model = model_facts(config, look=True)
    if config.family_name.own:
        from distdl.layout.process import alone
        from distdl.train.rehearse import rehearse

        with alone:
            rehearse(config, model.parameters)
    return make_plan(config, model, data, hardware(config))


def survey_unseen(config: Config) -> Plan:
    """The plan of a config on this machine whose data set is not there yet: an epoch counts as one step. Raises
    InputError."""
    return make_plan(config, model_facts(config, look=True), _unseen(config), hardware(config))


def _unseen(config: Config) -> DataFacts:
    batch = config.train.global_batch
    return DataFacts(config.data.path, fingerprint="", train_rows=batch, eval_rows=batch)


def survey_elsewhere(config: Config) -> Plan:
    """The plan of a config whose workers run on other machines than this one, which may not see the data set.

    The device is a GPU where `runtime.gpus_per_worker` asks for one. Where the data set is not here, an epoch counts as one
    step: the workers plan again where they run. Raises InputError.
    """
    from distdl.data.manifest import read_manifest

    gpus = getattr(config.runtime, "gpus_per_worker", None) or 0
    there = Hardware(device="cuda" if gpus else "cpu", cores=config.runtime.workers, gpus=gpus, workers_elsewhere=True)
    try:
        read_manifest(config.data.path)
    except DistdlError:
        data = _unseen(config)
    else:
        data = data_facts(config)
    return make_plan(config, model_facts(config), data, there)


def model_facts(config: Config, look: bool = False) -> ModelFacts:
    """Counts the parameters on the meta device: nothing is allocated, whatever the size.

    `look`: at the weights that the config starts from, too, which are where the workers run. Raises InputError.
    """
    import torch

    from distdl.layout.process import alone
    from distdl.learner import Learner
    from distdl.learner.kinds import decays, mark
    from distdl.parallel.tensor import cut_parameters, to_cut
    from distdl.ways import assemble, start

    with alone, torch.device("meta"):  # some constructors draw numbers all the same
        learner = assemble(config)
    if unknown := sorted(learner.layouts - KNOWN_LAYOUTS):
        what = f"{type(learner).__name__}.layouts names {unknown[0]!r}, which is no layout"
        at = str(config.family_name.source()) if config.family_name.own else ""
        fix = did_you_mean(unknown[0], KNOWN_LAYOUTS)
        raise InputError(what, where=at, allowed=", ".join(sorted(KNOWN_LAYOUTS)), fix=fix)
    if look:
        start.check(learner, config)
    mark(learner)
    parameters = list(learner.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    cut = {id(p) for _, module, how in to_cut(learner) for p in cut_parameters(module, how)}
    return ModelFacts(
        family=config.family,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in trainable),
        matrices=sum(p.numel() for p in trainable if decays(p)),
        primary=learner.primary,
        better=learner.better,
        layouts=tuple(sorted(learner.layouts)),
        players=learner.players,
        batch_coupled=learner.batch_coupled,
        splits=tuple((axis, what, n) for axis, counts in learner.splits().items() for what, n in counts.items()),
        layers=_layers(learner),
        ties=_ties(learner),
        one_graph=learner.one_graph,
        chunks_loss=learner.chunks_loss,
        own_update=type(learner).update is not Learner.update,
        fp64=learner.fp64,
        sharded=sum(p.numel() for p in trainable if id(p) in cut),
        experts=sum(p.numel() for p in trainable if getattr(p, "distdl_expert", False)),
        largest=max((p.numel() for p in trainable), default=0),
        born_whole=_why_whole(config, learner) if birth.asks(config, sum(p.numel() for p in parameters)) else "",
    )


def _why_whole(config: Config, learner: Learner) -> str:
    """Why the constructor of a large model needs the memory of its weights; '': it has run without."""
    from distdl.layout.process import alone
    from distdl.parallel.record import BornWhole, recording
    from distdl.ways import assemble

    if learner.born_whole:
        return learner.born_whole
    try:
        with alone, recording(draws=False) as record:
            made = assemble(config)
        record.promise(made)
    except BornWhole as error:
        return f"its constructor computes with them: {error}"
    except InputError:
        raise
    except Exception as error:
        return f"its constructor computes with them: {type(error).__name__}: {error}"
    return ""


def _layers(learner: Learner) -> tuple[tuple[str, int], ...]:
    """(name, parameters) of each ordered layer; what two layers share counts where it comes first."""
    seen: set[int] = set()
    layers = []
    for layer in learner.layers():
        own = {id(p): p.numel() for module in layer.modules for p in module.parameters() if id(p) not in seen}
        seen |= own.keys()
        layers.append((layer.name, sum(own.values())))
    return tuple(layers)


def _ties(learner: Learner) -> tuple[tuple[int, int, int], ...]:
    """(layer, later layer, elements) of every parameter that a layer shares with an earlier one."""
    first: dict[int, int] = {}
    ties = []
    for index, layer in enumerate(learner.layers()):
        for p in {id(p): p for module in layer.modules for p in module.parameters()}.values():
            if first.setdefault(id(p), index) != index:
                ties.append((first[id(p)], index, p.numel()))
    return tuple(ties)


def data_facts(config: Config, look: bool = False) -> DataFacts:
    """Reads the manifest and checks that the columns are what the family reads: shapes, types and values.

    `look`: at what a teacher reads, too, whose run is where the workers run, and at the values themselves where the
    manifest does not tell them. Raises InputError.
    """
    from distdl.data.first_pass import values_of
    from distdl.data.fit import class_notes, conversions, misfits, unlabelled
    from distdl.data.manifest import read_manifest
    from distdl.train.classes import class_facts
    from distdl.ways import columns_read, learner_class

    manifest = read_manifest(config.data.path)
    train = manifest.split(config.data.train_split)
    evaluation = manifest.split(config.data.eval_split) if config.data.eval_split else None
    reads = columns_read(config, others=look)

    @functools.cache
    def values(split: str) -> Mapping[str, Values]:
        if look:
            return values_of(config.data.path, manifest, split, config.data.cache)
        return manifest.values.get(split, {})

    if config.data.test_split:
        manifest.split(config.data.test_split)
    used = [split for split in (config.data.train_split, config.data.eval_split, config.data.test_split) if split]
    problems = misfits(config.data.path, manifest, reads, {split: functools.partial(values, split) for split in used})
    if problems:
        raise InputError(*problems)
    # Workers may start in another folder: they get the place, not the way to it from here.
    path = config.data.path if "://" in config.data.path else os.path.abspath(config.data.path)
    missing = unlabelled(reads, values(config.data.train_split))
    kept = conversions(manifest, reads, learner_class(config).fp64)
    read_as = tuple((name, manifest.columns[name].dtype, to) for name, to in kept.items())
    facts = class_facts(config, manifest, next(iter(reads.values())), look)
    counted = dict.fromkeys(_counted(facts), facts.get("class_rows", ()))
    return DataFacts(
        path=path,
        fingerprint=manifest.fingerprint,
        train_rows=train.rows,
        eval_rows=evaluation.rows if evaluation else 0,
        unlabelled=missing,
        read_as=read_as,
        notes=tuple(class_notes(manifest, reads, config.data.train_split, config.data.eval_split, counted)),
        **facts,
    )


def _counted(facts: Mapping[str, Any]) -> list[str]:
    """The column whose classes' rows were counted, if one's were."""
    columns = [facts.get("balanced", ""), *(name for name, _ in facts.get("class_weights", ()))]
    return [name for name in columns if name and "class_rows" in facts][:1]


def hardware(config: Config) -> Hardware:
    """What a worker runs on: as `runtime.gpus_per_worker` says, else as this machine has; a cluster's nodes are alike."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = min((torch.cuda.get_device_properties(i).total_memory for i in range(gpus)), default=None)
    asked = getattr(config.runtime, "gpus_per_worker", None)  # the head of a cluster may have none of its own
    device: Literal["cpu", "cuda"] = "cuda" if (gpus if asked is None else asked) else "cpu"
    elsewhere = bool(getattr(config.runtime, "address", None) or os.environ.get("RAY_ADDRESS"))
    capability = min((torch.cuda.get_device_capability(i) for i in range(gpus)), default=(0, 0))
    return Hardware(
        device=device,
        cores=len(os.sched_getaffinity(0)),
        gpus=gpus,
        gpu_memory_bytes=memory,
        gpu_capability=capability,
        workers_elsewhere=config.runtime.kind == "ray" and elsewhere,
    )
