"""Global-mean removal by hand and by its algebra."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ace_core.errors import DataError
from ace_core.step.global_mean import (
    GlobalMeanRemoval,
    GlobalMeanRemovalConfig,
    PerChannelGlobalMeanRemovalConfig,
    SharedGlobalMeanRemovalConfig,
)
from ace_core.step.normalizer import Scaling
from ace_core.step.packing import extra_sources, pack, presence

SCALING = Scaling({"ts": 288.0, "t": 250.0, "q": 1.0, "t2": 287.0}, {"ts": 16.0, "t": 8.0, "q": 0.5, "t2": 4.0})
IN, OUT = ("q", "ts", "t"), ("ts", "t2", "t", "q")
ADAPTER: TypeAdapter[SharedGlobalMeanRemovalConfig | PerChannelGlobalMeanRemovalConfig] = TypeAdapter(
    GlobalMeanRemovalConfig
)


def shared(append: bool = False) -> GlobalMeanRemoval:
    config = SharedGlobalMeanRemovalConfig(reference_field="ts", field_names=["ts", "t", "t2"], append_as_input=append)
    return config.build(IN, OUT, SCALING)


def fields(seed: int, batch: int = 2) -> torch.Tensor:
    x = torch.randn(batch, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([0.5, 16.0, 8.0])[:, None, None] + torch.tensor([1.0, 288.0, 250.0])[:, None, None]


def test_shared_moves_all_listed_fields_by_the_reference() -> None:
    removal = shared(append=True)
    x = fields(0)
    x[:, 1] += (torch.tensor([290.0, 280.0]) - x[:, 1].mean((1, 2)))[:, None, None]
    out, state = removal.remove(x)
    # offsets 288 - 290 = -2 and 288 - 280 = +8
    torch.testing.assert_close(
        out[0] - x[0], torch.tensor([0.0, -2.0, -2.0])[:, None, None].expand(3, 4, 6), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        out[1] - x[1], torch.tensor([0.0, 8.0, 8.0])[:, None, None].expand(3, 4, 6), atol=1e-4, rtol=0
    )
    assert removal.extra_names == ("__gmr_extra__ts",)
    extras = removal.extras(state)
    assert extras is not None
    torch.testing.assert_close(extras, torch.tensor([[2.0 / 16], [-8.0 / 16]]), atol=1e-5, rtol=0)
    # outputs get it back, those that are outputs only as well; q is not listed
    y = torch.zeros(2, 4, 4, 6)
    back = removal.restore(y, state)[:, :, 0, 0]
    torch.testing.assert_close(back, torch.tensor([[2.0, 2, 2, 0], [-8.0, -8, -8, 0]]), atol=1e-4, rtol=0)


def test_per_channel_centres_every_field_on_its_climatology() -> None:
    removal = PerChannelGlobalMeanRemovalConfig(append_as_input=True).build(IN, OUT, SCALING)
    x = fields(1) + torch.tensor([0.3, -4.0, 9.0])[:, None, None]
    out, state = removal.remove(x)
    torch.testing.assert_close(out.mean((2, 3)), torch.tensor([[1.0, 288.0, 250.0]]).expand(2, 3), rtol=1e-6, atol=0)
    assert removal.extra_names == ("__gmr_extra__q", "__gmr_extra__ts", "__gmr_extra__t")
    extras = removal.extras(state)
    expected = (x.mean((2, 3)) - torch.tensor([1.0, 288, 250])) / torch.tensor([0.5, 16, 8])
    torch.testing.assert_close(extras, expected, atol=1e-5, rtol=1e-5)
    # t2 is an output only: nothing was taken, nothing comes back
    back = removal.restore(torch.zeros(2, 4, 4, 6), state)
    assert not back[:, 1].any()
    torch.testing.assert_close(back[:, 3, 0, 0], x[:, 0].mean((1, 2)) - 1.0, atol=1e-6, rtol=0)


def test_extras_follow_the_order_of_field_names() -> None:
    config = PerChannelGlobalMeanRemovalConfig(field_names=["t", "q"], append_as_input=True)
    removal = config.build(IN, OUT, SCALING)
    x = fields(2)
    out, state = removal.remove(x)
    assert removal.extra_names == ("__gmr_extra__t", "__gmr_extra__q")
    assert torch.equal(out[:, 1], x[:, 1])
    extras = removal.extras(state)
    assert extras is not None
    torch.testing.assert_close(extras[:, 0], (x[:, 2].mean((1, 2)) - 250) / 8, atol=1e-5, rtol=1e-5)


def test_a_missing_field_is_not_shifted_and_stays_out_of_the_others() -> None:
    removal = PerChannelGlobalMeanRemovalConfig(append_as_input=True).build(IN, OUT, SCALING)
    x = fields(3)
    x[1, 2] = torch.nan
    mask = torch.tensor([[True, True, True], [True, True, False]])
    out, state = removal.remove(x, mask)
    assert not state.shift.isnan().any()
    extras = removal.extras(state)
    assert extras is not None
    assert float(extras[1, 2]) == 0.0
    assert not removal.restore(torch.zeros(2, 4, 4, 6), state)[1, 2].any()
    clean, _ = removal.remove(torch.nan_to_num(x))
    assert torch.equal(out[:, :2], clean[:, :2])


def test_a_missing_reference_is_an_error_that_names_the_sample() -> None:
    mask = torch.tensor([[True, True, True], [True, False, True]])
    with pytest.raises(DataError, match=r"samples 1 of a batch: 'ts'"):
        shared().require_reference(mask, IN)
    shared().require_reference(torch.tensor([[False, True, False]]), IN)
    PerChannelGlobalMeanRemovalConfig().build(IN, OUT, SCALING).require_reference(mask, IN)


@given(st.integers(0, 10**6), st.booleans(), st.floats(-40, 40))
@settings(max_examples=50, deadline=None)
def test_restore_inverts_remove(seed: int, per_channel: bool, warming: float) -> None:
    config = (
        PerChannelGlobalMeanRemovalConfig()
        if per_channel
        else SharedGlobalMeanRemovalConfig(reference_field="ts", field_names=["ts", "t"])
    )
    removal = config.build(IN, IN, SCALING)
    x = fields(seed) + warming
    out, state = removal.remove(x)
    torch.testing.assert_close(removal.restore(out, state), x, rtol=0, atol=1e-4)
    # a warmer copy of the same weather looks the same to the network
    warm, _ = removal.remove(x + torch.tensor([0.0, 5.0, 5.0])[:, None, None])
    torch.testing.assert_close(warm, out, rtol=0, atol=2e-4)


def test_states_of_interleaved_calls_do_not_mix() -> None:
    removal = shared()
    a, b = fields(4), fields(5) + 7.0
    out_a, state_a = removal.remove(a)
    out_b, state_b = removal.remove(b)
    pick = [1, 2]
    y = torch.zeros(2, 4, 4, 6)
    for x, out, state in ((a, out_a, state_a), (b, out_b, state_b)):
        y[:, 0], y[:, 2] = out[:, 1], out[:, 2]
        torch.testing.assert_close(removal.restore(y, state)[:, [0, 2]], x[:, pick], rtol=0, atol=1e-4)


def test_kind_is_inferred_for_old_configurations() -> None:
    assert ADAPTER.validate_python({}).kind == "shared"
    assert ADAPTER.validate_python({"append_as_input": True}).kind == "shared"
    assert ADAPTER.validate_python({"field_names": ["t"]}).kind == "shared"
    assert ADAPTER.validate_python({"field_names": None}).kind == "per_channel"
    assert ADAPTER.validate_python({"kind": "per_channel"}).kind == "per_channel"
    assert ADAPTER.validate_python({}).field_names == [
        *("surface_temperature", "TMP2m", "TMP850"),
        *(f"air_temperature_{k}" for k in range(8)),
    ]
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"kind": "global"})


def test_problems_name_every_bad_field() -> None:
    config = SharedGlobalMeanRemovalConfig(reference_field="t5", field_names=["t", "t"])
    assert [p.split(" ")[0] for p in config.problems(IN, OUT)] == [
        "global_mean_removal.field_names",
        "global_mean_removal.reference_field",
    ]
    per_channel = PerChannelGlobalMeanRemovalConfig(field_names=["t2", "u", "q"])
    found = per_channel.problems(IN, OUT)
    assert len(found) == 2
    assert "output only" in found[0]
    assert "'u'" in found[1]
    assert shared_default_problems() == []


def shared_default_problems() -> list[str]:
    return SharedGlobalMeanRemovalConfig().problems(("surface_temperature", "t"), ("t",))


def test_unknown_shared_fields_warn_only_if_somebody_wrote_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ace"):
        SharedGlobalMeanRemovalConfig(reference_field="ts").build(IN, OUT, SCALING)
        assert not caplog.records
        SharedGlobalMeanRemovalConfig(reference_field="ts", field_names=["ts", "u"]).build(IN, OUT, SCALING)
    assert [r.getMessage() for r in caplog.records] == ["global_mean_removal: u: neither input nor output, no effect"]


def test_nothing_waits_for_the_device() -> None:
    """No value is read on the host between a step's input and the network's (``.item()``, a branch on a tensor)."""
    removal = PerChannelGlobalMeanRemovalConfig(append_as_input=True).build(IN, OUT, SCALING)
    x, sources = fields(6), extra_sources(IN, removal.extra_names)
    data, dropout = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
    with torch.profiler.profile() as profile:
        out, state = removal.remove(x, data)
        pack(out, removal.extras(state), presence(data, dropout, sources), indicators=True)
        removal.restore(torch.zeros(2, 4, 4, 6), state)
    kernels = {event.key for event in profile.key_averages()}
    assert "aten::mean" in kernels
    assert not kernels & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"}
