"""SFNO-v0.1.0 against its written definition."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.harmonics import legendre_functions, quadrature
from ace_core.models.sfno_v0 import SFNOv0, SFNOv0Builder, SFNOv0Config


def network(**changes: object) -> SFNOv0:
    torch.manual_seed(0)
    options = {"embed_dim": 6, "num_layers": 2, "scale_factor": 1} | changes
    return SFNOv0(3, 4, (8, 16), **options)  # type: ignore[arg-type]


def normed(x: torch.Tensor) -> torch.Tensor:
    return functional.instance_norm(x.permute(0, 3, 1, 2), eps=1e-6).permute(0, 2, 3, 1)


def test_a_block_and_the_network_are_their_formulas() -> None:
    net = network(num_layers=1, repeat_layers=2)
    block = net.blocks[0]
    x = torch.randn(2, 3, 8, 16)
    h = net.encoder(x) + net.pos_embed
    for _ in range(2):
        filtered, _ = block.filter(h)
        h = normed(block.mlp(functional.gelu(normed(filtered)))) + h @ block.outer_skip.weight.t()
    expected = net.decoder(h) + torch.einsum("oi,biyx->boyx", net.residual_transform.weight, x)  # type: ignore[union-attr]
    torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


def test_the_frequency_embedding_is_a_sum_of_harmonics() -> None:
    net = network(pos_embed="frequency")
    real, imaginary = net.pos_embed  # type: ignore[misc]
    with torch.no_grad():
        real.zero_()
        imaginary.zero_()
        real[2, 5, 0] = 1.0  # order 2, degree 5
        imaginary[0, 3, 1] = 1.0  # order 1, degree 3
    mu, lon = quadrature(8, "legendre-gauss")[0], np.arange(16) * 2 * np.pi / 16
    p = legendre_functions(8, 9, mu)
    expected = np.zeros((8, 16, 6))
    expected[..., 0] = 2 * p[2, 5][:, None] * np.cos(2 * lon)
    expected[..., 1] = -2 * p[1, 3][:, None] * np.sin(lon)
    torch.testing.assert_close(net._position(), torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-5)


def test_without_position_the_network_commutes_with_rotation() -> None:
    net = network(pos_embed="none")
    x = torch.randn(1, 3, 8, 16)
    torch.testing.assert_close(net(x.roll(3, dims=3)), net(x).roll(3, dims=3), atol=1e-5, rtol=1e-5)


def test_members_of_a_batch_do_not_see_each_other() -> None:
    net = network()
    x = torch.randn(3, 3, 8, 16)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [0, 1, 2, 3])
def test_every_parameter_gets_the_same_gradient_however_much_is_recomputed(checkpointing: int) -> None:
    x = torch.randn(2, 3, 8, 16)
    grads = []
    for level in (0, checkpointing):
        net = network(pos_embed="frequency", checkpointing=level, scale_factor=2)
        net(x).square().sum().backward()
        assert [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("checkpointing", [1, 2, 3])
def test_recomputing_keeps_less(checkpointing: int) -> None:
    def kept(level: int) -> int:
        total = 0

        def count(t: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            network(checkpointing=level)(torch.randn(1, 3, 8, 16))
        return total

    assert kept(checkpointing) < kept(checkpointing - 1)


def test_options_act() -> None:
    def size(**changes: object) -> int:
        return sum(p.numel() for p in network(**changes).parameters())

    plain = size()
    assert plain - size(big_skip=False) == 3 * 4
    assert plain - size(use_mlp=False) == 2 * (6 * 12 + 12 + 12 * 6 + 6)
    assert plain - size(pos_embed="none") == 8 * 16 * 6
    assert plain - size(pos_embed="frequency") == (8 * 16 - 8 * (9 + 8)) * 6
    assert size(encoder_layers=2) - plain == 2 * (6 * 6 + 6)
    assert plain - size(normalization_layer="none") == 2 * 2 * 2 * 6
    assert plain - size(hard_thresholding_fraction=0.5) == 2 * 4 * 6 * 2 * 6
    assert size(operator_type="diagonal") - plain == 2 * 8 * (9 - 1) * 6 * 2 * 6
    x = torch.randn(1, 3, 8, 16)
    outputs = [network(**o)(x).detach() for o in ({}, {"repeat_layers": 2}, {"activation_function": "relu"})]
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-2
    assert float((outputs[0] - outputs[2]).abs().max()) > 1e-2


def test_the_start_keeps_the_variance() -> None:
    net = network(embed_dim=64)
    weight = net.blocks[0].filter.weight.detach()  # [L, C_in, R, C_out]
    square = weight.square().sum(dim=2).mean(dim=(1, 2))
    assert square[0] == pytest.approx(4 / 64, rel=0.1)
    assert float(square[1:].mean()) == pytest.approx(2 / 64, rel=0.05)
    assert float(net.blocks[0].mlp.up.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert float(net.decoder[0].weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert float(net.decoder[2].weight.detach().std()) == pytest.approx((0.5 / 64) ** 0.5, rel=0.15)


def build(grid: LatLonGrid, n_labels: int = 0, **config: Any) -> torch.nn.Module:
    builder = SFNOv0Builder(type="SFNO-v0.1.0", config=SFNOv0Config(**{"embed_dim": 4, "num_layers": 2} | config))
    return builder.build(3, 2, grid, n_labels)


def test_a_grid_that_does_not_fit_is_refused_with_the_fix() -> None:
    gaussian = LatLonGrid.gaussian(16, 32)
    even = LatLonGrid(np.linspace(-87.5, 87.5, 36), np.arange(0, 360, 5.0))
    with pytest.raises(ConfigError, match="set data_grid: equiangular"):
        build(even)
    with pytest.raises(ConfigError, match="set scale_factor: 8") as caught:
        build(gaussian)
    assert "expected: at most 8 on this grid" in str(caught.value)
    assert build(gaussian, scale_factor=8)(torch.randn(1, 3, 16, 32)).shape == (1, 2, 16, 32)
    with pytest.raises(ConfigError, match="no scale_factor fits"):
        build(gaussian, hard_thresholding_fraction=0.1)
    with pytest.raises(ConfigError, match=r"SFNO-v0\.1\.0 takes no labels"):
        build(gaussian, n_labels=1, scale_factor=1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"factorization": "cp"}, "real weights.*use ComplexCP"),
        ({"factorization": "ComplexTucker"}, "fme cannot build 'tucker' either"),
        ({"factorization": "ComplexDens"}, "did you mean 'dense'"),
        ({"separable": True}, "not implemented, in fme neither: remove the key"),
        ({"normalization_layer": "layer_norm"}, "use instance_norm"),
        ({"data_grid": "healpix"}, "needs rows of latitude"),
        ({"filter_type": "non-linear"}, "filter_type"),
    ],
)
def test_keys_it_cannot_follow_are_refused_with_the_reason(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SFNOv0Config(**config)


def test_keys_dead_in_fme_are_accepted_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ace"):
        assert (
            SFNOv0Config.model_validate({"rank": 1.0, "spectral_layers": 3, "complex_activation": "real"})
            == SFNOv0Config()
        )
        SFNOv0Config(rank=0.5)
        SFNOv0Config(rank=0.5, factorization="ComplexCP")
    assert [r.getMessage() for r in caplog.records] == [
        "builder.config: without effect, as in fme: complex_activation, spectral_layers",
        "builder.config: rank without effect, as in fme, where factorization is null",
    ]
