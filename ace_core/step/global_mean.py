"""Global-mean removal: the network sees departures from a sample's own mean; what was taken is given back.

Legend: B sample, C channel, S slot (one per removed mean), Y latitude, X longitude. Means are unweighted over cells, of
fields in SI units before normalisation, as in ACE. A shift moves the sample's mean to the climatological mean mu of the
normalisation, so ``normalise(x + shift)`` has mean 0.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ace_core.config import StrictModel, nearest
from ace_core.distributed import Divisible
from ace_core.errors import DataError, fail
from ace_core.step.normalizer import Scaling
from ace_core.step.packing import extra_name

log = logging.getLogger("ace")
DEFAULT_FIELDS = ("surface_temperature", "TMP2m", "TMP850", *(f"air_temperature_{k}" for k in range(8)))


class SharedGlobalMeanRemovalConfig(StrictModel):
    """Take the mean of ``reference_field`` off all ``field_names``, so that a warmer climate looks like the present one.

    Fields that are outputs only get it back too: the network predicts them relative to the reference. append_as_input: the
    normalised mean becomes an extra input channel.
    """

    kind: Literal["shared"] = "shared"
    reference_field: str = "surface_temperature"
    field_names: list[str] = list(DEFAULT_FIELDS)
    append_as_input: bool = False

    def problems(self, in_names: Sequence[str], out_names: Sequence[str]) -> list[str]:
        """What is wrong with the names, one phrase each. A field that is nowhere is legal (the default list names many)."""
        found = _twice(self.field_names)
        if self.reference_field not in in_names:
            hint = nearest(self.reference_field, in_names)
            found.append(
                f"global_mean_removal.reference_field {self.reference_field!r} is not in in_names {hint}".rstrip()
            )
        return found

    def build(self, in_names: Sequence[str], out_names: Sequence[str], scaling: Scaling) -> GlobalMeanRemoval:
        """scaling: the network's. Warns of listed fields that are neither inputs nor outputs."""
        unknown = [n for n in self.field_names if n not in in_names and n not in out_names]
        if unknown and "field_names" in self.model_fields_set:
            log.warning("global_mean_removal: %s: neither input nor output, no effect", ", ".join(unknown))
        slots = dict.fromkeys(self.field_names, 0)
        return GlobalMeanRemoval(
            [self.reference_field], slots, in_names, out_names, scaling, self.append_as_input, shared=True
        )


class PerChannelGlobalMeanRemovalConfig(StrictModel):
    """Take every field's own mean off it. field_names: None means all inputs. append_as_input: one extra per field."""

    kind: Literal["per_channel"] = "per_channel"
    field_names: list[str] | None = None
    append_as_input: bool = False

    def problems(self, in_names: Sequence[str], out_names: Sequence[str]) -> list[str]:
        """What is wrong with the names, one phrase each: a mean can only be taken of an input."""
        names = self.field_names or []
        where = "global_mean_removal.field_names"
        found = _twice(names)
        for name in dict.fromkeys(names):
            if name in in_names:
                continue
            if name in out_names:
                found.append(f"{where} has {name!r}, which is an output only: it has no mean to remove")
            else:
                found.append(f"{where} has {name!r}, which is not in in_names {nearest(name, in_names)}".rstrip())
        return found

    def build(self, in_names: Sequence[str], out_names: Sequence[str], scaling: Scaling) -> GlobalMeanRemoval:
        """scaling: the network's."""
        fields = list(in_names if self.field_names is None else self.field_names)
        slots = {n: i for i, n in enumerate(fields)}
        return GlobalMeanRemoval(fields, slots, in_names, out_names, scaling, self.append_as_input, shared=False)


def _infer_kind(value: Any) -> Any:
    """Old configurations have no ``kind``: they are shared unless only per_channel can be meant (``field_names: null``)."""
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "per_channel" if value.get("field_names", "") is None else "shared", **value}
    return value


GlobalMeanRemovalConfig = Annotated[
    Annotated[SharedGlobalMeanRemovalConfig | PerChannelGlobalMeanRemovalConfig, Field(discriminator="kind")],
    BeforeValidator(_infer_kind),
]


@dataclass(frozen=True, eq=False)
class GlobalMeanState:
    """What one call took off, needed to give it back. shift [B, S + 1] in the fields' units; the last column is 0."""

    shift: Tensor


class GlobalMeanRemoval(Divisible):
    """Stateless: :meth:`measure` returns the state, every other method takes it.

    fields: those whose mean is measured, one slot each. slots: name -> slot of its shift. shared: one reference serves
    every name. extra_names: packed names of the
    extra inputs, () unless they are appended.
    """

    def __init__(
        self,
        fields: Sequence[str],
        slots: dict[str, int],
        in_names: Sequence[str],
        out_names: Sequence[str],
        scaling: Scaling,
        append_as_input: bool,
        *,
        shared: bool,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.fields = tuple(fields)
        self.extra_names = tuple(extra_name(n) for n in fields) if append_as_input else ()
        self._source_list = [list(in_names).index(n) for n in fields]
        zero = len(self.fields)
        self.source: Tensor
        self.in_slot: Tensor
        self.out_slot: Tensor
        self.mean: Tensor
        self.inverse_std: Tensor
        self.register_buffer("source", torch.tensor(self._source_list), persistent=False)
        self.register_buffer("in_slot", torch.tensor([slots.get(n, zero) for n in in_names]), persistent=False)
        self.register_buffer("out_slot", torch.tensor([slots.get(n, zero) for n in out_names]), persistent=False)
        self.register_buffer("mean", scaling.mean(fields), persistent=False)
        self.register_buffer("inverse_std", 1.0 / scaling.std(fields), persistent=False)

    def measure(self, x: Tensor, data_mask: Tensor | None) -> GlobalMeanState:
        """x [B, C_in, Y, X] in SI units; data_mask bool [B, C_in], None if nothing is missing.

        The shift of a missing field is 0 (its placeholder has no mean).
        """
        if len(self._source_list) == 1:
            means = self.tiles.mean(x[:, self._source_list[0]]).unsqueeze(1)
        else:
            means = self.tiles.mean(x).index_select(1, self.source)
        shift = self.mean - means
        if data_mask is not None:
            shift = torch.where(data_mask.index_select(1, self.source), shift, torch.zeros_like(shift))
        return GlobalMeanState(nn.functional.pad(shift, (0, 1)))

    def in_shift(self, state: GlobalMeanState) -> Tensor:
        """[B, C_in, 1, 1]: add it to the inputs."""
        return state.shift.index_select(1, self.in_slot)[:, :, None, None]

    def out_shift(self, state: GlobalMeanState) -> Tensor:
        """[B, C_out, 1, 1]: subtract it from the outputs."""
        return state.shift.index_select(1, self.out_slot)[:, :, None, None]

    def extras(self, state: GlobalMeanState) -> Tensor | None:
        """[B, S] the removed means in standard deviations from mu, in field order; None unless they are appended."""
        return -state.shift[:, :-1] * self.inverse_std if self.extra_names else None

    def remove(self, x: Tensor, data_mask: Tensor | None = None) -> tuple[Tensor, GlobalMeanState]:
        """[B, C_in, Y, X] -> the same shifted, and the state."""
        state = self.measure(x, data_mask)
        return x + self.in_shift(state), state

    def restore(self, y: Tensor, state: GlobalMeanState) -> Tensor:
        """[B, C_out, Y, X] -> the same with what was removed given back."""
        return y - self.out_shift(state)

    def require_reference(self, data_mask: Tensor, in_names: Sequence[str]) -> None:
        """Raise :class:`DataError` if a shared reference is missing in a sample: its fields could not be shifted.

        data_mask bool [B, C_in] on the CPU, as the loader gives it.
        """
        if not self.shared:
            return
        missing = (~data_mask[:, self._source_list[0]]).nonzero().flatten().tolist()
        if missing:
            raise fail(
                DataError,
                f"samples {', '.join(map(str, missing))} of a batch",
                f"{in_names[self._source_list[0]]!r}, the reference of global_mean_removal, is missing",
                "a reference field that every data set has",
                "choose another reference_field, kind: per_channel, or leave the data set out",
            )


def _twice(names: Sequence[str]) -> list[str]:
    return [f"global_mean_removal.field_names has {n!r} twice" for n, count in Counter(names).items() if count > 1]
