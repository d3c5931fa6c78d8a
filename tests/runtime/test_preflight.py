"""`distdl doctor --config`: a cluster that is fit is called fit, and each fault is named with its place and its cure."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from distdl.cli.main import make_parser
from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.jobs.target import Job, Package, State
from distdl.plan.plan import Plan
from distdl.runtime import preflight
from distdl.runtime.preflight import BAD, GOOD, NOTE, judge, tracker
from distdl.runtime.probe import MOST_ROUNDS, Facts, Question, clock_rounds, look_around, rounds, source_digest
from distdl.train.survey import survey
from tests.conftest import Result, distdl
from tests.ranks import run_ranks
from tests.small import small_config

Command = Callable[..., Result]


def looked(rank: int, world: int, questions: list[dict[str, str]], faults: dict[str, Any]) -> list[dict[str, Any]]:
    """`look_around` with a question for each rank; `faults` are what the last rank is made to see."""
    from distdl.runtime import probe

    if rank == world - 1:
        ahead, versions, clock = faults.get("clock_s", 0.0), probe.versions, probe.time.time
        probe.versions = lambda: versions() | faults.get("versions", {})
        probe.time.time = lambda: clock() + ahead
    found = look_around(Question(**questions[rank]), rank, world, f"node{rank}")
    return [asdict(facts) for facts in found]


def findings(config: Config, plan: Plan, world: int = 2, faults: Any = None, **mine: str) -> list[tuple[str, str]]:
    """What comes of it where the last rank has `mine` in its question."""
    question = {"runs": config.runs, "data": config.data.path, "token": "t"}
    Path(config.runs).mkdir(exist_ok=True)
    told = run_ranks(looked, world, [question] * (world - 1) + [question | mine], faults or {})
    assert all(facts == told[0] for facts in told)
    for facts in told[0]:
        facts["links"] = {int(other): tuple(link) for other, link in facts["links"].items()}
    assert not [path for path in Path(config.runs).iterdir() if "preflight" in path.name]
    return list(judge([Facts(**facts) for facts in told[0]], plan))


def problems(found: list[tuple[str, str]]) -> list[str]:
    return [text for level, text in found if level == BAD]


@pytest.fixture
def config(digits: str, tmp_path: Path) -> Config:
    return config_from_dict(small_config("mlp", digits, "") | {"runs": str(tmp_path / "runs")})


@pytest.fixture
def plan(config: Config) -> Plan:
    return survey(config)


@pytest.fixture
def facts(config: Config, plan: Plan) -> list[Facts]:
    """Four nodes without a fault."""
    versions = {"Python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0", "distdl's source": "abc"}
    nodes = [
        Facts(rank, f"node{rank}", versions, [], 2**33, 2**40, fingerprint=plan.data.fingerprint) for rank in range(4)
    ]
    for pairs in rounds(range(4)):
        for a, b in pairs:
            nodes[a].links[b] = (1200.0, 0.05)
    return nodes


# -- ranks that really look --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_fit_ranks(config: Config, plan: Plan) -> None:
    found = findings(config, plan, world=3)
    assert problems(found) == []
    text = "\n".join(text for _, text in found)
    assert "3 ranks on 3 nodes found each other: node0, node1, node2" in text
    assert f"{config.runs} is one folder, which every rank reads and writes" in text
    assert "the slowest of 3 pairs" in text and text.splitlines()[-3].split()[:2] == ["0", "node0"]
    assert "the clocks agree within 0.0" in text and plan.data.fingerprint[:12] in text


@pytest.mark.slow
def test_every_fault_of_a_node_is_named_in_one_look(config: Config, plan: Plan, tmp_path: Path) -> None:
    """A folder of its own under the same name, a missing data set, another torch, a clock that is ahead."""
    (tmp_path / "local").mkdir()
    faults = {"clock_s": 90.0, "versions": {"torch": "2.10.0", "distdl's source": "0" * 12}}
    found = problems(findings(config, plan, 2, faults, runs=str(tmp_path / "local"), data=str(tmp_path / "no")))
    text = "\n".join(found)
    assert len(found) == 5 and all("\n    fix: " in problem for problem in found)
    assert f"node1 (rank 1) has another folder of its own at {config.runs}" in text
    assert "node1 (rank 1) cannot read the data set: " in text
    assert "torch is 2.10.0 on node1 (rank 1) and 2" in text  # 1 to 1: which is the usual one is anybody's guess
    assert f"distdl's source is {'0' * 12} on node1 (rank 1) and {source_digest()}" in text
    assert "the clock of node1 is 90.0 s ahead of that of node0" in text


@pytest.mark.slow
def test_a_folder_that_is_not_there(config: Config, plan: Plan, tmp_path: Path) -> None:
    (found,) = problems(findings(config, plan, runs=str(tmp_path / "unmounted")))
    assert found.startswith(f"node1 (rank 1) does not see {config.runs}") and "mount that file system" in found


# -- the judgement -----------------------------------------------------------------------------------------------------


def test_nothing_is_said_against_a_fit_cluster(facts: list[Facts], config: Config, plan: Plan) -> None:
    assert {level for level, _ in judge(facts, plan)} == {GOOD, NOTE}


def test_the_slow_pair_is_named(facts: list[Facts], config: Config, plan: Plan) -> None:
    facts[1].links[3] = (95.0, 0.4)
    (found,) = problems(list(judge(facts, plan)))
    assert found.startswith("95 MB/s between node1 and node3, the slowest of 6 pairs (the middle one: 1,200 MB/s)")
    table = preflight.matrix(facts, {(f.rank, o): link for f in facts for o, link in f.links.items()}).splitlines()
    assert table[2].split() == ["1", "node1", "1,200", "-", "1,200", "95"]


def test_too_little_space(facts: list[Facts], config: Config, plan: Plan) -> None:
    """mlp with AdamW: weights and two states of each, in fp32; two newest, the best, and the one that is written."""
    one = 12 * plan.model.parameters
    facts[0].free_bytes = 4 * one
    (found,) = problems(list(judge(facts, plan)))
    assert "free for 4 checkpoints of" in found and "checkpoint.keep_last" in found
    facts[0].free_bytes = 4 * one + 1
    assert not problems(list(judge(facts, plan)))


@pytest.mark.slow
def test_the_size_of_a_checkpoint_is_what_a_run_writes(config: Config, plan: Plan, tmp_path: Path) -> None:
    from distdl.checkpoint.layout import checkpoints
    from distdl.run.folder import RunFolder
    from distdl.train import worker

    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    worker.run(plan, folder, 0)
    _, path = checkpoints(folder.checkpoints)[-1]
    written = sum(file.stat().st_size for file in path.glob("tensors-*"))
    assert preflight.checkpoint_bytes(plan) == pytest.approx(written, rel=0.1)


def test_other_faults(facts: list[Facts], config: Config, plan: Plan) -> None:
    facts[0].folder = "one way 2"
    facts[1].folder = "error Permission denied"
    facts[2].shared_memory_bytes = 64 * 2**20
    facts[3].fingerprint = "f" * 64
    facts[3].clock_s = -5.0
    found = problems(list(judge(facts, plan)))
    assert [text.split("\n")[0].split(" at /")[0].split(" in /")[0] for text in found] == [
        "node2 (rank 2) writes what the first rank does not see",
        f"node1 (rank 1) cannot read and write {config.runs}: Permission denied",
        "node3 (rank 3) has another data set",
        "the clock of node3 is 5.0 s behind that of node0",
        "/dev/shm of node2 (rank 2) has only 67.1 MB; Ray's object store and NCCL need more",
    ]


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_every_pair_is_measured_once_and_nobody_twice_at_a_time(count: int) -> None:
    speakers = [10 * i for i in range(count)]
    plan = list(rounds(speakers))
    pairs = [pair for pairs in plan for pair in pairs]
    assert len(pairs) == len(set(pairs)) == count * (count - 1) // 2 and all(a < b for a, b in pairs)
    assert all(len({rank for pair in pairs for rank in pair}) == 2 * len(pairs) for pairs in plan)


@pytest.mark.parametrize("nodes", [64, 63, 512])
def test_many_nodes_take_no_longer_than_sixteen(nodes: int) -> None:
    """Rounds are what takes time: in each, pairs that never spoke connect. Every node has as many partners as another."""
    found = list(rounds(range(nodes), MOST_ROUNDS))
    assert len(found) == len(list(rounds(range(16), MOST_ROUNDS))) == 15
    pairs = [pair for pairs in found for pair in pairs]
    assert len(pairs) == len(set(pairs))
    partners = [sum(rank in pair for pair in pairs) for rank in range(nodes)]
    assert min(partners) >= 14 and max(partners) == 15  # of an odd number, one has none in each round
    told = list(clock_rounds(range(nodes)))
    assert len(told) == (nodes - 1).bit_length()
    know = {0}
    for pairs in told:
        assert {a for a, _ in pairs} <= know and len({r for pair in pairs for r in pair}) == 2 * len(pairs)
        know |= {b for _, b in pairs}
    assert know == set(range(nodes))


def test_the_slow_one_of_64_nodes_is_named_and_what_was_not_measured_is_said(facts: list[Facts], plan: Plan) -> None:
    many = [
        Facts(rank, f"node{rank}", facts[0].versions, [], 2**33, 2**40, fingerprint=plan.data.fingerprint)
        for rank in range(64)
    ]
    for pairs in rounds(range(64), MOST_ROUNDS):
        for a, b in pairs:
            many[a].links[b] = (95.0 if 41 in (a, b) else 1200.0, 0.05)
    found = list(judge(many, plan))
    (problem,) = problems(found)
    assert "95 MB/s between node" in problem and "node41" in problem and "slowest of 480 pairs" in problem
    text = "\n".join(text for _, text in found)
    assert "each node was measured with 15 others, 480 of 2016 pairs" in text
    assert "the slowest nodes, by the middle one of their pairs: node41 95 MB/s, " in text and len(text) < 6000


# -- the tracker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[str]:
    """Takes the user `me` with the password `right`; refuses everybody at /broken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            right = "Basic " + base64.b64encode(b"me:right").decode()
            code = 403 if self.path.startswith("/forbidden") else 200 if given == right else 401
            self.send_response(code if "/api/2.0/mlflow/experiments/search?" in self.path else 404)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def tracked(config: Config, uri: str) -> tuple[str, str]:
    values = config.model_dump(mode="json")
    values["track"] |= {"uri": uri, "enabled": True}
    (finding,) = tracker(config_from_dict(values))
    return finding


def test_the_tracker(config: Config, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    level, text = tracked(config, server)
    assert level == BAD and "wants credentials (401)" in text and "MLFLOW_TRACKING_USERNAME" in text
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wr0ng-s3cret")
    level, text = tracked(config, server)
    assert level == BAD and "refuses the credentials (401)" in text and "wr0ng" not in text
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    assert tracked(config, server) == (GOOD, f"the tracking server {server} answers and takes us")
    level, text = tracked(config, f"{server}/forbidden")
    assert level == BAD and "forbids it (403)" in text and "--allowed-hosts" in text
    level, text = tracked(config, "http://127.0.0.1:9")
    assert level == BAD and "does not answer: " in text and "fix: check track.uri" in text
    assert tracked(config, "sqlite:///x.db")[0] == GOOD


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("on", ["local", "embedded"])
def test_the_command(on: str, tmp_path: Path, digits: str) -> None:
    """Through the starts that training has: torch's launcher, and Ray Train."""
    (tmp_path / "small.yaml").write_text(
        f"name: small\nmodel: {{family: mlp, inputs: [1, 8, 8], hidden: [8]}}\ndata: {{path: {digits}}}\n"
        "train: {global_batch: 32, steps: 9}\noptimizer: {name: adamw, lr: 1e-3}\n"
        "runtime: {kind: ray, workers: 2}\ntrack: {enabled: false}\n"
    )
    (tmp_path / "there").mkdir()
    place = ["--on", "local"] if on == "local" else []
    code, out, err = distdl("doctor", "--config", "small.yaml", "-C", "there", *place, cwd=tmp_path)
    assert "2 ranks on 1 node found each other" in out and "MB/s between two ranks of this node" in out, out + err
    assert f"{tmp_path}/there/runs is one folder" in out
    assert code == ("PROBLEM" in out) and ("the cluster is fit to train" in out) == (code == 0)
    assert not any((tmp_path / "there" / "runs").iterdir())


def test_another_place_is_asked_by_a_job_of_its_own(
    command: Command, tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package, the arguments and the end that `distdl launch` would have, and no training."""
    (tmp_path / "small.yaml").write_text(
        f"name: small\nmodel: {{family: mlp, inputs: [1, 8, 8], hidden: [8]}}\ndata: {{path: {digits}}}\n"
        "train: {global_batch: 32, steps: 9}\noptimizer: {name: adamw, lr: 1e-3}\n"
    )
    sent: list[Package] = []

    class Place:
        state = State.FAILED

        def submit(self, package: Package) -> Job:
            assert (package.folder / "config.yaml").is_file() and (package.folder / "distdl").is_dir()
            sent.append(package)
            return Job(package.id, State.QUEUED)

        def logs(self, id: str, follow: bool = False) -> Iterator[str]:
            yield "PROBLEM  the clock"

        def job(self, id: str) -> Job:
            return Job(id, self.state)

    monkeypatch.setattr("distdl.jobs.targets.target_at", lambda on, launch: Place())
    ask = ("doctor", "--config", tmp_path / "small.yaml", "--on", "http://head:8265", "runtime.workers=4")
    assert command(*ask) == (1, "PROBLEM  the clock\n", "")
    assert sent[0].id == "doctor-small" and sent[0].config.launch.max_retries == 0
    arguments = sent[0].train_arguments("config.yaml", "/shared")
    assert arguments[:5] == ["doctor", "--config", "config.yaml", "-C", "/shared"]
    assert arguments[-2:] == ["runtime.kind=ray", "runtime.address=auto"] and "runtime.workers=4" in arguments
    args = make_parser().parse_args(arguments)
    assert args.command == "doctor" and args.overrides == arguments[5:]
    Place.state = State.FINISHED
    assert command(*ask).code == 0


def test_the_command_without_a_config(command: Command) -> None:
    code, _, err = command("doctor", "--on", "auto")
    assert code == 2 and "no config is given" in err and "--config CONFIG" in err


def test_a_data_set_that_the_driver_does_not_have(
    command: Command, tmp_path: Path, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the rest is looked at all the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "name: small\nmodel: {family: mlp, inputs: [1, 8, 8], hidden: [8]}\ndata: {path: nowhere}\n"
        "train: {global_batch: 32, steps: 9}\noptimizer: {name: adamw, lr: 1e-3}\nruntime: {kind: local}\n"
    )
    code, out, _ = command("doctor", "--config", "small.yaml")
    assert code == 1 and "PROBLEM  on this machine, which runs the driver: " in out
    assert f"{os.uname().nodename} (rank 0) cannot read the data set" in out
    assert out.endswith("2 problems\n")
