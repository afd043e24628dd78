"""Studies: patches that add up, legs that are the arms of a paired run, caches that are named by content, and the comparison."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ace_core import stages
from ace_core.config import load as load_config
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.physics.sst import Static, total_anomaly
from ace_core.response import legs
from ace_core.response.respond import OUTPUT, RespondConfig, open_experiment, run_arm
from ace_core.response.study import STUDY
from ace_core.response.study_config import PatchesConfig, StudyConfig
from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig
from ace_core.why import lines
from tests.conftest import persistence_emulator
from tests.response import synthetic

STEPS = {"n_forward_steps": 12, "forward_steps_in_memory": 5, "spinup_steps": 2}
P4K = {"label": "p4k", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 4.0}}]}}
P2K = {"label": "p2k", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 2.0}}]}}
PATCH = {"label": "patch", "perturbation": {"sst": [{"type": "greens_function", "config": {"lat_width": 60.0}}]}}


@pytest.fixture(scope="module")
def emulators(tmp_path_factory: pytest.TempPathFactory, planet_data: Path) -> dict[str, Path]:
    """Two that differ from persistence by weights of different seeds, so that everything depends a little on everything."""
    folder = tmp_path_factory.mktemp("emulators")
    return {name: trained(folder / f"{name}.tar", planet_data, seed) for seed, name in enumerate(("first", "second"))}


def trained(path: Path, data: Path, seed: int) -> Path:
    emulator = persistence_emulator(training(data, "stepper.step.config.builder.config.embed_dim=8"))
    generator = torch.Generator().manual_seed(seed)
    weight = emulator.step.networks[0].decoder[-1].weight  # type: ignore[index,union-attr]
    with torch.no_grad():
        weight.copy_(1e-2 * torch.randn(weight.shape, generator=generator))  # type: ignore[union-attr, arg-type, operator]
    checkpoint.save(path, {"emulator": emulator.state()})
    return path


def training(data: Path, *overrides: str) -> TrainConfig:
    residual = "stepper.step.config.residual_prediction=true"
    return load_config(TrainConfig, "configs/planet/train.yaml", [residual, *overrides], {"data": str(data)})


def loader(data: Path, start: int = 0) -> dict[str, object]:
    return {"dataset": {"data_path": str(data / "native" / "test.zarr")}, "start_indices": {"list": [start]}}


def study_file(path: Path, data: Path, checkpoints: dict[str, Path], *arms: dict[str, object], **more: object) -> Path:
    content = {
        "checkpoints": {k: str(v) for k, v in checkpoints.items()},
        "respond": STEPS,
        "periods": {"january": {"loader": loader(data)}},
        "perturbations": list(arms),
    }
    path.write_text(yaml.safe_dump(content | more))
    return path


# --- patches


@given(
    st.sampled_from([20.0, 30.0, 40.0, 90.0]),
    st.sampled_from([60.0, 90.0, 120.0, 240.0]),
    st.integers(0, 3),
    st.floats(0.5, 4.0),
    st.floats(0, 359),
)
def test_patches_add_up_to_a_uniform_warming(
    lat_width: float, lon_width: float, rows: int, k: float, lon: float
) -> None:
    """cos^2 x + sin^2 x = 1: exactly the amplitude between the first and the last row of centres."""
    south = -rows * lat_width / 4
    patches = PatchesConfig(
        amplitude=k, lat_width=lat_width, lon_width=lon_width, lat_range=(south, -south), lon_start=lon
    ).perturbations()
    assert len(patches) == (rows + 1) * round(720 / lon_width)
    assert len({p.label for p in patches}) == len(patches)
    lat, lons = np.linspace(south, -south, 7), np.linspace(0, 359, 23)
    built = [p for patch in patches for p in patch.perturbation.build()]
    total = total_anomaly([p for p in built if isinstance(p, Static)], lat, lons)
    np.testing.assert_allclose(total, k, rtol=1e-12)


def test_patches_are_named_by_their_centres() -> None:
    names = [
        p.label
        for p in PatchesConfig(
            label="g", lat_width=45, lon_width=360, lat_range=(-22.5, 0), lon_start=350
        ).perturbations()
    ]
    assert names == ["g_22p5s_350e", "g_22p5s_170e", "g_0n_350e", "g_0n_170e"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"lon_width": 100.0}, "lon_width 100: 360 must be a multiple of half of it"),
        ({"lat_range": (-30.0, 25.0)}, r"lat_range -30 .. 25 must be a multiple of half of lat_width 40"),
        ({"lat_range": (30.0, -30.0)}, r"lat_range 30 .. -30 must be a multiple"),
    ],
)
def test_patches_that_would_not_add_up_are_refused(key: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PatchesConfig.model_validate({"lat_width": 40.0, "lon_width": 60.0, "lat_range": (-20.0, 20.0)} | key)


# --- legs


def test_climates_are_kept_to_the_bit(tmp_path: Path) -> None:
    made = synthetic.climates(seasons=(1, 3))
    legs.save(tmp_path / "c.npz", made)
    back = legs.load(tmp_path / "c.npz")
    assert (back.labels, back.names, back.regions) == (made.labels, made.names, made.regions)
    assert (back.timestep, back.n_steps, back.vertical) == (made.timestep, made.n_steps, None)
    np.testing.assert_array_equal(back.maps.mean, made.maps.mean)
    np.testing.assert_array_equal(back.maps.weights, made.maps.weights)
    np.testing.assert_array_equal(back.features.values, made.features.values)
    np.testing.assert_array_equal(back.surface.land, made.surface.land)
    np.testing.assert_array_equal(back.grid.lat, made.grid.lat)
    (tmp_path / "c.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read"):
        legs.load(tmp_path / "c.npz")


def test_arms_run_one_by_one_are_the_arms_of_a_paired_run(planet_data: Path, emulators: dict[str, Path]) -> None:
    """Every map to the bit, whoever shared the batch; means of regions to the rounding of one product of matrices."""
    plain = STEPS | {"checkpoint_path": str(emulators["first"]), "loader": loader(planet_data), "seed": 3}
    config = RespondConfig.model_validate(plain | {"perturbations": [P4K, PATCH], "n_ensemble_per_ic": 2})
    _, together = open_experiment(config, config.perturbations, Ranks())
    paired = together.run(Ranks(), config.seed)
    alone = legs.joined({label: run_arm(arm, Ranks()) for label, arm in config.arms().items()})
    assert alone.labels == paired.labels == ("baseline", "p4k", "patch")
    np.testing.assert_array_equal(alone.maps.mean, paired.maps.mean)
    np.testing.assert_allclose(alone.features.values, paired.features.values, rtol=1e-12)
    np.testing.assert_array_equal(alone.features.steps, paired.features.steps)
    np.testing.assert_allclose(alone.amplitude, paired.amplitude, atol=2e-5)
    assert alone.amplitude[1] == pytest.approx(4.0, abs=1e-4)
    spread = paired.maps.total()
    there = [paired.map_names.index(f"air_temperature_{k}") for k in range(8)]
    assert (spread[1] != spread[0])[there].mean() > 0.9  # there is a response everywhere
    members = alone.features.values[0]
    np.testing.assert_allclose(members[1], members[0], rtol=1e-12)  # no noise: the members are one


# --- the study


def arms_of(root: Path) -> dict[str, int]:
    """Complete legs and the time of their last file."""
    return {p.parent.name: p.stat().st_mtime_ns for p in root.glob("arm-*/complete.json")}


@dataclass(frozen=True)
class Ran:
    file: Path
    root: Path
    result: stages.StageResult


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, planet_data: Path, emulators: dict[str, Path]) -> Ran:
    folder = tmp_path_factory.mktemp("study")
    file = study_file(folder / "study.yaml", planet_data, emulators, P2K, P4K)
    return Ran(file, folder / "runs", stages.run_study(file, folder / "runs"))


def test_a_study_costs_one_leg_per_perturbation_and_finds_them_again(
    ran: Ran, tmp_path: Path, planet_data: Path, emulators: dict[str, Path]
) -> None:
    file, root, result = ran.file, ran.root, ran.result
    before = arms_of(root)
    assert len(before) == 2 * (1 + 2)  # of two checkpoints, with one baseline each
    assert result.summary["legs"] == 6.0
    assert stages.run_study(file, root).skipped
    # One patch more: one leg more per checkpoint; another name for an arm: none.
    more = study_file(tmp_path / "more.yaml", planet_data, emulators, P2K, {**P4K, "label": "warm"}, PATCH)
    again = stages.run_study(more, root)
    assert not again.skipped
    after = arms_of(root)
    assert len(after) == len(before) + 2
    assert {k: after[k] for k in before} == before
    # A leg that was interrupted, and everything that came after it, is all that is done again.
    lost = next(iter(set(after) - set(before)))
    (root / lost / "complete.json").unlink()
    (again.directory / STUDY).unlink()
    third = stages.run_study(more, root)
    assert not third.skipped
    last = arms_of(root)
    assert {k for k in last if last[k] != after.get(k)} == {lost}
    with xr.open_dataset(third.directory / STUDY) as study:
        assert list(study["perturbation"].values) == ["p2k", "warm", "patch"]
        assert study["response__air_temperature_3"].notnull().all()


def test_experiments_are_what_respond_would_have_written(ran: Ran, tmp_path: Path) -> None:
    """One stage, one folder: `ace respond` finds the study's experiment complete, and its own rollout gives the same fields."""
    experiment = next(load_config(StudyConfig, ran.file).experiments())
    mine = tmp_path / "respond.yaml"
    mine.write_text(yaml.safe_dump(experiment.config.model_dump(mode="json", by_alias=True)))
    found = stages.run_respond(mine, ran.root)
    assert found.skipped
    fresh = stages.run_respond(mine, tmp_path / "elsewhere")
    assert not fresh.skipped
    assert fresh.key == found.key
    with xr.open_dataset(found.directory / OUTPUT) as a, xr.open_dataset(fresh.directory / OUTPUT) as b:
        for name in ("p4k__air_temperature_7", "baseline__PRESsfc", "p2k__mean__surface_temperature"):
            np.testing.assert_array_equal(a[name], b[name])
        for k in ("estimate", "truth", "low", "n_eff"):
            np.testing.assert_allclose(a[f"p4k__{k}"], b[f"p4k__{k}"], rtol=1e-6, atol=1e-9)


def test_the_comparison_holds_what_the_experiments_found(ran: Ran, tmp_path: Path, emulators: dict[str, Path]) -> None:
    file, result = ran.file, ran.result
    folders = {e.checkpoint: e for e in load_config(StudyConfig, file).experiments()}
    with xr.open_dataset(result.directory / STUDY) as study:
        assert dict(study.sizes)["checkpoint"] == 2
        assert study["seconds"].notnull().all()
        for name, experiment in folders.items():
            mine = tmp_path / "one.yaml"
            mine.write_text(yaml.safe_dump(experiment.config.model_dump(mode="json", by_alias=True)))
            done = stages.finished(mine, ran.root)
            assert done is not None
            with xr.open_dataset(done.directory / OUTPUT) as one:
                at = study.sel(checkpoint=name, period="january")
                for label in ("p2k", "p4k"):
                    np.testing.assert_array_equal(
                        at["response__air_temperature_3"].sel(perturbation=label), one[f"{label}__air_temperature_3"]
                    )
                    there = at.sel(perturbation=label, scalar=one["scalar"].values)
                    np.testing.assert_array_equal(there["estimate"], one[f"{label}__estimate"])
                    assert (there["status"].values == one[f"{label}__status"].values).all()
                np.testing.assert_array_equal(at["baseline__PRESsfc"], one["baseline__PRESsfc"])
        first, second = (study["estimate"].sel(checkpoint=c, perturbation="p4k") for c in ("first", "second"))
        assert float(np.abs(first - second).max()) > 0
    page = (result.directory / "report.html").read_text()
    assert "they differ in what they were trained on" in page
    assert "column_warming/air_temperature_3" in page
    assert page.count("<figure>") == 2
    told = "\n".join(lines(result.directory / STUDY))
    for name, path in emulators.items():
        assert f"checkpoints.{name}: {path}" in told
    assert "made by        ace study, run " in told


def test_checkpoints_of_different_networks_are_told_apart(
    tmp_path: Path, planet_data: Path, emulators: dict[str, Path]
) -> None:
    config = training(planet_data, "stepper.step.config.builder.config.embed_dim=4")
    checkpoint.save(tmp_path / "small.tar", {"emulator": persistence_emulator(config).state()})
    both = {"large": emulators["first"], "small": tmp_path / "small.tar"}
    short = {"respond": {"n_forward_steps": 3, "spinup_steps": 1}}
    result = stages.run_study(study_file(tmp_path / "s.yaml", planet_data, both, P4K, **short), tmp_path / "runs")
    page = (result.directory / "report.html").read_text()
    assert (
        '<td class="text">step.config.builder.config.embed_dim</td><td class="text">8</td><td class="text">4</td>'
        in page
    )


def test_trainings_of_one_kind_have_an_interval_together(
    tmp_path: Path, planet_data: Path, emulators: dict[str, Path]
) -> None:
    three = emulators | {"third": trained(tmp_path / "third.tar", planet_data, 2)}
    short = {"respond": {"n_forward_steps": 3, "spinup_steps": 1}, "ensembles": {"seeds": list(three)}}
    result = stages.run_study(study_file(tmp_path / "s.yaml", planet_data, three, P4K, **short), tmp_path / "runs")
    with xr.open_dataset(result.directory / STUDY) as study:
        estimates = study["estimate"].sel(perturbation="p4k", period="january").to_numpy()  # [checkpoint, scalar]
        there = study.sel(ensemble="seeds", perturbation="p4k", period="january")
        mean, reach = estimates.mean(axis=0), 2.9200 * np.sqrt(4.0 / 3.0) * estimates.std(axis=0, ddof=1)
        np.testing.assert_allclose(there["ensemble_mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(there["ensemble_high"] - there["ensemble_mean"], reach, rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(there["ensemble_mean"] - there["ensemble_low"], reach, rtol=1e-4, atol=1e-12)
        assert str(study["ensemble_members"].values[0]) == "first second third"
        assert np.isfinite(mean).sum() > 20
    assert "seeds: 3 trainings" in (result.directory / "report.html").read_text()
    two = study_file(tmp_path / "t.yaml", planet_data, three, P4K, ensembles={"seeds": ["first", "second", "fourth"]})
    with pytest.raises(ConfigError, match="there is no checkpoint 'fourth'"):
        stages.run_study(two, tmp_path / "runs")
    two = study_file(tmp_path / "t.yaml", planet_data, three, P4K, ensembles={"seeds": ["first", "second"]})
    with pytest.raises(ConfigError, match="3 different ones are needed"):
        stages.run_study(two, tmp_path / "runs")


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, planet_data: Path, emulators: dict[str, Path]) -> None:
    """kill -9 after the first leg: the second process runs the others, and touches nothing that was complete."""
    root = tmp_path / "runs"
    file = study_file(tmp_path / "study.yaml", planet_data, {"first": emulators["first"]}, P2K, P4K)
    command = [sys.executable, "-m", "ace_core.cli", "study", str(file), "--root", str(root)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not arms_of(root) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = arms_of(root)
    assert 1 <= len(before) < 3
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "study: done, in" in done.stdout
    after = arms_of(root)
    assert len(after) == 3
    assert {k: after[k] for k in before} == before


def test_mistakes_of_a_study_are_found_before_anything_runs(
    tmp_path: Path, planet_data: Path, emulators: dict[str, Path]
) -> None:
    file = study_file(tmp_path / "s.yaml", planet_data, emulators, P4K, P4K, respond=STEPS | {"n_forward_step": 3})
    with pytest.raises(ConfigError) as caught:
        stages.run_study(file, tmp_path / "runs")
    assert "in period january, n_forward_step: Extra inputs are not permitted" in str(caught.value)
    file = study_file(tmp_path / "s.yaml", planet_data, emulators, P4K, P4K)
    with pytest.raises(ConfigError, match="the label 'p4k' appears twice in perturbations"):
        stages.run_study(file, tmp_path / "runs")
    file = study_file(tmp_path / "s.yaml", planet_data, emulators, P4K, respond={"perturbations": []})
    with pytest.raises(ConfigError, match=r"respond\.perturbations is said by the study itself"):
        stages.run_study(file, tmp_path / "runs")
    assert stages.check(Path("configs/planet/study.yaml")).startswith("configs/planet/study.yaml: valid study")
    assert not (tmp_path / "runs").exists()
