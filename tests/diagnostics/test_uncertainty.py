"""Standard errors over samples, of means and biases, by their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics
from ace_core.diagnostics.mean import MeanDenormConfig, StepMeanConfig
from ace_core.diagnostics.time_mean import TimeMeanDenormConfig
from ace_core.distributed import Ranks
from ace_core.metrics.accumulate import standard_error
from tests.diagnostics.scenes import GRID, NAMES, fields, piece, scene

AREA = torch.from_numpy(GRID.area_weights)


def data_of(config: DiagnosticConfig, samples: int):  # type: ignore[no-untyped-def]
    s = scene(8, samples)
    y, t = fields(s)
    diagnostics = Diagnostics([config.build(s)])
    diagnostics.add(piece(s, y, t, 0, 1))
    for b in range(samples):
        for first, last in ((1, 4), (4, 9)):
            diagnostics.add(piece(s, y, t, first, last, slice(b, b + 1)))
    dataset = diagnostics.findings(Ranks())[config.get_name()].dataset
    assert dataset is not None
    return y.double(), t.double(), dataset


def of(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> standard error of the mean over B."""
    return x.std(dim=0) / math.sqrt(len(x))


def test_of_every_step_and_of_one() -> None:
    y, t, data = data_of(MeanDenormConfig(), 4)
    root = ((y - t).square() * AREA).sum(dim=(-2, -1)).sqrt()
    mean = (y * AREA).sum(dim=(-2, -1))
    for c, name in enumerate(NAMES):
        np.testing.assert_allclose(data[f"weighted_rmse_stderr-{name}"], of(root)[:, c], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(data[f"weighted_mean_gen_stderr-{name}"], of(mean)[:, c], rtol=1e-6)
    _, _, step = data_of(StepMeanConfig(step=3), 4)
    assert float(step["weighted_rmse_stderr-PRATEsfc"]) == pytest.approx(float(of(root)[3, 1]), rel=1e-6)


def test_of_the_bias_of_the_time_mean() -> None:
    y, t, data = data_of(TimeMeanDenormConfig(), 4)
    bias = ((y - t)[:, 1:].mean(dim=1) * AREA).sum(dim=(-2, -1))
    for c, name in enumerate(NAMES):
        assert float(data[f"bias_stderr-{name}"]) == pytest.approx(float(of(bias)[c]), rel=1e-9)


@pytest.mark.parametrize("config", [MeanDenormConfig(), StepMeanConfig(step=3), TimeMeanDenormConfig()])
def test_one_sample_has_none(config: DiagnosticConfig) -> None:
    _, _, data = data_of(config, 1)
    assert not [n for n in data.data_vars if "stderr" in str(n)]


def test_nothing_is_known_of_one_value() -> None:
    n = torch.tensor([0.0, 1.0, 2.0])
    found = standard_error(torch.zeros(3), torch.tensor([1.0, 1.0, 4.0]), n)
    assert found.isnan().tolist() == [True, True, False]
    assert float(found[2]) == 2.0
