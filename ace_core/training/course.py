"""How far a training is and whether it still learns, from the lines of its log alone: for whoever watches it from another process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Course:
    """What the records of a ``metrics.jsonl`` say, the oldest first.

    batches_per_epoch: None as long as nothing tells; the first finished epoch does. step: batches; epoch: completed ones. validation: losses
    by epoch, NaN where one was not finite.
    """

    max_epochs: int
    batches_per_epoch: int | None = None
    step: int = 0
    epoch: int = 0
    loss: float | None = None
    samples_per_second: float | None = None
    validation: dict[int, float] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """The next record of the log."""
        self.step = record["step"]
        self.samples_per_second = record.get("training_samples_per_second", self.samples_per_second)
        for key in ("batch_loss", "train/mean/loss"):
            if key in record:
                self.loss = _number(record[key])
        if "epoch" in record:
            self.epoch = record["epoch"]
            self.validation[self.epoch] = _number(record["val_loss"])
            if self.epoch and self.batches_per_epoch is None:
                self.batches_per_epoch = self.step // self.epoch

    @property
    def done(self) -> float:
        """Share of the training that is behind it, 0 to 1."""
        if self.epoch >= self.max_epochs:
            return 1.0
        if self.batches_per_epoch is None:
            return self.epoch / self.max_epochs
        return min(self.step / (self.batches_per_epoch * self.max_epochs), 1.0)

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch and loss of the best validation, of equal ones the first; None as long as no loss was finite."""
        finite = [(epoch, loss) for epoch, loss in self.validation.items() if math.isfinite(loss)]
        return min(finite, key=lambda one: one[1], default=None)

    @property
    def epochs_without_gain(self) -> int:
        """Since the best validation."""
        return 0 if self.best is None else self.epoch - self.best[0]

    @property
    def diverged(self) -> bool:
        """Whether the last validation loss was not finite."""
        return bool(self.validation) and not math.isfinite(list(self.validation.values())[-1])

    def words(self, seconds_left: float | None) -> str:
        """One line for a person, such as ``epoch 3 of 10, loss 0.1234, 456 samples/s, 2 min left``."""
        over = self.epoch >= self.max_epochs
        if over or self.batches_per_epoch is None:
            current = min(self.epoch + (not over), self.max_epochs)
        else:
            # While an epoch is validated all its batches are trained.
            current = min(max(self.epoch, (self.step - 1) // self.batches_per_epoch) + 1, self.max_epochs)
        parts = [f"epoch {current} of {self.max_epochs}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.validation:
            parts.append(f"validation loss {list(self.validation.values())[-1]:.4g}")
        if self.samples_per_second is not None:
            parts.append(f"{self.samples_per_second:.0f} samples/s")
        if over:
            parts.append("done")
        elif seconds_left is not None:
            parts.append(f"{in_words(seconds_left)} left")
        return ", ".join(parts)


def in_words(seconds: float) -> str:
    """A duration as a person says it: two units at most."""
    seconds = max(round(seconds), 1)
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(hours + minutes / 60), 24)
    return f"{days} d {hours} h"


def _number(value: float | None) -> float:
    """The log has null for what was not finite."""
    return math.nan if value is None else float(value)
