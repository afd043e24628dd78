"""The SFNO against its written definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.harmonics import legendre_functions, quadrature
from ace_core.models.blocks import LOOPS, InstanceNorm
from ace_core.models.builders import SFNOBuilder
from ace_core.models.sfno import SphericalFourierNeuralOperatorNet


def network(**changes: object) -> SphericalFourierNeuralOperatorNet:
    torch.manual_seed(0)
    options = {"embed_dim": 6, "num_layers": 2, "operator_type": "dhconv"} | changes
    return SphericalFourierNeuralOperatorNet(3, 4, (8, 16), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("operator_type", ["dhconv", "diagonal"])
def test_a_block_is_its_formula_with_complex_arithmetic(operator_type: str) -> None:
    net = network(operator_type=operator_type)
    block = net.blocks[0]
    h = torch.randn(2, 8, 16, 6)
    n0 = functional.instance_norm(h.permute(0, 3, 1, 2), eps=1e-6).permute(0, 2, 3, 1)
    c = torch.view_as_complex(block.filter.sht(n0).transpose(3, 4).contiguous())  # [M, L, B, C]
    w = torch.view_as_complex(block.filter.weight.transpose(-1, -2).contiguous())  # [L(, M), in, out]
    y = torch.einsum("mlbi,lio->mlbo", c, w) if operator_type == "dhconv" else torch.einsum("mlbi,lmio->mlbo", c, w)
    spectral = block.filter.isht(torch.view_as_real(y).transpose(3, 4)) + block.filter.bias
    a = functional.gelu(spectral + block.inner_skip(n0))
    n1 = functional.instance_norm(a.permute(0, 3, 1, 2), eps=1e-6).permute(0, 2, 3, 1)
    expected = block.mlp(n1) + n0
    torch.testing.assert_close(block(h), expected, atol=1e-5, rtol=1e-5)


def test_instance_norm_and_its_gradient_are_torchs() -> None:
    norm = InstanceNorm(5).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(2, 4, 6, 5, dtype=torch.float64) * 3 + 7).requires_grad_()
    y = norm(x)
    reference = functional.instance_norm(x.permute(0, 3, 1, 2), weight=norm.weight, bias=norm.bias, eps=norm.eps)
    torch.testing.assert_close(y, reference.permute(0, 2, 3, 1))
    pull = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, norm.weight, norm.bias), pull)
    theirs = torch.autograd.grad(reference, (x, norm.weight, norm.bias), pull.permute(0, 3, 1, 2))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


def test_without_position_the_network_commutes_with_rotation() -> None:
    net = network(pos_embed=False)
    x = torch.randn(1, 3, 8, 16)
    torch.testing.assert_close(net(x.roll(3, dims=3)), net(x).roll(3, dims=3), atol=1e-5, rtol=1e-5)


def test_members_of_a_batch_do_not_see_each_other() -> None:
    net = network()
    x = torch.randn(3, 3, 8, 16)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-6, rtol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    net = network()
    net(torch.randn(2, 3, 8, 16)).square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dead == []


def test_options_act() -> None:
    sizes = {
        "plain": network(),
        "no skip": network(big_skip=False),
        "no mlp": network(use_mlp=False),
        "no position": network(pos_embed=False),
        "deep encoder": network(encoder_layers=2),
        "no norm": network(normalization_layer="none"),
        "half": network(hard_thresholding_fraction=0.5),
    }
    n = {k: sum(p.numel() for p in v.parameters()) for k, v in sizes.items()}
    assert n["plain"] - n["no skip"] == 3 * 6
    assert n["plain"] - n["no mlp"] == 2 * (6 * 12 + 12 + 12 * 6 + 6)
    assert n["plain"] - n["no position"] == 8 * 16 * 6
    assert n["deep encoder"] - n["plain"] == 2 * (6 * 6 + 6)
    assert n["plain"] - n["no norm"] == 2 * 2 * 2 * 6
    assert n["plain"] - n["half"] == 2 * 4 * 6 * 2 * 6


def test_scaled_inner_grid_evaluates_the_same_harmonics_on_fewer_points() -> None:
    net = network(scale_factor=2)
    first, last = net.blocks[0].filter, net.blocks[1].filter
    assert (first.sht.shape, first.isht.shape, last.isht.shape) == ((8, 16), (4, 8), (8, 16))
    coarse, fine = (quadrature(n, "legendre-gauss")[0] for n in (4, 8))

    def harmonic(mu: np.ndarray, nx: int) -> torch.Tensor:
        """P_32 cos(2 lambda) on a grid of nx longitudes."""
        p = legendre_functions(4, 3, mu)[2, 3]
        wave = np.cos(2 * 2 * np.pi * np.arange(nx) / nx)
        return torch.from_numpy(p[:, None] * wave).float()[None, :, :, None].expand(1, -1, -1, 6)

    _, residual = first(harmonic(fine, 16))
    torch.testing.assert_close(residual, harmonic(coarse, 8), atol=1e-5, rtol=0)
    assert net(torch.randn(1, 3, 8, 16)).shape == (1, 4, 8, 16)


def test_a_grid_it_cannot_transform_is_refused_with_the_fix() -> None:
    builder = SFNOBuilder(type="SphericalFourierNeuralOperatorNet")
    even = LatLonGrid(torch.linspace(-87.5, 87.5, 36).double().numpy(), torch.arange(0, 360, 5.0).double().numpy())
    with pytest.raises(ConfigError, match="data_grid") as caught:
        builder.build(3, 3, even)
    assert "set data_grid: equiangular" in str(caught.value)


@pytest.mark.parametrize("channels", [6, 32])  # by operators, by loops
@pytest.mark.parametrize("level", [1, 2, 3])
def test_checkpointing_changes_no_gradient(level: int, channels: int) -> None:
    x = torch.randn(2, 3, 8, 16)
    gradients = []
    for checkpointing in (0, level):
        net = network(checkpointing=checkpointing, embed_dim=channels)
        net(x).square().sum().backward()
        gradients.append({n: p.grad for n, p in net.named_parameters()})
    assert float(gradients[1]["encoder.0.weight"].abs().sum()) > 0  # the input needs no gradient, the encoder does
    for name, g in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], g, msg=name)


def test_layer_norm_is_torchs_over_the_grid() -> None:
    net = network(normalization_layer="layer_norm")
    norm = net.blocks[0].norm0
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    h = torch.randn(2, 8, 16, 6)
    expected = functional.layer_norm(h.permute(0, 3, 1, 2), (8, 16), norm.weight, norm.bias, 1e-6).permute(0, 2, 3, 1)
    torch.testing.assert_close(norm(h), expected, atol=1e-5, rtol=1e-5)
    assert net(torch.randn(1, 3, 8, 16)).shape == (1, 4, 8, 16)


@pytest.mark.parametrize("operator_type", ["dhconv", "diagonal"])
def test_separable_multiplies_each_channel_by_its_own_weight(operator_type: str) -> None:
    conv = network(operator_type=operator_type, separable=True).blocks[0].filter
    c = torch.view_as_complex(conv.sht(torch.randn(2, 8, 16, 6)).transpose(3, 4).contiguous())  # [M, L, B, C]
    w = torch.view_as_complex(conv.weight.transpose(-1, -2).contiguous())  # [L(, M), C]
    y = torch.einsum("mlbc,lc->mlbc", c, w) if operator_type == "dhconv" else torch.einsum("mlbc,lmc->mlbc", c, w)
    x = conv.isht(torch.view_as_real(c).transpose(3, 4))
    expected = conv.isht(torch.view_as_real(y).transpose(3, 4))
    torch.testing.assert_close(conv(x)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("operator_type", ["dhconv", "diagonal"])
def test_handwritten_gradients_of_a_block_are_finite_differences(act: str, operator_type: str) -> None:
    block = network(activation_function=act, operator_type=operator_type).blocks[0].double()
    h = torch.randn(2, 8, 16, 6, dtype=torch.float64, requires_grad=True)
    names, values = zip(*block.named_parameters())
    for value in values:
        torch.nn.init.normal_(value, std=0.4)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters)), (x,))

    torch.autograd.gradcheck(run, (h, *values), fast_mode=True, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        recorded = run(h, *values)
    torch.testing.assert_close(recorded, run(h, *values))


def test_coefficients_that_no_block_has_are_never_read() -> None:
    """They are not set either: with what is not set filled with NaN, output and gradients are what they were."""
    x = torch.randn(2, 3, 80, 16)
    results = []
    for fill in (False, True):
        torch.manual_seed(0)
        net = SphericalFourierNeuralOperatorNet(3, 4, (80, 16), embed_dim=6, num_layers=2, operator_type="dhconv")
        torch.use_deterministic_algorithms(fill)  # fills
        try:
            y = net(x)
            y.square().sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        results.append([y, *(p.grad for p in net.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_compiles_as_one_graph_forward_and_backward() -> None:
    torch.manual_seed(0)
    net = SphericalFourierNeuralOperatorNet(3, 4, (8, 16), embed_dim=8, num_layers=2, operator_type="dhconv")
    x = torch.randn(2, 3, 8, 16)
    results = []
    # Without the code generator, which takes a minute: what matters is that everything can be traced.
    for function in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        y = function(x)
        y.square().sum().backward()
        results.append((y.detach(), [p.grad for p in net.parameters() if p.grad is not None]))
    (y, gradients), (compiled_y, compiled_gradients) = results
    assert len(gradients) == len(compiled_gradients) == len(list(net.parameters()))
    torch.testing.assert_close(compiled_y, y, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(compiled_gradients, gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "loops"),
    [
        ({}, True),
        ({"encoder_layers": 2, "activation_function": "silu"}, True),
        ({"big_skip": False, "pos_embed": False}, True),
        ({"hard_thresholding_fraction": 0.5, "num_layers": 1}, True),
        ({"scale_factor": 2, "num_layers": 3}, False),  # the first and the last block change grids
        ({"operator_type": "diagonal"}, False),
    ],
)
@pytest.mark.parametrize("samples", [1, 2])
def test_outside_a_graph_the_numbers_are_those_within(
    changes: dict[str, object], loops: bool, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 32, "num_layers": 2, "operator_type": "dhconv"} | changes
    net = SphericalFourierNeuralOperatorNet(3, 4, (12, 20), **options)  # type: ignore[arg-type]
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(samples, 3, 12, 20)
    called = []
    call = net._by_loops
    monkeypatch.setattr(net, "_by_loops", lambda *a: called.append(1) or call(*a))
    within = net(x).detach()
    with torch.no_grad():
        outside = net(x)
    assert called == [1] * loops
    torch.testing.assert_close(outside, within, atol=3e-6, rtol=1e-5)
    block, h = net.blocks[0], torch.randn(samples, 12, 20, 32)
    kept, expected = h.clone(), block(h).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(h), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(h, kept), "the block has changed what it was given"
    monkeypatch.setattr(LOOPS, "run", lambda _: False)
    with torch.no_grad():
        torch.testing.assert_close(net(x), within, atol=3e-6, rtol=1e-5)


def test_hooks_of_blocks_are_called_outside_a_graph_too() -> None:
    torch.manual_seed(0)
    net = SphericalFourierNeuralOperatorNet(3, 4, (12, 20), embed_dim=32, num_layers=2, operator_type="dhconv")
    x, heard = torch.randn(1, 3, 12, 20), []
    with torch.no_grad():
        expected = net(x)
        hook = net.blocks[1].register_forward_hook(lambda _, inputs, output: heard.append(output))
        torch.testing.assert_close(net(x), expected, atol=3e-6, rtol=1e-5)
        assert [h.shape for h in heard] == [(1, 12, 20, 32)]
        hook.remove()
        called: list[str] = []
        names = {part: name for name, part in net.named_modules()}
        everywhere = register_module_forward_hook(lambda part, inputs, output: called.append(names[part]))
        try:
            torch.testing.assert_close(net(x), expected, atol=3e-6, rtol=1e-5)
        finally:
            everywhere.remove()
    assert {"encoder", "blocks.0", "blocks.1", "decoder"} <= set(called)
