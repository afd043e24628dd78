"""Samudra against closed forms and its written definition."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.models.context import Context, NoiseKey
from ace_core.models.samudra import (
    CappedGELU,
    Doubling,
    Samudra,
    SamudraBuilder,
    SamudraConfig,
    _window,
    coarsened,
    dilations,
    half_a_turn,
    pad_latitude,
    pad_longitude,
    smallest_grid,
)

SMALL = {"ch_width": [4, 6], "dilation": [1, 2], "upscale_factor": 2}
NOISY = {"noise_embed_dim": 3, "conditioned_blocks": "all_blocks", "norm": "layer"}


def network(**changes: object) -> Samudra:
    torch.manual_seed(0)
    return Samudra(3, 2, **(SMALL | changes))  # type: ignore[arg-type]


def grid(ny: int, nx: int) -> LatLonGrid:
    return LatLonGrid.gaussian(ny, nx)


def key(*rows: int, step: int = 0) -> Context:
    return Context(noise=NoiseKey(rows, step))


def stirred(net: Samudra) -> Samudra:
    """With noise maps that are no longer zero."""
    for name, p in net.named_parameters():
        if "noise_conditioning" in name:
            torch.nn.init.normal_(p, std=0.3)
    return net


def test_a_scalar_goes_on_smoothly_across_the_poles() -> None:
    # cos(lat) cos(lon), with rows that step over the poles: the same formula holds beyond 90 degrees.
    lon = torch.arange(12) * (2 * np.pi / 12)
    lat = torch.deg2rad((torch.arange(-3, 11) + 0.5) * 180 / 8 - 90)
    everywhere = torch.cos(lat)[:, None] * torch.cos(lon)
    torch.testing.assert_close(pad_latitude(everywhere[None, None, 3:-3], 3, 3, "pole")[0, 0], everywhere)
    assert pad_latitude(torch.ones(1, 1, 2, 3), 1, 2, "constant")[0, 0, :, 0].tolist() == [0, 1, 1, 0, 0]


def test_half_a_turn_of_an_odd_circle_is_between_two_points() -> None:
    assert half_a_turn(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [3.0, 4.0, 1.0, 2.0]
    # Opposite of point 0 of 5 lies between points 2 and 3.
    assert half_a_turn(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))[0] == 2.5


def test_longitudes_are_padded_as_torch_does() -> None:
    x = torch.randn(2, 3, 4, 5)
    for mode in ("circular", "constant", "reflect", "replicate"):
        assert torch.equal(pad_longitude(x, 2, 1, mode), functional.pad(x, (2, 1, 0, 0), mode=mode))  # type: ignore[arg-type]


def test_doubling_is_three_quarters_of_the_near_and_one_of_the_far_neighbour() -> None:
    x = torch.randn(1, 1, 1, 6).expand(1, 1, 4, 6)
    near = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=2)
    far = torch.stack([x.roll(1, 3), x.roll(-1, 3)], dim=-1).flatten(3).repeat_interleave(2, dim=2)
    torch.testing.assert_close(Doubling(True, "constant")(x), 0.75 * near + 0.25 * far)
    plain = Doubling(False, "constant")(x)
    torch.testing.assert_close(plain[..., 1:-1], (0.75 * near + 0.25 * far)[..., 1:-1])
    torch.testing.assert_close(plain[..., 0], near[..., 0])
    # Across a pole: halfway round, the value of the same row.
    column = torch.zeros(1, 1, 2, 4)
    column[0, 0, 0, 2] = 4.0
    assert Doubling(True, "pole")(column)[0, 0, 0, 0] == pytest.approx(4.0 * 0.25 * 0.75)


def test_activation_is_capped_at_one() -> None:
    x = torch.tensor([-1.0, 0.5, 0.9, 5.0])
    expected = [-0.158655, 0.345731, 0.734346, 1.0]
    torch.testing.assert_close(CappedGELU()(x), torch.tensor(expected), atol=1e-6, rtol=0)


def test_coarse_noise_is_the_mean_times_the_root_of_how_many() -> None:
    white = torch.randn(2, 3, 8, 12)
    blocks = white.reshape(2, 3, 4, 2, 4, 3).sum(dim=(3, 5)) / 6**0.5
    torch.testing.assert_close(coarsened(white, (4, 4)), blocks)
    assert _window(7, 3) == [3, 3, 3]
    assert _window(11, 4) == [3, 4, 4, 3]
    torch.manual_seed(0)
    variance = coarsened(torch.randn(1, 20000, 11, 7), (4, 3))[0].var(dim=0)
    assert float((variance - 1).abs().max()) < 0.05


@pytest.mark.parametrize("lat_pad", ["constant", "pole"])
def test_commutes_with_rotation_by_the_coarsest_cell(lat_pad: str) -> None:
    net = network(zonally_periodic_upsample=True, lat_pad=lat_pad)
    x = torch.randn(1, 3, 8, 16)
    torch.testing.assert_close(net(x.roll(4, dims=3)), net(x).roll(4, dims=3), atol=1e-5, rtol=1e-5)
    # The plain doubling has a seam.
    seam = network()
    assert float((seam(x.roll(4, dims=3)) - seam(x).roll(4, dims=3)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_members_of_a_batch_do_not_see_each_other(norm: str) -> None:
    net = stirred(network(**NOISY | {"norm": norm}))
    x = torch.randn(3, 3, 8, 16)
    torch.testing.assert_close(net(x, key(7, 8, 9))[1:2], net(x[1:2], key(8)), atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    net = network(**NOISY)
    net(torch.randn(2, 3, 9, 18), key(1, 2)).square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dead == []


def gradients(net: Samudra, x: Tensor) -> dict[str, Tensor]:
    y = net(x, key(1, 2)) if net.takes_context else net(x)
    y.square().sum().backward()
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [NOISY, {"norm": "batch"}, {"norm_kwargs": {"track_running_stats": True}}])
@pytest.mark.parametrize("strategy", ["all", "simple"])
def test_recomputing_changes_neither_gradients_nor_running_statistics(
    strategy: str, options: dict[str, object]
) -> None:
    x = torch.randn(2, 3, 8, 16)
    plain, again = network(**options), network(**options, checkpoint_strategy=strategy)
    expected, found = gradients(plain, x), gradients(again, x)
    assert found.keys() == expected.keys() == dict(again.named_parameters()).keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    for (name, a), b in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("strategy", ["all", "simple"])
def test_recomputing_keeps_less(strategy: str) -> None:
    def kept(net: Samudra) -> int:
        total = 0

        def count(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            net(torch.randn(1, 3, 8, 16))
        return total

    assert kept(network(checkpoint_strategy=strategy)) < 0.75 * kept(network())


def test_noise_acts_once_learned_and_follows_its_key() -> None:
    x = torch.randn(1, 3, 8, 16)
    quiet = network(**NOISY)
    assert torch.equal(quiet(x, key(1)), quiet(x, key(2)))
    net = stirred(quiet)
    assert torch.equal(net(x, key(1, step=3)), net(x, key(1, step=3)))
    assert float((net(x, key(1)) - net(x, key(2))).detach().abs().max()) > 1e-2
    assert float((net(x, key(1)) - net(x, key(1, step=1))).detach().abs().max()) > 1e-2
    assert network().takes_context is False


def test_options_act() -> None:
    n = {
        name: sum(p.numel() for p in network(**options).parameters())
        for name, options in {
            "plain": {},
            "affine": {"norm_kwargs": {"affine": True}},
            "layer": {"norm": "layer"},
            "bottleneck": NOISY | {"conditioned_blocks": "bottleneck", "norm": "instance"},
            "all blocks": NOISY | {"norm": "instance"},
            "wide": {"upscale_factor": 4},
        }.items()
    }
    hidden = 2 * (3 + 4 + 6 + 6 + 4)  # upscale_factor times the input channels of five blocks
    assert n["affine"] - n["plain"] == n["layer"] - n["plain"] == 2 * 2 * hidden
    assert n["bottleneck"] - n["plain"] == 2 * 2 * 12 * 3
    assert n["all blocks"] - n["plain"] == 2 * 2 * hidden * 3
    x = torch.randn(1, 3, 9, 18)
    different = [
        {},
        {"pad": "constant"},
        {"pad": "reflect"},
        {"pad": "replicate"},
        {"lat_pad": "pole"},
        {"norm": "layer"},
    ]
    different += [{"dilation": [2, 2]}, {"zonally_periodic_upsample": True}, {"norm_kwargs": {"eps": 0.1}}]
    outputs = [network(**options)(x).detach() for options in different]
    for i, a in enumerate(outputs):
        for j in range(i):
            assert float((a - outputs[j]).abs().max()) > 1e-3, (different[i], different[j])


def test_the_published_network_has_its_130_million_parameters() -> None:
    with torch.device("meta"):
        net = Samudra(7, 5)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(130.2e6, abs=0.05e6)
    assert dilations([1, 2, 4, 8], 4) == ([1, 2, 4, 8], 8, [8, 4, 2, 2])


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, (4, 8)),
        ({"pad": "constant", "norm": "layer"}, (4, 4)),
        ({"pad": "reflect"}, (4, 12)),
        ({"lat_pad": "pole"}, (8, 8)),
        ({"lat_pad": "pole", "dilation": [11, 1]}, (11, 11)),
        ({"ch_width": [4], "dilation": [1]}, (2, 4)),
    ],
)
def test_the_smallest_grid_works_and_a_smaller_one_is_refused(
    options: dict[str, object], least: tuple[int, int]
) -> None:
    builder = SamudraBuilder(type="Samudra", config=SamudraConfig.model_validate(SMALL | options))
    assert smallest_grid(builder.config) == least
    ny, nx = least
    assert builder.build(3, 2, grid(ny, nx))(torch.randn(1, 3, ny, nx)).shape == (1, 2, ny, nx)
    for small in ((ny - 1, nx), (ny, nx - 1)):
        with pytest.raises(ConfigError, match=f"expected: at least {ny}x{nx} points"):
            builder.build(3, 2, grid(*small))


def test_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="Samudra takes no labels, but the data have 2"):
        SamudraBuilder(type="Samudra").build(3, 2, grid(45, 90), n_labels=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": [1]}, "dilation has 1 entries for the 2 levels"),
        ({"n_layers": [1, 2]}, "n_layers"),
        ({"norm_kwargs": {"num_features": 3}}, "norm_kwargs.num_features is no option of norm: instance"),
        ({"norm": "layer", "norm_kwargs": {"affine": True}}, "it takes eps, elementwise_affine, bias"),
        ({"noise_embed_dim": 2}, "say where the noise goes"),
        ({"conditioned_blocks": "bottleneck"}, "conditioned_blocks without noise"),
        ({"ch_width": []}, "at least 1"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SamudraConfig.model_validate(SMALL | options)


def test_a_dilation_longer_than_the_levels_is_read_as_fme_does_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ace"):
        SamudraConfig.model_validate({"ch_width": [4, 6]})
    assert "longer than ch_width" in caplog.text
    assert dilations([1, 2, 4, 8], 2) == ([1, 2], 2, [8, 8])
