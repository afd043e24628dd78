"""An emulator of which parts were exchanged for one run."""

from __future__ import annotations

from typing import Any

from ace_core.config import Source, dump, parse
from ace_core.evaluation.config import StepperOverrideConfig
from ace_core.step.emulator import Emulator, StepperConfig, emulator_from_state

WHERE = "stepper_override"


def override(emulator: Emulator, wanted: StepperOverrideConfig) -> Emulator:
    """The same networks with the parts that ``wanted`` names. Raises :class:`ConfigError` for parts that do not fit the step."""
    changes = {k: v for k, v in dump(wanted).items() if getattr(wanted, k) != "keep"}
    if not changes:
        return emulator
    state = emulator.state()
    config = state["config"]
    if "derived_forcings" in changes:
        config["derived_forcings"] = changes["derived_forcings"]
    if "multi_call" in changes:
        config["step"] = _called(config["step"], changes["multi_call"])
    step = config["step"]
    wrapped = step["config"]["wrapped_step"] if step["type"] == "multi_call" else step
    wrapped["config"] |= {k: v for k, v in changes.items() if k not in ("derived_forcings", "multi_call")}
    parse(StepperConfig, Source(WHERE, config))
    changed = emulator_from_state(state)
    changed.step.eval()
    return changed


def _called(step: dict[str, Any], calls: dict[str, Any] | None) -> dict[str, Any]:
    """The calls have no statistics of their own here, and nobody scores them."""
    wrapped = step["config"]["wrapped_step"] if step["type"] == "multi_call" else step
    if calls is None:
        return wrapped
    config = {"wrapped_step": wrapped, "config": calls, "include_multi_call_in_loss": False}
    return {"type": "multi_call", "config": config}
