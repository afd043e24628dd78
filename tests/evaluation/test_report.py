"""The page of an evaluation: read with a parser, as a browser would."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import xarray as xr

from ace_core.evaluation.report import write_report

# The smallest picture there is.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """Rows of the tables, pictures, and everything that would be fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[str] = []
        self.elsewhere: list[str] = []
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")
        for key, value in attrs:
            if key in ("src", "href") and value is not None:
                (self.pictures if value.startswith("data:") else self.elsewhere).append(value)

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def test_scores_pictures_and_stamps_are_on_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    scores = {
        "time_mean/bias/PRESsfc": -12.345678,
        "time_mean/rmse/PRESsfc": 99.0,
        "time_mean_norm/rmse/PRESsfc": 0.25,
        "time_mean_norm/rmse/channel_mean": 0.5,
        "time_mean/bias/<b>": None,
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "bias.png").write_bytes(PIXEL)
    xr.Dataset(attrs={"in_sample": "true"}).to_netcdf(tmp_path / "time_mean_diagnostics.nc")
    text = write_report(tmp_path, "Evaluation <1>", {"checkpoint": "a&b.tar"}).read_text()
    page = Page()
    page.feed(text)
    assert ["checkpoint", "a&b.tar"] in page.rows
    assert ["in_sample", "true"] in page.rows
    assert ["variable", "bias of time mean", "RMSE of time mean", "of its std"] in page.rows
    assert ["PRESsfc Pa", "-12.35", "99", "0.25"] in page.rows
    # What could not be scored has an empty cell, and names are text, whatever they hold.
    assert next(r for r in page.rows if r[0].startswith("<b>"))[1:] == ["", "", ""]
    assert page.elsewhere == []
    (picture,) = page.pictures
    assert base64.b64decode(picture.partition("base64,")[2]) == PIXEL
    assert "Mean over variables of the RMSE of time means, in standard deviations: 0.5" in text
