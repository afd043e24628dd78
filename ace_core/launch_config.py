"""Where the ranks of a training run: here, in a Slurm allocation, or as a Kubernetes job.

launch: {type: slurm, nodes: 2, partition: gpu, time_limit: "24:00:00", setup: [module load cuda]}
launch: {type: kubernetes, nodes: 2, image: registry.example/ace:1, volume_claim: ace, mount_path: /ace}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ace_core.config import StrictModel

_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"  # what Kubernetes takes for a name (RFC 1123)
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
Word = Annotated[str, Field(pattern=r"^[^\s\"']+$")]
Line = Annotated[str, Field(pattern=r"^[^\n\r]+$")]


class LocalLaunch(StrictModel):
    """Under torchrun on the machine of the flow."""

    type: Literal["local"] = "local"


class SlurmLaunch(StrictModel):
    """By ``sbatch``, with one torchrun on each of ``nodes`` nodes. Results must lie on a disk that the nodes share with the flow, which
    runs where Slurm's commands are, with its Python and working directory under the same paths.

    gpus_per_node: the number of ranks on a node where it is left out, 0 for none. time_limit: as of ``sbatch --time``; ranks are told to save
    two minutes before. directives: further options of sbatch, such as ``--cpus-per-task=32``. setup: shell lines before the training.
    """

    type: Literal["slurm"] = "slurm"
    nodes: PositiveInt = 1
    partition: Word | None = None
    account: Word | None = None
    time_limit: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")] | None = None
    gpus_per_node: NonNegativeInt | None = None
    directives: tuple[Annotated[str, Field(pattern=r"^--?[^\n\r]+$")], ...] = ()
    setup: tuple[Line, ...] = ()


class KubernetesLaunch(StrictModel):
    """As an indexed job of ``nodes`` pods, one torchrun in each. Results must lie on the volume of ``volume_claim``, which the flow has at
    ``mount_path`` as well; image: has this package, the stage files and the working directory of the flow under the same paths.

    gpus_per_node: the number of ranks of a pod where it is left out, 0 for none. cpu, memory: of a pod, requested and limit. shared_memory: of
    /dev/shm, counted to the memory. secrets: names of secrets that become environment variables.
    """

    type: Literal["kubernetes"] = "kubernetes"
    nodes: PositiveInt = 1
    image: Word
    namespace: Annotated[str, Field(pattern=_LABEL, max_length=63)] = "default"
    volume_claim: Annotated[str, Field(pattern=_LABEL, max_length=253)]
    mount_path: Annotated[str, Field(pattern=r"^/[^:\s]*$")]
    gpus_per_node: NonNegativeInt | None = None
    cpu: Annotated[str, Field(pattern=_QUANTITY)] = "8"
    memory: Annotated[str, Field(pattern=_QUANTITY)] = "64Gi"
    shared_memory: Annotated[str, Field(pattern=_QUANTITY)] = "8Gi"
    secrets: tuple[Annotated[str, Field(pattern=_LABEL)], ...] = ()
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()


LaunchConfig = Annotated[LocalLaunch | SlurmLaunch | KubernetesLaunch, Field(discriminator="type")]
