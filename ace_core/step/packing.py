"""What the network sees, channel by channel.

Legend: B sample, C channel, Y latitude, X longitude.

Packed order: ``[in | extras | mask(in) | mask(extras)]``, the second half with ``include_channel_mask_inputs`` only. Extras
are the global means of :mod:`ace_core.step.global_mean`. A mask channel (indicator) is 1 where the channel is present, that
is, neither missing from the data (``data_mask``) nor withheld (:mod:`ace_core.step.input_dropout`), and 0 elsewhere;
indicators themselves are never withheld.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EXTRA_PREFIX = "__gmr_extra__"
INDICATOR_PREFIX = "__mask__"


def extra_name(field: str) -> str:
    """Packed name of the global mean of ``field``."""
    return EXTRA_PREFIX + field


def maskable_names(in_names: Sequence[str], extra_names: Sequence[str]) -> tuple[str, ...]:
    """The channels that input dropout draws for: ``in | extras``. An extra is dropped independently of its field."""
    return (*in_names, *extra_names)


def packed_names(in_names: Sequence[str], extra_names: Sequence[str], indicators: bool) -> tuple[str, ...]:
    """Names of all channels of the network input, indicators as ``__mask__<name>``."""
    names = maskable_names(in_names, extra_names)
    return (*names, *(INDICATOR_PREFIX + n for n in names)) if indicators else names


def extra_sources(in_names: Sequence[str], extra_names: Sequence[str]) -> Tensor:
    """int64 [n_extra]: the input channel that every extra is the mean of."""
    position = {extra_name(n): i for i, n in enumerate(in_names)}
    return torch.tensor([position[n] for n in extra_names], dtype=torch.int64)


def presence(data_mask: Tensor | None, dropout_mask: Tensor | None, sources: Tensor) -> Tensor | None:
    """bool [B, C_in + n_extra], True where a channel is present; None if all are.

    data_mask: bool [B, C_in], False where the sample lacks the variable; an extra is present if its field is (sources [n_extra]).
    dropout_mask: bool [B, C_in + n_extra].
    """
    if data_mask is None:
        return dropout_mask
    if len(sources):
        data_mask = torch.cat([data_mask, data_mask.index_select(1, sources)], dim=1)
    return data_mask if dropout_mask is None else data_mask & dropout_mask


def pack(inputs: Tensor, extras: Tensor | None, present: Tensor | None, indicators: bool) -> Tensor:
    """The network input [B, C_packed, Y, X].

    inputs [B, C_in, Y, X] normalised; extras [B, n_extra] normalised global means, or None; present [B, C_in + n_extra].
    Absent channels are 0, the climatological mean, whatever they hold (placeholders are NaN).
    """
    batch, n_in, *space = inputs.shape
    if present is not None:
        zero = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
        inputs = torch.where(present[:, :n_in, None, None], inputs, zero)
        extras = None if extras is None else torch.where(present[:, n_in:], extras, zero)
    # Whatever is constant in space stays [B, n] until the one copy that packs.
    constant = [] if extras is None else [extras]
    if indicators:
        n = n_in + (0 if extras is None else extras.shape[1])
        constant.append(inputs.new_ones(()).expand(batch, n) if present is None else present.to(inputs.dtype))
    if not constant:
        return inputs
    return torch.cat([inputs, *(c[:, :, None, None].expand(-1, -1, *space) for c in constant)], dim=1)


def nan_channels(packed: Tensor, names: Sequence[str]) -> list[tuple[str, int]]:
    """(name, sample) of every channel of [B, C, Y, X] with a NaN. Waits for the device: call it once something is wrong."""
    bad = packed.isnan().flatten(2).any(dim=2).nonzero().tolist()
    return [(names[channel], sample) for sample, channel in bad]
