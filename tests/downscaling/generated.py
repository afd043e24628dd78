"""A small random model of the globe of ``conftest.py``, and configurations that generate with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from ace_core.config import Source, parse
from ace_core.downscaling.config import DiffusionModelConfig
from ace_core.downscaling.generate_config import DownscaleConfig
from ace_core.downscaling.model import build_downscaler
from ace_core.downscaling.stepper import DiffusionTrainStepper
from ace_core.training import checkpoint
from tests.downscaling.conftest import FACTOR, FINE, NAMES

PATCH = (4, 4)  # coarse cells that the model was trained on
STATISTICS = {"means": {"a": 70000.0, "b": 570000.0}, "stds": {"a": 4e4, "b": 5e4}}
WINDOW = {"lat_extent": {"start": -45.0, "stop": 40.0}, "lon_extent": {"start": 90.0, "stop": 210.0}}
PATCHES = {"divide_generation": True, "composite_prediction": True}


def save_model(path: Path, shape: tuple[int, int] = PATCH, **more: Any) -> str:
    """A checkpoint."""
    config = {
        "module": {
            "type": "unet_diffusion_song",
            "config": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [6]},
        },
        "loss": {"type": "MSE"},
        "in_names": ["a"],
        "out_names": ["b", "a"],
        "normalization": {"fine": STATISTICS, "coarse": STATISTICS},
        "sigma_min": 0.1,
        "sigma_max": 10.0,
        "churn": 1.0,
        "num_diffusion_generation_steps": 2,
        "predict_residual": True,
        "p_mean": -1.2,
        "p_std": 1.2,
        **more,
    }
    model = build_downscaler(DiffusionModelConfig.model_validate(config), FINE, shape, FACTOR, None, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    checkpoint.save(path, {DiffusionTrainStepper.state_key: model.state()})
    return str(path)


def event(**more: Any) -> dict[str, Any]:
    return {"name": "event", "event_time": 3, "n_ens": 5, "max_samples_per_gpu": 2, **WINDOW, **more}


def span(**more: Any) -> dict[str, Any]:
    return {
        "name": "span",
        "time_range": {"start": 1, "stop": 6},
        "n_ens": 2,
        "max_samples_per_gpu": 4,
        **WINDOW,
        **more,
    }


def plain(model: str, coarse: str, *outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": {"checkpoint_path": model},
        "data": {"coarse": [{"data_path": coarse}], "batch_size": 1, "num_data_workers": 1},
        "experiment_dir": None,
        "outputs": list(outputs),
        "logging": {"log_to_wandb": False},
        **more,
    }


def configured(*args: Any, **more: Any) -> DownscaleConfig:
    return parse(DownscaleConfig, Source("downscale.yaml", plain(*args, **more)))


def values(path: Path, names: tuple[str, ...] = NAMES) -> np.ndarray:
    """[C, T, E, Y, X]."""
    group = zarr.open_group(str(path), mode="r")
    return np.stack([np.asarray(group[name]) for name in names])


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
