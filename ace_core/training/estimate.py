"""What a training will need, before it runs: parameters, memory, disk and time; and beside that, afterwards, what it did need.

One step of the first batch says how many floating-point operations there are and how many bytes the backward pass keeps; how long such
steps take, or a declared speed, says the rest. With a declared speed the step has no data and computes nothing, as far as torch can.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ace_core.data.batch import Batch
from ace_core.data.config import ExplicitIndices, InitialConditionIndices, TimestampList
from ace_core.data.loader import Loader, make_loader
from ace_core.distributed import Ranks, require_tiles
from ace_core.fields import Fields
from ace_core.memory import peak_resident, resident
from ace_core.step.emulator import Emulator, build_emulator
from ace_core.telemetry import read_metrics
from ace_core.training.forward_steps import most_steps
from ace_core.training.optimization import Optimization, OptimizationConfig, Untrained
from ace_core.training.run import epochs_of
from ace_core.training.train import TrainConfig
from ace_core.training.train_stepper import EmulatorTrainStepper

_TIMED = 3  # steps, of which the median counts
_BATCH_LINE, _METRIC = 160, 70  # bytes of the log: a line of a batch, one metric of an epoch's line
_FIGURES = 120_000  # bytes of loss.png and the tables beside it


@dataclass(frozen=True)
class Estimate:
    """parameters; flop: of the step of one rank's batch, forward and backward; flop_per_second: measured or declared.

    memory: bytes of one rank by part; on a GPU ``process``, ``batches`` and ``checkpoint copy`` are the host's. ``evaluation`` takes the place
    of gradients, activations and batches, whichever is more. disk: bytes at the end by part. seconds: by part, of the whole training.
    """

    parameters: int
    flop: int
    flop_per_second: float
    memory: Mapping[str, int]
    disk: Mapping[str, int]
    seconds: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Plain data for ``run.json``."""
        in_turn = (sum(self.memory[k] for k in ("gradients", "activations", "batches")), self.memory["evaluation"])
        return asdict(self) | {
            "memory": {**self.memory, "total": sum(self.memory.values()) - min(in_turn)},
            "disk": {**self.disk, "total": sum(self.disk.values())},
            "seconds": {**self.seconds, "total": sum(self.seconds.values())},
        }

    def of_a_tile(self, n: int) -> Estimate:
        """Where fields are divided among n ranks: what goes with fields is; what is exchanged is not counted."""
        shared = ("activations", "batches", "evaluation")
        memory = {k: v // n if k in shared else v for k, v in self.memory.items()}
        seconds = {k: v / n for k, v in self.seconds.items()}
        return replace(self, flop=self.flop // n, memory=memory, seconds=seconds)

    def table(self) -> str:
        lines = [f"{'parameters':<28}{self.parameters:>14,}"]
        lines += [f"{'GFLOP of a step':<28}{self.flop / 1e9:>14,.3f}"]
        lines += [f"{'GFLOP/s':<28}{self.flop_per_second / 1e9:>14,.1f}"]
        record = self.record()
        for part, unit, scale in (("memory", "MB", 1e6), ("disk", "MB", 1e6), ("seconds", "s", 1.0)):
            lines += [f"{f'{part}, {name}':<28}{value / scale:>14,.1f} {unit}" for name, value in record[part].items()]
        return "\n".join(lines)


def open_and_estimate(config: TrainConfig, ranks: int = 1, flop_per_second: float | None = None) -> Estimate:
    """Of a configuration, for one of ``ranks`` processes that share its batches. flop_per_second: declared, or measured here.
    Raises as :func:`ace_core.training.train.train`."""
    config, stepper = config.with_stepper()
    h, w = config.parallelism.tiles
    require_tiles(ranks, h, w)
    places = ranks // (h * w)
    step = stepper.step.config
    data, *validation = (
        make_loader(
            loader,
            stepper.data_names,
            n_timesteps,
            train=train,
            world=places,
            allow_missing=step.allow_missing_variables,
            allow_nan=step.normalization.network.fill_nans_on_normalize,
        )
        for loader, n_timesteps, train in (
            (config.train_loader, most_steps(config.stepper_training.n_forward_steps) + 1, True),
            *((v.loader, 2, False) for _, v in config.validations),
        )
    )
    try:
        device = torch.device("cuda" if torch.cuda.is_available() and flop_per_second is None else "cpu")
        emulator = build_emulator(stepper, data.dataset.info, config.seed)
        samples = sum(v.n_samples for v in validation)
        whole = estimate(config, emulator, data, samples, Ranks(0, places, device), flop_per_second)
        return whole if h * w == 1 else whole.of_a_tile(h * w)
    finally:
        for loader in (data, *validation):
            loader.close()


def estimate(
    config: TrainConfig,
    emulator: Emulator,
    data: Loader,
    n_validation: int,
    ranks: Ranks,
    flop_per_second: float | None = None,
) -> Estimate:
    """Of an emulator that is ready to be trained, whose weights stay what they are. n_validation: samples of one validation."""
    process = resident()
    # With its own tiles, and without the others' gradients.
    own = Ranks(device=ranks.device, tiles=ranks.tiles)
    alone = EmulatorTrainStepper(emulator, config.stepper_training, own, config.seed)
    gradients = _Gradients(config.optimization, alone.module, 1, 1)
    buffers = [b.detach().clone() for b in alone.module.buffers()]
    begin = time.perf_counter()
    batch = next(iter(data.batches(0, 0)))
    reading = time.perf_counter() - begin
    alone.module.train()
    flop, kept = _counted(alone, config.optimization, batch, flop_per_second is not None)
    if flop_per_second:
        seconds, forward, speed = flop / flop_per_second, flop / 3 / flop_per_second, flop_per_second
    else:
        seconds = _median(lambda: alone.train_on_batch(batch, gradients), ranks.device)
        with torch.no_grad():
            forward = _median(lambda: alone.train_on_batch(batch, Untrained()), ranks.device)
        speed = flop / seconds
    with torch.no_grad():
        for buffer, before in zip(alone.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
    # Of one step of one sample.
    steps = most_steps(config.stepper_training.n_forward_steps)
    forward /= batch.n_samples * steps
    per_batch = seconds + reading if config.train_loader.num_data_workers == 0 else max(seconds, reading)
    parameters = list(alone.module.parameters())
    trained = sum(_bytes(p) for p in parameters if p.requires_grad)
    weights = sum(_bytes(p) for p in parameters) + sum(_bytes(b) for b in alone.module.buffers())
    moments = (3 if config.optimization.kwargs.get("amsgrad") else 2) * trained
    ahead = 1 + max(1, config.train_loader.num_data_workers)
    return Estimate(
        parameters=emulator.n_parameters,
        flop=flop,
        flop_per_second=speed,
        memory={
            "process": max(0, process - weights),
            "weights": weights,
            "gradients": trained,
            "moments": moments,
            "averages": trained,
            "activations": kept,
            "batches": ahead * _bytes(batch.fields.tensor),
            "evaluation": max(_evaluation(config, emulator, batch, ranks, kept // (steps + 1)), default=0),
            "checkpoint copy": weights + moments + trained,
        },
        disk=_disk(config, weights, weights + moments + trained, data.n_batches, len(emulator.loss_names)),
        seconds=_seconds(config, per_batch, data.n_batches, forward / ranks.places, n_validation),
    )


class _Gradients(Optimization):
    """Backward passes, and no update."""

    def step_weights(self) -> None:
        if self._loss is not None:
            self._loss.backward()  # type: ignore[no-untyped-call]
            self._loss = None
        self.optimizer.zero_grad(set_to_none=True)


class _Kept(_Gradients):
    """by_step: bytes of the storages that the graph of every forward step holds, besides ``own`` ones and those of steps before."""

    def __init__(self, config: OptimizationConfig, module: nn.Module) -> None:
        super().__init__(config, module, 1, 1)
        self._own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
        self._seen: dict[int, int] = {}
        self.by_step: list[int] = []

    def recomputes(self, step: int) -> bool:
        return False  # what is computed again keeps once what it would have kept

    def keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._own:
            self._seen[storage._cdata] = storage.nbytes()
        return x

    def accumulate(self, loss: Tensor) -> None:
        self.by_step.append(sum(self._seen.values()) - sum(self.by_step))
        super().accumulate(loss)


def _counted(
    stepper: EmulatorTrainStepper, config: OptimizationConfig, batch: Batch, without_data: bool
) -> tuple[int, int]:
    """FLOP of a step, and the most bytes that it holds at a time: what its backward pass keeps, and about as much as of one forward step
    for what is there for a moment."""
    again = Optimization(config, nn.Linear(1, 1), 1, 1).recomputes
    part, n = batch, 1
    if config.checkpoint.after_n_forward_steps is not None and not without_data:
        # To keep everything of a whole batch may need more memory than there is.
        part, n = _first_sample(batch), batch.n_samples
    flop, by_step = _without_data(stepper, config, part) if without_data else _one(stepper, config, part)
    once = [b for s, b in enumerate(by_step) if again(s) or config.use_gradient_accumulation]
    twice = sum(again(s) for s in range(len(by_step)))
    kept = sum(by_step) - sum(once) + max(once, default=0) + max(by_step)
    return n * (flop + flop * twice // (3 * len(by_step))), n * kept


def _first_sample(batch: Batch) -> Batch:
    assert batch.place is not None
    return replace(
        batch,
        fields=Fields(batch.fields.names, batch.fields.tensor[:1]),
        times=batch.times[:1],
        place=replace(batch.place, n_rows=1, first_row=0),
        data_mask=None if batch.data_mask is None else batch.data_mask[:1],
        labels=None if batch.labels is None else batch.labels[:1],
    )


def _without_data(stepper: EmulatorTrainStepper, config: OptimizationConfig, batch: Batch) -> tuple[int, list[int]]:
    """As :func:`_one`, on tensors that have a shape alone; with data where torch cannot follow what a network does."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # 80 MB of modules

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for tensor in (*stepper.module.parameters(), *stepper.module.buffers()):
        empty: Tensor = mode.from_tensor(tensor.detach())
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    try:
        empty_one = copy.deepcopy(stepper, memo)
        with mode:
            return _one(empty_one, config, batch)
    except Exception:  # a network may look at its numbers, and torch has many ways to say so
        return _one(stepper, config, batch)
    finally:
        # Tables that were made meanwhile have no data either.
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == __name__.partition(".")[0]:
                for value in vars(module).values():
                    if isinstance(value, _lru_cache_wrapper):
                        value.cache_clear()


def _one(stepper: EmulatorTrainStepper, config: OptimizationConfig, batch: Batch) -> tuple[int, list[int]]:
    kept = _Kept(config, stepper.module)
    with FlopCounterMode(display=False) as count, torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda x: x):
        stepper.train_on_batch(batch, kept)
    return int(count.get_total_flops()), kept.by_step


def _median(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_TIMED):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return sorted(times)[_TIMED // 2]


def _seconds(
    config: TrainConfig, per_batch: float, n_batches: int, forward: float, n_validation: int
) -> dict[str, float]:
    """per_batch: seconds of one of an epoch's ``n_batches``; forward: of one step of one sample, shared among the ranks."""
    members = config.stepper_training.members
    first = 1 if config.evaluate_before_training else 0
    rollouts = 0.0
    for _, epochs, inference in config.inferences:
        rollouts += len(epochs) * inference.n_forward_steps * _n_starts(inference.loader.start_indices) * forward
    for _, epochs, paired in config.perturbation_inferences:
        rows = _n_starts(paired.loader.start_indices) * paired.n_ensemble_per_ic * (1 + len(paired.perturbations))
        rollouts += len(epochs) * paired.n_forward_steps * rows * forward
    trials, batches = 0, config.max_epochs * n_batches
    if config.lr_tuning is not None:
        trials = len(epochs_of(config.lr_tuning.epochs, 0, config.max_epochs - 1))
        batches += 2 * trials * min(config.lr_tuning.num_batches, n_batches)
    validations = config.max_epochs + first + 2 * trials
    samples = validations * n_validation + config.max_epochs * config.train_evaluation_samples
    parts = {"training": batches * per_batch, "validation": samples * members * forward}
    if config.inference or config.perturbation_inference:
        parts["inference"] = rollouts
    return parts


def _evaluation(config: TrainConfig, emulator: Emulator, batch: Batch, ranks: Ranks, kept: int) -> Iterator[int]:
    """Bytes that one validation takes at most. kept: what a training step keeps of ``batch``, of which a forward pass holds no more."""
    cells = math.prod(emulator.info.grid.shape)
    for _, validation in config.validations:
        n = -(-validation.loader.batch_size // ranks.places)
        ahead = 1 + max(1, validation.loader.num_data_workers)
        data = ahead * n * 2 * len(batch.fields.names) * cells * 4
        # Prediction, target and initial fields in double precision, and a difference of each.
        yield data + kept * n // batch.n_samples + 6 * n * len(emulator.loss_names) * cells * 8


def _n_starts(starts: InitialConditionIndices | ExplicitIndices | TimestampList) -> int:
    if isinstance(starts, InitialConditionIndices):
        return starts.n_initial_conditions
    return len(starts.indices if isinstance(starts, ExplicitIndices) else starts.times)


def _disk(config: TrainConfig, weights: int, resuming: int, n_batches: int, n_names: int) -> dict[str, int]:
    """resuming: bytes of a checkpoint to resume from."""
    kept = 1 + (1 if config.inference else 0)
    for chosen in (config.checkpoint_save_epochs, config.ema_checkpoint_save_epochs):
        kept += len(epochs_of(chosen, 0, config.max_epochs))
    lines = 0
    if config.log_train_every_n_batches:
        lines = 1 + config.max_epochs * n_batches // config.log_train_every_n_batches
    metrics = n_names * (1 + 3 * (len(config.validations) + (config.train_evaluation_samples > 0)))
    metrics += 6 * n_names * len(config.inference)
    return {
        "checkpoints to resume from": config.keep_last_checkpoints * resuming,
        "emulators": kept * weights,
        "log": lines * _BATCH_LINE + config.max_epochs * metrics * _METRIC,
        "figures and tables": _FIGURES,
    }


def actual(directory: Path) -> dict[str, Any]:
    """What a finished run has needed, in the shape of :meth:`Estimate.record`: memory of this process at most, the folder's bytes, the
    seconds in its log."""
    records = [r for r in read_metrics(directory / "metrics.jsonl") if "epoch" in r]
    seconds = {
        name: sum(r.get(f"epoch_{key}_seconds") or 0.0 for r in records)
        for name, key in (("training", "train"), ("validation", "validation"), ("inference", "inference"))
    }
    files: Sequence[Path] = [p for p in directory.rglob("*") if p.is_file()]
    memory = {"total": peak_resident()}
    if torch.cuda.is_available():
        memory["device"] = torch.cuda.max_memory_allocated()
    return {
        "memory": memory,
        "disk": {"total": sum(p.stat().st_size for p in files)},
        "seconds": seconds | {"total": sum(seconds.values())},
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
