"""`study`: how several checkpoints answer many perturbations, one rollout each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ace_core import stages
from flows.parameters import StudyPreset, file_of
from tasks.report import report
from tasks.stage import ace_flow, run
from tasks.study import compare, experiment, leg


@ace_flow("study")
def study(
    preset: StudyPreset = "planet-study",
    config_path: str = "",
    root: str = "runs/study",
    variables: Mapping[str, str] = {},
    overrides: Sequence[str] = (),
) -> Any:
    """Compare checkpoints by their response to many perturbations, leg by leg: what is complete, for this study or another below the
    root, is skipped.

    Args:
        preset: one of the studies that come with the repository
        config_path: a study file of your own, instead of the preset
        root: folder for the results
        variables: values of ${name} in the file, such as the data and the checkpoints
        overrides: changes to the configuration, each dotted.key=value, for example respond.n_forward_steps=364
    """
    file, changes, known = file_of(preset, config_path), list(overrides), dict(variables)
    where = (str(file), root, changes, known)
    for name in stages.legs(file, changes, known):
        run(leg, *where, name)
    for name in stages.experiments(file, changes, known):
        run(experiment, *where, name)
    compared = run(compare, *where)
    report(compared)
    return compared
