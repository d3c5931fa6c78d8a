"""What `auto` comes to in the section `train`, and what the plan says of arithmetic on GPUs."""

from __future__ import annotations

from distdl.config.schema import Config
from distdl.plan.facts import Hardware, ModelFacts

BF16_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs that multiply bf16; older ones imitate it, slower than fp32."""

GPU_VOCABULARY = 64
"""Words of a vocabulary come in so many on GPUs: rows of 50257 scores in 16 bits begin at no multiple of 16 bytes, and a
third of GPT-2's products would have to do without the kernels that copy in larger pieces."""


def decided(config: Config, model: ModelFacts, hardware: Hardware) -> Config:
    """The config with nothing left to decide about its arithmetic."""
    train = config.train
    changes: dict[str, object] = {}
    if train.precision == "auto":
        changes["precision"] = "fp32" if _why_fp32(config, model, hardware) else "bf16"
    if train.deterministic == "auto":
        changes["deterministic"] = hardware.device == "cpu"
    if train.vocabulary_multiple == "auto":
        changes["vocabulary_multiple"] = GPU_VOCABULARY if hardware.device == "cuda" else 1
    if train.channels_last == "auto":
        changes["channels_last"] = hardware.device == "cuda"
    return config.model_copy(update={"train": train.model_copy(update=changes)}) if changes else config


def _why_fp32(config: Config, model: ModelFacts, hardware: Hardware) -> str:
    """Why `auto` is fp32 here; '': it is bf16."""
    if hardware.device == "cpu":
        return "on a CPU"
    if (0, 0) < hardware.gpu_capability < BF16_CAPABILITY:
        return f"a GPU of compute capability {hardware.gpu_capability} does not multiply bf16"
    if not model.trainable:
        return "nothing is learned by a gradient"
    if model.fp64:
        return f"the family {model.family} needs the digits"
    if model.own_update:
        return f"a step of the family {model.family} is more than a loss and its gradient"
    if config.optimizer.name == "lbfgs":
        return "the line search of lbfgs needs the digits"
    return ""


def notes(asked: Config, config: Config, model: ModelFacts, hardware: Hardware) -> list[str]:
    """What a user should know of the arithmetic on GPUs. `asked`: the config before it was `decided`."""
    if hardware.device == "cpu":
        return []
    train, told = config.train, []
    if asked.train.precision == "auto":
        why = _why_fp32(asked, model, hardware)
        told.append(
            f"train.precision is auto, which is fp32 here: {why}"
            if why
            else "train.precision is auto, which is bf16 on these GPUs: 16-bit products, fp32 master weights"
        )
    elif train.precision == "fp32" and not _why_fp32(asked, model, hardware):
        told.append("these GPUs multiply bf16 several times faster than fp32: train.precision=auto or bf16 uses that")
    if train.precision == "fp32":
        told.append(
            "fp32 products of matrices keep 10 of 23 binary places (TF32), several times faster: train.tf32=false keeps all"
            if train.tf32
            else "train.tf32 is false: fp32 products of matrices keep all places, and take several times longer"
        )
    if train.deterministic:
        told.append(
            "train.deterministic is true: the same bits again, for slower attention (not cuDNN's), slower convolutions (by "
            "10 to 30 %) and slower scattered sums; a kernel that has no such version ends the run with its name"
        )
    elif asked.train.deterministic == "auto":
        told.append(
            "train.deterministic is auto, which is false on GPUs: the fastest kernels, and two runs of a seed differ in "
            "their last bits; train.deterministic=true gives the same bits again"
        )
    return told
