"""``ace train`` on a downscaling YAML: the configuration, in fme's vocabulary, and the run it describes, on the one trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt, model_validator

from ace_core.config import dump, only
from ace_core.distributed import Ranks
from ace_core.downscaling.config import DiffusionModelConfig
from ace_core.downscaling.data_config import PairedDataLoaderConfig, RegionSamplingConfig
from ace_core.downscaling.generator import Generator
from ace_core.downscaling.loader import make_paired_loader
from ace_core.downscaling.model import build_downscaler, on_fine_grid
from ace_core.downscaling.pair import PairedBatch
from ace_core.downscaling.patches import Patches
from ace_core.downscaling.scores import CRPS, SPECTRUM, TAILS, GenerationScores
from ace_core.downscaling.statics import load_statics
from ace_core.downscaling.stepper import DiffusionTrainStepper
from ace_core.errors import DataError, fail
from ace_core.grid import require_same_grid
from ace_core.netcdf import write_netcdf
from ace_core.provenance import write_atomic
from ace_core.seeding import row_seed
from ace_core.signals import StopFlag
from ace_core.telemetry import log
from ace_core.training.ema import EMA
from ace_core.training.metrics import BatchMetrics, RunningMeans
from ace_core.training.run import CHECKPOINTS, OUTPUT, RunConfig, begin_from, epoch_folder, run_trainer
from ace_core.training.stopping import until_asked
from ace_core.training.tracking import tracking
from ace_core.training.trainer import Progress, Trainer

# Beside the best by denoising loss and the best by CRPS.
BEST_TAILS, BEST_SPECTRUM = "best_histogram_tail_ckpt.tar", "best_spectrum_ckpt.tar"


class DownscalingTrainConfig(RunConfig):
    """Keys of fme's downscaling YAML; those of every training are :class:`ace_core.training.run.RunConfig`'s.

    validation_data: their denoising loss, with the same noise every time, picks ``best_ckpt.tar``. Every validate_interval epochs, and after
    the last, generate_n_samples members are generated for each of them: the CRPS relative to the bicubic coarse field picks
    ``best_inference_ckpt.tar``, the tails of the histogram ``best_histogram_tail_ckpt.tar``, the zonal spectra
    ``best_spectrum_ckpt.tar``. static_inputs: by name the netCDF file of each 2-D field on the whole fine grid.
    coarse_patch_extent_lat, coarse_patch_extent_lon: train and validate on patches of so many coarse rows and columns; region_sampling: which of
    these to prefer in training. log_loss_vs_noise: losses by level of noise. resume_results_dir: the folder of a run to go on from.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {"save_checkpoints": "set it to true: checkpoints are always written"}
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"save_checkpoints": only(True)}
    model: DiffusionModelConfig
    train_data: PairedDataLoaderConfig
    validation_data: PairedDataLoaderConfig
    static_inputs: dict[str, str] = {}
    generate_n_samples: Annotated[int, Field(ge=2)] = 2
    validate_interval: PositiveInt = 1
    coarse_patch_extent_lat: PositiveInt | None = None
    coarse_patch_extent_lon: PositiveInt | None = None
    region_sampling: RegionSamplingConfig | None = None
    log_loss_vs_noise: bool = False
    resume_results_dir: str | None = None

    @property
    def patch_extent(self) -> tuple[int, int] | None:
        """Coarse rows and columns; None: no patches."""
        if self.coarse_patch_extent_lat is None or self.coarse_patch_extent_lon is None:
            return None
        return self.coarse_patch_extent_lat, self.coarse_patch_extent_lon

    @model_validator(mode="after")
    def _fits(self) -> DownscalingTrainConfig:
        wrong = self.run_problems(self.train_data.batch_size)
        if (self.coarse_patch_extent_lat is None) != (self.coarse_patch_extent_lon is None):
            wrong.append("coarse_patch_extent_lat and coarse_patch_extent_lon: give both, or neither")
        if self.region_sampling is not None and self.patch_extent is None:
            wrong.append(
                "region_sampling chooses among patches: it needs coarse_patch_extent_lat and coarse_patch_extent_lon"
            )
        if self.model.use_fine_topography and not self.static_inputs:
            wrong.append("model.use_fine_topography needs static_inputs, fields for the model to see")
        if self.static_inputs and not self.model.use_fine_topography:
            wrong.append("static_inputs are seen by no model: set model.use_fine_topography, or remove them")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def train_downscaling(
    config: DownscalingTrainConfig,
    directory: Path,
    ranks: Ranks,
    stop: StopFlag,
    foresee: Callable[[int], None] | None = None,
) -> tuple[Progress, Mapping[str, float]]:
    """Train, or go on training, in ``directory``; returns the end state and, on the root rank, the last validation's metrics.
    foresee: is told how many batches an epoch has, on every rank.

    Raises :class:`ace_core.errors.AceError` for what the user can mend, :class:`ace_core.training.trainer.Stopped` after a signal.
    """
    config.logging.require_packages()
    plain = dump(config)
    # The coarse outputs, too, even if the model does not see them: scores compare with them.
    names = tuple(dict.fromkeys([*config.model.in_names, *config.model.out_names]))
    patches = None if config.patch_extent is None else Patches(config.patch_extent, config.region_sampling)
    open_ = partial(
        make_paired_loader,
        fine_names=config.model.out_names,
        coarse_names=names,
        seed=config.seed,
        rank=ranks.place,
        world=ranks.places,
    )
    train_data = open_(config.train_data, where="train_data", train=True, patches=patches)
    in_order = None if config.patch_extent is None else Patches(config.patch_extent)
    valid_data = open_(config.validation_data, where="validation_data", train=False, patches=in_order)
    statics = load_statics(config.static_inputs) if config.static_inputs else None
    pair = train_data.pair
    if valid_data.pair.factor != pair.factor:
        found = f"{valid_data.pair.factor} fine cells along each side of a coarse one"
        raise fail(
            DataError, "validation_data", found, f"{pair.factor}, as of train_data", "use data of the same grids"
        )
    require_same_grid(pair.fine, valid_data.pair.fine, "validation_data.fine", "of train_data.fine")
    shape = config.patch_extent or train_data.window.shape
    model = build_downscaler(config.model, pair.fine, shape, pair.factor, statics, config.seed)
    stepper = DiffusionTrainStepper(model, pair, ranks, config.seed, by_noise=config.log_loss_vs_noise)
    model = stepper.model
    if foresee is not None:
        foresee(train_data.n_batches)
    if ranks.is_root:
        log.info(
            "%d parameters, %d batches of %d per epoch, %d x %d coarse cells to %d x %d, %d rank(s)",
            model.n_parameters,
            train_data.n_batches,
            config.train_data.batch_size,
            *shape,
            *(n * pair.factor for n in shape),
            ranks.world,
        )

    def in_turns(batches: Iterator[PairedBatch]) -> Iterator[PairedBatch]:
        return until_asked(batches, stop, ranks)

    def score(batches: Iterator[PairedBatch], name: str) -> tuple[dict[str, float], float]:
        means = RunningMeans()
        means.add(_nothing(stepper))  # a rank without a sample reports the same names
        for batch in in_turns(batches):
            means.add(stepper.score(batch))
        found = means.means(ranks)
        return {f"{name}/mean/{key}": value for key, value in found.items()}, found["loss"]

    def validate(_epoch: int) -> tuple[Mapping[str, float], float]:
        return score(valid_data.batches(0), "val")

    def evaluate_training(epoch: int) -> Mapping[str, float]:
        if not config.train_evaluation_samples:
            return {}
        return score(train_data.sample(epoch, config.train_evaluation_samples), "train_evaluation")[0]

    def generate(epoch: int) -> tuple[Mapping[str, float], float | None]:
        if epoch % config.validate_interval and epoch != config.max_epochs:
            return {}, None
        fine_shape = (shape[0] * pair.factor, shape[1] * pair.factor)
        scores = GenerationScores(model.out_names, model.fine_scaling, fine_shape, ranks.device)
        generator = Generator.of(model)
        for batch in in_turns(valid_data.batches(0)):
            first = batch.place.sample + batch.place.first_row
            seeds = [
                [
                    row_seed(config.seed, "generation, validation", batch.patch, sample, member)
                    for member in range(config.generate_n_samples)
                ]
                for sample in range(first, first + batch.n_samples)
            ]
            made = generator.generate(batch, valid_data.pair, seeds)
            coarse = on_fine_grid(batch.coarse.select(model.out_names).to(ranks.device), pair.factor)
            grid = valid_data.pair.coordinates(valid_data.pair.fine_window(batch.window))
            scores.add(made.tensor, batch.fine.select(model.out_names), coarse, grid)
        found, data = scores.findings(ranks)
        if ranks.is_root:
            file = epoch_folder(directory / OUTPUT, "generation", epoch) / "generation_diagnostics.nc"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, partial(write_netcdf, data))
        return {f"generation/{key}": value for key, value in found.items()}, found[f"mean/{CRPS}"]

    optimization = config.optimization.build(stepper.module, train_data.n_batches, config.max_epochs)
    ema = EMA(stepper.module, config.ema)
    begin_from(config, config.resume_results_dir, directory, ranks, optimization, ema)
    trainer: Trainer[PairedBatch] = Trainer(
        params=config.trainer_params(),
        data=train_data,
        stepper=stepper,
        optimization=optimization,
        ema=ema,
        validate=validate,
        infer=generate,
        picks={BEST_TAILS: f"generation/mean/{TAILS}", BEST_SPECTRUM: f"generation/mean/{SPECTRUM}"},
        evaluate_training=evaluate_training,
        track=lambda: tracking(config.logging, directory, plain),
        directory=directory / CHECKPOINTS,
        ranks=ranks,
        stop=stop,
    )

    def close() -> None:
        for data in (train_data, valid_data):
            data.close()

    return run_trainer(trainer, close)


def _nothing(stepper: DiffusionTrainStepper) -> BatchMetrics:
    zeros = torch.zeros(len(stepper.metric_names), dtype=torch.float64, device=stepper.ranks.device)
    return BatchMetrics(stepper.metric_names, zeros, zeros)
