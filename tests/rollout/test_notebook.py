"""Rollouts on xarray data, and as a prognostic model of earth2studio: the numbers of ``ace infer``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.data.loader import make_loader
from ace_core.data.store import open_store
from ace_core.distributed import Ranks
from ace_core.errors import DataError
from ace_core.evaluation.config import StepperOverrideConfig
from ace_core.evaluation.evaluator import InferenceConfig, infer
from ace_core.evaluation.override import override
from ace_core.rollout import Prognostic, predict, predict_step
from ace_core.step.emulator import Emulator, build_emulator
from ace_core.training import checkpoint
from ace_core.training.checkpoint import load_emulator
from ace_core.training.train import TrainConfig
from tests.evaluation.noisy import noisy_checkpoint

N = 6


@pytest.fixture
def emulator(train_config: Callable[..., TrainConfig]) -> Emulator:
    config = train_config()
    info = make_loader(config.validation_loader, config.stepper.data_names, 2, train=False).dataset.info
    built = build_emulator(config.stepper, info, seed=3)
    built.step.eval()
    return built


@pytest.fixture
def noisy(tmp_path: Path, planet_data: Path) -> Emulator:
    """With noise, and a corrector that keeps the mass of dry air."""
    noisy_checkpoint(tmp_path / "noisy.tar", planet_data)
    return load_emulator(tmp_path / "noisy.tar", True)


@pytest.fixture
def data(planet_data: Path, emulator: Emulator) -> tuple[xr.Dataset, xr.Dataset]:
    """State at the thirtieth time of the test store, and forcing from there on."""
    store = open_store(planet_data / "native" / "test.zarr")
    names = tuple(dict.fromkeys([*emulator.step.prognostic_names, *emulator.forcing_names]))
    values = store.read(names, 30, 30 + N + 1)
    grid = store.info.grid
    times = store.times[30 : 30 + N + 1].to_cftime()
    whole = xr.Dataset(
        {n: (("time", "lat", "lon"), values[:, c]) for c, n in enumerate(names)},
        coords={"time": times, "lat": grid.lat, "lon": grid.lon},
    )
    return whole[list(emulator.step.prognostic_names)].isel(time=0), whole[list(emulator.forcing_names)]


def test_a_rollout_is_what_ace_infer_writes(
    tmp_path: Path, planet_data: Path, emulator: Emulator, data: tuple[xr.Dataset, xr.Dataset]
) -> None:
    path = tmp_path / "emulator.tar"
    checkpoint.save(path, {"emulator": emulator.state()})
    dataset = {"data_path": str(planet_data / "native" / "test.zarr")}
    config = InferenceConfig.model_validate(
        {
            "checkpoint_path": str(path),
            "n_forward_steps": N,
            "forward_steps_in_memory": 2,
            "initial_condition": {"dataset": dataset, "start_indices": {"list": [30]}},
            "forcing_loader": {"dataset": dataset},
        }
    )
    infer(config, tmp_path, Ranks())
    found = predict(emulator, *data)
    with xr.open_dataset(tmp_path / "autoregressive_predictions.nc", decode_times=False) as written:
        for name in emulator.step.out_names:
            np.testing.assert_array_equal(found[name], written[name][0])
    assert found.sizes["time"] == N
    assert [str(t) for t in found["time"].values] == [str(t) for t in data[1]["time"].values[1:]]
    assert found["air_temperature_7"].attrs["units"] == "K"
    one = predict_step(emulator, *data)
    xr.testing.assert_equal(one, found.isel(time=0))


def test_a_loop_of_steps_is_a_rollout(noisy: Emulator, data: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Noise and dry air go on, to the bit: step by step, in two halves, with samples and without."""
    start, forcing = data
    for given in (start, xr.concat([start, start + 1.0], dim="sample")):
        state = given.assign_coords(time=start["time"])
        whole = predict(noisy, state, forcing, seed=4)
        assert whole["forecast_step"].values.tolist() == list(range(1, N + 1))
        first = predict(noisy, state, forcing.isel(time=slice(0, 4)), seed=4).isel(time=-1)
        xr.testing.assert_identical(
            predict(noisy, first, forcing.isel(time=slice(3, None)), seed=4), whole.isel(time=slice(3, None))
        )
        for k in range(N):
            state = predict_step(noisy, state, forcing.isel(time=slice(k, k + 2)), seed=4)
            xr.testing.assert_identical(state, whole.isel(time=k))
    anew = state.drop_vars(["forecast_step", "global_dry_air_mass"]).assign_coords(time=start["time"])
    on = state.assign_coords(time=start["time"])
    one, other = (predict_step(noisy, s, forcing, seed=4) for s in (anew, on))
    assert (int(one["forecast_step"]), int(other["forecast_step"])) == (1, N + 1)
    assert float(abs(one["TMP2m"] - other["TMP2m"]).max()) > 1e-4
    mixed = xr.concat([start, start], dim="sample").assign_coords(time=start["time"], forecast_step=("sample", [0, 3]))
    with pytest.raises(DataError, match="state: samples after 0, 3 steps of their rollouts"):
        predict(noisy, mixed, forcing)


def test_samples_are_independent_and_forcing_is_shared(emulator: Emulator, data: tuple[xr.Dataset, xr.Dataset]) -> None:
    state, forcing = data
    two = xr.concat([state, state + 1.0], dim="sample")
    found = predict(emulator, two, forcing)
    for i, s in enumerate((state, state + 1.0)):
        alone = predict(emulator, s.assign_coords(time=state["time"]), forcing)
        np.testing.assert_allclose(found["PRESsfc"][i], alone["PRESsfc"], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, f: (s.drop_vars("PRESsfc"), f), "lacks PRESsfc"),
        (lambda s, f: (s, f.isel(time=[0, 2, 4])), "times are 43200 s apart"),
        (lambda s, f: (s, f.isel(time=slice(1, None))), "the first time of forcing"),
        (lambda s, f: (s, f.isel(time=[0])), "has 1 times"),
        (lambda s, f: (s.isel(lat=slice(None, None, -1)), f), "grid is"),
        (lambda s, f: (s.expand_dims(member=2), f), "has dimensions"),
    ],
)
def test_what_does_not_fit_says_so(
    emulator: Emulator, data: tuple[xr.Dataset, xr.Dataset], change: Callable[..., Any], message: str
) -> None:
    state, forcing = data
    hours = emulator.info.timestep // 3600
    with pytest.raises(DataError, match=message.replace("43200", str(2 * hours * 3600))):
        predict(emulator, *change(state, forcing))


def test_a_prognostic_model_of_earth2studio(emulator: Emulator, data: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Its protocol, spelled out: coordinates, one step, and an iterator that begins with the state itself."""
    state, forcing = data
    start = np.datetime64("2001-03-01T00:00:00")
    step = np.timedelta64(emulator.info.timestep, "s")
    dated = forcing.assign_coords(time=start + step * np.arange(N + 1))
    model = Prognostic(emulator, dated).to("cpu")
    names = list(emulator.step.prognostic_names)
    wanted = model.input_coords()
    assert list(wanted) == ["batch", "time", "lead_time", "variable", "lat", "lon"]
    coords = OrderedDict(wanted) | {"batch": np.arange(2), "time": np.array([start])}
    x = torch.from_numpy(state[names].to_array().to_numpy()[None, None, None].repeat(2, axis=0)).float()
    assert model.output_coords(coords)["lead_time"] == [step]
    expected = predict(emulator, state.drop_vars("time"), dated)
    y, at = model(x, coords)
    assert at["lead_time"] == [step]
    assert y.shape == x.shape
    np.testing.assert_array_equal(y[1, 0, 0], expected[names].isel(time=0).to_array())
    states = list(model.create_iterator(x, coords))
    assert [s[1]["lead_time"][0] for s in states] == [k * step for k in range(N + 1)]
    assert torch.equal(states[0][0], x)
    np.testing.assert_array_equal(states[-1][0][0, 0, 0], expected[names].isel(time=-1).to_array())
    with pytest.raises(DataError, match="no time 1999"):
        model(x, coords | {"time": np.array([np.datetime64("1999-01-01")])})
    with pytest.raises(DataError, match="variable: 1 values"):
        model(x, coords | {"variable": np.array(["t2m"])})


def test_a_prognostic_models_noise_is_of_its_step_and_start(
    noisy: Emulator, data: tuple[xr.Dataset, xr.Dataset]
) -> None:
    """Two starts on the same sea, from the same state: each has its own noise, the same in a loop and in an iterator."""
    state, forcing = data
    # A corrector that keeps nothing: what one keeps is not handed from call to call.
    plain = StepperOverrideConfig.model_validate({"corrector": {"type": "atmosphere_corrector", "config": {}}})
    step = np.timedelta64(noisy.info.timestep, "s")
    start = np.datetime64("2001-03-01T00:00:00")
    still = xr.concat([forcing.isel(time=[0])] * (N + 1), dim="time")
    dated = still.assign_coords(time=start + step * np.arange(N + 1))
    model = Prognostic(override(noisy, plain), dated, seed=4)
    names = list(noisy.step.prognostic_names)
    starts = np.array([start, start + step])
    coords = OrderedDict(model.input_coords()) | {"batch": np.arange(1), "time": starts}
    x = torch.from_numpy(state[names].to_array().to_numpy()[None, None, None].repeat(2, axis=1)).float()
    expected = list(model.create_iterator(x, coords))
    assert len(expected) == N
    y, at = x, coords
    for known, lead in expected[1:]:
        y, at = model(y, at)
        assert at["lead_time"] == lead["lead_time"]
        assert torch.equal(y, known)
    first = expected[1][0][0, :, 0, names.index("air_temperature_3")]
    assert float((first[0] - first[1]).abs().max()) > 1e-3
    alone = model(x[:, 1:], coords | {"time": starts[1:]})[0]
    np.testing.assert_allclose(alone[:, 0], expected[1][0][:, 1], rtol=1e-5)
