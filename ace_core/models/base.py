"""What all builders of networks have, and how a network and the labels of the data must agree."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from ace_core.config import StrictModel, nearest
from ace_core.errors import ConfigError, fail
from ace_core.models.factorized import FACTORIZATIONS

COMPLEX = "complex"


class NetworkBuilder(StrictModel):
    """conditional: the network takes labels. allow_missing_variables: data sets may lack some variables (then nothing but the network's
    input knows of it)."""

    conditional: bool = False
    allow_missing_variables: bool = False


class UnlabelledBuilder(NetworkBuilder):
    """Of a network that has nothing labels could act on."""

    conditional: Literal[False] = False


class FactorizationKeys(StrictModel):
    """fme's keys of factorized spectral weights. factorization: one of :data:`FACTORIZATIONS`, in any case, ``Complex`` before it or
    not; null keeps whole weights under the names they have always had. rank: see :class:`ace_core.models.factorized.FactorizedWeight`."""

    factorization: str | None = None
    rank: PositiveInt | Annotated[float, Field(gt=0)] = 1.0

    @field_validator("factorization")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is None:
            return None
        kind = value.lower()
        short = kind.removeprefix(COMPLEX)
        if short == "tucker":
            raise ValueError("fme cannot build 'tucker' either: use cp or tt")
        if short not in FACTORIZATIONS:
            guess = nearest(short, FACTORIZATIONS)
            raise ValueError(
                f"{value!r} is not one of null, {', '.join(FACTORIZATIONS)}" + (f": {guess}" if guess else "")
            )
        return kind

    @property
    def factors(self) -> str | None:
        """One of :data:`FACTORIZATIONS`, or None."""
        return None if self.factorization is None else self.factorization.removeprefix(COMPLEX)

    def idle(self, *names: str) -> list[str]:
        """Those of the keys that were given another value than their default."""
        fields = type(self).model_fields
        return [n for n in names if n in self.model_fields_set and getattr(self, n) != fields[n].default]


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
