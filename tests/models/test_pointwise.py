"""Products, perceptrons and norms as loops in C++: their numbers beside float64 and beside torch's operators."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from ace_core.models import blocks
from ace_core.models.blocks import (
    LOOPS,
    MLP,
    Activation,
    FromPlanes,
    InstanceNorm,
    Pointwise,
    activated_norm_mlp,
    add_linear,
    add_product,
    linear,
    product,
    statistics,
    weight_gradients,
)
from tests.threads import threads

# Rows, numbers per row, of the result: plain, seven for eight, and that twice; an odd number of rows, half panels, few rows in the last chunk.
SHAPES = [(64, 16, 16), (97, 48, 80), (413, 256, 256), (281, 384, 768), (143, 768, 288), (4050, 320, 352)]
SHAPES += [(4050, 384, 768), (1027, 768, 384), (1345, 384, 448)]


def off(ours: Tensor, exact: Tensor) -> float:
    """Root mean square difference over root mean square."""
    return float((ours.detach().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
def test_products_and_their_gradients(rows: int, k: int, n: int) -> None:
    assert LOOPS.have(torch.zeros(1, 16)), "these tests are of the loops"
    x, w, b, g = torch.randn(rows, k), torch.randn(n, k), torch.randn(n), torch.randn(rows, n)
    exact = x.double() @ w.double().t()
    assert off(product(x, w), exact) < 2e-6
    assert off(product(x, w.t().contiguous().t()), exact) < 2e-6, "a transposed view"
    assert off(product(x, w, b), exact + b.double()) < 2e-6
    total = g.clone()[None]
    add_product(total, x[None], w, b)
    assert off(total[0], g.double() + exact + b.double()) < 2e-6
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    field = torch.zeros(rows, n, requires_grad=True)
    of_sum = torch.autograd.grad(add_linear(field.clone(), *leaves), (field, *leaves), g)
    assert torch.equal(of_sum[0], g)
    d = torch.autograd.grad(linear(*leaves), leaves, g)
    assert all(torch.equal(a, b) for a, b in zip(of_sum[1:], d, strict=True))
    (of_weight,) = torch.autograd.grad(add_linear(field.clone(), leaves[0], leaves[1], None), leaves[1], g)
    assert torch.equal(of_weight, d[1])
    assert off(add_linear(g.clone(), x, w, b), g.double() + exact + b.double()) < 2e-6
    assert off(d[0], g.double() @ w.double()) < 2e-6
    assert off(d[1], g.double().t() @ x.double()) < 2e-6
    assert off(d[2], g.double().sum(dim=0)) < 1e-6
    with threads(2):
        again = torch.autograd.grad(linear(*leaves), leaves, g)
        assert torch.equal(product(x, w, b), linear(*leaves))
    assert all(torch.equal(*pair) for pair in zip(d, again)), "numbers depend on the number of threads"


def test_no_rows() -> None:
    d_weight, d_bias = weight_gradients(torch.empty(0, 256), torch.empty(0, 256))
    assert d_weight.count_nonzero() == d_bias.count_nonzero() == 0


def test_what_loops_do_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOOPS, "call", lambda *a: pytest.fail("called"))
    for x, w in (
        (torch.randn(100, 17), torch.randn(32, 17)),  # no multiple of the lanes
        (torch.randn(100, 32), torch.randn(17, 32)),
        (torch.randn(100, 32), torch.randn(48, 64)[:, ::2]),  # neither rows nor columns beside each other
        (torch.randn(8, 32), torch.randn(48, 32)),  # few rows
        (torch.randn(100, 32).double(), torch.randn(48, 32).double()),
    ):
        torch.testing.assert_close(product(x, w), nn.functional.linear(x, w))


SIZES = [
    (1, 9, 20, 64, 128),
    (3, 7, 11, 48, 96),
    (2, 33, 37, 256, 512),
    (1, 3, 3, 16, 32),
    (1, 20, 20, 384, 768),
    (1, 37, 31, 384, 768),
]
SIZES += [(1, 1, 335, 16, 32), (2, 1, 223, 16, 32)]  # a row less than whole chunks


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("act", ["gelu", "relu", "silu"])
def test_perceptron(size: tuple[int, ...], act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    b, ny, nx, c, hidden = size
    norm, mlp = InstanceNorm(c), MLP(c, hidden / c, act)
    nn.init.normal_(norm.weight, 1.0, 0.2)
    nn.init.normal_(norm.bias)
    for p in mlp.parameters():
        nn.init.normal_(p, std=0.05)
    x, residual, g = (torch.randn(b, ny, nx, c) for _ in range(3))

    def of(norm: InstanceNorm, mlp: MLP, recompute: bool, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, residual)]
        y = activated_norm_mlp(*leaves, norm, mlp, recompute=recompute)
        return [y, *torch.autograd.grad(y, [*leaves, *norm.parameters(), *mlp.parameters()], g.to(dtype))]

    exact = of(copy.deepcopy(norm).double(), copy.deepcopy(mlp).double(), False, torch.float64)
    called: list[str] = []
    call = LOOPS.call
    monkeypatch.setattr(LOOPS, "call", lambda name, *a: called.append(name) or call(name, *a))
    found = of(norm, mlp, False, torch.float32)
    assert called == ["moments", "perceptron", "perceptron_backward", "norm_gradient"]
    # A kink turns rounding into a whole slope.
    bound = 1e-2 if act == "relu" else 3e-6
    value = 1.5e-6 if ny * nx >= 1024 and c >= 384 else 1e-6  # where seven products do for eight twice
    assert off(found[0], exact[0]) < value
    assert all(off(a, e) < bound for a, e in zip(found[1:], exact[1:]))
    for a, e in zip(of(norm, mlp, True, torch.float32), found):
        assert off(a, e.double()) < bound, "the hidden layer computed again"
    with threads(2):
        assert all(torch.equal(*pair) for pair in zip(of(norm, mlp, False, torch.float32), found))
    with torch.no_grad():
        plain = activated_norm_mlp(x.clone(), residual.clone(), norm, mlp, recompute=False)
    assert off(plain, exact[0]) < value
    monkeypatch.setattr(LOOPS, "have", lambda _: False)
    for a, e in zip(of(norm, mlp, False, torch.float32), found):
        assert off(a, e.double()) < bound, "torch's operators"


@pytest.mark.parametrize("act", ["gelu", "relu", "silu"])
def test_activations(act: str) -> None:
    x = torch.cat([torch.linspace(-20, 20, 160_001), torch.linspace(-1e-3, 1e-3, 4_095)])[: 16 * 10_000].view(1, -1, 16)
    y = torch.empty_like(x)
    blocks.moments_of(x, act, out=y)
    exact = blocks.ACTIVATIONS[act](x.double())
    assert float(((y.double() - exact).abs() / x.double().abs().clamp_min(1.0)).max()) < 2e-7
    special = torch.tensor([0.0, torch.inf, torch.nan, 1e30, -1e30, 1e-30, 5.6, -5.6]).repeat(2).view(1, 1, 16)
    found = torch.empty_like(special)
    blocks.moments_of(special, act, out=found)
    expected = blocks.ACTIVATIONS[act](special.double()).float()
    # Tails of less than a rounding of one are none.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("points", [1, 63, 700, 5000])
def test_statistics_beside_a_large_mean(points: int) -> None:
    x = torch.randn(3, points, 32) * 0.01 + 1000.0
    x[:, 0] += 5.0  # an unusual first point takes no digits of the others
    mean, inverse = statistics(x, 1e-6)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(dim=1, keepdim=True), rtol=2e-7, atol=0.0)
    variance = exact.var(dim=1, keepdim=True, correction=0)
    torch.testing.assert_close(inverse.double(), (variance + 1e-6).rsqrt(), rtol=2e-4, atol=0.0)


def test_norm_gradients_of_a_field_that_is_shared() -> None:
    norm = InstanceNorm(32)
    nn.init.normal_(norm.weight)
    x, g = torch.randn(2, 9, 14, 32), torch.randn(2, 9, 14, 32)
    kept = g.clone()
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    d = torch.autograd.grad(norm(leaf), [leaf, *norm.parameters()], g)
    other = copy.deepcopy(norm).double()
    expected = torch.autograd.grad(other(exact), [exact, *other.parameters()], g.double())
    assert all(off(a, e) < 1e-6 for a, e in zip(d, expected))
    assert torch.equal(g, kept), "the gradient that came was written to"


def test_a_field_that_is_not_finite_has_no_variance() -> None:
    x = torch.randn(1, 700, 16)
    x[0, 333, 3] = torch.inf
    _, inverse = statistics(x, 1e-6)
    assert inverse.isnan().flatten().tolist() == [i == 3 for i in range(16)]


def test_what_follows_operators_sees_all_of_them() -> None:
    layers = nn.Sequential(Pointwise(32, 48), Activation("gelu"), Pointwise(48, 32)).requires_grad_(False)
    x, other = torch.randn(100, 32), torch.randn(100, 32)
    with FlopCounterMode(display=False) as count:
        layers(x)
    assert count.get_total_flops() == 2 * 2 * 100 * 32 * 48
    torch.testing.assert_close(make_fx(layers)(x)(other), layers(other))
    # Weights without numbers beside a field that has some.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    empty = FromPlanes(7, 32)
    empty.weight, empty.bias = (nn.Parameter(mode.from_tensor(t.detach())) for t in (empty.weight, empty.bias))
    with mode:
        assert empty(torch.randn(1, 7, 9, 14)).shape == (1, 9, 14, 32)


@pytest.mark.parametrize("layer", [Pointwise(32, 32), Activation("gelu"), InstanceNorm(32)])
def test_no_gradient_of_a_gradient(layer: nn.Module) -> None:
    x = torch.randn(1, 9, 14, 32, requires_grad=True)
    (d,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d.square().sum().backward()


@pytest.mark.parametrize("act", [None, "gelu", "relu", "silu"])
@pytest.mark.parametrize("size", [(1, 4050, 384, 256), (2, 113, 48, 32), (3, 7, 16, 96)])
def test_a_product_between_two_norms(size: tuple[int, ...], act: str | None) -> None:
    """As float64 has it; what is added may be the same for all samples, or what the result is written over."""
    torch.manual_seed(5)
    b, p, k, n = size
    x, w, bias, scale, shift = (torch.randn(s) for s in ((b, p, k), (n, k), (n,), (b, 1, k), (b, 1, k)))
    x += 20.0  # the mean is much more than the deviation
    norm = InstanceNorm(n)
    nn.init.normal_(norm.weight, 1.0, 0.2)
    nn.init.normal_(norm.bias)
    function = blocks.ACTIVATIONS[act] if act else lambda y: y
    for added in (torch.randn(p, n), torch.randn(b, p, n)):
        out = added.clone() if added.ndim == 3 else torch.empty(b, p, n)
        following = blocks.Following(norm, b)
        with torch.no_grad():
            source = out if added.ndim == 3 else added
            blocks.multiply_into(out, x, w, bias, added=source, normed=(scale, shift), act=act, following=following)
        exact = function(added.double() + (x.double() * scale + shift) @ w.double().t() + bias)
        assert off(out, exact) < 2e-6
        variance, mean = torch.var_mean(out.double(), dim=1, keepdim=True, correction=0)
        slope = norm.weight.double() / (variance + norm.eps).sqrt()
        assert off(following.normed[0], slope) < 1e-6
        assert off(following.normed[1], norm.bias - mean * slope) < 1e-6
        again = added.clone() if added.ndim == 3 else torch.empty(b, p, n)
        with torch.no_grad(), threads(2):
            source = again if added.ndim == 3 else added
            blocks.multiply_into(again, x, w, bias, added=source, normed=(scale, shift), act=act)
        assert torch.equal(again, out), "numbers depend on the number of threads, or on whether a norm follows"


def test_moments_of_large_means() -> None:
    """Of 1e4 with a deviation of one: the squares' digits are not those of the mean."""
    torch.manual_seed(5)
    x, out = torch.randn(1, 4050, 16) + 1e4, torch.empty(1, 4050, 32)
    w = torch.cat([torch.eye(16), -torch.eye(16)])
    following = blocks.Following(InstanceNorm(32), 1)
    with torch.no_grad():
        blocks.multiply_into(out, x, w, None, following=following)
    assert torch.equal(out, torch.cat([x, -x], dim=2))
    variance, mean = torch.var_mean(out.double(), dim=1, correction=0)
    assert off(following.normed[0][0], (variance + 1e-6).rsqrt()) < 1e-6
    assert off(following.normed[1][0], -mean * (variance + 1e-6).rsqrt()) < 1e-6


def test_planes_and_their_activation() -> None:
    torch.manual_seed(5)
    x, w, added = torch.randn(2, 5, 9, 13), torch.randn(32, 5), torch.randn(2, 9, 13, 32)
    exact = torch.einsum("bkyx,nk->byxn", x.double(), w.double()) + added.double()
    out = torch.empty_like(added)
    blocks.from_planes_into(out, x, w, added=added, act="gelu")
    assert off(out, nn.functional.gelu(exact)) < 1e-6
    blocks.from_planes_into(added, x, w, torch.ones(32), added=added)
    assert off(added, exact + 1.0) < 1e-6


def test_the_residual_of_a_perceptron_is_scaled_as_it_is_read() -> None:
    torch.manual_seed(5)
    x, h, scale, shift = (torch.randn(s) for s in ((2, 131, 32), (2, 131, 32), (2, 1, 32), (2, 1, 32)))
    mlp, norm = MLP(32, 2.0, "silu"), InstanceNorm(32)
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, std=0.2)
    following = blocks.Following(norm, 2)
    with torch.no_grad():
        exact = copy.deepcopy(mlp).double()(x.double() * scale + shift) + h.double() * shift + scale
        blocks.perceptron_into(x, x, (scale, shift), h, (shift, scale), mlp, following)
    assert off(x, exact) < 1e-6
    variance, mean = torch.var_mean(exact, dim=1, keepdim=True, correction=0)
    assert off(following.normed[0], (variance + norm.eps).rsqrt()) < 1e-6
    assert off(following.normed[1], -mean * (variance + norm.eps).rsqrt()) < 1e-6


def test_a_residual_that_nobody_wants_is_overwritten_in_a_graph() -> None:
    torch.manual_seed(5)
    mlp, norm, x, field = MLP(32, 2.0, "gelu"), InstanceNorm(32), torch.randn(1, 6, 7, 32), torch.randn(1, 6, 7, 32)
    results = []
    for spare in (False, True):
        leaf = field.clone().requires_grad_()
        residual = leaf * 1.0
        y = activated_norm_mlp(x, residual, norm, mlp, recompute=False, spare=spare)
        assert (y.data_ptr() == residual.data_ptr()) is spare
        results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *mlp.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results))
