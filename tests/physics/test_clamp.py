"""Clamps that keep the gradient: exact forward at any value, identity backward."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ace_core.physics.clamp import clamp, clamp_keep_gradient, clamp_min_keep_gradient, replace_keep_gradient

INF, NAN = float("inf"), float("nan")
EDGES = torch.tensor([-INF, -3.4e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 0.5, 1.0, 1.0000001, 3.4e38, INF, NAN])


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_forward_is_the_hard_clamp_bit_for_bit(values: list[float]) -> None:
    x = torch.tensor([*values, *EDGES.tolist()])
    assert torch.equal(bits(clamp_min_keep_gradient(x, 0.0)), bits(x.clamp(min=0.0)))
    assert torch.equal(bits(clamp_keep_gradient(x, 0.0, 1.0)), bits(x.clamp(0.0, 1.0)))


def test_the_usual_estimator_is_not_exact_at_infinities() -> None:
    x = torch.tensor([-INF, INF])
    assert (x + (x.clamp(0.0, 1.0) - x)).isnan().all()
    assert clamp_keep_gradient(x, 0.0, 1.0).tolist() == [0.0, 1.0]


def test_gradient_is_the_identity_everywhere() -> None:
    x = EDGES.clone().requires_grad_()
    weight = torch.arange(1.0, len(EDGES) + 1)
    for out in (clamp_min_keep_gradient(x, 0.0), clamp_keep_gradient(x, 0.0, 1.0)):
        (gradient,) = torch.autograd.grad(out, x, weight)
        assert torch.equal(gradient, weight)


def test_hard_clamp_has_no_gradient_outside() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(clamp(x, 0.0, 1.0).sum(), x)
    assert gradient.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_bounds_broadcast() -> None:
    x = torch.tensor([[-1.0, 5.0], [2.0, -7.0]], requires_grad=True)
    out = clamp_keep_gradient(x, torch.tensor([0.0, -INF]), torch.tensor([1.0, INF]))
    assert out.tolist() == [[0.0, 5.0], [1.0, -7.0]]


def test_replacing_value_gets_no_gradient_and_second_order_is_zero() -> None:
    x, y = torch.tensor([1.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    out = replace_keep_gradient(x, y * y)
    assert out.item() == 25.0
    gx, gy = torch.autograd.grad(out * out, (x, y), create_graph=True, allow_unused=True)
    assert gx.item() == 50.0
    assert gy is None
    # The slope 2 out depends on x through the identity.
    assert torch.autograd.grad(gx, x)[0].item() == 2.0
