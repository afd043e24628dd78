"""SST perturbations: exactly the specification on the mask, nothing elsewhere; the pair artefact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ace_core.data.pair import Arm, Mask, Pair, check_pair, read_pair, write_pair
from ace_core.data.perturbation import perturb_sst
from ace_core.data.perturbation_config import PerturbationsConfig
from ace_core.errors import DataError
from ace_core.fields import Fields

PATCH = {
    "type": "greens_function",
    "config": {"amplitude": 2, "lat_center": 10, "lon_center": 350, "lat_width": 80, "lon_width": 120},
}
FOUR = {"type": "constant", "config": {"amplitude": 4}}


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
