"""Swin transformers: windows, masks and biases by definition, their options, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.models.context import NO_CONTEXT, Context, NoiseKey
from ace_core.models.swin import (
    DropPath,
    NoiseConditionedSwinTransformer,
    NoiseConditionedSwinTransformerBuilder,
    PaddingConfig,
    Stage,
    SwinTransformer,
    SwinTransformerBuilder,
    apart,
    log_offsets,
    merge,
    offset_index,
    partition,
)

SHAPE = (7, 18)
LAT = LatLonGrid.gaussian(*SHAPE).lat


def network(
    kind: type[SwinTransformer] = SwinTransformer, shape: tuple[int, int] = SHAPE, **changes: object
) -> SwinTransformer:
    torch.manual_seed(0)
    options = {"embed_dim": 4, "num_heads": (1, 2, 2, 1), "window_size": (2, 4), "cpb_hidden_dim": 3, "lat": LAT}
    if kind is NoiseConditionedSwinTransformer:
        options |= {"noise_embed_dim": 2}
    net = kind(3, 2, shape, **options | changes)  # type: ignore[arg-type]
    for name, p in net.named_parameters():  # biases and gates are nothing at first
        if not name.endswith("tau"):
            nn.init.normal_(p, std=0.3)
    return net


def test_windows_there_and_back() -> None:
    x = torch.arange(2 * 4 * 12 * 6).view(2, 4, 12, 3, 2)
    parts = partition(x, (2, 4))
    assert parts.shape == (3, 2, 2 * 3, 8, 2)
    # Window (row 1, column 2) of sample 1, head 2.
    assert torch.equal(parts[2, 1, 1 * 3 + 2], x[1, 2:4, 8:12, 2].reshape(8, 2))
    assert torch.equal(merge(parts, (2, 4), 3), x.view(2, 4, 12, 6))


def test_offsets_are_logarithmic_and_scaled_with_latitude() -> None:
    table = log_offsets((2, 3), np.array([1.0, 0.5]))[:, offset_index((2, 3))].view(2, 6, 6, 2)
    # From key (row 0, column 2), number 2, to query (row 1, column 0), number 3.
    expected = torch.tensor([[math.log(2.0), -math.log(3.0)], [math.log(2.0), -math.log(2.0)]])
    torch.testing.assert_close(table[:, 3, 2].float(), expected)


def test_a_stage_is_attention_among_the_points_of_a_window_and_one_side_of_the_edge() -> None:
    """Every pair of points of the whole grid at once, unreachable ones excluded, in float64."""
    torch.manual_seed(0)
    ny, nx, c, heads, window = 4, 8, 4, 2, (2, 4)
    lat = np.array([-60.0, -20.0, 20.0, 60.0])
    stage = Stage(c, (ny, nx), heads, window, 1.0, [0.0, 0.0], False, 3, lat, 0, None).double()
    for p in stage.parameters():
        nn.init.normal_(p, std=0.5)
    for block in stage.blocks:
        nn.init.constant_(block.attn.tau, 0.3)
    x = torch.randn(1, ny, nx, c, dtype=torch.float64)
    y, xx = np.divmod(np.arange(ny * nx), nx)
    for block, (sy, sx) in zip(stage.blocks, ((0, 0), (1, 2))):
        # Coordinates in the shifted grid; a window there is split where the grid ends.
        v, u = (y - sy) % ny, (xx - sx) % nx
        split = np.stack([(v >= ny - sy) & (sy > 0), (u >= nx - sx) & (sx > 0)])
        place = np.stack([v // window[0], u // window[1], *split])
        together = torch.from_numpy((place[:, :, None] == place[:, None]).all(axis=0))
        mean = np.roll(lat, -sy).reshape(-1, 2).mean(axis=1)[v // window[0]]
        dy, dx = v[:, None] - v[None], (u[:, None] - u[None]) * np.cos(np.deg2rad(mean))[:, None]
        d = torch.from_numpy(np.stack([np.sign(a) * np.log1p(np.abs(a)) for a in (dy, dx)], axis=-1).astype(np.float64))
        attention = block.attn
        bias = 16 * torch.sigmoid(attention.cpb_mlp(d)).permute(2, 0, 1)
        q, k, value = attention.qkv(x.view(-1, c)).view(-1, 3, heads, c // heads).permute(1, 2, 0, 3)
        cosine = (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).transpose(1, 2)
        score = (cosine / 0.3 + bias).masked_fill(~together, -math.inf)
        h = attention.proj((score.softmax(dim=-1) @ value).transpose(0, 1).reshape(1, ny, nx, c))
        h = h + block.column_mixer.fc(h)
        z = x + block.norm1(h)
        expected = z + block.norm2(block.mlp(z))
        shifted = (sy, sx) != (0, 0)
        offsets = stage.offsets_shifted if shifted else stage.offsets
        sides = (stage.apart_rows, stage.apart_columns)
        found = block(x, offsets, stage.index, sides, None, (x.new_empty(1, ny, nx, 0), None), None)
        # The tables were rounded to float32.
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_apart_counts() -> None:
    rows, columns = apart((4, 8), (2, 4))
    assert int(rows.sum()) == int(columns.sum()) == 32 * 16
    rows, columns = apart((1, 4), (0, 2))
    assert not bool(rows.any())
    assert bool(columns.any())


def test_members_of_a_batch_do_not_see_each_other() -> None:
    net = network().eval()
    x = torch.randn(3, 3, *SHAPE)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-5, rtol=1e-5)


def test_noise_is_the_rows_own() -> None:
    net = network(NoiseConditionedSwinTransformer).eval()
    x = torch.randn(3, 3, *SHAPE)
    y = net(x, Context(noise=NoiseKey((1, 2, 3), 0)))
    torch.testing.assert_close(net(x[1:2], Context(noise=NoiseKey((2,), 0))), y[1:2], atol=1e-5, rtol=1e-5)
    assert float((net(x[1:2], Context(noise=NoiseKey((2,), 1))) - y[1:2]).detach().abs().max()) > 0.01
    with pytest.raises(ValueError, match="noise is missing"):
        net(x)


@pytest.mark.parametrize("kind", [SwinTransformer, NoiseConditionedSwinTransformer])
@pytest.mark.parametrize("labels", [0, 2])
def test_every_parameter_gets_a_gradient(kind: type[SwinTransformer], labels: int) -> None:
    more = {"label_embed_dim": 2} if labels and kind is NoiseConditionedSwinTransformer else {}
    net = network(kind, n_labels=labels, mlp_layer="swiglu", drop_path_rate=0.0, **more)
    context = Context(torch.eye(2) if labels else None, NoiseKey((1, 2), 0))
    net(torch.randn(2, 3, *SHAPE), context).square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert dead == []


def test_gates_are_shut_at_first() -> None:
    torch.manual_seed(0)
    stage = Stage(4, (4, 8), 1, (2, 4), 1.0, [0.0, 0.0], False, 3, None, 2, None)
    x = torch.randn(2, 4, 8, 4)
    assert torch.equal(stage(x, (x.new_empty(2, 4, 8, 0), torch.eye(2)), None), x)


def test_stochastic_depth_keeps_the_mean_and_drops_as_often_as_it_says() -> None:
    drop = DropPath(0.3)
    draws = NoiseKey(tuple(range(4000)), 0).normal((1,), torch.device("cpu"), "drop_path")[:, 0]
    out = drop(torch.ones(4000, 1, 1, 1), draws).flatten()
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    # Binomial standard deviation of 4000 draws: 0.007.
    assert float((out == 0).double().mean()) == pytest.approx(0.3, abs=0.03)


def test_stochastic_depth_is_keyed_in_training_and_off_in_evaluation() -> None:
    net = network(drop_path_rate=0.9)
    x = torch.randn(2, 3, *SHAPE)
    with pytest.raises(ConfigError, match="set drop_path_rate: 0"):
        net(x)
    first = net(x, Context(noise=NoiseKey((1, 2), 0)))
    torch.testing.assert_close(net(x, Context(noise=NoiseKey((1, 2), 0))), first, atol=0, rtol=0)
    torch.testing.assert_close(net(x[1:], Context(noise=NoiseKey((2,), 0))), first[1:], atol=1e-5, rtol=1e-5)
    assert float((net(x, Context(noise=NoiseKey((1, 2), 1))) - first).detach().abs().max()) > 0.01
    net.eval()
    torch.testing.assert_close(net(x), network(drop_path_rate=0.0).eval()(x), atol=0, rtol=0)


def test_rates_of_dropping_rise_within_outer_and_inner_stages() -> None:
    net = network(drop_path_rate=0.7)
    rates = [[b.drop_path.rate for b in s.blocks] for s in (net.layer1, net.layer2, net.layer3, net.layer4)]
    assert rates[0] == rates[3] == pytest.approx([0.0, 0.1])
    assert rates[1] == rates[2] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def planes(shape: tuple[int, int]) -> Tensor:
    return torch.arange(float(np.prod(shape))).view(1, 1, *shape)


def test_padding_continues_over_the_poles_or_reflects() -> None:
    shape = (4, 6)
    common = {"shape": shape, "window_size": (1, 1), "lat": None}
    earth = network(padding=PaddingConfig(activate=True, mode="earth", pad_lat=(1, 1), pad_lon=(2, 0)), **common)  # type: ignore[arg-type]
    mirror = network(padding=PaddingConfig(activate=True, mode="mirror", pad_lat=(2, 0), pad_lon=(0, 2)), **common)  # type: ignore[arg-type]
    rows = planes(shape)[0, 0]
    top = rows[0].roll(3)
    assert earth.pad(planes(shape))[0, 0, 0].tolist() == [*top[-2:].tolist(), *top.tolist()]
    assert earth.pad(planes(shape))[0, 0, 1].tolist() == [4.0, 5.0, *rows[0].tolist()]
    found = mirror.pad(planes(shape))[0, 0]
    assert found[:, 0].tolist() == [12.0, 6.0, 0.0, 6.0, 12.0, 18.0]
    assert found[2].tolist() == [*rows[0].tolist(), 0.0, 1.0]
    assert earth(torch.randn(1, 3, *shape), Context(noise=NoiseKey((1,), 0))).shape == (1, 2, *shape)


def test_options_act() -> None:
    base = network()
    n = {
        "plain": base,
        "no skip": network(use_skip=False),
        "swiglu": network(mlp_layer="swiglu"),
        "deep": network(depth_multiplier=2),
        "narrow": network(mlp_ratio=2.0),
        "bias": network(cpb_hidden_dim=4),
        "labels": network(n_labels=2),
    }
    counts = {k: sum(p.numel() for p in v.parameters()) for k, v in n.items()}
    widths = [4] * 2 + [8] * 12 + [8] * 2
    assert counts["swiglu"] - counts["plain"] == sum(4 * c * (c + 1) for c in widths)
    assert counts["plain"] - counts["narrow"] == sum(2 * c * (2 * c + 1) for c in widths)
    # A hidden unit more: two weights and a bias in, a weight per head out.
    assert counts["bias"] - counts["plain"] == 4 * (3 + 1) + 12 * (3 + 2)
    assert counts["labels"] - counts["plain"] == 6 * (4 + 8 + 8 + 8) * 3
    x = torch.randn(1, 3, *SHAPE)
    for other in (network(lat=None), network(window_size=(3, 2)), network(num_heads=(2, 4, 4, 2))):
        assert float((base.eval()(x) - other.eval()(x)).detach().abs().max()) > 1e-4
    assert [len(s.blocks) for s in (n["deep"].layer1, n["deep"].layer2)] == [4, 12]
    assert n["no skip"].final_linear.weight.shape == (4, 4)


def test_labels_that_do_not_fit_are_refused() -> None:
    x = torch.randn(2, 3, *SHAPE)
    with pytest.raises(ValueError, match="takes none"):
        network().eval()(x, Context(labels=torch.eye(2)))
    with pytest.raises(ValueError, match="labels are missing"):
        network(n_labels=2).eval()(x, NO_CONTEXT)


@pytest.mark.parametrize("kind", ["SwinTransformer", "NoiseConditionedSwinTransformer"])
def test_builders(kind: str) -> None:
    model = {"SwinTransformer": SwinTransformerBuilder}.get(kind, NoiseConditionedSwinTransformerBuilder)
    grid = LatLonGrid.gaussian(12, 24)
    small = {"embed_dim": 4, "num_heads": [1, 1, 1, 1]}
    builder = model.model_validate({"type": kind, "config": small, "conditional": True})
    net = builder.build(3, 2, grid, 2).eval()
    out = net(torch.randn(2, 3, 12, 24), Context(torch.eye(2), NoiseKey((1, 2), 0)))
    assert out.shape == (2, 2, 12, 24)
    assert out.is_contiguous()
    with pytest.raises(ConfigError, match="conditional"):
        builder.build(3, 2, grid)
    for padding, words in (
        ({"pad_lat": [13, 0]}, "12 rows"),
        ({"mode": "mirror", "pad_lat": [12, 0], "pad_lon": [0, 0]}, "11 rows"),
    ):
        config = small | {"padding_conf": {"activate": True, "pad_lon": [1, 1]} | padding}
        with pytest.raises(ConfigError, match=words):
            model.model_validate({"type": kind, "config": config}).build(3, 2, grid)
    for wrong in ({"num_heads": [5, 1, 1, 1]}, {"embed_dim_scalar": 2}, {"drop_path_rate": 1.0}, {"window_size": [4]}):
        with pytest.raises(ValidationError):
            model.model_validate({"type": kind, "config": wrong})
