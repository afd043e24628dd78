"""Configuration of a preparation: one source, several runs, statistics, forcing pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ace_core import provenance
from ace_core.config import StrictModel, dump, nearest
from ace_core.data.config import NotEmpty
from ace_core.data.pair import Arm, Mask, Pair
from ace_core.data.perturbation_config import VARYING, ClosedFormSelector, Scope, pinned
from ace_core.physics.sst import OCEAN_CUTOFF
from ace_core.planet.spec import PlanetSpec, Scenario

Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def code_sha256() -> str:
    """Of the source code that decides the numbers of a data set."""
    return provenance.code_hash(("planet", "physics", "data", "prepare"))


class PlanetSource(StrictModel):
    """The embedded planet. years: default length of a run. seed: geography and, with a run's noise_stream, weather."""

    kind: Literal["planet"]
    preset: Literal["F8", "F12", "F22.5"]
    years: Annotated[int, Field(ge=1)] = 1
    dt_hours: Literal[1, 2, 3, 4, 6, 8, 12, 24] = 6
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class RunConfig(StrictModel):
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


class StatisticsConfig(StrictModel):
    """runs: whose data the normalisation is computed from, together."""

    runs: Annotated[tuple[str, ...], NotEmpty]


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
    """What to prepare. shard_steps: time steps per file and per unit of work."""

    name: Slug
    source: PlanetSource
    runs: Annotated[dict[Slug, RunConfig], NotEmpty]
    shard_steps: Annotated[int, Field(ge=1)] = 256
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
        problems += self._truth_problems()
        names = [pair.name for pair in self.pairs]
        problems += [f"pairs: two are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
        if problems:
            raise ValueError("; ".join(problems))
        return self

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
            length = self.runs[base].spec(self.source).n_times
            stop = length if self.truth.stop_step is None else self.truth.stop_step
            if stop > length:
                problems.append(f"truth.stop_step: {stop}, but run {base!r} has {length} steps")
            if self.truth.start_step >= min(stop, length):
                problems.append(
                    f"truth.start_step: {self.truth.start_step}, but the window ends at {min(stop, length)}"
                )
        return problems

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
