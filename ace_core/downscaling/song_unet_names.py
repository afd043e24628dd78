"""fme's SongUNet tensors as ours, bit for bit.

Both of fme's versions: ``unet_diffusion_song`` (attention at the root of a block) and ``unet_diffusion_song_v2`` (under ``attn``). fme
names levels by their shorter side, ours are counted from the finest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ace_core.errors import DataError, fail

PREFIX = "unet.model."  # of the network in fme's diffusion module, perhaps after its checkpoint's ``module.``
_LEVEL = re.compile(r"(enc|dec)\.(\d+)x\2_(\w+?)\.(.*)")
_ATTENTION = {"norm2": "attn.norm", "qkv": "attn.qkv", "proj": "attn.proj"}
_MAP = {"map_layer0": "embedding.layers.0", "map_layer1": "embedding.layers.1"}


def song_unet_from_fme(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state of the network whose state fme saved; names with or without the leading ``[module.]unet.model.``.

    Resampling filters are dropped: they follow from the configuration. Raises :class:`DataError` for tensors of label or augmentation
    embeddings and of learned positions, which no configuration of fme's downscaling builds, and for any other unknown name.
    """
    own = {name.removeprefix("module.").removeprefix(PREFIX): value for name, value in state.items()}
    sides = sorted({int(match[2]) for name in own if (match := _LEVEL.fullmatch(name))}, reverse=True)
    ours: dict[str, Tensor] = {}
    shifts: dict[tuple[int, int, int], dict[str, Tensor]] = {}
    for name, value in own.items():
        head, _, last = name.rpartition(".")
        if last == "resample_filter":
            continue
        if name == "map_noise.freqs":
            ours["embedding.frequencies"] = value * (2.0 * torch.pi)
        elif head in _MAP:
            ours[f"{_MAP[head]}.{last}"] = value
        elif match := _LEVEL.fullmatch(name):
            part, rest = match[3], match[4]
            at = sides.index(int(match[2])) if match[1] == "enc" else len(sides) - 1 - sides.index(int(match[2]))
            if part == "conv":
                ours[f"first.{rest}"] = value
            elif rest.startswith("affine."):
                place = (0 if match[1] == "enc" else 1, at, _place(part))
                shifts.setdefault(place, {})[last] = value
            else:
                ours[f"{match[1]}.{at}.{_part(part)}.{_inside(rest)}"] = _rows(rest, value)
        else:
            raise fail(DataError, f"tensor {name}", "unknown", "the tensors of SongUNet (fme, downscaling)")
    for last in ("weight", "bias"):
        ours[f"shifts.{last}"] = torch.cat([shifts[place][last] for place in sorted(shifts)])
    return ours


def _place(part: str) -> int:
    """Of a block in its level."""
    if part.startswith("block"):
        return 2 + int(part.removeprefix("block"))
    return 1 if part == "in1" else 0


def _part(part: str) -> str:
    return "aux" if part in ("aux_skip", "aux_residual") else part


def _inside(rest: str) -> str:
    first, _, more = rest.partition(".")
    return f"{_ATTENTION.get(first, first)}.{more}" if more else rest


def _rows(rest: str, value: Tensor) -> Tensor:
    """fme's rows of queries, keys and values alternate; ours follow each other."""
    if not rest.removeprefix("attn.").startswith("qkv."):
        return value
    return value.view(-1, 3, *value.shape[1:]).transpose(0, 1).flatten(0, 1)
