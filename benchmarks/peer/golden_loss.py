"""Losses of the peer on random fields -> tests/golden/loss.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_loss.py

The peer reads [B, E, C, ...] as [B, C, ...] in LpLoss, AreaWeightedMSE and the global-mean term, so these run without
members; its energy score keeps no channels, so every channel also runs alone.
"""

from pathlib import Path

import numpy as np
import torch
from fme.core.corrector.loss_config import (
    CorrectorLossConfig,
    CorrectorRegularizationConfig,
    PreCorrectorOptimizationConfig,
)
from fme.core.gridded_ops import LatLonOperations
from fme.core.loss import StepLossConfig, StepOutputLoss
from fme.core.normalizer import StandardNormalizer

NAMES = ["t_0", "t_1", "rain"]
MEANS = {"t_0": 250.0, "t_1": 280.0, "rain": 2.0}
STDS = {"t_0": 5.0, "t_1": 10.0, "rain": 4.0}
WEIGHTS = {"t_0": 2.0, "rain": 0.5}
ENSEMBLE = {
    "crps": {"almost_fair_crps_alpha": 0.95},
    "energy": {"energy_score_weight": 0.5},
    "fd": {"finite_difference_crps_weight": 0.3, "finite_difference_crps_levels": 3},
    "whitened": {
        "crps_weight": 0.25,
        "energy_score_weight": 1.0,
        "energy_score_whitening": {"kind": "per_sample", "exponent": 0.7, "eps_frac": 0.05},
    },
}
CASES = {
    "mse": ({"type": "MSE", "weights": WEIGHTS, "sqrt_loss_step_decay_constant": 0.7}, "member"),
    "l1": ({"type": "L1", "weights": WEIGHTS}, "member"),
    "lp": ({"type": "LpLoss"}, "plain"),
    "lp1": ({"type": "LpLoss", "kwargs": {"p": 1}}, "plain"),
    "area": ({"type": "AreaWeightedMSE", "weights": WEIGHTS}, "plain"),
    "global": ({"type": "L1", "global_mean_type": "LpLoss", "global_mean_weight": 0.4}, "plain"),
    **{k: ({"type": "EnsembleLoss", "kwargs": v, "weights": WEIGHTS}, "member") for k, v in ENSEMBLE.items()},
}


def split(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {n: x.select(-3, i) for i, n in enumerate(NAMES)}


def main() -> None:
    torch.manual_seed(0)
    ny, nx = 8, 16
    nodes, _ = np.polynomial.legendre.leggauss(ny)
    area = torch.from_numpy(np.sqrt(1 - nodes**2))[:, None].expand(ny, nx)
    operations = LatLonOperations((area / area.sum()).float())
    normalizer = StandardNormalizer(
        {k: torch.tensor(v) for k, v in MEANS.items()}, {k: torch.tensor(v) for k, v in STDS.items()}
    )
    std, mean = (torch.tensor([d[n] for n in NAMES])[:, None, None] for d in (STDS, MEANS))
    # Off the climatology: a global mean near 0 would leave the relative error of it to rounding.
    prediction = (torch.randn(3, 3, 3, ny, nx) - 0.5) * std + mean
    target = (torch.randn(3, 1, 3, ny, nx) + 1.0) * std + mean
    holes = target.clone()
    holes[:, :, 1, :3, :5] = torch.nan
    mask = torch.tensor([[True, True, False], [True, False, False], [False, True, False]])
    arrays = {"prediction": prediction, "target": target, "holes": holes, "mask": mask}
    for case, (config, layout) in CASES.items():

        def run(names, x, y, step=0, data_mask=None, config=config):
            keep = {k: v for k, v in config.get("weights", {}).items() if k in names}
            loss = StepLossConfig(**(config | {"weights": keep})).build(operations, names, normalizer)
            return loss({n: x[n] for n in names}, {n: y[n] for n in names}, step, data_mask)

        x = (prediction if layout == "member" else prediction[:, 0]).clone().requires_grad_()
        for which, data in {"full": target, "holes": holes}.items():
            y = data if layout == "member" else data[:, 0]
            for n in NAMES:
                arrays[f"{case}/{which}/{n}"] = run([n], split(x), split(y)).total()
        y = target if layout == "member" else target[:, 0]
        total = run(NAMES, split(x), split(y), 3).total()
        total.backward()
        arrays[f"{case}/step3"], arrays[f"{case}/gradient"] = total, x.grad
        if case not in ("energy", "whitened"):
            out = run(NAMES, split(x), split(y), 0, {n: mask[:, i] for i, n in enumerate(NAMES)})
            arrays[f"{case}/masked"] = out.total()
            arrays[f"{case}/masked_channels"] = torch.stack([v.loss for v in out.get_channel_losses().values()])
    before = prediction[:, :, [0, 2]] + torch.randn(3, 3, 2, ny, nx) * std[[0, 2]]
    arrays["uncorrected"] = before
    deltas = {"t_0": prediction[:, :, 0] - before[:, :, 0], "rain": prediction[:, :, 2] - before[:, :, 1]}
    for norm in ("L1", "L2"):
        selected = ["t_0", "rain"]
        corrector = CorrectorLossConfig(
            PreCorrectorOptimizationConfig(selected), CorrectorRegularizationConfig(selected, norm, 0.3)
        ).build(NAMES, normalizer, -3)
        step_loss = StepLossConfig(sqrt_loss_step_decay_constant=0.7).build(operations, NAMES, normalizer)
        out = StepOutputLoss(step_loss, corrector)(split(prediction), split(target), 2, None, deltas)
        arrays[f"corrector/{norm}/main"] = out.main.total()
        arrays[f"corrector/{norm}/total"] = out.total()
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "loss.npz"
    np.savez_compressed(path, **{k: v.detach().numpy() for k, v in arrays.items()})
    print(path, path.stat().st_size)


main()
