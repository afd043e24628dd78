"""Corrector of sea ice: concentration, ice mass and snow mass rebuilt from their sources, sinks and transports.

Legend: B sample, C channel, Y latitude, X longitude. In float64; per cell, so no cell depends on another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ace_core.errors import Problem
from ace_core.fields import Draft, Fields
from ace_core.physics.corrector.corrector import Corrector, Names, lacking
from ace_core.physics.corrector.state import CorrectorState

CONCENTRATIONS = ("siconc", "sea_ice_fraction", "ocean_sea_ice_fraction")
ORDER = ("simass", *CONCENTRATIONS, "sisnmass")


class IceCorrector(Corrector):
    """terms[variable] = names of (source, sink, transport), rates per second of what the variable measures."""

    def __init__(
        self, timestep_seconds: float, terms: Mapping[str, tuple[str, str, str]], *, disabled_epochs: int = 0
    ) -> None:
        super().__init__(disabled_epochs)
        self.timestep = timestep_seconds
        self.terms = {name: terms[name] for name in ORDER if name in terms}

    def corrected_names(self, out_names: Sequence[str]) -> tuple[str, ...]:
        changed = {n for name, terms in self.terms.items() for n in (name, *terms)}
        return tuple(n for n in out_names if n in changed)

    def problems(self, step: Names) -> list[Problem]:
        key = "budget_correction.corrected_variables"
        wanted = [n for name, terms in self.terms.items() for n in (name, *terms)]
        return [
            *lacking(key, "in the input", [n for n in self.terms if n not in step.input], "in_names"),
            *lacking(key, "in the output", [n for n in wanted if n not in step.output], "out_names"),
        ]

    def correct(self, inputs: Fields, draft: Draft, next_forcing: Fields, state: CorrectorState) -> CorrectorState:
        ice: Tensor | None = None  # what the first variable becomes: without it there is no concentration and no snow
        for name, terms in self.terms.items():
            old = inputs[name].double()
            changes = (draft.select(terms).double() * self.timestep).unbind(dim=-3)
            new, changes = close_ice_budget(old, changes, fraction=name in CONCENTRATIONS, ice=ice)
            ice = new if ice is None else ice
            draft[name] = new
            draft.set_all(terms, torch.stack(changes, dim=-3) / self.timestep)
        return state


Terms = tuple[Tensor, Tensor, Tensor]


def close_ice_budget(
    old: Tensor, changes: Sequence[Tensor], *, fraction: bool, ice: Tensor | None = None
) -> tuple[Tensor, Terms]:
    """New amount and the (source, sink, transport) that lead to it; all [..., Y, X], changes over one step.

    The amount is kept from falling below 0, a fraction from exceeding 1, and both are 0 where ``ice`` is. What has to be
    added or taken is shared equally by the terms that are not zero (by transport if all are); a source that would become
    negative stays at 0, a sink that would become positive too, and transport takes their rest. Afterwards
    ``new = old + source + sink + transport`` to rounding, source >= 0 and sink <= 0.
    """
    source, sink, transport = changes
    terms: Terms = (source, sink, transport)
    new = old + source + sink + transport
    zero, one = torch.zeros_like(new), torch.ones_like(new)
    # The bound itself, not old + terms, is the new amount: a rounding error of 1e-17 is no ice.
    terms, new = _share(terms, new, zero, new < 0)
    if fraction:
        terms, new = _share(terms, new, one, new > 1)
    if ice is not None:
        terms, new = _share(terms, new, zero, (ice == 0) & (new > 0))
    return new, terms


def _share(terms: Terms, new: Tensor, bound: Tensor, where: Tensor) -> tuple[Terms, Tensor]:
    """Where asked, change the terms so that they lead to ``bound`` instead of ``new``; everywhere, mend signs."""
    needed = torch.where(where, bound - new, 0.0)
    source, sink, transport = terms
    active = [(x != 0).to(new.dtype) for x in terms]
    count = active[0] + active[1] + active[2]
    share = needed / count.clamp_min(1.0)
    moved_source, moved_sink = source + share * active[0], sink + share * active[1]
    source, sink = moved_source.clamp_min(0.0), moved_sink.clamp_max(0.0)
    rest = (moved_source - source) + (moved_sink - sink)
    transport = transport + torch.where(count == 0, needed, share * active[2]) + rest
    return (source, sink, transport), torch.where(where, bound, new)
