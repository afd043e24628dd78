"""Configuration of a preparation: one source, several runs, statistics, forcing pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ace_core import provenance
from ace_core.config import StrictModel, dump, nearest
from ace_core.data.config import NotEmpty, SplitsConfig
from ace_core.data.pair import Arm, Mask, Pair
from ace_core.data.perturbation_config import VARYING, ClosedFormSelector, Scope, pinned
from ace_core.grid import LatLonGrid
from ace_core.physics.sst import OCEAN_CUTOFF
from ace_core.planet.spec import PlanetSpec, Scenario
from ace_core.prepare.definition import Definition, QualityConfig, Slug, merged, silent_sums
from ace_core.prepare.families import FAMILIES

# The planet closes its budgets exactly; what is left is the rounding of stored float32 (in Pa, kg/m2/s, as measured times ten).
PLANET_QUALITY = QualityConfig(moisture=2e-9, dry_air=1e-2)


def code_sha256() -> str:
    """Of the source code that decides the numbers of a data set."""
    return provenance.code_hash(("planet", "physics", "data", "prepare"))


class PlanetSource(StrictModel):
    """The embedded planet. years: default length of a run. seed: geography and, with a run's noise_stream, weather.

    from_raw: go through its raw layer (32 levels, water by species), with every step that raw model output needs.
    """

    kind: Literal["planet"]
    preset: Literal["F8", "F12", "F22.5"]
    years: Annotated[int, Field(ge=1)] = 1
    dt_hours: Literal[1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 120] = 6
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    from_raw: bool = False


class FilesSource(Definition):
    """Raw model output in files. kind: a family, any key of whose definition can be changed here (null takes it out), or
    ``generic``, for which everything is written out; see :class:`Definition`.

    A file of a family becomes a generic one with the family's definition written out: that is what ``dataset.yaml`` records.
    """

    kind: Literal["generic", "fv3gfs", "shield", "cm4", "e3sm", "era5"]
    family: Literal["generic", "fv3gfs", "shield", "cm4", "e3sm", "era5"] = "generic"

    @model_validator(mode="wrap")
    @classmethod
    def _of_family(cls, value: Any, make: Callable[[Any], Any]) -> Any:
        """What is written out by us may name what a file has taken out; what the file says itself may not."""
        if not isinstance(value, dict):
            return make(value)
        if (kind := value.get("kind")) in FAMILIES:
            if sums := silent_sums(FAMILIES[kind], value):
                raise ValueError("; ".join(sums))
            made = make(merged(FAMILIES[kind], value) | {"kind": "generic", "family": kind})
        else:
            made = make(value)
        if "family" not in value and (unknown := made.unknown(value)):
            raise ValueError("; ".join(unknown))
        return made


AnySource = Annotated[PlanetSource | FilesSource, Field(discriminator="kind")]


class PlanetRunConfig(StrictModel):
    """One simulation. Runs that differ in noise_stream only are independent weather on the same continents.

    perturbations: of the planet itself, which answers them; of those kinds whose answer is known in closed form.
    """

    noise_stream: Annotated[int, Field(ge=0, lt=2**32)] = 0
    scenario: Scenario = "control"
    years: Annotated[int, Field(ge=1)] | None = None
    perturbations: tuple[ClosedFormSelector, ...] = ()

    def spec(self, source: PlanetSource) -> PlanetSpec:
        """The planet this run is of."""
        return PlanetSpec(
            preset=source.preset,
            years=self.years or source.years,
            dt_hours=source.dt_hours,
            seed=source.seed,
            noise_stream=self.noise_stream,
            scenario=self.scenario,
            perturbations=tuple(selector.config.build() for selector in self.perturbations),
        )


class FilesRunConfig(StrictModel):
    """Raw files of one simulation. data_path: folder or URL below which the streams lie. start_time, stop_time: first and last
    label of the output, both included (a partial stop_time means all of it); null: everything that all streams cover."""

    data_path: str
    start_time: str | None = None
    stop_time: str | None = None


RunConfig = Annotated[
    Annotated[PlanetRunConfig, Tag("PlanetRunConfig")] | Annotated[FilesRunConfig, Tag("FilesRunConfig")],
    Discriminator(
        lambda v: (
            "FilesRunConfig"
            if isinstance(v, FilesRunConfig) or (isinstance(v, dict) and "data_path" in v)
            else "PlanetRunConfig"
        )
    ),
]


class GridConfig(StrictModel):
    """A grid to write. gaussian: Gauss-Legendre latitudes; equiangular: nlat rows of equal height, none at a pole. Longitudes begin
    half a cell east of Greenwich."""

    kind: Literal["gaussian", "equiangular"] = "gaussian"
    nlat: Annotated[int, Field(ge=2)]
    nlon: Annotated[int, Field(ge=4)]

    def build(self) -> LatLonGrid:
        if self.kind == "gaussian":
            return LatLonGrid.gaussian(self.nlat, self.nlon)
        return LatLonGrid.equiangular(self.nlat, self.nlon)


class TilesConfig(StrictModel):
    """Steps are stored in h x w tiles (parts in latitude and in longitude), each with its own checksum, so that spatial ranks read
    theirs only."""

    h: Annotated[int, Field(ge=1)] = 1
    w: Annotated[int, Field(ge=1)] = 1


class TimeCoarsenConfig(StrictModel):
    """A second store of every run with ``factor`` steps in one (fme's keys).

    snapshot_names: taken from the last step of each window; window_names: means of the window, labelled like the snapshot. Every
    field is in one of the two; null: what its name says is a flux, rate, stress or tendency is a mean, everything else a snapshot. start_time: first step used, which
    decides the labels (with 6-hourly data and a first label of 06Z they fall on 00Z).
    """

    factor: Annotated[int, Field(ge=2)]
    snapshot_names: tuple[str, ...] | None = None
    window_names: tuple[str, ...] | None = None
    start_time: str | None = None


class StatisticsConfig(StrictModel):
    """runs: whose data the normalisation is computed from, together. start_date, end_date: labels used, both included (partial dates
    mean all of them: '1990' to '2019'). area_weighted: cells count by their area; fme's count once each."""

    runs: Annotated[tuple[str, ...], NotEmpty]
    start_date: str | None = None
    end_date: str | None = None
    area_weighted: bool = False


class PairConfig(StrictModel):
    """A forcing pair. base: name of a run. materialize: also write the forcing of every arm as a store of its own."""

    name: Slug
    base: str
    arms: Annotated[tuple[Arm, ...], NotEmpty]
    mask: Mask = Mask()
    ic_scope: Scope = "ocean"
    spinup_steps: Annotated[int, Field(ge=0)] = 0
    noise: Literal["common", "independent"] = "common"
    materialize: bool = False


class TruthConfig(StrictModel):
    """Window of the closed-form response of every pair: steps start_step..stop_step (null: to the end) of its base run.

    onset_step: the step at which the perturbation is switched on, -1 for before the first; an emulator that starts from
    step i has onset i, and its mean over forecast steps a..b covers steps i + a .. i + b + 1. stride: of the steps in
    which the control's water is sampled.
    """

    onset_step: Annotated[int, Field(ge=-1)] = -1
    start_step: Annotated[int, Field(ge=0)] = 0
    stop_step: Annotated[int, Field(ge=1)] | None = None
    stride: Annotated[int, Field(ge=1)] = 1


class PrepareConfig(StrictModel):
    """What to prepare. grids: label -> grid, all written from one read; none: the source's own. shard_steps: time steps per file and
    per unit of work. tiles: how every step is cut, on every grid. splits: named periods with an embargo, written into every store for loaders to name."""

    name: Slug
    source: AnySource
    runs: Annotated[dict[Slug, RunConfig], NotEmpty]
    grids: dict[Slug, GridConfig] = {}
    shard_steps: Annotated[int, Field(ge=1)] = 256
    tiles: TilesConfig = TilesConfig()
    time_coarsen: TimeCoarsenConfig | None = None
    splits: SplitsConfig | None = None
    statistics: StatisticsConfig | None = None
    pairs: tuple[PairConfig, ...] = ()
    truth: TruthConfig | None = None

    @model_validator(mode="after")
    def _references(self) -> PrepareConfig:
        wanted = [("statistics.runs", run) for run in (self.statistics.runs if self.statistics else ())]
        wanted += [(f"pairs[{i}].base", pair.base) for i, pair in enumerate(self.pairs)]
        problems = [
            f"{key}: no run {run!r}; the runs are {', '.join(self.runs)}. {nearest(run, list(self.runs))}".rstrip()
            for key, run in wanted
            if run not in self.runs
        ]
        problems += self._kind_problems() or self._truth_problems()
        names = [pair.name for pair in self.pairs]
        problems += [f"pairs: two are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _kind_problems(self) -> list[str]:
        """Are runs of the source's kind, and is what only the planet has asked of it alone?"""
        planet = isinstance(self.source, PlanetSource)
        wanted = PlanetRunConfig if planet else FilesRunConfig
        keys = "noise_stream, scenario, years" if planet else "data_path, start_time, stop_time"
        problems = [
            f"runs.{name}: not a run of a {self.source.kind} source, whose keys are {keys}"
            for name, run in self.runs.items()
            if not isinstance(run, wanted)
        ]
        if self.truth is not None and not planet:
            problems.append(f"truth: only the planet's is known, the source is {self.source.kind}")
        if self.truth is not None and self.grids:
            problems.append("truth: it is known on the planet's own grid only; leave out grids, or truth")
        return problems

    def _truth_problems(self) -> list[str]:
        """Is there a truth of every pair, and is its window within the pair's run?"""
        if self.truth is None:
            return []
        problems = []
        for i, pair in enumerate(self.pairs):
            if pair.mask.cutoff != OCEAN_CUTOFF:
                problems.append(
                    f"pairs[{i}].mask: cutoff {pair.mask.cutoff:g}: the planet's own mask, of which the truth is, is "
                    f"ocean_fraction > {OCEAN_CUTOFF:g}; leave it out, or leave out truth"
                )
            for j, arm in enumerate(pair.arms):
                problems += [
                    f"pairs[{i}].arms[{j}].perturbations[{k}].type: {selector.type} depends on time, there is no closed form of "
                    "its truth; leave out truth, or prepare this pair as another data set"
                    for k, selector in enumerate(arm.perturbations)
                    if isinstance(selector, VARYING)
                ]
        if self.truth.onset_step > self.truth.start_step:
            problems.append(f"truth.onset_step: {self.truth.onset_step}, after start_step {self.truth.start_step}")
        for base in dict.fromkeys(pair.base for pair in self.pairs if pair.base in self.runs):
            length = self.planet_spec(base).n_times - self.first_step
            stop = length if self.truth.stop_step is None else self.truth.stop_step
            if stop > length:
                problems.append(f"truth.stop_step: {stop}, but run {base!r} has {length} steps")
            if self.truth.start_step >= min(stop, length):
                problems.append(
                    f"truth.start_step: {self.truth.start_step}, but the window ends at {min(stop, length)}"
                )
        return problems

    @property
    def first_step(self) -> int:
        """Of a planet's steps, the first that is stored: the advective tendency of a raw layer begins with the second."""
        return int(isinstance(self.source, PlanetSource) and self.source.from_raw)

    def planet_spec(self, run: str) -> PlanetSpec:
        """Of a run of a planet source."""
        config = self.runs[run]
        assert isinstance(config, PlanetRunConfig)
        assert isinstance(self.source, PlanetSource)
        return config.spec(self.source)

    def pinned(self) -> PrepareConfig:
        """With the content of every file that a pair reads, so that another content is another data set.

        Raises :class:`DataError` for a file that is not there.
        """
        pairs = []
        for pair in self.pairs:
            arms = tuple(arm.model_copy(update={"perturbations": pinned(arm.perturbations)}) for arm in pair.arms)
            pairs.append(pair.model_copy(update={"arms": arms}))
        return self.model_copy(update={"pairs": tuple(pairs)})

    @property
    def sha256(self) -> str:
        return provenance.sha256_of(dump(self.pinned()))

    @property
    def dataset_id(self) -> str:
        """``name`` and ten digits of a hash: another configuration, or other code, makes another data set."""
        return f"{self.name}-{provenance.sha256_of([self.sha256, code_sha256()])[:10]}"

    def pair(self, name: str) -> Pair:
        """The artefact of the pair called ``name``."""
        (found,) = (pair for pair in self.pinned().pairs if pair.name == name)
        return Pair(
            base=f"{self.dataset_id}/{found.base}",
            arms=found.arms,
            mask=found.mask,
            ic_scope=found.ic_scope,
            spinup_steps=found.spinup_steps,
            noise=found.noise,
        )


def quality_of(config: PrepareConfig) -> QualityConfig:
    """What the fields of a data set must fulfil. The planet's own to the last digit; less once they are regridded, as water and pressure
    are averaged each by itself, unless that is done before the layers are made (from_raw), which keeps the water."""
    if not isinstance(config.source, PlanetSource):
        return config.source.quality
    if config.source.from_raw:
        return PLANET_QUALITY.model_copy(update={"dry_air": 1.0})
    return PLANET_QUALITY.model_copy(update={"dry_air": 1.0, "moisture": 1e-5}) if config.grids else PLANET_QUALITY
