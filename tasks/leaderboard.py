"""The leaderboard as files and in the UI, and the alerts of what got worse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact

from ace_core.evaluation.leaderboard import Evaluation, Regression, alert_text, ranked, regressions, table, write
from tasks.events import REGRESSION, alert_key, alert_record, raise_alert


@task(name="leaderboard")
def publish(evaluations: Sequence[Evaluation], roots: Sequence[Path], present: Iterable[str], folder: Path) -> None:
    """Rank ``evaluations``; present: hashes of the contents that are there. Written below ``folder``."""
    rows = ranked(evaluations, roots, present)
    write(rows, roots, folder)
    create_table_artifact(table(rows), key="leaderboard", description=f"Leaderboard of checkpoints in {folder}")


def alert_regressions(evaluations: Iterable[Evaluation], roots: Sequence[Path], folder: Path) -> list[Regression]:
    """Raise an alert of every regression that none was given of, and return those.

    What is known decides, not what is new: an alert that a crash or a lost event has swallowed is raised again the next time. It is about
    a content, so that a change of the evaluation does not repeat it.
    """
    raised: dict[str, Regression] = {}
    for regression in regressions(evaluations, roots):
        sha256 = regression.worse.sha256
        if sha256 not in raised and not alert_record(folder, alert_key(REGRESSION, sha256)).is_file():
            raise_alert(REGRESSION, sha256, *alert_text(regression), folder)
            raised[sha256] = regression
    return list(raised.values())
