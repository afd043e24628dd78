"""What a person sees in the UI of a stage that has ended: tables, texts and figures as artifacts.

Their keys say what they are, then the beginning of the stage's key:

- ``<stage>-<key>-summary``, a table of numbers; of an evaluation instead ``scorecard-<key>``, one row for each variable, and of a
  response ``response-<key>``, beside the truth: hundreds of numbers in one column are of no use to a person;
- ``<stage>-<key>-page``, its text tables and figures;
- ``maps-<key>`` of an evaluation or a response, its figures alone; ``loss-curve-<key>`` of a training, as :mod:`tasks.monitor` drew it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from ace_core.evaluation.report import number, variables_of
from ace_core.lineage import COMPLETE
from ace_core.variables import describe

FIGURE_LIMIT = 1_000_000  # bytes of a PNG shown inline; larger ones are named only
_MOST = 40  # rows of a summary
_TITLES = {
    "bias": "Bias of the time mean",
    "rollout": "Rollout against target",
    "scores": "Error by lead time",
    "power_spectrum": "Power spectra",
    "response_maps": "Response",
    "response_profile": "Response of the column",
    "loss": "Loss",
}


@task(name="report", task_run_name="report of {result[stage]}")
def report(result: dict[str, Any]) -> None:
    """Tables of the stage's numbers, and pages of its texts and PNG figures.

    Figures go into markdown as base64 (the image artifact would print its long address beside the picture).
    """
    stage, directory, key = result["stage"], Path(result["directory"]), result["key"][:10].lower()
    outputs = sorted(result["outputs"])
    texts = [directory / name for name in outputs if name.endswith(".txt")]
    figures = [directory / name for name in outputs if name.endswith(".png")]
    if stage == "evaluate" and (directory / "scores.json").is_file():
        scores = json.loads((directory / "scores.json").read_text())
        create_table_artifact(
            scorecard(scores), key=f"scorecard-{key}", description=_scorecard_legend(directory, scores)
        )
    elif stage == "respond" and (directory / "response.json").is_file():
        rows = json.loads((directory / "response.json").read_text())
        create_table_artifact(against_truth(rows), key=f"response-{key}", description=_response_legend(directory, rows))
    elif result["summary"]:
        create_table_artifact(
            summary_rows(result["summary"]),
            key=f"{stage}-{key}-summary".lower(),
            description=f"Numbers of {short(directory)}",
        )
    if stage in ("evaluate", "respond") and figures:
        _page(f"Maps and figures of {short(directory)}", directory, map(_figure, figures), f"maps-{key}")
        figures = []
    pages = [*map(_figure, figures), *map(_text, texts)]
    if pages:
        _page(f"Results of {short(directory)}", directory, pages, f"{stage}-{key}-page".lower())


def summary_rows(summary: Mapping[str, float | str]) -> list[dict[str, str]]:
    """Quantity and value; of more than a person reads those that belong to no variable, as far as there are."""
    names = sorted(summary)
    if len(names) > _MOST:
        names = [n for n in names if "/" not in n] or names[:_MOST]
    rows = [{"quantity": n, "value": v if isinstance(v := summary[n], str) else f"{v:.6g}"} for n in names]
    if len(names) < len(summary):
        rows.append({"quantity": f"and {len(summary) - len(names)} more", "value": f"in {COMPLETE}"})
    return rows


def scorecard(scores: Mapping[str, float | None]) -> list[dict[str, str]]:
    """One row for each variable, with those of COLUMNS that the evaluation has, as its HTML page shows them."""
    columns, variables = variables_of(scores)
    return [
        {"variable": _with_units(name)}
        | {column: number(scores.get(f"{key}/{name}")) for column, (key, _) in columns.items()}
        for name in variables
    ]


def _with_units(name: str) -> str:
    units = describe(name).units
    return f"{name} ({units})" if units else name


def _scorecard_legend(directory: Path, scores: Mapping[str, float | None]) -> str:
    columns, _ = variables_of(scores)
    told = "\n".join(f"- {column}: {what}" for column, (_, what) in columns.items())
    return f"# Scorecard of {directory.absolute().parent.name}\n\n`{directory}`\n\n{told}"


def against_truth(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the truth is known of; if of nothing, all there is. rows: of ``response.json``."""
    known = [row for row in rows if _known(row["reference"])]
    several = len({row["label"] for row in rows}) > 1
    return [
        ({"arm": row["label"]} if several else {})
        | {
            "quantity": row["name"],
            "units": row["units"],
            "emulator": number(row["estimate"]),
            "truth": number(row["reference"]),
            "error": _error(row["estimate"], row["reference"]),
            "90 % interval": f"{number(row['low'])} .. {number(row['high'])}" if _known(row["low"]) else "",
            "what": row["long_name"],
        }
        for row in known or rows
    ]


def _error(estimate: float | None, truth: float | None) -> str:
    if estimate is None or truth is None or not math.isfinite(estimate - truth):
        return ""
    # What is prescribed differs in its last digit.
    return "0" if math.isclose(estimate, truth, rel_tol=1e-9) else number(estimate - truth)


def _response_legend(directory: Path, rows: list[dict[str, Any]]) -> str:
    shown = against_truth(rows)
    labels = ", ".join(dict.fromkeys(row["label"] for row in rows))
    return f"# Response to {labels} against the truth\n\n`{directory}`\n\n{len(shown)} of {len(rows)} quantities; the page of the stage has all."


def short(directory: Path) -> str:
    """A stage's folder and the one it is in, which is named like the pipeline."""
    return f"{directory.absolute().parent.name}/{directory.name}"


def image(file: Path) -> str:
    """A PNG in markdown."""
    return f"![{file.stem}](data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()})"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _page(title: str, directory: Path, parts: Iterable[str], key: str) -> None:
    create_markdown_artifact("\n\n".join([f"`{directory}`", *parts]), key=key, description=title)


def _title(file: Path) -> str:
    for stem, title in _TITLES.items():
        if file.stem == stem or file.stem.startswith(f"{stem}_"):
            rest = file.stem.removeprefix(stem).strip("_")
            return f"## {title}{f': {rest}' if rest else ''}"
    return f"## {file.stem}"


def _text(file: Path) -> str:
    return f"{_title(file)}\n\n```\n{file.read_text().rstrip()}\n```"


def _figure(file: Path) -> str:
    if file.stat().st_size > FIGURE_LIMIT:
        return f"{_title(file)}\n\n`{file}`"
    return f"{_title(file)}\n\n{image(file)}"
