"""What a person sees in the UI: tables, texts and figures of a stage as artifacts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

FIGURE_LIMIT = 1_000_000  # bytes of a PNG shown inline; larger ones are named only


@task(name="report")
def report(result: dict[str, Any]) -> None:
    """A table of the stage's summary, and one page with its text tables and PNG figures.

    Figures go into markdown as base64 (the image artifact would print its long address beside the picture).
    """
    stage, directory = result["stage"], Path(result["directory"])
    key = f"{stage}-{result['key'][:10]}".lower()
    if result["summary"]:
        create_table_artifact(
            [{"quantity": name, "value": _text(value)} for name, value in sorted(result["summary"].items())],
            key=f"{key}-summary",
            description=f"{stage} in {directory}",
        )
    pages = [_page(directory / name) for name in sorted(result["outputs"]) if Path(name).suffix in (".txt", ".png")]
    if pages:
        create_markdown_artifact(
            "\n\n".join([f"# {stage}", f"`{directory}`", *pages]), key=f"{key}-page", description=f"{stage}: results"
        )


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _page(file: Path) -> str:
    title = f"## {file.stem}"
    if file.suffix == ".txt":
        return f"{title}\n\n```\n{file.read_text().rstrip()}\n```"
    content = file.read_bytes()
    if len(content) > FIGURE_LIMIT:
        return f"{title}\n\n`{file}`"
    return f"{title}\n\n![{file.stem}](data:image/png;base64,{base64.b64encode(content).decode()})"
