"""``ace evaluate`` and ``ace infer``: the runs that their configurations describe.

Legend: B row of a batch (initial condition and member), S steps of a window, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ace_core.calendar import I64, format_time
from ace_core.config import dump
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.inference import InferenceData, open_inference
from ace_core.data.initial import PERTURBED
from ace_core.data.loader import make_loader
from ace_core.data.perturbation import Sea
from ace_core.diagnostics.base import Diagnostics, Findings, scalars_of
from ace_core.diagnostics.pieces import pieces
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, fail
from ace_core.evaluation.config import EvaluatorConfig, InferenceConfig, RunConfig
from ace_core.evaluation.gather import Problems
from ace_core.evaluation.in_sample import in_sample
from ace_core.evaluation.opened import Opened, explained, open_run, possible_ranges, run, scene_of
from ace_core.evaluation.restart import INITIAL, LAST, POINT, RestartPoint, read_point, write_state
from ace_core.evaluation.writers.plans import Written
from ace_core.evaluation.writers.writer import Writer, unwritable
from ace_core.fields import Fields
from ace_core.grid import require_same_grid
from ace_core.models.context import NoiseKey
from ace_core.netcdf import write_netcdf
from ace_core.provenance import sha256_of, write_json
from ace_core.rollout import Diverged, RolloutWindow
from ace_core.signals import StopFlag
from ace_core.step.args import StepperState
from ace_core.telemetry import log
from ace_core.training.train_stepper import EmulatorTrainStepper
from ace_core.training.trainer import SegmentOver, Stopped
from ace_core.training.validation import one_step_table, validate_one_step
from ace_core.variables import describe

# Of a configuration, what changes nothing in the output: a run goes on from its restart point whatever these are.
NOT_OF_OUTPUT = ("experiment_dir", "logging", "restart_every_n_windows", "forward_steps_per_segment")


def evaluate(config: EvaluatorConfig, directory: Path, ranks: Ranks) -> Mapping[str, float]:
    """Run, score, write what ``data_writer`` and ``aggregator`` ask for and ``scores.{json,txt}`` into ``directory``; returns the scores.

    Raises as :func:`record`."""
    opened = _open(config, config.loader, config.loader, with_targets=True)
    compared = None if config.prediction_loader is None else _open_predictions(config, opened)
    scores: dict[str, float] = {}
    if config.validation is not None:
        scores |= _one_step(config, opened, directory, ranks)
    scores |= record(config, opened, directory, ranks, paired=True, compared=compared)
    stamp = "".join(f"{k}: {v}\n" for k, v in in_sample(opened.emulator.info, opened.forcing.spans()).items())
    (directory / "scores.txt").write_text(score_table(scores, config.n_forward_steps) + stamp)
    return scores


def infer(config: InferenceConfig, directory: Path, ranks: Ranks) -> Mapping[str, float]:
    """Run and write what ``data_writer`` and ``aggregator`` ask for into ``directory``; returns the global time mean of every variable.

    Raises as :func:`record`."""
    start = config.initial_condition
    initial: InferenceDataLoaderConfig | None = None
    if start.dataset is None:
        file = start.open(())
        starts, calendar = file.times, file.calendar
    else:
        assert start.start_indices is not None
        initial = InferenceDataLoaderConfig(dataset=start.dataset, start_indices=start.start_indices)
        data = open_inference(initial, (), 0, 1)
        starts, calendar = data.store.times.values[data.starts], data.store.times.calendar
    forcing = InferenceDataLoaderConfig.model_validate(
        {
            "dataset": config.forcing_loader.dataset,
            "start_indices": {"times": [format_time(int(t), calendar) for t in starts]},
            "num_data_workers": config.forcing_loader.num_data_workers,
            "perturbations": config.forcing_loader.perturbations,
            "persistence_names": config.forcing_loader.persistence_names,
        }
    )
    opened = _open(config, start if initial is None else initial, forcing, with_targets=False)
    return record(config, opened, directory, ranks, paired=False)


def record(
    config: RunConfig,
    opened: Opened,
    directory: Path,
    ranks: Ranks,
    *,
    paired: bool,
    compared: InferenceData | None = None,
) -> dict[str, float]:
    """The rollout with its writers and diagnostics, from the beginning or from the restart point in ``directory``. compared: predictions
    instead of the emulator's.

    Raises, before the first step, :class:`ConfigError` with all that outputs and diagnostics want and cannot have; later
    :class:`ace_core.rollout.Diverged`; :class:`DataError` for a disk that is full; :class:`Stopped` after SIGTERM or SIGINT and
    :class:`SegmentOver` after a segment, both with a restart point on the disk.
    """
    key = sha256_of({k: v for k, v in dump(config).items() if k not in NOT_OF_OUTPUT})
    point = read_point(directory, key)
    diagnostics, writer = _recorders(config, opened, directory, ranks, point, paired)
    emulator, info, seen = opened.emulator, opened.forcing.info, _seen(opened)
    if point is not None:
        log.info("%s: going on after step %d of %d", directory, point.done, config.n_forward_steps)
        diagnostics.merge({n: {k: _on(v, ranks) for k, v in m.items()} for n, m in point.diagnostics.items()})
    elif compared is None:
        fields, perturbed = opened.initial_fields(), opened.starts_perturbed
        noise = opened.noise_left(config.seed, 0)
        if noise is not None:
            log.info(
                "%s: the noise of the initial condition goes on at step %d, seed is not asked", directory, noise.step
            )
        _leave_state(directory / INITIAL, opened, fields, opened.start_times, opened.stepper_state, noise, perturbed)
    keep = config.data_writer.save_step_diagnostics or diagnostics.sees_correction
    windows = (
        _predicted(config, opened, ranks, point, keep)
        if compared is None
        else _compared(opened, compared, ranks, point)
    )
    last: RestartPoint | None = point
    with StopFlag() as stop, writer:
        for window, piece in pieces(emulator, windows, paired=paired):
            diagnostics.add(piece)
            writer.append(piece)
            if piece.first_step == 0:
                continue
            done = piece.first_step + piece.n_steps - 1
            last = _after(window, done)
            why = _why_leave(config, stop, done, 0 if point is None else point.done)
            if done < config.n_forward_steps and (why is not None or _due(config, opened, done)):
                writer.flush()
                try:
                    replace(last, diagnostics=diagnostics.state(), writer=writer.state()).save(directory, key)
                except (OSError, RuntimeError) as error:
                    raise unwritable(directory, error) from None
                if why is not None:
                    raise why
    assert last is not None
    if compared is None:
        end = opened.start_times + config.n_forward_steps * info.timestep
        state = last.state.subset(emulator.step.prognostic_names)
        noise = opened.noise_left(config.seed, config.n_forward_steps)
        _leave_state(directory / LAST, opened, state, end, last.stepper_state, noise, opened.forcing.applied)
    scores = write_findings(diagnostics.findings(ranks), directory, seen)
    (directory / POINT).unlink(missing_ok=True)
    return scores


def _leave_state(
    path: Path,
    opened: Opened,
    fields: Fields,
    times: I64,
    stepper_state: StepperState,
    noise: NoiseKey | None,
    perturbed: str,
) -> None:
    """perturbed: with what the sea surface of the fields is, empty if with nothing."""
    info = opened.forcing.info
    attributes = {"title": f"ACE {path.stem.replace('_', ' ')} data file", **_seen(opened)}
    if perturbed:
        attributes[PERTURBED] = perturbed
    try:
        write_state(path, fields, times, info.calendar, info.grid, stepper_state, noise, attributes)
    except (OSError, RuntimeError) as error:
        raise unwritable(path.parent, error) from None


def _open(
    config: RunConfig,
    initial: Any,
    forcing: InferenceDataLoaderConfig,
    *,
    with_targets: bool,
) -> Opened:
    return open_run(
        config.checkpoint_path,
        initial,
        forcing,
        config.n_forward_steps,
        config.forward_steps_in_memory,
        with_targets=with_targets,
        use_ema_if_available=config.use_ema_if_available,
        labels=config.labels,
        members=config.n_ensemble_per_ic,
        override=config.stepper_override,
        allow_incompatible=config.allow_incompatible_dataset,
    )


def _seen(opened: Opened) -> dict[str, str]:
    return in_sample(opened.emulator.info, opened.forcing.spans())


def _recorders(
    config: RunConfig, opened: Opened, directory: Path, ranks: Ranks, point: RestartPoint | None, paired: bool
) -> tuple[Diagnostics, Writer]:
    info, problems = opened.forcing.info, Problems()
    scene = scene_of(opened, config.n_forward_steps, ranks, paired=paired)
    written = Written(
        scene.names,
        info.grid,
        scene.starts,
        info.timestep,
        info.calendar,
        config.n_forward_steps,
        opened.forcing.forward_steps_in_memory,
        paired,
        _seen(opened),
    )
    diagnostics = writer = None
    with problems.part():
        opened.data_mask()
    with problems.part():
        diagnostics = config.aggregator.build(scene)
    with problems.part():
        writer = Writer(config.data_writer, written, directory, None if point is None else point.writer)
    problems.check()
    assert diagnostics is not None
    assert writer is not None
    return diagnostics, writer


def _on(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    return {k: v.to(ranks.device) for k, v in tensors.items()}


def _after(window: RolloutWindow, done: int) -> RestartPoint:
    return RestartPoint(
        done, window.prediction.at_time(window.prediction.tensor.shape[1] - 1), window.stepper_state, {}, {}
    )


def _due(config: RunConfig, opened: Opened, done: int) -> bool:
    every, window = config.restart_every_n_windows, opened.forcing.forward_steps_in_memory
    return every > 0 and (done // window) % every == 0


def _why_leave(config: RunConfig, stop: StopFlag, done: int, since: int) -> Stopped | None:
    left = f"{config.n_forward_steps - done} of {config.n_forward_steps} forward steps are left"
    if stop:
        return Stopped(f"stopped; {left}: run the same command again to go on")
    segment = config.forward_steps_per_segment
    if segment is not None and done - since >= segment:
        return SegmentOver(f"a segment is done; {left}: the same command computes the next one")
    return None


def _predicted(
    config: RunConfig, opened: Opened, ranks: Ranks, point: RestartPoint | None, keep: bool
) -> Iterator[RolloutWindow]:
    """keep: what the corrector changes."""
    possible = possible_ranges(opened.names)
    try:
        yield from run(opened, ranks, config.seed, keep_uncorrected=keep, point=point, ranges=possible)
    except Diverged as error:
        raise explained(error, opened) from None


# --- predictions from data


def _open_predictions(config: EvaluatorConfig, opened: Opened) -> InferenceData:
    """Raises :class:`ConfigError` for data that are not of the same times and grid."""
    assert config.prediction_loader is not None
    emulator, problems = opened.emulator, Problems()
    names = tuple(dict.fromkeys([*emulator.loss_names, *emulator.step.prognostic_names]))
    data: InferenceData | None = None
    with problems.part():
        n, in_memory = config.n_forward_steps, config.forward_steps_in_memory
        data = open_inference(config.prediction_loader, names, n, in_memory, sea=Sea.of(emulator.step.ocean))
    problems.check()
    assert data is not None
    with problems.part():
        require_same_grid(opened.forcing.info.grid, data.info.grid, data.store.path, "the grid of loader")
    if data.spans() != opened.forcing.spans():
        mine, theirs = (
            ", ".join(format_time(a, x.info.calendar) for a, _ in x.spans()[:4]) for x in (data, opened.forcing)
        )
        with problems.part():
            raise fail(
                ConfigError,
                "prediction_loader",
                f"starts at {mine}",
                f"the times of loader: {theirs}",
                "correct start_indices",
            )
    problems.check()
    return data


def _compared(
    opened: Opened, predictions: InferenceData, ranks: Ranks, point: RestartPoint | None
) -> Iterator[RolloutWindow]:
    done = 0 if point is None else point.done
    first = done // opened.forcing.forward_steps_in_memory
    for batch, other in zip(opened.forcing.windows(first), predictions.windows(first), strict=True):
        driven, fields = opened.emulator.drive(batch.to(ranks.device)), other.fields.to(ranks.device)
        prediction = Fields(fields.names, fields.tensor[:, 1:])
        yield RolloutWindow(prediction, driven, done + 1, fields.at_time(0))
        done += prediction.tensor.shape[1]


# --- one step


def _one_step(config: EvaluatorConfig, opened: Opened, directory: Path, ranks: Ranks) -> dict[str, float]:
    """Into ``validation/``; metrics ``val/...``."""
    assert config.validation is not None
    emulator, configured = opened.emulator, opened.emulator.config.step.config
    names = list(dict.fromkeys([*emulator.config.data_names, *emulator.forcing_names]))
    loader = make_loader(
        config.validation.loader,
        names,
        2,
        train=False,
        seed=config.seed,
        allow_missing=configured.allow_missing_variables,
        allow_nan=configured.normalization.network.fill_nans_on_normalize,
        sea=Sea.of(emulator.step.ocean),
    )
    require_same_grid(
        emulator.info.grid, loader.dataset.info.grid, "validation.loader", f"the grid of {config.checkpoint_path}"
    )
    stepper = EmulatorTrainStepper(emulator, config.validation.stepper_training, ranks, config.seed)
    metrics, _ = validate_one_step(stepper, loader.batches, ranks, "val")
    folder = directory / "validation"
    folder.mkdir(exist_ok=True)
    write_json(folder / "one_step.json", {k: v if math.isfinite(v) else None for k, v in metrics.items()})
    (folder / "one_step.txt").write_text(one_step_table(metrics))
    return metrics


# --- what is left behind


def write_findings(found: Mapping[str, Findings], directory: Path, attributes: Mapping[str, str]) -> dict[str, float]:
    """``<name>_diagnostics.nc`` and ``scores.json``; returns the scores, ``<name>/<key>``."""
    for name, findings in found.items():
        if findings.dataset is not None:
            write_netcdf(findings.dataset.assign_attrs(attributes), directory / f"{name}_diagnostics.nc")
    scores = scalars_of(found)
    # JSON knows no NaN: what could not be scored, because data for it are missing, is null.
    write_json(directory / "scores.json", {k: v if math.isfinite(v) else None for k, v in scores.items()})
    return scores


def score_table(scores: Mapping[str, float], n_steps: int) -> str:
    """Time-mean bias and pattern error, and the mean error over forecast steps, of every variable as text."""
    keys = ("time_mean/bias", "time_mean/rmse", "mean/weighted_rmse")
    names = dict.fromkeys(key.removeprefix(f"{k}/") for k in keys for key in scores if key.startswith(f"{k}/"))
    lines = [f"{f'{n_steps}-step rollout':<48} {'mean bias':>12} {'RMSE of mean':>13} {'mean RMSE':>12} units"]
    for name in names:
        bias, error, step = (scores.get(f"{k}/{name}", math.nan) for k in keys)
        lines.append(f"{name:<48} {bias:>12.4g} {error:>13.4g} {step:>12.4g} {describe(name).units}")
    return "\n".join(lines) + "\n"
