"""Weights of all networks of a step: what fme saved into ours, all of them or none, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ace_core.errors import ConfigError, DataError, Problem, fail
from ace_core.interop import local_names, mlp_names, noise_sfno_names, other_names, sfno_names
from ace_core.interop.other_names import Names
from ace_core.models.builders import Builder

# Type of builder -> both sides' names and layouts.
NAMES = {
    "SphericalFourierNeuralOperatorNet": Names(sfno_names.to_ours, sfno_names.to_peer),
    # Old layouts are told here, where it is known what is expected.
    "NoiseConditionedSFNO": Names(partial(noise_sfno_names.to_ours, old_weights=False), noise_sfno_names.to_peer),
    "MLP": Names(mlp_names.to_ours, mlp_names.to_peer),
    **{k: Names(partial(local_names.to_ours, k), partial(local_names.to_peer, k)) for k in local_names.KINDS},
    **other_names.NAMES,
}
PREFIX = "module."  # of every name: fme saves what it wrapped for data-parallel training
LABELS = "label_encoding"
MOST = 8  # names per message
# Keys that say how many like parts a network has, each with a tensor of its own at least; and how wide it is.
_COUNTS = ("num_layers", "encoder_layers", "spectral_layers", "depth", "depth_multiplier")
_WIDTH = "embed_dim"
# fme moved the degree from the last axis but one of [G, I, O, L, R] to [G, L, O, I, R], and tells the two by shape when it loads.
_SPECTRAL = re.compile(r".*\.filter\.filter\.(weight|lora_A|lora_B)")


def names_of(builder: Builder, where: str) -> Names:
    """Of a network. Raises :class:`ConfigError` if fme has none of its type, or nobody wrote them."""
    if builder.type not in NAMES:
        raise fail(ConfigError, where, f"weights of {builder.type!r} cannot be converted", f"one of {', '.join(NAMES)}")
    separable = getattr(builder.config, "separable", None)
    if builder.type != "SphericalFourierNeuralOperatorNet" or separable is None:
        return NAMES[builder.type]
    return Names(partial(sfno_names.to_ours, separable=separable), partial(sfno_names.to_peer, separable=separable))


def unwrapped(state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """A saved module without wrapping and labels. Raises :class:`DataError` for what is not a tensor."""
    entries = {k: v for k, v in state.items() if k not in (LABELS, "module.device_buffer")}
    strange = [k for k, v in entries.items() if not isinstance(v, Tensor)]
    if strange:
        raise fail(DataError, where, f"not tensors: {_listed(strange)}", "tensors")
    return {k.removeprefix(PREFIX): v for k, v in entries.items()}


def wrapped(network: nn.Module, builder: Builder, labels: Sequence[str] | None, where: str) -> dict[str, Any]:
    """The inverse: a module as fme saves it; labels: None for a network that takes none."""
    tensors = swapped(names_of(builder, where).to_peer(network.state_dict()), builder.type)
    saved: dict[str, Any] = {PREFIX + name: v.detach().clone().contiguous() for name, v in tensors.items()}
    return saved | {LABELS: None if labels is None else {"labels": list(labels)}}


def swapped(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Spectral tensors whose two layouts have one shape, from one layout to the other.

    fme takes every such tensor for an old one, so this is what has to be written for it to compute with ours.
    """
    return {
        n: v.permute(0, 3, 2, 1, 4) if _is_spectral(n, v, kind) and v.shape[1] == v.shape[3] else v
        for n, v in state.items()
    }


def _is_spectral(name: str, value: Tensor, kind: str) -> bool:
    return kind == "NoiseConditionedSFNO" and value.ndim == 5 and _SPECTRAL.fullmatch(name) is not None


def _present(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Spectral tensors of the old layout, as far as shapes tell, in the present one."""
    out = dict(state)
    for name, value in state.items():
        if _is_spectral(name, value, kind) and value.shape != expected[name].shape:
            out[name] = value.permute(0, 3, 2, 1, 4)
    return out


def require_size(builders: Sequence[Builder], states: Sequence[Mapping[str, Tensor]], where: str) -> None:
    """Raises :class:`DataError` for networks that the unwrapped ``states`` are too small for, before anybody builds them."""
    problems: list[Problem] = []
    for i, (builder, state) in enumerate(zip(builders, states, strict=True)):
        longest = max((n for v in state.values() for n in v.shape), default=0)
        limits = dict.fromkeys(_COUNTS, (len(state), f"there are {len(state)} tensors"))
        limits[_WIDTH] = (longest, f"no axis of its tensors is longer than {longest}")
        for key, (most, what) in limits.items():
            claim = getattr(builder.config, key, 0)
            if claim > most:
                place = f"{where} network {i + 1} ({builder.type})"
                problems.append(
                    Problem(place, f"its configuration says {key}: {claim}, but {what}", "a whole checkpoint")
                )
    if problems:
        raise DataError(problems)


def fill(
    networks: Sequence[nn.Module], builders: Sequence[Builder], states: Sequence[Mapping[str, Tensor]], where: str
) -> None:
    """Load unwrapped ``states`` into ``networks``.

    Raises :class:`DataError` listing every tensor that is missing, unexpected or of another shape, before anything is loaded.
    """
    problems: list[Problem] = []
    loads: list[dict[str, Tensor]] = []
    for i, (network, builder, state) in enumerate(zip(networks, builders, states, strict=True)):
        names, place = names_of(builder, where), f"{where} network {i + 1} ({builder.type})"
        # Names and shapes are all that is asked of these, and the values of sizes.
        own = {n: v.to("meta") if v.is_floating_point() else v for n, v in network.state_dict().items()}
        expected = names.to_peer(own)
        lacking, strange = [n for n in expected if n not in state], [n for n in state if n not in expected]
        if lacking or strange:
            problems += [Problem(place, f"missing tensors: {_listed(lacking)}")] if lacking else []
            problems += [Problem(place, f"unexpected tensors: {_listed(strange)}")] if strange else []
            continue
        try:
            ours = names.to_ours(_present(state, expected, builder.type))
            fits = all(ours[n].shape == v.shape and _kind(ours[n]) == _kind(v) for n, v in own.items())
        except (RuntimeError, IndexError, KeyError, ValueError):
            fits = False
        if not fits:
            shapes = {n: (tuple(state[n].shape), tuple(v.shape)) for n, v in expected.items()}
            other = [f"{n} {a}, expected {b}" for n, (a, b) in shapes.items() if a != b]
            other = other or [f"{n} of {state[n].dtype}" for n, v in expected.items() if _kind(state[n]) != _kind(v)]
            problems.append(
                Problem(place, f"tensors of another shape or kind: {_listed(other) if other else 'all as expected'}")
            )
            continue
        parameters = dict(network.named_parameters())
        broken = [n for n, v in ours.items() if n in parameters and not bool(v.isfinite().all())]
        if broken:
            problems.append(
                Problem(place, f"not finite: {_listed(broken)}", "finite weights", "take an earlier checkpoint")
            )
        loads.append(ours)
    if problems:
        raise DataError(problems)
    for network, ours in zip(networks, loads, strict=True):
        network.load_state_dict(ours)


def _kind(value: Tensor) -> str:
    return "complex" if value.is_complex() else "real" if value.is_floating_point() else "whole"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
