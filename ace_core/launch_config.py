"""Where the ranks of a training run: here, in a Slurm allocation, or as a Kubernetes job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ace_core.config import StrictModel


class LocalLaunch(StrictModel):
    """Under torchrun on the machine of the flow."""

    type: Literal["local"] = "local"


class SlurmLaunch(StrictModel):
    """By ``sbatch``, with one torchrun on each of ``nodes`` nodes. Results must lie on a disk that the nodes share with the flow."""

    type: Literal["slurm"] = "slurm"
    nodes: PositiveInt = 1


class KubernetesLaunch(StrictModel):
    """As an indexed job of ``nodes`` pods, one torchrun in each. Results must lie on a volume that the pods share with the flow."""

    type: Literal["kubernetes"] = "kubernetes"
    nodes: PositiveInt = 1


LaunchConfig = Annotated[LocalLaunch | SlurmLaunch | KubernetesLaunch, Field(discriminator="type")]
