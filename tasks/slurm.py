"""A training as a job of Slurm: submitted, followed, and cancelled when nobody waits for it any more.

One ``srun`` task on each node runs torchrun; they meet at a port of the first node. What happens to the flow:

- interrupted (cancelled, timed out, Ctrl-C): ranks get SIGTERM and 20 s to save, then the job is cancelled;
- killed, or its worker gone: the job goes on. A record beside the log, ``<name>.json``, is written before the job is submitted and again with its
  number, so that the next attempt follows the job that runs; if it was killed in between, the job is found by its name.

A job near its time limit is told to save (see ``SIGNAL``). A job that Slurm requeues (preemption, lost node) is the same job and resumes.

Imports no Prefect.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from ace_core.errors import ConfigError, fail
from ace_core.launch_config import SlurmLaunch
from ace_core.lineage import read_json
from ace_core.provenance import write_json
from ace_core.signals import STOPPED_EXIT_CODE
from tasks.follow import (
    RANK_GRACE,
    STARTS,
    OnLine,
    OnTick,
    Output,
    TrainingFailed,
    TrainingRefused,
    WorkerGone,
    failure,
    follow_from,
    noticing_the_worker,
    require_main_thread,
    until,
    wait,
)

T = TypeVar("T")

POLL = 5.0  # seconds between questions to Slurm
SAVE_GRACE = 20.0  # seconds for ranks to save when the job is cancelled
GONE_SECONDS = (
    60.0  # until a cancelled job must have left the queue; Slurm itself kills after KillWait (30 s where nobody set it)
)
SUBMIT_SECONDS = 60.0  # for sbatch
SILENT_SECONDS = 600.0  # that Slurm may not answer
SIGNAL = 120  # seconds before the time limit; Slurm may be a minute early
TIME_LIMIT = 124  # exit code of the script, as of timeout(1)

_ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
    "REVOKED",
)
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
GONE = "UNKNOWN"  # no longer known to Slurm
# Of sbatch: nothing wrong with the job.
_PASSING = (
    "timed out",
    "unable to contact",
    "connection refused",
    "zero bytes",
    "communication connection",
    "try again",
)


@dataclass(frozen=True)
class Record:
    """Of a job, in a file. job: its number; None while it is being submitted. cancelling: its end is not worth waiting for."""

    log: str
    job: str | None = None
    cancelling: bool = False


def launch(
    config: SlurmLaunch,
    arguments: Sequence[str],
    *,
    name: str,
    ranks: int,
    log: Path,
    on_line: OnLine = print,
    on_tick: OnTick | None = None,
) -> None:
    """As :func:`tasks.launch.start`. ranks: on each node.

    Raises :class:`TrainingFailed` with Slurm's word for the end of the job, :class:`TrainingRefused` if a rank left with exit code 2,
    :class:`ConfigError` if there is no Slurm or it will not take the job.
    """
    require_main_thread()
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.parent.absolute() / f"{name}.json"
    record = _running(file, name, on_line)
    attached = record is not None
    if record is None:
        record = Record(str(log.absolute()))
        script = log.absolute().with_suffix(".sbatch")
        script.write_text(render(config, arguments, name=name, ranks=ranks, log=Path(record.log)))
        write_json(file, asdict(record))
        try:
            record = replace(record, job=_submit(script))
        except ConfigError:
            file.unlink()
            raise
        except BaseException:
            _abandon(file, record, name)
            raise
    _follow(file, record, name, on_line, on_tick, attached)


def _follow(file: Path, record: Record, name: str, on_line: OnLine, on_tick: OnTick | None, attached: bool) -> None:
    """Until the job has ended; the record, which is written first, is removed then."""
    job, log = str(record.job), Path(record.log)
    watched, goes_on = Watched(job, on_line), f"Slurm job {job} goes on"
    output: Output | None = None
    try:
        write_json(file, asdict(record))
        with noticing_the_worker(goes_on):
            on_line(f"Slurm job {job} ({name}), log {log}" + (", submitted by an earlier attempt" if attached else ""))
        log.touch()
        output = Output(follow_from(log, attached), on_line)
        wait(watched.ended, output, on_tick, goes_on)
        # Closed and opened, a file on a shared disk shows all that other hosts wrote.
        output.reopen(log)
        output.read(ended=True)
    except WorkerGone:
        raise
    except BaseException:
        cancel(file, record)
        if output is not None:
            with contextlib.suppress(Exception):
                output.read(ended=True)
        raise
    finally:
        if output is not None:
            output.source.close()
    result = _result(file, job)
    code = int(result.read_text()) if result.exists() else None
    result.unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    state = "TIMEOUT" if code == TIME_LIMIT else watched.state
    if code == 0 or (code is None and state == "COMPLETED"):
        return
    if state.startswith("CANCELLED"):
        found, fix = f"was cancelled by somebody; the log is {log}", "run again to resume"
        raise fail(TrainingRefused, f"Slurm job {job}", found, "", fix)
    why = {
        None: "ended by Slurm; run again to resume",
        TIME_LIMIT: "the ranks were stopped before the time limit and saved a checkpoint; run again to resume",
        STOPPED_EXIT_CODE: "the ranks were stopped by a signal and saved a checkpoint; run again to resume",
    }.get(code, f"ended with exit code {code}")
    raise failure(why, output, log, f"Slurm job {job} ({state}): ")


class Watched:
    """A job as squeue tells of it, asked every POLL seconds; changes are told to ``on_line``."""

    def __init__(self, job: str, on_line: OnLine) -> None:
        self.job, self.on_line = job, on_line
        self.state, self._told = "", ""
        self._next, self._heard = 0.0, time.monotonic()

    def ended(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + POLL
        status = _status(self.job)
        if status is None:
            # A controller that restarts must not end a training.
            if now - self._heard > SILENT_SECONDS:
                raise TrainingFailed(
                    f"Slurm has not answered for {SILENT_SECONDS:.0f} s; job {self.job} is being cancelled"
                )
            return False
        self._heard = now
        self.state, reason = status
        told = f"{self.state} ({reason})" if self.state in _WAITING and reason else self.state
        if told != self._told:
            self.on_line(f"Slurm job {self.job}: {told}")
            self._told = told
        return self.state in (*_ENDED, GONE)


def cancel(file: Path, record: Record) -> None:
    """Let the ranks save, then cancel the job, and wait until it has gone. The record is removed then; one of a job that has not gone stays."""
    assert record.job is not None
    job = record.job
    try:
        # On a full disk the job must go all the same.
        with contextlib.suppress(OSError):
            write_json(file, asdict(replace(record, cancelling=True)))
        status = _status(job)
        if status is None or status[0] not in _WAITING:
            # To the steps alone: the script would be the first to die.
            _run("scancel", "--signal=TERM", job)
            until(lambda: _gone(job), SAVE_GRACE)
    finally:
        _run("scancel", job)
        if until(lambda: _gone(job), GONE_SECONDS):
            _result(file, job).unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _result(file: Path, job: str) -> Path:
    """Where the script leaves its exit code."""
    return file.with_name(f"{file.stem}.{job}.exit")


def _running(file: Path, name: str, on_line: OnLine) -> Record | None:
    """The record of a job that an earlier attempt left running. One that was being cancelled is seen to its end.

    Raises :class:`TrainingFailed` where there may be a job that nobody can tell of, or that will not go: a second must not join it.
    """
    found = read_json(file)
    if found is None:
        return None
    record = Record(**found)
    if record.job is None:
        job = _submitted(file, name, on_line)
        if job is None:
            return None
        record = replace(record, job=job)
    job = str(record.job)
    if record.cancelling:
        cancel(file, record)
        if file.exists():
            raise TrainingFailed(f"Slurm job {job} of an earlier attempt has not ended yet; run again when it has")
        return None
    try:
        status = _answer(lambda: _status(job))
    except BaseException:
        cancel(file, record)
        raise
    if status is None:
        raise TrainingFailed(f"Slurm has not answered for {SILENT_SECONDS:.0f} s; its job {job} may run")
    # One that ended while nobody looked says nothing that the training's folder does not.
    return None if status[0] in (*_ENDED, GONE) else record


def _submitted(file: Path, name: str, on_line: OnLine) -> str | None:
    """The number of a job whose record has none, as its attempt was killed around sbatch; None if nothing was submitted."""
    # Its sbatch may be at work yet.
    end = file.stat().st_mtime + SUBMIT_SECONDS
    left = max(0.0, end - time.time())
    on_line(f"looking for a job {name} that an earlier attempt may have submitted, for {left:.0f} s")
    while True:
        jobs = _named(name)
        if jobs is None:
            jobs = _answer(lambda: _named(name))
            # It may have waited for the same controller.
            end = time.time() + SUBMIT_SECONDS
        if jobs is None:
            raise TrainingFailed(f"Slurm has not answered for {SILENT_SECONDS:.0f} s; a job {name} may run")
        if jobs:
            return jobs[0]
        if time.time() > end:
            return None
        time.sleep(0.5)


def _answer(ask: Callable[[], T | None]) -> T | None:
    """What Slurm says, for which it has SILENT_SECONDS; None if it says nothing."""
    end = time.monotonic() + SILENT_SECONDS
    while (said := ask()) is None and time.monotonic() < end:
        time.sleep(POLL)
    return said


def _abandon(file: Path, record: Record, name: str) -> None:
    """Interrupted while sbatch was at work: cancel what it has submitted."""
    end = time.monotonic() + POLL
    while not (jobs := _named(name)) and time.monotonic() < end:
        time.sleep(0.5)
    if jobs:
        cancel(file, replace(record, job=jobs[0]))


def render(config: SlurmLaunch, arguments: Sequence[str], *, name: str, ranks: int, log: Path) -> str:
    """The script of a job. name: of the job; log: absolute, receives all output."""
    gpus = ranks if config.gpus_per_node is None else config.gpus_per_node
    options = [
        f"--job-name={name}",
        f"--nodes={config.nodes}",
        "--ntasks-per-node=1",
        f'--chdir="{Path.cwd()}"',
        f'--output="{str(log).replace("%", "%%")}"',
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{SIGNAL}",
    ]
    options += [f"--gpus-per-node={gpus}"] if gpus else []
    for key in ("partition", "account"):
        options += [f"--{key}={getattr(config, key)}"] if getattr(config, key) else []
    options += [f"--time={config.time_limit}"] if config.time_limit else []
    torchrun = _TASK.format(python=shlex.quote(sys.executable), nodes=config.nodes, ranks=ranks, grace=RANK_GRACE)
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in [*options, *config.directives]),
        result=shlex.quote(str(log.parent / name)),
        starts=STARTS,
        setup="\n".join(config.setup),
        ranks=ranks,
        torchrun=shlex.quote(torchrun),
        arguments=shlex.join(arguments),
        nodes=config.nodes,
        time_limit=TIME_LIMIT,
        stopped=STOPPED_EXIT_CODE,
    )


# Of each node. Slurm signals every process of a step, this shell among them; and after a task that failed it ends the others, which may be
# saving: those that were told to stop have not failed.
_TASK = """
stopped=
trap 'stopped=1' TERM
ACE_SUPERVISOR_PID=$$ {python} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={ranks} \\
  --rdzv-backend=c10d --rdzv-endpoint="$ACE_RENDEZVOUS" --rdzv-id="$SLURM_JOB_ID" \\
  --rdzv-conf="is_host=$((SLURM_PROCID == 0))" --shutdown-timeout={grace} "$@"
code=$?
[ -z "$stopped" ] || {{ echo > "$ACE_STOPPED"; code=0; }}
exit "$code"
"""

_SCRIPT = """#!/bin/bash
{options}
result={result}."$SLURM_JOB_ID".exit
export ACE_STOPPED="$result.stopped"
rm -f "$result" "$ACE_STOPPED"
echo "{starts}: job $SLURM_JOB_ID, attempt $((${{SLURM_RESTART_COUNT:-0}} + 1)), on $SLURM_JOB_NODELIST"
{setup}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export ACE_RENDEZVOUS="$first:$((20000 + SLURM_JOB_ID % 10000))"
export PYTHONUNBUFFERED=1
# srun does not take over what sbatch was asked for.
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
cores=${{SLURM_CPUS_ON_NODE:-{ranks}}}
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$((cores > {ranks} ? cores / {ranks} : 1))}}"

# The shell outlives its step. USR1: the time limit is near.
limit= signalled=
trap 'signalled=1' TERM
trap 'signalled=1; limit=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 \\
  bash -c {torchrun} torchrun {arguments} </dev/null &
step=$!
while :; do
  signalled=
  wait "$step"
  code=$?
  [ -n "$signalled" ] || break
done
[ ! -e "$ACE_STOPPED" ] || code=${{limit:+{time_limit}}} code=${{code:-{stopped}}}
rm -f "$ACE_STOPPED"
echo "$code" > "$result.tmp" && mv "$result.tmp" "$result"
exit "$code"
"""


def _submit(script: Path) -> str:
    """The number of the job. Raises :class:`ConfigError` if Slurm is not there or refuses, :class:`TrainingFailed` if it does not answer."""
    try:
        # Of a session of its own: Ctrl-C would leave open whether there is a job.
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=SUBMIT_SECONDS,
            start_new_session=True,
            # Ranks have no business with Prefect, whose key would lie in Slurm's files.
            env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT")},
        )
    except FileNotFoundError:
        fix = "run the flow where Slurm's commands are, such as a worker on a login node, or launch: {type: local}"
        raise fail(ConfigError, "launch.type", "slurm, but there is no sbatch here", "sbatch on PATH", fix) from None
    except subprocess.TimeoutExpired:
        raise TrainingFailed(f"sbatch did not answer within {SUBMIT_SECONDS:.0f} s") from None
    said = done.stderr.strip()
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1].partition(";")[0]
    if any(word in said.lower() for word in _PASSING):
        raise TrainingFailed(f"sbatch: {said}")
    raise fail(
        ConfigError, "launch", f"Slurm refused the job: {said}", "", f"mend launch in the pipeline file; {script}"
    )


def _status(job: str) -> tuple[str, str] | None:
    """State and reason; GONE for a job that Slurm has forgotten, None where Slurm does not answer."""
    done = _run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r")
    if done is None or (done.returncode != 0 and "invalid job id" not in done.stderr.lower()):
        return None
    if done.returncode == 0 and done.stdout.strip():
        state, _, reason = done.stdout.strip().splitlines()[0].partition("|")
        return state, "" if reason == "None" else reason
    # Forgotten minutes after its end; with accounting it is still known how it ended.
    done = _run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State")
    words = done.stdout.split() if done is not None and done.returncode == 0 else []
    return (words[0] if words else GONE), ""


def _gone(job: str) -> bool:
    status = _status(job)
    return status is not None and status[0] in (*_ENDED, GONE)


def _named(name: str) -> list[str] | None:
    """Numbers of our jobs of a name that are in the queue; None where Slurm does not answer."""
    done = _run("squeue", "--me", "--noheader", f"--name={name}", "--format=%A")
    return done.stdout.split() if done is not None and done.returncode == 0 else None


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """None where it could not be run or took too long."""
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=30,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
