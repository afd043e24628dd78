"""Deterministic losses: closed forms, weights, masks, decay, and what configuration refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ace_core.config import Source, parse
from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.loss.step_loss import StepLoss, StepLossConfig
from ace_core.step.normalizer import Scaling

NAMES = ("t_0", "t_1", "rain")
TYPES = {
    "MSE": {"type": "MSE"},
    "L1": {"type": "L1"},
    "LpLoss": {"type": "LpLoss", "kwargs": {"p": 1.5}},
    "AreaWeightedMSE": {"type": "AreaWeightedMSE"},
    "EnsembleLoss": {
        "type": "EnsembleLoss",
        "kwargs": {
            "crps_weight": 0.7,
            "energy_score_weight": 0.2,
            "finite_difference_crps_weight": 0.1,
            "finite_difference_crps_levels": 2,
            "almost_fair_crps_alpha": 0.95,
            "energy_score_whitening": {"kind": "per_sample"},
        },
    },
    "global mean": {"type": "MSE", "global_mean_type": "LpLoss", "global_mean_weight": 0.5},
}
# hypothesis repeats a test within one fixture, so these are plain values here.
GRID = LatLonGrid.gaussian(6, 12)
SCALING = Scaling({"t_0": 250.0, "t_1": 280.0, "rain": 2.0}, {"t_0": 5.0, "t_1": 10.0, "rain": 4.0})


def build(kind: str, **options: object) -> StepLoss:
    return StepLossConfig.model_validate(TYPES[kind] | options).build(NAMES, SCALING, GRID)


def physical(normalised: Tensor) -> Tensor:
    """[..., C, Y, X] in SI units."""
    return normalised * SCALING.std(NAMES)[:, None, None] + SCALING.mean(NAMES)[:, None, None]


def pair(batch: int = 3, members: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    prediction = torch.randn(batch, members, 3, 6, 12, generator=draw)
    return physical(prediction), physical(torch.randn(batch, 1, 3, 6, 12, generator=draw))


def constants(values: list[float], members: int = 1) -> Tensor:
    return physical(torch.tensor(values)[None, None, :, None, None].expand(2, members, 3, 6, 12))


def test_mse_and_l1_by_hand_with_weights_squared_and_plain() -> None:
    prediction, target = constants([3.0, -2.0, 0.5]), constants([1.0, 1.0, 0.5])
    mse = build("MSE", weights={"t_0": 3.0})(prediction, target)
    torch.testing.assert_close(mse.per_channel, torch.tensor([36.0, 9.0, 0.0]))
    torch.testing.assert_close(mse.total(), torch.tensor(15.0))
    l1 = build("L1", weights={"t_0": 3.0})(prediction, target)
    torch.testing.assert_close(l1.per_channel, torch.tensor([6.0, 3.0, 0.0]))


def test_mse_counts_cells_equally_and_area_weighted_mse_by_cosine() -> None:
    target = constants([0.0, 0.0, 0.0])
    prediction = target.clone()
    prediction[..., 0, :] += SCALING.std(NAMES)[:, None]
    share = math.cos(math.radians(GRID.lat[0])) / float(torch.tensor(GRID.lat).deg2rad().cos().sum())
    torch.testing.assert_close(build("MSE")(prediction, target).per_channel, torch.full((3,), 1 / 6))
    torch.testing.assert_close(build("AreaWeightedMSE")(prediction, target).per_channel, torch.full((3,), share))


def test_lp_is_relative_per_sample_member_and_channel() -> None:
    """The peer takes [B, E, C] as [B, C]: all channels in one norm, and a crash for more than one output."""
    prediction, target = pair()
    out = build("LpLoss")(prediction, target)
    x, y = ((v - SCALING.mean(NAMES)[:, None, None]) / SCALING.std(NAMES)[:, None, None] for v in (prediction, target))
    expected = torch.zeros(3)
    for c in range(3):
        for b in range(3):
            for e in range(2):
                norms = [
                    float(v.abs().double().pow(1.5).sum()) ** (1 / 1.5) for v in (x[b, e, c] - y[b, 0, c], y[b, 0, c])
                ]
                expected[c] += norms[0] / norms[1] / 6
    torch.testing.assert_close(out.per_channel, expected)
    torch.testing.assert_close(out.total(), expected.mean())


def test_weight_scales_a_relative_loss_and_zero_removes_the_channel() -> None:
    prediction, target = pair()
    plain = build("LpLoss")(prediction, target).per_channel
    weighted = build("LpLoss", weights={"t_0": 2.0, "rain": 0.0})(prediction, target).per_channel
    torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 1.0, 0.0]))


def test_global_mean_term_is_relative_and_area_weighted() -> None:
    prediction, target = constants([3.0, -2.0, 0.5]), constants([2.0, 1.0, 0.5])
    # MSE 1, 9, 0 plus half of |1|/2, |-3|/1, 0
    out = build("global mean")(prediction, target)
    torch.testing.assert_close(out.per_channel, torch.tensor([1.25, 10.5, 0.0]))
    # An error without area mean leaves the second term at zero.
    prediction = target.clone()
    prediction[..., 0, :] += 1.0
    prediction[..., -1, :] -= 1.0
    first, both = build("MSE")(prediction, target), build("global mean")(prediction, target)
    torch.testing.assert_close(first.per_channel, both.per_channel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_decay_scales_by_the_inverse_square_root_of_the_step(kind: str) -> None:
    prediction, target = pair()
    loss = build(kind, sqrt_loss_step_decay_constant=0.5)
    first = loss(prediction, target, 0)
    torch.testing.assert_close(first.total(), build(kind)(prediction, target, 7).total())
    torch.testing.assert_close(loss(prediction, target, 6).per_channel, first.per_channel / 2.0)


@pytest.mark.parametrize("kind", TYPES)
@settings(deadline=None)
@given(mask=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=3, max_size=3))
def test_absent_samples_have_no_influence_on_value_or_gradient(kind: str, mask: list[list[bool]]) -> None:
    present = torch.tensor(mask)
    loss = build(kind)
    prediction, target = pair()
    here = present[:, None, :, None, None]
    results = []
    for filling in (0.0, 1e3, math.nan):
        x = torch.where(here, prediction, filling).requires_grad_()
        out = loss(x, torch.where(here, target, filling), 0, present)
        out.total().backward()
        assert x.grad is not None
        results.append((out.per_channel.detach(), out.total().detach(), x.grad))
        assert torch.equal(x.grad[(~here).expand_as(x)], torch.zeros(int((~here).expand_as(x).sum())))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0]))
    # Each channel is the mean over its own samples, and the total the mean over the channels that have one.
    per_sample = loss.per_sample(prediction, target)
    expected = [per_sample[present[:, c], c].mean() for c in range(3) if bool(present[:, c].any())]
    per_channel, total, _ = results[0]
    if expected:
        torch.testing.assert_close(per_channel[present.any(dim=0)], torch.stack(expected))
        torch.testing.assert_close(total, torch.stack(expected).mean())
    else:
        assert float(total) == 0.0


@pytest.mark.parametrize("kind", TYPES)
@settings(deadline=None)
@given(seed=st.integers(0, 2**20), batch=st.integers(1, 4), members=st.integers(1, 3))
def test_channels_average_to_the_total_and_stand_alone(kind: str, seed: int, batch: int, members: int) -> None:
    prediction, target = pair(batch, members, seed)
    out = build(kind)(prediction, target)
    torch.testing.assert_close(out.per_channel.mean(), out.total())
    assert out.count.tolist() == [batch] * 3
    torch.testing.assert_close(out.per_channel, build(kind).per_sample(prediction, target).mean(dim=0))
    config = StepLossConfig.model_validate(TYPES[kind])
    for c, name in enumerate(NAMES):
        alone = config.build([name], SCALING, GRID)(prediction[:, :, c : c + 1], target[:, :, c : c + 1])
        torch.testing.assert_close(alone.total(), out.per_channel[c])


def test_nan_target_cells_have_no_error_but_count() -> None:
    prediction, target = constants([3.0, 0.0, 0.0]), constants([1.0, 0.0, 0.0])
    target[..., :3, :] = math.nan
    prediction[..., 0, 0] = math.nan
    prediction.requires_grad_()
    out = build("MSE")(prediction, target)
    torch.testing.assert_close(out.per_channel, torch.tensor([2.0, 0.0, 0.0]))
    out.total().backward()
    assert prediction.grad is not None
    assert float(prediction.grad[..., :3, :].abs().max()) == 0.0


def test_nan_prediction_is_not_hidden() -> None:
    prediction, target = pair()
    prediction[0, 0, 1, 2, 2] = math.nan
    assert build("MSE")(prediction, target).per_channel.isnan().tolist() == [False, True, False]


def test_small_differences_of_large_values_keep_their_bits() -> None:
    """The common mean is not subtracted first: 2**-15 K on 250 K is exact in the difference."""
    target = torch.full((1, 1, 3, 6, 12), 256.0)
    out = build("L1")(target + 2.0**-15, target)
    torch.testing.assert_close(out.per_channel, 2.0**-15 / SCALING.std(NAMES), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", TYPES)
def test_gradient_is_that_of_the_value_in_float64(kind: str) -> None:
    loss = build(kind).double()
    prediction, target = (v[:1].double() for v in pair())
    small = prediction.clone().requires_grad_()
    direction = torch.randn(small.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss(small, target).total().backward()
    assert small.grad is not None
    h = 1e-5
    slope = (loss(prediction + h * direction, target).total() - loss(prediction - h * direction, target).total()) / (
        2 * h
    )
    torch.testing.assert_close((small.grad * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"type": "Huber"}, ["loss.type", "Huber", "AreaWeightedMSE"]),
        ({"kwargs": {"p": 2}}, ["kwargs of MSE", "'p'"]),
        ({"type": "LpLoss", "kwargs": {"p": 0}}, ["kwargs of LpLoss", "p:"]),
        ({"type": "EnsembleLoss", "kwargs": {"crps_wieght": 1.0}}, ["crps_wieght", "did you mean 'crps_weight'"]),
        ({"type": "EnsembleLoss", "kwargs": {"crps_weight": 0.0}}, ["crps_weight and energy_score_weight are both 0"]),
        ({"type": "EnsembleLoss", "kwargs": {"crps_weight": -1.0}}, ["crps_weight:", "greater than or equal to 0"]),
        ({"type": "EnsembleLoss", "kwargs": {"finite_difference_crps_levels": 2}}, ["finite_difference_crps_levels"]),
        (
            {"type": "EnsembleLoss", "kwargs": {"energy_score_whitening": {"kind": "per_sample"}}},
            ["energy_score_whitening acts only"],
        ),
        (
            {
                "type": "EnsembleLoss",
                "kwargs": {"energy_score_weight": 1.0, "energy_score_whitening": {"exponent": 0.5}},
            },
            ["kind per_sample"],
        ),
        (
            {
                "type": "EnsembleLoss",
                "kwargs": {"crps_weight": 0, "energy_score_weight": 1, "almost_fair_crps_alpha": 0.9},
            },
            ["almost_fair_crps_alpha acts only"],
        ),
        ({"global_mean_weight": 2.0}, ["global_mean_type"]),
        ({"sqrt_loss_step_decay_constant": -0.1}, ["sqrt_loss_step_decay_constant"]),
        ({"weights": {"t_0": -1.0}}, ["weights.t_0"]),
    ],
)
def test_options_that_make_no_sense_are_refused_by_key(section: dict[str, object], words: list[str]) -> None:
    from ace_core.config import StrictModel

    class File(StrictModel):
        loss: StepLossConfig

    with pytest.raises(ConfigError) as error:
        parse(File, Source("train.yaml", {"loss": section}))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_build_names_unknown_weights_and_unfit_grids() -> None:
    with pytest.raises(ConfigError, match=r"'t_7' is not predicted(.|\n)*'snow' is not predicted"):
        StepLossConfig(weights={"t_7": 1.0, "snow": 2.0}).build(NAMES, SCALING, GRID)
    energy = {"type": "EnsembleLoss", "kwargs": {"energy_score_weight": 1.0}}
    irregular = LatLonGrid(GRID.lat**3 / 8000.0, GRID.lon)
    with pytest.raises(ConfigError, match="no spherical-harmonic transform"):
        StepLossConfig.model_validate(energy).build(NAMES, SCALING, irregular)
    deep = {
        "type": "EnsembleLoss",
        "kwargs": {"finite_difference_crps_weight": 1.0, "finite_difference_crps_levels": 4},
    }
    with pytest.raises(ConfigError, match="4 levels leave 1 row of the 6 latitudes"):
        StepLossConfig.model_validate(deep).build(NAMES, SCALING, GRID)
