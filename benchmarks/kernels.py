"""How many kernels a small thing takes, and how many bytes they write. See README.md.

    python benchmarks/kernels.py [--base COMMIT] [--output benchmarks/results/kernels.md]

A dropout draw, batch normalisation and connectionist temporal classification, on a CPU: what torch's profiler calls an
operation of ATen is a launch on a GPU, so that the counts say what no timing here could. `--base` counts the same in
another commit of this repository, with the packages that are installed here.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REPOSITORY = Path(__file__).parent.parent
NO_WORK = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
    *("view", "_reshape_alias", "reshape", "as_strided", "expand", "select", "slice", "narrow", "unsqueeze", "squeeze"),
    *(
        "permute",
        "transpose",
        "t",
        "detach",
        "alias",
        "unbind",
        "split",
        "lift_fresh",
        "result_type",
        "unfold",
        "_unsafe_view",
    ),
}
"""Operations that only look at memory in another way, or ask for it."""
FRAMES = (50, 200)


def kernels(call: Callable[[], object]) -> int:
    """Operations of ATen that work on the elements of a tensor, in the second call: the first one makes what is kept."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    return sum(map(_works, seen.events()))


def _works(event: Any) -> bool:
    name = event.name.removeprefix("aten::")
    inner = any(child.name == event.name for child in event.cpu_children)  # another of the same name does the work
    return name != event.name and name not in NO_WORK and not inner and _own_kernel(name)


@functools.cache
def _own_kernel(name: str) -> bool:
    """Whether an operation has code of its own for CPUs, and is not only written down as others."""
    packet = getattr(torch.ops.aten, name, None)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return any(
        has(full, "CPU") and not has(full, "CompositeImplicitAutograd")
        for full in (getattr(packet, overload)._name for overload in (packet.overloads() if packet else ()))
        if torch._C._dispatch_has_kernel(full)
    )


class _Written(TorchDispatchMode):
    """Counts the bytes that operations write, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") not in NO_WORK:
            self.total += sum(t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


def written(call: Callable[[], object]) -> int:
    """Bytes that the second call writes."""
    call()
    with _Written() as seen:
        call()
    return seen.total


# -- what is counted -----------------------------------------------------------------------------------------------------


def cases() -> dict[str, tuple[Callable[[], object], Tensor]]:
    """Name -> (what is counted, the tensor that its bytes are measured by)."""
    torch.manual_seed(0)
    return {**dropout(), **batch_norm(), **ctc()}


def dropout() -> dict[str, tuple[Callable[[], object], Tensor]]:
    from distdl.nn import attention, noise  # where an earlier commit has them, too

    x = torch.randn(32, 128, 64, requires_grad=True)
    shares = torch.rand(32, 4, 64, 64)
    layer = noise.Dropout(0.1)
    positions = torch.arange(len(x))

    def sample() -> None:
        """The sample's keys are those of all draws of a micro-batch: made before, as at every draw but the first."""
        if not noise.active():
            noise.begin(1, positions)
            noise.uniform(len(x), 1)

    def draw() -> Tensor:
        sample()
        return layer(x)

    def both() -> None:
        draw().sum().backward()

    def of_attention() -> Tensor:
        sample()
        return attention._dropped(shares, 0.1)

    return {
        "dropout": (draw, x),
        "dropout, and its backward pass": (both, x),
        "dropout of attention": (of_attention, shares),
        "uniform numbers": (lambda: (sample(), noise.uniform(*x.shape)), x),
    }


def batch_norm() -> dict[str, tuple[Callable[[], object], Tensor]]:
    from distdl.nn.batch_norm import BatchNorm

    x, norm = torch.randn(32, 64, 16, 16, requires_grad=True), BatchNorm(64)
    return {
        "batch normalisation": (lambda: norm(x), x),
        "batch normalisation, and its backward pass": (lambda: norm(x).sum().backward(), x),
    }


def both(losses: Callable[..., Tensor], *given: Tensor) -> None:
    losses(*given).sum().backward()


def ctc() -> dict[str, tuple[Callable[[], object], Tensor]]:
    from distdl.nn import ctc as module

    found: dict[str, tuple[Callable[[], object], Tensor]] = {}
    for frames in FRAMES:
        log_y = torch.randn(8, frames, 30).log_softmax(-1)
        given = torch.full((8,), frames), torch.randint(0, 29, (8, 12)), torch.full((8,), 12)
        as_gpus_do = getattr(module, "by_kernel", module.ctc)
        learns = log_y.clone().requires_grad_()
        found[f"CTC of {frames} frames, deterministic"] = functools.partial(module.ctc, log_y, *given), log_y
        found[f"CTC of {frames} frames, deterministic, and its backward pass"] = (
            functools.partial(both, module.ctc, learns, *given),
            log_y,
        )
        found[f"CTC of {frames} frames, on GPUs"] = functools.partial(as_gpus_do, log_y, *given), log_y
    return found


def count() -> dict[str, tuple[int, float]]:
    """Case -> (kernels, bytes written by the bytes of its tensor)."""
    from distdl.nn import noise

    found = {}
    for name, (call, by) in cases().items():
        found[name] = kernels(call), written(call) / (by.numel() * by.element_size())
    noise.begin(0, None)
    return found


def of_commit(commit: str, folder: Path) -> dict[str, tuple[int, float]]:
    """The counts of another commit of this repository."""
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        command = [sys.executable, str(Path(__file__).resolve()), "--json"]
        told = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)}
        )
        return json.loads(told.stdout)
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def report(now: dict[str, tuple[int, float]], before: dict[str, tuple[int, float]], command: str) -> str:
    what = "operations that write, by torch's profiler on a CPU, and bytes that they write by those of the input"
    lines = [f"# Kernels\n\n`{command}`: {what}.\n"]
    lines += ["| | kernels | bytes |" + (" kernels before | bytes before |" if before else "")]
    lines += ["| --- | ---: | ---: |" + (" ---: | ---: |" if before else "")]
    for name, (launches, size) in now.items():
        then = f" {before[name][0]:,} | {before[name][1]:.1f} |" if before else ""
        lines.append(f"| {name} | {launches:,} | {size:.1f} |{then}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a commit to compare with")
    parser.add_argument("--json", action="store_true", help="print the counts alone")
    parser.add_argument("--output", default="benchmarks/results/kernels.md")
    args = parser.parse_args()
    now = count()
    if args.json:
        print(json.dumps(now))
        return
    with tempfile.TemporaryDirectory() as folder:
        before = of_commit(args.base, Path(folder) / "base") if args.base else {}
    table = report(now, before, "python benchmarks/kernels.py" + (f" --base {args.base}" if args.base else ""))
    Path(args.output).write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
