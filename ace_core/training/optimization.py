"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from ace_core.config import StrictModel, nearest

_OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


class SchedulerConfig(StrictModel):
    """Cosine annealing of the learning rate. ``T_max`` in kwargs counts what the schedule steps on: batches with
    ``step_each_iteration``, epochs otherwise; default: the whole training."""

    type: Literal["CosineAnnealingLR"]
    kwargs: dict[str, float] = {}
    step_each_iteration: bool = False

    @model_validator(mode="after")
    def _known(self) -> SchedulerConfig:
        unknown = set(self.kwargs) - {"T_max", "eta_min"}
        if unknown:
            raise ValueError(f"kwargs has {', '.join(sorted(unknown))}; known are T_max, eta_min")
        if self.kwargs.get("T_max", 1) <= 0:
            raise ValueError(f"kwargs.T_max is {self.kwargs['T_max']:g}; it must be positive")
        return self


class OptimizationConfig(StrictModel):
    """optimizer_type and its kwargs (``betas``, ``weight_decay``, ``eps``); lr; max_grad_norm clips the global norm.

    use_gradient_accumulation: a backward pass after every forward step, whose state the next step then takes as given: memory of
    one step instead of all, and no gradient through time. The norm that is clipped is that of the sum.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "enable_automatic_mixed_precision": "remove it: training is in float32",
        "checkpoint": "use use_gradient_accumulation to save memory over forward steps",
        "resume_optimizer_ckpt_path": "remove it: a training's own optimizer state is resumed, another's is not taken over",
    }
    optimizer_type: Literal["Adam", "AdamW"] = "Adam"
    lr: PositiveFloat = 1e-3
    kwargs: dict[str, Any] = {}
    scheduler: SchedulerConfig | None = None
    max_grad_norm: PositiveFloat | None = None
    use_gradient_accumulation: bool = False

    @model_validator(mode="after")
    def _known(self) -> OptimizationConfig:
        allowed = set(inspect.signature(_OPTIMIZERS[self.optimizer_type]).parameters) - {"params", "lr"}
        for name in self.kwargs:
            if name not in allowed:
                hint = nearest(name, sorted(allowed))
                raise ValueError(f"kwargs has {name!r}, which {self.optimizer_type} does not take; {hint}")
        try:
            self._make([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise ValueError(f"kwargs {self.kwargs} are not {self.optimizer_type}'s: {error}") from None
        return self

    def _make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = _OPTIMIZERS[self.optimizer_type](
            parameters, lr=self.lr, **({"fused": True} | self.kwargs)
        )
        return made

    def build(self, module: nn.Module, batches_per_epoch: int, max_epochs: int) -> Optimization:
        return Optimization(self, module, batches_per_epoch, max_epochs)


class Optimization:
    """loss -> backward -> clip -> optimizer step -> schedule."""

    def __init__(self, config: OptimizationConfig, module: nn.Module, batches_per_epoch: int, max_epochs: int) -> None:
        self.config = config
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = config._make(self._parameters)
        self._loss: Tensor | None = None
        self.schedule: torch.optim.lr_scheduler.CosineAnnealingLR | None = None
        if config.scheduler is not None:
            each = config.scheduler.step_each_iteration
            whole = {"T_max": max_epochs * (batches_per_epoch if each else 1)}
            kwargs: dict[str, Any] = whole | config.scheduler.kwargs
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, **kwargs)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def accumulates_gradients(self) -> bool:
        """Whether :meth:`accumulate` runs backward at once, so that no graph may be needed twice."""
        return self.config.use_gradient_accumulation

    def accumulate(self, loss: Tensor) -> None:
        """Add ``loss`` (0-d, with a graph) to what the next :meth:`step_weights` descends."""
        if self.accumulates_gradients:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._loss = loss if self._loss is None else self._loss + loss

    def step_weights(self) -> None:
        """Update the weights from the gradient of all that was accumulated."""
        if self._loss is not None:
            self._loss.backward()  # type: ignore[no-untyped-call]
            self._loss = None
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._advance(each_iteration=True)

    def end_epoch(self) -> None:
        self._advance(each_iteration=False)

    def _advance(self, each_iteration: bool) -> None:
        config = self.config.scheduler
        if self.schedule is not None and config is not None and config.step_each_iteration == each_iteration:
            self.schedule.step()

    def state(self) -> dict[str, Any]:
        schedule = None if self.schedule is None else self.schedule.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "schedule": schedule}

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None and state["schedule"] is not None:
            self.schedule.load_state_dict(state["schedule"])
