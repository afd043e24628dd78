"""What is wrong with a step's configuration is said before anything is built: all of it, each with its key and its name."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from ace_core.config import Source, load, parse
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import ConfigError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.step.args import StepArgs
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.step.single_module import SingleModuleStep
from ace_core.training.train import TrainConfig
from ace_core.vertical import HybridSigma

Keys = dict[str, Any]
NAMES = ["t", "sst", "sun", "co2", "rain", "flux", "extra", "PRESsfc", "specific_total_water_0"]
NORMALIZATION = {"network": {"means": dict.fromkeys(NAMES, 1.0), "stds": dict.fromkeys(NAMES, 2.0)}}
MLP = {"type": "MLP", "config": {"hidden_dim": 4}}
SINGLE: Keys = {
    "builder": MLP,
    "normalization": NORMALIZATION,
    "in_names": ["t", "sst", "sun", "co2"],
    "out_names": ["t", "sst", "rain", "flux"],
}
SECONDARY: Keys = SINGLE | {"secondary_builder": MLP, "secondary_out_names": ["extra"]}
RADIATION: Keys = {
    "builder": MLP,
    "radiation_builder": MLP,
    "normalization": NORMALIZATION,
    "main_prognostic_names": ["t"],
    "shared_forcing_names": ["sun"],
    "radiation_only_forcing_names": ["co2"],
    "radiation_diagnostic_names": ["flux"],
    "main_diagnostic_names": ["rain"],
}
KINDS = {"single_module": SINGLE, "secondary_module": SECONDARY, "separate_radiation": RADIATION}
RESIDUAL = NORMALIZATION | {"residual": NORMALIZATION["network"]}
INFO = DatasetInfo(LatLonGrid.gaussian(3, 4), HybridSigma((0.0, 0.0), (0.0, 1.0)), 21600, "noleap")


def decoder(*names: str) -> Keys:
    return {"secondary_decoder": {"secondary_diagnostic_names": list(names), "network": MLP}}


def ocean(sst: str = "sst", **keys: Any) -> Keys:
    return {"ocean": {"surface_temperature_name": sst, "ocean_fraction_name": "o"} | keys}


def read(kind: str, changes: Keys, multi: Keys | None = None) -> StepperConfig:
    step: Keys = {"type": kind, "config": copy.deepcopy(KINDS[kind]) | changes}
    step["config"] = {k: v for k, v in step["config"].items() if v is not ...}
    if multi is not None:
        step = {"type": "multi_call", "config": {"wrapped_step": step} | multi}
    return parse(StepperConfig, Source("s.yaml", {"step": step}))


def said(kind: str, changes: Keys, multi: Keys | None = None) -> str:
    """The message, everything of it from one attempt."""
    with pytest.raises(ConfigError) as error:
        read(kind, changes, multi)
    return str(error.value)


CALLS: Keys = {"config": {"forcing_name": "co2", "forcing_multipliers": {"_4x": 4.0}, "output_names": ["flux"]}}


def calls(**changes: Any) -> Keys:
    return {"config": CALLS["config"] | changes}


# kind, changes, groups of phrases: every phrase of a group is in the message (the key and the name)
WRONG: dict[str, tuple[str, Keys, list[str]]] = {
    "input twice": ("single_module", {"in_names": ["t", "sun", "sun"], "out_names": ["t"]}, ["in_names", "sun"]),
    "output twice": ("single_module", {"out_names": ["t", "rain", "rain"]}, ["out_names", "rain"]),
    "no inputs": ("single_module", {"in_names": []}, ["in_names"]),
    "prescribed is no output": (
        "single_module",
        {"prescribed_prognostic_names": ["sun"]},
        ["prescribed_prognostic_names", "'sun'"],
    ),
    "prescribed is told by the decoder": (
        "single_module",
        decoder("extra") | {"prescribed_prognostic_names": ["extra"]},
        ["prescribed_prognostic_names", "'extra'"],
    ),
    "prescribed is a secondary output": (
        "secondary_module",
        {"prescribed_prognostic_names": ["extra"]},
        ["prescribed_prognostic_names", "'extra'"],
    ),
    "next-step forcing is no input": (
        "single_module",
        {"next_step_forcing_names": ["sunn"]},
        ["next_step_forcing_names", "'sunn'", "did you mean 'sun'"],
    ),
    "next-step forcing is predicted": (
        "single_module",
        {"next_step_forcing_names": ["t"]},
        ["next_step_forcing_names", "'t'", "predicted"],
    ),
    "next-step forcing of the radiation": (
        "separate_radiation",
        {"next_step_forcing_names": ["flux"]},
        ["next_step_forcing_names", "'flux'"],
    ),
    "decoder diagnostic is an output": (
        "single_module",
        decoder("rain"),
        ["secondary_decoder.secondary_diagnostic_names", "'rain'"],
    ),
    "decoder diagnostic is an input": (
        "single_module",
        decoder("sun"),
        ["secondary_decoder.secondary_diagnostic_names", "'sun'"],
    ),
    "decoder diagnostic twice": (
        "single_module",
        decoder("extra", "extra"),
        ["secondary_diagnostic_names", "extra"],
    ),
    "decoder diagnostic is a secondary output": (
        "secondary_module",
        decoder("extra"),
        ["secondary_decoder.secondary_diagnostic_names", "'extra'"],
    ),
    "decoder without diagnostics": ("single_module", decoder(), ["secondary_diagnostic_names"]),
    "residual of a diagnostic": (
        "single_module",
        {"residual_prediction": {"names": ["t", "rain"]}},
        ["residual_prediction.names", "'rain'"],
    ),
    "residual of a forcing": (
        "single_module",
        {"residual_prediction": {"names": ["sun"]}},
        ["residual_prediction.names", "'sun'"],
    ),
    "residual of nothing": ("single_module", {"residual_prediction": {"names": []}}, ["residual_prediction.names"]),
    "normalized residual without its statistics": (
        "single_module",
        {"residual_prediction": {"normalized": True}},
        ["residual_prediction.normalized", "normalization.residual"],
    ),
    "normalized residual with a loss normalization": (
        "single_module",
        {
            "residual_prediction": {"normalized": True},
            "normalization": NORMALIZATION | {"loss": NORMALIZATION["network"]},
        },
        ["residual_prediction.normalized", "normalization.residual"],
    ),
    "loss and residual statistics": (
        "single_module",
        {"normalization": RESIDUAL | {"loss": NORMALIZATION["network"]}},
        ["normalization", "loss", "residual"],
    ),
    "no statistics": ("single_module", {"normalization": {"network": {}}}, ["normalization.network", "means"]),
    "statistics from two places": (
        "single_module",
        {"normalization": {"network": NORMALIZATION["network"] | {"global_means_path": "a.nc"}}},
        ["normalization.network", "global_means_path", "means"],
    ),
    "removal of a mean of an output only": (
        "single_module",
        {"global_mean_removal": {"kind": "per_channel", "field_names": ["rain"]}},
        ["global_mean_removal.field_names", "'rain'"],
    ),
    "removal of the mean of an output only as reference": (
        "single_module",
        {"global_mean_removal": {"kind": "shared", "reference_field": "rain", "field_names": ["t"]}},
        ["global_mean_removal.reference_field", "'rain'"],
    ),
    "ocean temperature is no input": (
        "single_module",
        ocean("rain"),
        ["ocean.surface_temperature_name", "'rain'", "input"],
    ),
    "ocean temperature is no output": (
        "single_module",
        ocean("sun"),
        ["ocean.surface_temperature_name", "'sun'", "output"],
    ),
    "slab without surface fluxes": (
        "single_module",
        ocean(slab={"mixed_layer_depth_name": "d", "q_flux_name": "q"}),
        ["ocean.slab", "latent_heat_flux", "sfc_up_lw_radiative_flux"],
    ),
    "secondary lists empty": (
        "secondary_module",
        {"secondary_out_names": []},
        ["secondary_out_names", "secondary_residual_out_names", "empty"],
    ),
    "secondary output is an output": (
        "secondary_module",
        {"secondary_out_names": ["rain", "extra"]},
        ["secondary_out_names", "out_names", "rain"],
    ),
    "secondary output twice": (
        "secondary_module",
        {"secondary_out_names": ["extra", "extra"]},
        ["secondary_out_names", "extra"],
    ),
    "secondary output in both lists": (
        "secondary_module",
        {"secondary_out_names": ["extra"], "secondary_residual_out_names": ["extra"]},
        ["secondary_out_names", "secondary_residual_out_names", "extra"],
    ),
    "secondary residual unknown": (
        "secondary_module",
        {"secondary_residual_out_names": ["rein"]},
        ["secondary_residual_out_names", "'rein'"],
    ),
    "secondary residual on an output twice": (
        "secondary_module",
        {"secondary_residual_out_names": ["rain", "rain"]},
        ["secondary_residual_out_names", "rain"],
    ),
    "secondary residual on an input twice": (
        "secondary_module",
        {"out_names": ["t"], "secondary_residual_out_names": ["sst", "sst"]},
        ["secondary_residual_out_names", "sst"],
    ),
    "residual of secondary steps names nothing": (
        "secondary_module",
        {"residual_prediction": {"names": ["t"]}},
        ["residual_prediction"],
    ),
    "missing variables in a step that cannot": (
        "secondary_module",
        {"builder": MLP | {"allow_missing_variables": True}},
        ["allow_missing_variables"],
    ),
    "radiation name in two lists": (
        "separate_radiation",
        {"shared_forcing_names": ["sun", "co2"]},
        ["shared_forcing_names", "radiation_only_forcing_names", "'co2'"],
    ),
    "radiation diagnostic is prognostic": (
        "separate_radiation",
        {"radiation_diagnostic_names": ["flux", "t"]},
        ["radiation_diagnostic_names", "main_prognostic_names", "'t'"],
    ),
    "radiation output in both diagnostics": (
        "separate_radiation",
        {"main_diagnostic_names": ["flux"]},
        ["radiation_diagnostic_names", "main_diagnostic_names", "'flux'"],
    ),
    "radiation name twice in a list": (
        "separate_radiation",
        {"shared_forcing_names": ["sun", "sun"]},
        ["shared_forcing_names", "'sun'"],
    ),
    "radiation has no prescribed prognostics": (
        "separate_radiation",
        {"prescribed_prognostic_names": ["t"]},
        ["prescribed_prognostic_names", "unknown key"],
    ),
    "corrector lacks a variable": (
        "single_module",
        {"corrector": {"force_positive_names": ["snow"]}},
        ["corrector.force_positive_names", "snow"],
    ),
    "corrector lacks many": (
        "single_module",
        {"corrector": {"conserve_dry_air": True}},
        ["corrector.conserve_dry_air", "PRESsfc", "specific_total_water_k"],
    ),
    "energy without forcing": (
        "single_module",
        {"corrector": {"total_energy_budget_correction": {"method": "constant_temperature"}}},
        ["corrector.total_energy_budget_correction", "HGTsfc", "DSWRFtoa", "air_temperature_k"],
    ),
    "corrector and ocean both set": (
        "single_module",
        ocean() | {"corrector": {"force_positive_names": ["rain", "sst"]}},
        ["corrector", "ocean", "sst"],
    ),
    "corrector of a radiation step lacks a variable": (
        "separate_radiation",
        {"corrector": {"force_positive_names": ["snow"]}},
        ["corrector.force_positive_names", "snow"],
    ),
    "layers with a gap under a corrector": (
        "single_module",
        {
            "in_names": ["t", "PRESsfc", "specific_total_water_0", "specific_total_water_2"],
            "out_names": ["t", "PRESsfc", "specific_total_water_0", "specific_total_water_2"],
            "corrector": {"conserve_dry_air": True},
        },
        ["specific_total_water_2"],
    ),
    "unknown corrector": (
        "single_module",
        {"corrector": {"type": "land_corrector", "config": {}}},
        ["corrector", "type"],
    ),
    "disabled epochs outside the config": (
        "single_module",
        {"corrector": {"type": "atmosphere_corrector", "config": {}, "corrector_disabled_epochs": 2}},
        ["corrector_disabled_epochs"],
    ),
    "dropout without kind": ("single_module", {"input_dropout": {"max_masked_vars": 3}}, ["input_dropout", "kind"]),
    "dropout of a step that has none": (
        "secondary_module",
        {"input_dropout": {"kind": "uniform"}},
        ["input_dropout", "unknown key"],
    ),
    "retired training of ensembles": ("single_module", {"crps_training": True}, ["crps_training", "unknown key"]),
    "retired prescriber": ("single_module", {"prescriber": None}, ["prescriber", "unknown key"]),
    "misspelt": ("single_module", {"residual_predictions": True}, ["residual_predictions", "residual_prediction"]),
    "missing builder": ("secondary_module", {"secondary_builder": ...}, ["secondary_builder", "missing"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_mistake(case: str) -> None:
    kind, changes, phrases = WRONG[case]
    read(kind, {})  # nothing else is wrong
    text = said(kind, changes)
    assert "s.yaml step" in text
    for phrase in phrases:
        assert phrase in text, text


CALLED: dict[str, tuple[Keys, list[str]]] = {
    "forcing is no input": (calls(forcing_name="co3"), ["config.forcing_name", "'co3'", "did you mean 'co2'"]),
    "forcing is predicted": (calls(forcing_name="t"), ["config.forcing_name", "'t'", "predicted"]),
    "output unknown": (calls(output_names=["flux", "fluxx"]), ["config.output_names", "'fluxx'"]),
    "output is a forcing": (calls(output_names=["sun"]), ["config.output_names", "'sun'"]),
    "no outputs": (calls(output_names=[]), ["config.output_names"]),
    "no multipliers": (calls(forcing_multipliers={}), ["config.forcing_multipliers"]),
    "variant is the output itself": (calls(forcing_multipliers={"": 2.0}), ["forcing_multipliers", "'flux'"]),
    "variants of one name": (calls(output_names=["flux", "flux"]), ["output_names", "flux"]),
    "loss without calls": ({"config": None}, ["include_multi_call_in_loss", "config"]),
    "unknown key": ({"config": {"forcing": "co2"}}, ["forcing", "unknown key"]),
}


@pytest.mark.parametrize("case", CALLED)
def test_one_mistake_about_several_calls(case: str) -> None:
    changes, phrases = CALLED[case]
    read("single_module", {}, CALLS)
    text = said("single_module", {}, changes)
    for phrase in phrases:
        assert phrase in text, text


@pytest.mark.parametrize("place", ["in_names", "out_names", "ocean"])
def test_a_variants_name_is_taken(place: str) -> None:
    changes = ocean() | {"ocean": {"surface_temperature_name": "sst", "ocean_fraction_name": "flux_4x"}}
    if place != "ocean":
        changes = {place: [*SINGLE[place], "flux_4x"]}
    text = said("single_module", changes, CALLS)
    assert "flux_4x" in text
    assert "forcing_multipliers" in text


def test_several_calls_do_not_nest() -> None:
    inner = {"type": "multi_call", "config": {"wrapped_step": {"type": "single_module", "config": SINGLE} | CALLS}}
    text = said("single_module", {}, {"wrapped_step": inner} | CALLS)
    assert "wrapped_step.type: 'multi_call'" in text
    assert "one of single_module, default, secondary_module, separate_radiation" in text


def test_calls_may_be_unscored_without_config() -> None:
    assert read("single_module", {}, {"config": None, "include_multi_call_in_loss": False}).data_names == [
        *("t", "sst", "sun", "co2"),
        *("rain", "flux"),
    ]
    assert read("single_module", {}, CALLS).data_names[-1] == "flux_4x"
    assert "flux_4x" not in read("single_module", {}, CALLS | {"include_multi_call_in_loss": False}).data_names


def test_all_mistakes_in_one_error() -> None:
    text = said(
        "single_module",
        {
            "in_names": ["t", "sst", "sun", "sun"],
            "next_step_forcing_names": ["t", "moon"],
            "prescribed_prognostic_names": ["snow"],
            "residual_prediction": {"names": ["rain"], "normalized": True},
            "global_mean_removal": {"kind": "per_channel", "field_names": ["flux"]},
            **ocean("u"),
            **decoder("rain", "sun"),
        },
    )
    for phrase in (
        "'sun' is in in_names 2 times",
        "next_step_forcing_names has 't'",
        "next_step_forcing_names has 'moon'",
        "prescribed_prognostic_names has 'snow'",
        "residual_prediction.names has 'rain'",
        "residual_prediction.normalized needs normalization.residual",
        "global_mean_removal.field_names has 'flux'",
        "ocean.surface_temperature_name 'u' is not among the inputs",
        "ocean.surface_temperature_name 'u' is not among the outputs",
        "'rain' is in out_names and secondary_decoder.secondary_diagnostic_names",
        "secondary_diagnostic_names has 'sun'",
    ):
        assert phrase in text, text


def test_what_the_corrector_lacks_is_said_with_the_other_mistakes() -> None:
    text = said(
        "single_module",
        {
            "next_step_forcing_names": ["moon"],
            "corrector": {"force_positive_names": ["snow"], "conserve_dry_air": True},
        },
    )
    for phrase in ("'moon'", "corrector.force_positive_names needs snow", "corrector.conserve_dry_air needs PRESsfc"):
        assert phrase in text, text


def test_mistakes_of_other_kinds_together() -> None:
    text = said(
        "separate_radiation",
        {
            "main_diagnostic_names": ["t", "rain"],
            "radiation_only_forcing_names": ["sun", "co2"],
            "next_step_forcing_names": ["rain"],
        },
    )
    for phrase in (
        "'t' is in main_prognostic_names and main_diagnostic_names",
        "'sun' is in shared_forcing_names and radiation_only_forcing_names",
        "next_step_forcing_names has 'rain'",
    ):
        assert phrase in text, text
    text = said(
        "secondary_module",
        {"secondary_out_names": ["t"], "secondary_residual_out_names": ["u", "v"], "next_step_forcing_names": ["w"]},
    )
    for phrase in ("secondary_out_names", "'u'", "'v'", "'w'"):
        assert phrase in text, text
    multi = calls(forcing_name="t", output_names=["u", "v"])
    text = said("single_module", {}, multi)
    for phrase in ("'t' is predicted", "'u'", "'v'"):
        assert phrase in text, text


def test_the_same_mistakes_with_a_file_and_a_line(tmp_path: Path) -> None:
    """Tags of unions are no keys of the file; the line is the nearest key's."""
    path = tmp_path / "s.yaml"
    path.write_text(
        """step:
  type: multi_call
  config:
    include_multi_call_in_loss: false
    wrapped_step:
      type: secondary_module
      config:
        builder: {type: MLP}
        secondary_builder: {type: MLP, config: {hidden: 3}}
        normalization: {network: {means: {t: 0.0}, stds: {t: 1.0}}}
        in_names: [t]
        out_names: [t]
        secondary_out_name: [q]
"""
    )
    with pytest.raises(ConfigError) as error:
        load(StepperConfig, path)
    where = [p.where.removeprefix(f"{path}:") for p in error.value.problems]
    prefix = "step.config.wrapped_step.config"
    assert where == [
        f"9 {prefix}.secondary_builder.config.hidden",
        f"13 {prefix}.secondary_out_name",
    ]
    assert [p.fix for p in error.value.problems] == [
        "did you mean 'hidden_dim'?",
        "did you mean 'secondary_out_names'?",
    ]


# --- known only with the data


def build(kind: str = "single_module", multi: Keys | None = None, info: DatasetInfo = INFO, **changes: Any) -> Emulator:
    return build_emulator(read(kind, changes, multi), info, seed=3)


WATER: Keys = {
    "in_names": ["t", "PRESsfc", "specific_total_water_0"],
    "out_names": ["t", "PRESsfc", "specific_total_water_0"],
    "corrector": {"conserve_dry_air": True},
}


def test_a_corrector_of_columns_needs_a_vertical_coordinate_that_fits() -> None:
    build(**WATER)
    with pytest.raises(ConfigError, match=r"conserve_dry_air: the data have no vertical coordinate"):
        build(**WATER, info=DatasetInfo(INFO.grid, None, 21600, "noleap"))
    two = HybridSigma((0.0, 1e3, 0.0), (0.0, 0.5, 1.0))
    with pytest.raises(ConfigError, match="1 layers of specific_total_water") as error:
        build(**WATER, info=DatasetInfo(INFO.grid, two, 21600, "noleap"))
    assert len(error.value.problems) == 2


def test_input_masking_needs_masks() -> None:
    config = read("single_module", {})
    masked = config.model_validate({"step": config.step.model_dump(), "input_masking": {"mask_value": 0}})
    with pytest.raises(ConfigError, match=r"stepper\.input_masking: the data hold no masks"):
        build_emulator(masked, INFO, 0)


def test_statistics_of_every_name_that_needs_them() -> None:
    """Decoder diagnostics and secondary outputs like the others; variants only where they are scored, in their own units."""
    with pytest.raises(ConfigError) as error:
        build(**decoder("heating", "snow"), in_names=["t", "sst", "moon"])
    text = str(error.value)
    for name in ("heating", "snow", "moon"):
        assert f"normalization.network: no statistics for '{name}'" in text
    assert len(error.value.problems) == 3
    with pytest.raises(ConfigError, match="no statistics for 'flux_4x'") as error:
        build(multi=CALLS)
    assert len(error.value.problems) == 1
    build(multi=CALLS | {"include_multi_call_in_loss": False})
    scored = dict.fromkeys([*NAMES, "flux_4x"], 1.0)
    build(multi=CALLS, normalization=NORMALIZATION | {"loss": {"means": scored, "stds": scored}})


def test_moisture_budget_without_zero_mean_advection_is_a_warning_only(caplog: pytest.LogCaptureFixture) -> None:
    names = ["t", "PRESsfc", "specific_total_water_0"]
    more = [*names, "PRATEsfc", "LHTFLsfc", "tendency_of_total_water_path_due_to_advection"]
    values = dict.fromkeys(more, 1.0)
    keys: Keys = {
        "in_names": names,
        "out_names": more,
        "normalization": {"network": {"means": values, "stds": values}},
    }
    budget = {"moisture_budget_correction": "advection_and_precipitation"}
    with caplog.at_level(logging.WARNING, "ace"):
        build(**keys, corrector=budget | {"zero_global_mean_moisture_advection": True})
        assert not caplog.records
        read("single_module", keys | {"corrector": budget})
        emulator = build(**keys, corrector=budget)
    assert emulator.step.corrector_enabled
    (record,) = caplog.records
    assert "moisture_budget_correction" in record.getMessage()
    assert "zero_global_mean_moisture_advection" in record.getMessage()


# --- the whole training

TRAIN = Path("configs/planet/train.yaml")


def trained(*overrides: str) -> TrainConfig:
    return load(TrainConfig, TRAIN, overrides, {"data": "nowhere"})


def test_loss_weights_and_corrector_loss_are_checked_against_the_step() -> None:
    trained("stepper_training.loss.weights.TMP2m=2")
    with pytest.raises(ConfigError) as error:
        trained(
            "stepper_training.loss.weights.TMP3m=2",
            "stepper_training.loss.weights.HGTsfc=2",
            "stepper_training.corrector_loss={regularization: {weight: 1.0}}",
            "stepper_training.parameter_init.parameters=[{}, {}]",
        )
    text = str(error.value)
    for phrase in (
        "stepper_training.loss.weights: 'TMP3m'",
        "did you mean 'TMP2m'",
        "'HGTsfc'",
        "stepper_training.corrector_loss: the step has no corrector",
        "stepper_training.parameter_init.parameters has 2 entries for 1 network",
    ):
        assert phrase in text, text
    corrected = "stepper.step.config.corrector={force_positive_names: [PRATEsfc]}"
    trained("stepper_training.corrector_loss={regularization: {weight: 1.0}}", corrected)
    with pytest.raises(ConfigError, match=r"exclude_names_and_prefixes: 'PRATE_sfc' matches no output"):
        trained(
            "stepper_training.corrector_loss={precorrector_optimization: {exclude_names_and_prefixes: [PRATE_sfc]}}",
            corrected,
        )


def test_weights_of_variants_are_legal_only_where_variants_are_scored() -> None:
    def multi(included: str) -> list[str]:
        step = trained().stepper.step.model_dump(mode="json")
        step["config"]["in_names"].append("global_mean_co2")
        config = {
            "wrapped_step": step,
            "config": {
                "forcing_name": "global_mean_co2",
                "forcing_multipliers": {"_4x": 4.0},
                "output_names": ["ULWRFtoa"],
            },
            "include_multi_call_in_loss": included == "true",
        }
        return [f"stepper.step={ {'type': 'multi_call', 'config': config} }".replace("None", "null")]

    weight = "stepper_training.loss.weights.ULWRFtoa_4x=0.5"
    trained(*multi("true"), weight)
    with pytest.raises(ConfigError, match=r"weights: 'ULWRFtoa_4x' is not predicted"):
        trained(*multi("false"), weight)


def test_the_planets_training_takes_every_correction() -> None:
    """Names of the demo: what its data and outputs lack for a correction is said by name."""
    with pytest.raises(ConfigError) as error:
        trained("stepper.step.config.corrector={moisture_budget_correction: advection_and_precipitation}")
    assert "tendency_of_total_water_path_due_to_advection in the output" in str(error.value)
    trained("stepper.step.config.corrector={moisture_budget_correction: precipitation, conserve_dry_air: true}")
    with pytest.raises(ConfigError) as error:
        trained("stepper.step.config.corrector={force_positive_names: [surface_temperature]}")
    assert "corrector and ocean both set surface_temperature" in str(error.value)


# --- defaults

OLD: Keys = {
    "builder": {"type": "MLP", "config": {"hidden_dim": 4}},
    "normalization": NORMALIZATION,
    "in_names": ["sun", "t", "sst"],
    "out_names": ["rain", "sst", "t"],
    "ocean": {"surface_temperature_name": "sst", "ocean_fraction_name": "o"},
    "next_step_forcing_names": ["sun"],
}
NEW: Keys = {
    "secondary_decoder": None,
    "prescribed_prognostic_names": [],
    "global_mean_removal": None,
    "include_channel_mask_inputs": False,
    "input_dropout": None,
    "corrector": {},
}


def args() -> StepArgs:
    def draw(*names: str) -> Fields:
        return Fields(names, torch.randn(2, len(names), 3, 4, generator=generator))

    generator = torch.Generator().manual_seed(0)
    return StepArgs(draw("t", "sst"), draw("sun", "sst", "o"), draw("sun", "sst", "o"))


@pytest.mark.parametrize("residual", [None, False, True])
def test_an_old_configuration_builds_the_same_step(residual: bool | None) -> None:
    """Without the new keys, with each of them at its default, and as ``default`` step or in a multi_call that calls once."""
    old = OLD if residual is None else OLD | {"residual_prediction": residual}
    written = old | NEW | ({"residual_prediction": None} if residual is None else {})
    steps = [
        {"type": "single_module", "config": old},
        {"type": "default", "config": written},
        {
            "type": "multi_call",
            "config": {
                "wrapped_step": {"type": "single_module", "config": old},
                "config": None,
                "include_multi_call_in_loss": False,
            },
        },
    ]
    built = [build_emulator(StepperConfig.model_validate({"step": s}), INFO, seed=3) for s in steps]
    out = [emulator.step.train()(args()) for emulator in built]
    for emulator, o in zip(built, out):
        step = emulator.step
        assert type(step) is SingleModuleStep
        assert step.packed_names == ("sun", "t", "sst")
        assert (step.corrector, step.global_mean, step.input_masking, step.output_masking) == (None,) * 4
        assert (step.has_input_dropout, step.corrector_enabled, step.indicators) == (False,) * 3
        assert (o.before_corrector, o.corrected_names, o.stepper_state.to_plain()) == (None, (), {"corrector": {}})
        assert torch.equal(o.output.tensor, out[0].output.tensor)
    # By hand: normalise, call, denormalise or add, prescribe.
    a = args()
    x = torch.stack([a.next_forcing["sun"], a.state["t"], a.state["sst"]], dim=1)
    y = 2.0 * built[0].step.networks[0]((x - 1.0) / 2.0)
    base = [torch.ones(2, 3, 4)] + ([a.state["sst"], a.state["t"]] if residual else [torch.ones(2, 3, 4)] * 2)
    expected = y + torch.stack(base, dim=1)
    sea = a.next_forcing["o"].round() == 1
    assert 0 < int(sea.sum()) < 24
    expected[:, 1] = torch.where(sea, a.next_forcing["sst"], expected[:, 1])
    torch.testing.assert_close(out[0].output.tensor, expected, rtol=1e-5, atol=1e-5)


def test_residual_names_default_to_the_prognostics_and_narrow_the_losses_scale() -> None:
    """Naming a subset also narrows the loss that is scaled by one-step changes to it."""
    steps = {
        "network": NORMALIZATION["network"],
        "residual": {"means": dict.fromkeys(NAMES, 0.0), "stds": dict.fromkeys(NAMES, 0.5)},
    }
    expected: list[tuple[Keys, set[str], set[str]]] = [
        ({}, set(), {"t", "sst"}),
        ({"residual_prediction": True}, {"t", "sst"}, {"t", "sst"}),
        ({"residual_prediction": {"names": ["t"]}}, {"t"}, {"t"}),
        ({"residual_prediction": {"names": ["t"], "normalized": True}}, {"t"}, {"t"}),
    ]
    for keys, predicted, scaled in expected:
        emulator = build(**keys, normalization=steps)
        step = emulator.step
        mask = step.residual_mask[:, 0, 0].tolist()
        assert {n for n, m in zip(step.out_names, mask) if m} == predicted
        loss = emulator.normalization.loss.stds
        assert {n for n, s in loss.items() if s == 0.5} == scaled
        assert {s for n, s in loss.items() if n not in scaled} == {2.0}
        normalized = isinstance(keys.get("residual_prediction"), dict) and "normalized" in keys["residual_prediction"]
        unit = dict(zip(step.out_names, step.out_std[:, 0, 0].tolist()))
        assert unit == {n: 0.5 if normalized and n in predicted else 2.0 for n in step.out_names}
