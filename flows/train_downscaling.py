"""`train-downscaling`: the whole pipeline of a downscaling model. Prepare, train, generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.downscale import downscaled
from flows.parameters import DownscalingPreset, pipeline_of
from flows.prepare import prepared_data
from flows.train import trained
from tasks.report import report
from tasks.stage import ace_flow, best_generator


@ace_flow("train-downscaling")
def train_downscaling(
    preset: DownscalingPreset = "planet-downscaling", config_path: str = "", overrides: Sequence[str] = ()
) -> Any:
    """Run a pipeline from data to fine fields that a diffusion model made; stages whose inputs did not change are skipped.

    Returns the results of the stages by name: of a training that has ended a segment (segment_epochs) only what came before it.

    Args:
        preset: one of the pipelines that come with the repository
        config_path: a pipeline file of your own, instead of the preset
        overrides: changes to the configuration, each stage.dotted.key=value, for example train.max_epochs=1
    """
    pipeline = pipeline_of(preset, config_path, overrides, "downscale")
    prepared = prepared_data(pipeline)
    report(prepared)
    done = trained(pipeline, prepared["directory"])
    if done is None:
        return {"prepare": prepared}
    report(done)
    made = downscaled(pipeline, prepared["directory"], str(best_generator(done)))
    report(made)
    return {"prepare": prepared, "train": done, "downscale": made}
