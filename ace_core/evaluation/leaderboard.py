"""The score by which checkpoints are compared, what chance alone makes of it, and which checkpoints have got worse.

The score of an evaluation is the mean over variables of the RMSE of the time mean, in standard deviations of the network's
normalization (``time_mean_norm/rmse/<v>``): lower is better.

Nothing here knows when a checkpoint was evaluated: what is said of it follows from what is known of all, in whatever order it came, and
more evaluations never withdraw a regression.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

SCORE, IN_UNITS, FLOOR = "time_mean_norm/rmse", "time_mean/rmse", "noise_floor/floor"
TOLERANCE = 0.05  # of the score: what is taken for chance at least
NOISE_FLOOR, CONDITIONS, TOLERATED = "noise floor", "initial conditions", "tolerance"
NETCDF, PAGE = "leaderboard.nc", "leaderboard.html"


@dataclass(frozen=True)
class Score:
    """by_variable: the score of each, None where it is not finite. noise: by how much another score may be higher by chance;
    noise_from: how that is known, the larger of TOLERATED and one of the others."""

    by_variable: Mapping[str, float | None]
    noise: float
    noise_from: str

    @property
    def known(self) -> frozenset[str]:
        """Variables that have a score."""
        return frozenset(v for v, x in self.by_variable.items() if x is not None)

    def over(self, variables: Iterable[str]) -> float:
        """The mean over ``variables``: infinite if one of them has none, as of a rollout that blew up, and if there are none."""
        found = [self.by_variable.get(v) for v in sorted(variables)]
        if not found or any(x is None for x in found):
            return math.inf
        return math.fsum(x for x in found if x is not None) / len(found)

    @property
    def total(self) -> float:
        """The score itself: the mean over all variables that have one."""
        return self.over(self.known)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one content. evaluation: hash of what decides scores besides the checkpoint. paths: where the content was seen.
    modified, evaluated: seconds since 1970. training: the folder of its run; finished: whether that had ended when the content was last
    seen. seconds: how long the evaluation took."""

    key: str
    evaluation: str
    sha256: str
    paths: tuple[str, ...]
    modified: float
    training: str
    epoch: int | None
    evaluated: float
    seconds: float
    score: Score
    directory: str
    finished: bool = True

    @property
    def name(self) -> str:
        """Of the file: what kind of checkpoint it is."""
        return Path(self.paths[0]).name

    @property
    def title(self) -> str:
        return f"{self.training}/{self.name}"


@dataclass(frozen=True)
class Regression:
    """A checkpoint that is worse than an older one by more than chance. score, before: of both, over the variables that ``better`` has."""

    worse: Evaluation
    better: Evaluation
    score: float
    before: float


@dataclass(frozen=True)
class Row:
    """A line of the leaderboard. rank: from 1; before: the best score of those older in its series, None if there are none.
    gone: no file has this content any more."""

    rank: int
    evaluation: Evaluation
    before: float | None
    regression: Regression | None
    gone: bool

    @property
    def difference(self) -> float | None:
        """To the previous best; negative is better."""
        return None if self.before is None else self.evaluation.score.total - self.before


# --- scores


def score_of(directory: Path) -> Score:
    """The score of a finished evaluation's folder. One without ``time_mean_norm`` has no variables."""
    scores: dict[str, float | None] = json.loads((directory / "scores.json").read_text())
    # A mean over channels is no variable.
    by_variable = {v: x for v, x in _of(scores, SCORE).items() if v != "channel_mean"}
    bare = Score(by_variable, 0.0, TOLERATED)
    if not bare.known:
        return bare
    floor = _floor(scores, bare.known)
    chance = floor if floor is not None else _of_conditions(directory / "mean_norm_diagnostics.nc", bare)
    if chance is None or chance <= TOLERANCE * bare.total:
        return Score(by_variable, TOLERANCE * bare.total, TOLERATED)
    return Score(by_variable, chance, CONDITIONS if floor is None else NOISE_FLOOR)


def _of(scores: Mapping[str, float | None], key: str) -> dict[str, float | None]:
    return {k.removeprefix(f"{key}/"): x for k, x in sorted(scores.items()) if k.startswith(f"{key}/")}


def _floor(scores: Mapping[str, float | None], variables: Iterable[str]) -> float | None:
    """Mean RMSE between the time means of two realisations, in standard deviations; None if it is not known of every variable.

    A bound of what chance can do: RMSE is a norm, so that putting one realisation in place of another moves it by no more than theirs apart.
    """
    floors, units, scaled = (_of(scores, key) for key in (FLOOR, IN_UNITS, SCORE))
    found = []
    for v in sorted(variables):
        floor, unit, norm = floors.get(v), units.get(v), scaled[v]
        if floor is None or not unit or norm is None:
            return None
        found.append(floor * norm / unit)
    return math.fsum(found) / len(found)


def _of_conditions(file: Path, score: Score) -> float | None:
    """Twice the standard error of the difference of two scores whose initial conditions are drawn anew; None of a single one.

    An evaluation knows its error sample by sample only of single steps, so the time mean's is taken to be as sure, relatively: the
    standard error over samples of a step's RMSE over that RMSE, means over steps and variables. Errors of variables go together, so
    that more of them make it no smaller.
    """
    import xarray as xr

    if not file.is_file():
        return None
    relative = []
    with xr.open_dataset(file, decode_times=False) as found:
        for v in sorted(score.known):
            if f"weighted_rmse_stderr-{v}" in found:
                after = slice(1, None)  # the initial condition has no error
                error = float(found[f"weighted_rmse_stderr-{v}"][after].mean())
                value = float(found[f"weighted_rmse-{v}"][after].mean())
                if value > 0 and math.isfinite(error / value):
                    relative.append(error / value)
    return 2 * math.sqrt(2) * score.total * math.fsum(relative) / len(relative) if relative else None


# --- comparisons


def series(evaluations: Iterable[Evaluation], roots: Iterable[str | Path]) -> list[list[Evaluation]]:
    """What is compared: contents seen under one root in files of one name, scored over the same variables in the same way, the oldest first.

    Of one name, because the first epoch of every training is worse than the best of the one before.
    """
    found: dict[Any, list[Evaluation]] = {}
    for e in sorted(evaluations, key=lambda e: (e.modified, e.key)):
        for root in dict.fromkeys(Path(r).resolve() for r in roots):
            if any(Path(p).is_relative_to(root) for p in e.paths):
                found.setdefault((root, e.evaluation, e.name, frozenset(e.score.by_variable)), []).append(e)
    return list(found.values())


def regressions(evaluations: Iterable[Evaluation], roots: Iterable[str | Path]) -> list[Regression]:
    """Every content that is worse than one older in its series by more than that one's noise, in order of time.

    The noise is the older one's: whether the newer score is one that it could have had itself. A rollout that nearly blew up is noisy,
    which is no excuse for it. A training that goes on is not judged yet.
    """
    found: dict[str, Regression] = {}
    for those in series(evaluations, roots):
        for e in (e for e in those if e.finished):
            worst = max((r for o in those if (r := _worse(e, o))), key=_excess, default=None)
            if worst is not None and (e.key not in found or _excess(worst) > _excess(found[e.key])):
                found[e.key] = worst
    return sorted(found.values(), key=lambda r: (r.worse.modified, r.worse.key))


def _worse(e: Evaluation, older: Evaluation) -> Regression | None:
    if not older.modified < e.modified:
        return None
    before = older.score.over(older.score.known)
    score = e.score.over(older.score.known)
    if not math.isfinite(before) or score <= before + older.score.noise:
        return None
    return Regression(e, older, score, before)


def _excess(r: Regression) -> tuple[float, float, str]:
    # Of a rollout that blew up every excess is infinite: the best of the others then.
    return (r.score - r.before - r.better.score.noise, -r.before, r.better.key)


def ranked(evaluations: Iterable[Evaluation], roots: Sequence[str | Path], present: Iterable[str]) -> list[Row]:
    """The leaderboard, the best first; what blew up last. present: hashes of the contents that are there."""
    evaluations, there = list(evaluations), set(present)
    regressed = {r.worse.key: r for r in regressions(evaluations, roots)}
    # What no other evaluation knows either lacks data; what only this one does not know blew up.
    known = frozenset[str]().union(*(e.score.known for e in evaluations))
    before: dict[str, float] = {}
    for those in series(evaluations, roots):
        for e in those:
            best = min((o.score.total for o in those if o.modified < e.modified), default=math.inf)
            before[e.key] = min(best, before.get(e.key, math.inf))

    def place(e: Evaluation) -> tuple[float, float, float, str]:
        missing = len((known & frozenset(e.score.by_variable)) - e.score.known)
        return (missing, e.score.total, e.modified, e.key)

    return [
        Row(
            n,
            e,
            b if math.isfinite(b := before.get(e.key, math.inf)) else None,
            regressed.get(e.key),
            e.sha256 not in there,
        )
        for n, e in enumerate(sorted(evaluations, key=place), 1)
    ]


# --- what is shown


def table(rows: Iterable[Row]) -> list[dict[str, str | int]]:
    """One mapping of text per line, for a table."""
    lines: list[dict[str, str | int]] = []
    for row in rows:
        e = row.evaluation
        lines.append(
            {
                "rank": row.rank,
                "score": _number(e.score.total),
                "noise": _number(e.score.noise),
                "to previous best": "" if row.difference is None else f"{row.difference:+.4g}",
                "checkpoint": e.title,
                "epoch": "" if e.epoch is None else e.epoch,
                "written": _date(e.modified),
                "evaluated": _date(e.evaluated),
                "note": ", ".join(n for n, is_so in _notes(row).items() if is_so),
            }
        )
    return lines


def _notes(row: Row) -> dict[str, bool]:
    return {
        "regression": row.regression is not None,
        "gone": row.gone,
        "training goes on": not (row.evaluation.finished or row.gone),
    }


def page(rows: Sequence[Row]) -> list[str]:
    """HTML: the table, and what its words mean."""
    import html

    lines = table(rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (lines[0] if lines else {}))
    body = ""
    for row, line in zip(rows, lines, strict=True):
        e = row.evaluation
        told = {"checkpoint": "\n".join(e.paths), "noise": f"from: {e.score.noise_from}", "score": e.directory}
        cells = "".join(
            f'<td{" class=text" if name in ("checkpoint", "note") else ""} title="{html.escape(told.get(name, ""))}">{html.escape(str(x))}</td>'
            for name, x in line.items()
        )
        body += f"<tr{' class=off' if row.regression else ''}>{cells}</tr>"
    note = (
        "Score: mean over variables of the RMSE of the time mean, in standard deviations; lower is better. Noise: by how much the score of an equally good "
        "checkpoint may be higher by chance. Previous best: of the checkpoints of the same name and root that are older. A regression is worse than one of "
        "those by more than its noise. Gone: no file has this content any more."
    )
    return [f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", f'<p class="note">{note}</p>']


def alert_text(r: Regression) -> tuple[str, str]:
    """Title and text, in markdown, of a regression."""
    noise = r.better.score.noise
    title = f"{r.worse.title} is worse than before: {_number(r.score)} after {_number(r.before)}"
    lines = [
        f"The score of `{r.worse.paths[0]}` is {_number(r.score)}, that of `{r.better.paths[0]}` was {_number(r.before)}; lower is better.",
        f"By chance it would be at most {_number(noise)} higher (from: {r.better.score.noise_from}).",
        _worst_variables(r),
        f"Results: `{r.worse.directory}`, before: `{r.better.directory}`.",
    ]
    return title, "\n\n".join(lines)


def _worst_variables(r: Regression) -> str:
    ours, theirs = r.worse.score.by_variable, r.better.score.by_variable
    changes = {v: math.inf if ours[v] is None else ours[v] / x for v, x in theirs.items() if x}  # type: ignore[operator]
    worst = sorted(changes, key=lambda v: (-changes[v], v))[:5]
    named = [f"{v} ({'not finite' if math.isinf(changes[v]) else f'{changes[v]:.3g} times'})" for v in worst]
    return f"Most changed: {', '.join(named)}."


def dataset(rows: Sequence[Row], roots: Iterable[str | Path]) -> xr.Dataset:
    """The leaderboard as data: ``<name>(checkpoint)``, in order of rank, and ``rmse(checkpoint, variable)``."""
    import numpy as np
    import xarray as xr

    variables = sorted({v for row in rows for v in row.evaluation.score.by_variable})
    es = [row.evaluation for row in rows]
    nan = math.nan

    def column(values: Iterable[Any], dtype: Any, long_name: str, **attrs: Any) -> tuple[str, Any, dict[str, Any]]:
        return "checkpoint", np.array(list(values), dtype=dtype), {"long_name": long_name, **attrs}

    def one(x: float | None) -> float:
        return nan if x is None or not math.isfinite(x) else x

    time = {"units": "seconds since 1970-01-01", "calendar": "standard"}
    flags = {"flag_values": np.array([0, 1], np.int8), "flag_meanings": "no yes"}
    rmse = np.array([[one(e.score.by_variable.get(v)) for v in variables] for e in es]).reshape(len(es), len(variables))
    return xr.Dataset(
        {
            "score": column((one(e.score.total) for e in es), float, "mean over variables of rmse", units="1"),
            "noise": column((e.score.noise for e in es), float, "by how much it may be higher by chance", units="1"),
            "noise_from": column((e.score.noise_from for e in es), object, "how the noise is known"),
            "previous_best": column(
                (one(r.before) for r in rows), float, "best score of older checkpoints of its series", units="1"
            ),
            "difference": column((one(r.difference) for r in rows), float, "score minus previous_best", units="1"),
            "regression": column((r.regression is not None for r in rows), np.int8, "whether it got worse", **flags),
            "gone": column((r.gone for r in rows), np.int8, "whether no file has this content any more", **flags),
            "rmse": (
                ("checkpoint", "variable"),
                rmse,
                {"long_name": "RMSE of the time mean over the standard deviation", "units": "1"},
            ),
            "training": column((e.training for e in es), object, "folder of the training"),
            "path": column((e.paths[0] for e in es), object, "where the checkpoint was seen first"),
            "sha256": column((e.sha256 for e in es), object, "hash of the checkpoint"),
            "epoch": column((nan if e.epoch is None else e.epoch for e in es), float, "epochs trained", units="1"),
            "modified": column((e.modified for e in es), float, "when the checkpoint was written", **time),
            "evaluated": column((e.evaluated for e in es), float, "when it was evaluated", **time),
            "seconds": column((e.seconds for e in es), float, "duration of the evaluation", units="s"),
        },
        {
            "rank": column((r.rank for r in rows), np.int32, "rank by score", units="1"),
            "variable": ("variable", np.array(variables, object), {"long_name": "variable"}),
        },
        {
            "Conventions": "CF-1.11",
            "title": "Leaderboard of checkpoints",
            "evaluation": ", ".join(sorted({e.evaluation for e in es})),
            "roots": "\n".join(str(r) for r in roots),
        },
    )


def write(rows: Sequence[Row], roots: Iterable[str | Path], folder: Path) -> None:
    """``leaderboard.nc`` and ``leaderboard.html``, each replaced as a whole; the same rows leave the same bytes."""
    from ace_core.evaluation.report import write_page
    from ace_core.netcdf import write_netcdf
    from ace_core.provenance import write_atomic

    write_atomic(folder / NETCDF, lambda file: write_netcdf(dataset(rows, roots), file))

    def write_html(file: Path) -> None:
        write_page(file, "Leaderboard", page(rows))

    write_atomic(folder / PAGE, write_html)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
