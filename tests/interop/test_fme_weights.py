"""Layouts that fme changed in the course of time, told apart by shape where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ace_core.errors import DataError
from ace_core.grid import LatLonGrid
from ace_core.interop.fme_weights import fill, swapped, unwrapped, wrapped
from ace_core.models.noise_sfno import NoiseConditionedSFNO, NoiseConditionedSFNOBuilder

KIND = "NoiseConditionedSFNO"
WEIGHT = "conditional_model.blocks.0.filter.filter.weight"


def builder(embed: int, groups: int) -> Any:
    config = {"embed_dim": embed, "filter_num_groups": groups, "num_layers": 1, "noise_embed_dim": 2}
    return NoiseConditionedSFNOBuilder.model_validate({"type": KIND, "config": config | {"spectral_lora_rank": 2}})


def network(embed: int, groups: int, seed: int) -> NoiseConditionedSFNO:
    torch.manual_seed(seed)
    net: NoiseConditionedSFNO = builder(embed, groups).build(3, 2, LatLonGrid.gaussian(6, 12))
    for p in net.parameters():
        torch.nn.init.normal_(p)
    return net


def saved(net: NoiseConditionedSFNO) -> dict[str, Tensor]:
    return unwrapped(wrapped(net, builder(4, 1), None, "x"), "x")


def old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """[G, L, O, I, R] -> [G, I, O, L, R]."""
    return {n: v.permute(0, 3, 2, 1, 4) if v.ndim == 5 else v for n, v in state.items()}


def without_groups(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v[0] if n == WEIGHT else v for n, v in old(state).items()}


@pytest.mark.parametrize(
    ("embed", "groups", "layout"), [(4, 1, dict), (4, 2, dict), (4, 1, old), (4, 2, old), (4, 1, without_groups)]
)
def test_every_layout_is_read(
    embed: int, groups: int, layout: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    source, target = network(embed, groups, 0), network(embed, groups, 1)
    fill([target], [builder(embed, groups)], [layout(saved(source))], "x")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize(("embed", "groups"), [(6, 1), (12, 2), (4, 1), (2, 1)])
def test_what_is_written_is_what_fme_needs_where_it_mistakes_the_layout(embed: int, groups: int) -> None:
    """fme takes a tensor whose shape could be that of the old layout for an old one, and turns it."""
    state = saved(network(embed, groups, 0))
    present = swapped(state, KIND)
    for name, value in state.items():
        turned = value.ndim == 5 and value.shape == value.permute(0, 3, 2, 1, 4).shape
        assert torch.equal(present[name], value.permute(0, 3, 2, 1, 4) if turned else value), name
    again = swapped(present, KIND)
    assert all(torch.equal(again[n], v) for n, v in state.items())


def test_nothing_is_loaded_where_one_of_two_networks_does_not_fit() -> None:
    nets = [network(4, 1, 0), network(4, 1, 1)]
    before = [{n: v.clone() for n, v in net.state_dict().items()} for net in nets]
    states = [saved(network(4, 1, 2)), saved(network(6, 1, 3))]
    with pytest.raises(DataError, match=r"network 2.*another shape"):
        fill(nets, [builder(4, 1)] * 2, states, "x")
    for net, was in zip(nets, before, strict=True):
        assert all(torch.equal(v, was[n]) for n, v in net.state_dict().items())
