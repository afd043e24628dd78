"""``ace evaluate`` and ``ace infer``: configurations in fme's vocabulary, and the runs they describe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from ace_core.calendar import I64, to_cftime
from ace_core.config import StrictModel, only
from ace_core.data.batch import Batch
from ace_core.data.config import InferenceDataLoaderConfig, Names, RolloutDataset, StartIndices
from ace_core.data.inference import InferenceData, open_inference
from ace_core.data.initial import InitialFile, open_initial
from ace_core.data.layout import require_names
from ace_core.data.perturbation import Sea
from ace_core.data.perturbation_config import ForcingPerturbationsConfig
from ace_core.data.store import available
from ace_core.diagnostics.base import Findings, Scene, scalars_of
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.diagnostics.pieces import pieces, scored_names
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, Problem, fail
from ace_core.evaluation.in_sample import in_sample
from ace_core.evaluation.writer import PredictionFile
from ace_core.fields import Fields
from ace_core.grid import Tile, require_same_grid
from ace_core.provenance import write_json
from ace_core.rollout import RolloutWindow, rollout
from ace_core.seeding import row_seed
from ace_core.step.emulator import Emulator
from ace_core.telemetry import LoggingConfig
from ace_core.training.checkpoint import load_emulator
from ace_core.variables import describe


class DataWriterConfig(StrictModel):
    """save_prediction_files: every step as netCDF; names: only these variables (default: all predicted)."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "save_monthly_files": "set it to false: monthly means can be made of autoregressive_predictions.nc",
        "save_step_diagnostics": "set it to false: the corrector's changes are not written",
        "time_coarsen": "remove it: every step is written; coarsen autoregressive_predictions.nc",
        "files": "remove it: save_prediction_files writes the variables in names, every step, as netCDF",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "save_monthly_files": only(False),
        "save_step_diagnostics": only(False),
        "time_coarsen": only(None),
        "files": only(None, []),
    }
    save_prediction_files: bool = True
    names: list[str] | None = None

    def select(self, predicted: Sequence[str]) -> tuple[str, ...]:
        """Names to write, none if nothing is. Raises :class:`ConfigError` for a name that is not predicted."""
        if not self.save_prediction_files:
            return ()
        unknown = [n for n in self.names or () if n not in predicted]
        if unknown:
            where = "data_writer.names"
            raise ConfigError([Problem(where, f"{n!r} is not predicted", ", ".join(predicted)) for n in unknown])
        return tuple(predicted if self.names is None else self.names)


_FME_KEYS = {
    "stepper_override": "train with the ocean and corrector that are wanted",
    "prediction_loader": "remove it: predictions are the emulator's",
    "allow_incompatible_dataset": "set it to false, and use data on the emulator's grid, time step and calendar",
    "n_ensemble_per_ic": "set it to 1, and give every initial condition as often as there are to be members",
    "validation": "use `ace evaluate` on other data",
}
_FME_IDLE: Mapping[str, Callable[[Any], bool]] = {
    "stepper_override": only(None),
    "prediction_loader": only(None),
    "allow_incompatible_dataset": only(False),
    "n_ensemble_per_ic": only(1),
    "validation": only(None),
}


class EvaluatorConfig(StrictModel):
    """Rollouts from data, scored against the same data. seed: of the noise, for emulators that have any. use_ema_if_available: of a
    ``ckpt.tar``, which holds averaged weights beside those being trained, take the averages. labels: instead of the
    data's."""

    FME_KEYS: ClassVar[Mapping[str, str]] = _FME_KEYS
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = _FME_IDLE
    experiment_dir: str | None = None
    seed: Annotated[NonNegativeInt, BeforeValidator(lambda value: 0 if value is None else value)] = 0
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    checkpoint_path: str
    use_ema_if_available: bool = True
    loader: InferenceDataLoaderConfig
    data_writer: DataWriterConfig = DataWriterConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    logging: LoggingConfig = LoggingConfig()
    labels: tuple[str, ...] | None = None


class InitialConditionConfig(StrictModel):
    """Where rollouts start. path: a file of initial conditions (:mod:`ace_core.data.initial`) that ``engine`` reads, all of which start a
    rollout unless start_indices choose; or dataset: a store with the prognostic variables, and start_indices: which of its times."""

    path: str | None = None
    engine: Literal["netcdf4", "zarr"] | None = None
    dataset: RolloutDataset | None = None
    start_indices: StartIndices | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> InitialConditionConfig:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(
                "give path, a file of initial conditions, or dataset, the store to take them from, and not both"
            )
        if self.dataset is not None and (self.start_indices is None or self.engine is not None):
            raise ValueError(
                "dataset needs start_indices, which say at which of its times to start, and engine belongs into it"
            )
        return self

    def open(
        self, names: Sequence[str], *, allow_missing: bool = False, allow_nan: bool = False, tile: Tile | None = None
    ) -> InitialFile:
        """The file that ``path`` names; of its grid the tile, None for all. Raises :class:`DataError`."""
        assert self.path is not None
        engine = self.engine or "netcdf4"
        return open_initial(
            self.path, engine, self.start_indices, names, allow_missing=allow_missing, allow_nan=allow_nan, tile=tile
        )


class ForcingLoaderConfig(StrictModel):
    """Forcing of a rollout; its start is found by the initial condition's time. perturbations: of it, and of the initial condition.
    persistence_names: variables that keep their first value."""

    dataset: RolloutDataset
    num_data_workers: NonNegativeInt = 0
    perturbations: ForcingPerturbationsConfig | None = None
    persistence_names: Names = ()


class InferenceConfig(StrictModel):
    """Rollouts without a target. seed and use_ema_if_available: as of :class:`EvaluatorConfig`. labels: instead of the data's."""

    FME_KEYS: ClassVar[Mapping[str, str]] = _FME_KEYS
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = _FME_IDLE
    experiment_dir: str | None = None
    seed: Annotated[NonNegativeInt, BeforeValidator(lambda value: 0 if value is None else value)] = 0
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    checkpoint_path: str
    use_ema_if_available: bool = True
    initial_condition: InitialConditionConfig
    forcing_loader: ForcingLoaderConfig
    data_writer: DataWriterConfig = DataWriterConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    logging: LoggingConfig = LoggingConfig()
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """An emulator, with the data it starts from and is driven by. first: which of all rollouts is the first of these."""

    emulator: Emulator
    initial: InferenceData | InitialFile
    forcing: InferenceData
    first: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What is predicted."""
        return self.emulator.step.out_names

    @property
    def start_times(self) -> I64:
        """[B] seconds, of every initial condition."""
        return self.initial.initial_condition(perturbed=False).times[:, 0]

    def initial_fields(self) -> Fields:
        """[B, C, Y, X] of the prognostic names, perturbed as the forcing's configuration says."""
        batch, forcing = self.initial.initial_condition(perturbed=False), self.forcing
        return forcing.perturb_initial(batch.fields, batch.times, forcing.perturbations, forcing.scope).at_time(0)

    def data_mask(self) -> Tensor | None:
        """bool [B, C_in], False for inputs that the initial condition (prognostic ones) or the forcing (the others) lacks; None if
        neither lacks any. Raises :class:`DataError` if no rollout can do without one of them."""
        step, n = self.emulator.step, len(self.initial.starts)
        masks: dict[str, bool] = {}
        for data in (self.forcing, self.initial):
            present = data.present
            masks |= {name: bool(p) for name, p in zip(data.names, present, strict=True)}
        here = [masks.get(name, True) for name in step.in_names]
        if all(here):
            return None
        mask = torch.tensor(here).repeat(n, 1)
        step.require_inputs(mask)
        return mask


def open_run(
    checkpoint_path: str,
    initial: InferenceDataLoaderConfig | InitialConditionConfig,
    forcing: InferenceDataLoaderConfig,
    n_forward_steps: int,
    forward_steps_in_memory: int,
    *,
    with_targets: bool,
    use_ema_if_available: bool = True,
    labels: Sequence[str] | None = None,
) -> Opened:
    """Open a checkpoint and the data of a rollout (:func:`open_data`). use_ema_if_available: see
    :func:`ace_core.training.checkpoint.load_emulator`."""
    emulator = load_emulator(Path(checkpoint_path), use_ema_if_available)
    return open_data(
        emulator,
        checkpoint_path,
        initial,
        forcing,
        n_forward_steps,
        forward_steps_in_memory,
        with_targets=with_targets,
        labels=labels,
    )


def open_data(
    emulator: Emulator,
    named: str,
    initial: InferenceDataLoaderConfig | InitialConditionConfig,
    forcing: InferenceDataLoaderConfig,
    n_forward_steps: int,
    forward_steps_in_memory: int,
    *,
    with_targets: bool,
    labels: Sequence[str] | None = None,
    tile: Tile | None = None,
) -> Opened:
    """Open everything a rollout needs and check that it fits together, before the first step.

    named: the emulator in messages. with_targets: the forcing windows also hold what is predicted. labels: instead of the data's.
    tile: what of the grid the emulator works on; None: all.
    Raises :class:`ace_core.errors.AceError`.
    """
    step = emulator.step
    sea, ocean = Sea.of(step.ocean), step.ocean
    if forcing.perturbations is not None and (ocean is None or ocean.slab is not None):
        found = f"{named} has " + ("no ocean" if ocean is None else "a slab ocean, which computes its own SST")
        raise fail(
            ConfigError, "perturbations", found, "a prescribed ocean: no other feels a perturbation of the forcing"
        )
    configured = emulator.config.step.config

    def open_(data: InferenceDataLoaderConfig, names: Sequence[str], n_steps: int, in_memory: int) -> InferenceData:
        return open_inference(
            data,
            names,
            n_steps,
            in_memory,
            sea=sea,
            allow_missing=configured.allow_missing_variables,
            allow_nan=configured.normalization.network.fill_nans_on_normalize,
            tile=tile,
        )

    start: InferenceData | InitialFile
    if isinstance(initial, InitialConditionConfig):
        allow_nan = configured.normalization.network.fill_nans_on_normalize
        start = initial.open(
            step.prognostic_names, allow_missing=configured.allow_missing_variables, allow_nan=allow_nan, tile=tile
        )
        require_same_grid(emulator.info.grid, start.grid, start.path, f"the grid of {named}")
    else:
        start = open_(initial, step.prognostic_names, 0, 1)
    wanted = tuple(dict.fromkeys([*emulator.forcing_names, *(emulator.loss_names if with_targets else ())]))
    drive = open_(forcing, wanted, n_forward_steps, forward_steps_in_memory)
    if labels is not None:
        drive = replace(drive, labels=tuple(sorted(labels)))
    prescribed = () if step.ocean is None else step.ocean.forcing_names
    require_names(drive.store.path, [*prescribed, *step.prescribed_names], available(drive.store))
    for data in (start, drive):
        if isinstance(data, InitialFile):
            continue  # of no time step, and of the forcing's times or there is no rollout
        require_same_grid(emulator.info.grid, data.info.grid, data.store.path, f"the grid of {named}")
        _require_same_clock(emulator, data, named)
    return Opened(emulator, start, drive)


def evaluate(config: EvaluatorConfig, directory: Path, ranks: Ranks) -> Mapping[str, float]:
    """Run, score, write ``time_mean_diagnostics.nc``, ``mean_diagnostics.nc``, ``scores.{json,txt}`` and, if asked,
    ``autoregressive_{predictions,target}.nc`` into ``directory``; returns the scores."""
    opened = open_run(
        config.checkpoint_path,
        config.loader,
        config.loader,
        config.n_forward_steps,
        config.forward_steps_in_memory,
        with_targets=True,
        use_ema_if_available=config.use_ema_if_available,
        labels=config.labels,
    )
    info, predicted = opened.emulator.info, opened.emulator.loss_names
    seen = in_sample(info, opened.forcing.spans())
    written = config.data_writer.select(predicted)
    diagnostics = config.aggregator.build(scene_of(opened, config.n_forward_steps, ranks, paired=True))
    with ExitStack() as stack:
        files = []
        for kind in ("predictions", "target") if written else ():
            path = directory / f"autoregressive_{kind}.nc"
            times = opened.initial.initial_condition(perturbed=False).times[:, 0]
            files.append(stack.enter_context(PredictionFile(path, written, info.grid, times, info.calendar, seen)))
        windows = run(opened, ranks, config.seed, keep_uncorrected=diagnostics.sees_correction)
        for window, piece in pieces(opened.emulator, windows, paired=True):
            diagnostics.add(piece)
            if files and piece.first_step > 0:
                files[0].append(window.prediction.select(written), piece.times)
                files[1].append(window.target(written), piece.times)
    scores = write_findings(diagnostics.findings(ranks), directory, seen)
    stamp = "".join(f"{key}: {value}\n" for key, value in seen.items())
    (directory / "scores.txt").write_text(score_table(scores, config.n_forward_steps) + stamp)
    return scores


def scene_of(opened: Opened, n_steps: int, ranks: Ranks, *, paired: bool) -> Scene:
    """What diagnostics may know of a rollout that is about to begin."""
    emulator = opened.emulator
    scaling = emulator.normalization.network
    return Scene(
        emulator.info,
        scored_names(emulator, paired=paired),
        scaling.means,
        scaling.stds,
        tuple(emulator.loss_names),
        n_steps,
        opened.start_times,
        paired=paired,
        device=ranks.device,
        corrected=emulator.step.corrected_names,
    )


def write_findings(found: Mapping[str, Findings], directory: Path, attributes: Mapping[str, str]) -> dict[str, float]:
    """``<name>_diagnostics.nc`` and ``scores.json``; returns the scores, ``<name>/<key>``."""
    for name, findings in found.items():
        if findings.dataset is not None:
            findings.dataset.assign_attrs(attributes).to_netcdf(directory / f"{name}_diagnostics.nc")
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


def infer(config: InferenceConfig, directory: Path, ranks: Ranks) -> Mapping[str, float]:
    """Run and write ``autoregressive_predictions.nc`` into ``directory``; returns the global time mean of every variable."""
    start = config.initial_condition
    initial: InferenceDataLoaderConfig | InitialConditionConfig = start
    if start.dataset is None:
        file = start.open(())
        starts, calendar = file.times, file.calendar
    else:
        assert start.start_indices is not None
        initial = InferenceDataLoaderConfig(dataset=start.dataset, start_indices=start.start_indices)
        times = open_inference(initial, (), 0, 1)
        starts, calendar = times.store.times.values[times.starts], times.store.times.calendar
    stamps = [str(t) for t in to_cftime(starts, calendar)]
    forcing = InferenceDataLoaderConfig.model_validate(
        {
            "dataset": config.forcing_loader.dataset,
            "start_indices": {"times": [s.replace(" ", "T") for s in stamps]},
            "num_data_workers": config.forcing_loader.num_data_workers,
            "perturbations": config.forcing_loader.perturbations,
            "persistence_names": config.forcing_loader.persistence_names,
        }
    )
    opened = open_run(
        config.checkpoint_path,
        initial,
        forcing,
        config.n_forward_steps,
        config.forward_steps_in_memory,
        with_targets=False,
        use_ema_if_available=config.use_ema_if_available,
        labels=config.labels,
    )
    info, names = opened.emulator.info, opened.names
    written = config.data_writer.select(names)
    diagnostics = config.aggregator.build(scene_of(opened, config.n_forward_steps, ranks, paired=False))
    with ExitStack() as stack:
        output = None
        if written:
            path = directory / "autoregressive_predictions.nc"
            output = stack.enter_context(PredictionFile(path, written, info.grid, starts, info.calendar))
        windows = run(opened, ranks, config.seed, keep_uncorrected=diagnostics.sees_correction)
        for window, piece in pieces(opened.emulator, windows, paired=False):
            diagnostics.add(piece)
            if output is not None and piece.first_step > 0:
                output.append(window.prediction.select(written), piece.times)
    return write_findings(diagnostics.findings(ranks), directory, in_sample(info, opened.forcing.spans()))


def run(
    opened: Opened,
    ranks: Ranks,
    seed: int,
    before_step: Callable[[], None] | None = None,
    *,
    keep_uncorrected: bool = False,
) -> Iterator[RolloutWindow]:
    """The rollout on this rank's device. before_step: called before each, may raise to end the rollout. keep_uncorrected: as of
    :func:`ace_core.rollout.rollout`."""
    windows = (batch.to(ranks.device) for batch in opened.forcing.windows())
    return roll(
        opened,
        opened.initial_fields().to(ranks.device),
        windows,
        ranks,
        seed,
        before_step,
        keep_uncorrected=keep_uncorrected,
    )


def whole(windows: Iterable[RolloutWindow], shape: tuple[int, int], ranks: Ranks) -> Iterator[RolloutWindow]:
    """Windows of this rank's tile of a grid of ``shape`` -> windows of all of it, on every tile's rank."""
    for window in windows:
        batch = window.batch
        parts = (window.prediction, batch.fields, window.start)
        prediction, data, start = (Fields(f.names, ranks.tiles.gather(f.tensor, shape)) for f in parts)
        changes = window.correction
        if changes is not None:
            changes = Fields(changes.names, ranks.tiles.gather(changes.tensor, shape))
        yield replace(window, prediction=prediction, batch=replace(batch, fields=data), start=start, correction=changes)


def roll(
    opened: Opened,
    initial: Fields,
    windows: Iterator[Batch],
    ranks: Ranks,
    seed: int,
    before_step: Callable[[], None] | None = None,
    *,
    keep_uncorrected: bool = False,
) -> Iterator[RolloutWindow]:
    """The emulator from ``initial`` [B, C, Y, X] through ``windows``, both on this rank's device, which may hold several copies of
    the initial conditions one after the other; copies share their noise, so that only what differs between them tells."""
    emulator = opened.emulator.to(ranks.device)
    mask = opened.data_mask()
    if mask is not None:
        mask = mask.repeat(initial.tensor.shape[0] // mask.shape[0], 1).to(ranks.device)
    driven = (emulator.drive(batch) for batch in windows)
    n = len(opened.initial.starts)
    labels = None if opened.forcing.labels is None else [opened.forcing.labels] * n
    rows = [row_seed(seed, "rollout noise", opened.first + row) for row in range(n)]
    copies = emulator.context(labels, rows, ranks.device).repeat(initial.tensor.shape[0] // n)
    step = emulator.step
    return rollout(
        step,
        initial,
        driven,
        data_mask=mask,
        absent=step.absent,
        context=copies,
        before_step=before_step,
        tiles=ranks.tiles,
        keep_uncorrected=keep_uncorrected,
    )


def _require_same_clock(emulator: Emulator, data: InferenceData, named: str) -> None:
    problems = []
    for key, unit in (("timestep", " s"), ("calendar", "")):
        have, want = getattr(data.info, key), getattr(emulator.info, key)
        if have != want:
            expected = f"{want}{unit} ({named})"
            fix = "use data with the time step and calendar of the training"
            problems.append(Problem(data.store.path, f"{key} is {have}{unit}", expected, fix))
    if problems:
        raise ConfigError(problems)
