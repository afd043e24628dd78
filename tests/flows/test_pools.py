"""Base job templates of work pools, as Prefect's own workers read them."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest

from deployments import server as servers

REPOSITORY = Path(__file__).resolve().parents[2]
POOLS = REPOSITORY / "deployments" / "pools"


def template(name: str) -> dict[str, Any]:
    return json.loads((POOLS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_process_pool_takes_what_a_team_sets(server: servers.Server, name: str) -> None:
    from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

    pool, plain = template(name), ProcessWorker.get_default_base_job_template()
    assert pool["job_configuration"] == plain["job_configuration"]
    assert set(pool["variables"]["properties"]) == set(plain["variables"]["properties"])
    values = {
        "env": {"WANDB_MODE": "offline"},
        "working_dir": "/shared/ace",
        "command": "nice prefect",
        "stream_output": False,
    }
    made = asyncio.run(ProcessJobConfiguration.from_template_and_values(pool, values))
    assert made.env == {"PREFECT_RESULTS_DEFAULT_SERIALIZER": "json", "WANDB_MODE": "offline"}
    assert (str(made.working_dir), made.command, made.stream_output) == ("/shared/ace", "nice prefect", False)
    assert asyncio.run(ProcessJobConfiguration.from_template_and_values(pool, {})).working_dir is None


@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_kubernetes_pool_makes_a_job_that_obeys_the_schema(server: servers.Server, version: str) -> None:
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    values = {
        "name": "train",
        "gpus": 4,
        "namespace": "climate",
        "env": {"WANDB_MODE": "offline"},
        "results_claim": "disk",
    }
    made = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(template("kubernetes"), values))
    made._populate_env_in_manifest()
    made._populate_generate_name_if_not_present()
    job = made.job_manifest
    pod = job["spec"]["template"]["spec"]
    # Prefect demands these two of the pod, where they belong to the job; Kubernetes drops them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    kubernetes_validate.validate(job, version, strict=True)
    [container] = pod["containers"]
    assert job["metadata"]["namespace"] == "climate"
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": 4}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    assert {m["mountPath"] for m in container["volumeMounts"]} == {"/ace", "/dev/shm"}
    environment = {e["name"]: e for e in container["env"]}
    assert environment["WANDB_MODE"]["value"] == "offline"
    secret = {"name": "ace-secrets", "key": "WANDB_API_KEY", "optional": True}
    assert environment["WANDB_API_KEY"] == {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": secret}}


def test_every_variable_of_the_kubernetes_pool_acts() -> None:
    pool = template("kubernetes")
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(pool["job_configuration"])))
    assert used == set(pool["variables"]["properties"])


def test_pools_are_made_as_the_page_says(server: servers.Server) -> None:
    """The commands of docs/launching.md, of which `local` is made by deployments/up.py as well."""
    page = (REPOSITORY / "docs" / "launching.md").read_text()
    commands = re.findall(r"^prefect work-pool create .*$", page, re.MULTILINE)
    assert len(commands) == 3
    prefect = str(Path(sys.executable).with_name("prefect"))
    for command in commands:
        words = [prefect, *shlex.split(command)[1:], "--overwrite"]
        done = subprocess.run(words, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        name = words[3]
        found = httpx.get(f"{server.api}/work_pools/{name}").json()
        assert found["base_job_template"] == template(name)
