"""Checkpoints that the peer wrote, and one step with each -> tests/golden/fme_*.tar.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_checkpoint.py
With a folder and an output: load FOLDER/fme_CASE.tar of every case with the peer's own loader, step, and keep what it says:
    ... golden_checkpoint.py FOLDER OUTPUT.tar

Weights are random. Files are written by the peer's Trainer.save_checkpoint; only the layout of its predecessors, which it reads
and does not write any more, is arranged here. fme_steps.tar holds inputs and outputs of one step per case.
"""

import copy
import datetime
import sys
import types
from pathlib import Path

import numpy as np
import torch
from fme.ace.stepper.single_module import Stepper, StepperConfig, load_stepper
from fme.core.coordinates import (
    DepthCoordinate,
    HybridSigmaPressureCoordinate,
    LatLonCoordinates,
    NullVerticalCoordinate,
)
from fme.core.dataset.data_typing import VariableMetadata
from fme.core.dataset_info import DatasetInfo
from fme.core.ema import EMATracker
from fme.core.generics.trainer import Trainer
from fme.core.labels import BatchLabels
from fme.core.optimization import OptimizationConfig
from fme.core.spatial_mask_provider import SpatialMaskProvider
from fme.core.step.args import StepArgs
from fme.core.training_history import TrainingJob

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
NY, NX, B = 6, 12, 2
LAT = torch.tensor(np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(NY)[0])), dtype=torch.float32)
LON = torch.tensor((np.arange(NX) + 0.5) * 360 / NX, dtype=torch.float32)
HYBRID = HybridSigmaPressureCoordinate(torch.tensor([1.0, 20087.1, 0.0]), torch.tensor([0.0, 0.2, 1.0]))
T, Q = ["air_temperature_0", "air_temperature_1"], ["specific_total_water_0", "specific_total_water_1"]
PS, SST, CO2, SUN, OCEAN = "PRESsfc", "surface_temperature", "global_mean_co2", "DSWRFtoa", "ocean_fraction"
STATISTICS = {
    T[0]: (240.0, 10.0),
    T[1]: (280.0, 12.0),
    Q[0]: (1e-3, 1e-3),
    Q[1]: (6e-3, 4e-3),
    PS: (98000.0, 1500.0),
    SST: (288.0, 14.0),
    CO2: (4e-4, 5e-5),
    SUN: (340.0, 130.0),
    OCEAN: (0.6, 0.3),
    "HGTsfc": (250.0, 300.0),
    "TMP2m": (287.0, 9.0),
    "UGRD10m": (0.5, 6.0),
    "ULWRFtoa": (240.0, 30.0),
    "USWRFtoa": (100.0, 35.0),
    "PRATEsfc": (3e-5, 4e-5),
    "thetao_0": (15.0, 8.0),
    "thetao_1": (10.0, 5.0),
    "so_0": (35.0, 1.0),
    "zos": (0.1, 0.3),
    "sst": (288.0, 8.0),
    "hfds": (5.0, 60.0),
    "land_fraction": (0.3, 0.4),
    "sea_surface_fraction": (0.7, 0.4),
    "unused": (0.0, float("nan")),
}
NORMALIZATION = {
    "means": {n: m for n, (m, _) in STATISTICS.items()},
    "stds": {n: s for n, (_, s) in STATISTICS.items()},
}
CHANGES = {"means": dict.fromkeys(STATISTICS, 0.0), "stds": {n: s / 5 for n, (_, s) in STATISTICS.items()}}
SFNO = {
    "type": "SphericalFourierNeuralOperatorNet",
    "config": {"embed_dim": 6, "num_layers": 2, "operator_type": "dhconv"},
}
DIAGONAL = {
    "type": "SphericalFourierNeuralOperatorNet",
    "config": {"embed_dim": 4, "num_layers": 2, "scale_factor": 2, "encoder_layers": 2, "big_skip": False},
}


def mlp(hidden: int, **keys: bool) -> dict:
    return {"type": "MLP", "config": {"hidden_dim": hidden, "depth": 2}, **keys}


FEW = {
    "in_names": [CO2, T[0], SST, "HGTsfc", T[1]],
    "out_names": [T[1], "TMP2m", T[0], SST],
    "normalization": {"network": NORMALIZATION},
}
CASES: dict[str, dict] = {
    "full": {
        "masks": True,
        "stepper": {
            "step": {
                "type": "single_module",
                "config": {
                    "builder": SFNO,
                    "in_names": [SUN, OCEAN, *T, SST, *Q, PS],
                    "out_names": [PS, *T, *Q, SST, "ULWRFtoa", "PRATEsfc"],
                    "normalization": {"network": NORMALIZATION, "residual": CHANGES},
                    "residual_prediction": {"names": [T[0], SST], "normalized": True},
                    "ocean": {"surface_temperature_name": SST, "ocean_fraction_name": OCEAN, "interpolate": True},
                    "corrector": {"force_positive_names": [*Q, "PRATEsfc"], "conserve_dry_air": True},
                    "next_step_forcing_names": [SUN],
                    "global_mean_removal": {"reference_field": SST, "append_as_input": True},
                    "include_channel_mask_inputs": True,
                    "secondary_decoder": {
                        "secondary_diagnostic_names": ["UGRD10m"],
                        "network": mlp(3),
                        "include_input_step": True,
                    },
                    "input_dropout": {"default": {"max_masked_vars": 2}},
                },
            },
            "input_masking": {"mask_value": 0, "fill_value": "mean", "exclude_names_and_prefixes": [OCEAN]},
            "derived_forcings": {"insolation": {"insolation_name": SUN, "solar_constant": {"value": 1360.0}}},
        },
    },
    "multi_call": {
        "stepper": {
            "step": {
                "type": "multi_call",
                "config": {
                    "wrapped_step": {
                        "type": "default",
                        "config": FEW
                        | {
                            "builder": DIAGONAL,
                            "residual_prediction": True,
                            "corrector": {
                                "type": "atmosphere_corrector",
                                "config": {"force_positive_names": ["TMP2m"], "corrector_disabled_epochs": 2},
                            },
                        },
                    },
                    "config": {
                        "forcing_name": CO2,
                        "forcing_multipliers": {"_with_doubled_co2": 2.0},
                        "output_names": ["TMP2m", T[1]],
                    },
                    "include_multi_call_in_loss": False,
                },
            }
        }
    },
    "secondary": {
        "stepper": {
            "step": {
                "type": "secondary_module",
                "config": FEW
                | {
                    "builder": mlp(5),
                    "secondary_builder": mlp(4),
                    "secondary_out_names": ["ULWRFtoa"],
                    "secondary_residual_out_names": ["TMP2m"],
                    "secondary_decoder": {"secondary_diagnostic_names": ["UGRD10m"], "network": mlp(3)},
                    "prescribed_prognostic_names": [T[0]],
                },
            }
        }
    },
    "radiation": {
        "stepper": {
            "step": {
                "type": "separate_radiation",
                "config": {
                    "builder": SFNO,
                    "radiation_builder": mlp(4),
                    "main_prognostic_names": [SST, T[1]],
                    "shared_forcing_names": ["HGTsfc"],
                    "radiation_only_forcing_names": [CO2, SUN],
                    "radiation_diagnostic_names": ["ULWRFtoa", "USWRFtoa"],
                    "main_diagnostic_names": ["TMP2m"],
                    "normalization": {"network": NORMALIZATION},
                    "detach_radiation": True,
                    "residual_prediction": True,
                },
            }
        }
    },
    "depth": {
        "masks": True,
        "depth": True,
        "stepper": {
            "step": {
                "type": "single_module",
                "config": {
                    "builder": mlp(6),
                    "in_names": ["thetao_0", "thetao_1", "so_0", "sst", "hfds", "land_fraction", "sea_surface_fraction"],
                    "out_names": ["thetao_0", "thetao_1", "so_0", "sst"],
                    "normalization": {"network": NORMALIZATION},
                    "corrector": {
                        "type": "ocean_corrector",
                        "config": {
                            "force_positive_names": ["so_0"],
                            "ocean_heat_content_correction": {"method": "scaled_temperature"},
                        },
                    },
                },
            },
            "input_masking": {"mask_value": 0, "fill_value": 0.0},
        },
    },
    # Nothing is scaled by noise, so that the step is a function; labels told in an order of their own. As many channels as degrees:
    # the peer mistakes these weights for ones of an older layout when it loads them, so what counts is its step before.
    "noise": {
        "labels": ["warm", "cold"],
        "stepper": {
            "step": {
                "type": "single_module",
                "config": FEW
                | {
                    "builder": {
                        "type": "NoiseConditionedSFNO",
                        "conditional": True,
                        "config": {
                            "embed_dim": 6,
                            "noise_embed_dim": 2,
                            "num_layers": 2,
                            "spectral_lora_rank": 1,
                            "affine_norms": True,
                            "label_embed_dim": 2,
                        },
                    }
                },
            }
        },
    },
    # Raw weights, and their moving average beside them.
    "training": {"stepper": {"step": {"type": "single_module", "config": FEW | {"builder": mlp(5)}}}},
    # What SingleModuleStepper wrote: see legacy().
    "legacy": {
        "stepper": {"step": {"type": "multi_call", "config": {
            "wrapped_step": {"type": "single_module", "config": FEW | {
                "builder": SFNO,
                "in_names": [OCEAN, *FEW["in_names"]],
                "ocean": {"surface_temperature_name": SST, "ocean_fraction_name": OCEAN, "interpolate": False},
            }},
            "include_multi_call_in_loss": False,
        }}}
    },
    # Five channels: the spectral weights of the other block have one layout only.
    "local": {
        "stepper": {
            "step": {
                "type": "single_module",
                "config": FEW
                | {
                    "builder": {
                        "type": "NoiseConditionedSFNO",
                        "config": {"embed_dim": 5, "noise_embed_dim": 2, "num_layers": 2, "local_blocks": [1]},
                    }
                },
            }
        },
    },
    "filters": {
        "stepper": {
            "step": {
                "type": "secondary_module",
                "config": FEW
                | {
                    "builder": {
                        "type": "SphericalFourierNeuralOperatorNet",
                        "config": {
                            "embed_dim": 4,
                            "num_layers": 2,
                            "operator_type": "dhconv",
                            "factorization": "cp",
                            "rank": 0.5,
                        },
                    },
                    "secondary_builder": {
                        "type": "SphericalFourierNeuralOperatorNet",
                        "config": {
                            "embed_dim": 4,
                            "num_layers": 2,
                            "filter_type": "non-linear",
                            "complex_activation": "halfplane",
                        },
                    },
                    "secondary_out_names": ["ULWRFtoa"],
                },
            }
        },
    },
}  # fmt: skip


def info_of(case: dict) -> DatasetInfo:
    draw = torch.Generator().manual_seed(5)
    masks = {n: (torch.rand(NY, NX, generator=draw) > 0.3).float() for n in ("mask_0", "mask_1", "mask_sst")}
    vertical: object = HYBRID
    if case.get("depth"):
        # The heat content exists where the sea does; the peer's is NaN on land.
        masks = {"mask_0": masks["mask_0"], "mask_1": masks["mask_1"], "mask_2d": masks["mask_0"]}
        wet = torch.stack([masks["mask_0"], masks["mask_0"] * masks["mask_1"]], dim=-1)
        floor = torch.full((NY, NX), 120.0).masked_fill_(masks["mask_0"] == 0, torch.nan)
        floor[:, 3] = 7.5
        vertical = DepthCoordinate(torch.tensor([0.0, 10.0, 200.0]), wet, floor)
    if not case.get("depth") and not case.get("masks") and not uses_layers(case):
        vertical = NullVerticalCoordinate()
    return DatasetInfo(
        horizontal_coordinates=LatLonCoordinates(lat=LAT, lon=LON),
        vertical_coordinate=vertical,
        spatial_mask_provider=SpatialMaskProvider(masks if case.get("masks") else None),
        timestep=datetime.timedelta(hours=6),
        all_labels=set(case.get("labels", ())),
        variable_metadata={SST: VariableMetadata("K", "surface temperature"), PS: VariableMetadata("Pa")},
    )


def uses_layers(case: dict) -> bool:
    return case["stepper"]["step"]["type"] != "secondary_module"


def build(case: dict, seed: int) -> Stepper:
    torch.manual_seed(seed)
    stepper = StepperConfig.from_state(copy.deepcopy(case["stepper"])).get_stepper(info_of(case))
    for name, p in stepper.modules.named_parameters():
        # The peer's own initial spectral weights are too small to test anything.
        torch.nn.init.normal_(p, std=0.3 if "filter" in name else 0.2)
        if "W_scale_2d" in name or "W_bias_2d" in name:
            torch.nn.init.zeros_(p)
    stepper.update_training_history(TrainingJob("0123abc", "job"))
    return stepper


def fields(case: dict, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    out = {}
    for name, (mean, std) in STATISTICS.items():
        x = torch.randn(B, NY, NX, generator=draw)
        if name == CO2:
            x = x[:, :1, :1].expand_as(x)
        out[name] = mean + (0.0 if name == "unused" else std) * x
        if name.endswith("_fraction"):
            out[name] = torch.rand(B, NY, NX, generator=draw)
    out.pop("unused")
    return out


def one_step(stepper: Stepper, case: dict) -> dict[str, dict[str, torch.Tensor]]:
    stepper.set_eval()
    state, after = fields(case, 1), fields(case, 2)
    names = stepper.config.input_names
    ahead = stepper.config.next_step_forcing_names
    inputs = {n: (after if n in ahead else state)[n] for n in sorted(names)}
    later = {n: after[n] for n in sorted(stepper.config.step.next_step_input_names)}
    labels = BatchLabels(torch.eye(B), case["labels"]) if "labels" in case else None
    with torch.no_grad():
        out = stepper.step(StepArgs(input=inputs, next_step_input_data=later, labels=labels)).output
    return {"input": inputs, "next": later, "output": {n: out[n].clone() for n in sorted(out)}}


def save(stepper: Stepper, path: Path, ema: EMATracker, optimization: object = None) -> None:
    """By the peer's Trainer, of which only this method is wanted."""
    trainer = types.SimpleNamespace(
        num_batches_seen=3,
        _current_epoch_num_batches_seen=1,
        _epochs_trained=2,
        _best_validation_loss=np.float64(0.5),
        _best_inference_error=torch.inf,
        stepper=stepper,
        _ema=ema,
        optimization=optimization,
    )
    Trainer.save_checkpoint(trainer, str(path), include_optimization=optimization is not None)


def train(stepper: Stepper, path: Path) -> None:
    """Two updates of the optimizer and of the moving average."""
    optimization = OptimizationConfig(optimizer_type="AdamW", lr=0.05).build(stepper.modules, max_epochs=2)
    ema = EMATracker(stepper.modules, decay=0.5)
    for _ in range(2):
        optimization.accumulate_loss(sum(p.square().sum() for p in stepper.modules.parameters()))
        optimization.step_weights()
        ema(stepper.modules)
    save(stepper, path, ema, optimization)


def legacy(state: dict) -> dict:
    """The layout of SingleModuleStepper, with keys of several of its versions."""
    step = state["config"]["step"]["config"]["wrapped_step"]["config"]
    network = step["normalization"]["network"]
    config = {
        k: step[k] for k in ("builder", "in_names", "out_names", "residual_prediction", "next_step_forcing_names")
    }
    keys = ("conditional", "allow_missing_variables")
    config["builder"] = {k: v for k, v in config["builder"].items() if k not in keys}
    config["residual_prediction"] = False
    config |= {
        "normalization": {
            "global_means_path": "/gone/means.nc",
            "global_stds_path": "/gone/stds.nc",
            "exclude_names": None,
        },
        "residual_normalization": None,
        "prescriber": {"prescribed_name": SST, "mask_name": OCEAN, "mask_value": 1, "interpolate": False},
        "optimization": None,
        "conserve_dry_air": False,
        "activation_checkpointing": {"enabled": False},
        "crps_training": False,
        "loss": {"type": "LpLoss"},
        "parameter_init": {"weights_path": None},
        "corrector": {"conserve_dry_air": False, "force_positive_names": ["TMP2m"]},
    }
    names = [*step["in_names"], "TMP2m"]
    weights = dict(state["step"]["wrapped_step"]["module"])
    weights.pop("label_encoding")
    weights["module.device_buffer"] = torch.zeros(0)
    return {
        "config": config,
        "normalizer": {key: {n: network[key][n] for n in names} for key in ("means", "stds")},
        "sigma_coordinates": {"ak": HYBRID.ak, "bk": HYBRID.bk},
        "area": LatLonCoordinates(lat=LAT, lon=LON).area_weights.clone(),
        "data_shapes": {SST: [B, 2, NY, NX], CO2: [B, 2]},
        "encoded_timestep": 10_800_000_000,
        "module": weights,
    }


def main() -> None:
    steps = {}
    for seed, (name, case) in enumerate(CASES.items()):
        path = GOLDEN / f"fme_{name}.tar"
        stepper = build(case, seed)
        if name == "training":
            train(stepper, path)
            steps["training_ema"] = one_step(load_stepper(path, use_ema_if_available=True), case)
        elif name == "legacy":
            torch.save({"stepper": legacy(stepper.get_state()), "epoch": 1}, path)
        else:
            save(stepper, path, EMATracker(stepper.modules, decay=0.5))
        steps[name] = one_step(stepper if name == "noise" else load_stepper(path), case)
        print(path, path.stat().st_size)
    torch.save(steps, GOLDEN / "fme_steps.tar")
    print((GOLDEN / "fme_steps.tar").stat().st_size)


if len(sys.argv) > 1:
    folder, output = map(Path, sys.argv[1:])
    found = {name: folder / f"fme_{name}.tar" for name in CASES}
    torch.save({name: one_step(load_stepper(p), CASES[name]) for name, p in found.items() if p.exists()}, output)
else:
    main()
