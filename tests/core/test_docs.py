"""Every piece of configuration that a page shows is legal: laid over the demo's file of its stage, it validates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ace_core.config import Source, StrictModel, parse
from ace_core.data.config import DataLoaderConfig
from ace_core.downscaling.checkpoints import BundledExpertsConfig, CheckpointModelConfig, DenoisingMoEConfig
from ace_core.downscaling.generate_config import DownscaleConfig
from ace_core.downscaling.train import DownscalingTrainConfig
from ace_core.evaluation.config import EvaluatorConfig, InferenceConfig
from ace_core.pipeline import PipelineConfig
from ace_core.prepare.config import PrepareConfig
from ace_core.response.respond import RespondConfig
from ace_core.response.study_config import StudyConfig
from ace_core.training.train import TrainConfig

# The first that has all of a block's keys is meant.
STAGES: dict[str, type[StrictModel]] = {
    "train": TrainConfig,
    "evaluate": EvaluatorConfig,
    "infer": InferenceConfig,
    "data": PrepareConfig,
    "study": StudyConfig,
    "respond": RespondConfig,
    "downscaling-train": DownscalingTrainConfig,
    "downscaling-generate": DownscaleConfig,
}
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in sorted(Path("docs").glob("*.md"))
    for i, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
]


def over(base: Any, top: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return base | {k: over(base.get(k), v) for k, v in top.items()}


@pytest.mark.parametrize("block", BLOCKS)
def test_shown_configuration_is_legal_and_acts(block: str) -> None:
    shown = yaml.safe_load(block)
    stage, model = next((s, m) for s, m in STAGES.items() if set(shown) <= set(m.model_fields))
    if "name" in shown:  # a whole file
        parse(model, Source("shown", shown))
        return
    demo = yaml.safe_load(Path(f"configs/planet/{stage}.yaml").read_text())
    config = parse(model, Source("shown", over(demo, shown)))
    plain = parse(model, Source("demo", demo))
    for key in shown:
        assert getattr(config, key) != getattr(plain, key), key


def test_shown_data_sets_are_legal() -> None:
    """A data set that is no single store cannot be laid over the demo's, which is."""
    shown = re.findall(r"```yaml dataset\n(.*?)```", Path("docs/data.md").read_text(), re.DOTALL)
    for block in shown:
        parse(DataLoaderConfig, Source("shown", {"dataset": yaml.safe_load(block), "batch_size": 1}))
    assert shown


def test_shown_models_of_a_generation_are_legal() -> None:
    """Each is a whole section: none is laid over another."""
    demo = yaml.safe_load(Path("configs/planet/downscaling-generate.yaml").read_text())
    shown = re.findall(r"```yaml model\n(.*?)```", Path("docs/downscaling.md").read_text(), re.DOTALL)
    kinds = [type(parse(DownscaleConfig, Source("shown", demo | yaml.safe_load(block))).model) for block in shown]
    assert kinds == [CheckpointModelConfig, DenoisingMoEConfig, BundledExpertsConfig]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2


def test_shown_launches_are_legal() -> None:
    shown = re.findall(r"```yaml pipeline\n(.*?)```", Path("docs/launching.md").read_text(), re.DOTALL)
    pipeline = {"name": "shown"} | dict.fromkeys(("prepare", "train", "evaluate", "respond"), "stage.yaml")
    kinds = [parse(PipelineConfig, Source("shown", pipeline | yaml.safe_load(block))).launch.type for block in shown]
    assert kinds == ["local", "slurm", "kubernetes"]


def test_shown_alerts_are_legal() -> None:
    [shown] = re.findall(r"```yaml pipeline\n(.*?)```", Path("docs/monitoring.md").read_text(), re.DOTALL)
    pipeline = {"name": "shown"} | dict.fromkeys(("prepare", "train", "evaluate", "respond"), "x.yaml")
    assert parse(PipelineConfig, Source("shown", pipeline | yaml.safe_load(shown))).alerts.stalled_epochs == 5
