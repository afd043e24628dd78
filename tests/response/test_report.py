"""Figures and page of a response from its file alone: what a browser would show, and what a reader must not overlook."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import LatLonGrid
from ace_core.plotting import draw_map, figure, raster
from ace_core.response.climates import Climates, Findings, Scalar
from ace_core.response.dataset import OUTPUT, to_dataset, write
from ace_core.response.figures import response_figures
from ace_core.response.report import write_response_report
from tests.evaluation.test_report import Page
from tests.response import synthetic

Change = Callable[[Climates, Findings], Findings]


def same(_: Climates, findings: Findings) -> Findings:
    return findings


def page_of(directory: Path, change: Change = same, **attributes: str) -> tuple[Page, str]:
    climates = synthetic.climates({"p4k": 4.0}, names=("surface_temperature",))
    findings = change(climates, synthetic.findings(climates))
    write(to_dataset(climates, findings, ResponseAggregatorConfig(), provenance=attributes), directory / OUTPUT)
    text = write_response_report(directory, "Response <1>").read_text()
    page = Page()
    page.feed(text)
    return page, text


def test_the_table_has_every_scalar_with_interval_and_reference(tmp_path: Path) -> None:
    page, text = page_of(tmp_path)
    assert "<h1>Response &lt;1&gt;</h1>" in text
    head = ["diagnostic", "units", "emulator", "90 % interval", "n_eff", "reference", "error", "status"]
    assert page.rows.count(head) == 1
    good = ["land_ocean_warming_ratio/tropics", "1", "1.4", "1.3 .. 1.5", "12", "1.45", "-0.05", "ok"]
    assert page.rows.count(good) == 1
    missed = [r for r in page.rows if r[0] == "land_ocean_warming_ratio/subtropics"]
    assert [r[-1] for r in missed] == ["ok; reference outside"]
    bare = next(r for r in page.rows if r[0] == "cess_feedback")
    assert bare == ["cess_feedback", "W m-2 K-1", "-1.5", "", "2", "", "", "insufficient: 2 years"]
    assert ["water_budget", "the emulator predicts no evaporation"] in page.rows
    assert text.count('<tr class="off">') == 1
    assert page.elsewhere == []


def test_warnings_say_what_must_not_be_overlooked(tmp_path: Path) -> None:
    _, text = page_of(tmp_path, in_sample="true", in_sample_times="1990 .. 1991")
    assert "<b>In-sample:</b> the emulator was trained on times of this evaluation (1990 .. 1991)." in text
    outside = (
        "<b>Reference outside the interval</b>, p4k: land_ocean_warming_ratio/subtropics (1 .. 1.2, reference 1.6)."
    )
    assert outside in text
    assert "<b>No interval</b> for 1 of 11 scalars of p4k: insufficient: 2 years." in text
    assert "Maps are not hatched" not in text


def test_no_warning_without_a_reason(tmp_path: Path) -> None:
    def fine(_: Climates, findings: Findings) -> Findings:
        return replace(findings, scalars=tuple(s for s in findings.scalars if s.name.startswith("column")))

    _, text = page_of(tmp_path, fine, in_sample="false")
    assert '<p class="warn">' not in text


def test_what_is_not_known_is_warned_of(tmp_path: Path) -> None:
    _, text = page_of(tmp_path, lambda _, f: replace(f, significant=None))
    assert "In-sample unknown" in text
    assert "Maps are not hatched" in text


def test_every_figure_is_on_the_page(tmp_path: Path) -> None:
    def more(climates: Climates, findings: Findings) -> Findings:
        field = np.cos(np.deg2rad(climates.grid.lat))[:, None] * np.ones(climates.grid.shape)
        profiles = {"greens_map/PRESsfc": (("lat", "lon"), field, {"units": "Pa/K"})}
        return replace(findings, profiles=profiles)

    page, _ = page_of(tmp_path, more)
    names = ["response_maps_p4k", "response_profile_p4k", "sensitivity"]
    assert len(page.pictures) == len(names)
    for name, shown in zip(names, page.pictures):
        assert base64.b64decode(shown.partition("base64,")[2]) == (tmp_path / f"{name}.png").read_bytes()


def test_of_many_patches_the_first_are_drawn(tmp_path: Path) -> None:
    climates = synthetic.climates({f"patch{i}": 1.0 for i in range(9)}, names=("surface_temperature",))
    findings = Findings((), {}, None, 0.0, {})
    write(to_dataset(climates, findings, ResponseAggregatorConfig()), tmp_path / OUTPUT)
    text = write_response_report(tmp_path, "Patches").read_text()
    assert "Of the first 6 perturbations; the file holds those of all 9." in text
    assert sorted({p.stem.rpartition("_")[2] for p in tmp_path.glob("*.png")}) == [f"patch{i}" for i in range(6)]


def _colours(path: Path) -> Any:
    return imread(path)[..., :3]


def test_a_map_shows_where_it_is_not_significant(tmp_path: Path) -> None:
    """The north is significant in the findings: hatches darken the south of the emulator's map, and nothing else of the figure."""
    pictures = []
    for name, change in (("with", same), ("without", lambda _, f: replace(f, significant=None))):
        (tmp_path / name).mkdir()
        climates = synthetic.climates({"p4k": 4.0}, names=("surface_temperature",))
        findings = change(climates, synthetic.findings(climates))
        write(to_dataset(climates, findings, ResponseAggregatorConfig()), tmp_path / name / OUTPUT)
        response_figures(tmp_path / name)
        pictures.append(_colours(tmp_path / name / "response_maps_p4k.png"))
    hatched, plain = pictures
    rows = np.flatnonzero((hatched != plain).any(axis=(1, 2)))
    assert len(rows) > 40
    assert rows.min() > 0.4 * plain.shape[0]  # of one panel, with a title above and numbers below
    assert (hatched.sum(axis=2) <= plain.sum(axis=2) + 1e-6).all()  # darker only


def test_a_reference_outside_the_interval_is_told_by_numbers_not_by_eye(tmp_path: Path) -> None:
    """On the edge of the interval it is inside; an interval that is not known holds nothing and misses nothing."""

    def edges(climates: Climates, findings: Findings) -> Findings:
        def one(name: str, low: float, high: float, truth: float) -> Scalar:
            return Scalar("p4k", name, "1", "x", 1.0, low, high, 9.0, "ok", truth)

        rows = (one("edge", 0.5, 1.5, 1.5), one("in", 0.5, 1.5, 1.0), one("bare", math.nan, math.nan, 9.0))
        return replace(findings, scalars=(*rows, one("out", 0.5, 1.5, 1.5001)))

    page, _ = page_of(tmp_path, edges)
    status = {r[0]: r[-1] for r in page.rows if r[0] in ("edge", "in", "bare", "out")}
    assert status == {"edge": "ok", "in": "ok", "bare": "ok", "out": "ok; reference outside"}


# --- maps as images


@given(st.integers(2, 70), st.integers(2, 90), st.booleans())
def test_every_pixel_shows_the_cell_it_lies_in(ny: int, nx: int, gaussian: bool) -> None:
    """Also of Gaussian rows, which are not equally far from each other: the nearest row and column by brute force."""
    grid = (LatLonGrid.gaussian if gaussian else LatLonGrid.equiangular)(ny, nx)
    field = np.arange(ny * nx, dtype=float).reshape(ny, nx)
    rows, columns = 97, 101
    image = raster(field, grid.lat, grid.lon, rows, columns)
    y = -90.0 + (np.arange(rows) + 0.5) * 180.0 / rows
    x = (np.arange(columns) + 0.5) * 360.0 / columns
    far_y, far_x = np.abs(y[:, None] - grid.lat), np.abs(x[:, None] - grid.lon)
    clear_y = np.sort(far_y, axis=1)[:, 1] - far_y.min(axis=1) > 1e-9
    clear_x = np.sort(far_x, axis=1)[:, 1] - far_x.min(axis=1) > 1e-9
    expected = field[far_y.argmin(axis=1)[:, None], far_x.argmin(axis=1)]
    np.testing.assert_array_equal(image[clear_y][:, clear_x], expected[clear_y][:, clear_x])


def test_a_map_puts_colours_where_the_field_is(tmp_path: Path) -> None:
    """The northernmost Gaussian row alone is warm: red from the pole down to halfway to the next row, to a pixel."""
    grid = LatLonGrid.gaussian(8, 16)
    field = np.full(grid.shape, -1.0)
    field[-1] = 1.0
    box: list[float] = []
    with figure(tmp_path / "map.png", 1, 1, (6.0, 4.0)) as axes:
        ax = axes[0, 0]
        draw_map(ax, field, grid.lat, grid.lon, "", "K", (-1.0, 1.0), diverging=True)
        bounds = ax.get_position()
        box += [bounds.x0, bounds.x1, bounds.y0, bounds.y1]
    image = _colours(tmp_path / "map.png")
    height, width = image.shape[:2]
    middle = int(width * (box[0] + box[1]) / 2)
    strip = image[int(height * (1 - box[3])) + 2 : int(height * (1 - box[2])) - 2, middle]
    red = strip[:, 0] > strip[:, 2]
    edge = (grid.lat[-1] + grid.lat[-2]) / 2
    expected = (90.0 - edge) / 180.0
    assert red[: int(expected * len(red)) - 2].all()
    assert not red[int(expected * len(red)) + 3 :].any()
    assert abs(red.mean() - expected) < 0.02


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_panels_leave_room_for_what_stands_beside_them(tmp_path: Path, columns: int) -> None:
    """Every text of every panel lies inside the figure and inside the panel's own share of it."""
    with figure(tmp_path / "f.png", 2, columns, (4.7 * columns, 5.4)) as axes:
        grid = LatLonGrid.equiangular(18, 36)
        for ax in axes.flat:
            draw_map(ax, np.full(grid.shape, -1234.5), grid.lat, grid.lon, "a title", "kg/m**2/s", (-2e4, 2e4))
        canvas = axes[0, 0].figure
        canvas.draw_without_rendering()
        boxes = [a.get_tightbbox() for a in canvas.axes]  # panels first, then colour bars, in the same order
        n = axes.size
        panels = [boxes[i].union([boxes[i], boxes[n + i]]) for i in range(n)]
        width, height = canvas.bbox.width, canvas.bbox.height
        for i, one in enumerate(panels):
            assert one.x0 >= 0
            assert one.x1 <= width
            assert one.y0 >= 0
            assert one.y1 <= height
            assert not any(one.overlaps(other) for other in panels[i + 1 :])


def test_long_numbers_beside_an_axis_are_not_cut(tmp_path: Path) -> None:
    """Six digits and a label, as of a global mean that hardly changes."""
    with figure(tmp_path / "f.png", 2, 3, (10.8, 5.0)) as axes:
        for ax in axes.flat:
            ax.plot([0, 10], [280.825, 280.936])
            ax.set(title="a title", xlabel="forecast step", ylabel="global mean (K)")
        canvas = axes[0, 0].figure
        canvas.draw_without_rendering()
        boxes = [ax.get_tightbbox() for ax in axes.flat]
        assert any(len(t.get_text()) == 7 for t in axes[0, 0].get_yticklabels())
        assert min(box.x0 for box in boxes) >= 0
        assert max(box.x1 for box in boxes) <= canvas.bbox.width
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
