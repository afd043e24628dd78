"""Local networks: their blocks by formula, their options, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.models.context import Context, NoiseKey
from ace_core.models.local_net import AnkurLocalNet, AnkurLocalNetBuilder, LocalNet, LocalNetBuilder

SHAPE = (10, 20)
EVEN = LatLonGrid(np.linspace(-85.5, 85.5, 10), np.arange(0, 360, 18.0))


def network(n_labels: int = 0, **changes: object) -> LocalNet:
    torch.manual_seed(0)
    options = {"embed_dim": 6, "noise_embed_dim": 2, "block_types": ("disco", "conv1x1")} | changes
    net = LocalNet(3, 4, SHAPE, n_labels=n_labels, **options)  # type: ignore[arg-type]
    for p in net.parameters():  # norms and corrections are the identity at first
        nn.init.normal_(p, std=0.3)
    return net


def key(*rows: int) -> Context:
    return Context(noise=NoiseKey(rows, 0))


def norm(x: Tensor, n: nn.Module, maps: Tensor) -> Tensor:
    z = functional.layer_norm(x, (x.shape[-1],), n.weight, n.bias, 1e-5)
    return z * (1 + maps @ n.noise[0].T) + maps @ n.noise[1].T


def test_blocks_are_their_formulas() -> None:
    net = network()
    h, noise = torch.randn(2, *SHAPE, 6), torch.randn(2, *SHAPE, 2)
    for block, act in zip(net.blocks, (lambda a: a, functional.gelu)):
        n0 = norm(h, block.norm0, noise)
        a = act(block.filter(n0) + block.inner_skip(n0))
        expected = block.mlp(norm(a, block.norm1, noise)) + n0
        torch.testing.assert_close(block(h, noise, None), expected, atol=2e-5, rtol=1e-5)


def test_without_position_the_network_commutes_with_rotation() -> None:
    net = network(pos_embed=False)
    x, noise = torch.randn(1, 3, *SHAPE), torch.randn(1, *SHAPE, 2)
    turned = net.conditioned(x.roll(3, dims=3), noise.roll(3, dims=2))
    torch.testing.assert_close(turned, net.conditioned(x, noise).roll(3, dims=3), atol=1e-4, rtol=1e-4)


def test_members_of_a_batch_do_not_see_each_other_and_noise_is_the_rows_own() -> None:
    net = network(noise_type="isotropic")
    x = torch.randn(3, 3, *SHAPE)
    y = net(x, key(1, 2, 3))
    torch.testing.assert_close(net(x[1:2], key(2)), y[1:2], atol=1e-5, rtol=1e-5)
    assert float((net(x[1:2], key(4)) - y[1:2]).detach().abs().max()) > 0.01


@pytest.mark.parametrize("options", [{}, {"label_embed_dim": 2, "context_pos_embed_dim": 2, "lora_rank": 1}])
def test_every_parameter_gets_a_gradient(options: dict[str, int]) -> None:
    net = network(n_labels=3 if options else 0, **options)
    labels = torch.eye(3)[:2] if options else None
    net(torch.randn(2, 3, *SHAPE), Context(labels, NoiseKey((1, 2), 0))).square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dead == []


def test_isotropic_noise_has_unit_variance_at_every_latitude() -> None:
    net = network(noise_type="isotropic", noise_embed_dim=64)
    variance = net.noise(NoiseKey(tuple(range(64)), 0), torch.device("cpu")).square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(variance, torch.ones(SHAPE[0]), atol=0.1, rtol=0)


def test_options_act() -> None:
    sizes = {
        "plain": network(),
        "no skip": network(big_skip=False),
        "skip as it is": network(normalize_big_skip=False),
        "no mlp": network(use_mlp=False),
        "narrow mlp": network(mlp_ratio=1.0),
        "no position": network(pos_embed=False),
        "deep encoder": network(encoder_layers=2),
        "plain norms": network(affine_norms=False),
        "lora": network(lora_rank=2),
        "labels": network(n_labels=3),
        "embedded labels": network(n_labels=3, label_embed_dim=2),
        "position in norms": network(context_pos_embed_dim=2),
        "over grid": network(global_layer_norm=True),
        "kernels": network(kernel_shape=(2, 3)),
    }
    n = {k: sum(p.numel() for p in v.parameters()) for k, v in sizes.items()}
    norms = 4 * 6 + 3  # channels of all norms
    assert n["plain"] - n["no skip"] == 3 * 6 + 3 * (2 + 4)
    assert n["plain"] - n["skip as it is"] == 3 * (2 + 4)
    assert n["plain"] - n["no mlp"] == 2 * (6 * 12 + 12 + 12 * 6 + 6)
    assert n["plain"] - n["narrow mlp"] == 2 * (2 * 36 + 6)
    assert n["plain"] - n["no position"] == 200 * 6
    assert n["deep encoder"] - n["plain"] == 2 * (6 * 6 + 6)
    assert n["plain"] - n["plain norms"] == 2 * norms
    # encoder, filter, skips, MLPs, decoder: rank times (in + out)
    assert n["lora"] - n["plain"] == 2 * (9 + 12 + 12 + 2 * 12 + 2 * (18 + 18) + 15 + 10)
    assert n["labels"] - n["plain"] == 2 * norms * (3 + 1)
    assert n["embedded labels"] - n["plain"] == 2 * norms * (2 + 1) + 3 * 2 + 2
    assert n["position in norms"] - n["plain"] == 2 * norms * 2 + 200 * 2
    assert n["over grid"] - n["plain"] == 2 * norms * 199
    assert n["plain"] - n["kernels"] == 36 * 3
    x = torch.randn(1, 3, *SHAPE)
    outputs = [network(activation_function=a)(x, key(1)) for a in ("gelu", "relu", "silu")]
    assert float((outputs[0] - outputs[1]).detach().abs().max()) > 1e-3
    assert float((outputs[0] - outputs[2]).detach().abs().max()) > 1e-3
    scaled = [network(lora_rank=2, lora_alpha=a)(x, key(1)) for a in (None, 2.0, 4.0)]
    torch.testing.assert_close(scaled[0], scaled[1])
    assert float((scaled[1] - scaled[2]).detach().abs().max()) > 1e-3


def test_labels_move_the_norms() -> None:
    net = network(n_labels=2)
    x = torch.randn(1, 3, *SHAPE)
    a, b = (net(x, Context(torch.eye(2)[i : i + 1], NoiseKey((1,), 0))) for i in range(2))
    assert float((a - b).detach().abs().max()) > 0.01


@pytest.mark.parametrize(
    ("n_labels", "context", "words"),
    [
        (0, Context(), "noise is missing"),
        (0, key(1), "noise of 1 rows"),
        (2, key(1, 2), "labels are missing"),
        (0, Context(torch.ones(2, 1), NoiseKey((1, 2), 0)), "takes none"),
        (2, Context(torch.ones(2, 3), NoiseKey((1, 2), 0)), r"takes \(2, 2\)"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(n_labels: int, context: Context, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        network(n_labels=n_labels)(torch.randn(2, 3, *SHAPE), context)


def test_without_noise_no_key_is_needed() -> None:
    assert network(noise_embed_dim=0)(torch.randn(2, 3, *SHAPE)).shape == (2, 4, *SHAPE)


@pytest.mark.parametrize(
    ("config", "word"), [({}, "block_types"), ({"block_types": ["conv1x1"], "noise_type": "isotropic"}, "noise_type")]
)
def test_a_grid_without_gaussian_latitudes_is_refused_where_it_matters(config: dict[str, object], word: str) -> None:
    builder = LocalNetBuilder.model_validate({"type": "LocalNet", "config": config})
    with pytest.raises(ConfigError, match=word) as caught:
        builder.build(3, 4, EVEN)
    assert "or regrid the data" in str(caught.value)


def test_pointwise_networks_take_any_grid() -> None:
    local = LocalNetBuilder.model_validate(
        {"type": "LocalNet", "config": {"embed_dim": 4, "noise_embed_dim": 0, "block_types": ["conv1x1"]}}
    )
    ankur = AnkurLocalNetBuilder.model_validate(
        {"type": "AnkurLocalNet", "config": {"embed_dim": 4, "use_disco_encoder": False}}
    )
    x = torch.randn(1, 3, *SHAPE)
    assert local.build(3, 4, EVEN)(x).shape == (1, 4, *SHAPE)
    assert ankur.build(3, 4, EVEN)(x).shape == (1, 4, *SHAPE)
    with pytest.raises(ConfigError, match="use_disco_encoder"):
        AnkurLocalNetBuilder(type="AnkurLocalNet").build(3, 4, EVEN)


@pytest.mark.parametrize(
    ("builder", "n_labels", "word"),
    [
        ({"conditional": True}, 0, "conditional"),
        ({}, 2, "set conditional: true"),
        ({"config": {"label_embed_dim": 2}}, 0, "remove label_embed_dim"),
    ],
)
def test_labels_where_there_are_none_are_refused(builder: dict[str, object], n_labels: int, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        LocalNetBuilder.model_validate({"type": "LocalNet"} | builder).build(
            3, 4, LatLonGrid.gaussian(*SHAPE), n_labels
        )


@pytest.mark.parametrize("config", [{"basis_type": "zernike"}, {"block_types": ["sht"]}, {"filter_type": "linear"}])
def test_what_it_cannot_do_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LocalNetBuilder.model_validate({"type": "LocalNet", "config": config})


def test_ankur_net_is_three_layers_with_options() -> None:
    def count(**options: object) -> int:
        return sum(p.numel() for p in AnkurLocalNet(4, 2, SHAPE, embed_dim=6, **options).parameters())  # type: ignore[arg-type]

    hidden = 2 * (36 + 6) + 6 * 2
    assert count() == 6 * 2 * 9 + hidden
    assert count(disco_kernel_size=2) == 6 * 2 * 4 + hidden
    assert count(use_disco_encoder=False) == 4 * 6 + 6 + hidden
    assert count(pos_embed=True) - count() == 200 * 6
    torch.manual_seed(0)
    net = AnkurLocalNet(4, 2, SHAPE, embed_dim=6, activation_function="silu")
    x = torch.randn(2, 4, *SHAPE)
    h = functional.silu(net.first(x.permute(0, 2, 3, 1)))
    for layer in net.hidden:
        h = functional.silu(layer(h))
    torch.testing.assert_close(net(x), net.last(h))
    net(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())
