"""`alert`: tell people once of what an event says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed

from ace_core.provenance import write_json
from tasks.events import alert_record
from tasks.stage import ace_flow

ALERTED, ALREADY = "Alerted", "AlreadyAlerted"


@ace_flow("alert")
def alert(kind: str, key: str, title: str, text: str, folder: str) -> Any:
    """Write an alert as an artifact, then the record that it was given: what crashes in between is given again, under the same key.

    Args:
        kind: name of the event, such as ace.evaluation.regression
        key: what the alert is called; one of a key is given once
        title: what happened, in a line
        text: the rest, in markdown
        folder: folder of the pipeline; the record is <folder>/alerts/<key>.json
    """
    record = alert_record(Path(folder), key)
    if record.is_file():
        return Completed(name=ALREADY, message=f"given before: {record}", data=None)
    create_markdown_artifact(f"# {title}\n\n{text}\n\n`{kind}`", key=f"alert-{key}", description=title)
    get_run_logger().warning("%s", title)
    write_json(record, {"kind": kind, "key": key, "title": title, "text": text})
    return Completed(name=ALERTED, message=title, data=None)
