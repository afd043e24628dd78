"""fme's stepper configuration, of any version, into ours (:class:`ace_core.step.emulator.StepperConfig`), and ours into fme's.

Keys and defaults are the same on purpose; what is left are retired keys, keys that act in training only, and what fme accepts and
ignores while we refuse it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, get_args

from pydantic import BaseModel
from torch import Tensor

from ace_core.config import Source, dump, nearest, parse
from ace_core.errors import ConfigError, Problem
from ace_core.models.builders import Builder
from ace_core.step.emulator import StepperConfig

log = logging.getLogger("ace")

STEPS = ("single_module", "default", "secondary_module", "separate_radiation", "multi_call")
BUILDERS = ("builder", "secondary_builder", "radiation_builder")  # of a step, in the order of its networks
# Act in training only, or not at all.
RETIRED = ("crps_training", "loss", "optimize_last_step_only", "n_ensemble", "parameter_init", "train_n_forward_steps")
# Of the flat configuration of a SingleModuleStepper: values with which a key does nothing.
INERT_WHEN = {
    "conserve_dry_air": (False, None),
    "optimization": (None,),
    "conservation_loss": ({"dry_air_penalty": None}, None),
}
# Keys that checkpoints hold with every network of a type, and that say nothing about it.
INERT_BUILDER: dict[str, tuple[str, ...]] = {
    "SphericalFourierNeuralOperatorNet": ("residual_filter_factor", "complex_network"),
    "SFNO-v0.1.0": ("complex_activation", "spectral_layers"),
}


def to_ours(config: Mapping[str, Any], where: str, has_masks: bool) -> StepperConfig:
    """``stepper.config`` of a checkpoint. has_masks: whether its data had masks, without which masking does nothing.

    Raises :class:`ConfigError` that lists every key and network that this package lacks.
    """
    data = {k: v for k, v in plain(config).items() if k not in RETIRED}
    masking = data.get("input_masking")
    if masking is not None and not has_masks:
        log.warning("%s: input_masking does nothing, as the data had no masks: dropped", where)
        data["input_masking"] = None
    elif masking is not None and masking.get("exclude_names_and_prefixes", ()) is None:
        masking["exclude_names_and_prefixes"] = []
    problems: list[Problem] = []
    data["step"] = _step(data["step"], "stepper.config.step", problems)
    if problems:
        raise ConfigError([Problem(f"{where} {p.where}", p.found, p.expected, p.fix) for p in problems])
    try:
        return parse(StepperConfig, Source(f"{where} stepper.config", data))
    except ConfigError as error:
        newer = "a newer fme wrote it: use a newer version of this package"
        problems = [replace(p, fix=newer) if p.found == "unknown key" else p for p in error.problems]
    raise ConfigError(problems)


def to_peer(config: StepperConfig) -> dict[str, Any]:
    """The same for fme 2026.10.0."""
    data = dump(config)
    inner = data["step"]["config"]
    inner = inner["wrapped_step"]["config"] if data["step"]["type"] == "multi_call" else inner
    if inner.get("input_dropout") is not None:
        # One name, two designs: fme draws per step and batch, we per window and sample.
        log.warning("export: input_dropout acts in training only, and fme's is another: dropped")
    inner.pop("input_dropout", None)
    return data


def flat_to_step(
    flat: Mapping[str, Any], normalizer: Mapping[str, Any], loss: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The flat configuration of a SingleModuleStepper, with the statistics saved beside it, as ``stepper.config``.

    Raises :class:`ConfigError` for retired keys that did something.
    """
    config = plain(flat)
    problems = []
    for key, inert in INERT_WHEN.items():
        value = config.pop(key, inert[0])
        if value not in inert:
            problems.append(
                Problem(f"stepper.config.{key}", f"{value!r}", f"{inert[0]!r}", "fme retired it too: train anew")
            )
    for key in ("normalization", "loss_normalization", "residual_normalization"):
        # The files they name are inlined in `normalizer`; names that were excluded from it cannot be told any more.
        part = config.pop(key, None)
        if part is not None and part.get("exclude_names") is not None:
            problems.append(Problem(f"stepper.config.{key}.exclude_names", f"{part['exclude_names']!r}", "null"))
    prescriber = config.pop("prescriber", None)
    if prescriber is not None:
        if config.get("ocean") is not None:
            problems.append(Problem("stepper.config", "both prescriber and ocean", "one of them"))
        config["ocean"] = {
            "surface_temperature_name": prescriber["prescribed_name"],
            "ocean_fraction_name": prescriber["mask_name"],
            "interpolate": prescriber["interpolate"],
        }
    if problems:
        raise ConfigError(problems)
    for key in (*RETIRED, "activation_checkpointing"):
        config.pop(key, None)
    call, scored = config.pop("multi_call", None), config.pop("include_multi_call_in_loss", False)
    config["normalization"] = {"network": plain(normalizer), "loss": None if loss is None else plain(loss)}
    wrapped = {"type": "single_module", "config": config}
    multi = {"wrapped_step": wrapped, "config": call, "include_multi_call_in_loss": scored}
    return {"step": {"type": "multi_call", "config": multi}}


def plain(value: Any) -> Any:
    """Mappings, sequences and numbers of whatever type as dict, list and Python's own."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, Tensor):
        return value.tolist()
    return value.total_seconds() if isinstance(value, timedelta) else value


# --- one step


def _step(step: dict[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    kind, config = step["type"], dict(step["config"])
    place = f"{where}.config"
    if kind not in STEPS:
        problems.append(Problem(f"{where}.type", f"{kind!r}", f"one of {', '.join(STEPS)}", nearest(str(kind), STEPS)))
        return step
    if kind == "multi_call":
        config["wrapped_step"] = inner = _step(config["wrapped_step"], f"{place}.wrapped_step", problems)
        if config.get("config") is None:
            config["include_multi_call_in_loss"] = False
        if inner["type"] != "multi_call":
            return {"type": kind, "config": config}
        # A multi-call step in another, of which one calls nothing more.
        if config.get("config") is None:
            return inner
        if inner["config"].get("config") is None:
            config["wrapped_step"] = inner["config"]["wrapped_step"]
            return {"type": kind, "config": config}
        problems.append(Problem(f"{place}.wrapped_step.type", "'multi_call' in 'multi_call'", "one of them"))
        return step
    config.pop("crps_training", None)
    _drop_dropout(config, place)
    _normalization(config, place)
    _corrector(config, place)
    for key in BUILDERS:
        if key in config:
            config[key] = _builder(config[key], f"{place}.{key}", problems)
            if kind not in ("single_module", "default"):
                _drop_flag(config[key], "allow_missing_variables", f"{place}.{key}")
    decoder = config.get("secondary_decoder")
    if decoder is not None:
        network = _builder(decoder["network"], f"{place}.secondary_decoder.network", problems)
        _drop_flag(network, "allow_missing_variables", f"{place}.secondary_decoder.network")
        config["secondary_decoder"] = {**decoder, "network": network}
    return {"type": kind, "config": config}


def _drop_dropout(config: dict[str, Any], where: str) -> None:
    dropout = config.get("input_dropout")
    if dropout is not None and "kind" not in dropout:
        log.warning("%s.input_dropout: another design than ours, and without effect on inference: dropped", where)
        config["input_dropout"] = None


def _drop_flag(builder: dict[str, Any], key: str, where: str) -> None:
    if builder.get(key):
        log.warning("%s.%s: has no effect there: dropped", where, key)
        builder[key] = False


def _normalization(config: dict[str, Any], where: str) -> None:
    """Statistics that are no numbers belong to variables that nobody uses, or are missed where somebody does."""
    config["normalization"] = {
        key: None if part is None else _statistics(dict(part), key, where)
        for key, part in config["normalization"].items()
    }


def _statistics(part: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    for statistic in ("means", "stds"):
        # fme writes empty mappings beside files.
        found = {n: float(x) for n, x in (part.get(statistic) or {}).items() if math.isfinite(float(x))}
        part[statistic] = found or None
    fills = ("fill_nans_on_normalize", "fill_nans_on_denormalize")
    if key != "network":
        if key == "loss" and any(part.get(f) for f in fills):
            log.warning("%s.normalization.loss: NaN is not filled there: in our loss it counts as no error", where)
        part |= dict.fromkeys(fills, False)
    return part


def _corrector(config: dict[str, Any], where: str) -> None:
    corrector = config.get("corrector")
    if not isinstance(corrector, dict):
        return
    chosen = dict(corrector.get("config") or {}) if "type" in corrector else dict(corrector)
    if chosen.get("clip_frozen_precipitation") and chosen.get("moisture_budget_correction") is None:
        log.warning("%s.corrector: clip_frozen_precipitation has no effect without a moisture budget: dropped", where)
        chosen["clip_frozen_precipitation"] = False
    config["corrector"] = {**corrector, "config": chosen} if "type" in corrector else chosen


# --- one network


def known_builders() -> dict[str, type[BaseModel]]:
    """Type -> the model of ``{type, config}``."""
    union = get_args(Builder)[0]
    members: tuple[type[BaseModel], ...] = get_args(union) or (union,)
    return {kind: member for member in members for kind in get_args(member.model_fields["type"].annotation)}


def _builder(builder: dict[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    known, kind = known_builders(), str(builder["type"])
    if kind not in known:
        found = f"network {kind!r}, which this package does not have"
        problems.append(Problem(f"{where}.type", found, f"one of {', '.join(known)}", nearest(kind, list(known))))
        return dict(builder)
    inert = INERT_BUILDER.get(kind, ())
    return {**builder, "config": {key: value for key, value in builder["config"].items() if key not in inert}}
