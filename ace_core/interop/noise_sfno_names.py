"""Tensors of fme's ``NoiseConditionedSFNO`` as ours and back, bit for bit.

Names are those of fme's network without the leading ``module.`` of its checkpoints; of ours, those of
:class:`ace_core.models.noise_sfno.NoiseConditionedSFNO`. Both functions only move values, so that they map gradients just as well.

Legend: C channels, Y latitude, X longitude, L degrees, R = 2 (real, imaginary), G groups, I and O a group's channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ace_core.errors import DataError, fail

NET = "conditional_model."
CONDITION = re.compile(
    r"(?P<norm>.*norm(?:0|1|_big_skip))\.W_(?P<part>scale|bias)_(?P<of>2d|pos|labels)\.(?P<kind>weight|bias)"
)
OURS_OF = {
    ("2d", "weight"): "noise",
    ("pos", "weight"): "position",
    ("labels", "weight"): "labels",
    ("labels", "bias"): "label_bias",
}
# Substrings, applied in this order to the peer's names and in reverse to ours.
RENAMED = (
    (".filter.filter.pre_proj.", ".filter.pre."),
    (".filter.filter.post_proj.", ".filter.post."),
    (".filter.filter.lora_A", ".filter.lora_a"),
    (".filter.filter.lora_B", ".filter.lora_b"),
    (".filter.filter.", ".filter."),
    (".mlp.fwd.0.", ".mlp.up."),
    (".mlp.fwd.2.", ".mlp.down."),
    (".lora_down.weight", ".lora_down"),
    (".lora_up.weight", ".lora_up"),
    ("_gm_min", "latent.lowest"),
    ("_gm_max", "latent.highest"),
)
NORM = re.compile(r"(.*norm(?:0|1|_big_skip))\.(?:norm\.)?(weight|bias)")
POINTWISE = re.compile(
    r"(encoder|decoder)\.\d+\.(weight|lora_down|lora_up)|"
    r"blocks\.\d+\.(inner_skip|mlp\.up|mlp\.down|filter\.pre|filter\.post)\.(weight|lora_down|lora_up)"
)
AS_IT_IS = re.compile(
    r"label_embedding\.(weight|bias)|blocks\.\d+\.filter\.conv\.weight|((encoder|decoder)\.\d+|blocks\.\d+\.(inner_skip|mlp\.up|mlp\.down))\.bias"
)
SPECTRAL = re.compile(r"blocks\.\d+\.filter\.(weight|lora_a|lora_b)")


def to_ours(peer_state: Mapping[str, Tensor], *, old_weights: bool | None = None) -> dict[str, Tensor]:
    """The peer's tensors under our names and in our layout.

    old_weights: spectral weights are [G, I, O, L, R], as before the peer moved L forward. None: as their shape says, new where I = L
    makes the two look alike (the peer then takes new ones for old). Those older still, [I, O, L, R], are told by their number of axes.
    Raises :class:`DataError` for a tensor that no such network has.
    """
    if old_weights is None:
        old_weights = any(_looks_old(name, value) for name, value in peer_state.items())
    ours: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in peer_state.items():
        if match := CONDITION.fullmatch(name.removeprefix(NET)):
            key = f"{match['norm']}.{OURS_OF[match['of'], match['kind']]}"
            halves.setdefault(key, {})[match["part"]] = value[..., 0, 0] if value.ndim == 4 else value
            continue
        key = _our_name(name)
        ours[key] = _our_layout(key, value, old_weights, name).contiguous()
    for key, parts in halves.items():
        if set(parts) != {"scale", "bias"}:
            raise fail(DataError, f"tensors {key} of the network", f"only {', '.join(parts)}", "scale and bias")
        ours[key] = torch.stack([parts["scale"], parts["bias"]])
    return ours


def to_peer(our_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the peer's names and in its present layout. Raises :class:`DataError` for a tensor our network has not."""
    peer: dict[str, Tensor] = {}
    of_ours = {ours: of for of, ours in OURS_OF.items()}
    for key, value in our_state.items():
        norm, _, last = key.rpartition(".")
        if last in of_ours:
            of, kind = of_ours[last]
            for part, half in zip(("scale", "bias"), value.unbind(0)):
                shaped = half if of == "labels" else half[..., None, None]
                peer[f"{NET}{norm}.W_{part}_{of}.{kind}"] = shaped.contiguous()
            continue
        makani = SPECTRAL.fullmatch(key) is not None and f"{norm}.bias" not in our_state
        peer[_peer_name(key)] = _peer_layout(key, value, makani).contiguous()
    return peer


def _looks_old(name: str, value: Tensor) -> bool:
    if not name.endswith(".filter.filter.weight") or value.is_complex() or value.ndim != 5:
        return False
    return value.shape[1] == value.shape[2] != value.shape[3]


def _our_name(name: str) -> str:
    if not name.startswith(NET):
        return {"pos_embed": "context_pos_embed"}.get(name, name)
    key = name.removeprefix(NET)
    if match := NORM.fullmatch(key):
        return f"{match[1]}.{match[2]}"
    for theirs, ours in RENAMED:
        key = key.replace(theirs, ours)
    return key


def _peer_name(key: str) -> str:
    if key in ("context_pos_embed", "label_pos_embed") or key.startswith("label_embedding."):
        return key.removeprefix("context_")
    if match := NORM.fullmatch(key):
        return f"{NET}{match[1]}.norm.{match[2]}"
    if match := re.fullmatch(r"(blocks\.\d+)(\.filter\..*)", key):
        pairs = [(t, o) for t, o in RENAMED if ".filter" in o]
        theirs, ours = next((t, o) for t, o in pairs if match[2].startswith(o))
        return f"{NET}{match[1]}{match[2].replace(ours, theirs, 1)}"
    for theirs, ours in RENAMED:
        if ".filter" not in ours:
            key = key.replace(ours, theirs)
    return NET + key


def _our_layout(key: str, value: Tensor, old_weights: bool, name: str) -> Tensor:
    if POINTWISE.fullmatch(key):
        return value[..., 0, 0]
    if key in ("pos_embed", "context_pos_embed"):
        return value[0].permute(1, 2, 0)
    if key == "label_pos_embed":  # K, C, Y, X
        return value.permute(0, 2, 3, 1)
    if key.startswith("latent.") or key.endswith(".filter.bias"):
        return value.flatten()
    if NORM.fullmatch(key):  # over the grid: C, Y, X
        return value.permute(1, 2, 0) if value.ndim == 3 else value
    if SPECTRAL.fullmatch(key):
        if value.is_complex():  # makani: G, I, O, L
            return torch.view_as_real(value).permute(3, 0, 1, 4, 2)
        if value.ndim == 4 or old_weights:  # (G,) I, O, L, R
            return (value[None] if value.ndim == 4 else value).permute(0, 3, 2, 1, 4).permute(1, 0, 3, 4, 2)
        return value.permute(1, 0, 3, 4, 2)  # G, L, O, I, R
    if AS_IT_IS.fullmatch(key):
        return value
    raise fail(
        DataError,
        "the network's tensors",
        f"{name} {list(value.shape)}",
        "tensors of fme's NoiseConditionedSFNO",
    )


def _peer_layout(key: str, value: Tensor, makani: bool) -> Tensor:
    if POINTWISE.fullmatch(key):
        return value[..., None, None]
    if key in ("pos_embed", "context_pos_embed"):
        return value.permute(2, 0, 1)[None]
    if key == "label_pos_embed":
        return value.permute(0, 3, 1, 2)
    if key.startswith("latent.") or key.endswith(".filter.bias"):
        return value[None, :, None, None]
    if NORM.fullmatch(key):
        return value.permute(2, 0, 1) if value.ndim == 3 else value
    if SPECTRAL.fullmatch(key):
        if makani:
            return torch.view_as_complex(value.permute(1, 2, 4, 0, 3).contiguous())
        return value.permute(1, 0, 4, 2, 3)
    if AS_IT_IS.fullmatch(key):
        return value
    raise fail(DataError, "the network's tensors", f"{key} {list(value.shape)}", "tensors of our NoiseConditionedSFNO")
