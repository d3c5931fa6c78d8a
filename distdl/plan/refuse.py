"""Layouts that cannot run, or that nobody has proven: each with the reason and the nearest one that works."""

from __future__ import annotations

import math
from collections.abc import Iterable

from distdl.config.optimizer import WHOLE_MATRICES, OwnOptimizer
from distdl.config.schema import Config, Parallel
from distdl.errors import Problem
from distdl.plan.arithmetic import BF16_CAPABILITY
from distdl.plan.facts import Hardware, ModelFacts

AXES = ("tensor", "pipeline", "sequence", "expert")

FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply 8-bit floats."""

UNPROVEN = {
    ("pipeline", "sequence"): "DeepSpeed's pipeline engine sends whole sequences from stage to stage",
    ("pipeline", "expert"): "DeepSpeed's pipeline engine does not gather the balance loss of the experts",
    ("tensor", "expert"): "the experts are not cut along the tensor axis",
    ("sequence", "expert"): "tokens are routed within a sample, which each rank holds a slice of only",
}
"""Pairs of axes that are refused, and why."""


def with_engine(config: Config) -> Config:
    """The config with `parallel.engine` decided. DeepSpeed where there is more than one process, for what only DeepSpeed
    does, and where a key names it: for one process that holds everything it takes a second to import and makes a small
    model's step three times as long, and does nothing."""
    if config.parallel.engine != "auto":
        return config
    only = ("zero", "offload", "offload_parameters", "deepspeed", *AXES)
    asked = any(getattr(config.parallel, key) != getattr(Parallel(), key) for key in only)
    several = config.runtime.workers > 1 and config.train.precision != "fp64"  # which DeepSpeed does not sum
    engine = "deepspeed" if asked or several or config.train.precision in ("fp16", "fp8") else "torch"
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"engine": engine})})


def layout_name(config: Config) -> str:
    """`torch`, or the ZeRO stage and every axis that is cut: zero1+tensor2+pipeline2."""
    parallel = config.parallel
    if parallel.engine == "torch":
        return "torch"
    cuts = [f"{axis}{getattr(parallel, axis)}" for axis in AXES if getattr(parallel, axis) > 1]
    return "+".join([f"zero{parallel.zero}", *cuts])


def layout_key(name: str) -> list[tuple[str, int]]:
    """A layout's name as (part, number) pairs: zero1+tensor2 -> [("zero", 1), ("tensor", 2)]; no number is -1."""
    parts = []
    for part in name.split("+"):
        word = part.rstrip("0123456789")
        parts.append((word, int(part[len(word) :] or -1)))
    return parts


def layout_problems(config: Config, model: ModelFacts) -> list[Problem]:
    """What is wrong with the layout for this family; the numbers of ranks are split_ranks' concern."""
    parallel = config.parallel
    base = "torch" if parallel.engine == "torch" else f"zero{parallel.zero}"
    problems = []
    if base not in model.layouts:
        proven = ", ".join(sorted(set(model.layouts) - set(AXES)))
        why = f"the family {model.family} is not proven on the layout {base}{_why_not(base, model)}"
        problems.append(Problem(why, allowed=proven, fix="set parallel.engine and parallel.zero to one of these"))
    cut = [axis for axis in AXES if getattr(parallel, axis) > 1]
    if cut and parallel.engine == "torch":
        why = f"the torch engine has data parallelism only, and parallel.{cut[0]} is {getattr(parallel, cut[0])}"
        problems.append(Problem(why, fix="parallel.engine=deepspeed"))
    for axis in cut:
        problems += _axis_problems(axis, config, model)
    for (a, b), why in UNPROVEN.items():
        if a in cut and b in cut:
            problems.append(Problem(f"{a} and {b} parallelism together are not proven: {why}", fix=f"parallel.{b}=1"))
    problems += _zero_problems(config, cut)
    if config.start and config.start.lora and (not_yet := [axis for axis in cut if axis != "sequence"]):
        why = f"start.lora is not proven with {not_yet[0]} parallelism: adapters are not cut"
        problems.append(Problem(why, allowed="ZeRO 0-3, sequence", fix=f"parallel.{not_yet[0]}=1"))
    if parallel.attention == "ulysses" and "sequence" in cut and _heads(model) % (parallel.tensor * parallel.sequence):
        why = f"ulysses shares {_heads(model)} attention heads out over {parallel.tensor * parallel.sequence} ranks"
        problems.append(Problem(f"{why}, which does not come out even", fix="parallel.attention=ring or auto"))
    return problems


def _why_not(base: str, model: ModelFacts) -> str:
    if not model.trainable:
        return ": it learns without a gradient, and ZeRO shards gradients and optimizers"
    if base == "zero3":
        return ": it uses weights outside the pass that learns them, when ZeRO-3 has let go of them"
    return ""


def _axis_problems(axis: str, config: Config, model: ModelFacts) -> list[Problem]:
    degree = getattr(config.parallel, axis)
    if axis not in model.layouts:
        proven = ", ".join(a for a in AXES if a in model.layouts) or "none of the axes, ZeRO only"
        why = {
            "tensor": "it names no tensors to cut",
            "pipeline": "it has no ordered layers",
            "sequence": "its samples have no sequence that could be cut",
            "expert": "it has no experts",
        }[axis]
        what = f"the family {model.family} is not proven with {axis} parallelism: {why}"
        return [Problem(what, allowed=proven, fix=f"parallel.{axis}=1")]
    problems = []
    for split_axis, what, count in model.splits:
        if split_axis == axis and count % degree:
            divisors = [n for n in range(1, count + 1) if count % n == 0]
            why = f"{count} {what} cannot be shared evenly by parallel.{axis}={degree}"
            problems.append(Problem(why, fix=f"parallel.{axis}={_nearest(config, axis, divisors)}"))
    if axis == "expert" and not any(a == "expert" for a, _, _ in model.splits):
        problems.append(
            Problem(f"parallel.expert is {degree} and this {model.family} has no experts", fix="parallel.expert=1")
        )
    if axis == "pipeline" and degree > len(model.layers):
        why = f"{len(model.layers)} layers cannot fill {degree} pipeline stages"
        problems.append(
            Problem(why, fix=f"parallel.pipeline={_nearest(config, axis, range(1, len(model.layers) + 1))}")
        )
    return problems


def _nearest(config: Config, axis: str, degrees: Iterable[int]) -> str:
    """The one or two of these degrees that are nearest to the axis's, of those that the workers can be laid out with."""
    parallel = config.parallel
    others = math.prod(getattr(parallel, other) for other in ("tensor", "pipeline", "sequence") if other != axis)
    fitting = [n for n in degrees if config.runtime.workers % (n * others) == 0] or [1]
    return " or ".join(map(str, sorted(sorted(fitting, key=lambda n: abs(n - getattr(parallel, axis)))[:2])))


def _zero_problems(config: Config, cut: list[str]) -> list[Problem]:
    zero, problems = config.parallel.zero, []
    if "pipeline" in cut and zero >= 2:
        why = f"a pipeline keeps the gradients of several micro-batches, which ZeRO-{zero} would scatter after each"
        problems.append(Problem(f"{why}; DeepSpeed refuses it", fix="parallel.zero=1"))
    if "pipeline" in cut and zero == 0:
        why = "with ZeRO-0 DeepSpeed's pipeline clips by the gradient norm of one stage only"
        problems.append(Problem(why, fix="parallel.zero=1"))
    if "expert" in cut and zero == 3:
        problems.append(Problem("DeepSpeed's ZeRO-3 does not hold experts that ranks share", fix="parallel.zero=2"))
    if "expert" in cut and zero == 0:
        why = "with ZeRO-0 DeepSpeed averages the gradient norms of ranks that hold different experts"
        problems.append(Problem(why, fix="parallel.zero=1"))
    return problems


def memory_problems(config: Config, model: ModelFacts, hardware: Hardware) -> list[Problem]:
    """What is wrong with precision, offload, recomputation and compilation."""
    parallel, train, problems = config.parallel, config.train, []
    zero = parallel.zero if parallel.engine == "deepspeed" else 0
    asked = {
        "parallel.checkpoint_activations=none": parallel.checkpoint_activations != "none",
        "train.compile=false": train.compile,
    }
    for fix, value in asked.items():
        if value and not model.layers and not (model.one_graph and fix.startswith("train.compile")):
            why = f"{fix.partition('=')[0]}: the family {model.family} has no ordered layers"
            problems.append(Problem(why, fix=fix))
    if train.compile and zero == 3:
        why = "train.compile: ZeRO-3 gathers weights by hooks within a block, at which the compiler gives up"
        problems.append(Problem(why, fix="parallel.zero=2 or train.compile=false"))
    if parallel.loss_chunk_tokens and not model.chunks_loss:
        why = f"parallel.loss_chunk_tokens: the family {model.family} has no loss over tokens"
        problems.append(Problem(why, fix="parallel.loss_chunk_tokens=0"))
    for key, device, stage in (
        ("offload", parallel.offload, 3 if parallel.offload == "nvme" else 1),
        ("offload_parameters", parallel.offload_parameters, 3),
    ):
        if device != "none" and parallel.pipeline > 1:
            problems.append(Problem(f"parallel.{key}={device} is not proven in a pipeline", fix=f"parallel.{key}=none"))
        elif device != "none" and zero < stage:
            run = "the torch engine" if parallel.engine == "torch" else f"ZeRO-{zero}"
            why = f"parallel.{key}={device} moves what ZeRO-{stage} has cut, and this run has {run}"
            engine = "parallel.engine=deepspeed and " if parallel.engine == "torch" else ""
            problems.append(Problem(why, fix=f"{engine}parallel.zero={stage}"))
        if device == "nvme" and parallel.nvme_path is None:
            problems.append(
                Problem(f"parallel.{key} is nvme, and no folder is named", fix="parallel.nvme_path=/local/nvme/folder")
            )
    problems += _whole_problems(config, zero) + _average_problems(config, zero)
    problems += (
        _closure_problems(config, model, zero) + _augment_problems(config, model) + _spike_problems(config, model)
    )
    return problems + _precision_problems(config, model, hardware, zero)


def _spike_problems(config: Config, model: ModelFacts) -> list[Problem]:
    """What cannot be done about a loss that jumps."""
    action = config.guard.spike.action if config.guard.spike else None
    if action == "skip" and (model.own_update or config.optimizer.name == "lbfgs"):
        what = "lbfgs" if config.optimizer.name == "lbfgs" else f"the family {model.family}"
        why = f"guard.spike.action is skip, and a step of {what} is more than a loss and its gradient"
        return [Problem(why, fix="guard.spike.action=stop or warn")]
    return []


def _augment_problems(config: Config, model: ModelFacts) -> list[Problem]:
    """Where the random changes would not be made, and nobody would notice."""
    if config.augment and model.own_update:
        why = f"augment changes the batches that a loss is taken of, and a step of the family {model.family} is another"
        return [Problem(why, fix="augment: null")]
    if config.augment and config.parallel.pipeline > 1:
        return [Problem("augment is not proven in a pipeline, whose stages take the batch apart", fix="augment: null")]
    return []


def _whole_problems(config: Config, zero: int) -> list[Problem]:
    """Where an optimizer would be shown parts of matrices, and take them for whole ones."""
    name, cut = config.optimizer.name, [axis for axis in AXES if getattr(config.parallel, axis) > 1]
    cut = [axis for axis in cut if axis != "sequence"]
    own = isinstance(config.optimizer, OwnOptimizer) and not config.optimizer.elementwise
    if not (name in WHOLE_MATRICES or own) or not (zero or cut):
        return []
    layout = f"ZeRO-{zero} flattens and shares out" if zero else f"parallel.{cut[0]} cuts"
    fix = "parallel.zero=0 (or parallel.engine=torch) without tensor, pipeline and expert, or optimizer.name=adamw"
    if own:
        why = f"optimizer.name={config.optimizer.use} may make a step of whole tensors, which {layout}"  # type: ignore[union-attr]
        return [
            Problem(why, fix=f"{fix.partition(', or optimizer')[0]}, or optimizer.elementwise=true where it does not")
        ]
    return [Problem(f"{name} makes a step of whole matrices, which {layout}", fix=fix)]


def _average_problems(config: Config, zero: int) -> list[Problem]:
    """Where no rank has whole weights to average."""
    if not config.train.ema or (zero < 3 and config.parallel.pipeline == config.parallel.expert == 1):
        return []
    where = "ZeRO-3 shares out between uses" if zero == 3 else "this layout keeps on some ranks"
    why = f"train.ema={config.train.ema} averages weights, which {where}"
    fix = "parallel.zero=2 or less without pipeline and expert, or train.ema=0"
    return [Problem(why, allowed="ZeRO 0-2, tensor, sequence", fix=fix)]


def _closure_problems(config: Config, model: ModelFacts, zero: int) -> list[Problem]:
    """What L-BFGS cannot do: it takes the loss and the gradient of a step's batch at other weights, again and again."""
    if config.optimizer.name != "lbfgs":
        return []
    problems, train = [], config.train
    if model.own_update:
        why = f"lbfgs takes the loss of a batch again, and a step of the family {model.family} is more than that"
        problems.append(Problem(why, fix="another optimizer"))
    if zero or any(getattr(config.parallel, axis) > 1 for axis in AXES):
        why = "lbfgs needs whole weights and gradients on every rank, which this layout cuts"
        problems.append(Problem(why, fix="parallel.engine=torch, or parallel.zero=0 without other axes"))
    for key, value in (("clip_norm", train.clip_norm), ("l1", train.l1), ("l2", train.l2)):
        if value:
            why = f"the line search of lbfgs needs the gradient of the loss itself, which train.{key}={value} changes"
            problems.append(Problem(why, fix=f"train.{key}={'null' if key == 'clip_norm' else 0}"))
    if train.precision not in ("fp32", "fp64"):
        why = f"the line search of lbfgs finds no way in the rounding of {train.precision}"
        problems.append(Problem(why, fix="train.precision=fp32 or fp64"))
    return problems


def _precision_problems(config: Config, model: ModelFacts, hardware: Hardware, zero: int) -> list[Problem]:
    precision = config.train.precision
    if precision == "fp64" and not model.fp64:
        return [Problem(f"the family {model.family} is not proven in fp64", fix="train.precision=fp32")]
    if precision == "fp64" and config.parallel.engine != "torch":
        why = "train.precision is fp64, and DeepSpeed sums gradients in fp32 at most"
        return [Problem(why, fix="parallel.engine=torch")]
    if precision == "fp16" and hardware.device == "cpu":
        return [Problem("train.precision is fp16, which this CPU does not compute", fix="train.precision=bf16")]
    if precision == "fp16" and zero == 0:
        why = "train.precision is fp16, whose loss scaling and fp32 master weights are ZeRO's"
        return [Problem(why, fix="parallel.engine=deepspeed and parallel.zero=1, or train.precision=bf16")]
    unknown = hardware.device == "cuda" and hardware.gpu_capability == (0, 0)  # the workers look at theirs
    if precision == "bf16" and hardware.device == "cuda" and not unknown and hardware.gpu_capability < BF16_CAPABILITY:
        why = f"train.precision is bf16 and this is a GPU of compute capability {hardware.gpu_capability}"
        return [Problem(why, allowed="8.0 and up", fix="train.precision=fp32")]
    if precision == "fp8" and not unknown and (hardware.device == "cpu" or hardware.gpu_capability < FP8_CAPABILITY):
        have = "a CPU" if hardware.device == "cpu" else f"a GPU of compute capability {hardware.gpu_capability}"
        return [Problem(f"train.precision is fp8 and this is {have}", allowed="8.9 and up", fix="train.precision=bf16")]
    return []


def _heads(model: ModelFacts) -> int:
    return next((count for axis, what, count in model.splits if (axis, what) == ("tensor", "attention heads")), 0)


def sequence_attention(config: Config, model: ModelFacts) -> str:
    """How a cut sequence attends: `ulysses` or `ring`."""
    if config.parallel.attention != "auto":
        return config.parallel.attention
    return "ring" if _heads(model) % (config.parallel.tensor * config.parallel.sequence) else "ulysses"
