"""Rollouts of ten steps through the peer's steps, whatever they are made of -> tests/golden/rollout.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_rollout.py

Driven by the peer's own Stepper. In float64, so that what is compared is the formulas and not the rounding; inputs and weights
are exact in float32, standard deviations powers of two. Kept: the first and the last step, and what the correctors added in
the first; for some cases derived variables, and gradients of the networks' weights.
"""

import datetime
import json
from pathlib import Path

import numpy as np
import torch
from fme.ace.stepper.single_module import Stepper, StepperConfig
from fme.core.coordinates import HybridSigmaPressureCoordinate, LatLonCoordinates
from fme.core.dataset_info import DatasetInfo
from fme.core.optimization import NullOptimization
from fme.core.spatial_mask_provider import SpatialMaskProvider

torch.set_default_dtype(torch.float64)
# Every second interface of ACE's eight layers.
AK = (1.0001825, 13881.331055, 20087.085938, 8880.453125, 0.0)
BK = (0.0, 0.005378, 0.203491, 0.680643, 1.0)
LAT, LON = (-66.0, -22.0, 22.0, 66.0), (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
B, STEPS, GRADIENT_STEPS = 2, 10, 2
SEED = 140  # one with which every clamp of the case "corrected" acts, in some cells
T, Q = [f"air_temperature_{k}" for k in range(4)], [f"specific_total_water_{k}" for k in range(4)]
PS, SST, CO2, SUN, OCEAN = "PRESsfc", "surface_temperature", "global_mean_co2", "DSWRFtoa", "ocean_fraction"
ADVECTION, FROZEN = "tendency_of_total_water_path_due_to_advection", "total_frozen_precipitation_rate"
STATE = dict.fromkeys(T, (256.0, 16.0)) | dict.fromkeys(Q, (2.0**-9, 2.0**-11)) | {Q[0]: (2.0**-12, 2.0**-11)}
STATE |= {PS: (98304.0, 1024.0), SST: (288.0, 16.0)}
FORCING = {
    "HGTsfc": (256.0, 256.0),
    SUN: (340.0, 128.0),
    CO2: (2.0**-11, 2.0**-13),
    OCEAN: (0.5, 0.25),
    "mixed_layer_depth": (64.0, 16.0),
    "q_flux": (0.0, 32.0),
}
FLUXES = {
    "LHTFLsfc": (160.0, 32.0),
    "SHTFLsfc": (16.0, 16.0),
    "DSWRFsfc": (190.0, 64.0),
    "USWRFsfc": (24.0, 16.0),
    "DLWRFsfc": (330.0, 32.0),
    "ULWRFsfc": (390.0, 32.0),
}
TOP = {"USWRFtoa": (100.0, 32.0), "ULWRFtoa": (240.0, 32.0)}
WATER = {"PRATEsfc": (2.0**-14, 2.0**-14), ADVECTION: (0.0, 2.0**-15), FROZEN: (2.0**-15, 2.0**-15)}
NEAR = {"TMP2m": (287.0, 8.0), "UGRD10m": (0.0, 8.0), "VGRD10m": (0.0, 4.0)}
LAYER = {"eastward_wind_1": (0.0, 16.0)}
STATISTICS = STATE | FORCING | FLUXES | TOP | WATER | NEAR | LAYER
CHANGES = {n: (0.0, std / 4) for n, (_, std) in STATISTICS.items()}

OCEAN_MODEL = {"surface_temperature_name": SST, "ocean_fraction_name": OCEAN}
CORRECTOR = {
    "force_positive_names": [*Q, "PRATEsfc", FROZEN],
    "conserve_dry_air": True,
    "zero_global_mean_moisture_advection": True,
    "moisture_budget_correction": "advection_and_precipitation",
    "clip_frozen_precipitation": True,
    "total_energy_budget_correction": {"method": "constant_temperature", "constant_unaccounted_heating": 1.5},
    "keep_gradient_through_clamps": True,
}


def mlp(hidden: int = 6, **keys: bool) -> dict:
    return {"type": "MLP", "config": {"hidden_dim": hidden, "depth": 2}, **keys}


def scaling(statistics: dict[str, tuple[float, float]], **keys: bool) -> dict:
    means, stds = ({n: pair[i] for n, pair in statistics.items()} for i in (0, 1))
    return {"means": means, "stds": stds, **keys}


def single(inputs: list[str], outputs: list[str], **keys: object) -> dict:
    config = {
        "builder": mlp(),
        "in_names": inputs,
        "out_names": outputs,
        "normalization": {"network": scaling(STATISTICS)},
    }
    return {"type": "single_module", "config": config | keys}


# Names in an order that no packing keeps: forcings among the prognostics, outputs in another order than inputs.
FEW_IN, FEW_OUT = [SST, CO2, T[1], "HGTsfc", T[0]], [T[0], "TMP2m", SST, T[1]]
ALL_IN = ["HGTsfc", SUN, *T, SST, OCEAN, *Q, PS]
ALL_OUT = [PS, *Q, *T, SST, *FLUXES, *TOP, *WATER]
SOME = {"mask_surface_temperature", "mask_1"}
# stepper: the configuration, as YAML would have it. gain: of the networks' last layer. absent: forcing that the second sample
# lacks. holes: NaN outside mask_1. masks: of the data. derived, gradient: kept too.
SHARED = {"kind": "shared", "reference_field": SST, "field_names": [SST, "TMP2m", T[0]], "append_as_input": True}
CASES: dict[str, dict] = {
    "full_fields": {"stepper": {"step": single(FEW_IN, FEW_OUT, next_step_forcing_names=["HGTsfc"])}},
    "residual": {
        "gain": 0.5,
        "stepper": {
            "step": single(
                FEW_IN + [OCEAN], FEW_OUT, residual_prediction=True, ocean=OCEAN_MODEL | {"interpolate": True}
            )
        },
    },
    "residual_normalized": {
        "stepper": {
            "step": single(
                FEW_IN,
                FEW_OUT,
                normalization={"network": scaling(STATISTICS), "residual": scaling(CHANGES)},
                residual_prediction={"names": [T[1], SST], "normalized": True},
            )
        }
    },
    "slab": {
        "stepper": {
            "step": single(
                [SST, OCEAN, Q[1]],
                ["LHTFLsfc", Q[1], *list(FLUXES)[1:], SST],
                ocean=OCEAN_MODEL | {"slab": {"mixed_layer_depth_name": "mixed_layer_depth", "q_flux_name": "q_flux"}},
                corrector={"force_positive_names": [Q[1]]},
            )
        }
    },
    "global_mean_shared": {
        "gain": 0.5,
        "absent": [CO2],
        "stepper": {
            "step": single(
                FEW_IN,
                FEW_OUT,
                builder=mlp(allow_missing_variables=True),
                residual_prediction=True,
                include_channel_mask_inputs=True,
                global_mean_removal=SHARED,
            )
        },
    },
    "global_mean_per_channel": {
        "absent": [CO2],
        "stepper": {
            "step": single(
                FEW_IN,
                FEW_OUT,
                builder=mlp(allow_missing_variables=True),
                include_channel_mask_inputs=True,
                global_mean_removal={"kind": "per_channel", "field_names": [T[1], CO2], "append_as_input": True},
                secondary_decoder={
                    "secondary_diagnostic_names": ["UGRD10m", "VGRD10m"],
                    "network": mlp(3),
                    "include_input_step": True,
                },
            )
        },
    },
    "masked": {
        "masks": True,
        "stepper": {
            "step": single([*FEW_IN, OCEAN], FEW_OUT, ocean=OCEAN_MODEL, residual_prediction=True),
            "input_masking": {"mask_value": 0, "fill_value": "mean", "exclude_names_and_prefixes": [OCEAN]},
        },
        "gain": 0.5,
    },
    "filled": {
        "holes": ["HGTsfc"],
        "stepper": {
            "step": single(
                FEW_IN,
                FEW_OUT,
                normalization={
                    "network": scaling(STATISTICS, fill_nans_on_normalize=True, fill_nans_on_denormalize=True)
                },
            )
            | {"type": "default"}
        },
    },
    "corrected": {
        "derived": True,
        "gradient": True,
        "stepper": {
            "step": single(ALL_IN, ALL_OUT, ocean=OCEAN_MODEL, next_step_forcing_names=[SUN], corrector=CORRECTOR)
        },
    },
    "prescribed": {
        "derived": True,
        "stepper": {
            "step": single(
                [*Q, "HGTsfc", *T, PS],
                [*T, *Q, PS, "LHTFLsfc", "PRATEsfc", *NEAR, ADVECTION],
                prescribed_prognostic_names=[Q[3], T[0]],
                corrector={
                    "type": "atmosphere_corrector",
                    "config": {
                        "force_positive_names": Q,
                        "conserve_dry_air": True,
                        "moisture_budget_correction": "advection_and_evaporation",
                        "corrector_disabled_epochs": 1,
                    },
                },
            )
        },
    },
    "multi_call": {
        "stepper": {
            "step": {
                "type": "multi_call",
                "config": {
                    "wrapped_step": single(
                        ALL_IN,
                        [*LAYER, *ALL_OUT],
                        ocean=OCEAN_MODEL,
                        next_step_forcing_names=[SUN],
                        corrector=CORRECTOR,
                    ),
                    "config": {
                        "forcing_name": SUN,
                        "forcing_multipliers": {"_doubled_sun": 2.0, "_halved_sun": 0.5},
                        "output_names": ["ULWRFtoa", *LAYER, "PRATEsfc"],
                    },
                    "include_multi_call_in_loss": False,
                },
            }
        },
    },
    "multi_call_absent": {
        "absent": [CO2],
        "stepper": {
            "step": {
                "type": "multi_call",
                "config": {
                    "wrapped_step": single(
                        FEW_IN,
                        FEW_OUT,
                        builder=mlp(allow_missing_variables=True),
                        include_channel_mask_inputs=True,
                        global_mean_removal=SHARED,
                    ),
                    "config": {
                        "forcing_name": "HGTsfc",
                        "forcing_multipliers": {"_higher": 1.5},
                        "output_names": ["TMP2m", SST],
                    },
                    "include_multi_call_in_loss": False,
                },
            }
        },
    },
    "secondary": {
        "gradient": True,
        "stepper": {
            "step": {
                "type": "secondary_module",
                "config": {
                    "builder": mlp(),
                    "in_names": FEW_IN,
                    "out_names": [SST, T[1], "TMP2m"],
                    "normalization": {"network": scaling(STATISTICS)},
                    "secondary_builder": mlp(4),
                    "secondary_out_names": ["UGRD10m"],
                    "secondary_residual_out_names": [T[0], "TMP2m"],
                    "secondary_decoder": {
                        "secondary_diagnostic_names": ["VGRD10m", "LHTFLsfc"],
                        "network": mlp(3),
                        "include_input_step": True,
                    },
                    "prescribed_prognostic_names": [T[1]],
                    "next_step_forcing_names": ["HGTsfc"],
                },
            }
        },
    },
    "separate_radiation": {
        "gradient": True,
        "gain": 0.5,
        "stepper": {
            "step": {
                "type": "separate_radiation",
                "config": {
                    "builder": mlp(),
                    "radiation_builder": mlp(4),
                    "main_prognostic_names": [T[0], SST, T[1]],
                    "shared_forcing_names": ["HGTsfc", OCEAN],
                    "radiation_only_forcing_names": [CO2, SUN],
                    "radiation_diagnostic_names": ["ULWRFtoa", "USWRFtoa"],
                    "main_diagnostic_names": ["TMP2m"],
                    "normalization": {"network": scaling(STATISTICS)},
                    "next_step_forcing_names": [SUN],
                    "ocean": OCEAN_MODEL,
                    "corrector": {"force_positive_names": ["ULWRFtoa"]},
                    "detach_radiation": True,
                    "residual_prediction": True,
                },
            }
        },
    },
}


def draw(names: list[str], *size: int) -> dict[str, torch.Tensor]:
    """name -> [*size, Y, X] within 1.5 standard deviations, water not negative."""
    fields = {}
    for name in names:
        mean, std = STATISTICS[name]
        x = mean + 1.5 * std * (2.0 * torch.rand(*size, len(LAT), len(LON)) - 1.0)
        fields[name] = (x.clamp_min(0.0) if name in Q else x).float().double()
    return fields


def store(out: dict[str, np.ndarray], key: str, fields: dict[str, torch.Tensor], dim: int, dtype: type) -> None:
    out[f"{key}/names"] = np.array(list(fields))
    out[f"{key}/x"] = torch.stack(list(fields.values()), dim).detach().numpy().astype(dtype)


def build(case: dict, masks: dict[str, torch.Tensor]) -> Stepper:
    """The peer's stepper of a case, with weights that float32 holds."""
    info = DatasetInfo(
        horizontal_coordinates=LatLonCoordinates(lat=torch.tensor(LAT), lon=torch.tensor(LON)),
        vertical_coordinate=HybridSigmaPressureCoordinate(torch.tensor(AK), torch.tensor(BK)),
        spatial_mask_provider=SpatialMaskProvider(masks) if case.get("masks") else None,
        timestep=datetime.timedelta(hours=6),
    )
    stepper = StepperConfig.from_state(json.loads(json.dumps(case["stepper"]))).get_stepper(info)
    for module in stepper.modules:
        parameters = list(module.parameters())
        for i, p in enumerate(parameters):
            last = i >= len(parameters) - 2
            p.data = (p.data * (case.get("gain", 2.0) if last else 1.0)).float().double()
    return stepper


def main() -> None:
    torch.manual_seed(SEED)
    out: dict[str, np.ndarray] = {"lat": np.array(LAT), "lon": np.array(LON), "ak": np.array(AK), "bk": np.array(BK)}
    prescribable = [SST, Q[3], T[0], T[1]]
    initial, forcing = draw(list(STATE), B, 1), draw([*FORCING, *prescribable], B, STEPS + 1)
    masks = {n: (torch.rand(len(LAT), len(LON)) > 0.3).double() for n in sorted(SOME)}
    store(out, "initial", {n: x[:, 0] for n, x in initial.items()}, 1, np.float32)
    store(out, "forcing", forcing, 2, np.float32)
    store(out, "masks", masks, 0, np.float32)
    out["cases"] = np.array(json.dumps(CASES))
    for i, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(SEED + i)
        run(out, name, case, build(case, masks), initial, forcing, masks)
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "rollout.npz"
    np.savez_compressed(path, **out)
    print(path, path.stat().st_size)


def run(
    out: dict[str, np.ndarray],
    name: str,
    case: dict,
    stepper: Stepper,
    initial: dict[str, torch.Tensor],
    forcing: dict[str, torch.Tensor],
    masks: dict[str, torch.Tensor],
) -> None:
    step = stepper._step_obj
    initial = {n: initial[n] for n in step.prognostic_names}
    names = sorted((step.input_names - step.output_names) | step.next_step_input_names)
    forcing = {n: forcing[n].clone() for n in names}
    data_mask = None
    for absent in case.get("absent", ()):
        forcing[absent][1] = torch.nan
        data_mask = (data_mask or {}) | {absent: torch.tensor([True, False])}
    for holed in case.get("holes", ()):
        forcing[holed] = torch.where(masks["mask_1"] > 0, forcing[holed], torch.nan)
    for i, module in enumerate(stepper.modules):
        for key, p in module.named_parameters():
            out[f"{name}/network{i}/{key.removeprefix('module.')}"] = p.detach().squeeze().numpy().astype(np.float32)
    arguments = (NullOptimization(), None, data_mask)
    stepper.set_eval()
    with torch.no_grad():
        outputs = list(stepper.predict_generator(initial, forcing, STEPS, *arguments))
    for s in (0, STEPS - 1):
        store(out, f"{name}/step{s}", outputs[s].output, 1, np.float64)
    delta = outputs[0].corrector_diagnostics.delta
    if delta:
        store(out, f"{name}/delta", delta, 1, np.float64)
    if case.get("derived"):
        window = {n: torch.stack([o.output[n] for o in outputs], 1) for n in outputs[0].output}
        before = {n: initial.get(n, torch.full_like(x[:, :1], torch.nan)) for n, x in window.items()}
        whole = {n: torch.cat([before[n], window[n]], 1) for n in window}
        derived = stepper.derive_func(dict(whole), dict(forcing))
        store(out, f"{name}/derived", {n: x[:, [1, -1]] for n, x in derived.items() if n not in whole}, 2, np.float64)
    if case.get("gradient"):
        stepper.set_train()
        loss = torch.zeros(())
        for result in stepper.predict_generator(initial, forcing, GRADIENT_STEPS, *arguments):
            for x in stepper.normalizer.normalize(result.output).values():
                loss = loss + x.square().sum()
        loss.backward()
        for i, module in enumerate(stepper.modules):
            for key, p in module.named_parameters():
                out[f"{name}/gradient{i}/{key.removeprefix('module.')}"] = p.grad.squeeze().numpy()


if __name__ == "__main__":
    main()
