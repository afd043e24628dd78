"""Exponential moving average of the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ace_core.config import StrictModel


class EMAConfig(StrictModel):
    """decay: weight of the past per batch. faster_decay_at_start: use at most (1 + n) / (10 + n) at batch n. resume_ema_ckpt_path: a
    training starts with the averages and the n of this checkpoint of ours, with this decay."""

    decay: Annotated[float, Field(ge=0, le=1)] = 0.9999
    faster_decay_at_start: bool = True
    resume_ema_ckpt_path: str | None = None


class EMA:
    """Averages of ``requires_grad`` parameters, by name. The decay is a Python number: no device synchronisation."""

    def __init__(self, module: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.n_updates = 0
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._averages = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after every optimizer step."""
        self.n_updates += 1
        decay = self.config.decay
        if self.config.faster_decay_at_start:
            decay = min(decay, (1 + self.n_updates) / (10 + self.n_updates))
        averages = list(self._averages.values())
        parameters: list[Tensor] = list(self._parameters.values())
        torch._foreach_lerp_(averages, parameters, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module computes with the averages; outside again with its own weights."""
        own = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._assign(self._averages)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state(self) -> dict[str, Any]:
        return {"n_updates": self.n_updates, "averages": dict(self._averages)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError for averages of another module."""
        theirs, ours = state["averages"], self._averages
        wrong = sorted(set(theirs) ^ set(ours)) or [n for n in ours if theirs[n].shape != ours[n].shape]
        if wrong:
            raise ValueError(f"its averages are of other parameters than are trained ({', '.join(wrong[:3])})")
        self.n_updates = int(state["n_updates"])
        with torch.no_grad():
            for name, average in self._averages.items():
                average.copy_(state["averages"][name])
