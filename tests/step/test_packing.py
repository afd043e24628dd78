"""Packed order, zeroing and indicators."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.step.packing import (
    extra_sources,
    maskable_names,
    nan_channels,
    pack,
    packed_names,
    presence,
)

IN = ("sst", "t", "sun")
EXTRAS = ("__gmr_extra__t", "__gmr_extra__sst")
SOURCES = extra_sources(IN, EXTRAS)


def case(seed: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 2, 4, generator=rng), torch.randn(batch, 2, generator=rng)


def test_order_is_in_extras_masks() -> None:
    assert maskable_names(IN, EXTRAS) == IN + EXTRAS
    assert packed_names(IN, EXTRAS, indicators=False) == IN + EXTRAS
    assert packed_names(IN, EXTRAS, indicators=True) == (
        *("sst", "t", "sun", "__gmr_extra__t", "__gmr_extra__sst"),
        *("__mask__sst", "__mask__t", "__mask__sun", "__mask____gmr_extra__t", "__mask____gmr_extra__sst"),
    )
    assert SOURCES.tolist() == [1, 0]
    x, e = case(0)
    packed = pack(x, e, None, indicators=True)
    assert packed.shape == (3, 10, 2, 4)
    assert torch.equal(packed[:, :3], x)
    assert torch.equal(packed[:, 3:5], e[:, :, None, None].expand(-1, -1, 2, 4))
    assert torch.equal(packed[:, 5:], torch.ones(3, 5, 2, 4))


def test_nothing_masked_is_no_copy() -> None:
    x, _ = case(0)
    assert pack(x, None, presence(None, None, extra_sources(IN, ())), indicators=False) is x


def test_extras_follow_the_source_in_data_and_their_own_name_in_dropout() -> None:
    """By hand: sst is missing in sample 0; dropout takes t from sample 1 and t's mean from sample 2."""
    data = torch.tensor([[False, True, True], [True] * 3, [True] * 3])
    dropout = torch.ones(3, 5, dtype=torch.bool)
    dropout[1, 1] = dropout[2, 3] = False
    present = presence(data, dropout, SOURCES)
    assert present is not None
    assert present.int().tolist() == [[0, 1, 1, 1, 0], [1, 0, 1, 1, 1], [1, 1, 1, 0, 1]]
    x, e = case(1)
    x[0, 0] = torch.nan
    packed = pack(x, e, present, indicators=True)
    assert not packed.isnan().any()
    assert torch.equal(packed[:, 5:, 0, 0].bool(), present)
    assert (packed[:, 5:] == packed[:, 5:, :1, :1]).all()
    assert torch.equal(packed[:, :5].abs().amax((2, 3)) > 0, present)


def test_dropping_everything_leaves_only_the_indicators_of_absence() -> None:
    x, e = case(2)
    assert not pack(x, e, torch.zeros(3, 5, dtype=torch.bool), indicators=True).any()


@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_mask_algebra(seed: int, batch: int, with_data: bool, indicators: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, e = case(seed, batch)
    data = torch.rand(batch, 3, generator=rng) > 0.3 if with_data else None
    dropout = torch.rand(batch, 5, generator=rng) > 0.3
    present = presence(data, dropout, SOURCES)
    assert present is not None
    # indicator = 1 - not(data) or not(dropout)
    absent = ~dropout if data is None else ~dropout | ~torch.cat([data, data[:, [1, 0]]], 1)
    assert torch.equal(present, ~absent)
    packed = pack(x, e, present, indicators)
    full = pack(x, e, None, indicators=False)
    # packing round trip: present channels come back bit by bit, absent ones are 0
    assert torch.equal(packed[:, :5], full * present[:, :, None, None])
    # zeroing twice is zeroing once, in either order
    again = pack(packed[:, :3], packed[:, 3:5, 0, 0], present, indicators)
    assert torch.equal(packed, again)
    assert packed.shape[1] == len(packed_names(IN, EXTRAS, indicators))


def test_gradient_reaches_present_channels_only() -> None:
    x, e = case(3)
    x.requires_grad_()
    present = torch.tensor([[True, False, True, True, True]]).expand(3, -1)
    pack(x, e, present, indicators=True).sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, 0, 0].tolist() == [[1.0, 0.0, 1.0]] * 3


def test_nan_is_named_by_channel_and_sample() -> None:
    x, e = case(4)
    x[2, 1, 1, 3] = x[0, 2, 0, 0] = torch.nan
    names = packed_names(IN, EXTRAS, indicators=True)
    assert sorted(nan_channels(pack(x, e, None, indicators=True), names)) == [("sun", 0), ("t", 2)]
