"""kubectl as far as we use it, on this machine: pods are processes, which have only their first process told when they have to go.

python fake_kubectl.py ARGUMENTS, with the folder of the cluster in FAKE_KUBERNETES. `run` is what the cluster does for a job. Files of the
folder: `job.json`, `pod-<index>.json`, `pod-<index>.log`, `deleting`, `down` (the API does not answer), `calls`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import yaml

CLUSTER = Path(os.environ["FAKE_KUBERNETES"])
GRACE = 10.0  # seconds; shorter than a pod's
INDEX = "batch.kubernetes.io/job-completion-index"


def write(name: str, value: Any) -> None:
    temporary = CLUSTER / f".{name}"
    temporary.write_text(json.dumps(value))
    temporary.replace(CLUSTER / name)


def read(name: str) -> Any:
    return json.loads((CLUSTER / name).read_text()) if (CLUSTER / name).exists() else None


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def create(arguments: list[str], namespace: str) -> int:
    [path] = [a.partition("=")[2] for a in arguments if a.startswith("--filename=")]
    service, job = yaml.safe_load_all(Path(path).read_text())
    for manifest in (service, job):
        kubernetes_validate.validate(manifest, "1.34", strict=True)
        assert manifest["metadata"]["namespace"] == namespace
    if namespace == "nowhere":
        return fail('Error from server (NotFound): error when creating "job.yaml": namespaces "nowhere" not found')
    if read("job.json") is not None:
        return fail(
            'Error from server (AlreadyExists): error when creating "job.yaml": jobs.batch "ace" already exists'
        )
    write("job.json", job | {"status": {}})
    subprocess.Popen(
        [sys.executable, __file__, "run"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(CLUSTER / "controller.log").open("ab"),
    )
    return 0


def run() -> int:
    """The job controller, the scheduler, and a kubelet."""
    job = read("job.json")
    name, spec = job["metadata"]["name"], job["spec"]["template"]["spec"]
    [container] = spec["containers"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # What the service does: a name for the first pod.
    command = [
        w.replace(f"{name}-0.{name}:29500", f"127.0.0.1:{port}") for w in container["command"] + container["args"]
    ]
    assert command[0] == "python"
    environment = os.environ | {e["name"]: e["value"] for e in container["env"]}
    pods = []
    for index in range(job["spec"]["completions"]):
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=container["workingDir"],
            env=environment | {"JOB_COMPLETION_INDEX": str(index)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        reader = threading.Thread(target=stamp, args=(process, CLUSTER / f"pod-{index}.log"))
        reader.start()
        pods.append((process, reader))
        show(index, process)
    ended, stopped = "", 0.0
    while any(process.poll() is None for process, _ in pods):
        codes = [process.poll() for process, _ in pods]
        if not ended and ((CLUSTER / "deleting").exists() or any(codes)):
            ended, stopped = "Failed", time.monotonic()
            for process, _ in pods:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
        if ended and time.monotonic() - stopped > GRACE:
            for process, _ in pods:
                kill(process.pid)
        time.sleep(0.05)
    for index, (process, reader) in enumerate(pods):
        kill(process.pid)
        reader.join()
        show(index, process)
    failed = any(process.returncode for process, _ in pods)
    condition = {"type": "Failed", "reason": "BackoffLimitExceeded"} if failed else {"type": "Complete"}
    write("job.json", job | {"status": {"conditions": [condition | {"status": "True"}]}})
    while not (CLUSTER / "deleting").exists():
        time.sleep(0.05)
    for file in [*CLUSTER.glob("pod-*"), CLUSTER / "job.json", CLUSTER / "deleting"]:
        file.unlink()
    return 0


def kill(pid: int) -> None:
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        process.kill()


def stamp(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        with log.open("a") as file:
            # Kubernetes' stamps have no zeros at the end.
            file.write(f"{(now + str(time.perf_counter_ns() % 1000).zfill(3)).rstrip('0')}Z {line.decode()}")


def show(index: int, process: subprocess.Popen[bytes]) -> None:
    code = process.poll()
    state = (
        {"running": {}}
        if code is None
        else {"terminated": {"exitCode": abs(code), "reason": "Error" if code else "Completed"}}
    )
    phase = "Running" if code is None else "Failed" if code else "Succeeded"
    metadata = {"name": f"pod-{index}", "annotations": {INDEX: str(index)}}
    write(
        f"pod-{index}.json", {"metadata": metadata, "status": {"phase": phase, "containerStatuses": [{"state": state}]}}
    )


def get(arguments: list[str]) -> int:
    if arguments[0] == "job":
        job = read("job.json")
        if job is not None:
            job["metadata"] |= {"deletionTimestamp": "now"} if (CLUSTER / "deleting").exists() else {}
            print(json.dumps(job))
        return 0
    assert arguments[0] == "pods"
    print(json.dumps({"items": [read(p.name) for p in CLUSTER.glob("pod-*.json")]}))
    return 0


def delete() -> int:
    if (CLUSTER / "job.json").exists():
        (CLUSTER / "deleting").touch()
    return 0


def logs(arguments: list[str]) -> int:
    [pod] = [a for a in arguments if not a.startswith("--")]
    log = CLUSTER / f"{pod}.log"
    since = next((a.partition("=")[2] for a in arguments if a.startswith("--since-time=")), "")
    tail = next((int(a.partition("=")[2]) for a in arguments if a.startswith("--tail=")), None)
    if tail is not None:
        print("".join(line.partition(" ")[2] for line in log.read_text().splitlines(keepends=True)[-tail:]), end="")
        return 0
    shown = 0
    while True:
        over = (read(f"{pod}.json") or {"status": {"phase": "Gone"}})["status"]["phase"] != "Running"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        for line in lines[shown:]:
            if line > since:
                print(line, end="", flush=True)
        shown = len(lines)
        if over:
            return 0
        time.sleep(0.05)


def main() -> int:
    if sys.argv[1:] == ["run"]:
        return run()
    namespace = next(a.partition("=")[2] for a in sys.argv if a.startswith("--namespace="))
    command, *arguments = [a for a in sys.argv[1:] if not a.startswith(("--namespace=", "--request-timeout="))]
    with (CLUSTER / "calls").open("a") as calls:
        calls.write(f"{command} {' '.join(arguments)}\n")
    if (CLUSTER / "down").exists():
        return fail("Unable to connect to the server: dial tcp 127.0.0.1:6443: connect: connection refused")
    if command == "create":
        return create(arguments, namespace)
    if command == "delete":
        return delete()
    return {"get": get, "logs": logs}[command](arguments)


if __name__ == "__main__":
    sys.exit(main())
