"""``ace``: the pipeline's stages from a shell, without Prefect.

Exit codes: 0 done, also with a segment of a training (``segment_epochs``), which says that the same command trains the next; 2 something the user can mend, with one message; 143 training, evaluation, inference, downscaling or preparation
stopped by a signal, with what it has done kept: the same command goes on from there.
"""

from __future__ import annotations

import enum
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ace_core.errors import AceError, ConfigError, fail
from ace_core.signals import STOPPED_EXIT_CODE

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Data sets.")
app.add_typer(data_app, name="data")
import_app = typer.Typer(no_args_is_help=True, help="Checkpoints of other packages, made ours.")
app.add_typer(import_app, name="import")
export_app = typer.Typer(no_args_is_help=True, help="Our checkpoints, for other packages.")
app.add_typer(export_app, name="export")

Config = Annotated[Path, typer.Argument(help="YAML file", metavar="CONFIG")]
Override = Annotated[list[str] | None, typer.Option("--override", help="dotted.key=value, may be repeated")]
Var = Annotated[list[str] | None, typer.Option("--var", help="name=value for ${name} in the file, may be repeated")]
Root = Annotated[Path, typer.Option("--root", help="where result folders go")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
RUNS = Path("runs/cli")


class Weights(enum.Enum):
    """Of an fme checkpoint."""

    module = "module"
    ema = "ema"


@app.command()
def check(config: Config, override: Override = None, var: Var = None, debug: Debug = False) -> None:
    """Validate a configuration of any kind, without opening data; a pipeline with the files of its stages."""

    def body() -> None:
        from ace_core.pipeline import check as check_file

        for line in check_file(config, override or (), _variables(var)):
            typer.echo(line)

    _guard(body, debug)


@data_app.command("prepare")
def data_prepare(
    config: Config, override: Override = None, var: Var = None, root: Root = RUNS, debug: Debug = False
) -> None:
    """Prepare a data set: shards, statistics, forcing pairs, truth."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        _stage("prepare", config, override, var, root, debug)
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command again to go on: finished shards are kept", err=True)
        sys.exit(STOPPED_EXIT_CODE)


@data_app.command("verify")
def data_verify(
    path: Annotated[Path, typer.Argument(help="a prepared data set, or a store of any layout", metavar="STORE")],
    debug: Debug = False,
) -> None:
    """Read every value once and compare it with what is known: hashes of the ledger, budgets, ranges, the time axis."""

    def body() -> None:
        from ace_core.prepare.verify import verify

        verify(path, typer.echo)
        typer.echo("verified")

    _guard(body, debug)


@data_app.command("describe")
def data_describe(
    path: Annotated[Path, typer.Argument(help="a prepared data set, or a store of any layout", metavar="STORE")],
    debug: Debug = False,
) -> None:
    """Variables with their units, grid, times, splits, where the data come from."""

    def body() -> None:
        from ace_core.prepare.verify import describe

        for line in describe(path):
            typer.echo(line)

    _guard(body, debug)


@data_app.command("stats")
def data_stats(
    dataset: Annotated[Path, typer.Argument(help="a prepared data set", metavar="DATASET")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the folder to write the four files to")],
    run: Annotated[list[str], typer.Option("--run", help="whose data count, may be repeated")],
    start: Annotated[str | None, typer.Option("--start-date", help="first label, for example 1990")] = None,
    end: Annotated[str | None, typer.Option("--end-date", help="last label; 2019 means all of it")] = None,
    area_weighted: Annotated[bool, typer.Option("--area-weighted", help="cells count by area")] = False,
    grid: Annotated[str, typer.Option("--grid", help="label of the grid, if there are several")] = "",
    debug: Debug = False,
) -> None:
    """fme's four normalisation files of any runs and period, from the ledger: no field is read again."""

    def body() -> None:
        from ace_core.prepare.normalization import normalize

        normalize(dataset, out, run, start, end, grid, area_weighted=area_weighted)
        typer.echo(f"statistics of {', '.join(run)} in {out}")

    _guard(body, debug)


class Layout(enum.Enum):
    """Of other packages."""

    fme = "fme"


@data_app.command("export")
def data_export(
    path: Annotated[Path, typer.Argument(help="a store of any layout that is read here", metavar="STORE")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the zarr store to write")],
    layout: Annotated[Layout, typer.Option(help="one array per variable, as fme reads it")] = Layout.fme,
    debug: Debug = False,
) -> None:
    """The same values in another package's layout."""

    def body() -> None:
        from ace_core.data.export import export_fme

        export_fme(path, out)
        typer.echo(f"exported {path} into {out} ({layout.value})")

    _guard(body, debug)


@app.command()
def train(config: Config, override: Override = None, var: Var = None, root: Root = RUNS, debug: Debug = False) -> None:
    """Train an emulator or a downscaling model, as the file's keys say, or go on with an interrupted training. Under torchrun: on all ranks."""
    _stage("train", config, override, var, root, debug)


@app.command()
def estimate(
    config: Config,
    override: Override = None,
    var: Var = None,
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="how many processes are to share the batches")] = 1,
    flops: Annotated[
        float | None,
        typer.Option("--flops", help="floating-point operations per second of a rank; left out: measured here"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what a training will need, before it runs: parameters, memory of a rank, disk, time."""

    def body() -> None:
        from ace_core import config as configuration
        from ace_core import stages
        from ace_core.memory import keep_freed_memory
        from ace_core.training.estimate import open_and_estimate
        from ace_core.training.train import TrainConfig

        if flops is not None and not 0 < flops < float("inf"):
            raise fail(
                ConfigError,
                f"--flops {flops:g}",
                "no speed",
                "a number above 0, for example 1e12",
                "correct it, or leave it out",
            )
        keep_freed_memory()
        stages.require_kind(configuration.read(config, override or ()), "train")
        configuration.require_used(config, override or (), _variables(var))
        loaded = configuration.load(TrainConfig, config, override or (), _variables(var))
        typer.echo(open_and_estimate(loaded, ranks, flops).table())

    _guard(body, debug)


@app.command()
def evaluate(
    config: Config, override: Override = None, var: Var = None, root: Root = RUNS, debug: Debug = False
) -> None:
    """Roll a checkpoint out against data and score it."""
    _stage("evaluate", config, override, var, root, debug)


@app.command()
def infer(config: Config, override: Override = None, var: Var = None, root: Root = RUNS, debug: Debug = False) -> None:
    """Roll a checkpoint out from an initial condition."""
    _stage("infer", config, override, var, root, debug)


@app.command()
def downscale(
    config: Config, override: Override = None, var: Var = None, root: Root = RUNS, debug: Debug = False
) -> None:
    """Make fine fields of coarse ones with a downscaling model, or go on with what is left. Under torchrun: on all ranks."""
    _stage("downscale", config, override, var, root, debug)


@app.command()
def respond(
    config: Config, override: Override = None, var: Var = None, root: Root = RUNS, debug: Debug = False
) -> None:
    """Run control and perturbed climates side by side and report the response beside a reference."""
    _stage("respond", config, override, var, root, debug)


@app.command()
def study(config: Config, override: Override = None, var: Var = None, root: Root = RUNS, debug: Debug = False) -> None:
    """Run checkpoints x periods x perturbations, one rollout each, and compare the checkpoints."""
    _stage("study", config, override, var, root, debug)


@app.command()
def why(
    path: Annotated[Path, typer.Argument(help="a file that a stage has written, or a stage's folder", metavar="FILE")],
    configuration: Annotated[
        bool, typer.Option("--configuration", help="print only the configuration, as YAML, which makes it anew")
    ] = False,
    debug: Debug = False,
) -> None:
    """Say where a result comes from: what made it, of what, all the way to the data, and the command that makes it anew."""

    def body() -> None:
        from ace_core.why import configuration_of, lines

        typer.echo(configuration_of(path) if configuration else "\n".join(lines(path)), nl=not configuration)

    _guard(body, debug)


@import_app.command("fme")
def import_fme(
    checkpoint: Annotated[Path, typer.Argument(help="a .tar of fme", metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the file to write")],
    weights: Annotated[
        Weights, typer.Option(help="those of the module, or the moving averages of a ckpt.tar")
    ] = Weights.module,
    calendar: Annotated[
        str, typer.Option(help="CF calendar of the training data, which fme does not store")
    ] = "noleap",
    debug: Debug = False,
) -> None:
    """An fme checkpoint of any stepper layout, or of a downscaling model -> one of ours. It can also be given directly wherever a checkpoint is asked for."""

    def body() -> None:
        from ace_core.interop.files import import_file

        import_file(checkpoint, out, weights.value, calendar)
        typer.echo(f"imported {checkpoint} into {out}")

    _guard(body, debug)


@export_app.command("fme")
def export_fme(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint of ours", metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the file to write")],
    debug: Debug = False,
) -> None:
    """One of our checkpoints -> a file that fme loads and steps with the same numbers."""

    def body() -> None:
        from ace_core.interop.files import export_file

        export_file(checkpoint, out)
        typer.echo(f"exported {checkpoint} into {out}")

    _guard(body, debug)


def main() -> None:
    """Entry point of the console script."""
    app()


def _stage(name: str, config: Path, override: list[str] | None, var: list[str] | None, root: Path, debug: bool) -> None:
    def body() -> None:
        from ace_core import stages
        from ace_core.config import read, require_used
        from ace_core.telemetry import to_screen
        from ace_core.training.trainer import SegmentOver, Stopped

        stages.require_kind(read(config, override or ()), *(k for k in stages.KINDS if stages.stage_of(k) == name))
        require_used(config, override or (), _variables(var))
        to_screen()
        run: Callable[..., Any] = getattr(stages, f"run_{name}")
        try:
            result = run(config, root, override or (), _variables(var))
        except SegmentOver as over:
            if int(os.environ.get("RANK", "0")) == 0:
                typer.echo(str(over))
            return
        except Stopped as stopped:
            typer.echo(str(stopped), err=True)
            sys.exit(STOPPED_EXIT_CODE)
        if int(os.environ.get("RANK", "0")) > 0:
            return  # one rank speaks for all
        typer.echo(f"{result.stage}: {'already complete' if result.skipped else 'done'}, in {result.directory}")
        table = result.directory / "response.txt"
        if table.is_file():
            typer.echo(table.read_text(), nl=False)

    _guard(body, debug)


def _variables(var: list[str] | None) -> dict[str, str]:
    pairs = [v.partition("=") for v in var or ()]
    for name, equals, _ in pairs:
        if not equals:
            raise typer.BadParameter(f"{name!r} is not of the form name=value", param_hint="--var")
    names = [name for name, _, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise typer.BadParameter(f"{', '.join(twice)} is given more than once", param_hint="--var")
    return {name: value for name, _, value in pairs}


def _guard(body: Callable[[], None], debug: bool) -> None:
    try:
        body()
    except AceError as error:
        if debug:
            raise
        count = len(error.problems)
        typer.echo(f"error: {error}" if count == 1 else f"error: {count} problems\n{error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
