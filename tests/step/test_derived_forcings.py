"""Insolation from the batch's times in place of data: its values, what data must hold, and the rollout it drives."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.calendar import parse
from ace_core.config import Source
from ace_core.config import parse as parse_config
from ace_core.data.batch import Batch
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import ConfigError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.insolation import Insolation, Orbit
from ace_core.rollout import rollout
from ace_core.step.derived_forcings import DerivedForcings, DerivedForcingsConfig
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator, emulator_from_state

HOUR = 3600
SUN = "DSWRFtoa"
GRID = LatLonGrid(np.array([-80.0, -30.0, 0.0, 45.0]), np.arange(6) * 60.0)
S0 = 1360.0
VALUE: dict[str, Any] = {"insolation_name": SUN, "solar_constant": {"value": S0}}
NAME: dict[str, Any] = {"insolation_name": SUN, "solar_constant": {"name": "tsi"}}
NAMES = ["t", "sst", SUN, "land"]
STATISTICS = {
    "means": {"t": 250.0, "sst": 280.0, SUN: 300.0, "land": 0.5},
    "stds": {"t": 5.0, "sst": 10.0, SUN: 200.0, "land": 0.5},
}


def info(step: int = 6 * HOUR, grid: LatLonGrid = GRID, calendar: str = "noleap") -> DatasetInfo:
    return DatasetInfo(grid, None, step, calendar)


def stepper(derived: dict[str, Any] | None, **keys: Any) -> StepperConfig:
    step = {
        "builder": {"type": "MLP", "config": {"hidden_dim": 8}},
        "in_names": NAMES,
        "out_names": ["t", "sst"],
        "normalization": {"network": STATISTICS},
        "next_step_forcing_names": [SUN],
        **keys,
    }
    config: dict[str, Any] = {"step": {"type": "single_module", "config": step}}
    if derived is not None:
        config["derived_forcings"] = {"insolation": derived}
    return StepperConfig.model_validate(config)


def emulator(derived: dict[str, Any] | None, **keys: Any) -> Emulator:
    return build_emulator(stepper(derived, **keys), info(), seed=2)


def batch(names: tuple[str, ...], n: int = 4, seed: int = 0, **others: Any) -> Batch:
    """Two samples, one in northern summer and one over the turn of the year, six hours apart from time to time."""
    x = torch.randn(2, n, len(names), *GRID.shape, generator=torch.Generator().manual_seed(seed))
    if "tsi" in names:
        x[:, :, names.index("tsi")] = S0 + torch.arange(n)[:, None, None]
    starts = [parse("2003-06-20T12:00:00", "noleap", "test"), parse("2003-12-31T18:00:00", "noleap", "test")]
    times = np.array(starts, np.int64)[:, None] + np.arange(n)[None] * 6 * HOUR
    return Batch(Fields(names, x), times, "noleap", **others)


def expected(times: np.ndarray, solar: float | torch.Tensor = S0) -> torch.Tensor:
    return Insolation(GRID, "noleap", 6 * HOUR, Orbit())(torch.from_numpy(times), solar)


# --- values


@pytest.mark.parametrize("year", [1998, 2051])
def test_an_equinoctial_morning_on_the_equator_by_hand(year: int) -> None:
    """From 05:37 UT on at 90 E on a circular orbit at the equinox: hour angle -5.75 to 9.25 degrees, declination 0, so the mean
    cosine is (sin 9.25 + sin 5.75) / (15 degrees); at 30 E -65.75 to -50.75; at 60 N half of both; at 90 W it is night."""
    grid = LatLonGrid(np.array([0.0, 60.0]), np.array([30.0, 90.0, 270.0]))
    config = DerivedForcingsConfig.model_validate({"insolation": VALUE | {"eccentricity": 0.0}})
    derived = config.build(info(HOUR, grid), [SUN])
    end = parse(f"{year}-09-23T06:37:00", "noleap", "test")  # the equinox of 1998 and whole orbits later
    out = derived(Batch(Fields(("x",), torch.zeros(1, 1, 1, 2, 3)), np.array([[end]]), "noleap"))

    def mean(first: float, last: float) -> float:
        return (math.sin(math.radians(last)) - math.sin(math.radians(first))) / math.radians(15.0)

    wanted = S0 * torch.tensor([mean(-65.75, -50.75), mean(-5.75, 9.25), 0.0])
    torch.testing.assert_close(out.fields[SUN][0, 0], torch.stack([wanted, wanted / 2]), rtol=1e-5, atol=1e-3)
    assert out.fields.names == ("x", SUN)


def test_the_orbit_of_the_configuration_is_used() -> None:
    """At the equinox (a / r)**2 = ((1 + e cos(-w)) / (1 - e**2))**2; e 0.5, w 60 degrees: (1.25 / 0.75)**2 = 25 / 9."""
    grid = LatLonGrid(np.array([0.0]), np.array([90.0, 270.0]))
    end = parse("1998-09-23T06:37:00", "noleap", "test")
    one = Batch(Fields(("x",), torch.zeros(1, 1, 1, 1, 2)), np.array([[end]]), "noleap")
    found = []
    for keys in ({"eccentricity": 0.0}, {"eccentricity": 0.5, "longitude_of_perhelion": 60.0}):
        config = DerivedForcingsConfig.model_validate({"insolation": VALUE | keys})
        found.append(config.build(info(HOUR, grid), [SUN])(one).fields[SUN][0, 0, 0, 0].item())
    assert found[1] / found[0] == pytest.approx(25.0 / 9.0, rel=1e-6)


@pytest.mark.parametrize("by", ["value", "name"])
@pytest.mark.parametrize("held", [False, True], ids=["added", "replaced"])
def test_the_channel_is_that_of_the_batchs_times(by: str, held: bool) -> None:
    names = (*([SUN] if held else []), "t", "tsi", "land")
    given_ = batch(names)
    derived = emulator(VALUE if by == "value" else NAME)
    out = derived.drive(given_)
    solar = S0 if by == "value" else given_.fields["tsi"]
    wanted = expected(given_.times, solar)
    assert set(out.fields.names) == {"t", "tsi", "land", SUN}
    assert len(out.fields.names) == 4
    assert torch.equal(out.fields[SUN], wanted)
    assert out.fields.tensor.dtype == torch.float32
    assert float(wanted.max()) > 1000.0
    # another sample, another time: other values; nothing else changes
    assert not torch.equal(wanted[0], wanted[1])
    assert torch.equal(out.fields.select(["t", "tsi", "land"]), given_.fields.select(["t", "tsi", "land"]))
    assert out.times is given_.times
    if by == "name":
        ratio = (S0 + torch.arange(4.0))[None, :, None, None] / S0
        torch.testing.assert_close(wanted, expected(given_.times) * ratio, rtol=1e-6, atol=1e-4)


def test_it_is_the_mean_over_the_step_that_ends_at_the_time() -> None:
    """24 hourly steps that end within one 6 h step each average to it, declination and distance aside (those of the start)."""
    ends = parse("2003-03-20T12:00:00", "noleap", "test")
    long = DerivedForcingsConfig.model_validate({"insolation": VALUE}).build(info(6 * HOUR), [SUN])
    short = DerivedForcingsConfig.model_validate({"insolation": VALUE}).build(info(HOUR), [SUN])
    x = torch.zeros(1, 6, 1, *GRID.shape)
    hours = np.array([ends + HOUR * np.arange(-5, 1)])
    whole = long(Batch(Fields(("x",), x[:, :1]), hours[:, -1:], "noleap")).fields[SUN][0, 0]
    parts = short(Batch(Fields(("x",), x), hours, "noleap")).fields[SUN][0]
    torch.testing.assert_close(parts.mean(dim=0), whole, rtol=0, atol=1.0)
    after = short(Batch(Fields(("x",), x), hours + 6 * HOUR, "noleap")).fields[SUN][0].mean(dim=0)
    assert float((after - whole).abs().max()) > 300.0


@given(st.integers(0, 40 * 365 * 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_every_sample_and_time_alone_gives_the_same_bits(start: int, b: int, t: int) -> None:
    derived = DerivedForcingsConfig.model_validate({"insolation": VALUE}).build(info(), [SUN])
    times = (start + np.arange(b)[:, None] * 37 + np.arange(t)) * 6 * HOUR
    x = torch.zeros(b, t, 1, *GRID.shape)
    whole = derived(Batch(Fields(("x",), x), times, "noleap")).fields[SUN]
    assert bool((whole >= 0).all())
    assert float(whole.max()) <= S0 / (1 - 0.0167) ** 2
    for i in range(b):
        for j in range(t):
            alone = derived(Batch(Fields(("x",), x[:1, :1]), times[i : i + 1, j : j + 1], "noleap"))
            assert torch.equal(alone.fields[SUN][0, 0], whole[i, j])


def test_what_is_derived_is_never_missing() -> None:
    """The mask follows its channels; the insolation is there, also where the data lacked it."""
    mask = torch.tensor([[False, True, False], [True, False, True]])
    given_ = batch((SUN, "t", "land"), data_mask=mask)
    given_.fields.tensor[0, :, 0] = torch.nan
    out = emulator(VALUE).drive(given_)
    here = dict(zip(out.fields.names, out.data_mask.T.tolist()))
    assert here == {"t": [True, False], "land": [False, True], SUN: [True, True]}
    assert bool(out.fields[SUN].isfinite().all())
    assert emulator(VALUE).drive(batch((SUN, "t", "land"))).data_mask is None


# --- names


def test_names_that_data_must_hold() -> None:
    """The insolation is not read, the named constant is; what the step sees does not change."""
    assert stepper(None).data_names == ["t", "sst", SUN, "land"]
    assert stepper(VALUE).data_names == ["t", "sst", "land"]
    assert stepper(NAME).data_names == ["t", "sst", "land", "tsi"]
    assert emulator(None).forcing_names == (SUN, "land") or emulator(None).forcing_names == ("land", SUN)
    assert emulator(VALUE).forcing_names == ("land",)
    assert emulator(NAME).forcing_names == ("land", "tsi")
    for derived in (None, VALUE, NAME):
        step = emulator(derived).step
        assert set(step.forcing_names) == {"land", SUN}
        assert step.in_names == tuple(NAMES)
    # a constant that is an input besides is asked for once
    twice = stepper({"insolation_name": SUN, "solar_constant": {"name": "land"}})
    assert twice.data_names == ["t", "sst", "land"]


def test_without_a_derived_forcing_a_batch_is_passed_on() -> None:
    given_ = batch((SUN, "t"))
    assert emulator(None).drive(given_) is given_
    assert emulator(None).derived_forcings is None
    assert DerivedForcingsConfig().build(info(), []) is None


@pytest.mark.parametrize("name", ["DSWRFtoo", "t"], ids=["unknown", "predicted"])
def test_a_step_that_does_not_want_it_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        emulator(VALUE | {"insolation_name": name})
    (problem,) = error.value.problems
    assert problem.where == "stepper.derived_forcings.insolation.insolation_name"
    assert repr(name) in problem.found


def test_a_multi_call_may_multiply_what_is_derived() -> None:
    """The insolation is a forcing of the wrapped step: twice the sun is twice the derived channel."""
    step = stepper(None).step.model_dump(mode="json")
    calls = {"forcing_name": SUN, "forcing_multipliers": {"_2x": 2.0}, "output_names": ["t"]}
    config: dict[str, Any] = {
        "step": {
            "type": "multi_call",
            "config": {"wrapped_step": step, "config": calls, "include_multi_call_in_loss": False},
        },
        "derived_forcings": {"insolation": VALUE},
    }
    both = build_emulator(StepperConfig.model_validate(config), info(), seed=2)
    assert both.forcing_names == ("land",)
    data = batch(("t", "sst", "land"))
    (window,) = rollout(both.step, data.fields.at_time(0), [both.drive(data.steps(0, 2))])
    sun = 2.0 * expected(data.times)
    doubled = Batch(Fields((SUN, "land"), torch.stack([sun, data.fields["land"]], dim=2)), data.times, "noleap")
    (read,) = rollout(emulator(None).step, data.fields.at_time(0), [doubled.steps(0, 2)])
    torch.testing.assert_close(window.prediction["t_2x"], read.prediction["t"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "phrases"),
    [
        ({"insolation_name": SUN}, ["insolation.solar_constant", "missing"]),
        (VALUE | {"solar_constant": {"value": -1.0}}, ["solar_constant", "value"]),
        (VALUE | {"solar_constant": {"value": S0, "name": "tsi"}}, ["solar_constant"]),
        (VALUE | {"eccentricity": 1.0}, ["insolation.eccentricity"]),
        (
            VALUE | {"longitude_of_perihelion": 100.0},
            ["longitude_of_perihelion", "did you mean 'longitude_of_perhelion'"],
        ),
    ],
)
def test_wrong_keys(keys: dict[str, Any], phrases: list[str]) -> None:
    data = stepper(None).model_dump(mode="json") | {"derived_forcings": {"insolation": keys}}
    with pytest.raises(ConfigError) as error:
        parse_config(StepperConfig, Source("s.yaml", data))
    for phrase in phrases:
        assert phrase in str(error.value)


def test_steps_of_more_than_a_day_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stepper\.derived_forcings\.insolation: the data's time step is 90000 s"):
        build_emulator(stepper(VALUE), info(25 * HOUR), seed=0)


# --- rollouts


@pytest.mark.parametrize("by", [VALUE, NAME], ids=["value", "name"])
def test_a_rollout_with_it_is_the_rollout_with_the_same_numbers_read(by: dict[str, Any]) -> None:
    """Same weights, same bits; the sun is that of t + dt, as next_step_forcing_names says."""
    data = batch(("t", "land", "sst", "tsi"), n=6)
    solar = S0 if by is VALUE else data.fields["tsi"]
    sun = expected(data.times, solar)
    held = Batch(
        Fields((*data.fields.names, SUN), torch.cat([data.fields.tensor, sun.unsqueeze(2)], dim=2)),
        data.times,
        "noleap",
    )
    derived, reading = emulator(by), emulator(None)
    initial = Fields(("t", "sst"), torch.tensor([250.0, 280.0])[None, :, None, None].expand(2, -1, *GRID.shape))
    given_ = data.fields.subset(derived.forcing_names)
    drive = Batch(given_, data.times, "noleap")
    windows = [drive.steps(0, 3), drive.steps(2, 6)]
    a = torch.cat(
        [w.prediction.tensor for w in rollout(derived.step, initial, (derived.drive(w) for w in windows))], dim=1
    )
    (b,) = rollout(reading.step, initial, [held])
    assert torch.equal(a, b.prediction.tensor)
    # The first step reads the sun of the second time only.
    held.fields[SUN][:, 0] = torch.nan
    (c,) = rollout(reading.step, initial, [held])
    assert torch.equal(c.prediction.tensor, b.prediction.tensor)


def test_it_survives_a_checkpoint() -> None:
    first = emulator(NAME)
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    buffer.seek(0)
    again = emulator_from_state(torch.load(buffer, weights_only=True))
    assert isinstance(again.derived_forcings, DerivedForcings)
    assert again.forcing_names == first.forcing_names
    data = batch(("tsi", "land"))
    assert torch.equal(again.drive(data).fields.tensor, first.drive(data).fields.tensor)
    # nothing of it is trained
    assert first.n_parameters == emulator(None).n_parameters
