"""The spectral contraction's loops against torch's operators, in both precisions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ace_core.harmonics import blocks
from ace_core.models import sfno
from ace_core.models.noise_sfno import contract
from ace_core.models.sfno import CONTRACTION, _contract, _contract_gradients
from tests.threads import threads

CPU = torch.device("cpu")
# lmax, mmax, B, C, the first degree, degrees
CASES = [
    (45, 46, 1, 96, 0, 45),
    (20, 12, 3, 48, 0, 20),
    (7, 9, 3, 16, 0, 7),
    (30, 31, 1, 80, 8, 12),
    (72, 37, 1, 16, 56, 16),
    (6, 7, 1, 384, 0, 6),
    (8, 9, 1, 32, 4, 0),
]


def spectrum(case: tuple[int, ...]) -> Tensor:
    """Normal numbers up to the degree, zeros in the rest of the block, NaN beyond."""
    lmax, mmax, b, c, first, n = case
    out = torch.full((n, mmax, b, 2, c), float("nan"))
    for lo, hi in blocks(lmax, CPU):
        for degree in range(lo, hi):
            if first <= degree < first + n:
                orders = min(degree + 1, mmax)
                out[degree - first, : min(hi, mmax)] = 0.0
                out[degree - first, :orders] = torch.randn(orders, b, 2, c)
    return out


def difference(a: Tensor, b: Tensor) -> float:
    """Relative, root mean square; both have to be defined in the same places."""
    assert torch.equal(a.isnan(), b.isnan())
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


@pytest.fixture(autouse=True)
def _with_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    assert CONTRACTION.have(torch.zeros(16))
    # What was there before, not what happens to be right.
    monkeypatch.setattr(sfno, "gradient_of", lambda weight: torch.full_like(weight, float("nan")))
    with threads(torch.get_num_threads()):  # tests change them
        yield


@pytest.mark.parametrize("case", CASES)
def test_loops_and_operators_are_the_complex_product_and_its_gradients(
    case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lmax, mmax, _, c, first, n = case
    of = first, lmax
    rows, grad, weight = spectrum(case), spectrum(case), torch.randn(n, c, 2, c) / c**0.5

    def both(rows: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
        out = _contract(rows, weight, torch.full_like(rows, float("nan")), of)
        d_weight = sfno.gradient_of(weight)
        d_rows = _contract_gradients(rows, weight, grad.clone(), of, d_weight)
        assert d_weight is not None
        return [out, d_rows, d_weight]

    used: list[str] = []
    call = CONTRACTION.call
    monkeypatch.setattr(CONTRACTION, "call", lambda name, *a: used.append(name) or call(name, *a))
    ours = both(rows, weight, grad)
    assert used == ["contract", "contract_backward"]
    monkeypatch.setattr(CONTRACTION, "have", lambda _: False)
    for others in (both(rows, weight, grad), both(rows.double(), weight.double(), grad.double())):
        assert [difference(a, b) < 1e-6 for a, b in zip(ours, others)] == [True] * 3
    assert len(used) == 2

    x, w = rows.double().nan_to_num(), weight.double()
    y = torch.einsum(
        "lmbi,lio->lmbo", torch.complex(x[:, :, :, 0], x[:, :, :, 1]), torch.complex(w[:, :, 0], w[:, :, 1])
    )
    for degree in range(n):
        orders = min(first + degree + 1, mmax)
        assert difference(ours[0][degree, :orders], torch.stack([y.real, y.imag], dim=3)[degree, :orders]) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_the_result_may_take_the_place_of_the_rows(case: tuple[int, ...]) -> None:
    rows, weight, of = spectrum(case), torch.randn(case[5], case[3], 2, case[3]), (case[4], case[0])
    expected = _contract(rows, weight, torch.full_like(rows, float("nan")), of)
    assert _contract(rows, weight, rows, of) is rows
    assert torch.equal(rows.nan_to_num(), expected.nan_to_num())
    assert torch.equal(rows.isnan(), expected.isnan())


@pytest.mark.parametrize("case", CASES)
def test_threads_change_no_number(case: tuple[int, ...]) -> None:
    rows, grad, of = spectrum(case), spectrum(case), (case[4], case[0])
    weight = torch.randn(case[5], case[3], 2, case[3])
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        out = _contract(rows, weight, torch.empty_like(rows), of)
        d_weight = sfno.gradient_of(weight)
        d_rows = _contract_gradients(rows, weight, grad.clone(), of, d_weight)
        assert d_weight is not None
        kept = [out[~rows.isnan()], d_rows.nan_to_num(), d_weight]
        results.append(kept)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_without_the_gradient_of_the_weight_that_of_the_rows_is_the_same() -> None:
    case = CASES[0]
    rows, grad, of = spectrum(case), spectrum(case), (case[4], case[0])
    weight = torch.randn(case[5], case[3], 2, case[3])
    with_weight = _contract_gradients(rows, weight, grad.clone(), of, torch.empty_like(weight))
    alone = _contract_gradients(rows, weight, grad.clone(), of, None)
    assert torch.equal(with_weight.nan_to_num(), alone.nan_to_num())


def test_what_the_loops_do_not_take_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(CONTRACTION, "call", refuse)
    for c, dtype in ((24, torch.float32), (16, torch.float64)):
        rows, weight = torch.randn(4, 5, 1, 2, c, dtype=dtype), torch.randn(4, c, 2, c, dtype=dtype)
        _contract(rows, weight, torch.empty_like(rows), (0, 4))
    rows, of_orders = torch.randn(4, 5, 1, 2, 16), torch.randn(4, 5, 16, 2, 16)
    _contract(rows, of_orders, torch.empty_like(rows), (0, 4))
    apart = torch.randn(4, 2, 16, 16).transpose(1, 2)  # not contiguous
    _contract(rows, apart, torch.empty_like(rows), (0, 4))


# Groups of channels, as the network with noise has them.

GROUPED = [(20, 12, 3, 48, 1), (20, 12, 2, 96, 3), (9, 11, 1, 64, 4)]


def grouped(rows: Tensor, weight: Tensor, pull: Tensor, first: int, lmax: int) -> list[Tensor]:
    rows, weight = (t.detach().requires_grad_() for t in (rows, weight))
    y = contract(rows, weight, first, lmax)
    return [y.detach(), *torch.autograd.grad(y, (rows, weight), pull)]


@pytest.mark.parametrize(("first", "lmax"), [(0, None), (8, 40)])
@pytest.mark.parametrize("case", GROUPED)
def test_groups_by_loops_and_operators_are_the_same(
    case: tuple[int, ...], first: int, lmax: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, mmax, b, c, groups = case
    lmax = lmax or n
    rows, pull = (spectrum((lmax, mmax, b, c, first, n)) for _ in range(2))
    weight = torch.randn(n, groups, c // groups, 2, c // groups) / (c // groups) ** 0.5
    used: list[str] = []
    call = CONTRACTION.call
    monkeypatch.setattr(CONTRACTION, "call", lambda name, *a: used.append(name) or call(name, *a))
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(grouped(rows, weight, pull, first, lmax))
    assert used == ["contract", "contract_backward"] * 3
    exists = ~rows.isnan()
    monkeypatch.setattr(CONTRACTION, "have", lambda _: False)
    results += [
        grouped(rows, weight, pull, first, lmax),
        grouped(rows.double(), weight.double(), pull.double(), first, lmax),
    ]
    assert len(used) == 6
    (y, d_rows, d_weight), *others = results
    for other in others[:2]:
        assert torch.equal(y[exists], other[0][exists])
        assert torch.equal(d_rows[exists], other[1][exists])
        assert torch.equal(d_weight, other[2])
    for other in others[2:]:
        assert difference(y[exists], other[0][exists]) < 1e-6
        assert difference(d_rows[exists], other[1][exists]) < 1e-6
        assert difference(d_weight, other[2]) < 1e-6


def test_a_fixed_weight_has_no_gradient_and_other_widths_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = spectrum((4, 4, 1, 32, 0, 4)).requires_grad_()
    (alone,) = torch.autograd.grad(contract(rows, torch.ones(4, 2, 16, 2, 16)).sum(), rows)
    fixed = torch.ones(4, 2, 16, 2, 16, requires_grad=True)
    both = torch.autograd.grad(contract(rows, fixed).sum(), (rows, fixed))
    assert torch.equal(alone[~rows.isnan()], both[0][~rows.isnan()])

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(CONTRACTION, "call", refuse)
    for shape in ((4, 4, 8, 2, 8), (4, 2, 16, 2, 4), (4, 1, 32, 2, 16)):
        contract(rows, torch.ones(shape))
    contract(rows.double(), torch.ones(4, 2, 16, 2, 16, dtype=torch.float64))
