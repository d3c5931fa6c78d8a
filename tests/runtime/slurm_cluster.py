"""A real Slurm of two nodes on this machine, from the distribution's packages, and nothing of it left behind."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP OverTimeLimit=0
"""
"""cred_expire: a requeued job starts again after that many seconds (the default is 120). No accounting: as on many a
small cluster, the controller alone knows what a job did."""


@contextmanager
def slurm_cluster() -> Iterator[Path]:
    """Nodes n1 and n2 that take jobs; SLURM_CONF names the cluster meanwhile. Skips where Slurm is not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in NEEDED if not shutil.which(name, path=path)]
    if absent:
        pytest.skip(f"no {', '.join(absent)} here: `apt-get install slurm-wlm munge`")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: munge's socket lies in it
    folder.chmod(0o755)
    (folder / "key").write_bytes(secrets.token_bytes(128))
    (folder / "key").chmod(0o400)
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, user=user, folder=folder, ports=_free_ports(3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name in [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_JOB", "RAY_"))]:
            patch.delenv(name)
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            _start(folder, daemons)
            yield folder
        finally:
            if len(daemons) > 1:
                subprocess.run(["scancel", "--user", user], capture_output=True, timeout=60)
                _wait(lambda: not _output("squeue", "--noheader"), "the end of all jobs", folder, 40)
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(15)
                daemon.kill()
                daemon.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    munge = [f"--{name}={folder}/{file}" for name, file in (("key-file", "key"), ("socket", "munge"))]
    munge += [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "seed-file", "log-file")]
    for command in (
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ):
        with (folder / f"{len(daemons)}-{command[0]}.out").open("wb") as log:
            daemons.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
        if command[0] == "munged":
            _wait((folder / "munge").exists, "munge", folder)
    _wait(lambda: _output("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"], "two idle nodes", folder)


def _wait(condition, what: str, folder: Path, timeout_s: float = 60) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            logs = {log.name: log.read_text(errors="replace")[-500:] for log in folder.glob("*.out")}
            raise AssertionError(f"Slurm: no {what} within {timeout_s:g} s: {logs}")
        time.sleep(0.2)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
