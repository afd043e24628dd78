"""Masks are the function of their key that the configuration describes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ace_core.seeding import generator
from ace_core.step.input_dropout import (
    InputDropoutConfig,
    PerVariableMaskingConfig,
    UniformMaskingConfig,
    repeat_for_ensemble,
    sample_mask,
)

ADAPTER: TypeAdapter[UniformMaskingConfig | PerVariableMaskingConfig] = TypeAdapter(InputDropoutConfig)
N = 20000


def within(observed: float, p: float, n: int) -> bool:
    """Five standard deviations of a binomial proportion."""
    return abs(observed - p) <= 5 * math.sqrt(p * (1 - p) / n)


def test_kind_chooses_and_defaults_are_those_of_the_seed() -> None:
    uniform = ADAPTER.validate_python({"kind": "uniform"})
    assert uniform == UniformMaskingConfig(max_masked_vars="max")
    assert ADAPTER.validate_python({"kind": "per_variable", "rate": 0.05}) == PerVariableMaskingConfig(rate=0.05)
    assert PerVariableMaskingConfig().rate == 0.0


@pytest.mark.parametrize(
    "bad",
    [
        {"max_masked_vars": 3},
        {"kind": "uniform", "max_masked_vars": -1},
        {"kind": "uniform", "max_masked_vars": "most"},
        {"kind": "uniform", "max_masked_vars": True},
        {"kind": "uniform", "max_masked_vars": 1.5},
        {"kind": "uniform", "rate": 0.1},
        {"kind": "uniform", "min_vars": 1},
        {"kind": "per_variable", "rate": 1.01},
        {"kind": "per_variable", "rate": -0.01},
        {"kind": "bernoulli", "rate": 0.1},
    ],
)
def test_bad_configurations_are_one_problem_each(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as error:
        ADAPTER.validate_python(bad)
    assert error.value.error_count() == 1


@given(st.integers(0, 9), st.integers(1, 7), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_uniform_never_drops_more_than_allowed(most: int, channels: int, seed: int) -> None:
    mask = sample_mask(UniformMaskingConfig(max_masked_vars=most), 64, channels, generator(seed))
    assert mask.shape == (64, channels)
    assert mask.dtype == torch.bool
    assert int((~mask).sum(1).max()) <= min(most, channels)
    if most == 0:
        assert bool(mask.all())


@pytest.mark.parametrize(("most", "top"), [("max", 5), (9, 5), (3, 3), (1, 1)])
def test_uniform_counts_are_uniform_and_channels_alike(most: int | str, top: int) -> None:
    config = ADAPTER.validate_python({"kind": "uniform", "max_masked_vars": most})
    mask = sample_mask(config, N, 5, generator(7, "test", str(most)))
    dropped = (~mask).sum(1)
    for k in range(top + 1):
        assert within(float((dropped == k).double().mean()), 1 / (top + 1), N)
    for c in range(5):
        # mean count top/2 spread over 5 channels
        assert within(1 - float(mask[:, c].double().mean()), top / 10, N)
    # any pair of channels is dropped together as often as any other
    pairs = [float((~mask[:, i] & ~mask[:, j]).double().mean()) for i in range(5) for j in range(i)]
    expected = sum(k * (k - 1) for k in range(top + 1)) / (top + 1) / 20
    assert all(within(p, expected, N) for p in pairs)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
def test_per_variable_is_bernoulli_per_channel_and_sample(rate: float) -> None:
    mask = sample_mask(PerVariableMaskingConfig(rate=rate), N, 4, generator(3, "test"))
    for c in range(4):
        assert within(1 - float(mask[:, c].double().mean()), rate, N)
    both = float((~mask[:, 0] & ~mask[:, 1]).double().mean())
    assert within(both, rate**2, N)


def test_mask_depends_on_its_key_alone() -> None:
    config = UniformMaskingConfig()
    torch.manual_seed(0)
    first = sample_mask(config, 16, 40, generator(1, "input dropout", 3, 5))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(first, sample_mask(config, 16, 40, generator(1, "input dropout", 3, 5)))
    assert torch.equal(before, torch.get_rng_state())
    for other in (
        (1, "input dropout", 3, 6),
        (1, "input dropout", 4, 5),
        (2, "input dropout", 3, 5),
        (1, "noise", 3, 5),
    ):
        assert not torch.equal(first, sample_mask(config, 16, 40, generator(*other)))


def test_keys_cannot_run_together() -> None:
    keys = [(1,), (1, 0), (1, 0, 0), (10,), (1, 1), (11,), (1, "1"), (1, "a", 2), (1, "a2"), (1, 2**32), (1, 2**33)]
    draws = {tuple(torch.rand(4, generator=generator(*k)).tolist()) for k in keys}
    assert len(draws) == len(keys)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_members_of_a_sample_share_its_mask(batch: int, channels: int, members: int, seed: int) -> None:
    mask = sample_mask(PerVariableMaskingConfig(rate=0.5), batch, channels, generator(seed))
    wide = repeat_for_ensemble(mask, members)
    assert torch.equal(wide.unflatten(0, (batch, members)), mask[:, None].expand(-1, members, -1))
