"""One page of a response: what stands out, the table of scalars, figures, in one HTML file that needs no server and no other file.

Everything on it is read from the netCDF file and the pictures that were drawn from it.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from ace_core.evaluation.report import REPORT, files, number, picture, write_page
from ace_core.response.dataset import ABSENT, AMPLITUDE, LABELS, OUTPUT, SKIPPED
from ace_core.response.figures import MOST, response_figures

_CAPTIONS = {
    "response_maps": "Response, perturbed minus baseline: {label}. Hatched where it is not told from zero (false discovery rate 10 %).",
    "response_profile": "Column, tropical ocean, warming ratios and zonal water of {label}.",
    "sensitivity": "Green's functions: what a global mean does per change of the sea surface here.",
}


_REASONS = 3  # that are told


@dataclass(frozen=True)
class Row:
    """One scalar of one perturbation as the file has it; NaN where nothing is known."""

    name: str
    units: str
    description: str
    estimate: float
    low: float
    high: float
    n_eff: float
    status: str
    truth: float

    @property
    def missed(self) -> bool:
        """Does the interval not hold the reference?"""
        known = all(map(math.isfinite, (self.low, self.high, self.truth)))
        return known and not self.low <= self.truth <= self.high


def write_response_report(directory: Path, title: str) -> Path:
    """Figures and ``report.html`` in the folder of a finished evaluation."""
    pictures = response_figures(directory)
    with xr.open_dataset(directory / OUTPUT, decode_times=False) as ds:
        labels = [str(x) for x in ds[LABELS].values]
        parts = [table(("", ""), facts(ds)), *(f'<p class="warn">{w}</p>' for w in warnings(ds))]
        for label in labels:
            parts += [f"<h2>{html.escape(label)}</h2>", _scalars(rows(ds, label))]
        parts.append("<h2>Figures</h2>")
        if len(labels) > MOST:
            parts.append(
                f'<p class="note">Of the first {MOST} perturbations; the file holds those of all {len(labels)}.</p>'
            )
        parts += [picture(path, _caption(path)) for path in pictures]
        if SKIPPED in ds:
            left_out = [(str(n), str(r)) for n, r in zip(ds[SKIPPED].values, ds["skipped_reason"].values)]
            parts += ["<h2>Left out</h2>", table(("diagnostic", "why"), left_out)]
    parts.append("<h2>Files</h2>" + files(directory))
    return write_page(directory / REPORT, title, parts)


def rows(ds: xr.Dataset, label: str) -> list[Row]:
    """The scalars that a perturbation has, in the order of the file."""
    columns = [ds[f"{label}__{k}"].values for k in ("estimate", "low", "high", "n_eff", "status", "truth")]
    found = zip(ds["scalar"].values, ds["units"].values, ds["description"].values, *columns)
    made = (
        Row(str(n), str(u), str(d), float(e), float(lo), float(hi), float(k), str(s), float(t))
        for n, u, d, e, lo, hi, k, s, t in found
    )
    return [row for row in made if row.status != ABSENT]


def facts(ds: xr.Dataset) -> list[tuple[str, str]]:
    """What was evaluated, and where it comes from, in the words of the file's attributes."""
    out = [("means", str(ds.attrs.get("time_mean", "")))]
    for label, amplitude in zip(ds[LABELS].values, ds[AMPLITUDE].values):
        out.append((f"{label}", f"{amplitude:.3g} K, mean over the ocean"))
    inputs: dict[str, Any] = json.loads(ds.attrs.get("inputs", "{}"))
    out += [(key, f"{one['path']} ({one['content'][:12]})") for key, one in inputs.items()]
    names = ("checkpoint", "data", "in_sample", "in_sample_times", "code_sha256", "git_sha", "rebuild")
    return out + [(n, str(ds.attrs[n])) for n in names if n in ds.attrs]


def warnings(ds: xr.Dataset) -> Iterator[str]:
    """What a reader must not overlook, as HTML."""
    seen = str(ds.attrs.get("in_sample", "unknown"))
    if seen == "true":
        times = html.escape(str(ds.attrs.get("in_sample_times", "")))
        yield f"<b>In-sample:</b> the emulator was trained on times of this evaluation ({times})."
    elif seen == "unknown":
        yield "<b>In-sample unknown:</b> the checkpoint does not say what it was trained on."
    bare: dict[str, None] = {}
    counts = []
    for label in map(str, ds[LABELS].values):
        found, name = rows(ds, label), html.escape(label)
        missed = [row for row in found if row.missed]
        if missed:
            texts = (
                f"{html.escape(r.name)} ({number(r.low)} .. {number(r.high)}, reference {number(r.truth)})"
                for r in missed
            )
            yield f"<b>Reference outside the interval</b>, {name}: {', '.join(texts)}."
        without = [row.status for row in found if row.status != "ok"]
        bare |= dict.fromkeys(without)
        if without:
            counts.append(f"{len(without)} of {len(found)} scalars of {name}")
    if counts:
        reasons = [html.escape(reason) for reason in bare][:_REASONS]
        yield f"<b>No interval</b> for {', '.join(counts)}: {'; '.join(reasons)}{'; ...' if len(bare) > _REASONS else ''}."
    if not any("__significant__" in str(v) for v in ds):
        yield "<b>Maps are not hatched:</b> the run does not tell where a response differs from zero."


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of text; the head is left out if it is empty."""
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    lines = ("".join(f'<td class="text">{html.escape(cell)}</td>' for cell in row) for row in body)
    return f"<table>{top}<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def _scalars(found: Sequence[Row]) -> str:
    head = ("diagnostic", "units", "emulator", "90 % interval", "n_eff", "reference", "error", "status")
    body = []
    for r in found:
        interval = f"{number(r.low)} .. {number(r.high)}" if math.isfinite(r.low) else ""
        off = ' class="off"' if r.missed else ""
        cells = [r.units, number(r.estimate), interval, number(r.n_eff), number(r.truth), number(r.estimate - r.truth)]
        status = f"{r.status}; reference outside" if r.missed else r.status
        line = f'<td title="{html.escape(r.description)}">{html.escape(r.name)}</td>'
        line += "".join(f"<td>{html.escape(c)}</td>" for c in cells) + f'<td class="text">{html.escape(status)}</td>'
        body.append(f"<tr{off}>{line}</tr>")
    top = "".join(f"<th>{h}</th>" for h in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _caption(path: Path) -> str:
    for kind, text in _CAPTIONS.items():
        if path.stem.startswith(kind):
            return text.format(label=path.stem.removeprefix(f"{kind}_"))
    return path.stem
