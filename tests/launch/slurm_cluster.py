"""A Slurm cluster of this machine alone, in a folder of its own: munged, slurmctld and one slurmd, without accounting."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is queued again waits until its credentials have expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmctldParameters=idle_on_node_suspend
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs that are not installed (Debian: slurm-wlm and munge)."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands reach the cluster; the daemons end with the block."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    config = CONFIG.format(host=host, ports=_free_ports(2), user=getpass.getuser(), folder=folder)
    (folder / "slurm.conf").write_text(config)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {
        **os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    }  # fmt: skip
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    started: list[subprocess.Popen] = []
    try:
        for command in daemons:
            log = open(folder / f"{command[0]}.out", "w")  # noqa: SIM115  (the daemon's, as long as it lives)
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            log.close()
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in _states(environment):
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in started):
                logs = [path.read_text()[-1500:] for path in sorted([*folder.glob("*.out"), *folder.glob("*.log")])]
                raise RuntimeError("Slurm did not start:\n" + "\n".join(logs))
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _states(environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def wait(environment: dict[str, str], timeout: float) -> None:
    """Returns when no job is queued or running."""
    deadline = time.monotonic() + timeout
    while True:
        queue = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True, timeout=60)
        if queue.returncode == 0 and not queue.stdout.strip():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"still in the queue after {timeout:.0f} s:\n{queue.stdout}{queue.stderr}")
        time.sleep(1)
