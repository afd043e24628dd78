"""Tensors of fme's local networks and Swin transformers as ours and back, bit for bit.

Names are those of fme's networks without the leading ``module.`` of its checkpoints. Both functions only move values, so that they map
gradients just as well. A name that belongs to none of the network's layers stays as it is, for the strict loading that follows to
complain of.

Legend: C channels, K features of labels, N points of a window, Y latitude, X longitude.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ace_core.errors import DataError, fail

State = dict[str, Tensor]

KINDS = ("LocalNet", "AnkurLocalNet", "SwinTransformer", "NoiseConditionedSwinTransformer")
_NET = {
    "LocalNet": "conditional_model.",
    "AnkurLocalNet": "module.",
    "SwinTransformer": "module.",
    "NoiseConditionedSwinTransformer": "conditional_model.",
}
_CONDITION = re.compile(r"(?P<norm>.*norm\w*)\.W_(?P<part>scale|bias)_(?P<of>2d|pos|labels)\.(?P<kind>weight|bias)")
_OF = {
    ("2d", "weight"): "noise",
    ("pos", "weight"): "position",
    ("labels", "weight"): "labels",
    ("labels", "bias"): "label_bias",
}
_AFFINE = re.compile(r"(.*norm(?:0|1|_big_skip))\.norm\.(weight|bias)")
_OWN_AFFINE = re.compile(r"(.*norm(?:0|1|_big_skip))\.(weight|bias)")
# Outside of the wrapped network, where the names of positions are taken.
_OUTSIDE = {"pos_embed": "context_pos_embed", "label_pos_embed": "label_pos_embed"}
_OFFSETS = re.compile(r"layer\d+\.blocks\.\d+\.attn\.relative_coords_(base|log)")
_ATTENTION = re.compile(r"(layer\d+\.blocks\.\d+\.attn)\.tau")
# fme's -> ours, of whole components.
_RENAMED = {
    "LocalNet": ((".filter.filter.conv.", ".filter."), (".mlp.fwd.0.", ".mlp.up."), (".mlp.fwd.2.", ".mlp.down.")),
    "SwinTransformer": (),
    "NoiseConditionedSwinTransformer": (),
}
_LORA = re.compile(r"(.*\.lora_(?:down|up))\.weight")


def to_ours(kind: str, peer: Mapping[str, Tensor]) -> State:
    """fme's tensors of a builder type in :data:`KINDS` under our names and in our layout.

    Raises :class:`DataError` if a norm has a scale without a shift or the reverse.
    """
    ours: State = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in peer.items():
        inside = name.startswith(_NET[kind])
        key = name.removeprefix(_NET[kind])
        if match := _CONDITION.fullmatch(key):
            whole = f"{match['norm']}.{_OF[match['of'], match['kind']]}"
            halves.setdefault(whole, {})[match["part"]] = _matrix(value)
        elif match := _OFFSETS.fullmatch(key):
            # Of whole steps, from -(window - 1) to window - 1, between all points of a window.
            if match[1] == "base":
                ours["window_size"] = value.amax(dim=0).long() + 1
        elif kind == "AnkurLocalNet":
            ours[_ankur_name(key)] = _ankur_layout(_ankur_name(key), value)
        elif not inside and key in _OUTSIDE:
            ours[_OUTSIDE[key]] = value[0].permute(1, 2, 0) if key == "pos_embed" else value.permute(0, 2, 3, 1)
        else:
            key = _renamed(kind, key)
            ours[key] = value if kind != "LocalNet" else _local_layout(key, value)
    for whole, parts in halves.items():
        if set(parts) != {"scale", "bias"}:
            raise fail(DataError, f"tensors {whole} of the network", f"only {', '.join(parts)}", "scale and bias")
        ours[whole] = torch.stack([parts["scale"], parts["bias"]])
    return {name: value.contiguous() for name, value in ours.items()}


def to_peer(kind: str, ours: Mapping[str, Tensor]) -> State:
    """The inverse of :func:`to_ours`."""
    peer: State = {}
    net = _NET[kind]
    of_ours = {own: theirs for theirs, own in _OF.items()}
    outside = {own: theirs for theirs, own in _OUTSIDE.items()}
    for key, value in ours.items():
        norm, _, last = key.rpartition(".")
        if kind == "AnkurLocalNet":
            peer[net + _ankur_peer_name(key, ours)] = _ankur_peer_layout(key, value)
        elif last in of_ours and "norm" in norm:
            of, what = of_ours[last]
            for part, half in zip(("scale", "bias"), value.unbind(0)):
                peer[f"{net}{norm}.W_{part}_{of}.{what}"] = half if of == "labels" else half[..., None, None]
        elif key in outside:
            peer[outside[key]] = value.permute(2, 0, 1)[None] if value.ndim == 3 else value.permute(0, 3, 1, 2)
        elif key.startswith("label_embedding."):
            peer[key] = value
        elif key != "window_size":
            peer[net + _peer_name(kind, key)] = value if kind != "LocalNet" else _local_peer_layout(key, value)
            if match := _ATTENTION.fullmatch(key):
                base = _offsets(ours["window_size"])
                peer[f"{net}{match[1]}.relative_coords_base"] = base
                peer[f"{net}{match[1]}.relative_coords_log"] = torch.sign(base) * torch.log(1.0 + base.abs())
    return {name: value.contiguous() for name, value in peer.items()}


def _offsets(window: Tensor) -> Tensor:
    """[N*N, 2] float32: rows and columns from key to query, every pair of points."""
    wy, wx = (int(n) for n in window)
    points = np.stack(np.divmod(np.arange(wy * wx), wx), axis=-1)
    return torch.from_numpy((points[:, None] - points[None]).reshape(-1, 2).astype(np.float32))


def _renamed(kind: str, key: str) -> str:
    for theirs, own in _RENAMED[kind]:
        key = key.replace(theirs, own)
    if kind == "LocalNet":
        key = _LORA.sub(r"\1", key)
        key = _AFFINE.sub(r"\1.\2", key)
    return key


def _peer_name(kind: str, key: str) -> str:
    if kind == "LocalNet":
        if match := _OWN_AFFINE.fullmatch(key):
            return f"{match[1]}.norm.{match[2]}"
        if key.endswith((".lora_down", ".lora_up")):
            key += ".weight"
    for theirs, own in _RENAMED[kind]:
        key = key.replace(own, theirs)
    return key


def _matrix(value: Tensor) -> Tensor:
    """A 1x1 kernel [C_out, C_in, 1, 1] -> [C_out, C_in]; others stay."""
    return value[..., 0, 0] if value.ndim == 4 else value


def _local_layout(key: str, value: Tensor) -> Tensor:
    if key == "pos_embed":  # [1, C, Y, X]
        return value[0].permute(1, 2, 0)
    if value.ndim == 3 and _OWN_AFFINE.fullmatch(key):  # over the grid: [C, Y, X]
        return value.permute(1, 2, 0)
    return _matrix(value)


def _local_peer_layout(key: str, value: Tensor) -> Tensor:
    if key == "pos_embed":
        return value.permute(2, 0, 1)[None]
    if value.ndim == 3 and _OWN_AFFINE.fullmatch(key):
        return value.permute(2, 0, 1)
    return value[..., None, None] if value.ndim == 2 else value


def _ankur_name(key: str) -> str:
    """fme numbers layers, positions and activations of one list: mlp.0 (positions, activation), then a map and an activation each."""
    number = re.fullmatch(r"mlp\.(\d+)\.(.*)", key)
    if number is None:
        return key
    at, rest = int(number[1]), number[2]
    if rest == "pos_embed":
        return "pos_embed"
    if at == 0:
        return f"first.{rest.removeprefix('conv.conv.').removeprefix('conv.')}"
    # With positions every later layer stands one place further on: even places without them, odd ones with.
    layer = (at - at % 2) // 2
    return f"last.{rest}" if layer == 3 else f"hidden.{layer - 1}.{rest}"


def _ankur_peer_name(key: str, ours: Mapping[str, Tensor]) -> str:
    further = 1 if "pos_embed" in ours else 0
    if key == "pos_embed":
        return "mlp.1.pos_embed"
    owner, _, rest = key.rpartition(".")
    if owner == "first":
        return f"mlp.0.conv.{rest}" if "first.bias" not in ours else f"mlp.0.{rest}"
    layer = 3 if owner == "last" else int(owner.removeprefix("hidden.")) + 1
    return f"mlp.{2 * layer + further}.{rest}"


def _ankur_layout(key: str, value: Tensor) -> Tensor:
    return value[0].permute(1, 2, 0) if key == "pos_embed" else _matrix(value)


def _ankur_peer_layout(key: str, value: Tensor) -> Tensor:
    if key == "pos_embed":
        return value.permute(2, 0, 1)[None]
    return value[..., None, None] if value.ndim == 2 else value
