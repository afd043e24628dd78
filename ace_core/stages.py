"""The stages of the pipeline, each a function from a YAML file to a folder of results.

A stage's folder is named by its key: the hash of its configuration, of the content it reads, and of this library's code.
``complete.json`` is written last and holds the hash of every output, so a stage that is whole is not run again and one that
is not is never taken for whole. The command line and the flows call these functions alike.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ace_core import config as configuration
from ace_core.config import StrictModel
from ace_core.distributed import Ranks, process_group
from ace_core.errors import Busy, ConfigError, DataError, fail
from ace_core.lineage import COMPLETE, CONFIG, RUN, by_content, fingerprint, origin, read_json, read_record
from ace_core.memory import keep_freed_memory
from ace_core.provenance import code_hash, disk_with_room, sha256_file, sha256_of, write_json
from ace_core.telemetry import METRICS, LoggingConfig, log, logging_as

if TYPE_CHECKING:
    from ace_core.data.loader import Loader
    from ace_core.response.climates import Climates
    from ace_core.response.study_config import StudyConfig
    from ace_core.signals import StopFlag
    from ace_core.step.emulator import Emulator
    from ace_core.training.trainer import Progress

Summary = Mapping[str, float | str]
RunTasks = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]
M = TypeVar("M", bound=StrictModel)
# Keys that say nothing about what is computed.
_NOT_COMPUTED = (
    "experiment_dir",
    "logging",
    "segment_epochs",
    "keep_last_checkpoints",
    "parallelism",
    "restart_every_n_windows",
    "forward_steps_per_segment",
)
_AFTER_YOU = 5.0  # seconds
# Of RUN: how a process ended that has trained all it was to; what a training was thought to need; how long the last process worked.
SEGMENT, PREDICTED, SECONDS = "segment", "predicted", "seconds"
EPOCH = "batches_per_epoch"  # of what was predicted


@dataclass(frozen=True)
class StageResult:
    """What a stage left behind. key: hex sha256; outputs: file name -> hex sha256; skipped: it was complete already."""

    stage: str
    key: str
    directory: Path
    skipped: bool
    outputs: dict[str, str]
    summary: dict[str, float | str]


# --- kinds of configuration


def _prepare_model() -> type[StrictModel]:
    from ace_core.prepare.config import PrepareConfig

    return PrepareConfig


def _train_model() -> type[StrictModel]:
    from ace_core.training.train import TrainConfig

    return TrainConfig


def _train_downscaling_model() -> type[StrictModel]:
    from ace_core.downscaling.train import DownscalingTrainConfig

    return DownscalingTrainConfig


def _downscale_model() -> type[StrictModel]:
    from ace_core.downscaling.generate_config import DownscaleConfig

    return DownscaleConfig


def _evaluate_model() -> type[StrictModel]:
    from ace_core.evaluation.config import EvaluatorConfig

    return EvaluatorConfig


def _infer_model() -> type[StrictModel]:
    from ace_core.evaluation.config import InferenceConfig

    return InferenceConfig


def _respond_model() -> type[StrictModel]:
    from ace_core.response.respond import RespondConfig

    return RespondConfig


def _study_model() -> type[StrictModel]:
    from ace_core.response.study_config import StudyConfig

    return StudyConfig


TRAIN_DOWNSCALING = "train-downscaling"
# kind -> (a key that only this kind has, its model)
KINDS: dict[str, tuple[str, Callable[[], type[StrictModel]]]] = {
    "prepare": ("source", _prepare_model),
    "train": ("train_loader", _train_model),
    TRAIN_DOWNSCALING: ("train_data", _train_downscaling_model),
    "downscale": ("outputs", _downscale_model),
    "infer": ("forcing_loader", _infer_model),
    "study": ("checkpoints", _study_model),
    "respond": ("perturbations", _respond_model),
    "evaluate": ("loader", _evaluate_model),
}
PIPELINE = "pipeline"
STAGES = ("prepare", "train", "evaluate", "respond", "downscale")  # that a pipeline may name


# Stages that several ranks share.
_ON_RANKS = ("train", "downscale")


def stage_of(kind: str) -> str:
    """Which stage a file of a kind configures: of trainings there are two kinds."""
    return "train" if kind == TRAIN_DOWNSCALING else kind


def telling_kind(source: configuration.Source) -> str | None:
    """Of which kind a file is, by a key that only its kind has, or :data:`PIPELINE`; None if it has none of these keys."""
    # A study's file names stages, too.
    if KINDS["study"][0] not in source.data and any(stage in source.data for stage in STAGES):
        return PIPELINE
    return next((kind for kind, (key, _) in KINDS.items() if key in source.data), None)


def require_kind(source: configuration.Source, *wanted: str) -> None:
    """Raise :class:`ConfigError` if a file tells that it is of another kind than any of ``wanted``. One that tells nothing may be of any: what
    it lacks is said when it is parsed."""
    kind = telling_kind(source)
    if kind is None or kind in wanted:
        return
    telling = [s for s in STAGES if s in source.data] if kind == PIPELINE else [KINDS[kind][0]]
    found = f"is {called(kind)} (keys: {', '.join(telling)})"
    raise fail(ConfigError, source.path, found, called(wanted[0]), _runs(kind))


def called(kind: str) -> str:
    """``an evaluate configuration``."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} configuration"


def _runs(kind: str) -> str:
    """What runs a file of a kind."""
    if kind == PIPELINE:
        return "run it with a flow, such as train-ace (config_path=...), or give the file of one stage"
    return f"`ace {'data prepare' if kind == 'prepare' else stage_of(kind)}` runs it"


def kind_of(source: configuration.Source) -> str:
    """:func:`telling_kind` of a stage's file, or :class:`ConfigError` with the keys that would tell."""
    kind = telling_kind(source)
    if kind is None or kind == PIPELINE:
        telling = ", ".join(f"{key} ({kind})" for kind, (key, _) in KINDS.items())
        expected = f"one of {telling}, or the names of stages (pipeline)"
        raise fail(ConfigError, source.path, f"has the keys {', '.join(source.data) or 'none'}", expected)
    return kind


def check(path: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> str:
    """Validate one stage's file and say in a line which kind it is. Raises :class:`ConfigError` with every problem.
    Nothing but YAML is opened."""
    source = configuration.read(path, overrides, variables)
    kind = kind_of(source)
    configuration.parse(KINDS[kind][1](), source)
    note = f" (needs {', '.join(f'--var {v}=...' for v in source.unresolved)})" if source.unresolved else ""
    return f"{path}: valid {kind} configuration{note}"


# --- stages


def run_prepare(
    path: Path,
    root: Path,
    overrides: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    run_tasks: RunTasks | None = None,
) -> StageResult:
    """Prepare a data set under ``root``/data. run_tasks: how shard tasks are executed; None: one after the other here."""
    from ace_core.prepare.config import PrepareConfig
    from ace_core.prepare.prepare import prepare, serially

    config = configuration.load(PrepareConfig, path, overrides, variables)
    _require_written_out("root", str(root))
    with disk_with_room(root / "data"):
        prepared = prepare(config, root / "data", run_tasks or serially)
        # The marker by which later stages know the data's content without reading it.
        record = {"stage": "prepare", "key": prepared.content, "outputs": prepared.outputs, "summary": prepared.summary}
        if read_record(prepared.directory) != record:
            write_json(prepared.directory / COMPLETE, record)
    return StageResult(
        "prepare", prepared.content, prepared.directory, prepared.skipped, prepared.outputs, prepared.summary
    )


def run_train(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult:
    """Train an emulator, or a downscaling model, as the file's keys say, on this process or on all ranks that torchrun started. An
    emulator's summary compares one-step errors with persistence.

    Raises :class:`ace_core.training.trainer.Stopped` after SIGTERM or SIGINT, with a checkpoint saved, and
    :class:`ace_core.training.trainer.SegmentOver` after ``segment_epochs``, which :func:`segment_over` then tells.
    """
    if telling_kind(configuration.read(path, overrides, variables)) == TRAIN_DOWNSCALING:
        return _run_train_downscaling(path, root, overrides, variables)
    from ace_core.training.train import TrainConfig, train

    config = configuration.load(TrainConfig, path, overrides, variables)

    def body(directory: Path, ranks: Ranks) -> Summary:
        from ace_core.evaluation.inline import inline_inference
        from ace_core.response.inline import inline_responses
        from ace_core.training.estimate import actual, estimate
        from ace_core.training.figures import loss_curve
        from ace_core.training.validation import one_step_table

        def foresee(config: TrainConfig, emulator: Emulator, data: Loader, n_validation: int, ranks: Ranks) -> None:
            predicted = estimate(config, emulator, data, n_validation, ranks).record() | {EPOCH: data.n_batches}
            if ranks.is_root:
                _note(directory, {PREDICTED: predicted})

        summary, metrics = _trained(
            directory,
            ranks,
            lambda stop: train(config, directory, ranks, stop, inline_inference, foresee, inline_responses),
        )
        if ranks.is_root:
            _note(directory, {"actual": actual(directory)})
            loss_curve(directory / METRICS, directory / "loss.png")
            (directory / "one_step.txt").write_text(one_step_table(metrics))
        return summary

    return _run("train", config, root, body)


def _run_train_downscaling(
    path: Path, root: Path, overrides: Sequence[str], variables: Mapping[str, str] | None
) -> StageResult:
    from ace_core.downscaling.scores import PICKS
    from ace_core.downscaling.train import DownscalingTrainConfig, train_downscaling

    config = configuration.load(DownscalingTrainConfig, path, overrides, variables)

    def body(directory: Path, ranks: Ranks) -> Summary:
        from ace_core.training.figures import loss_curve

        def foresee(batches_per_epoch: int) -> None:
            if ranks.is_root:
                _note(directory, {PREDICTED: {EPOCH: batches_per_epoch}})

        summary, found = _trained(
            directory, ranks, lambda stop: train_downscaling(config, directory, ranks, stop, foresee)
        )
        if ranks.is_root:
            loss_curve(directory / METRICS, directory / "loss.png")
        # A table of many variables shows what belongs to none of them by names like these.
        scored = {name: found[f"generation/mean/{name}"] for name in PICKS if f"generation/mean/{name}" in found}
        return {**summary, **scored}

    return _run("train", config, root, body)


def _trained(
    directory: Path, ranks: Ranks, train: Callable[[StopFlag], tuple[Progress, Mapping[str, float]]]
) -> tuple[Summary, Mapping[str, float]]:
    """What ``train`` has reached, as a summary, and the metrics of the last validation; a segment's end is noted in the folder."""
    from ace_core.signals import StopFlag, start_watchdog
    from ace_core.training.trainer import SegmentOver

    with StopFlag() as stop:
        start_watchdog()
        try:
            progress, metrics = train(stop)
        except SegmentOver as over:
            if ranks.is_root:
                _note(directory, {SEGMENT: str(over)})
            raise
    summary: dict[str, float | str] = {"epochs": float(progress.epoch), "batches": float(progress.batches_seen)}
    summary["best_validation_loss"] = progress.best_validation_loss
    return summary | dict(metrics), metrics


def run_downscale(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult:
    """Make fine fields of coarse ones with a downscaling model, on this process or on all ranks that torchrun started; the summary holds the
    mean of every field, and the spread of its members.

    Raises :class:`ace_core.training.trainer.Stopped` after SIGTERM or SIGINT: what was made is kept.
    """
    from ace_core.downscaling.generate import downscale
    from ace_core.downscaling.generate_config import DownscaleConfig

    config = configuration.load(DownscaleConfig, path, overrides, variables)

    def body(directory: Path, ranks: Ranks) -> Summary:
        from ace_core.signals import StopFlag, start_watchdog

        with StopFlag() as stop:
            start_watchdog()
            return dict(downscale(config, directory, ranks, stop))

    return _run("downscale", config, root, body)


def run_evaluate(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult:
    """Roll a checkpoint out against data; the summary holds the scores."""
    from ace_core.evaluation.config import EvaluatorConfig
    from ace_core.evaluation.evaluator import evaluate
    from ace_core.evaluation.figures import rollout_figures
    from ace_core.evaluation.report import write_report

    config = configuration.load(EvaluatorConfig, path, overrides, variables)

    def body(directory: Path, ranks: Ranks) -> Summary:
        scores = evaluate(config, directory, ranks)
        rollout_figures(directory)
        facts = {
            "checkpoint": config.checkpoint_path,
            "data": str(getattr(config.loader.dataset, "data_path", "several")),
            "rollouts": f"{config.n_forward_steps} forward steps each",
        }
        write_report(directory, f"Evaluation {directory.name}", facts)
        return dict(scores)

    return _run("evaluate", config, root, body)


def run_infer(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult:
    """Roll a checkpoint out without a target."""
    from ace_core.evaluation.config import InferenceConfig
    from ace_core.evaluation.evaluator import infer

    config = configuration.load(InferenceConfig, path, overrides, variables)
    return _run("infer", config, root, lambda directory, ranks: dict(infer(config, directory, ranks)))


def run_respond(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult:
    """Paired control and perturbed rollouts; the summary holds the scalars."""
    from ace_core.response.report import write_response_report
    from ace_core.response.respond import RespondConfig, respond

    config = configuration.load(RespondConfig, path, overrides, variables)

    def body(directory: Path, ranks: Ranks) -> Summary:
        scalars = respond(config, directory, ranks)
        write_response_report(directory, f"Response {directory.name}")
        return dict(scalars)

    return _run("respond", config, root, body)


def run_study(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult:
    """Every leg, every experiment and the comparison that are not complete yet: what was done before it was interrupted, or for another
    study, is not done again."""
    study = _study(path, overrides, variables)
    key, directory = _place("study", study, root)
    done = read_complete(directory, "study", key)
    if done is not None:
        return done
    for name in legs(path, overrides, variables):
        run_leg(path, root, overrides, variables, name)
    for name in experiments(path, overrides, variables):
        run_experiment(path, root, overrides, variables, name)
    return compare_study(path, root, overrides, variables)


def legs(path: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> list[str]:
    """Names ``<checkpoint>/<period>/<label>`` of a study's legs: one rollout each, of a perturbation or of the baseline that all
    perturbations of its checkpoint and period share."""
    return [name for e in _study(path, overrides, variables).experiments() for name in e.legs()]


def experiments(path: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> list[str]:
    """Names ``<checkpoint>/<period>`` of a study's experiments: legs side by side, analysed as ``ace respond`` does."""
    return [e.name for e in _study(path, overrides, variables).experiments()]


def run_leg(
    path: Path, root: Path, overrides: Sequence[str], variables: Mapping[str, str] | None, name: str
) -> StageResult:
    """One leg of a study, in a folder ``arm-<key>`` that is named by what decides its numbers: not by its label, nor by the study."""
    from ace_core.response.legs import CLIMATES, save
    from ace_core.response.respond import run_arm

    study = _study(path, overrides, variables)
    arm = next(e.legs()[name] for e in study.experiments() if name in e.legs())

    def body(directory: Path, ranks: Ranks) -> Summary:
        save(directory / CLIMATES, run_arm(arm, ranks))
        return {}

    return _run("arm", arm, root, body)


def run_experiment(
    path: Path, root: Path, overrides: Sequence[str], variables: Mapping[str, str] | None, name: str
) -> StageResult:
    """One experiment of a study from its legs, which are complete: the stage ``respond`` of the same configuration, without its rollout."""
    from ace_core.response.legs import CLIMATES, joined, load
    from ace_core.response.respond import respond

    (experiment,) = (e for e in _study(path, overrides, variables).experiments() if e.name == name)

    def climates() -> Climates:
        arms = experiment.config.arms()
        return joined({label: load(_place("arm", arm, root)[1] / CLIMATES) for label, arm in arms.items()})

    def body(directory: Path, ranks: Ranks) -> Summary:
        from ace_core.response.report import write_response_report

        scalars = respond(experiment.config, directory, ranks, climates)
        write_response_report(directory, f"Response {experiment.name}")
        return dict(scalars)

    return _run("respond", experiment.config, root, body)


def compare_study(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult:
    """The comparison of a study whose experiments are complete."""
    from ace_core.response.study import Done, compare

    study = _study(path, overrides, variables)

    def body(directory: Path, ranks: Ranks) -> Summary:
        done = []
        for e in study.experiments():
            took = {leg: read_json(_place("arm", arm, root)[1] / RUN) or {} for leg, arm in e.legs().items()}
            seconds = {leg: float(run[SECONDS]) for leg, run in took.items() if SECONDS in run}
            done.append(Done(e, _place("respond", e.config, root)[1], seconds))
        return dict(compare(study, done, directory))

    return _run("study", study, root, body)


def _study(path: Path, overrides: Sequence[str], variables: Mapping[str, str] | None) -> StudyConfig:
    from ace_core.response.study_config import StudyConfig

    return configuration.load(StudyConfig, path, overrides, variables)


# --- keys and folders


def _run(stage: str, config: StrictModel, root: Path, body: Callable[[Path, Ranks], Summary]) -> StageResult:
    """Run ``body`` in the stage's folder unless the folder is complete."""
    seen: dict[str, str] = {}
    key, directory = _place(stage, config, root, seen)
    done = read_complete(directory, stage, key)
    if done is not None:
        return done
    chosen = directory.parent != root or not directory.name.endswith(key[:10])
    if stage not in _ON_RANKS and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found, expected = (
            f"started on {os.environ['WORLD_SIZE']} ranks",
            "one process; only training and downscaling run on several",
        )
        raise fail(ConfigError, stage, found, expected, "start it without torchrun")
    keep_freed_memory()
    with process_group() as ranks, ExitStack() as stack:
        stack.enter_context(disk_with_room(directory))
        if ranks.is_root:
            made = {"ranks": ranks.world} | origin(configuration.dump(config), seen)
            done = stack.enter_context(_claim(directory, stage, key, chosen, configuration.dump(config), made))
        if ranks.any(done is not None):
            done = done or read_complete(directory, stage, key)
            assert done is not None
            return done
        if ranks.is_root:
            write_json(directory / CONFIG, configuration.dump(config))
            log.info("%s: writing %s", stage, directory)
        ranks.barrier()
        began = time.monotonic()
        with logging_as(getattr(config, "logging", LoggingConfig()), directory if ranks.is_root else None):
            try:
                summary = body(directory, ranks)
            except RuntimeError:
                if ranks.world > 1:
                    # Most likely another rank has left, which knows why: whoever started them takes the first to end for the reason.
                    time.sleep(_AFTER_YOU)
                raise
        if stage != "train":
            _require_unchanged(seen)
        if ranks.is_root:
            _note(directory, {SECONDS: round(time.monotonic() - began, 3)})
            _write_complete(directory, stage, key, summary)
        ranks.barrier()
        # While the folder is still ours.
        result = read_complete(directory, stage, key)
    assert result is not None
    return StageResult(stage, key, directory, False, result.outputs, result.summary)


def _require_unchanged(seen: Mapping[str, str]) -> None:
    """Raises :class:`DataError` if a file is not what the stage is named by: it may have been read after it had been replaced."""
    for name, content in seen.items():
        path = Path(name)
        if not path.is_dir() and (not path.exists() or fingerprint(path) != content):
            found = "was changed or removed while the stage read it"
            raise fail(DataError, name, found, "a file that stays", "run again")


def finished(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> StageResult | None:
    """The result of a train, evaluate, infer, respond or downscale file if that stage is complete: costs a few hashes, no data.

    Raises :class:`ConfigError` as running the stage would.
    """
    stage, key, directory = _placed(path, root, overrides, variables)
    return read_complete(directory, stage, key)


def folder_of(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> Path:
    """Where a train, evaluate, infer, respond or downscale file leaves its results, whether or not it has run. Raises as :func:`finished`."""
    return _placed(path, root, overrides, variables)[2]


def segment_over(
    path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> str | None:
    """What a training said that ended with a segment, if that is how its last process ended. Raises as :func:`finished`."""
    _, key, directory = _placed(path, root, overrides, variables)
    record = read_json(directory / RUN) or {}
    return str(record[SEGMENT]) if record.get("key") == key and SEGMENT in record else None


def job_name(path: Path, root: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> str:
    """``ace-`` and 16 hex digits: of a stage by its content and folder, for those who run it. Raises as :func:`finished`."""
    _, key, directory = _placed(path, root, overrides, variables)
    return f"ace-{sha256_of([key, str(directory.absolute())])[:16]}"


def _placed(
    path: Path, root: Path, overrides: Sequence[str], variables: Mapping[str, str] | None
) -> tuple[str, str, Path]:
    """Stage, key and folder of a stage's file."""
    source = configuration.read(path, overrides, variables)
    configuration.require_resolved(source)
    kind = kind_of(source)
    stage = stage_of(kind)
    return stage, *_place(stage, configuration.parse(KINDS[kind][1](), source), root)


def _note(directory: Path, more: Mapping[str, Any]) -> None:
    """Add to what ``run.json`` says of the run."""
    write_json(directory / RUN, (read_json(directory / RUN) or {}) | dict(more))


def _place(stage: str, config: StrictModel, root: Path, seen: dict[str, str] | None = None) -> tuple[str, Path]:
    """Key and folder of a stage. seen: is given the content of every path."""
    plain = configuration.dump(config)
    given = plain["experiment_dir"]
    _require_written_out("experiment_dir", given or "")
    _require_written_out("root", str(root))
    for name in _NOT_COMPUTED:
        plain.pop(name, None)
    key = sha256_of({"stage": stage, "config": by_content(plain, {} if seen is None else seen), "code": code_hash()})
    return key, Path(given) if given else root / f"{stage}-{key[:10]}"


def _require_written_out(key: str, path: str) -> None:
    """Raises :class:`ConfigError` for a home folder that no shell has put in: results would go to a folder called ~ where nobody looks."""
    if path.startswith("~"):
        raise fail(
            ConfigError,
            key,
            f"{path} begins with ~, which only a shell replaces",
            "a path",
            "write the home folder out",
        )


def read_complete(directory: Path, stage: str, key: str) -> StageResult | None:
    """The result in ``directory`` if it is this stage's, whole and unchanged on disk; otherwise None."""
    record = read_record(directory)
    if record is None or (record["stage"], record["key"]) != (stage, key):
        return None
    for name, digest in record["outputs"].items():
        if not (directory / name).is_file() or sha256_file(directory / name) != digest:
            log.warning("%s: %s is missing or changed, running the stage again", stage, directory / name)
            return None
    return StageResult(stage, key, directory, True, record["outputs"], record["summary"])


def _unlike(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> str:
    """In what another run of the stage differs."""
    if theirs is None:
        return "of another configuration"
    a, b = (configuration.leaves({k: v for k, v in c.items() if k not in _NOT_COMPUTED}) for c in (theirs, ours))
    absent = "absent"
    keys = [k for k in dict.fromkeys((*a, *b)) if a.get(k, absent) != b.get(k, absent)]
    if not keys:
        return "of the same configuration, but other data or another version of the code"
    shown = [f"{k}: {a.get(k, absent)} there, {b.get(k, absent)} here" for k in keys[:_SHOWN]]
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"of another configuration ({'; '.join(shown)}{more})"


_SHOWN = 8


@contextmanager
def _claim(
    directory: Path, stage: str, key: str, chosen: bool, config: Mapping[str, Any], made: Mapping[str, Any]
) -> Iterator[StageResult | None]:
    """Hold the folder while the stage runs; the kernel lets go when the process ends, however it ends. Gives the result if another process has
    made it after we looked: the folder is then left as it is.

    One chosen by the user must be empty or hold this very run, so that nothing is overwritten. Raises :class:`ConfigError`, with the keys
    that differ, and :class:`Busy` if another process is running in the folder.
    """
    marker, lock = directory / RUN, directory / ".lock"
    if chosen and directory.is_dir() and any(p != lock for p in directory.iterdir()):
        found = read_json(marker) or {}
        if found.get("key") != key:
            what = "holds something else"
            if "stage" in found:
                theirs = read_json(directory / CONFIG) if found["stage"] == stage else None
                what = f"holds a run of {found['stage']}, {_unlike(theirs, config)}"
            raise fail(
                ConfigError,
                f"experiment_dir {directory}",
                what,
                "an empty folder, or this run's own",
                "choose another experiment_dir, or leave it out",
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise fail(ConfigError, str(directory), f"cannot be written ({error.strerror})", "a writable folder") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise fail(
                Busy,
                str(directory),
                f"another process is running this {stage}",
                "one at a time",
                "wait for it to end, then run again",
            ) from None
        done = read_complete(directory, stage, key)
        if done is None:
            (directory / COMPLETE).unlink(missing_ok=True)
            # What was predicted stays said when the run goes on.
            before = read_json(marker) or {}
            kept = {PREDICTED: before[PREDICTED]} if before.get("key") == key and PREDICTED in before else {}
            write_json(marker, {"stage": stage, "key": key} | dict(made) | kept)
        yield done
    finally:
        os.close(descriptor)


def _write_complete(directory: Path, stage: str, key: str, summary: Summary) -> None:
    from ace_core.training.checkpoint import of_resuming

    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in (COMPLETE, ".lock"))
    outputs = {p.relative_to(directory).as_posix(): sha256_file(p) for p in files if not of_resuming(p.name)}
    finite = {k: v for k, v in summary.items() if isinstance(v, str) or abs(v) < float("inf")}
    write_json(directory / COMPLETE, {"stage": stage, "key": key, "outputs": outputs, "summary": finite})
