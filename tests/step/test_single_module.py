"""The step with a network that is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ace_core.fields import Fields
from ace_core.models.mlp import PointwiseMLP
from ace_core.seeding import generator
from ace_core.step.args import StepArgs, StepOutput
from ace_core.step.global_mean import PerChannelGlobalMeanRemovalConfig
from ace_core.step.input_dropout import UniformMaskingConfig
from ace_core.step.normalizer import Scaling
from ace_core.step.single_module import Residual, SingleModuleStep
from ace_core.step.step import Ocean, Slab

SCALING = Scaling(
    {"sst": 280.0, "t": 250.0, "sun": 300.0, "o": 0.5, "rain": 2.0},
    {"sst": 10.0, "t": 5.0, "sun": 100.0, "o": 0.25, "rain": 4.0},
)


class Affine(nn.Module):
    """out = A x + b over channels."""

    def __init__(self, matrix: list[list[float]], bias: list[float]) -> None:
        super().__init__()
        self.matrix, self.bias = torch.tensor(matrix), torch.tensor(bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,bcyx->boyx", self.matrix, x) + self.bias[:, None, None]


def fields(**values: float) -> Fields:
    return Fields(tuple(values), torch.stack([torch.full((2, 3, 4), v) for v in values.values()], dim=1))


def run(step: SingleModuleStep, args: StepArgs) -> Fields:
    out: StepOutput = step(args)
    return out.output


def test_full_field_prediction_by_hand() -> None:
    net = Affine([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]], [0.5, 0.0, -1.0])
    step = SingleModuleStep(net, ["sun", "t", "sst"], ["t", "sst", "rain"], SCALING)
    out = run(step, StepArgs(fields(t=260.0, sst=290.0, rain=9.0), fields(sun=400.0), fields(sun=0.0)))
    # normalised inputs: sun 1, t 2, sst 1 -> outputs 2*2+.5 = 4.5, 1, 3-1 = 2
    assert out.names == ("t", "sst", "rain")
    torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 250.0 + 4.5 * 5.0))
    torch.testing.assert_close(out["sst"], torch.full((2, 3, 4), 280.0 + 10.0))
    torch.testing.assert_close(out["rain"], torch.full((2, 3, 4), 2.0 + 2.0 * 4.0))


def test_residual_prediction_adds_to_prognostics_only_and_keeps_their_bits() -> None:
    net = Affine([[0.0] * 3] * 3, [0.1, 0.0, 0.25])
    step = SingleModuleStep(
        net, ["t", "sun", "sst"], ["t", "sst", "rain"], SCALING, residual=Residual(("t", "sst"), SCALING)
    )
    state = Fields(("sst", "t"), torch.rand(2, 2, 3, 4) + 280.0)
    out = run(step, StepArgs(state, fields(sun=1.0), fields(sun=1.0)))
    torch.testing.assert_close(out["t"], state["t"] + 0.5)
    assert torch.equal(out["sst"], state["sst"])
    torch.testing.assert_close(out["rain"], torch.full((2, 3, 4), 3.0))


def test_next_step_forcing_is_read_one_step_later() -> None:
    net = Affine([[0.0, 1.0, 1.0]], [0.0])
    step = SingleModuleStep(net, ["t", "sun", "o"], ["t"], SCALING, next_step_forcing_names=["sun"])
    out = run(step, StepArgs(fields(t=250.0), fields(sun=300.0, o=1.0), fields(sun=500.0, o=0.5)))
    # sun comes from t + dt (normalised 2), o from t (normalised 2)
    torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 250.0 + 4 * 5.0))
    assert step.forcing_names == ("o", "sun")


def test_prescribed_sst_replaces_where_the_fraction_rounds_to_one_or_blends() -> None:
    net = Affine([[0.0, 0.0]] * 2, [0.0, 0.0])
    for interpolate, expected in ((False, [280.0, 280.0, 300.0, 300.0]), (True, [280.0, 288.0, 292.0, 300.0])):
        ocean = Ocean("sst", "o", interpolate)
        step = SingleModuleStep(net, ["t", "sst"], ["t", "sst"], SCALING, ocean=ocean)
        target = fields(sst=300.0, o=0.0)
        target["o"][:] = torch.tensor([0.0, 0.4, 0.6, 1.0])
        out = run(step, StepArgs(fields(t=250.0, sst=285.0), fields(sst=300.0, o=1.0), target))
        torch.testing.assert_close(out["sst"], torch.tensor(expected).expand(2, 3, 4))
        torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 250.0))
        assert set(step.forcing_names) == {"sst", "o"}


def test_gradient_does_not_pass_through_prescribed_cells() -> None:
    net = PointwiseMLP(2, 2, depth=1)
    step = SingleModuleStep(net, ["t", "sst"], ["t", "sst"], SCALING, ocean=Ocean("sst", "o"))
    forcing = fields(sst=300.0, o=1.0)
    run(step, StepArgs(fields(t=250.0, sst=285.0), forcing, forcing))["sst"].sum().backward()
    gradient = next(net.parameters()).grad
    assert gradient is not None
    assert float(gradient.abs().sum()) == 0.0


def test_normalized_residual_is_in_units_of_the_one_step_change() -> None:
    steps = Scaling({"t": 0.0, "sst": 0.0}, {"t": 0.5, "sst": 0.25})
    net = Affine([[0.0, 0.0]] * 2, [2.0, 2.0])
    step = SingleModuleStep(net, ["t", "sst"], ["t", "sst"], SCALING, residual=Residual(("t",), steps))
    out = run(step, StepArgs(fields(t=250.0, sst=285.0), fields(sun=0.0), fields(sun=0.0)))
    torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 251.0))  # 250 + 2 * 0.5
    torch.testing.assert_close(out["sst"], torch.full((2, 3, 4), 300.0))  # 280 + 2 * 10: not among the residual names


def test_prescribed_prognostics_come_from_the_next_forcing() -> None:
    net = Affine([[0.0, 0.0]] * 2, [0.0, 0.0])
    step = SingleModuleStep(net, ["t", "sst"], ["t", "sst"], SCALING, prescribed_prognostic_names=["t"])
    out = run(step, StepArgs(fields(t=250.0, sst=285.0), fields(t=1.0), fields(t=222.0)))
    torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 222.0))
    torch.testing.assert_close(out["sst"], torch.full((2, 3, 4), 280.0))
    assert step.forcing_names == ("t",)


class Recorder(nn.Module):
    """Keeps what it is given and answers zero for two outputs."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().permute(0, 2, 3, 1).clone()
        return torch.zeros_like(x[:, :2])


def test_packed_order_and_indicators_with_masks_and_global_means() -> None:
    """[in | extras | mask(in) | mask(extras)], by hand for two samples: one lacks ``sun``, from one ``t`` is withheld."""
    removal = PerChannelGlobalMeanRemovalConfig(field_names=["t"], append_as_input=True)
    names = ["t", "sun"]
    net = Recorder()
    step = SingleModuleStep(
        net,
        names,
        ["t", "rain"],
        SCALING,
        global_mean=removal.build(names, ["t", "rain"], SCALING),
        include_channel_mask_inputs=True,
    )
    assert step.packed_names == ("t", "sun", "__gmr_extra__t", "__mask__t", "__mask__sun", "__mask____gmr_extra__t")
    state = fields(t=260.0)
    state["t"][:, :, 0] += 5.0  # mean 261.25: departures +3.75 and -1.25
    sun = fields(sun=500.0)
    sun["sun"][0] = torch.nan
    data_mask = torch.tensor([[True, False], [True, True]])
    withheld = torch.tensor([[True, True, True], [False, True, True]])
    out = run(step, StepArgs(state, sun, sun, data_mask=data_mask, input_dropout_mask=withheld))
    first, second = net.seen[0], net.seen[1]
    torch.testing.assert_close(first[:, 0, 0], torch.full((3,), 3.75 / 5.0))
    torch.testing.assert_close(first[:, 1, 0], torch.full((3,), -1.25 / 5.0))
    torch.testing.assert_close(first[0, 0, 1:], torch.tensor([0.0, 11.25 / 5.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(second[0, 0], torch.tensor([0.0, 2.0, 11.25 / 5.0, 0.0, 1.0, 1.0]))
    # What was taken off ``t`` is given back to it and to nothing else: mu - shift = mean of the input.
    torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 261.25))
    torch.testing.assert_close(out["rain"], torch.full((2, 3, 4), 2.0))


def test_a_withheld_prognostic_still_passes_through_the_residual_skip() -> None:
    """Documented: dropout hides a channel from the network, not from the residual; the network cannot have seen it."""
    net = Recorder()
    step = SingleModuleStep(net, ["t", "sun"], ["t", "rain"], SCALING, residual=Residual(("t",), SCALING))
    args = StepArgs(fields(t=260.0), fields(sun=1.0), fields(sun=1.0))
    withheld = torch.tensor([[False, True], [False, True]])
    out = run(step, StepArgs(args.state, args.forcing, args.next_forcing, input_dropout_mask=withheld))
    assert float(net.seen[..., 0].abs().max()) == 0.0
    torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 260.0))


def test_dropout_is_drawn_in_training_mode_only() -> None:
    dropout = UniformMaskingConfig(kind="uniform", max_masked_vars=1)
    step = SingleModuleStep(Recorder(), ["t", "sun"], ["t", "rain"], SCALING, input_dropout=dropout)
    mask = step.train().make_input_dropout_mask(512, generator(0, "test"))
    assert mask is not None
    assert 0.4 < float((mask.sum(dim=1) == 1).float().mean()) < 0.6  # none or one of the two, equally likely
    assert bool((mask.sum(dim=1) >= 1).all())
    assert step.eval().make_input_dropout_mask(512, generator(0, "test")) is None
    assert step.has_input_dropout


def test_slab_ocean_warms_by_its_net_flux() -> None:
    """One day of F + Q = 100 W/m**2 into 50 m of water: 86400 * 100 / (1000 * 4000 * 50) K, where there is ocean."""
    fluxes = {
        "DSWRFsfc": 200.0,
        "USWRFsfc": 20.0,
        "DLWRFsfc": 300.0,
        "ULWRFsfc": 350.0,
        "LHTFLsfc": 60.0,
        "SHTFLsfc": 10.0,
    }
    names = ["sst", *fluxes]
    means = Scaling({"sst": 280.0} | fluxes, dict.fromkeys(names, 1.0))
    net = Affine([[0.0] * 7] * 7, [5.0] + [0.0] * 6)
    step = SingleModuleStep(net, names, names, means, ocean=Ocean("sst", "o", slab=Slab("depth", "q", 86400.0)))
    assert step.forcing_names == ("o", "depth", "q")
    forcing = fields(o=1.0, depth=50.0, q=40.0)
    forcing["o"][:, 0] = 0.0
    out = run(step, StepArgs(fields(sst=290.0, **fluxes), forcing, forcing))
    torch.testing.assert_close(out["sst"][:, 1:], torch.full((2, 2, 4), 290.0 + 86400 * 100.0 / (1000 * 4000 * 50)))
    torch.testing.assert_close(out["sst"][:, 0], torch.full((2, 4), 285.0))
