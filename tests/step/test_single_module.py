"""The step with a network that is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ace_core.fields import Fields
from ace_core.loss.step_loss import StepLossConfig
from ace_core.step.normalizer import Scaling
from ace_core.step.single_module import Ocean, SingleModuleStep

SCALING = Scaling(
    {"sst": 280.0, "t": 250.0, "sun": 300.0, "o": 0.5, "rain": 2.0},
    {"sst": 10.0, "t": 5.0, "sun": 100.0, "o": 0.25, "rain": 4.0},
)


class Affine(nn.Module):
    """out = A x + b over channels, channels last."""

    def __init__(self, matrix: list[list[float]], bias: list[float]) -> None:
        super().__init__()
        self.matrix, self.bias = torch.tensor(matrix), torch.tensor(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T + self.bias


def fields(**values: float) -> Fields:
    return Fields(tuple(values), torch.stack([torch.full((2, 3, 4), v) for v in values.values()], dim=1))


def test_full_field_prediction_by_hand() -> None:
    net = Affine([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]], [0.5, 0.0, -1.0])
    step = SingleModuleStep(net, ["sun", "t", "sst"], ["t", "sst", "rain"], SCALING)
    out = step(fields(t=260.0, sst=290.0, rain=9.0), fields(sun=400.0), fields(sun=0.0))
    # normalised inputs: sun 1, t 2, sst 1 -> outputs 2*2+.5 = 4.5, 1, 3-1 = 2
    assert out.names == ("t", "sst", "rain")
    torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 250.0 + 4.5 * 5.0))
    torch.testing.assert_close(out["sst"], torch.full((2, 3, 4), 280.0 + 10.0))
    torch.testing.assert_close(out["rain"], torch.full((2, 3, 4), 2.0 + 2.0 * 4.0))


def test_residual_prediction_adds_to_prognostics_only_and_keeps_their_bits() -> None:
    net = Affine([[0.0] * 3] * 3, [0.1, 0.0, 0.25])
    step = SingleModuleStep(net, ["t", "sun", "sst"], ["t", "sst", "rain"], SCALING, residual_prediction=True)
    state = Fields(("sst", "t"), torch.rand(2, 2, 3, 4) + 280.0)
    out = step(state, fields(sun=1.0), fields(sun=1.0))
    torch.testing.assert_close(out["t"], state["t"] + 0.5)
    assert torch.equal(out["sst"], state["sst"])
    torch.testing.assert_close(out["rain"], torch.full((2, 3, 4), 3.0))


def test_next_step_forcing_is_read_one_step_later() -> None:
    net = Affine([[0.0, 1.0, 1.0]], [0.0])
    step = SingleModuleStep(net, ["t", "sun", "o"], ["t"], SCALING, next_step_forcing_names=["sun"])
    out = step(fields(t=250.0), fields(sun=300.0, o=1.0), fields(sun=500.0, o=0.5))
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
        out = step(fields(t=250.0, sst=285.0), fields(sst=300.0, o=1.0), target)
        torch.testing.assert_close(out["sst"], torch.tensor(expected).expand(2, 3, 4))
        torch.testing.assert_close(out["t"], torch.full((2, 3, 4), 250.0))
        assert set(step.forcing_names) == {"sst", "o"}


def test_gradient_does_not_pass_through_prescribed_cells() -> None:
    net = nn.Linear(2, 2)
    step = SingleModuleStep(net, ["t", "sst"], ["t", "sst"], SCALING, ocean=Ocean("sst", "o"))
    forcing = fields(sst=300.0, o=1.0)
    step(fields(t=250.0, sst=285.0), forcing, forcing)["sst"].sum().backward()
    assert net.weight.grad is not None
    assert float(net.weight.grad.abs().sum()) == 0.0


def test_loss_is_the_mean_squared_scaled_error_with_weights_squared() -> None:
    loss = StepLossConfig(weights={"t": 3.0}).build(["t", "rain"], SCALING)
    prediction = torch.zeros(2, 2, 3, 4)
    target = torch.zeros(2, 2, 3, 4)
    target[:, 0], target[0, 1] = 10.0, 4.0
    # t: (3*10/5)^2 = 36 everywhere; rain: (4/4)^2 = 1 in half of the samples
    torch.testing.assert_close(loss.per_channel(prediction, target), torch.tensor([36.0, 0.5]))
    torch.testing.assert_close(loss(prediction, target), torch.tensor(18.25))
