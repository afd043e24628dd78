"""Checkpoints of fme (2026.10.0 and its predecessors) as emulators, and emulators as checkpoints that fme loads.

What is read: ``stepper`` = {config, dataset_info, step, training_history}, or the flat layout of a SingleModuleStepper. Optimizer,
counters and history stay behind: an emulator comes in, not a run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ace_core.errors import AceError, ConfigError, DataError, fail
from ace_core.interop import fme_config, fme_info, fme_weights
from ace_core.interop.unpickle import unpickle
from ace_core.physics.corrector.config import selected
from ace_core.provenance import write_atomic
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.step.kinds import NetworkStepSelector
from ace_core.step.selector import MultiCallSelector

log = logging.getLogger("ace")
Weights = Literal["module", "ema"]
CALENDAR = "noleap"
# Of every kind of step, where fme keeps its networks, in the order of their builders; the decoder, if there is one, last.
_PARTS = {
    "single_module": ("module",),
    "default": ("module",),
    "secondary_module": ("module", "secondary_module"),
    "separate_radiation": ("module", "radiation_module"),
}
_DECODER = "secondary_decoder"
_EXPORTED = "exported_by_ace_core"  # its spectral tensors are as fme, which mistakes some layouts, needs them


def is_fme(content: Any) -> bool:
    """Whether the content of a torch file is a checkpoint of fme's trainer, of any layout."""
    if not isinstance(content, Mapping) or "format_version" in content:
        return False
    stepper = content.get("stepper")
    return isinstance(stepper, Mapping) and "config" in stepper


def is_fme_downscaling(content: Any) -> bool:
    """Whether the content of a torch file is a checkpoint of fme's downscaling trainer, or a bundle of experts."""
    if not isinstance(content, Mapping) or "format_version" in content:
        return False
    model = content.get("model")
    return "experts" in content or (isinstance(model, Mapping) and "downscale_factor" in model)


def read_fme(path: Path, weights: Weights = "module", calendar: str = CALENDAR) -> Emulator:
    """The emulator in fme's checkpoint, in evaluation mode.

    weights: ``module`` takes those of the step, which ``best_*`` and ``ema_ckpt_*`` files write averaged; ``ema`` takes the moving
    average that ``ckpt.tar`` holds beside its raw ones. calendar: of the training data. fme keeps none with the checkpoint and
    computes in that of the data at hand; here it belongs to the emulator, and data of another are refused.

    Raises :class:`DataError` for a file that is damaged, of another kind, incomplete, or holds anything executable, and
    :class:`ConfigError` for networks and options that this package lacks.
    """
    return emulator_from_fme(unpickle(path), str(path), weights, calendar)


def no_emulator(where: str) -> DataError:
    """What is said of a checkpoint, ours or fme's, of a downscaling model where an emulator is asked for."""
    fix = "generate with it by `ace downscale`, or name another checkpoint"
    return fail(DataError, where, "holds a downscaling model", "a checkpoint of an emulator", fix)


def emulator_from_fme(content: Any, where: str, weights: Weights = "module", calendar: str = CALENDAR) -> Emulator:
    """The same of what :func:`ace_core.interop.unpickle.unpickle` read. where: the file, for messages."""
    if is_fme_downscaling(content):
        raise no_emulator(where)
    if not is_fme(content):
        ours = isinstance(content, Mapping) and "format_version" in content
        found = "is a checkpoint of this package" if ours else "is no checkpoint of fme"
        raise fail(DataError, where, found, "a file that fme's trainer wrote", "it needs no import" if ours else "")
    try:
        return _emulator(content, where, weights, calendar)
    except AceError as error:
        placed = [p if p.where.startswith(where) else replace(p, where=f"{where} {p.where}") for p in error.problems]
        raise type(error)(placed) from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        found = f"is not laid out as fme's checkpoints are ({type(error).__name__}: {reason})"
        raise fail(DataError, where, found, "a file that fme's trainer wrote") from None


def export_fme(emulator: Emulator, path: Path) -> None:
    """Write a checkpoint that fme 2026.10.0 loads (``fme.ace.stepper.load_stepper``) and steps with the same numbers.

    It holds the stepper alone: fme can infer, evaluate and start a training from it, not resume one. Raises :class:`ConfigError` for
    a network that fme does not have.
    """
    content = {"stepper": _peer_stepper(emulator), _EXPORTED: True}
    write_atomic(path, lambda temporary: torch.save(content, temporary))


# --- in


def _emulator(content: Mapping[str, Any], where: str, weights: Weights, calendar: str) -> Emulator:
    stepper = _current_layout(content["stepper"], where)
    state, step = stepper["step"], stepper["config"]["step"]
    while step["type"] == "multi_call":
        state = _require(state, ("wrapped_step",), f"{where} stepper.step")["wrapped_step"]
        step = step["config"]["wrapped_step"]
    info = stepper["dataset_info"]
    masks = (info.get("mask_provider") or {}).get("masks")
    config = fme_config.to_ours(stepper["config"], where, bool(masks))
    saved = _saved_modules(state, config, where)
    labels = _labels(saved, config, info.get("all_labels") or ())
    states = [fme_weights.unwrapped(s, f"{where} stepper.step") for s in saved]
    ema = content.get("ema") or {}
    if weights == "ema":
        states = _averaged(states, ema, where)
    elif "ema_params" in ema:
        log.info("%s: its raw weights are taken; it holds averaged ones too (weights: ema)", where)
    builders = config.step.config.builders
    if content.get(_EXPORTED):
        states = [fme_weights.swapped(s, b.type) for s, b in zip(states, builders, strict=True)]
    fme_weights.require_size(builders, states, f"{where} stepper.step")
    emulator = build_emulator(config, fme_info.to_ours(info, where, calendar, labels), seed=0)
    fme_weights.fill(emulator.step.networks, builders, states, f"{where} stepper.step")
    emulator.step.eval()
    return emulator


def _current_layout(stepper: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """{config, dataset_info, step} of a stepper of any version."""
    config = stepper["config"]
    if "step" in config:
        return _require(stepper, ("dataset_info", "step"), f"{where} stepper")
    if "builder" not in config:
        found = f"a stepper of {', '.join(map(str, config))}"
        raise fail(ConfigError, f"{where} stepper.config", found, "that of one component, with step")
    one_of = (
        ("normalizer", "normalization"),
        ("vertical_coordinate", "sigma_coordinates"),
        ("gridded_operations", "area"),
    )
    lacking = [" or ".join(keys) for keys in (("module",), *one_of) if not any(k in stepper for k in keys)]
    if lacking:
        raise fail(DataError, f"{where} stepper", f"lacks {', '.join(lacking)}", "a whole checkpoint")
    normalizer = stepper.get("normalizer", stepper.get("normalization"))
    loss = stepper.get("loss_normalizer", stepper.get("loss_normalization"))
    operations = stepper.get("gridded_operations")
    if "area" in stepper:
        operations = {"type": "LatLonOperations", "state": {"area_weights": stepper["area"]}}
    shapes = [s[-2:] for s in (stepper.get("data_shapes") or {}).values() if len(s) == 4]
    info = {
        "timestep": stepper.get("encoded_timestep", fme_info.DEFAULT_TIMESTEP),
        "vertical_coordinate": stepper.get("sigma_coordinates", stepper.get("vertical_coordinate")),
        "gridded_operations": operations,
        "img_shape": stepper.get("img_shape", shapes[0] if shapes else None),
    }
    return {
        "config": fme_config.flat_to_step(config, normalizer, loss),
        "dataset_info": info,
        "step": {"wrapped_step": {"module": stepper["module"]}},
    }


def _require(state: Mapping[str, Any], keys: Sequence[str], where: str) -> Mapping[str, Any]:
    lacking = [k for k in keys if k not in state]
    if lacking:
        raise fail(DataError, where, f"lacks {', '.join(lacking)}", "a whole checkpoint")
    return state


def _saved_modules(state: Mapping[str, Any], config: StepperConfig, where: str) -> list[Mapping[str, Any]]:
    parts = _parts(config)
    _require(state, parts, f"{where} stepper.step")
    extra = [k for k, v in state.items() if k not in parts and k not in ("corrector", _DECODER)]
    extra += [_DECODER] if state.get(_DECODER) and _DECODER not in parts else []
    if extra:
        raise fail(DataError, f"{where} stepper.step", f"weights of {', '.join(extra)}", f"of {', '.join(parts)} only")
    return [state[part] for part in parts]


def _parts(config: StepperConfig) -> list[str]:
    selector = _called(config)
    keys = list(_PARTS[selector.type])
    return keys + [_DECODER] * (len(selector.config.builders) - len(keys))


def _called(config: StepperConfig) -> NetworkStepSelector:
    """The step that is there to be called, once or more often."""
    return config.step.config.wrapped_step if isinstance(config.step, MultiCallSelector) else config.step


def _labels(saved: Sequence[Mapping[str, Any]], config: StepperConfig, known: Sequence[str]) -> list[str]:
    """In the order in which the networks know them; none if no network takes any."""
    builders = config.step.config.builders
    conditional = [s for s, b in zip(saved, builders, strict=True) if b.conditional]
    if not conditional:
        deaf = [
            b.type for b in builders if b.type != "MLP"
        ]  # fme's MLP takes data with labels and does not look at them
        if known and deaf:
            found = f"labels {', '.join(known)}, and networks that take none ({', '.join(deaf)})"
            raise fail(DataError, "dataset_info.all_labels", found, "labels of a conditional network, or none")
        if known:
            log.warning("labels %s: its networks do not take them: dropped", ", ".join(known))
        return []
    encoding = conditional[0].get(fme_weights.LABELS)
    if encoding is None:
        return sorted(known)
    first: list[str] = list(encoding["labels"])
    return [*first, *sorted(set(known) - set(first))]


def _averaged(states: Sequence[dict[str, Tensor]], ema: Mapping[str, Any], where: str) -> list[dict[str, Tensor]]:
    """The networks' tensors, those that the moving average follows replaced by it. Its names: ``0.module.<parameter>``."""
    if "ema_params" not in ema:
        raise fail(
            DataError,
            f"{where} ema",
            "holds no averaged weights",
            "a ckpt.tar or ckpt_NNNN.tar",
            "take the weights of the module, which best_* and ema_ckpt_* files write averaged",
        )
    out = [dict(state) for state in states]
    for name, key in ema["module_name_to_ema_name"].items():
        index, _, rest = name.partition(".")
        parameter = rest.removeprefix(fme_weights.PREFIX)
        if not index.isdigit() or int(index) >= len(out) or parameter not in out[int(index)]:
            raise fail(
                DataError, f"{where} ema", f"averages {name}, which the step does not have", "a whole checkpoint"
            )
        out[int(index)][parameter] = ema["ema_params"][key]
    return out


# --- out


def _peer_stepper(emulator: Emulator) -> dict[str, Any]:
    config, labels = emulator.config, emulator.info.labels
    builders = config.step.config.builders
    step: dict[str, Any] = {
        part: fme_weights.wrapped(network, b, labels if b.conditional else None, f"export of {part}")
        for part, network, b in zip(_parts(config), emulator.step.networks, builders, strict=True)
    }
    inner = _called(config)
    if inner.type != "separate_radiation":
        step.setdefault(_DECODER, {})
    if selected(inner.config.corrector).corrector_disabled_epochs:
        # Past its first epochs: a trained emulator is corrected.
        step["corrector"] = {"corrector_disabled": False}
    return {
        "config": fme_config.to_peer(config),
        "dataset_info": fme_info.to_peer(emulator.info),
        "step": {"wrapped_step": step} if inner is not config.step else step,
        "training_history": [],
    }
