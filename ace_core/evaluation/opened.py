"""An emulator with the data of its rollouts, checked against each other, and the rollouts.

Legend: B row of a batch (initial condition and member), C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ace_core.calendar import I64, format_time
from ace_core.data.batch import Batch
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.inference import InferenceData, open_inference
from ace_core.data.initial import InitialFile
from ace_core.data.layout import require_names
from ace_core.data.perturbation import Sea
from ace_core.data.store import available
from ace_core.diagnostics.base import Scene
from ace_core.diagnostics.pieces import scored_names
from ace_core.distributed import Ranks
from ace_core.errors import AceError, ConfigError, DataError, Problem, fail
from ace_core.evaluation.config import InitialConditionConfig, StepperOverrideConfig
from ace_core.evaluation.gather import Problems
from ace_core.evaluation.override import override as overridden
from ace_core.evaluation.restart import RestartPoint
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid, Tile, require_same_grid
from ace_core.models.context import NoiseKey, takes_noise
from ace_core.physics.corrector.state import CorrectorState
from ace_core.rollout import Diverged, RolloutWindow, rollout
from ace_core.seeding import row_seed
from ace_core.step.args import StepperState
from ace_core.step.emulator import Emulator
from ace_core.telemetry import log
from ace_core.training.checkpoint import load_emulator
from ace_core.variables import possible_range


@dataclass(frozen=True, eq=False)
class Opened:
    """An emulator, with the data it starts from and is driven by. first: which of all initial conditions is the first of these; members: of each,
    beside each other in a batch."""

    emulator: Emulator
    initial: InferenceData | InitialFile
    forcing: InferenceData
    first: int = 0
    members: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """What is predicted."""
        return self.emulator.step.out_names

    @property
    def start_times(self) -> I64:
        """[B] seconds, of every member's initial condition."""
        return self.initial.initial_condition(perturbed=False).times[:, 0].repeat(self.members)

    def initial_fields(self) -> Fields:
        """[B, C, Y, X] of the prognostic names, perturbed as the forcing's configuration says, unless a run that was left them so."""
        batch, forcing = self.initial.initial_condition(perturbed=False), self.forcing
        fields = batch.fields
        if not (self._left_perturbed and self._left_perturbed == forcing.applied):
            fields = forcing.perturb_initial(fields, batch.times, forcing.perturbations, forcing.scope)
        return replace(batch, fields=fields).members(self.members).fields.at_time(0)

    @property
    def starts_perturbed(self) -> str:
        """With what the sea surface of the initial fields is perturbed, by this run or one before
        (:func:`ace_core.data.perturbation_config.applied`); empty: with nothing."""
        perturbs = self.forcing.applied and self.forcing.scope != "none"
        return self.forcing.applied if perturbs else self._left_perturbed

    @property
    def _left_perturbed(self) -> str:
        return self.initial.applied if isinstance(self.initial, InitialFile) else ""

    def share(self, ranks: Ranks) -> tuple[Opened, bool]:
        """This rank's part of the initial conditions, and whether it is to be counted: with more ranks than initial conditions, some do
        others' again, so that all take as many steps."""
        initial, total = self.initial, len(self.initial.starts)
        assert isinstance(initial, InferenceData)
        first, last = total * ranks.place // ranks.places, total * (ranks.place + 1) // ranks.places
        counts = last > first
        mine = slice(first, last) if counts else slice(0, 1)
        forcing = replace(self.forcing, starts=self.forcing.starts[mine])
        initial = replace(initial, starts=initial.starts[mine])
        return replace(self, initial=initial, forcing=forcing, first=mine.start), counts

    @property
    def stepper_state(self) -> StepperState:
        """What an initial condition that was left by a rollout carries besides its fields."""
        kept = self.initial.corrector if isinstance(self.initial, InitialFile) else CorrectorState()
        return StepperState(kept).members(self.members)

    def noise(self, seed: int) -> NoiseKey:
        """Whose noise every row of a batch has, and from which step on: a member's does not depend on how many there are, and the first
        one's is that of a rollout without any others. Where a rollout left its own, that goes on, whatever the seed, which only
        further members then have."""
        file, n = self.initial, len(self.initial.starts)
        if isinstance(file, InitialFile) and file.noise_rows is not None:
            left, step = file.noise_rows.tolist(), file.noise_step
            rows = [row_seed(seed, "rollout noise", r, m) if m else r for r in left for m in range(self.members)]
            return NoiseKey(tuple(rows), step)
        keys = [(self.first + i, *((m,) if m else ())) for i in range(n) for m in range(self.members)]
        return NoiseKey(tuple(row_seed(seed, "rollout noise", *key) for key in keys), 0)

    def noise_left(self, seed: int, done: int) -> NoiseKey | None:
        """With which a rollout from the state after ``done`` steps goes on; None for a state that nothing came before, of which the seed
        decides, and where no network takes noise."""
        key = self.noise(seed).after(done)
        takes = any(takes_noise(network) for network in self.emulator.step.networks)
        return key if takes and key.step else None

    def data_mask(self) -> Tensor | None:
        """bool [B, C_in], False for inputs that the initial condition (prognostic ones) or the forcing (the others) lacks; None if
        neither lacks any. Raises :class:`DataError` if no rollout can do without one of them."""
        step, n = self.emulator.step, len(self.initial.starts) * self.members
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
    members: int = 1,
    override: StepperOverrideConfig | None = None,
    allow_incompatible: bool = False,
) -> Opened:
    """Open a checkpoint and the data of a rollout (:func:`open_data`). use_ema_if_available: see
    :func:`ace_core.training.checkpoint.load_emulator`. override: what of the emulator is replaced."""
    emulator = load_emulator(Path(checkpoint_path), use_ema_if_available)
    if override is not None:
        emulator = overridden(emulator, override)
    return open_data(
        emulator,
        checkpoint_path,
        initial,
        forcing,
        n_forward_steps,
        forward_steps_in_memory,
        with_targets=with_targets,
        labels=labels,
        members=members,
        allow_incompatible=allow_incompatible,
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
    members: int = 1,
    allow_incompatible: bool = False,
) -> Opened:
    """Open everything a rollout needs and check that it fits together, before the first step.

    named: the emulator in messages. with_targets: the forcing windows also hold what is predicted. labels: instead of the data's.
    tile: what of the grid the emulator works on; None: all. members: of every initial condition. allow_incompatible: warn of coordinates,
    time step and calendar that are not the training's.
    Raises :class:`ace_core.errors.AceError` with all that is wrong with initial condition and forcing.
    """
    problems = Problems()
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

    start: InferenceData | InitialFile | None = None
    with problems.part():
        if isinstance(initial, InitialConditionConfig):
            allow_nan = configured.normalization.network.fill_nans_on_normalize
            allow_missing = configured.allow_missing_variables
            start = initial.open(step.prognostic_names, allow_missing=allow_missing, allow_nan=allow_nan, tile=tile)
        else:
            start = open_(initial, step.prognostic_names, 0, 1)
    drive = None
    wanted = tuple(dict.fromkeys([*emulator.forcing_names, *(emulator.loss_names if with_targets else ())]))
    with problems.part():
        drive = open_(forcing, wanted, n_forward_steps, forward_steps_in_memory)
    prescribed = () if step.ocean is None else step.ocean.forcing_names
    if drive is not None:
        with problems.part():
            require_names(drive.store.path, [*prescribed, *step.prescribed_names], available(drive.store))
    for data in (start, drive):
        if data is None:
            continue
        with problems.part(), _lenient(allow_incompatible):
            grid, path = (data.grid, data.path) if isinstance(data, InitialFile) else (data.info.grid, data.store.path)
            if allow_incompatible:
                _require_same_shape(emulator, grid, path, named)
            require_same_grid(emulator.info.grid, grid, path, f"the grid of {named}")
        if not isinstance(
            data, InitialFile
        ):  # which is of no time step, and of the forcing's times or there is no rollout
            with problems.part(), _lenient(allow_incompatible):
                _require_same_clock(emulator, data, named)
    if isinstance(start, InitialFile) and drive is not None:
        with problems.part():
            _require_perturbed_once(start, drive)
    problems.check()
    assert start is not None
    assert drive is not None
    if labels is not None:
        drive = replace(drive, labels=tuple(sorted(labels)))
    return Opened(emulator, start, drive, members=members)


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
        members=opened.members,
        paired=paired,
        device=ranks.device,
        corrected=emulator.step.corrected_names,
    )


def run(
    opened: Opened,
    ranks: Ranks,
    seed: int,
    before_step: Callable[[], None] | None = None,
    *,
    keep_uncorrected: bool = False,
    point: RestartPoint | None = None,
    ranges: Tensor | None = None,
) -> Iterator[RolloutWindow]:
    """The rollout on this rank's device. before_step: called before each, may raise to end the rollout. keep_uncorrected
    and ranges: as of :func:`ace_core.rollout.rollout`. point: where to go on, which is where a window ends."""
    done = 0 if point is None else point.done
    first = done // opened.forcing.forward_steps_in_memory
    windows = (batch.to(ranks.device).members(opened.members) for batch in opened.forcing.windows(first))
    initial = opened.initial_fields() if point is None else point.state
    carried = opened.stepper_state if point is None else point.stepper_state
    return roll(
        opened,
        initial.to(ranks.device),
        windows,
        ranks,
        seed,
        before_step,
        keep_uncorrected=keep_uncorrected,
        stepper_state=carried.to(ranks.device),
        done=done,
        ranges=ranges,
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
    stepper_state: StepperState | None = None,
    done: int = 0,
    ranges: Tensor | None = None,
) -> Iterator[RolloutWindow]:
    """The emulator from ``initial`` [B, C, Y, X] through ``windows``, both on this rank's device, which may hold several copies of
    the initial conditions one after the other; copies share their noise, so that only what differs between them tells."""
    emulator = opened.emulator.to(ranks.device)
    mask = opened.data_mask()
    if mask is not None:
        mask = mask.repeat(initial.tensor.shape[0] // mask.shape[0], 1).to(ranks.device)
    driven = (emulator.drive(batch) for batch in windows)
    key = opened.noise(seed)
    n = len(key.rows)
    labels = None if opened.forcing.labels is None else [opened.forcing.labels] * n
    own = emulator.context(labels, key.rows, ranks.device).after(key.step)
    copies = own.repeat(initial.tensor.shape[0] // n)
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
        stepper_state=stepper_state,
        done=done,
        ranges=ranges,
    )


def possible_ranges(names: Sequence[str]) -> Tensor:
    """[C, 2] of :func:`ace_core.variables.possible_range`, infinite where it knows none."""
    nothing = (-math.inf, math.inf)
    return torch.tensor([possible_range(n) or nothing for n in names])


def explained(error: Diverged, opened: Opened) -> Diverged:
    """The error with the place on the globe, the dates and the age of the forcing."""
    at = error.at
    if at is None:
        return error
    info, forcing = opened.emulator.info, opened.forcing
    first = int(opened.start_times[at.row])
    now, before = (format_time(first + info.timestep * s, forcing.info.calendar) for s in (at.step, at.step - 1))
    lat, lon = info.grid.lat[at.cell[0]], info.grid.lon[at.cell[1]]
    found = [
        f"{at.name} is {at.value:g} at latitude {lat:g}, longitude {lon:g}, on {now}",
        f"driven by forcing of {before}",
    ]
    if forcing.persistence_names:
        days = at.step * info.timestep / 86400
        found.append(f"in which {', '.join(forcing.persistence_names)} are {days:g} days old")
    problem = error.problems[0]
    sample, member = divmod(at.row, opened.members)
    where = f"rollout, step {at.step}, initial condition {opened.first + sample}, member {member}"
    return Diverged([Problem(where, ", ".join(found), problem.expected, problem.fix)])


@contextmanager
def _lenient(allow: bool) -> Iterator[None]:
    """With ``allow`` an :class:`AceError` becomes a warning."""
    try:
        yield
    except Unusable:
        raise
    except AceError as error:
        if not allow:
            raise
        log.warning("%s", error)


class Unusable(DataError):
    """Data that nothing can be done with, whatever is allowed."""


def _require_same_shape(emulator: Emulator, grid: LatLonGrid, path: str, named: str) -> None:
    if grid.shape != emulator.info.grid.shape:
        found, expected = (f"{y} latitudes and {x} longitudes" for y, x in (grid.shape, emulator.info.grid.shape))
        raise fail(Unusable, path, found, f"{expected}, as {named} was trained on", "regrid the data")


def _require_perturbed_once(start: InitialFile, forcing: InferenceData) -> None:
    """Anomalies of two runs would add in the initial condition, where the first one's cannot be taken off."""
    if forcing.scope == "none" or not start.applied or not forcing.applied or start.applied == forcing.applied:
        return
    raise fail(
        ConfigError,
        "perturbations",
        f"{forcing.applied}, while the states of {start.path} were perturbed with {start.applied}",
        "states without a perturbation, or with the run's own, which is not added again",
        "set initial_condition_scope: none (of a pair: ic_scope), which takes the states as they are",
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
