"""Extremes of precipitation from how often thresholds are exceeded: a percentile is a function of means.

Legend: G arms, K thresholds; ... replicates. Cells count by area, all steps of all months alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ace_core.grid import F64
from ace_core.response.diagnostic import Diagnostic, MeansOf, Setting, change, ratio
from ace_core.response.ingredients import EXCEEDANCES, SECONDS_PER_DAY

PERCENTILES = (99.0, 99.9)
REGIONS = ("global", "tropics", "tropical_ocean", "tropical_land")
_LEVELS = np.array(list(EXCEEDANCES.values()))


def precipitation_extremes(setting: Setting) -> Iterator[Diagnostic]:
    """100 ln of the growth of a percentile per K of global warming; of none if a step is longer than a day."""
    if setting.timestep > SECONDS_PER_DAY:
        return
    air, hours = setting.surface_air, setting.timestep / 3600.0
    for region in REGIONS:
        needs = (*((name, region) for name in EXCEEDANCES), (air, "global"))
        for percentile in PERCENTILES:

            def value(m: MeansOf, region: str = region, percentile: float = percentile) -> F64:
                rate = rate_at(np.stack([m[name, region] for name in EXCEEDANCES], axis=-1), percentile)
                with np.errstate(invalid="ignore", divide="ignore"):
                    growth = 100.0 * np.log(rate / rate[..., :1])
                return ratio(growth, change(m, air))

            name = f"extreme_precipitation_sensitivity/{region}/{percentile:g}"
            what = f"{percentile:g}th percentile of {hours:g}-hourly precipitation"
            yield Diagnostic(
                name, "%/K", f"100 ln of the growth of the {what}, {region}, per K of global warming", needs, value
            )


def rate_at(exceeded: F64, percentile: float) -> F64:
    """exceeded [..., K]: share above each threshold -> the rate of a percentile [...], mm/day.

    Between two thresholds the logarithm of the share is taken as linear, which is exact of an exponential tail; next to a threshold that
    nothing exceeds, the share itself. NaN if the percentile lies outside the thresholds.
    """
    share, wanted = np.minimum.accumulate(exceeded, axis=-1), 1.0 - percentile / 100.0
    above = (share >= wanted).sum(axis=-1)  # the first threshold that is exceeded too rarely
    inside = (above > 0) & (above < len(_LEVELS)) & np.isfinite(exceeded).all(axis=-1)
    j = np.clip(above, 1, len(_LEVELS) - 1)
    high, low = (np.take_along_axis(share, (j - k)[..., None], axis=-1)[..., 0] for k in (1, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        of_logs = np.log(high / wanted) / np.log(high / low)
        of_shares = (high - wanted) / (high - low)
    way = np.where(low > 0, of_logs, of_shares)
    out: F64 = np.where(inside, _LEVELS[j - 1] + way * (_LEVELS[j] - _LEVELS[j - 1]), np.nan)
    return out
