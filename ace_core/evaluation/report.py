"""One page of an evaluation: scorecard and figures, in one HTML file that needs no server and no other file.

Everything on it is read from what the evaluation has written: ``*_diagnostics.nc``, ``scores.json`` and the pictures beside them.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr

from ace_core.variables import describe

REPORT = "report.html"
# Column -> (key in scores.json, what it says).
COLUMNS = {
    "bias of time mean": ("time_mean/bias", "area mean of predicted minus target time mean"),
    "RMSE of time mean": ("time_mean/rmse", "pattern error of the time mean"),
    "of its std": ("time_mean_norm/rmse", "the same in standard deviations of the variable"),
    "RMSE of steps": ("mean/weighted_rmse", "error of a step, mean over steps"),
    "smallest scale": ("power_spectrum/smallest_scale_norm_bias", "relative excess of variance at the last wavenumber"),
    "CRPS": ("ensemble_step_20/crps", "almost fair, at step 20"),
    "to noise floor": ("noise_floor/ratio", "error of the time mean over that of another realisation"),
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } th { position: sticky; top: 0; background: #fff; }
.warn { background: #fff4e5; border-left: .3rem solid #c4402f; padding: .4rem .8rem; margin: .4rem 0; }
.off td { background: #fdecea; } td.text { text-align: left; }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption, .note { color: #555; font-size: .9em; }
"""


def write_report(directory: Path, title: str, facts: Mapping[str, str]) -> Path:
    """``report.html`` in a finished evaluation's folder. facts: what was evaluated, as the head of the page says it."""
    scores: dict[str, float | None] = json.loads((directory / "scores.json").read_text())
    known = dict(facts) | _stamps(directory)
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in known.items())
    parts = [f"<table>{rows}</table>", "<h2>Scores</h2>", _scorecard(scores)]
    pictures = sorted([*directory.glob("*.png"), *directory.glob("*.gif")])
    if pictures:
        parts.append("<h2>Figures</h2>")
    parts += [picture(path) for path in pictures]
    parts.append("<h2>Files</h2>" + files(directory))
    return write_page(directory / REPORT, title, parts)


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """An HTML file with the heading ``title`` and ``parts``, HTML themselves."""
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    page += f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    path.write_text(page, encoding="utf-8")
    return path


def _stamps(directory: Path) -> dict[str, str]:
    """What the files say of themselves, such as whether training saw their times."""
    for path in sorted(directory.glob("*_diagnostics.nc")):
        with xr.open_dataset(path, decode_times=False) as found:
            return {k: str(v) for k, v in found.attrs.items() if k.startswith("in_sample")}
    return {}


def variables_of(scores: Mapping[str, float | None]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Those of COLUMNS that an evaluation has, and the variables that have a number in any of them."""
    columns = {c: (key, what) for c, (key, what) in COLUMNS.items() if any(k.startswith(f"{key}/") for k in scores)}
    names = dict.fromkeys(
        k.removeprefix(f"{key}/") for key, _ in columns.values() for k in scores if k.startswith(f"{key}/")
    )
    # A mean over channels is no variable.
    return columns, [n for n in names if "/" not in n and n != "channel_mean"]


def _scorecard(scores: Mapping[str, float | None]) -> str:
    columns, variables = variables_of(scores)
    if not columns:
        return '<p class="note">None: there was nothing to compare with.</p>'
    head = "".join(f'<th title="{html.escape(what)}">{html.escape(c)}</th>' for c, (_, what) in columns.items())
    body = ""
    for name in variables:
        v = describe(name)
        cells = "".join(f"<td>{number(scores.get(f'{key}/{name}'))}</td>" for key, _ in columns.values())
        body += f'<tr><td title="{html.escape(v.long_name)}">{html.escape(name)} <span class="note">{html.escape(v.units)}</span></td>{cells}</tr>'
    mean = scores.get("time_mean_norm/rmse/channel_mean")
    note = (
        ""
        if mean is None
        else f'<p class="note">Mean over variables of the RMSE of time means, in standard deviations: {number(mean)}.</p>'
    )
    return f"<table><thead><tr><th>variable</th>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def number(value: float | None) -> str:
    """Four digits; nothing of what is not known."""
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def picture(path: Path, caption: str = "") -> str:
    """The picture itself, not a link to it. caption: instead of the file's name."""
    kind = "gif" if path.suffix == ".gif" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    return f'<figure><img alt="{name}" src="data:image/{kind};base64,{data}"><figcaption>{html.escape(caption) or name}</figcaption></figure>'


def files(directory: Path) -> str:
    """A table of the netCDF files beside the page."""
    lines: Sequence[str] = [
        f"<tr><td>{html.escape(p.name)}</td><td>{p.stat().st_size / 1e6:.2f} MB</td></tr>"
        for p in sorted(directory.glob("*.nc"))
    ]
    return f"<table>{''.join(lines)}</table>"
