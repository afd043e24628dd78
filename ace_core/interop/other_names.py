"""Parameters of fme's Samudra, LandNet and SFNO-v0.1.0 under our names and in our layout, and back, bit for bit.

Legend: Y latitude, X longitude, C channels, L degrees, M orders, R = 2 (real, imaginary). fme's state dicts are meant without the
leading ``module.`` and without ``label_encoding``. A name that belongs to none of the network's layers stays as it is, for the
strict loading that follows to complain of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ace_core.errors import DataError, fail

State = dict[str, Tensor]

FACTORS = re.compile(r"\.filter\.weight\.")  # of a spectral weight, the same on both sides
_WRAPPER = "conditional_model."  # around a network with noise
_CAP = re.compile(r"layers\.\d+\.convblock\.[25]\.cap")


class Names(NamedTuple):
    """Of one type of builder: fme's state dict as ours, and ours as fme's.

    ``to_ours`` raises :class:`DataError` for a Samudra whose activations are capped elsewhere than at one.
    """

    to_ours: Callable[[Mapping[str, Tensor]], State]
    to_peer: Callable[[Mapping[str, Tensor]], State]


def _samudra_to_ours(peer: Mapping[str, Tensor]) -> State:
    ours: State = {}
    for name, value in peer.items():
        own = name.removeprefix(_WRAPPER)
        if not _CAP.fullmatch(own):
            ours[own] = value
        elif float(value) != 1.0:
            raise fail(DataError, name, f"activations capped at {float(value)}", "at 1, which fme always writes")
    return ours


def _samudra_to_peer(ours: Mapping[str, Tensor]) -> State:
    prefix = _WRAPPER if any(".noise_conditioning." in name for name in ours) else ""
    peer = {prefix + name: value for name, value in ours.items()}
    for name in ours:
        if found := re.fullmatch(r"(layers\.\d+\.convblock)\.([03])\.weight", name):
            peer[f"{prefix}{found[1]}.{int(found[2]) + 2}.cap"] = torch.tensor(1.0)
    return peer


def _land_net_to_ours(peer: Mapping[str, Tensor]) -> State:
    ours: State = {}
    for name, value in peer.items():
        if name == "pos_embed.pos_embed":  # [1, C, Y, X]
            ours["pos_embed"] = value[0].permute(1, 2, 0).contiguous()
        else:
            own = re.sub(r"^model\.(\d+)\.layers\.0\.", r"layers.\1.", name)
            ours[own] = _matrix(value) if own != name else value
    return ours


def _land_net_to_peer(ours: Mapping[str, Tensor]) -> State:
    peer: State = {}
    for name, value in ours.items():
        if name == "pos_embed":
            peer["pos_embed.pos_embed"] = value.permute(2, 0, 1)[None].contiguous()
        else:
            theirs = re.sub(r"^layers\.(\d+)\.", r"model.\1.layers.0.", name)
            peer[theirs] = _kernel(value) if theirs != name else value
    return peer


def _sfno_v0_to_ours(peer: Mapping[str, Tensor]) -> State:
    ours: State = {}
    for name, value in peer.items():
        own = re.sub(r"^(encoder|decoder)\.fwd\.", r"\1.", name).replace(".filter.filter.", ".filter.")
        own = own.replace(".mlp.fwd.0.", ".mlp.up.").replace(".mlp.fwd.3.", ".mlp.down.")
        if own == "pos_embed":  # [1, C, Y, X]
            ours[own] = value[0].permute(1, 2, 0).contiguous()
        elif own.startswith("pos_embed."):  # [1, C, L, M]
            ours[own] = value[0].permute(2, 1, 0).contiguous()
        elif FACTORS.search(own):
            ours[own] = value
        elif own.endswith(".filter.weight"):  # [C_in, C_out, L(, M), R] -> [L(, M), C_in, R, C_out]
            ours[own] = value.permute(*((2, 0, 3, 1) if value.ndim == 4 else (2, 3, 0, 4, 1))).contiguous()
        else:
            ours[own] = _matrix(value)
    return ours


def _sfno_v0_to_peer(ours: Mapping[str, Tensor]) -> State:
    peer: State = {}
    for name, value in ours.items():
        theirs = re.sub(r"^(encoder|decoder)\.", r"\1.fwd.", name).replace(".filter.", ".filter.filter.")
        theirs = theirs.replace(".mlp.up.", ".mlp.fwd.0.").replace(".mlp.down.", ".mlp.fwd.3.")
        if name == "pos_embed":
            peer[theirs] = value.permute(2, 0, 1)[None].contiguous()
        elif name.startswith("pos_embed."):
            peer[theirs] = value.permute(2, 1, 0)[None].contiguous()
        elif FACTORS.search(name):
            peer[theirs] = value
        elif name.endswith(".filter.weight"):
            peer[theirs] = value.permute(*((1, 3, 0, 2) if value.ndim == 4 else (2, 4, 0, 1, 3))).contiguous()
        else:
            peer[theirs] = _kernel(value)
    return peer


def _matrix(value: Tensor) -> Tensor:
    """A 1x1 kernel [C_out, C_in, 1, 1] -> [C_out, C_in]; a vector stays."""
    return value[..., 0, 0] if value.ndim == 4 else value


def _kernel(value: Tensor) -> Tensor:
    return value[..., None, None] if value.ndim == 2 else value


NAMES = {
    "Samudra": Names(_samudra_to_ours, _samudra_to_peer),
    "LandNet": Names(_land_net_to_ours, _land_net_to_peer),
    "SFNO-v0.1.0": Names(_sfno_v0_to_ours, _sfno_v0_to_peer),
}
