"""What is told of a run where people look first, its description in MLflow: what ran, what came out, how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import distdl
from distdl.run.folder import NOTE
from distdl.track.points import as_dict
from distdl.track.provenance import read_json, redact

CHECKPOINTS = 5
"""How many of the latest are named."""


def markdown(run_dir: Path, tags: Mapping[str, str], worlds: Sequence[Sequence[int]], end: Mapping[str, Any]) -> str:
    """The note of a run, by the files of its folder. `tags`: where it came from; `worlds`: (step, time, workers) of every
    start; `end`: the event of its end, or {} while it goes on."""
    config, plan = (as_dict(read_json(run_dir / name)) for name in ("config.json", "plan.json"))
    own = str(as_dict(read_json(run_dir / NOTE)).get("text", ""))
    parts = [own, _what(config, plan), _result(run_dir, end, worlds), _repeat(run_dir, tags)]
    return redact("\n\n".join(part for part in parts if part)) + "\n"


def _what(config: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    model, data = as_dict(plan.get("model")), as_dict(plan.get("data"))
    family = model.get("family") or as_dict(config.get("model")).get("family") or "a model"
    text = f"**{family}**"
    if model.get("parameters"):
        text += f", {model['parameters']:,} parameters,"
    text += f" learns from `{as_dict(config.get('data')).get('path', '?')}`"
    if data.get("train_rows"):
        text += f" ({data['train_rows']:,} rows, {data.get('eval_rows', 0):,} held out)"
    workers = as_dict(config.get("runtime"))
    if workers.get("workers"):
        text += f" on {workers['workers']} {workers.get('kind', '')} worker{'s' if workers['workers'] > 1 else ''}"
    if plan.get("steps"):
        text += f", {plan['steps']:,} steps of {as_dict(config.get('train')).get('global_batch', '?')} samples"
    return text + "."


def _result(run_dir: Path, end: Mapping[str, Any], worlds: Sequence[Sequence[int]]) -> str:
    summary = as_dict(end.get("summary"))
    rows = []
    if end:
        state = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "ended before its end"}
        told = state.get(str(end.get("status")), "ended")
        rows.append(("state", told + (f" at step {summary['steps']:,}" if "steps" in summary else "")))
    if end.get("error"):
        rows.append(("why", str(end["error"]).splitlines()[0]))
    rows += [(name, f"{value:.6g}") for name, value in as_dict(summary.get("metrics")).items() if _is_number(value)]
    if _is_number(summary.get("samples_per_s")):
        rows.append(("throughput", f"{summary['samples_per_s']:,.0f} samples/s"))
    seconds = {name: s for name, s in as_dict(summary.get("seconds")).items() if _is_number(s)}
    if seconds:
        rows.append(("time", ", ".join(f"{name} {s:,.1f} s" for name, s in seconds.items())))
    if len({workers for _, _, workers in worlds}) > 1:
        rows.append(("workers", ", ".join(f"{workers} from step {step:,}" for step, _, workers in worlds)))
    if found := checkpoints(run_dir):
        rows.append(("checkpoints", ", ".join(f"`{address}`" for address in found[-CHECKPOINTS:])))
    if not rows:
        return ""
    cells = [f"| {name} | {value.replace('|', '¦')} |" for name, value in rows]
    return "\n".join(["| result | |", "|---|---|", *cells])


def checkpoints(run_dir: Path) -> list[str]:
    """Where its checkpoints are, oldest first, from the folder that the runs lie in: no path of this machine leaves it."""
    found = sorted(path for path in (run_dir / "checkpoints").glob("[!.]*") if path.is_dir())
    return [f"{run_dir.parent.name}/{run_dir.name}/checkpoints/{path.name}" for path in found]


def _repeat(run_dir: Path, tags: Mapping[str, str]) -> str:
    commit = tags.get("mlflow.source.git.commit")
    at = f", in a checkout of commit `{commit}`" if commit else ""
    if tags.get("distdl.git_dirty") == "true":
        at += " (files of it were changed and not committed)"
    data = as_dict(as_dict(read_json(run_dir / "plan.json")).get("data")).get("fingerprint")
    rows = f" The data set has the fingerprint `{data}`." if data else ""
    return (
        f"To repeat it with distdl {distdl.__version__}{at}, with the artifact `config.json` of this run "
        "(`environment.txt` has the versions of everything):\n\n"
        f"    distdl train config.json --fresh\n\n{rows[1:]}\n\n"
        f"To go on with it, where its folder is: `distdl train --resume {run_dir.parent.name}/{run_dir.name}`"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
