"""What happened, told to Prefect's server as events: automations answer them, such as by running the deployment `alert`."""

from __future__ import annotations

import socket
from pathlib import Path

from prefect.events import emit_event

from ace_core.provenance import sha256_of

CHECKPOINT = "ace.checkpoint.finished"
REGRESSION = "ace.evaluation.regression"
STALLED = "ace.training.stalled"
DISK_LOW = "ace.disk.low"
ALERTS = (REGRESSION, STALLED, DISK_LOW)


def alert_key(kind: str, subject: str) -> str:
    """What an alert is called."""
    return sha256_of([kind, subject])[:16]


def alert_record(folder: Path, key: str) -> Path:
    """The file that is written when an alert has been given, and not before."""
    return folder / "alerts" / f"{key}.json"


def raise_alert(kind: str, subject: str, title: str, text: str, folder: Path) -> None:
    """Emit an event of one of the kinds in ALERTS, which the deployment `alert` answers.

    subject: what it is about, such as the hash of a checkpoint: the same kind and subject are alerted once, however often this is
    called, as files in ``folder`` tell.
    """
    assert kind in ALERTS, kind
    key = alert_key(kind, subject)
    emit_event(
        kind,
        resource={"prefect.resource.id": f"{kind}.{key}", "prefect.resource.name": title},
        payload={"key": key, "kind": kind, "title": title, "text": text, "folder": str(folder.absolute())},
    )


def checkpoint_finished(checkpoint: Path, sha256: str, pipeline: Path, overrides: list[str]) -> None:
    """Say that a training has left a checkpoint. pipeline, overrides: what evaluates it."""
    emit_event(
        CHECKPOINT,
        resource={"prefect.resource.id": f"ace.checkpoint.{sha256[:16]}", "prefect.resource.name": str(checkpoint)},
        payload={
            "checkpoint": str(checkpoint.absolute()),
            "config_path": str(pipeline.absolute()),
            "overrides": overrides,
            "host": socket.gethostname(),
        },
    )
