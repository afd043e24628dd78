"""Entries for variables: names, prefixes of levels, exact levels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace_core.names import Matches, match_names

NAMES = ("T", "T_0", "T_12", "T_x", "TT_0", "T_0_1", "a.b", "axb", "a.b_3")


@pytest.mark.parametrize(
    ("entry", "selected"),
    [
        ("T", ("T", "T_0", "T_12")),
        ("T_", ("T_0", "T_12")),
        ("T_0", ("T_0",)),
        ("T_1", ()),
        ("a.b", ("a.b", "a.b_3")),  # a dot is a dot
        ("T_x", ("T_x",)),
        ("T+", ()),
        ("T_0_1", ("T_0_1",)),
    ],
)
def test_one_entry(entry: str, selected: tuple[str, ...]) -> None:
    assert match_names([entry], NAMES) == Matches(selected, () if selected else (entry,))


def test_order_is_that_of_the_names_and_unmatched_that_of_the_entries() -> None:
    found = match_names(["z", "T_12", "T", "y_"], NAMES)
    assert found == Matches(("T", "T_0", "T_12"), ("z", "y_"))
    assert match_names([], NAMES) == Matches((), ())


@given(st.text(alphabet="a.+*[]()\\^$|?{}", min_size=1, max_size=6), st.integers(0, 99))
def test_every_name_matches_itself_and_its_levels_whatever_its_characters(name: str, level: int) -> None:
    names = (name, f"{name}_{level}", name + "b")
    assert match_names([name], names).names == names[:2]
    assert match_names([f"{name}_"], names).names == names[1:2]
