"""The seed's scalars of two maps, without a climate around them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import F64, LatLonGrid
from ace_core.response.climates import Means, Surface
from ace_core.response.regions import areas
from ace_core.response.scalars import seed_scalars


def scalars_of_maps(
    config: ResponseAggregatorConfig,
    response: Mapping[str, F64],
    baseline: Mapping[str, F64],
    ocean: npt.NDArray[np.bool_],
    grid: LatLonGrid,
) -> dict[str, float]:
    """Of maps [Y, X] by name: what was added to the baseline, and the baseline of what is no difference (the water path); ocean: cells that
    count as ocean, all others as land. Cells outside a region do not count even if NaN; an empty region has NaN."""
    names, weights = areas(config, Surface(ocean, ~ocean), grid)
    arms = [np.stack([np.broadcast_to(baseline.get(n, 0.0), grid.shape) for n in response])]
    arms.append(arms[0] + np.stack([np.broadcast_to(v, grid.shape) for v in response.values()]))
    means = [[[float(np.sum(np.where(w == 0, 0.0, x) * w)) for w in weights] for x in arm] for arm in arms]
    return seed_scalars(config, Means(tuple(response), names, np.asarray(means)), 1)
