"""Our losses give the peer's values and gradients (fme 2026.10.0) to 1e-6 relative.

Golden file: benchmarks/peer/golden_loss.py. Left out are the peer's defects, which tests/loss settle by closed form:
members in LpLoss, AreaWeightedMSE and the global-mean term, channels and masks of the energy score, and weights of
variables in relative norms, where they cancel in the peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.loss.step_loss import StepLossConfig
from ace_core.loss.step_output_loss import CorrectorLossConfig, build_step_output_loss
from ace_core.step.normalizer import Scaling

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).with_name("loss.npz")).items()}
NAMES = ("t_0", "t_1", "rain")
SCALING = Scaling({"t_0": 250.0, "t_1": 280.0, "rain": 2.0}, {"t_0": 5.0, "t_1": 10.0, "rain": 4.0})
GRID = LatLonGrid.gaussian(8, 16)
WEIGHTS = {"t_0": 2.0, "rain": 0.5}
ENSEMBLE: dict[str, dict[str, Any]] = {
    "crps": {"almost_fair_crps_alpha": 0.95},
    "energy": {"energy_score_weight": 0.5},
    "fd": {"finite_difference_crps_weight": 0.3, "finite_difference_crps_levels": 3},
    "whitened": {
        "crps_weight": 0.25,
        "energy_score_weight": 1.0,
        "energy_score_whitening": {"kind": "per_sample", "exponent": 0.7, "eps_frac": 0.05},
    },
}
PLAIN: dict[str, dict[str, Any]] = {
    "lp": {"type": "LpLoss"},
    "lp1": {"type": "LpLoss", "kwargs": {"p": 1}},
    "area": {"type": "AreaWeightedMSE", "weights": WEIGHTS},
    "global": {"type": "L1", "global_mean_type": "LpLoss", "global_mean_weight": 0.4},
}
CASES: dict[str, dict[str, Any]] = {
    "mse": {"type": "MSE", "weights": WEIGHTS, "sqrt_loss_step_decay_constant": 0.7},
    "l1": {"type": "L1", "weights": WEIGHTS},
    **PLAIN,
    **{k: {"type": "EnsembleLoss", "kwargs": v, "weights": WEIGHTS} for k, v in ENSEMBLE.items()},
}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("case", CASES)
def test_same_loss_per_channel_total_and_gradient(case: str) -> None:
    loss = StepLossConfig.model_validate(CASES[case]).build(NAMES, SCALING, GRID)
    prediction = (GOLDEN["prediction"][:, :1] if case in PLAIN else GOLDEN["prediction"]).clone().requires_grad_()
    for which, target in (("full", GOLDEN["target"]), ("holes", GOLDEN["holes"])):
        channels = loss(prediction, target).per_channel
        close(channels, torch.stack([GOLDEN[f"{case}/{which}/{n}"] for n in NAMES]))
    total = loss(prediction, GOLDEN["target"], 3).total()
    close(total, GOLDEN[f"{case}/step3"])
    total.backward()
    assert prediction.grad is not None
    theirs = GOLDEN[f"{case}/gradient"].reshape(prediction.shape)
    assert float((prediction.grad - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    if f"{case}/masked" in GOLDEN:
        out = loss(prediction, GOLDEN["target"], 0, GOLDEN["mask"])
        close(out.per_channel, GOLDEN[f"{case}/masked_channels"])
        close(out.total(), GOLDEN[f"{case}/masked"])


@dataclass(frozen=True, eq=False)
class Out:
    output: Fields
    uncorrected: Fields


@pytest.mark.parametrize(("norm", "kind"), [("L1", "L1"), ("L2", "MSE")])
def test_same_corrector_loss(norm: str, kind: str) -> None:
    config = CorrectorLossConfig.model_validate(
        {"precorrector_optimization": {}, "regularization": {"loss": {"type": kind}, "weight": 0.3}}
    )
    main = StepLossConfig(sqrt_loss_step_decay_constant=0.7)
    loss = build_step_output_loss(main, config, NAMES, SCALING, GRID, n_ensemble=3, corrector_enabled=True)
    output, before = (
        Fields(n, GOLDEN[k].flatten(0, 1)) for n, k in ((NAMES, "prediction"), (("t_0", "rain"), "uncorrected"))
    )
    result = loss(Out(output, before), Fields(NAMES, GOLDEN["target"][:, 0]), 2)
    close(result.main.total(), GOLDEN[f"corrector/{norm}/main"])
    close(result.total(), GOLDEN[f"corrector/{norm}/total"])
