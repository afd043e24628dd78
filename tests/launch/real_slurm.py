"""A private Slurm of two nodes on this machine, where its daemons are installed: munged, slurmctld and two slurmd with ports of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")

_CONFIG = """
ClusterName=ace
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
ReturnToService=2
MpiDefault=none
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName={host}-b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def installed() -> bool:
    return os.geteuid() == 0 and all(shutil.which(daemon) for daemon in DAEMONS)


class RealSlurm:
    """Sets nothing in the environment: SLURM_CONF names ``config``."""

    def __init__(self) -> None:
        # Not pytest's folder: the path of a socket is short.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.config = self.folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(3)
        self.config.write_text(_CONFIG.format(host=host, folder=self.folder, ports=ports))
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        (self.folder / "state").mkdir()
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        _call("munged", "--force", f"--socket={munge / 'socket'}", *files)
        _call("slurmctld", "-f", str(self.config))
        for node in (host, f"{host}-b"):
            _call("slurmd", "-N", node, "-f", str(self.config))
        end = time.monotonic() + 60
        while "idle|2" not in self._sinfo():
            assert time.monotonic() < end, self._sinfo()
            time.sleep(0.2)

    def _sinfo(self) -> str:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T|%D"],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"SLURM_CONF": str(self.config)},
        )
        return done.stdout + done.stderr

    def stop(self) -> None:
        for file in [*self.folder.glob("*.pid"), self.folder / "munge" / "pid"]:
            pid = int(file.read_text())
            os.kill(pid, signal.SIGTERM)
            end = time.monotonic() + 20
            while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
                time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


def _call(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
