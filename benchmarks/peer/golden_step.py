"""Parts of the peer's step and its physics on random fields -> tests/golden/step.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_step.py

In float64, so that what is compared is the formulas and not the rounding; inputs are exact in float32.
"""

import datetime
from pathlib import Path

import cftime
import numpy as np
import torch
import xarray as xr
from fme.ace.stepper.insolation.cm4 import CM4Insolation
from fme.core.coordinates import HybridSigmaPressureCoordinate, LatLonCoordinates
from fme.core.derived_variables import compute_derived_quantities
from fme.core.normalizer import StandardNormalizer
from fme.core.ocean import OceanConfig, SlabOceanConfig
from fme.core.packer import Packer
from fme.core.spatial_mask_provider import SpatialMaskProvider
from fme.core.spatial_masking import StaticSpatialMaskingConfig
from fme.core.step.global_mean_removal import PerChannelGlobalMeanRemovalConfig, SharedGlobalMeanRemovalConfig
from fme.core.step.single_module import _apply_input_mask, _build_channel_mask_dict

torch.set_default_dtype(torch.float64)
AK = (1.0001825, 5119.895020, 13881.331055, 19343.511719, 20087.085938, 15596.695312, 8880.453125, 3489.234375, 0.0)
BK = (0.0, 0.0, 0.005378, 0.059728, 0.203491, 0.438391, 0.680643, 0.859432, 1.0)
TIMESTEP = datetime.timedelta(hours=6)
RANGES = (
    {f"air_temperature_{k}": (220.0, 80.0) for k in range(8)}
    | {f"specific_total_water_{k}": (0.0, 0.02) for k in range(8)}
    | {
        "PRESsfc": (7e4, 3e4),
        "HGTsfc": (-50.0, 2000.0),
        "LHTFLsfc": (0.0, 200.0),
        "SHTFLsfc": (-20.0, 60.0),
        "PRATEsfc": (0.0, 1e-4),
        "DSWRFsfc": (0.0, 300.0),
        "USWRFsfc": (0.0, 60.0),
        "DLWRFsfc": (200.0, 200.0),
        "ULWRFsfc": (250.0, 250.0),
        "USWRFtoa": (0.0, 150.0),
        "ULWRFtoa": (180.0, 100.0),
        "DSWRFtoa": (0.0, 600.0),
        "total_frozen_precipitation_rate": (0.0, 2e-5),
        "tendency_of_total_water_path_due_to_advection": (-1e-4, 2e-4),
        "UGRD10m": (-10.0, 20.0),
        "VGRD10m": (-10.0, 20.0),
    }
)


def draw(ranges: dict[str, tuple[float, float]], *shape: int) -> dict[str, torch.Tensor]:
    return {n: (low + width * torch.rand(*shape)).float().double() for n, (low, width) in ranges.items()}


def packed(fields: dict[str, torch.Tensor], dim: int) -> np.ndarray:
    return torch.stack(list(fields.values()), dim).numpy()


def derived(out: dict[str, np.ndarray]) -> None:
    data = draw(RANGES, 2, 3, 4, 5)
    out["derived/names"], out["derived/x"] = np.array(list(data)), packed(data, 2).astype(np.float32)
    vertical = HybridSigmaPressureCoordinate(torch.tensor(AK), torch.tensor(BK))
    result = compute_derived_quantities(dict(data), vertical, TIMESTEP)
    for name in result:
        if name not in data:
            out[f"derived/y/{name}"] = result[name].numpy()


def network_input(out: dict[str, np.ndarray]) -> None:
    """Global-mean removal, normalization, masks and packing, with one field missing and some channels dropped."""
    names, outputs = ["q", "ts", "t", "sun"], ["ts", "t2", "t", "q"]
    means = {n: torch.tensor(v) for n, v in {"q": 1.0, "ts": 288.0, "t": 250.0, "sun": 300.0, "t2": 287.0}.items()}
    stds = {n: torch.tensor(v) for n, v in {"q": 0.5, "ts": 16.0, "t": 8.0, "sun": 128.0, "t2": 4.0}.items()}
    normalizer = StandardNormalizer(means, stds)
    data = draw({"q": (0.0, 2.0), "ts": (270.0, 40.0), "t": (230.0, 50.0), "sun": (0.0, 900.0)}, 3, 4, 6)
    data["q"][1] = torch.nan
    data_mask = {"q": torch.tensor([True, False, True])}
    answer = draw(dict.fromkeys(outputs, (200.0, 100.0)), 3, 4, 6)
    out["input/x"], out["input/answer"] = packed(data, 1).astype(np.float32), packed(answer, 1).astype(np.float32)
    configs = {
        "shared": SharedGlobalMeanRemovalConfig(
            reference_field="ts", field_names=["ts", "t", "t2"], append_as_input=True
        ),
        "per_channel": PerChannelGlobalMeanRemovalConfig(field_names=["t", "q"], append_as_input=True),
    }
    for kind, config in configs.items():
        removal = config.build(normalizer, names)
        channels = names + removal.extra_channel_names
        shifted, state = removal.forward_transform(data, data_mask)
        normal = normalizer.normalize(shifted) | removal.extras_normalized(state)
        present = torch.rand(3, len(channels)) > 0.3
        dropout = {n: present[:, i] for i, n in enumerate(channels)}
        x = Packer(channels).pack(_apply_input_mask(_apply_input_mask(normal, data_mask), dropout), axis=-3)
        indicators = Packer(channels).pack(_build_channel_mask_dict(channels, data_mask, x, dropout), axis=-3)
        out[f"{kind}/dropout"] = present.numpy()
        out[f"{kind}/packed"] = torch.cat([x, indicators], dim=-3).numpy()
        back = removal.inverse_transform(normalizer.denormalize(normalizer.normalize(answer)), state)
        out[f"{kind}/restored"] = packed(back, 1)


def ocean(out: dict[str, np.ndarray]) -> None:
    flux = {n: RANGES[n] for n in ("DSWRFsfc", "USWRFsfc", "DLWRFsfc", "ULWRFsfc", "LHTFLsfc", "SHTFLsfc")}
    generated = draw({**flux, "total_frozen_precipitation_rate": (0.0, 2e-5), "ts": (270.0, 30.0)}, 2, 4, 6)
    target = draw({"ts": (270.0, 30.0), "o": (0.0, 1.0), "depth": (20.0, 80.0), "q": (-50.0, 100.0)}, 2, 4, 6)
    now = draw({"ts": (270.0, 30.0)}, 2, 4, 6)
    for key, fields in (("generated", generated), ("target", target), ("now", now)):
        out[f"ocean/{key}"] = packed(fields, 1).astype(np.float32)
    for interpolate in (False, True):
        for slab in (None, SlabOceanConfig("depth", "q")):
            config = OceanConfig("ts", "o", interpolate, slab)
            result = config.build(["ts"], ["ts"], TIMESTEP)(now, generated, target)["ts"]
            out[f"ocean/{'slab' if slab else 'prescribed'}_{interpolate}"] = result.numpy()


def masks(out: dict[str, np.ndarray]) -> None:
    names = ["sst", "thetao_0", "thetao_1", "zos"]
    provider = {n: torch.rand(4, 6) for n in ("mask_sst", "mask_0", "mask_2d")}
    data = draw(dict.fromkeys(names, (0.0, 1.0)), 2, 4, 6)
    means = {n: torch.tensor(float(i)) for i, n in enumerate(names)}
    spatial = SpatialMaskProvider(provider)
    out["masks/masks"], out["masks/x"] = packed(provider, 0), packed(data, 1).astype(np.float32)
    config = StaticSpatialMaskingConfig(mask_value=0, fill_value="mean", exclude_names_and_prefixes=["zos"])
    out["masks/input"] = packed(config.build(spatial, means)(data), 1)
    out["masks/output"] = packed(spatial.build_output_spatial_masker()(data), 1)


def insolation(out: dict[str, np.ndarray]) -> None:
    lat, lon = torch.linspace(-90, 90, 13), torch.arange(0, 360, 30.0)
    grid = LatLonCoordinates(lat=lat, lon=lon)
    stamps = [(2001, 3, 21, 6), (2001, 6, 21, 12), (2003, 9, 10, 18), (2004, 12, 22, 0), (1999, 1, 4, 3)]
    calendars = {
        "noleap": cftime.DatetimeNoLeap,
        "proleptic_gregorian": cftime.DatetimeProlepticGregorian,
        "julian": cftime.DatetimeJulian,
        "360_day": cftime.Datetime360Day,
        "all_leap": cftime.DatetimeAllLeap,
    }
    orbits = {"earth": (23.439, 0.0167, 102.932), "eccentric": (40.0, 0.2, -75.0)}
    out["insolation/lat"], out["insolation/lon"], out["insolation/stamps"] = lat.numpy(), lon.numpy(), np.array(stamps)
    for orbit, parameters in orbits.items():
        peer = CM4Insolation(*parameters)
        out[f"insolation/{orbit}/table"] = peer._orbital_angle_lookup_table.numpy()[::36]
        for calendar, kind in calendars.items():
            for hours in (1, 6):
                time = xr.DataArray(np.array([[kind(*s) for s in stamps]]), dims=["sample", "time"])
                args = (time, datetime.timedelta(hours=hours), grid, torch.tensor(1360.0))
                out[f"insolation/{orbit}/{calendar}/{hours}"] = peer(*args).numpy()[0]


def main() -> None:
    torch.manual_seed(0)
    out: dict[str, np.ndarray] = {}
    for part in (derived, network_input, ocean, masks, insolation):
        part(out)
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "step.npz"
    np.savez_compressed(path, **out)
    print(path, path.stat().st_size)


main()
