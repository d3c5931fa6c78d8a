"""Is a whole cluster fit for a run, before a model is loaded: every rank looks around (`probe`), the driver judges.

A finding is a level and a sentence; a PROBLEM ends with what to do about it.
"""

from __future__ import annotations

import base64
import os
import shutil
import statistics
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distdl.config.schema import Config
from distdl.errors import DistdlError
from distdl.plan.memory import STATES_PER_WEIGHT
from distdl.plan.plan import Plan
from distdl.track.run import default_tracking_uri

if TYPE_CHECKING:
    from distdl.runtime.probe import Facts

GOOD, NOTE, BAD = "ok", "note", "PROBLEM"
Finding = tuple[str, str]

CLOCK_S = 2.0
"""Clocks may differ by this much: beyond it the times in logs and metrics mislead, and tokens of object stores expire."""
SLOW = 4.0
"""A pair of nodes this many times slower than the middle one has a problem of its own."""
SHARED_MEMORY_BYTES = 2**30
TABLE = 16
"""Nodes whose pairs are shown as a table."""
TIMEOUT_S = 90.0
"""For the ranks to find each other and look around; training would wait for `runtime.timeout_s`."""

FOLDER = {
    "missing": ("does not see", "mount that file system there at the same place"),
    "other": (
        "has another folder of its own at",
        "`runs` must be one shared file system (NFS, Lustre, …)",
    ),
    "one way": ("writes what the first rank does not see in", "mount it without a local cache (or with actimeo=1)"),
    "error": ("cannot read and write", "check its rights and its export for the user that trains"),
}
"""First word of `Facts.folder` -> what the rank does, and the cure."""


def preflight(plan: Plan) -> Iterator[Finding]:
    """Findings of a planned run on its runtime. Starts the workers as training does, for some seconds."""
    from distdl.runtime.probe import Question

    config = plan.settings
    yield from tracker(config)
    runs = Path(config.runs).absolute()
    question = Question(str(runs), plan.data.path, uuid.uuid4().hex)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        if config.runtime.kind == "ray":
            from distdl.runtime.ray import on_every_rank
        else:
            from distdl.runtime.local import on_every_rank
        timeout_s = min(TIMEOUT_S, config.runtime.timeout_s)
        facts = on_every_rank(plan, question, timeout_s)
    except DistdlError as error:
        yield BAD, str(error)
        return
    except Exception as error:
        yield BAD, _no_group(error)
        return
    finally:
        shutil.rmtree(runs / f".preflight-{question.token}", ignore_errors=True)
    yield from judge(facts, plan)


def judge(facts: Sequence[Facts], plan: Plan) -> Iterator[Finding]:
    """What the facts of all ranks come to."""
    nodes = Counter(f.node for f in facts)
    yield GOOD, f"{len(facts)} ranks on {len(nodes)} node{'s'[: len(nodes) - 1]} found each other: {', '.join(nodes)}"
    yield from skew(facts)
    yield from folder(facts, plan.settings)
    yield from space(facts, plan)
    yield from data(facts, plan)
    yield from clock(facts)
    yield from processors(facts, plan)
    yield from shared_memory(facts)
    yield from network(facts)


def skew(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Versions that differ between ranks."""
    names = list(dict.fromkeys(name for f in facts for name in f.versions))
    clean = True
    for name in names:
        found = Counter(f.versions.get(name, "missing") for f in facts)
        usual = found.most_common(1)[0][0]
        for version in [version for version in found if version != usual]:
            clean = False
            where = _where([f for f in facts if f.versions.get(name, "missing") == version])
            fix = "the same image or environment on every node"
            yield BAD, f"{name} is {version} on {where} and {usual} elsewhere\n    fix: {fix}"
    if clean:
        some = ", ".join(f"{name} {facts[0].versions[name]}" for name in names if name in ("Python", "torch", "ray"))
        yield GOOD, f"the same versions and the same source everywhere ({some})"


def folder(facts: Sequence[Facts], config: Config) -> Iterator[Finding]:
    """One shared folder of the runs, written and read by all."""
    runs = Path(config.runs).absolute()
    for word, (what, fix) in FOLDER.items():
        ranks = [f for f in facts if f.folder.startswith(word)]
        if word == "one way":  # the first rank tells it of another
            ranks = [facts[int(f.folder.split()[-1])] for f in ranks]
        if ranks:
            why = f": {ranks[0].folder.removeprefix('error ')}" if word == "error" else ""
            yield BAD, f"{_where(ranks)} {what} {runs}{why}\n    fix: {fix}"
    if not any(f.folder for f in facts):
        yield GOOD, f"{runs} is one folder, which every rank reads and writes"


def space(facts: Sequence[Facts], plan: Plan) -> Iterator[Finding]:
    """Room for the checkpoints that are kept and the one that is being written."""
    kept = plan.settings.checkpoint.keep_last + plan.settings.checkpoint.keep_best + 1
    one, free = checkpoint_bytes(plan), facts[0].free_bytes
    what = f"{_size(free)} free for {kept} checkpoints of {_size(one)} (kept, and one being written)"
    fix = "\n    fix: make room, lower checkpoint.keep_last or keep_best, or put `runs` elsewhere"
    yield (GOOD, what) if free > kept * one else (BAD, what + fix)


def checkpoint_bytes(plan: Plan) -> int:
    """Size of one checkpoint: weights and optimizer state in full, in fp32, whatever the layout."""
    optimizer = plan.settings.optimizer
    states = STATES_PER_WEIGHT[optimizer.name] + bool(getattr(optimizer, "momentum", 0))
    return 4 * (plan.model.parameters + states * plan.model.trainable)


def data(facts: Sequence[Facts], plan: Plan) -> Iterator[Finding]:
    """The same data set on every rank."""
    broken = [f for f in facts if f.data_error]
    for why in dict.fromkeys(f.data_error for f in broken):
        ranks = [f for f in broken if f.data_error == why]
        fix = "copy or mount the data set there at the same place, or give data.path an object store's address"
        yield BAD, f"{_where(ranks)} cannot read the data set: {why}\n    fix: {fix}"
    found = Counter(f.fingerprint for f in facts if f.fingerprint)
    usual = plan.data.fingerprint or (found.most_common(1)[0][0] if found else "")
    other = [f for f in facts if f.fingerprint not in ("", usual)]
    if other:
        fix = "write it once and copy it to every node"
        yield BAD, f"{_where(other)} has another data set at {plan.data.path}\n    fix: {fix}"
    if not broken and not other:
        yield GOOD, f"every rank reads the same data set at {plan.data.path} ({usual[:12]})"


def clock(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Clocks that tell other times."""
    worst = max(facts, key=lambda f: abs(f.clock_s))
    if abs(worst.clock_s) <= CLOCK_S:
        yield GOOD, f"the clocks agree within {abs(worst.clock_s):.3f} s"
    for f in facts:
        if abs(f.clock_s) > CLOCK_S:
            way = "ahead of" if f.clock_s > 0 else "behind"
            what = f"the clock of {f.node} is {abs(f.clock_s):.1f} s {way} that of {facts[0].node}"
            yield BAD, f"{what}\n    fix: run chronyd or systemd-timesyncd on every node"


def processors(facts: Sequence[Facts], plan: Plan) -> Iterator[Finding]:
    """GPUs where the plan wants them, and alike."""
    if plan.device == "cpu":
        yield NOTE, "the plan trains on CPUs, over gloo"
        return
    without = [f for f in facts if not f.gpus]
    if without:
        yield BAD, f"{_where(without)} has no GPU that torch can use\n    fix: check its driver, and torch's CUDA build"
    models = Counter(gpu for f in facts for gpu in f.gpus[:1])
    text = ", ".join(f"{count} x {name}" for name, count in models.items())
    yield (GOOD, text) if len(models) < 2 else (NOTE, f"{text}: the slowest sets the pace")


def shared_memory(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Room in /dev/shm."""
    small = [f for f in facts if f.shared_memory_bytes < SHARED_MEMORY_BYTES]
    least = min(f.shared_memory_bytes for f in facts)
    if small:
        what = f"/dev/shm of {_where(small)} has only {_size(least)}; Ray's object store and NCCL need more"
        yield BAD, f"{what}\n    fix: docker run --shm-size=8g, or an emptyDir of medium Memory at /dev/shm"
    else:
        yield GOOD, f"at least {_size(least)} of shared memory on every node"


def network(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Speed of every pair of nodes."""
    links = {(f.rank, other): link for f in facts for other, link in f.links.items()}
    if not links:
        return
    (a, b), (slowest, _) = min(links.items(), key=lambda item: item[1][0])
    middle = statistics.median(speed for speed, _ in links.values())
    latency = max(way for _, way in links.values())
    one = len({f.node for f in facts}) == 1
    pair = "two ranks of this node" if one else f"{facts[a].node} and {facts[b].node}"
    among = "" if len(links) == 1 else f", the slowest of {len(links)} pairs (the middle one: {middle:,.0f} MB/s)"
    text = f"{slowest:,.0f} MB/s between {pair}{among}"
    if slowest * SLOW < middle:
        fix = "its cable, port and driver; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names the fast interface"
        yield BAD, f"{text}\n    fix: {fix}"
    else:
        yield GOOD, f"{text}, at most {latency:.2f} ms one way"
    ranks = sorted({rank for pair in links for rank in pair})
    all_pairs = len(ranks) * (len(ranks) - 1) // 2
    if len(links) < all_pairs:
        each = 2 * len(links) / len(ranks)
        yield (
            NOTE,
            f"each node was measured with {each:.0f} others, {len(links)} of {all_pairs} pairs: more takes too long",
        )
    if len(links) > 1 and len(ranks) <= TABLE:
        yield NOTE, "MB/s between nodes:\n" + matrix(facts, links)
    elif len(links) > 1:
        yield NOTE, "the slowest nodes, by the middle one of their pairs: " + _slowest_nodes(facts, ranks, links)


def _slowest_nodes(facts: Sequence[Facts], ranks: Sequence[int], links: dict[tuple[int, int], Any]) -> str:
    of = {rank: statistics.median(speed for pair, (speed, _) in links.items() if rank in pair) for rank in ranks}
    return ", ".join(f"{facts[rank].node} {of[rank]:,.0f} MB/s" for rank in sorted(of, key=lambda r: of[r])[:5])


def matrix(facts: Sequence[Facts], links: dict[tuple[int, int], Any]) -> str:
    """The speeds as a table; a number of a column is that of its row."""
    ranks = sorted({rank for pair in links for rank in pair})
    names = [f"{number} {facts[rank].node}" for number, rank in enumerate(ranks)]
    width = max(map(len, names))
    lines = [" " * (4 + width) + "".join(f"{number:>8}" for number in range(len(ranks)))]
    for a, name in zip(ranks, names):
        cells = [links.get((min(a, b), max(a, b))) for b in ranks]
        lines.append(f"    {name:<{width}}" + "".join(f"{cell[0]:8,.0f}" if cell else f"{'-':>8}" for cell in cells))
    return "\n".join(lines)


# -- the tracker -------------------------------------------------------------------------------------------------------


def tracker(config: Config) -> Iterator[Finding]:
    """Does the tracking server answer, and does it take us? Asked from the driver, which runs the uploader."""
    if not config.track.enabled:
        yield NOTE, "the run is not tracked (track.enabled=false)"
        return
    uri = config.track.uri or default_tracking_uri(Path(config.runs))
    if urlsplit(uri).scheme not in ("http", "https"):
        yield GOOD, f"tracked in {uri}"
        return
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    if authorization := _authorization():
        request.add_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()
        yield GOOD, f"the tracking server {uri} answers and takes us"
    except urllib.error.HTTPError as error:
        yield BAD, f"the tracking server {uri} {_refusal(error)}"
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        fix = "check track.uri, the server and the network policy between; events wait in the run folder meanwhile"
        yield BAD, f"the tracking server {uri} does not answer: {why}\n    fix: {fix}"


def _authorization() -> str:
    """MLflow's own variables, as its client uses them."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else ""


def _refusal(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        have = "refuses the credentials" if _authorization() else "wants credentials"
        return f"{have} (401)\n    fix: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if error.code == 403:
        host = "its --allowed-hosts may lack the name in track.uri"
        return f"forbids it (403)\n    fix: give this user the right to write, or look at the server's log: {host}"
    return f"answers {error.code} {error.reason}\n    fix: is that the address of an MLflow server? look at its log"


def _no_group(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip("= ")]
    return (
        f"the ranks could not meet: {type(error).__name__}: {lines[-1] if lines else ''}\n"
        "    fix: let the nodes reach each other on all ports, and let every host name resolve to the address that the\n"
        "    others reach; with several networks, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names the one to use"
    )


def _where(ranks: Sequence[Facts]) -> str:
    """`node b (rank 1)`, nodes first."""
    nodes: dict[str, list[int]] = {}
    for f in ranks:
        nodes.setdefault(f.node, []).append(f.rank)
    return ", ".join(f"{node} (rank{'s'[: len(r) - 1]} {', '.join(map(str, r))})" for node, r in nodes.items())


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
