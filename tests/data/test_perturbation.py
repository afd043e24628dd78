"""SST perturbations: exactly the specification on the mask, nothing elsewhere; the pair artefact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.calendar import TimeAxis
from ace_core.data.config import DataLoaderConfig
from ace_core.data.loader import make_loader
from ace_core.data.pair import Arm, Mask, Pair, check_pair, read_pair, write_pair
from ace_core.data.perturbation import Sea, perturb_initial, perturb_sst
from ace_core.data.perturbation_config import ForcingPerturbationsConfig, PerturbationsConfig, applied, pinned
from ace_core.errors import DataError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.ocean import prescribe_sst
from ace_core.step.step import Ocean

PATCH = {
    "type": "greens_function",
    "config": {"amplitude": 2, "lat_center": 10, "lon_center": 350, "lat_width": 80, "lon_width": 120},
}
FOUR = {"type": "constant", "config": {"amplitude": 4}}
UNIFORM = {"type": "random_uniform", "config": {"sd": 2.0, "tau_days": 5.0, "seed": 1}}
RAMP = {"type": "ramp", "config": {"rate": 365.0, "start_time": "2001-01-03"}}


def fields_of(sample) -> Fields:
    return Fields(sample.names, torch.from_numpy(sample.fields.copy()))


def test_adds_exactly_on_the_mask(sample):
    before = fields_of(sample)
    kept = before.tensor.clone()
    after = perturb_sst(before, PerturbationsConfig(sst=[FOUR]).build(), sample.grid, sample.times)
    ocean = sample.fields[:, 1] > 0.5
    assert 0 < ocean[0].sum() < 48
    assert not ocean[:, 0, 0].any()  # exactly 0.5 is not ocean
    expected = np.where(ocean, sample.fields[:, 0] + np.float32(4), sample.fields[:, 0])
    np.testing.assert_array_equal(after["surface_temperature"].numpy(), expected)
    np.testing.assert_array_equal(after.tensor[:, 1:].numpy(), sample.fields[:, 1:])
    assert torch.equal(before.tensor, kept)  # pure


def test_entries_add_and_the_patch_wraps(sample):
    build = PerturbationsConfig(sst=[FOUR, PATCH]).build()
    after = perturb_sst(fields_of(sample), build, sample.grid, sample.times)
    # Written out independently: Bloch-Johnson et al. (2024) eq. 1; lon 22.5 is 32.5 degrees east of 350.
    lat, lon = np.meshgrid(sample.grid.lat, sample.grid.lon, indexing="ij")
    away = np.abs(lon - 350)
    away = np.minimum(away, 360 - away)
    inside = (np.abs(lat - 10) < 40) & (away < 60)
    patch = 2 * np.cos(np.pi * (lat - 10) / 80) ** 2 * np.cos(np.pi * away / 120) ** 2 * inside
    assert (patch[:, 0] > 0).any()
    ocean = sample.fields[:, 1] > 0.5
    difference = (after["surface_temperature"].numpy() - sample.fields[:, 0]).astype(np.float64)
    np.testing.assert_allclose(difference, np.where(ocean, 4 + patch, 0), atol=4e-5)  # one rounding at 300 K


def test_missing_ocean_fraction(sample):
    fields = Fields(("surface_temperature",), torch.from_numpy(sample.fields[:, :1]))
    with pytest.raises(DataError, match=r"ocean_fraction is not among the variables of the forcing"):
        perturb_sst(fields, PerturbationsConfig(sst=[FOUR]).build(), sample.grid, sample.times)


def pair(**changes) -> Pair:
    arms = (Arm(label="p0k"), Arm(label="p4k", perturbations=[FOUR]))
    return Pair(**({"base": "planet-1/test", "arms": arms} | changes))


def test_pair_id_is_of_the_content(tmp_path):
    same = Pair.model_validate(
        {"arms": [{"label": "p0k"}, {"label": "p4k", "perturbations": [FOUR]}], "base": "planet-1/test"}
    )
    assert pair().pair_id == same.pair_id
    others = [
        pair(base="planet-2/test"),
        pair(spinup_steps=1),
        pair(noise="independent"),
        pair(ic_scope="none"),
        pair(mask=Mask(cutoff=0.4)),
        pair(arms=(Arm(label="p0k"), Arm(label="p4k", perturbations=[PATCH]))),
        pair(arms=(Arm(label="p4k", perturbations=[FOUR]), Arm(label="p0k"))),
    ]
    assert len({p.pair_id for p in [pair(), *others]}) == 8
    write_pair(tmp_path / "p.json", pair())
    assert read_pair(tmp_path / "p.json") == pair()
    document = json.loads((tmp_path / "p.json").read_text())
    assert set(document) == {"pair_id", "base", "arms", "mask", "sea_ice", "ic_scope", "spinup_steps", "noise"}
    assert document["mask"] == {"name": "ocean_fraction", "op": ">", "cutoff": 0.5}


def test_edited_pair_is_refused(tmp_path):
    write_pair(tmp_path / "p.json", pair())
    text = (tmp_path / "p.json").read_text()
    (tmp_path / "p.json").write_text(text.replace('"amplitude": 4.0', '"amplitude": 5.0'))
    with pytest.raises(DataError, match="content hashes to"):
        read_pair(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(DataError, match="not a forcing pair"):
        read_pair(tmp_path / "p.json")
    with pytest.raises(DataError, match="no arm 'p2k'"):
        pair().arm("p2k")


def test_check_pair_sees_one_bit(sample):
    base = fields_of(sample)
    good = perturb_sst(base, pair().arm("p4k").build(), sample.grid, sample.times)
    check_pair(base, good, pair(), "p4k", sample.grid, sample.times, "here")
    for channel in (0, 2):
        bad = Fields(good.names, good.tensor.clone())
        bad.tensor.view(torch.int32)[3, channel, 2, 2] ^= 1
        with pytest.raises(DataError, match="arm p4k differs from its specification"):
            check_pair(base, bad, pair(), "p4k", sample.grid, sample.times, "here")


def test_check_pair_knows_the_time(sample):
    """What was made for other times is not what the pair says."""
    varying = pair(arms=(Arm(label="random", perturbations=[UNIFORM, RAMP]),))
    base, later = fields_of(sample), TimeAxis(sample.times.values + 3600, "noleap")
    good = perturb_sst(base, varying.arm("random").build(), sample.grid, sample.times)
    check_pair(base, good, varying, "random", sample.grid, sample.times, "here")
    with pytest.raises(DataError, match="arm random differs from its specification"):
        check_pair(base, good, varying, "random", sample.grid, later, "here")


# --- in time


def test_ramp_and_noise_are_added_at_their_times(sample):
    """The ramp written out; the noise is one number per time, the same for all rollouts that meet there."""
    after = perturb_sst(fields_of(sample), PerturbationsConfig(sst=[RAMP]).build(), sample.grid, sample.times)
    ocean = sample.fields[:, 1] > 0.5
    hours = np.maximum(sample.hours - 48, 0)
    ramp = (365.0 * hours / (365 * 24)).astype(np.float32)[:, None, None]
    np.testing.assert_array_equal(
        after["surface_temperature"].numpy(), np.where(ocean, sample.fields[:, 0] + ramp, sample.fields[:, 0])
    )
    noise = PerturbationsConfig(sst=[UNIFORM]).build()
    one = perturb_sst(fields_of(sample), noise, sample.grid, sample.times)
    rows = np.stack([np.arange(0, 6), np.arange(4, 10)])
    batch = Fields(sample.names, torch.from_numpy(sample.fields[rows]))
    both = perturb_sst(batch, noise, sample.grid, TimeAxis(sample.times.values[rows], "noleap"))
    np.testing.assert_array_equal(both.tensor.numpy(), one.tensor.numpy()[rows])
    added = (one["surface_temperature"].numpy() - sample.fields[:, 0])[ocean].reshape(23, -1)
    assert np.ptp(added, axis=1).max() < 1e-4  # K, rounding at 300 K
    assert np.ptp(added[:, 0]) > 0.1


# --- patterns


@pytest.fixture
def pattern(sample, tmp_path):
    """Writer of a pattern on the sample's grid; returns the selector."""

    def make(values=None, *, lat=None, dims=("lat", "lon"), amplitude=0.5, name="pattern.nc"):
        values = np.arange(48.0).reshape(6, 8) if values is None else values
        lat = sample.grid.lat if lat is None else lat
        ds = xr.Dataset({"warming": (dims, values)}, {"lat": lat, "lon": sample.grid.lon})
        ds.to_netcdf(tmp_path / name)
        return {"type": "field", "config": {"path": str(tmp_path / name), "name": "warming", "amplitude": amplitude}}

    return make


def perturbed(sample, selector):
    return perturb_sst(fields_of(sample), PerturbationsConfig(sst=[selector]).build(), sample.grid, sample.times)


def test_pattern_times_amplitude(sample, pattern):
    ocean = sample.fields[:, 1] > 0.5
    values = np.where(ocean[0], np.arange(48.0).reshape(6, 8), np.nan)  # land is nobody's business
    after = perturbed(sample, pattern(values))["surface_temperature"].numpy()
    delta = (0.5 * np.nan_to_num(values)).astype(np.float32)
    np.testing.assert_array_equal(after, np.where(ocean, sample.fields[:, 0] + delta, sample.fields[:, 0]))


def test_pattern_that_does_not_fit(sample, pattern, tmp_path):
    hole = np.zeros((6, 8))
    y, x = np.argwhere(sample.fields[0, 1] > 0.5)[2]
    hole[y, x] = np.nan
    where = f"NaN at lat {sample.grid.lat[y]:g}, lon {sample.grid.lon[x]:g}, which is perturbed"
    with pytest.raises(DataError, match=f"pattern.nc:warming: {where}"):
        perturbed(sample, pattern(hole))
    with pytest.raises(DataError, match=r"(?s)pattern.nc:warming: grid is 6x8.*the grid of the data it perturbs"):
        perturbed(sample, pattern(lat=np.linspace(-50, 50, 6)))
    with pytest.raises(DataError, match=r"warming: numbers of type float64 with the dimensions .time, lat, lon."):
        perturbed(sample, pattern(np.zeros((2, 6, 8)), dims=("time", "lat", "lon")))
    with pytest.raises(DataError, match="latitude is descending"):
        perturbed(sample, pattern(lat=sample.grid.lat[::-1]))
    good = pattern()
    with pytest.raises(DataError, match=r"no variable warmin .did you mean 'warming'"):
        perturbed(sample, {"type": "field", "config": good["config"] | {"name": "warmin"}})
    with pytest.raises(DataError, match=r"none.nc: cannot be read"):
        perturbed(sample, {"type": "field", "config": good["config"] | {"path": str(tmp_path / "none.nc")}})


def test_a_pair_is_of_what_the_file_holds(sample, pattern, tmp_path):
    def made(selector):
        (selector,) = pinned(PerturbationsConfig(sst=[selector]).sst)
        return pair(arms=(Arm(label="pattern", perturbations=[selector]),))

    one, other = made(pattern()), made(pattern(np.ones((6, 8)), name="other.nc"))
    moved = made(pattern(name="moved.nc"))
    assert one.pair_id == moved.pair_id != other.pair_id
    with pytest.raises(ValueError, match="sha256 of the file is part of what a pair is"):
        pair(arms=(Arm(label="pattern", perturbations=[pattern()]),))
    write_pair(tmp_path / "p.json", one)
    assert read_pair(tmp_path / "p.json") == one
    pattern(np.ones((6, 8)))  # another file under the name that the pair knows
    with pytest.raises(DataError, match=r"pattern.nc: its content hashes to .*, the perturbation is of"):
        one.arm("pattern").build()


def test_what_a_state_was_perturbed_with_is_known_by_content(pattern):
    """Not by where a pattern lies; entries of no size are none."""

    def said(*selectors, scope="ocean"):
        return applied(PerturbationsConfig(sst=selectors).sst, scope)

    nothing = [
        {"type": one["type"], "config": one["config"] | {size: 0}}
        for one, size in ((FOUR, "amplitude"), (PATCH, "amplitude"), (RAMP, "rate"), (UNIFORM, "sd"))
    ]
    one, moved = pattern(), pattern(name="moved.nc")
    assert said(one, FOUR) == said(moved, *nothing, FOUR)
    assert said(*nothing) == said() == ""
    other = pattern(np.ones((6, 8)), name="other.nc")
    known = {said(s) for s in (FOUR, PATCH, RAMP, UNIFORM, one, other)} | {said(FOUR, scope="full"), said(FOUR, FOUR)}
    assert len(known) == 8


# --- where


@pytest.mark.parametrize("interpolate", [False, True])
def test_prescribed_temperature_changes_by_the_fraction_that_the_ocean_prescribes(interpolate):
    """Every fraction in steps of 1/64, numbers exact in float32: o * 4 K if the ocean interpolates, otherwise 4 K or nothing."""
    fraction = torch.arange(65.0).div(64).expand(2, 65)
    temperature, generated = torch.full((2, 65), 290.0), torch.tensor([[280.0], [300.0]]).expand(2, 65)
    grid = LatLonGrid(np.array([-10.0, 10.0]), np.arange(65.0))
    sea = Sea.of(Ocean("T", "o", interpolate))
    fields, time = Fields(("T", "o"), torch.stack([temperature, fraction])), TimeAxis(np.array(0), "noleap")
    warm = perturb_sst(fields, PerturbationsConfig(sst=[FOUR]).build(), grid, time, sea)["T"]
    change = prescribe_sst(generated, warm, fraction, interpolate) - prescribe_sst(
        generated, temperature, fraction, interpolate
    )
    expected = 4.0 * fraction if interpolate else 4.0 * (fraction > 0.5)
    assert torch.equal(change, expected)
    # An initial condition is as if it had been prescribed.
    build = PerturbationsConfig(sst=[FOUR]).build()
    initial = Fields(("T",), temperature.unsqueeze(0))
    start = perturb_initial(initial, build, grid, time, sea, "ocean", fraction)
    assert torch.equal(start["T"] - temperature, expected)
    everywhere = perturb_initial(initial, build, grid, time, sea, "full", None)
    assert torch.equal(everywhere["T"], temperature + 4.0)
    assert torch.equal(perturb_initial(initial, build, grid, time, sea, "none", None).tensor, initial.tensor)
    assert torch.equal(initial["T"], temperature)


# --- of training samples

TRAINED = ("surface_temperature", "ocean_fraction", "PRESsfc")


def loader(path, perturbations, *, batch_size=4, seed=3, **more):
    config = {"dataset": {"data_path": str(path)}, "batch_size": batch_size, "perturbations": perturbations}
    workers = more.pop("workers", 0)
    return make_loader(
        DataLoaderConfig.model_validate(config | {"num_data_workers": workers}),
        TRAINED,
        3,
        train=True,
        seed=seed,
        **more,
    )


def added_by_sample(loader, epoch):
    """Sample -> what was added to its sea at each time [T, Y, X]."""
    found = {}
    order = loader.order(epoch)
    for batch in loader.batches(epoch):
        first = batch.place.sample + batch.place.first_row
        for row, sample in enumerate(order[first : first + batch.n_samples]):
            found[int(sample)] = batch.fields.tensor[row].numpy().copy()
    return found


def test_what_a_sample_gets_is_its_own(sample, write, tmp_path):
    """Half the samples, each with an offset of its own, whatever the ranks, workers and batches; new in the next epoch."""
    path = write["packed"](sample, tmp_path / "a.zarr")
    half = {"sst": [UNIFORM], "probability": 0.5}
    one = added_by_sample(loader(path, half, batch_size=20), 2)
    parts = {}
    for rank in range(2):
        parts |= added_by_sample(loader(path, half, rank=rank, world=2, workers=2), 2)
    assert one.keys() == parts.keys()
    for key, fields in one.items():
        np.testing.assert_array_equal(fields, parts[key])
    ocean = sample.fields[:, 1] > 0.5
    offsets = []
    for start, fields in one.items():
        window = sample.fields[start : start + 3]
        np.testing.assert_array_equal(fields[:, 1:], window[:, 1:3])
        difference = (fields[:, 0] - window[:, 0]).astype(np.float64)
        assert (difference[~ocean[:3]] == 0).all()
        offsets.append(difference[:, ocean[0]].mean(axis=1))
    drawn = np.array([o for o in offsets if (o != 0).any()])
    assert 5 <= len(drawn) <= 15  # of 20
    assert len({round(float(o), 3) for o in drawn[:, 0]}) == len(drawn)
    # Neighbouring times of one sample belong to one realisation of a memory of 5 days.
    assert np.abs(np.diff(drawn, axis=1)).mean() < 0.5 * np.abs(drawn).mean()
    other = added_by_sample(loader(path, half, batch_size=20), 3)
    assert any((one[k] != other[k]).any() for k in one.keys() & other.keys())


def test_unperturbed_without_the_key_and_always_with_probability_one(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    plain, warm = added_by_sample(loader(path, None), 0), added_by_sample(loader(path, {"sst": [FOUR]}), 0)
    ocean = sample.fields[:3, 1] > 0.5
    for start, fields in plain.items():
        np.testing.assert_array_equal(fields, sample.fields[start : start + 3, :3])
        expected = np.where(ocean, fields[:, 0] + np.float32(4), fields[:, 0])
        np.testing.assert_array_equal(warm[start][:, 0], expected)
    blended = Sea.of(Ocean("surface_temperature", "ocean_fraction", interpolate=True))
    everywhere = added_by_sample(loader(path, {"sst": [FOUR]}, sea=blended), 0)
    for start, fields in plain.items():
        expected = np.where(sample.fields[:3, 1] > 0, fields[:, 0] + np.float32(4), fields[:, 0])
        np.testing.assert_array_equal(everywhere[start][:, 0], expected)


def test_samples_without_a_sea_are_refused(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    with pytest.raises(DataError, match="zos is not among the variables"):
        loader(path, {"sst": [FOUR]}, sea=Sea("zos"))
    with pytest.raises(DataError, match="l_max of random_sh: 7 on a grid of 6 latitudes"):
        loader(path, {"sst": [{"type": "random_sh", "config": {"amplitude": 1, "l_max": 7, "tau_days": 9}}]})


def test_mistakes_in_the_configuration():
    with pytest.raises(ValueError, match="pair and arm belong together"):
        ForcingPerturbationsConfig(pair="p.json")
    with pytest.raises(ValueError, match="are those of the pair"):
        ForcingPerturbationsConfig(pair="p.json", arm="p4k", sst=[FOUR])
    with pytest.raises(ValueError, match="start_time"):
        PerturbationsConfig(sst=[{"type": "ramp", "config": {"rate": 1.0, "start_time": "soon"}}])
    for config in ({"sd": 1.0, "tau_days": 0.0}, {"sd": -1.0, "tau_days": 1.0}, {"tau_days": 1.0}):
        with pytest.raises(ValueError, match="random_uniform"):
            PerturbationsConfig(sst=[{"type": "random_uniform", "config": config}])
