"""Steps of several networks, built from configurations; numbers from affine networks (an MLP of depth 1)."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ace_core.dataset_info import DatasetInfo
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.models.mlp import PointwiseMLP
from ace_core.physics.corrector.state import CorrectorState
from ace_core.seeding import generator
from ace_core.step.args import StepArgs, StepperState
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator, emulator_from_state
from ace_core.step.global_mean import PerChannelGlobalMeanRemovalConfig
from ace_core.step.multi_call import MultiCallStep, variant_name
from ace_core.step.networks import PrimaryWith, RadiationThenMain, SecondaryDecoder, SecondaryNetwork
from ace_core.step.normalizer import Scaling
from ace_core.step.single_module import Residual, SingleModuleStep
from ace_core.vertical import HybridSigma

PS, Q = "PRESsfc", "specific_total_water_0"
MEANS = {"t": 250.0, "sst": 280.0, "sun": 300.0, "co2": 400.0, "rain": 2.0, "flux": 100.0, "heating_3": 0.0}
STDS = {"t": 5.0, "sst": 10.0, "sun": 100.0, "co2": 100.0, "rain": 4.0, "flux": 50.0, "heating_3": 2.0}
MEANS |= {PS: 1e5, Q: 0.01}
STDS |= {PS: 1e3, Q: 0.01}
SCALING = Scaling(MEANS, STDS)
INFO = DatasetInfo(LatLonGrid.gaussian(4, 6), HybridSigma((0.0, 0.0), (0.0, 1.0)), 21600, "noleap")
LINEAR = {"type": "MLP", "config": {"depth": 1}}
SMALL = {"type": "MLP", "config": {"hidden_dim": 8, "depth": 2}}


def build(kind: str, config: dict[str, Any], multi: dict[str, Any] | None = None, seed: int = 0) -> Emulator:
    """multi: the calls of a multi_call around it, whose variants are not scored (so they need no statistics)."""
    normalization = {"network": {"means": MEANS, "stds": STDS}}
    step: dict[str, Any] = {"type": kind, "config": {"normalization": normalization, **config}}
    if multi is not None:
        inner = {"wrapped_step": step, "config": multi, "include_multi_call_in_loss": False}
        step = {"type": "multi_call", "config": inner}
    return build_emulator(StepperConfig.model_validate({"step": step}), INFO, seed)


def affine(network: nn.Module, matrix: list[list[float]], bias: list[float]) -> nn.Module:
    """Weights of a network of depth 1 [n_out, n_in]: the shapes must be those of the network."""
    weight, offset = dict(network.named_parameters()).values()
    new = torch.tensor(matrix), torch.tensor(bias)
    assert (weight.shape, offset.shape) == (new[0].shape, new[1].shape)
    weight.data, offset.data = new
    return network


def constant(**values: float) -> Fields:
    return Fields(tuple(values), torch.stack([torch.full((2, 4, 6), v) for v in values.values()], dim=1))


def random(names: tuple[str, ...], seed: int, batch: int = 2) -> Fields:
    x = torch.randn(batch, len(names), 4, 6, generator=torch.Generator().manual_seed(seed))
    # Half a standard deviation: water stays positive enough to be water.
    return Fields(names, SCALING.mean(names)[:, None, None] + 0.5 * SCALING.std(names)[:, None, None] * x)


def random_args(step: Any, seed: int, **others: Any) -> StepArgs:
    forcing = (random(step.forcing_names, seed + i) for i in (1, 2))
    return StepArgs(random(step.prognostic_names, seed), *forcing, **others)


def assert_constant(out: Fields, **values: float) -> None:
    assert out.names == tuple(values)
    for name, value in values.items():
        torch.testing.assert_close(out[name], torch.full_like(out[name], value))


def gradients(network: nn.Module, of: Tensor) -> list[Tensor]:
    """Of every parameter; 0 where none arrives."""
    parameters = list(network.parameters())
    found = torch.autograd.grad(of, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def linear(n_in: int, n_out: int) -> nn.Module:
    return PointwiseMLP(n_in, n_out, depth=1)


class Recorder(nn.Module):
    """Keeps what it is given, channels last, and answers the channel numbers from ``first`` on."""

    def __init__(self, n_out: int, first: float = 0.0) -> None:
        super().__init__()
        self.answer = torch.arange(n_out) + first

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().permute(0, 2, 3, 1).clone()
        return self.answer[:, None, None].expand(len(x), -1, *x.shape[2:]).clone()


# --- secondary decoder

DECODED: dict[str, Any] = {
    "builder": LINEAR,
    "in_names": ["t", "sun"],
    "out_names": ["t", "flux"],
    "secondary_decoder": {"secondary_diagnostic_names": ["rain", "heating_3"], "network": LINEAR},
}


def decoded(**keys: Any) -> Emulator:
    emulator = build("single_module", DECODED | keys)
    primary, decoder = emulator.step.networks
    affine(primary, [[2.0, 1.0], [0.0, 1.0]], [0.0, 0.5])
    affine(decoder, [[3.0, 0.0], [1.0, -2.0]], [-1.0, 0.0])
    return emulator


ONE_EACH = StepArgs(constant(t=255.0), constant(sun=400.0), constant(sun=400.0))  # 1, 1 normalised


def test_decoder_tells_diagnostics_from_the_primary_output() -> None:
    # primary 2 + 1 = 3, 1.5; decoder 3 * 3 - 1 = 8, 3 - 2 * 1.5 = 0
    out = decoded().step(ONE_EACH).output
    assert_constant(out, t=250.0 + 15, flux=100.0 + 75, rain=2.0 + 32, heating_3=0.0)
    # It sees what the network says, not what the residual makes of it; its diagnostics are full fields.
    out = decoded(residual_prediction=True).step(ONE_EACH).output
    assert_constant(out, t=255.0 + 15, flux=175.0, rain=34.0, heating_3=0.0)


def test_decoder_gives_the_primary_network_no_gradient() -> None:
    emulator = decoded()
    primary, decoder = emulator.step.networks
    out = emulator.step(ONE_EACH).output
    diagnostics = out.select(["rain", "heating_3"]).mean(dim=(0, 2, 3)).sum()
    assert all(not g.any() for g in gradients(primary, diagnostics))
    # d rain / d weight = 4 * (3, 1.5), d heating / d weight = 2 * (3, 1.5)
    weight, bias = gradients(decoder, diagnostics)
    torch.testing.assert_close(weight, torch.tensor([[12.0, 6.0], [6.0, 3.0]]))
    torch.testing.assert_close(bias, torch.tensor([4.0, 2.0]))
    # What is scored of both at once is what is scored of the primary outputs alone.
    alone = gradients(primary, out.select(["t", "flux"]).mean())
    for both, one in zip(gradients(primary, out.select(["t", "flux"]).mean() + diagnostics), alone, strict=True):
        assert torch.equal(both, one)
    assert float(alone[0].abs().min()) > 0
    assert all(not g.any() for g in gradients(decoder, out["t"].mean()))


@pytest.mark.parametrize("include", [False, True])
def test_decoder_sees_the_whole_packed_input_indicators_included(include: bool) -> None:
    removal = PerChannelGlobalMeanRemovalConfig(field_names=["t"], append_as_input=True)
    primary, network = Recorder(2, first=5.0), Recorder(1)
    step = SingleModuleStep(
        PrimaryWith(primary, None, SecondaryDecoder(network, include)),
        ["t", "sun"],
        ["t", "flux", "rain"],
        SCALING,
        global_mean=removal.build(["t", "sun"], ["t", "flux", "rain"], SCALING),
        include_channel_mask_inputs=True,
    )
    step(
        replace(
            random_args(step, 0),
            data_mask=torch.tensor([[True, False], [True, True]]),
            input_dropout_mask=torch.tensor([[True, True, True], [False, True, True]]),
        )
    )
    # [t, sun, mean of t, mask t, mask sun, mask of the mean]
    assert primary.seen.shape[-1] == 6
    assert primary.seen[:, 0, 0, 3:].tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    said = torch.tensor([5.0, 6.0]).expand(2, 4, 6, 2)
    assert torch.equal(network.seen, torch.cat([said, primary.seen], dim=-1) if include else said)


def test_decoder_of_the_configuration_has_the_width_of_the_packed_input() -> None:
    decoder = {"secondary_diagnostic_names": ["rain"], "network": SMALL, "include_input_step": True}
    removal = {"kind": "per_channel", "append_as_input": True}
    config = DECODED | {"secondary_decoder": decoder, "include_channel_mask_inputs": True}
    step = build("single_module", config | {"global_mean_removal": removal}).step
    widths = [next(p for p in n.parameters() if p.ndim == 2).shape[1] for n in step.networks]
    assert widths == [2 * (2 + 2), 2 + 2 * (2 + 2)]


def test_no_gradient_through_the_input_that_the_decoder_sees() -> None:
    decoder = {"secondary_diagnostic_names": ["rain"], "network": SMALL, "include_input_step": True}
    step = build("single_module", DECODED | {"secondary_decoder": decoder}).step
    args = random_args(step, 1)
    args.state.tensor.requires_grad_()
    out = step(args).output
    through = {
        n: torch.autograd.grad(out[n].sum(), args.state.tensor, retain_graph=True)[0].any() for n in ("t", "rain")
    }
    assert through == {"t": True, "rain": False}


# --- secondary module

SECONDARY: dict[str, Any] = {
    "builder": LINEAR,
    "secondary_builder": LINEAR,
    "in_names": ["sun", "t", "sst"],
    "out_names": ["t", "rain"],
    "secondary_out_names": ["flux"],
    "secondary_residual_out_names": ["sst", "rain"],
}
SECONDARY_ARGS = StepArgs(constant(t=255.0, sst=300.0), constant(sun=400.0), constant(sun=0.0))  # sun 1, t 1, sst 2


def secondary(**keys: Any) -> Emulator:
    emulator = build("secondary_module", SECONDARY | keys)
    primary, network = emulator.step.networks[:2]
    affine(primary, [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.5, 0.0])
    # its channels: flux, then the residuals sst, rain as listed; it sees the same input
    affine(network, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [0.0, -1.5, 0.25])
    return emulator


def test_secondary_outputs_by_hand() -> None:
    """primary: t 1.5, rain 2; secondary: flux 1, sst input 2 + (1 - 1.5), rain 2 + 0.25. Order: out, full, residual on input."""
    emulator = secondary()
    out = emulator.step(SECONDARY_ARGS).output
    assert_constant(out, t=257.5, rain=2.0 + 9, flux=150.0, sst=280.0 + 15)
    assert emulator.step.out_names == emulator.loss_names == ("t", "rain", "flux", "sst")
    assert emulator.step.prognostic_names == ("t", "sst")
    assert emulator.step.forcing_names == ("sun",)


def test_secondary_residual_on_an_output_that_is_itself_a_residual() -> None:
    emulator = build(
        "secondary_module",
        SECONDARY
        | {"secondary_out_names": [], "secondary_residual_out_names": ["rain", "t"], "residual_prediction": True},
    )
    primary, network = emulator.step.networks
    affine(primary, [[0.0] * 3] * 2, [0.5, 1.0])
    affine(network, [[0.0] * 3] * 2, [2.0, 0.25])
    forcing = constant(sun=400.0, sst=300.0)
    out = emulator.step(StepArgs(constant(t=255.0), forcing, forcing)).output
    assert_constant(out, t=255.0 + 5 * 0.75, rain=2.0 + 4 * 3)


def test_secondary_gradients_reach_whom_they_should() -> None:
    """Per output, d mean / d bias of the primary (t, rain) and of the secondary network (flux, sst, rain)."""
    emulator = secondary()
    primary, network = emulator.step.networks
    out = emulator.step(SECONDARY_ARGS).output
    expected = {
        "t": ([5.0, 0.0], [0.0, 0.0, 0.0]),
        "rain": ([0.0, 4.0], [0.0, 0.0, 4.0]),
        "flux": ([0.0, 0.0], [50.0, 0.0, 0.0]),
        "sst": ([0.0, 0.0], [0.0, 10.0, 0.0]),
    }
    for name, wanted in expected.items():
        for part, bias in zip((primary, network), wanted, strict=True):
            torch.testing.assert_close(gradients(part, out[name].mean())[1], torch.tensor(bias))


def test_secondary_with_decoder_and_prescribed() -> None:
    """The decoder tells from the primary network's output alone, and comes last."""
    keys = {"secondary_decoder": {"secondary_diagnostic_names": ["heating_3"], "network": LINEAR}}
    emulator = secondary(**keys, prescribed_prognostic_names=["t"])
    affine(emulator.step.networks[2], [[1.0, 10.0]], [0.0])
    args = replace(SECONDARY_ARGS, next_forcing=constant(sun=0.0, t=222.0))
    # primary 1.5 and 2 (without the secondary network's 0.25)
    out = emulator.step(args).output
    assert_constant(out, t=222.0, rain=11.0, flux=150.0, sst=295.0, heating_3=2 * 21.5)
    assert emulator.step.forcing_names == ("sun", "t")


# --- separate radiation

RADIATION: dict[str, Any] = {
    "builder": LINEAR,
    "radiation_builder": LINEAR,
    "main_prognostic_names": ["t", "sst"],
    "shared_forcing_names": ["sun"],
    "radiation_only_forcing_names": ["co2"],
    "radiation_diagnostic_names": ["flux"],
    "main_diagnostic_names": ["rain"],
}
RADIATION_ARGS = StepArgs(
    constant(sst=300.0, t=255.0), constant(sun=600.0, co2=800.0), constant(sun=0.0, co2=0.0)
)  # t 1, sst 2, sun 3, co2 4


def radiation(**keys: Any) -> Emulator:
    emulator = build("separate_radiation", RADIATION | keys)
    main, network = emulator.step.networks
    affine(network, [[0.001, 0.01, 0.1, 1.0]], [0.0])  # of t, sst, sun, co2
    affine(main, [[1.0, 0.0, 0.0, 10.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], [0.0, 0.0, 0.0])
    return emulator


@pytest.mark.parametrize("detach", [False, True])
def test_which_channels_each_radiation_network_sees(detach: bool) -> None:
    """flux 4.321 of (t, sst, sun, co2); main of (t, sst, sun, flux): t 1 + 43.21, sst 2, rain 3 + 4.321."""
    emulator = radiation(detach_radiation=detach)
    out = emulator.step(RADIATION_ARGS).output
    assert_constant(out, t=250.0 + 5 * 44.21, sst=300.0, rain=2.0 + 4 * 7.321, flux=100.0 + 50 * 4.321)
    assert emulator.step.in_names == ("t", "sst", "sun", "co2")
    assert emulator.step.prognostic_names == ("t", "sst")


def test_radiation_residual_is_on_the_prognostics() -> None:
    out = radiation(residual_prediction=True).step(RADIATION_ARGS).output
    assert_constant(out, t=255.0 + 5 * 44.21, sst=320.0, rain=31.284, flux=316.05)


def test_detach_cuts_exactly_the_main_loss_from_the_radiation_network() -> None:
    found = {}
    for detach in (False, True):
        emulator = radiation(detach_radiation=detach)
        main, network = emulator.step.networks
        out = emulator.step(RADIATION_ARGS).output
        losses = {"main": out.select(["t", "sst", "rain"]).mean(dim=(0, 2, 3)).sum(), "own": out["flux"].mean()}
        found[detach] = {k: (gradients(main, x), gradients(network, x)) for k, x in losses.items()}
        found[detach]["both"] = (gradients(main, sum(losses.values())), gradients(network, sum(losses.values())))
    for part in (0, 1):
        for a, b in zip(found[False]["own"][part], found[True]["own"][part], strict=True):
            assert torch.equal(a, b)
    for a, b in zip(found[False]["main"][0], found[True]["main"][0], strict=True):
        assert torch.equal(a, b)
        assert a.abs().sum() > 0
    # d flux / d bias = 50; d (t + sst + rain) / d bias = 5 * 10 + 4 * 1
    assert found[True]["own"][1][1].item() == pytest.approx(50.0)
    assert found[False]["main"][1][1].item() == pytest.approx(54.0)
    assert not any(g.any() for g in found[True]["main"][1])
    for cut, own in zip(found[True]["both"][1], found[True]["own"][1], strict=True):
        torch.testing.assert_close(cut, own)
    assert found[False]["both"][1][1].item() == pytest.approx(104.0)


def test_the_radiation_network_gives_its_input_a_gradient_unless_detached() -> None:
    """d mean(t) / d t per cell: 1 + 10 * 0.001 of which the second part goes through the radiation."""
    for detach, slope in ((False, 1.01), (True, 1.0)):
        step = radiation(detach_radiation=detach).step
        state = Fields(RADIATION_ARGS.state.names, RADIATION_ARGS.state.tensor.clone().requires_grad_())
        (g,) = torch.autograd.grad(step(replace(RADIATION_ARGS, state=state)).output["t"].sum(), state.tensor)
        torch.testing.assert_close(g[:, 1], torch.full((2, 4, 6), slope))


# --- several calls

CALLS = {
    "forcing_name": "co2",
    "forcing_multipliers": {"_halved_co2": 0.5, "_4x": 4.0},
    "output_names": ["flux", "heating_3"],
}
CORRECTED = {"corrector": {"conserve_dry_air": True, "force_positive_names": ["rain"]}}
WRAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "single": (
        "single_module",
        {
            "builder": SMALL,
            "in_names": ["co2", "t", PS, Q, "sun"],
            "out_names": ["heating_3", PS, Q, "flux", "t", "rain"],
            "residual_prediction": True,
            "global_mean_removal": {"kind": "per_channel", "field_names": ["t"], "append_as_input": True},
            "include_channel_mask_inputs": True,
            "input_dropout": {"kind": "per_variable", "rate": 0.5},
            **CORRECTED,
        },
    ),
    "decoder": (
        "default",
        {
            "builder": SMALL,
            "in_names": ["t", "co2", PS, Q],
            "out_names": ["flux", PS, Q, "t", "rain"],
            "secondary_decoder": {
                "secondary_diagnostic_names": ["heating_3"],
                "network": SMALL,
                "include_input_step": True,
            },
            **CORRECTED,
        },
    ),
    "secondary": (
        "secondary_module",
        {
            "builder": SMALL,
            "secondary_builder": SMALL,
            "in_names": [PS, Q, "t", "co2"],
            "out_names": [PS, Q, "rain"],
            "secondary_out_names": ["heating_3", "flux"],
            "secondary_residual_out_names": ["t", "rain"],
            **CORRECTED,
        },
    ),
    "radiation": (
        "separate_radiation",
        {
            "builder": SMALL,
            "radiation_builder": SMALL,
            "main_prognostic_names": ["t", PS, Q],
            "shared_forcing_names": ["sun"],
            "radiation_only_forcing_names": ["co2"],
            "radiation_diagnostic_names": ["flux", "heating_3"],
            "main_diagnostic_names": ["rain"],
            "residual_prediction": True,
            **CORRECTED,
        },
    ),
}


def called(name: str, seed: int = 0, **keys: Any) -> Emulator:
    kind, config = WRAPPED[name]
    return build(kind, config | keys, CALLS, seed)


@pytest.mark.parametrize(
    ("name", "suffix", "expected"),
    [
        ("ULWRFtoa", "_quadrupled_co2", "ULWRFtoa_quadrupled_co2"),
        ("heating_3", "_quadrupled_co2", "heating_quadrupled_co2_3"),
        ("heating_12", "_x", "heating_x_12"),
        ("h500", "_x", "h500_x"),
        ("TMP_2m", "_x", "TMP_2m_x"),
        ("a_1_b_07", "_x", "a_1_b_x_07"),
        ("heating_3_", "_x", "heating_3__x"),
    ],
)
def test_the_suffix_goes_before_the_level(name: str, suffix: str, expected: str) -> None:
    assert variant_name(name, suffix) == expected


def scaled(args: StepArgs, factor: float) -> StepArgs:
    def scale(fields: Fields) -> Fields:
        tensor = fields.tensor.clone()
        tensor[:, fields.names.index("co2")] *= factor
        return Fields(fields.names, tensor)

    return replace(args, forcing=scale(args.forcing), next_forcing=scale(args.next_forcing))


@pytest.mark.parametrize("later", [[], ["co2"]], ids=["now", "next step"])
@pytest.mark.parametrize("name", WRAPPED)
def test_variants_are_the_outputs_of_the_wrapped_step_with_the_forcing_scaled(name: str, later: list[str]) -> None:
    step = called(name, next_step_forcing_names=later).step
    assert isinstance(step, MultiCallStep)
    wrapped = step.wrapped
    assert step.out_names == (
        *wrapped.out_names,
        "flux_halved_co2",
        "heating_halved_co2_3",
        "flux_4x",
        "heating_4x_3",
    )
    assert (step.in_names, step.prognostic_names) == (wrapped.in_names, wrapped.prognostic_names)
    assert (step.forcing_names, step.packed_names) == (wrapped.forcing_names, wrapped.packed_names)
    reference = StepperState(CorrectorState(torch.tensor([9.7e4, 9.9e4], dtype=torch.float64)[:, None, None]))
    args = random_args(step, 3, stepper_state=reference)
    out, plain = step(args), wrapped(args)
    assert out.output.names == step.out_names
    close = {"rtol": 1e-6, "atol": 1e-4}
    torch.testing.assert_close(out.output.select(wrapped.out_names), plain.output.tensor, **close)
    for suffix, factor in CALLS["forcing_multipliers"].items():
        again = wrapped(scaled(args, factor)).output
        for n in CALLS["output_names"]:
            torch.testing.assert_close(out.output[variant_name(n, suffix)], again[n], **close)
            assert not torch.allclose(again[n], plain.output[n], rtol=0, atol=1e-3)
    # State and corrections are the unscaled call's; its fields are those of the batch, not of all calls.
    assert torch.equal(out.stepper_state.corrector.global_dry_air_mass, reference.corrector.global_dry_air_mass)
    assert set(out.corrected_names) == {PS, "rain"}
    assert out.corrections.names == plain.corrections.names
    torch.testing.assert_close(out.uncorrected.tensor, plain.uncorrected.tensor, **close)
    torch.testing.assert_close(out.corrections.tensor, plain.corrections.tensor, rtol=1e-6, atol=0.02)
    assert plain.corrections[PS].abs().max() > 1.0


def test_without_a_state_the_reference_is_the_unscaled_input() -> None:
    step = called("single").step
    args = random_args(step, 7)
    first = step(args).stepper_state.corrector.global_dry_air_mass
    assert first.shape == (2, 1, 1)
    dry = args.state[PS].double() * (1.0 - args.state[Q].double())
    expected = (dry * torch.from_numpy(INFO.grid.area_weights)).sum((1, 2))
    torch.testing.assert_close(first[:, 0, 0], expected, rtol=1e-12, atol=0)


def multi(network: nn.Module, *, later: bool = False, **keys: Any) -> MultiCallStep:
    wrapped = SingleModuleStep(
        network,
        ["t", "co2"],
        ["t", "flux", "heating_3"],
        SCALING,
        next_step_forcing_names=["co2"] if later else [],
        **keys,
    )
    return MultiCallStep(wrapped, "co2", {"_halved_co2": 0.5, "_4x": 4.0}, ["heating_3", "flux"])


@pytest.mark.parametrize("later", [False, True])
def test_several_calls_by_hand(later: bool) -> None:
    """flux = co2 normalised: 800 -> 4, 400 -> 0, 3200 -> 28; at t + dt 600 -> 2, 300 -> -1, 2400 -> 20."""
    net = affine(linear(2, 3), [[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [0.0, 0.0, 0.0])
    step = multi(net, later=later)
    out = step(StepArgs(constant(t=255.0), constant(co2=800.0), constant(co2=600.0))).output
    x, half, four = (2.0, -1.0, 20.0) if later else (4.0, 0.0, 28.0)
    assert_constant(
        out,
        t=255.0,
        flux=100.0 + 50 * x,
        heating_3=4 * x,
        heating_halved_co2_3=4 * half,
        flux_halved_co2=100.0 + 50 * half,
        heating_4x_3=4 * four,
        flux_4x=100.0 + 50 * four,
    )


def test_a_scaled_loss_trains_the_network_through_its_own_call() -> None:
    net = affine(linear(2, 3), [[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [0.0, 0.0, 0.0])
    out = multi(net)(StepArgs(constant(t=255.0), constant(co2=800.0), constant(co2=0.0))).output
    weight, bias = gradients(net, out["flux_4x"].mean())
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0], [50.0, 50.0 * 28], [0.0, 0.0]]))
    torch.testing.assert_close(bias, torch.tensor([0.0, 50.0, 0.0]))


def test_all_calls_share_dropout_and_data_mask() -> None:
    net = Recorder(3)
    step = multi(net, include_channel_mask_inputs=True)
    args = StepArgs(constant(t=255.0), constant(co2=800.0), constant(co2=0.0))
    args.state.tensor[0] = torch.nan
    step(
        replace(
            args,
            data_mask=torch.tensor([[False, True], [True, True]]),
            input_dropout_mask=torch.tensor([[True, True], [True, False]]),
        )
    )
    # [t, co2, mask t, mask co2] of the calls 1, 0.5, 4: sample 0 lacks t, from sample 1 co2 is withheld
    seen = sorted(net.seen[:, 0, 0].tolist())
    zero, one = ([[0.0, c, 0.0, 1.0] for c in (0.0, 4.0, 28.0)], [[1.0, 0.0, 1.0, 0.0]] * 3)
    assert seen == sorted(zero + one)


def test_hooks_are_the_wrapped_steps() -> None:
    emulator = called("single", corrector={"conserve_dry_air": True, "corrector_disabled_epochs": 2})
    step = emulator.step.train()
    wrapped = step.wrapped
    assert step.has_input_dropout
    assert emulator.config.step.config.has_input_dropout
    mask = step.make_input_dropout_mask(64, generator(1, "test"))
    assert mask.shape == (64, 5 + 1)
    assert torch.equal(mask, wrapped.make_input_dropout_mask(64, generator(1, "test")))
    assert not mask.all()
    args = random_args(step, 5)
    acted = []
    for epoch in (1, 2, 3):
        step.set_epoch(epoch)
        acted.append(step(args).uncorrected is not None)
    assert acted == [False, False, True]
    step.set_epoch(1)
    assert step.eval()(args).uncorrected is not None
    assert step.make_input_dropout_mask(64, generator(1, "test")) is None
    assert step.has_input_dropout
    assert step.corrector_enabled
    assert emulator.config.step.config.corrector_enabled
    plain = called("secondary", corrector={}).step.train()
    assert not plain.corrector_enabled
    assert not plain.has_input_dropout
    assert plain.make_input_dropout_mask(4, generator(1, "test")) is None
    assert [n is w for n, w in zip(plain.networks, plain.wrapped.networks, strict=True)] == [True, True]


def test_a_multi_call_without_calls_is_the_wrapped_step() -> None:
    kind, config = WRAPPED["radiation"]
    normalization = {"network": {"means": MEANS, "stds": STDS}}
    wrapped = {"type": kind, "config": config | {"normalization": normalization}}
    step = {"type": "multi_call", "config": {"wrapped_step": wrapped, "include_multi_call_in_loss": False}}
    alone, around = (build_emulator(StepperConfig.model_validate({"step": s}), INFO, seed=4) for s in (wrapped, step))
    args = random_args(alone.step, 0)
    assert around.step.out_names == alone.step.out_names
    assert torch.equal(around.step(args).output.tensor, alone.step(args).output.tensor)


def test_scored_variants_have_statistics_of_their_own_and_the_units_of_their_base() -> None:
    """The network's scale of a variant is its base's, the loss's is its own; residual-scaled iff the base is."""
    kind, config = WRAPPED["single"]
    variants = {"flux_4x": (120.0, 40.0), "t_4x": (251.0, 6.0)}
    means = MEANS | {n: m for n, (m, _) in variants.items()}
    stds = STDS | {n: s for n, (_, s) in variants.items()}
    steps = {"t": 0.5, PS: 10.0, Q: 0.001, "t_4x": 0.25}
    normalization = {
        "network": {"means": means, "stds": stds},
        "residual": {"means": dict.fromkeys(steps, 0.0), "stds": steps},
    }
    calls = CALLS | {"forcing_multipliers": {"_4x": 4.0}, "output_names": ["flux", "t"]}
    step = {
        "type": "multi_call",
        "config": {
            "wrapped_step": {"type": kind, "config": config | {"normalization": normalization}},
            "config": calls,
        },
    }
    emulator = build_emulator(StepperConfig.model_validate({"step": step}), INFO, seed=0)
    assert emulator.loss_names == (*config["out_names"], "flux_4x", "t_4x")
    assert {n: emulator.normalization.loss.stds[n] for n in ("flux", "flux_4x", "t", "t_4x", "rain")} == {
        "flux": 50.0,
        "flux_4x": 40.0,
        "t": 0.5,
        "t_4x": 0.25,
        "rain": 4.0,
    }
    args = random_args(emulator.step, 1)
    out = emulator.step(args).output
    torch.testing.assert_close(
        out["flux_4x"], emulator.step.wrapped(scaled(args, 4.0)).output["flux"], rtol=1e-6, atol=1e-4
    )


# --- checkpoints


@pytest.mark.parametrize("calls", [None, CALLS], ids=["once", "several calls"])
@pytest.mark.parametrize("name", WRAPPED)
def test_state_round_trip_gives_the_same_bits(name: str, calls: dict[str, Any] | None) -> None:
    kind, config = WRAPPED[name]
    emulator = build(kind, config, calls, seed=11)
    buffer = io.BytesIO()
    torch.save(emulator.state(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert len(state["networks"]) == len(emulator.step.networks) == (1 if name == "single" else 2)
    torch.manual_seed(0)
    again = emulator_from_state(state)
    assert again.config == emulator.config
    assert again.loss_names == emulator.loss_names
    args = random_args(emulator.step, 2)
    a, b = emulator.step(args), again.step(args)
    assert a.output.names == b.output.names
    assert torch.equal(a.output.tensor, b.output.tensor)
    assert torch.equal(a.corrections.tensor, b.corrections.tensor)
    # The weights were those of the seed, not what the second one drew.
    other = build(kind, config, calls, seed=12)
    assert not torch.equal(other.step(args).output.tensor, a.output.tensor)
    other.load_networks(state)
    assert torch.equal(other.step(args).output.tensor, a.output.tensor)


@pytest.mark.parametrize("name", WRAPPED)
def test_seed_alone_decides_the_weights_and_no_callers_stream_moves(name: str) -> None:
    kind, config = WRAPPED[name]
    before = torch.get_rng_state()
    a = build(kind, config, seed=1)
    torch.rand(3)
    b = build(kind, config, CALLS, seed=1)
    torch.set_rng_state(before)
    build(kind, config, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for x, y in zip(a.step.networks, b.step.networks, strict=True):
        for p, q in zip(x.parameters(), y.parameters(), strict=True):
            assert torch.equal(p, q)


# --- the networks as one, over shapes


@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.lists(st.integers(0, 5), unique=True, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_secondary_network_is_the_sum_that_it_says(
    seed: int, n_in: int, n_primary: int, n_full: int, base: list[int]
) -> None:
    base = [b for b in base if b < n_primary + n_in]
    assume(n_full + len(base))
    torch.manual_seed(seed)
    primary, network = linear(n_in, n_primary), linear(n_in, n_full + len(base))
    x = torch.randn(2, n_in, 3, 4)
    out = PrimaryWith(primary, SecondaryNetwork(network, n_primary, n_full, base))(x)
    said, z = primary(x), network(x)
    first = [said[:, i] for i in range(n_primary)]
    last = []
    for i, b in enumerate(base):
        if b < n_primary:
            first[b] = first[b] + z[:, n_full + i]
        else:
            last.append(x[:, b - n_primary] + z[:, n_full + i])
    expected = torch.stack([*first, *(z[:, i] for i in range(n_full)), *last], dim=1)
    assert torch.equal(out, expected)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_main_network_never_sees_the_radiations_own_forcing(seed: int, shared: int, only: int, detach: bool) -> None:
    torch.manual_seed(seed)
    main, network = linear(shared + 2, 2), linear(shared + only, 2)
    both = RadiationThenMain(main, network, shared, detach)
    assert [n is m for n, m in zip(both.parts, (main, network), strict=True)] == [True, True]
    x = torch.randn(2, shared + only, 3, 4)
    flux = network(x)
    expected = torch.cat([main(torch.cat([x[:, :shared], flux], dim=1)), flux], dim=1)
    assert torch.equal(both(x), expected)


def test_steps_of_several_networks_are_copied_whole() -> None:
    """EMA and DDP copy the step: a copy answers alike and shares no parameter."""
    step = called("secondary").step
    twin = copy.deepcopy(step)
    args = random_args(step, 9)
    assert torch.equal(step(args).output.tensor, twin(args).output.tensor)
    with torch.no_grad():
        next(iter(twin.networks[1].parameters())).add_(1.0)
    assert not torch.equal(step(args).output.tensor, twin(args).output.tensor)


def test_residual_of_a_part_and_decoder_diagnostics_in_the_output_order() -> None:
    """Residual names are looked up in out_names + diagnostics: the skip is on sst only."""
    net = PrimaryWith(
        affine(linear(2, 2), [[0.0, 0.0]] * 2, [1.0, 1.0]),
        None,
        SecondaryDecoder(affine(linear(2, 1), [[0.0, 0.0]], [1.0]), False),
    )
    step = SingleModuleStep(net, ["sst", "t"], ["t", "sst", "rain"], SCALING, residual=Residual(("sst",), SCALING))
    out = step(StepArgs(constant(t=260.0, sst=300.0), constant(sun=0.0), constant(sun=0.0))).output
    assert_constant(out, t=255.0, sst=310.0, rain=6.0)
