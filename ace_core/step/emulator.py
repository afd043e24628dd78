"""``stepper:`` in fme's vocabulary, and the emulator it builds: a step with all that identifies it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ace_core.config import StrictModel, dump
from ace_core.data.batch import Batch
from ace_core.dataset_info import DatasetInfo
from ace_core.distributed import Divisible, Tiles, divide
from ace_core.errors import ConfigError, DataError, fail
from ace_core.fields import Fields
from ace_core.models.context import Context, NoiseKey
from ace_core.physics.derived import derive
from ace_core.step.derived_forcings import DerivedForcings, DerivedForcingsConfig
from ace_core.step.normalizer import Normalization, load_normalization
from ace_core.step.selector import StepConfig, StepSelector
from ace_core.step.spatial_masking import StaticSpatialMaskingConfig
from ace_core.step.step import Step


class StepperConfig(StrictModel):
    """``step: {type, config}``; input_masking: what inputs hold where their variable does not exist; derived_forcings: inputs that
    are computed instead of read."""

    FME_TYPES: ClassVar[Mapping[str, str]] = {
        "FCN3": "FourCastNet 3 is not here: a single_module step with SphericalFourierNeuralOperatorNet is its predecessor, LocalNet filters "
        "locally as it does",
    }
    # fme wrote steppers of one network flat once.
    FME_KEYS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            (
                "builder",
                "in_names",
                "out_names",
                "normalization",
                "ocean",
                "corrector",
                "residual_prediction",
                "next_step_forcing_names",
            ),
            "put it into step: {type: single_module, config: ...}",
        ),
        "loss": "put it into stepper_training",
        "loss_normalization": "put it into step.config.normalization.loss, and the other into .network",
        "residual_normalization": "put it into step.config.normalization.residual, and the other into .network",
        "multi_call": "write step: {type: multi_call, config: {wrapped_step: ..., config: ...}}",
        "prescriber": "write it as step.config.ocean: {surface_temperature_name, ocean_fraction_name}",
        "parameter_init": "put it into stepper_training",
        "optimize_last_step_only": "put it into stepper_training",
        "n_ensemble": "put it into stepper_training",
        "train_n_forward_steps": "put it into stepper_training, as n_forward_steps",
        "crps_training": "write stepper_training.loss: {type: EnsembleLoss, kwargs: ...}",
    }
    step: StepSelector
    input_masking: StaticSpatialMaskingConfig | None = None
    derived_forcings: DerivedForcingsConfig = DerivedForcingsConfig()

    @property
    def data_names(self) -> list[str]:
        """Every name that training data must hold."""
        return self.derived_forcings.required_names(self.step.config.all_names)


@dataclass(frozen=True, eq=False)
class Emulator:
    """A step with everything that identifies it: its configuration (statistics inlined), data description, scaling."""

    config: StepperConfig
    step: Step
    info: DatasetInfo
    normalization: Normalization
    derived_forcings: DerivedForcings | None = None

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What training scores."""
        return tuple(self.config.step.config.loss_names)

    @property
    def forcing_names(self) -> tuple[str, ...]:
        """What a window of data must hold to drive the step."""
        return tuple(self.config.derived_forcings.required_names(self.step.forcing_names))

    def to(self, device: torch.device) -> Emulator:
        """Moves step and derived forcings, in place; returns self."""
        self.step.to(device)
        if self.derived_forcings is not None:
            self.derived_forcings.to(device)
        return self

    def divide(self, tiles: Tiles) -> None:
        """From now on the step works on this rank's tile of every field, together with the ranks of the others; in place.

        Raises :class:`ConfigError` for a network that needs more than a tile, or more tiles than rows or columns.
        """
        tiles.of(self.info.grid.shape)
        for network in self.step.networks if tiles.count > 1 else ():
            if not isinstance(network, Divisible):
                raise fail(
                    ConfigError,
                    "parallelism.tiles",
                    f"a network of class {type(network).__name__}, which looks at neighbours across tiles",
                    "SphericalFourierNeuralOperatorNet, NoiseConditionedSFNO, LandNet or MLP",
                    "choose one of these, or train without tiles: more ranks then share the samples of a batch",
                )
        divide(self.step, tiles)
        if self.derived_forcings is not None:
            divide(self.derived_forcings, tiles)

    def context(
        self, labels: Sequence[Sequence[str]] | None, rows: Sequence[int], device: torch.device, members: int = 1
    ) -> Context:
        """Of a batch's rows at step 0. labels: of every sample. rows: whose noise (:func:`ace_core.seeding.row_seed`), ``members``
        of each sample beside each other.

        Raises :class:`DataError` for labels that the emulator does not know, or none where it needs them.
        """
        encoded = self._encoded(labels)
        if encoded is not None:
            encoded = encoded.repeat_interleave(members, dim=0).to(device)
        return Context(encoded, NoiseKey(tuple(rows), 0))

    def _encoded(self, samples: Sequence[Sequence[str]] | None) -> Tensor | None:
        known = self.info.labels
        if not known and not samples:
            return None
        if not known or samples is None:
            have = "labels" if samples else "no labels"
            expected = f"labels out of {', '.join(known)}" if known else "none: the emulator was trained without"
            raise fail(DataError, "data", have, expected, "correct `labels` of the data set in the configuration")
        unknown = sorted({label for labels in samples for label in labels} - set(known))
        if unknown:
            raise fail(DataError, "data", f"labels {', '.join(unknown)}", f"labels out of {', '.join(known)}")
        return torch.tensor([[float(label in labels) for label in known] for labels in samples])

    def drive(self, batch: Batch) -> Batch:
        """The batch, on the emulator's device, with what is derived from its times."""
        return batch if self.derived_forcings is None else self.derived_forcings(batch)

    def with_derived(self, before: Fields, window: Fields, forcing: Fields) -> Fields:
        """The fields [B, T, C, Y, X] with all that can be derived from them (:mod:`ace_core.physics.derived`).

        before: [B, C', Y, X] at the time before the window, for tendencies; what it lacks of the window's names is NaN there.
        forcing: [B, 1 + T, C'', Y, X], from the time before on.
        """
        shared = [n for n in window.names if n in before]
        start = torch.full_like(window.tensor[:, :1], math.nan)
        start[:, 0, [window.names.index(n) for n in shared]] = before.select(shared)
        whole = Fields(window.names, torch.cat([start, window.tensor], dim=1))
        info = self.info
        area = torch.from_numpy(info.grid.area_weights).to(window.tensor.device)
        out = derive(whole, info.vertical, float(info.timestep), forcing, area)
        return Fields(out.names, out.tensor[:, 1:])

    def state(self) -> dict[str, Any]:
        """Plain data and tensors, loadable with ``torch.load(weights_only=True)``. networks: one per builder, primary first."""
        return {
            "config": dump(self.config),
            "dataset_info": self.info.state(),
            "networks": [network.state_dict() for network in self.step.networks],
        }

    def load_networks(self, state: dict[str, Any]) -> None:
        """Weights of a :meth:`state`. Raises RuntimeError for tensors that do not fit."""
        for network, weights in zip(self.step.networks, state["networks"], strict=True):
            network.load_state_dict(weights)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.step.parameters())


def build_emulator(config: StepperConfig, info: DatasetInfo, seed: int) -> Emulator:
    """Read the statistics, build the networks with weights drawn from ``seed``. Raises :class:`ConfigError`."""
    step = config.step.config
    normalization = _load_normalization(step)
    inlined = step.with_normalization(normalization.inlined(step.normalization))
    config = config.model_copy(update={"step": config.step.model_copy(update={"config": inlined})})
    return _build(config, info, normalization, seed)


def emulator_from_state(state: dict[str, Any]) -> Emulator:
    """The inverse of :meth:`Emulator.state`."""
    config = StepperConfig.model_validate(state["config"])
    info = DatasetInfo.from_state(state["dataset_info"])
    emulator = _build(config, info, _load_normalization(config.step.config), seed=0)
    emulator.load_networks(state)
    return emulator


def _build(config: StepperConfig, info: DatasetInfo, normalization: Normalization, seed: int) -> Emulator:
    # torch initialises from its global generator only; fork it so that no caller's stream moves.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        step = config.step.config.build(info, normalization, config.input_masking)
    derived = config.derived_forcings.build(info, step.forcing_names)
    return Emulator(config, step, info, normalization, derived)


def _load_normalization(step: StepConfig) -> Normalization:
    return load_normalization(step.normalization, step.normalized_names, step.loss_names, step.tendency_scaled_names)
