"""Named fields: gathers, views, levels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace_core.fields import Fields

NAMES = ("ps", "t_0", "t_1", "t_2", "q_0", "u_1")


def make() -> Fields:
    return Fields(NAMES, torch.arange(2 * 6 * 3 * 4, dtype=torch.float32).view(2, 6, 3, 4))


@given(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
def test_select_gives_each_name_its_own_channel(names: list[str]) -> None:
    fields = make()
    picked = fields.select(names)
    for c, name in enumerate(names):
        assert torch.equal(picked[:, c], fields.tensor[:, NAMES.index(name)])


def test_consecutive_names_are_a_view_and_others_are_not() -> None:
    fields = make()
    assert fields.select(["t_1", "t_2"]).data_ptr() == fields["t_1"].data_ptr()
    assert fields.select(["t_2", "t_1"]).data_ptr() != fields["t_2"].data_ptr()


def test_levels_are_found_from_the_top_until_one_is_missing() -> None:
    fields = make()
    assert torch.equal(fields.levels("t"), fields.tensor[:, 1:4])
    with pytest.raises(KeyError, match="u_0"):
        fields.levels("u")
