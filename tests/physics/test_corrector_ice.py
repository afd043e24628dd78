"""Sea-ice corrector: budgets, bounds and signs on random states; the peer's defects shown right by closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ace_core.errors import ConfigError
from ace_core.fields import Fields
from ace_core.physics.corrector.config import CorrectorConfig, build_corrector
from ace_core.physics.corrector.corrector import Corrector, Names
from ace_core.physics.corrector.ice import close_ice_budget
from ace_core.physics.corrector.state import CorrectorState

TERMS = {"sisnmass": ["sn+", "sn-", "snx"], "siconc": ["c+", "c-", "cx"], "simass": ["m+", "m-", "mx"]}
RATES = [n for terms in TERMS.values() for n in terms]
DT = 86400.0


def corrector(terms: dict[str, list[str]], dt: float = DT) -> Corrector:
    keys = {"type": "ice_corrector", "config": {"budget_correction": {"corrected_variables": terms}}}
    built = build_corrector(TypeAdapter(CorrectorConfig).validate_python(keys), None, dt, torch.ones(3, 4) / 12)
    assert built is not None
    return built


def one(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.full((1, 1), v, dtype=torch.float64) for v in values)


def closed(old: float, source: float, sink: float, transport: float, **options: object) -> list[float]:
    (amount,), changes = one(old), one(source, sink, transport)
    new, terms = close_ice_budget(amount, changes, **{"fraction": False, **options})  # type: ignore[arg-type]
    return [x.item() for x in (new, *terms)]


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_budget_bounds_and_signs(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    shape = (2, 3, 4)
    inputs = Fields(tuple(TERMS), torch.rand(2, 3, 3, 4, generator=rng))
    rates = (torch.rand(2, len(RATES), 3, 4, generator=rng) - 0.5) * 4 / DT
    rates *= torch.rand(rates.shape, generator=rng) > 0.3
    output = Fields((*TERMS, *RATES), torch.cat([torch.rand(2, 3, 3, 4, generator=rng), rates], dim=1))
    built = corrector(TERMS)
    out, _ = built(inputs, output, output, CorrectorState())
    assert built.corrected_names(output.names) == output.names
    for name, (source, sink, transport) in TERMS.items():
        assert out[name].shape == shape
        total = inputs[name] + DT * (out[source] + out[sink] + out[transport])
        torch.testing.assert_close(out[name], total, rtol=0, atol=2e-6)
        assert (out[name] >= 0).all()
        assert (out[source] >= 0).all()
        assert (out[sink] <= 0).all()
    assert (out["siconc"] <= 1).all()
    # No ice, no concentration, no snow: exactly.
    assert (out["simass"] == 0).any()
    assert (out["siconc"][out["simass"] == 0] == 0).all()
    assert (out["sisnmass"][out["simass"] == 0] == 0).all()


def test_nothing_is_read_back_to_the_host() -> None:
    fields = Fields((*TERMS, *RATES), torch.rand(2, 12, 3, 4))
    built = corrector(TERMS)
    with torch.profiler.profile() as profile:
        built(fields, fields, fields, CorrectorState())
    called = {event.key for event in profile.key_averages()}
    assert "aten::mul" in called
    assert not called & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


def test_a_budget_in_bounds_is_kept() -> None:
    assert closed(0.5, 0.25, -0.125, 0.0625) == [0.6875, 0.25, -0.125, 0.0625]


def test_deficit_is_shared_by_the_terms_that_are_not_zero() -> None:
    """0.25 + 0.125 - 0.5 - 0.5 = -0.625: three shares; with no source two; with nothing but an old deficit, transport."""
    third = 0.625 / 3
    assert closed(0.25, 0.125, -0.5, -0.5) == pytest.approx([0.0, 0.125 + third, -0.5 + third, -0.5 + third], abs=1e-15)
    assert closed(0.25, 0.0, -0.5, -0.5) == [0.0, 0.0, -0.125, -0.125]
    assert closed(-0.25, 0.0, 0.0, 0.0) == [0.0, 0.0, 0.0, 0.25]


def test_what_a_sink_cannot_give_transport_does() -> None:
    """-0.5 is lacking: shares of 0.25 would turn the sink of -0.125 into a source of 0.125."""
    assert closed(0.25, 0.0, -0.125, -0.625) == [0.0, 0.0, 0.0, -0.25]


def test_what_a_source_cannot_take_transport_does() -> None:
    """0.5 too much: shares of 0.25 would turn the source of 0.125 into a sink."""
    assert closed(0.75, 0.125, 0.0, 0.625, fraction=True) == [1.0, 0.0, 0.0, 0.25]


def test_a_positive_sink_goes_to_zero_in_the_excess_too() -> None:
    """The peer's move lacks the sign: its sink of 0.125 grows, to 0.25 - 2 share. Here transport takes it, then gives half of
    the excess 0.25 with the source."""
    assert closed(0.75, 0.25, 0.125, 0.125, fraction=True) == [1.0, 0.125, 0.0, 0.125]


def test_a_cell_does_not_depend_on_other_cells() -> None:
    """The peer mends a positive sink only if some cell of the batch has a deficit."""
    old, changes = (
        torch.tensor([[0.5, 0.0]]).double(),
        torch.tensor([[[0.0, 0.0]], [[0.25, -1.0]], [[0.0, 0.0]]]).double(),
    )
    together, terms = close_ice_budget(old, changes.unbind(), fraction=False)
    alone, alone_terms = close_ice_budget(old[:, :1], changes[..., :1].unbind(), fraction=False)
    assert torch.equal(together[:, :1], alone)
    assert alone.item() == 0.75
    for a, b in zip(terms, alone_terms, strict=True):
        assert torch.equal(a[:, :1], b)
    assert [x.item() for x in alone_terms] == [0.0, 0.0, 0.25]


def test_where_there_is_no_ice_there_is_no_concentration() -> None:
    """Thirds are not exact in binary: 0.1 + 3 shares of it leave 1e-17, which must still count as no ice."""
    new, terms = close_ice_budget(*_amount(0.1, 0.05, -0.2, -0.3), fraction=False)
    assert new.item() == 0.0
    concentration, terms = close_ice_budget(*_amount(0.5, 0.25, 0.0, 0.0), fraction=True, ice=new)
    assert concentration.item() == 0.0
    assert [x.item() for x in terms] == [0.0, 0.0, -0.5]


def _amount(old: float, *changes: float) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    return one(old)[0], one(*changes)


def test_without_mass_concentration_rules() -> None:
    terms = {k: v for k, v in TERMS.items() if k != "simass"}
    inputs = Fields(("siconc", "sisnmass"), torch.tensor([0.5, 0.25]).view(1, 2, 1, 1))
    names = ("siconc", "sisnmass", *terms["siconc"], *terms["sisnmass"])
    rates = torch.tensor([9.0, 9.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.125]).view(1, 8, 1, 1)
    out, _ = corrector(terms, dt=1.0)(inputs, Fields(names, rates), inputs, CorrectorState())
    assert out.tensor.flatten().tolist() == [0.0, 0.0, 0.0, -0.5, 0.0, 0.0, 0.0, -0.25]


def test_missing_and_unknown_variables() -> None:
    built = corrector(TERMS)
    with pytest.raises(ConfigError) as caught:
        built.check(Names(("simass", "siconc"), ("simass", "siconc", "sisnmass", *RATES[1:]), ()))
    assert len(caught.value.problems) == 2
    assert "needs sisnmass in the input" in str(caught.value)
    assert "needs sn+ in the output" in str(caught.value)
    with pytest.raises(ValidationError, match="not snow"):
        corrector({"snow": ["a", "b", "c"]})
    with pytest.raises(ValidationError, match="corrected_variables"):
        corrector({"simass": ["a", "b"]})
