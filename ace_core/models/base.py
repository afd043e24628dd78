"""What all builders of networks have, and how a network and the labels of the data must agree."""

from __future__ import annotations

from typing import Literal

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, fail


class NetworkBuilder(StrictModel):
    """conditional: the network takes labels. allow_missing_variables: data sets may lack some variables (then nothing but the network's
    input knows of it)."""

    conditional: bool = False
    allow_missing_variables: bool = False


class UnlabelledBuilder(NetworkBuilder):
    """Of a network that has nothing labels could act on."""

    conditional: Literal[False] = False


def require_labels(conditional: bool, n_labels: int, label_embed_dim: int = 0) -> None:
    """Raise :class:`ConfigError` unless a network that takes labels meets data that have some, and one that takes none data without."""
    if conditional != (n_labels > 0):
        raise fail(
            ConfigError,
            "builder.conditional",
            f"{str(conditional).lower()}, but the data have {n_labels or 'no'} labels",
            "true if and only if the data have labels",
            "set conditional: true" if n_labels else "set conditional: false, or give the data labels",
        )
    if label_embed_dim and not n_labels:
        raise fail(
            ConfigError,
            "builder.config.label_embed_dim",
            f"{label_embed_dim}, but the data have no labels",
            "0 without labels",
            "remove label_embed_dim",
        )


def refuse_labels(kind: str, n_labels: int) -> None:
    """Raise :class:`ConfigError` if the data have labels, of which these networks know nothing."""
    if n_labels:
        raise fail(
            ConfigError,
            "builder.type",
            f"{kind} takes no labels, but the data have {n_labels}",
            "a network that takes labels, or data without",
            "use NoiseConditionedSFNO, or remove labels from the data sets",
        )
