"""Means by season: closed forms, and what is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ace_core.calendar import parse, to_cftime
from ace_core.diagnostics.base import Diagnostics, NotSupported
from ace_core.diagnostics.clock import SEASONS, step_times
from ace_core.diagnostics.seasonal import SeasonalConfig
from ace_core.distributed import Ranks
from tests.diagnostics.scenes import GRID, fields, piece, scene

OF_MONTH = {
    m: s for s, months in zip(SEASONS, ((12, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)), strict=True) for m in months
}


@pytest.mark.parametrize("calendar", ["noleap", "standard", "360_day"])
def test_means_are_of_all_steps_in_a_season_of_all_samples_and_years(calendar: str) -> None:
    starts = np.array([parse(t, calendar, "test") for t in ("1999-12-01", "2000-02-20")], np.int64)
    s = scene(700, names=("TMP2m", "PRATEsfc"), calendar=calendar, starts=starts)
    y, t = fields(s)
    y[0, 3, 1] = math.nan  # a winter's day of one variable
    diagnostics = Diagnostics([SeasonalConfig().build(s)])
    for first in range(1, 701, 100):
        diagnostics.add(piece(s, y, t, first, first + 100))
    findings = diagnostics.findings(Ranks())["seasonal"]
    assert findings.dataset is not None
    season = np.vectorize(lambda d: OF_MONTH[d.month])(to_cftime(step_times(s), calendar))[:, 1:]
    area = torch.from_numpy(GRID.area_weights)
    squares = []
    for name in SEASONS:
        here = torch.from_numpy(season == name)
        gen, target = (x[:, 1:][here].double().mean(dim=0) for x in (y, t))
        kept = findings.dataset.sel(season=name)
        np.testing.assert_allclose(kept["gen_map-TMP2m"], gen[0], rtol=1e-6)
        np.testing.assert_allclose(kept["bias_map-TMP2m"], (gen - target)[0], rtol=1e-5, atol=1e-8)
        squares.append(float(((gen - target)[0].square() * area).sum()))
        assert findings.scalars[f"time-mean-rmse/TMP2m-{name}"] == pytest.approx(math.sqrt(squares[-1]))
        # What is not known in a season is NaN in that season alone.
        assert np.isnan(kept["gen_map-PRATEsfc"]).all() == (name == "DJF")
    assert findings.scalars["time-mean-rmse/TMP2m"] == pytest.approx(math.sqrt(np.mean(squares)))


def test_four_seasons_are_needed() -> None:
    starts = np.array([parse("2000-03-01", "noleap", "test")], np.int64)
    with pytest.raises(NotSupported, match="has some in MAM, JJA, SON"):
        SeasonalConfig().build(scene(200, 1, starts=starts))


def test_without_a_target_there_are_means_and_no_errors() -> None:
    s = scene(400, paired=False)
    y, _ = fields(s)
    diagnostics = Diagnostics([SeasonalConfig(variables=["PRATEsfc"]).build(s)])
    diagnostics.add(piece(s, y, None, 1, 401))
    findings = diagnostics.findings(Ranks())["seasonal"]
    assert findings.scalars == {}
    assert findings.dataset is not None
    assert list(findings.dataset.data_vars) == ["gen_map-PRATEsfc"]
