"""A training as an indexed job of Kubernetes: created, followed, and deleted when nobody waits for it any more.

One pod for each node, torchrun as its first process, which is told when the pod has to go; the pods meet at the first one by the name that
a headless service gives it. What happens to the flow:

- interrupted (cancelled, timed out, Ctrl-C): the job is deleted, ranks get SIGTERM and the pod's grace (60 s) to save;
- killed, or its worker gone: the job goes on. It has the training's name, so that the next attempt finds it and follows it.

A pod that fails or is evicted fails the job, which ends the others in order; the next attempt creates it anew and resumes.

Imports no Prefect.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ace_core.errors import ConfigError, fail
from ace_core.launch_config import KubernetesLaunch
from ace_core.signals import SUPERVISOR_VARIABLE
from tasks.follow import (
    RANK_GRACE,
    TAIL,
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

POLL = 5.0  # seconds between questions to the cluster
POD_GRACE = 60  # seconds from SIGTERM to SIGKILL
GONE_SECONDS = 90.0  # until a deleted job and its pods must be gone
SILENT_SECONDS = 600.0  # that the cluster may not answer
MEET_SECONDS = 1800  # for all pods to start: images are pulled, nodes are added
KEPT_SECONDS = 86400  # that a finished job stays to be looked at
PORT = 29500
DELETED = "deleted"
USER = 1000  # of the image (deployments/Containerfile)

# What `kubectl logs --timestamps` puts before a line.
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z ?")
_NO_SERVER = (
    "connection refused",
    "unable to connect",
    "timeout",
    "timed out",
    "eof",
    "tls handshake",
    "serviceunavailable",
)


def launch(
    config: KubernetesLaunch,
    arguments: Sequence[str],
    *,
    name: str,
    ranks: int,
    log: Path,
    on_line: OnLine = print,
    on_tick: OnTick | None = None,
) -> None:
    """As :func:`tasks.launch.start`. ranks: in each pod.

    Raises :class:`TrainingFailed` with what Kubernetes says of the pods, :class:`TrainingRefused` if a rank left with exit code 2,
    :class:`ConfigError` if there is no kubectl or the cluster refuses the job.
    """
    require_main_thread()
    log.parent.mkdir(parents=True, exist_ok=True)
    manifest = log.with_suffix(".yaml")
    manifest.write_text(render(config, arguments, name=name, ranks=ranks))
    cluster = Cluster(config.namespace, name)
    log.touch()
    output = _PodOutput(follow_from(log, False), on_line)
    goes_on = f"the Kubernetes job {name} goes on"
    try:
        attached = _create(cluster, manifest)
        with noticing_the_worker(goes_on):
            on_line(
                f"Kubernetes job {config.namespace}/{name}, log {log}"
                + (", created by an earlier attempt" if attached else "")
            )
        watched = Watched(cluster, log, on_line)
        try:
            wait(watched.ended, output, on_tick, goes_on)
        finally:
            watched.close()
        if not watched.succeeded:
            cluster.last_words(log)
            output.read(ended=True)
    except (WorkerGone, ConfigError):
        raise
    except BaseException:
        cluster.delete()
        with contextlib.suppress(Exception):
            output.read(ended=True)
        raise
    finally:
        output.source.close()
    if watched.why.startswith(DELETED):
        found, fix = f"was deleted by somebody; the log is {log}", "run again to resume"
        raise fail(TrainingRefused, f"Kubernetes job {name}", found, "", fix)
    if not watched.succeeded:
        raise failure("ended by Kubernetes", output, log, f"Kubernetes job {name} ({watched.why}): ")
    cluster.delete(wait_for_it=False)


class _PodOutput(Output):
    """Lines come with the time of their writing, which is cut; what a second reading of a pod repeats is left out."""

    def __init__(self, source: Any, on_line: OnLine) -> None:
        super().__init__(source, on_line)
        self.last = ""

    def read(self, ended: bool = False) -> None:
        fresh = []
        for line in self._whole_lines(ended):
            found = _STAMP.match(line)
            if found is None:
                fresh.append(line)
            elif (stamp := _comparable(found)) > self.last:
                self.last = stamp
                fresh.append(line[found.end() :])
        self._pass_on(fresh)


def _comparable(stamp: re.Match[str]) -> str:
    """Nanoseconds are written without the zeros at their end."""
    return f"{stamp[1]}.{(stamp[2] or '').ljust(9, '0')}"


class Cluster:
    """One training's job and service, by kubectl."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace, self.name = namespace, name
        self.pods_of_job = f"--selector=batch.kubernetes.io/job-name={name}"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str] | None:
        """None where it took too long. Raises :class:`ConfigError` if there is no kubectl."""
        try:
            return subprocess.run(
                ["kubectl", f"--namespace={self.namespace}", "--request-timeout=20s", *arguments],
                check=False,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=60,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise _no_kubectl() from None
        except subprocess.TimeoutExpired:
            return None

    def job(self) -> dict[str, Any] | None:
        """Empty if there is none; None where the cluster does not answer."""
        done = self.run("get", "job", self.name, "--ignore-not-found", "--output=json")
        if done is None or done.returncode != 0:
            return None
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return found

    def pods(self) -> list[dict[str, Any]] | None:
        """By index; None where the cluster does not answer."""
        done = self.run("get", "pods", self.pods_of_job, "--output=json")
        if done is None or done.returncode != 0:
            return None
        found: list[dict[str, Any]] = json.loads(done.stdout)["items"]
        return sorted(found, key=index_of)

    def delete(self, wait_for_it: bool = True) -> None:
        """With its pods, which have their grace, and the service. Pods of a job that was deleted go with it."""
        self.run(
            "delete",
            f"job/{self.name}",
            f"service/{self.name}",
            "--ignore-not-found",
            "--wait=false",
            "--cascade=foreground",
        )
        if wait_for_it:
            until(lambda: self.job() == {} and self.pods() == [], GONE_SECONDS)

    def last_words(self, log: Path) -> None:
        """Add to the log what pods that failed said last, other than the one that was followed."""
        for pod in self.pods() or []:
            if index_of(pod) > 0 and pod.get("status", {}).get("phase") == "Failed":
                done = self.run("logs", pod["metadata"]["name"], f"--tail={TAIL}")
                if done is not None and done.returncode == 0:
                    with log.open("a") as file:
                        file.write(done.stdout if done.stdout.endswith("\n") else done.stdout + "\n")


class Watched:
    """A job as the cluster tells of it, asked every POLL seconds, and the log of its first pod, followed into a file."""

    def __init__(self, cluster: Cluster, log: Path, on_line: OnLine) -> None:
        self.cluster, self.log, self.on_line = cluster, log, on_line
        self.succeeded, self.why = False, ""
        self._reader: subprocess.Popen[bytes] | None = None
        self._read_from = ""
        self._told = ""
        self._next, self._heard = 0.0, time.monotonic()

    def ended(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + POLL
        job, pods = self.cluster.job(), self.cluster.pods()
        if job is None or pods is None:
            # A control plane that restarts must not end a training.
            if now - self._heard > SILENT_SECONDS:
                raise TrainingFailed(f"the cluster has not answered for {SILENT_SECONDS:.0f} s")
            return False
        self._heard = now
        self._tell(pods)
        first = next((p for p in pods if index_of(p) == 0), None)
        finished = finish_of(job)
        if first is not None and first.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed"):
            self._read(first, last=finished is not None)
        if finished is None:
            return False
        self.succeeded, why = finished
        self.why = "; ".join([why, *filter(None, map(_end_of, pods))])
        return True

    def _read(self, pod: dict[str, Any], last: bool) -> None:
        """Keep ``kubectl logs`` at work; at the end wait for it."""
        if self._reader is None or self._reader.poll() is not None:
            command = ["kubectl", f"--namespace={self.cluster.namespace}", "logs", "--follow", "--timestamps"]
            command += [f"--since-time={self._read_from}"] if self._read_from else []
            with self.log.open("ab") as sink:
                self._reader = subprocess.Popen(
                    [*command, pod["metadata"]["name"]],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        self._read_from = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3 * POLL - 60))
        if last:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._reader.wait(30)

    def _tell(self, pods: list[dict[str, Any]]) -> None:
        """Say how the pods are when it changes: one that cannot start says why."""
        told = ", ".join(f"{index_of(p)} {_state_of(p)}" for p in pods) or "none yet"
        if told != self._told:
            self.on_line(f"pods of {self.cluster.name}: {told}")
            self._told = told

    def close(self) -> None:
        if self._reader is not None:
            if self._reader.poll() is None:
                self._reader.kill()
            self._reader.wait()


def finish_of(job: dict[str, Any]) -> tuple[bool, str] | None:
    """Whether a job succeeded and its word for the end; None while it goes on. {}: somebody deleted it."""
    if not job:
        return False, DELETED
    for condition in job.get("status", {}).get("conditions") or []:
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            return condition["type"] == "Complete", condition.get("reason") or condition["type"]
    if "deletionTimestamp" in job["metadata"]:
        return False, DELETED
    return None


def index_of(pod: dict[str, Any]) -> int:
    """Which node of the training a pod is."""
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", 0))


def _state_of(pod: dict[str, Any]) -> str:
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or []:
        if waiting := container.get("state", {}).get("waiting"):
            return str(waiting.get("reason", "waiting"))
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message', '')}"
    return str(status.get("phase", "Pending"))


def _end_of(pod: dict[str, Any]) -> str:
    """How a pod failed: OOMKilled, Evicted, preempted; empty if it did not."""
    status = pod.get("status", {})
    reasons = [str(status["reason"])] if status.get("reason") else []
    reasons += [
        str(c.get("reason"))
        for c in status.get("conditions") or []
        if c["type"] == "DisruptionTarget" and c["status"] == "True"
    ]
    for container in status.get("containerStatuses") or []:
        ended = container.get("state", {}).get("terminated")
        if ended and ended["exitCode"] != 0:
            reasons.append(f"{ended.get('reason', 'Error')}, exit code {ended['exitCode']}")
    return f"pod {index_of(pod)}: {', '.join(reasons)}" if reasons else ""


def _create(cluster: Cluster, manifest: Path) -> bool:
    """Create job and service; True if a job of this name runs already, which is then followed. One that has finished makes room."""
    while True:
        job = _answered(cluster)
        if job and finish_of(job) is None:
            return True
        if job:
            cluster.delete()
        done = cluster.run("create", f"--filename={manifest}", "--save-config=false")
        if done is not None and done.returncode == 0:
            return False
        said = "kubectl did not answer" if done is None else done.stderr.strip()
        if "alreadyexists" in said.lower().replace(" ", ""):
            # The job is somebody's who was quicker; a service alone is left over.
            if _answered(cluster) == {}:
                cluster.delete()
            continue
        cluster.delete(wait_for_it=False)
        if done is None or any(word in said.lower() for word in _NO_SERVER):
            raise TrainingFailed(f"kubectl: {said}")
        raise fail(
            ConfigError,
            "launch",
            f"Kubernetes refused the job: {said}",
            "",
            f"mend launch in the pipeline file; {manifest}",
        )


def _answered(cluster: Cluster) -> dict[str, Any]:
    end = time.monotonic() + SILENT_SECONDS
    while (job := cluster.job()) is None:
        if time.monotonic() > end:
            raise TrainingFailed(f"the cluster has not answered for {SILENT_SECONDS:.0f} s")
        time.sleep(POLL)
    return job


def _no_kubectl() -> ConfigError:
    fix = "install kubectl where the flow runs, or launch: {type: local}"
    return fail(ConfigError, "launch.type", "kubernetes, but there is no kubectl here", "kubectl on PATH", fix)


def render(config: KubernetesLaunch, arguments: Sequence[str], *, name: str, ranks: int) -> str:
    """The manifests of a training's service and job, as YAML."""
    labels = {"app.kubernetes.io/name": "ace-training", "app.kubernetes.io/instance": name}
    metadata = {"name": name, "namespace": config.namespace, "labels": labels}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            # Pods meet before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": config.nodes,
            "parallelism": config.nodes,
            # A pod alone cannot come back to the others: the flow's next attempt starts all of them.
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": _pod(config, arguments, name, ranks)},
        },
    }
    text: str = yaml.dump_all([service, job], Dumper=_Plain, sort_keys=False, width=120)
    return text


def _pod(config: KubernetesLaunch, arguments: Sequence[str], name: str, ranks: int) -> dict[str, Any]:
    gpus = ranks if config.gpus_per_node is None else config.gpus_per_node
    resources = {"cpu": config.cpu, "memory": config.memory} | ({"nvidia.com/gpu": gpus} if gpus else {})
    container = {
        "name": "train",
        "image": config.image,
        # torchrun is the pod's first process: SIGTERM reaches it without a shell between.
        "command": ["python", "-m", "torch.distributed.run"],
        "args": [
            f"--nnodes={config.nodes}",
            f"--nproc-per-node={ranks}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={name}-0.{name}:{PORT}",
            f"--rdzv-id={name}",
            f"--rdzv-conf=read_timeout={MEET_SECONDS},join_timeout={MEET_SECONDS}",
            f"--shutdown-timeout={RANK_GRACE}",
            *arguments,
        ],
        "workingDir": str(Path.cwd()),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}, {"name": SUPERVISOR_VARIABLE, "value": "1"}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "results", "mountPath": config.mount_path},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if config.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in config.secrets]
    pod: dict[str, Any] = {
        "subdomain": name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": POD_GRACE,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "results", "persistentVolumeClaim": {"claimName": config.volume_claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": config.shared_memory}},
        ],
    }
    if config.node_selector:
        pod["nodeSelector"] = dict(config.node_selector)
    if config.tolerations:
        pod["tolerations"] = [dict(t) for t in config.tolerations]
    return pod


class _Plain(yaml.SafeDumper):
    """Without anchors: what is said twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
