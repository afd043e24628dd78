"""A small emulator with everything that could tell one cut of a rollout from another: noise, a corrector with a memory, tendencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ace_core.config import load
from ace_core.data.loader import make_loader
from ace_core.evaluation.config import EvaluatorConfig
from ace_core.step.emulator import build_emulator
from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig

BUILDER = {
    "type": "NoiseConditionedSFNO",
    "config": {
        "embed_dim": 8,
        "num_layers": 1,
        "noise_embed_dim": 4,
        "context_pos_embed_dim": 0,
        "filter_type": "linear",
    },
}
CORRECTOR = {
    "conserve_dry_air": True,
    "force_positive_names": ["specific_total_water_0", "specific_total_water_7", "PRATEsfc"],
    "moisture_budget_correction": None,
}
# A region across the dateline in zarr, means of three steps and of months, two members each of two initial conditions.
FILES: list[dict[str, Any]] = [
    {
        "label": "tropics",
        "lat_extent": [-30, 30],
        "lon_extent": [150, -150],
        "names": ["PRESsfc", "TMP2m"],
        "format": {"name": "zarr"},
    },
    {"label": "blocks", "names": ["TMP2m"], "time_coarsen": {"coarsen_factor": 3}, "separate_ensemble_members": True},
    {"label": "months", "names": ["TMP2m"], "time_coarsen": {"method": "monthly_mean"}, "format": {"name": "zarr"}},
]


def noisy_checkpoint(path: Path, data: Path, residual: bool = True) -> None:
    """Weights as they are drawn, those that begin as zero, which let in no noise, a little off it; the outputs' made small, so that the
    state stays where Earth's is."""
    overrides = [
        f"stepper.step.config.builder={json.dumps(BUILDER)}",
        f"stepper.step.config.corrector={json.dumps(CORRECTOR)}",
        f"stepper.step.config.residual_prediction={json.dumps(residual)}",
    ]
    config = load(TrainConfig, Path("configs/planet/train.yaml"), overrides, {"data": str(data)})
    info = make_loader(config.validation_loader, config.stepper.data_names, 2, train=False).dataset.info
    emulator = build_emulator(config.stepper, info, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in emulator.step.networks[0].parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        emulator.step.networks[0].decoder[-1].weight.mul_(0.02)  # type: ignore[index,union-attr,operator]
    checkpoint.save(path, {"emulator": emulator.state()})


def evaluation(data: Path, emulator: Path, **more: Any) -> EvaluatorConfig:
    """Twelve days from two dates of which one is the end of a month."""
    content = {
        "checkpoint_path": str(emulator),
        "loader": {
            "dataset": {"data_path": str(data / "native" / "test.zarr")},
            "start_indices": {"n_initial_conditions": 2, "first": 26, "interval": 30},
        },
        "n_forward_steps": 12,
        "forward_steps_in_memory": 3,
        "n_ensemble_per_ic": 2,
        "restart_every_n_windows": 1,
        "data_writer": {"files": FILES},
        "seed": 5,
    }
    return EvaluatorConfig.model_validate(content | more)
