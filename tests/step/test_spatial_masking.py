"""Which mask a variable takes, and what is filled."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from pydantic import ValidationError

from ace_core.errors import ConfigError, DataError
from ace_core.spatial_mask import SpatialMasks
from ace_core.step.normalizer import Scaling
from ace_core.step.spatial_masking import StaticSpatialMaskingConfig, output_masking

SCALING = Scaling({"sst": 290.0, "thetao_1": 10.0, "zos": 0.5}, {"sst": 1.0, "thetao_1": 1.0, "zos": 1.0})


def ones(*zeros: tuple[int, int]) -> torch.Tensor:
    mask = torch.ones(2, 3)
    for y, x in zeros:
        mask[y, x] = 0.0
    return mask


MASKS = SpatialMasks({"mask_sst": ones((0, 0)), "mask_1": ones((1, 1)), "mask_2d": ones((0, 2))})


def test_own_mask_then_level_then_two_dimensional() -> None:
    assert MASKS.of("sst") is MASKS.masks["mask_sst"]
    assert MASKS.of("thetao_1") is MASKS.masks["mask_1"]
    assert MASKS.of("thetao_01") is MASKS.masks["mask_1"]
    assert MASKS.of("zos") is MASKS.masks["mask_2d"]
    assert MASKS.of("thetao_2") is None
    assert SpatialMasks({"mask_1": ones()}).of("zos") is None


def test_a_mask_must_be_named_as_one() -> None:
    with pytest.raises(DataError, match=r"masks\.wet"):
        SpatialMasks({"wet": ones()})


def test_masks_round_trip_through_plain_tensors() -> None:
    again = SpatialMasks(MASKS.state())
    assert all(torch.equal(again.masks[n], m) for n, m in MASKS.masks.items())


def test_outputs_are_nan_where_they_do_not_exist() -> None:
    names = ("sst", "thetao_1", "thetao_2", "zos")
    out = output_masking(names, MASKS)(torch.ones(5, 4, 2, 3))
    where = [tuple(i) for i in out[0].isnan().nonzero().tolist()]
    assert where == [(0, 0, 0), (1, 1, 1), (3, 0, 2)]
    assert torch.equal(out.isnan(), out[:1].isnan().expand(5, -1, -1, -1))


def test_inputs_are_filled_with_a_number_or_their_mean() -> None:
    names = ("sst", "thetao_1", "zos")
    x = torch.full((2, 3, 2, 3), math.nan)
    x = torch.where(torch.stack([ones((0, 0)), ones((1, 1)), ones((0, 2))]) == 1, torch.ones(()), x)
    zero = StaticSpatialMaskingConfig(mask_value=0).build(names, MASKS, SCALING)
    assert not zero(x).isnan().any()
    assert float(zero(x)[0, 0, 0, 0]) == 0.0
    mean = StaticSpatialMaskingConfig(mask_value=0, fill_value="mean", exclude_names_and_prefixes=["zos"]).build(
        names, MASKS, SCALING
    )
    out = mean(x)
    assert [float(out[0, 0, 0, 0]), float(out[0, 1, 1, 1])] == [290.0, 10.0]
    assert out[0, 2, 0, 2].isnan()


def test_a_mean_that_is_not_known_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    config = StaticSpatialMaskingConfig(mask_value=0, fill_value="mean")
    with pytest.raises(ConfigError, match="no mean of 'uo_1'"):
        config.build(("sst", "uo_1", "uo_2"), MASKS, SCALING)
    names = ("sst", "uo_1", "uo_2")
    spared = StaticSpatialMaskingConfig(mask_value=0, fill_value="mean", exclude_names_and_prefixes=["uo_", "so"])
    with caplog.at_level(logging.WARNING, "ace"):
        masking = spared.build(names, MASKS, SCALING)
    assert [r.getMessage() for r in caplog.records] == ["input_masking.exclude_names_and_prefixes: no input matches so"]
    assert int((masking(torch.ones(3, 2, 3)) != 1).sum()) == 1


def test_mask_value_1_fills_the_rest() -> None:
    only = StaticSpatialMaskingConfig(mask_value=1, fill_value=7).build(("zos",), MASKS, SCALING)
    out = only(torch.zeros(1, 1, 2, 3))
    assert out[0, 0].tolist() == [[7.0, 7.0, 0.0], [7.0, 7.0, 7.0]]


def test_fractions_round() -> None:
    masks = SpatialMasks({"mask_2d": torch.tensor([[0.4, 0.6]])})
    assert output_masking(("x",), masks)(torch.zeros(1, 1, 2)).isnan().tolist() == [[[True, False]]]


def test_no_mask_is_no_copy() -> None:
    x = torch.zeros(1, 1, 2, 3)
    assert output_masking(("thetao_2",), MASKS)(x) is x
    assert output_masking(("x",), SpatialMasks({}))(x) is x


def test_mask_value_is_0_or_1() -> None:
    with pytest.raises(ValidationError):
        StaticSpatialMaskingConfig.model_validate({"mask_value": 2})
