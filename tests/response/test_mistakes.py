"""What a person can get wrong about an experiment, at the command line: one message, exit code 2, nothing begun."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr
from typer.testing import CliRunner

from ace_core.cli import app

OPTIONS = ("n_forward_steps=60", "forward_steps_in_memory=25", "spinup_steps=20")


def respond(data: Path, checkpoint: Path, root: Path, *overrides: str) -> tuple[int, str]:
    words = [w for o in (*OPTIONS, *overrides) for w in ("--override", o)]
    variables = ["--var", f"data={data}", "--var", f"checkpoint={checkpoint}"]
    found = CliRunner().invoke(app, ["respond", "configs/planet/respond.yaml", "--root", str(root), *variables, *words])
    return found.exit_code, found.output


CONSTANT = "[{type: constant, config: {amplitude: 4.0}}]"


@pytest.mark.parametrize(
    ("override", "phrases"),
    [
        ("perturbations=[{label: p4k, perturbation: {co2: " + CONSTANT + "}}]", ["co2", "unknown key"]),
        (
            "perturbations=[" + ", ".join(["{label: p4k, perturbation: {sst: " + CONSTANT + "}}"] * 2) + "]",
            ["the label 'p4k' appears twice"],
        ),
        ("perturbations=[{label: 'p4k/warm', perturbation: {}}]", ["perturbations[0].label"]),
        ("reference={p2k: somewhere.nc}", ["the label 'p2k', which no perturbation has"]),
        ("loader.dataset.data_path=no_latitude.zarr", ["lat"]),
        (
            "reference={p4k: {baseline: {data_path: early.zarr}, perturbed: {data_path: early.zarr}}}",
            ["no common period with the reference", "the experiment 0001-01-23", "early.zarr has 0011-01-02"],
        ),
        ("aggregator.response_map_variables=[T2m]", ["response_map_variables", "'T2m'"]),
    ],
)
def test_one_message_and_exit_code_2(
    tmp_path: Path, planet_data: Path, persistence: Path, override: str, phrases: list[str]
) -> None:
    with xr.open_zarr(planet_data / "native" / "test.zarr", consolidated=False) as store:
        packed = store.isel(time=slice(0, 62)).load()
    fields = packed["fields"].drop_attrs()
    ds = xr.Dataset({str(c): fields.sel(channel=c, drop=True) for c in fields["channel"].to_numpy()})
    for name in ("land_fraction", "HGTsfc", *(f"{c}_{k}" for c in ("ak", "bk") for k in range(9))):
        ds[name] = packed[name]
    ds = ds.drop_encoding()
    if "no_latitude" in override:
        ds = ds.rename({"lat": "y"}).drop_vars("y")
        ds.to_zarr(tmp_path / "no_latitude.zarr")
    if "early" in override:
        times = ds["time"].to_numpy()
        ds = ds.assign_coords(time=[t.replace(year=t.year + 10) for t in times])
        ds.to_zarr(tmp_path / "early.zarr")
    for name in ("no_latitude.zarr", "early.zarr"):
        override = override.replace(name, str(tmp_path / name))
    code, said = respond(planet_data, persistence, tmp_path / "runs", override)
    assert code == 2, said
    assert "Traceback" not in said
    for phrase in phrases:
        assert phrase in said, said
    assert not list((tmp_path / "runs").rglob("*.nc"))
