"""Ensemble scores against closed forms and hand-made modes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ace_core.grid import LatLonGrid
from ace_core.harmonics import InverseRealSHT
from ace_core.loss.ensemble import Crps, EnergyScore, FiniteDifferenceCrps, Whitening, member_score
from ace_core.loss.step_loss import StepLossConfig
from ace_core.step.normalizer import Scaling

GRID = LatLonGrid.gaussian(6, 12)
NY, NX = GRID.shape
LMAX, MMAX = NY, NX // 2 + 1


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1.5, 0.5), (-0.3, 2.0)])
def test_crps_of_a_gaussian_ensemble_is_the_analytic_value(mean: float, spread: float) -> None:
    """CRPS(N(mu, s), 0) = s (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)), z = mu/s: fair for any E, so for E = 3 too."""
    cells = 400_000
    error = mean + spread * draw(1, 3, 1, 1, cells)
    z = mean / spread
    phi, cdf = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
    exact = spread * (z * (2 * cdf - 1) + 2 * phi - 1 / math.sqrt(math.pi))
    assert float(Crps(1.0)(error, None)) == pytest.approx(exact, abs=6e-3 * spread)
    # Almost fair adds (1 - alpha)/2 of half the mean distance of two members, s / sqrt(pi).
    assert float(Crps(0.9)(error, None)) == pytest.approx(exact + 0.05 * spread / math.sqrt(math.pi), abs=6e-3 * spread)


def test_crps_by_hand() -> None:
    error = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)[None, :, None, None, None]
    # skill 7/3; pairs 3, 3, 6: mean 4
    assert float(Crps(1.0)(error, None)) == pytest.approx(7 / 3 - 2.0)
    assert float(Crps(0.5)(error, None)) == pytest.approx(7 / 3 - 0.75 * 2.0)
    assert float(Crps(1.0)(error[:, :1], None)) == 1.0


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), members=st.integers(1, 6), shift=st.integers(0, 5), scale=st.floats(0.1, 10.0))
def test_order_of_members_is_irrelevant_and_scores_are_homogeneous(
    seed: int, members: int, shift: int, scale: float
) -> None:
    error, target = draw(2, members, 2, NY, NX, seed=seed), draw(2, 1, 2, NY, NX, seed=seed + 1)
    order = torch.randperm(members, generator=torch.Generator().manual_seed(shift))
    for term in (
        Crps(0.95),
        FiniteDifferenceCrps(1.0, 2, GRID.shape),
        EnergyScore(GRID, None),
        EnergyScore(GRID, whitening()),
    ):
        double = term.double()
        value = double(error, target)
        torch.testing.assert_close(double(error[:, order], target), value)
        torch.testing.assert_close(double(scale * error, target), scale * value)


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), members=st.integers(2, 6))
def test_pairs_by_distance_are_all_pairs(seed: int, members: int) -> None:
    real, imaginary = draw(members, 5, seed=seed), draw(members, 5, seed=seed + 1)
    for x in (real, torch.complex(real, imaginary)):
        pairs = [(x[i] - x[j]).abs() for i, j in itertools.combinations(range(members), 2)]
        expected = x.abs().mean(dim=0) - 0.45 * torch.stack(pairs).mean(dim=0)
        torch.testing.assert_close(member_score(x, 0, 0.9), expected)


def whitening(eps_frac: float = 0.02, exponent: float = 0.5) -> Whitening:
    return Whitening(LMAX, MMAX, eps_frac, exponent)


def field_of(modes: dict[tuple[int, int], complex]) -> Tensor:
    """The field [Y, X] with these coefficients (degree, order), float64."""
    synthesis = InverseRealSHT(NY, NX, LMAX, MMAX).double()
    coefficients = torch.zeros(MMAX, LMAX, 1, 2, 1, dtype=torch.float64)
    for (degree, m), value in modes.items():
        coefficients[m, degree, 0, :, 0] = torch.tensor([value.real, value.imag], dtype=torch.float64)
    field: Tensor = synthesis(coefficients)[0, :, :, 0]
    return field


def test_energy_score_of_hand_made_modes() -> None:
    error = torch.zeros(2, 2, 2, NY, NX, dtype=torch.float64)
    error[0, 0, 0] = field_of({(1, 0): 3.0, (3, 2): 3 + 4j})
    error[0, 1, 0] = field_of({(1, 0): -1.0, (3, 2): 3 + 4j})
    error[1, 0, 1] = field_of({(4, 1): 6j})
    score = EnergyScore(GRID, None).double()(error, None)
    divisor = 2 * math.sqrt(LMAX * MMAX)
    # (1, 0): mean(3, 1) - 4/2 = 0; (3, 2): 2 * 5, no spread; (4, 1): 2 * (mean(6, 0) - 6/2) = 0
    expected = torch.tensor([[10 / divisor, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)
    # One member: the modulus alone. The peer collapses all channels and samples to one number.
    one = EnergyScore(GRID, None).double()(error[:, :1], None)
    expected = torch.tensor([[13 / divisor, 0.0], [0.0, 12 / divisor]], dtype=torch.float64)
    torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


def test_energy_score_alone_with_masks() -> None:
    """The peer crashes with crps_weight 0 and ignores the mask."""
    config = {"type": "EnsembleLoss", "kwargs": {"crps_weight": 0.0, "energy_score_weight": 2.0}}
    scaling = Scaling({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0})
    loss = StepLossConfig.model_validate(config).build(["a", "b"], scaling, GRID)
    error = torch.zeros(2, 2, 2, NY, NX)
    error[0, :, 0] = field_of({(2, 1): 5.0}).float()
    error[1] = 7.0
    out = loss(error, torch.zeros(2, 1, 2, NY, NX), 0, torch.tensor([[True, True], [False, False]]))
    divisor = 2 * math.sqrt(LMAX * MMAX)
    torch.testing.assert_close(out.per_channel, torch.tensor([2 * 2 * 5 / divisor, 0.0]), rtol=1e-5, atol=1e-6)
    assert out.count.tolist() == [1, 1]


def test_energy_score_has_a_gradient_at_zero_error() -> None:
    error = torch.zeros(1, 2, 1, NY, NX, requires_grad=True)
    EnergyScore(GRID, None)(error, None).sum().backward()
    assert error.grad is not None
    assert float(error.grad.abs().max()) == 0.0


def test_finite_differences_by_hand() -> None:
    """A field x + 10 y: northward differences 10, eastward 1 and once -(X - 1); one coarser grid doubles both."""
    y, x = torch.arange(4.0)[:, None], torch.arange(8.0)[None, :]
    error = (x + 10 * y).double()[None, None, None]
    fine = 0.5 * (10.0 + (7 * 1 + 7) / 8)
    coarse = 0.5 * (20.0 + (3 * 2 + 6) / 4)
    assert float(FiniteDifferenceCrps(1.0, 1, error.shape[3:])(error, None)) == pytest.approx(fine)
    assert float(FiniteDifferenceCrps(1.0, 2, error.shape[3:])(error, None)) == pytest.approx((fine + coarse) / 2)


def test_finite_differences_do_not_see_a_constant_and_odd_grids_pool_their_edge() -> None:
    error = draw(2, 3, 2, 5, 7)
    term = FiniteDifferenceCrps(0.95, 3, GRID.shape)
    torch.testing.assert_close(term(error + 4.0, None), term(error, None))
    # 3 rows -> 2: the last is itself, not half of it
    column = torch.tensor([1.0, 3.0, 8.0])[None, None, None, :, None]
    assert float(FiniteDifferenceCrps(1.0, 2, column.shape[3:])(column, None)) == pytest.approx(
        0.5 * (0.5 * 3.5 + 0.5 * 6.0)
    )


def test_whitening_by_hand_keeps_the_weighted_sum_of_moduli() -> None:
    modulus = torch.zeros(MMAX, LMAX, 1, 1, dtype=torch.float64)
    modulus[0, 0], modulus[0, 1], modulus[1, 1] = 8.0, 2.0, 2.0
    factor = whitening(exponent=1.0).double()(modulus)[0, :, 0, 0]
    floor = 0.02 * (8.0 + 2.0) / LMAX
    shape = torch.tensor([1 / 8, 1 / 2] + [1 / floor] * (LMAX - 2), dtype=torch.float64)
    # moduli with weight: 8, and 2 + 2 * 2 = 6; after whitening 1 and 3
    torch.testing.assert_close(factor, shape * (14.0 / 4.0))


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), exponent=st.floats(0.1, 1.0))
def test_whitening_of_a_white_spectrum_is_one_and_the_scale_of_the_target_is_irrelevant(
    seed: int, exponent: float
) -> None:
    m, degree = np.meshgrid(np.arange(MMAX), np.arange(LMAX), indexing="ij")
    valid = torch.from_numpy(m <= degree)[:, :, None, None]
    white = whitening(exponent=exponent).double()
    torch.testing.assert_close(white(valid.double()), torch.ones(1, LMAX, 1, 1, dtype=torch.float64))
    random = draw(MMAX, LMAX, 2, 3, seed=seed).abs() * valid
    torch.testing.assert_close(white(random), white(5.0 * random))
    weights = torch.where(torch.arange(MMAX) == 0, 1.0, 2.0).double()[:, None, None, None] * random
    torch.testing.assert_close((white(random) * weights).sum(dim=(0, 1)), weights.sum(dim=(0, 1)))


def test_whitening_gives_the_target_no_gradient() -> None:
    target = draw(1, 1, 1, NY, NX).requires_grad_()
    error = draw(1, 2, 1, NY, NX, seed=1).requires_grad_()
    EnergyScore(GRID, whitening()).double()(error, target).sum().backward()
    assert target.grad is None
    assert error.grad is not None
    assert float(error.grad.abs().max()) > 0.0
