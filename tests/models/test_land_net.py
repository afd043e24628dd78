"""LandNet against its written definition."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.models.land_net import LandNet, LandNetBuilder, LandNetConfig


def network(**changes: object) -> LandNet:
    torch.manual_seed(0)
    return LandNet(3, 2, (4, 6), **({"hidden_dims": [5, 7]} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("where", [False, True])
def test_a_cell_is_its_formula(where: bool) -> None:
    net = network(use_positional_embedding=where)
    x = torch.randn(2, 3, 4, 6)
    h = x[1, :, 2, 5]
    for i, layer in enumerate(net.layers):
        h = layer.weight @ h + layer.bias
        h = h.relu() if i < 2 else h
        if i == 0 and net.pos_embed is not None:
            h = h + net.pos_embed[2, 5]
    torch.testing.assert_close(net(x)[1, :, 2, 5], h)
    assert net(x).is_contiguous()


def test_a_cell_sees_no_other() -> None:
    net = network(use_positional_embedding=True)
    x = torch.randn(1, 3, 4, 6)
    changed = x.clone()
    changed[:, :, 1, 2] += 1.0
    moved = (net(changed) - net(x)).detach().abs().sum(dim=1)[0] > 0
    assert moved.nonzero().tolist() == [[1, 2]]


def test_only_the_embedding_knows_the_longitude() -> None:
    x = torch.randn(1, 3, 4, 6)
    blind, placed = network(), network(use_positional_embedding=True)
    torch.testing.assert_close(blind(x.roll(1, 3)), blind(x).roll(1, 3))
    assert float((placed(x.roll(1, 3)) - placed(x).roll(1, 3)).detach().abs().max()) > 1e-2


def test_members_of_a_batch_do_not_see_each_other_and_every_parameter_gets_a_gradient() -> None:
    net = network(use_positional_embedding=True)
    x = torch.randn(3, 3, 4, 6)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
    net(x).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_options_act_and_the_start_is_that_of_a_linear_map() -> None:
    n = [
        sum(p.numel() for p in network(**o).parameters())
        for o in ({}, {"hidden_dims": [5]}, {"use_positional_embedding": True})
    ]
    assert n == [3 * 5 + 5 + 5 * 7 + 7 + 7 * 2 + 2, 3 * 5 + 5 + 5 * 2 + 2, n[0] + 4 * 6 * 5]
    wide = LandNet(100, 400, (2, 2), hidden_dims=[400])
    # Uniform within 1 / sqrt(C_in): a standard deviation of that over sqrt(3).
    for layer, c_in in zip(wide.layers, (100, 400)):
        assert float(layer.weight.detach().std()) == pytest.approx((3 * c_in) ** -0.5, rel=0.02)
        assert float(layer.weight.detach().abs().max()) <= c_in**-0.5


def test_what_it_cannot_do_is_refused() -> None:
    builder = LandNetBuilder(type="LandNet", config=LandNetConfig(use_positional_embedding=True))
    net = builder.build(3, 2, LatLonGrid.gaussian(4, 6))
    assert net(torch.randn(1, 3, 4, 6)).shape == (1, 2, 4, 6)
    with pytest.raises(ConfigError, match="LandNet takes no labels, but the data have 3"):
        builder.build(3, 2, LatLonGrid.gaussian(4, 6), n_labels=3)
    with pytest.raises(ValidationError, match="hidden_dims is empty"):
        LandNetConfig(hidden_dims=[])
