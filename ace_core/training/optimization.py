"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveFloat, Tag, model_validator
from torch import Tensor, nn

from ace_core.config import StrictModel, nearest, off, only
from ace_core.distributed import Ranks, consolidate, own_part

# FusedAdam is what fme calls an AdamW, and here all are fused.
_OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "FusedAdam": torch.optim.AdamW}
_Schedule = torch.optim.lr_scheduler.LRScheduler
_SCHEDULES: dict[str, type[_Schedule]] = {
    kind.__name__: kind
    for kind in (
        torch.optim.lr_scheduler.ConstantLR,
        torch.optim.lr_scheduler.CosineAnnealingLR,
        torch.optim.lr_scheduler.CosineAnnealingWarmRestarts,
        torch.optim.lr_scheduler.ExponentialLR,
        torch.optim.lr_scheduler.LinearLR,
        torch.optim.lr_scheduler.MultiStepLR,
        torch.optim.lr_scheduler.PolynomialLR,
        torch.optim.lr_scheduler.ReduceLROnPlateau,
        torch.optim.lr_scheduler.StepLR,
    )
}


class SchedulerConfig(StrictModel):
    """A schedule of ``torch.optim.lr_scheduler`` and its kwargs; type null: a constant learning rate.

    Its numbers count what it steps on: batches with ``step_each_iteration``, epochs otherwise. ``T_max`` of CosineAnnealingLR, left out,
    is the whole training. ReduceLROnPlateau follows the validation loss, which there is once an epoch.
    """

    type: (
        Literal[
            "ConstantLR",
            "CosineAnnealingLR",
            "CosineAnnealingWarmRestarts",
            "ExponentialLR",
            "LinearLR",
            "MultiStepLR",
            "PolynomialLR",
            "ReduceLROnPlateau",
            "StepLR",
        ]
        | None
    ) = None
    kwargs: dict[str, Any] = {}
    step_each_iteration: bool = False

    @model_validator(mode="after")
    def _known(self) -> SchedulerConfig:
        if self.type is None:
            if self.kwargs:
                raise ValueError(f"kwargs has {', '.join(self.kwargs)}, but there is no type of schedule to give it to")
            return self
        if self.type == "ReduceLROnPlateau" and self.step_each_iteration:
            raise ValueError("step_each_iteration: ReduceLROnPlateau follows the validation loss; leave it out")
        allowed = set(inspect.signature(_SCHEDULES[self.type]).parameters) - {"optimizer", "last_epoch", "verbose"}
        for name in self.kwargs:
            if name not in allowed:
                hint = nearest(name, sorted(allowed))
                raise ValueError(
                    f"kwargs has {name!r}, which {self.type} does not take; known are {', '.join(sorted(allowed))}; {hint}"
                )
        if self.kwargs.get("T_max", 1) <= 0:
            raise ValueError(f"kwargs.T_max is {self.kwargs['T_max']:g}; it must be positive")
        try:
            self.build(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 1, 1)
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ValueError(f"kwargs {self.kwargs} are not {self.type}'s: {error}") from None
        return self

    def build(self, optimizer: torch.optim.Optimizer, batches_per_epoch: int, max_epochs: int) -> _Schedule | None:
        if self.type is None:
            return None
        kwargs = dict(self.kwargs)
        if self.type == "CosineAnnealingLR":
            kwargs.setdefault("T_max", max_epochs * (batches_per_epoch if self.step_each_iteration else 1))
        return _SCHEDULES[self.type](optimizer, **kwargs)


class SequentialSchedulerConfig(StrictModel):
    """``schedulers`` one after the other; number i gives way to the next after ``milestones[i]`` batches or epochs."""

    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"last_epoch": only(-1)}
    FME_KEYS: ClassVar[Mapping[str, str]] = {"last_epoch": "remove it: a resumed training knows where it was"}
    schedulers: Annotated[list[SchedulerConfig], Field(min_length=1)]
    milestones: list[NonNegativeInt]

    @model_validator(mode="after")
    def _fit(self) -> SequentialSchedulerConfig:
        types = [s.type for s in self.schedulers]
        if None in types or "ReduceLROnPlateau" in types:
            raise ValueError("schedulers in a sequence need a type, and one that follows no loss")
        if len({s.step_each_iteration for s in self.schedulers}) > 1:
            raise ValueError("step_each_iteration must be the same for all schedulers of a sequence")
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"{len(self.milestones)} milestones for {len(self.schedulers)} schedulers: one less is needed"
            )
        if sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"milestones {self.milestones} do not ascend")
        return self

    @property
    def step_each_iteration(self) -> bool:
        return self.schedulers[0].step_each_iteration

    def build(self, optimizer: torch.optim.Optimizer, batches_per_epoch: int, max_epochs: int) -> _Schedule:
        parts = [s.build(optimizer, batches_per_epoch, max_epochs) for s in self.schedulers]
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [p for p in parts if p is not None], self.milestones)


def _scheduler_kind(value: Any) -> str:
    sequence = isinstance(value, dict) and {"schedulers", "milestones", "last_epoch"} & set(value)
    return (
        "SequentialSchedulerConfig" if sequence or isinstance(value, SequentialSchedulerConfig) else "SchedulerConfig"
    )


AnyScheduler = Annotated[
    Annotated[SchedulerConfig, Tag("SchedulerConfig")]
    | Annotated[SequentialSchedulerConfig, Tag("SequentialSchedulerConfig")],
    Discriminator(_scheduler_kind),
]


def _none_for_infinity(value: Any) -> Any:
    return None if value == math.inf else value


class CheckpointConfig(StrictModel):
    """after_n_forward_steps: from this forward step of a window on (the first is 0) the backward pass computes again what the forward
    pass then need not keep: the same gradients, memory of one step instead of all, a third more work. null or .inf: never."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "kwargs": "remove it: nothing is drawn or checked in the second computation"
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"kwargs": off}
    after_n_forward_steps: Annotated[NonNegativeInt | None, BeforeValidator(_none_for_infinity)] = None


class OptimizationConfig(StrictModel):
    """optimizer_type and its kwargs (``betas``, ``weight_decay``, ``eps``); lr; max_grad_norm clips the global norm.

    use_gradient_accumulation: a backward pass after every forward step, whose state the next step then takes as given: memory of
    one step instead of all, and no gradient through time. The norm that is clipped is that of the sum.
    enable_automatic_mixed_precision: networks train in bfloat16 where torch holds that safe, on whatever device; transforms, physics, losses
    and weights stay in float32, and so does everything outside training. No gradient scaling: bfloat16 has the range of float32.
    resume_optimizer_ckpt_path: a training starts with the moments of this checkpoint of ours; lr, kwargs and schedule are the configured.
    checkpoint: which forward steps keep no activations; the builder's ``checkpointing`` does the same for layers of one.
    """

    optimizer_type: Literal["Adam", "AdamW", "FusedAdam"] = "Adam"
    lr: PositiveFloat = 1e-3
    kwargs: dict[str, Any] = {}
    scheduler: AnyScheduler | None = None
    max_grad_norm: PositiveFloat | None = None
    use_gradient_accumulation: bool = False
    enable_automatic_mixed_precision: bool = False
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume_optimizer_ckpt_path: str | None = None

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

    def _make(self, parameters: list[nn.Parameter], shards: Ranks | None = None) -> torch.optim.Optimizer:
        kind, keys = _OPTIMIZERS[self.optimizer_type], {"lr": self.lr, "fused": True} | self.kwargs
        if shards is not None:
            return shards.sharded(kind, parameters, keys)
        made: torch.optim.Optimizer = kind(parameters, **keys)
        return made

    def build(
        self, module: nn.Module, batches_per_epoch: int, max_epochs: int, shards: Ranks | None = None
    ) -> Optimization:
        """shards: ranks that each keep the state of a part of the weights; None: every rank keeps all of it."""
        return Optimization(self, module, batches_per_epoch, max_epochs, shards)


class Descent(Protocol):
    """What a train stepper does with its losses."""

    @property
    def accumulates_gradients(self) -> bool:
        """Whether :meth:`accumulate` runs backward at once, so that no graph may be needed twice."""
        ...

    @property
    def mixed_precision(self) -> bool:
        """Whether networks work in bfloat16 where that is safe."""
        ...

    def recomputes(self, step: int) -> bool:
        """Whether the backward pass computes forward step ``step`` of a window (the first is 0) again."""
        ...

    def accumulate(self, loss: Tensor) -> None:
        """Add ``loss`` (0-d, with a graph) to what the next :meth:`step_weights` descends."""
        ...

    def step_weights(self) -> None:
        """Update the weights from the gradient of all that was accumulated."""
        ...


class Untrained:
    """A :class:`Descent` that goes nowhere: losses are only looked at."""

    accumulates_gradients = mixed_precision = False

    def recomputes(self, step: int) -> bool:
        return False

    def accumulate(self, loss: Tensor) -> None:
        pass

    def step_weights(self) -> None:
        pass


class Optimization:
    """loss -> backward -> clip -> optimizer step -> schedule."""

    def __init__(
        self,
        config: OptimizationConfig,
        module: nn.Module,
        batches_per_epoch: int,
        max_epochs: int,
        shards: Ranks | None = None,
    ) -> None:
        self.config = config
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = config._make(self._parameters, shards)
        self._loss: Tensor | None = None
        self.schedule: _Schedule | None = None
        if config.scheduler is not None:
            self.schedule = config.scheduler.build(self.optimizer, batches_per_epoch, max_epochs)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def accumulates_gradients(self) -> bool:
        return self.config.use_gradient_accumulation

    @property
    def mixed_precision(self) -> bool:
        return self.config.enable_automatic_mixed_precision

    def recomputes(self, step: int) -> bool:
        after = self.config.checkpoint.after_n_forward_steps
        return after is not None and step >= after

    def accumulate(self, loss: Tensor) -> None:
        if self.accumulates_gradients:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._loss = loss if self._loss is None else self._loss + loss

    def step_weights(self) -> None:
        if self._loss is not None:
            self._loss.backward()  # type: ignore[no-untyped-call]
            self._loss = None
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        self.optimizer.step()
        # A fused step changes weights without saying so; what is kept of them goes by their versions.
        torch.autograd.graph.increment_version(self._parameters)
        self.optimizer.zero_grad(set_to_none=True)
        self._advance(each_iteration=True)

    def set_lr(self, lr: float) -> None:
        """Only for a constant learning rate: a schedule would set its own again."""
        assert self.schedule is None
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def end_epoch(self, validation_loss: float) -> None:
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(validation_loss)
        else:
            self._advance(each_iteration=False)

    def _advance(self, each_iteration: bool) -> None:
        config = self.config.scheduler
        if self.schedule is not None and config is not None and config.step_each_iteration == each_iteration:
            self.schedule.step()

    def settle(self) -> None:
        """On all ranks before the root's :meth:`state`: bring together what each keeps a part of."""
        consolidate(self.optimizer)

    def state(self) -> dict[str, Any]:
        """Of the whole, on the root rank after :meth:`settle`; the same whether ranks keep parts of it or not."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "schedule": schedule}

    def own_state(self) -> dict[str, Any]:
        """Of this rank's part alone, for :meth:`load_own_state` of the same object."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        return {"optimizer": own_part(self.optimizer).state_dict(), "lr": self.lr, "schedule": schedule}

    def load_own_state(self, state: dict[str, Any]) -> None:
        own_part(self.optimizer).load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for group in self.optimizer.param_groups:
            group["lr"] = state["lr"]

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of another optimizer."""
        self._require_fit(state["optimizer"])
        # A sharded one forgets in the argument what is not its own.
        self.optimizer.load_state_dict(state["optimizer"] | {"state": dict(state["optimizer"]["state"])})
        if self.schedule is not None and state["schedule"] is not None:
            self.schedule.load_state_dict(state["schedule"])

    def take_moments(self, state: dict[str, Any]) -> None:
        """Of another training's :meth:`state`; hyper-parameters and schedule stay. Raises ValueError for those of another optimizer."""
        self._require_fit(state["optimizer"])
        own = [
            {k: list(range(len(v))) if k == "params" else v for k, v in group.items()}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict({"state": dict(state["optimizer"]["state"]), "param_groups": own})

    def _require_fit(self, state: dict[str, Any]) -> None:
        """torch would notice at the first step, or not at all."""
        theirs = [len(group["params"]) for group in state["param_groups"]]
        if theirs != [len(self._parameters)]:
            found = f"{len(theirs)} group(s) of " + ", ".join(map(str, theirs))
            raise ValueError(f"its optimizer has {found} parameters, not {len(self._parameters)} in one")
        moments = {"exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if self.optimizer.defaults.get("amsgrad") else set())
        for i, of_one in state["state"].items():
            missing = sorted(moments - set(of_one))
            if missing:
                raise ValueError(f"its optimizer has no {', '.join(missing)}, which {self.config.optimizer_type} needs")
            shape, needed = list(of_one["exp_avg"].shape), list(self._parameters[i].shape)
            if shape != needed:
                raise ValueError(f"its optimizer's parameter {i} has shape {shape}, not {needed}")
