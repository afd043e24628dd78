"""The loss that sees the uncorrected prediction: every acceptance criterion of the feature.

A deterministic corrector with a known Jacobian (``corrected = M u`` over channels) stands for the physics.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ace_core.config import Source, StrictModel, parse
from ace_core.errors import ConfigError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.loss.step_loss import StepLossConfig
from ace_core.loss.step_output_loss import (
    CorrectorLossConfig,
    StepOutputLoss,
    WindowLoss,
    build_step_output_loss,
)
from ace_core.step.normalizer import Scaling

NAMES = ("t_0", "t_1", "ps", "rain")
CORRECTED = ("rain", "t_0", "t_1")
STD = torch.tensor([5.0, 10.0, 100.0, 4.0])
SCALING = Scaling(dict(zip(NAMES, [250.0, 280.0, 1e5, 2.0])), dict(zip(NAMES, STD.tolist())))
GRID = LatLonGrid.gaussian(2, 4)
PRE: dict[str, Any] = {"precorrector_optimization": {}}
REG: dict[str, Any] = {"regularization": {"weight": 0.5}}


@dataclass(frozen=True, eq=False)
class Out:
    output: Fields
    uncorrected: Fields | None


def build(corrector: dict[str, Any] | None, n_ensemble: int = 1, **loss: Any) -> StepOutputLoss:
    config = None if corrector is None else CorrectorLossConfig.model_validate(corrector)
    return build_step_output_loss(
        StepLossConfig.model_validate(loss), config, NAMES, SCALING, GRID, n_ensemble=n_ensemble, corrector_enabled=True
    )


def cells(values: list[float]) -> Tensor:
    """[1, C, Y, X] of constants."""
    return torch.tensor(values)[None, :, None, None].expand(1, len(values), 2, 4).clone()


def example() -> tuple[Out, Fields]:
    """In units of std: corrected is off the target by 1, 2, 3, 4, the network by 3 (t_0), 2 (t_1), 3, 0 (rain)."""
    target = cells([250.0, 280.0, 1e5, 2.0])
    output = target + cells([1.0, 2.0, 3.0, 4.0]) * STD[:, None, None]
    network = target + cells([3.0, 2.0, 3.0, 0.0]) * STD[:, None, None]
    return Out(Fields(NAMES, output), Fields(NAMES, network).subset(CORRECTED)), Fields(NAMES, target)


def close(value: Tensor | None, expected: float | list[float]) -> None:
    assert value is not None
    torch.testing.assert_close(value, torch.tensor(expected))


def test_without_features_it_is_the_step_loss() -> None:
    out, target = example()
    result = build(None)(out, target, 0)
    close(result.main.per_channel, [1.0, 4.0, 9.0, 16.0])
    assert result.regularization is None
    close(result.total(), 7.5)
    plain = build(None).step_loss(out.output.tensor[:, None], target.tensor[:, None])
    assert torch.equal(result.total(), plain.total())


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ([], [9.0, 4.0, 9.0, 0.0]),
        (["t"], [1.0, 4.0, 9.0, 0.0]),
        (["t_"], [1.0, 4.0, 9.0, 0.0]),
        (["t_0"], [1.0, 4.0, 9.0, 0.0]),
        (["t_1"], [9.0, 4.0, 9.0, 0.0]),
        (["rain", "t_0"], [1.0, 4.0, 9.0, 16.0]),
        (["ps"], [9.0, 4.0, 9.0, 0.0]),
    ],
)
def test_main_loss_takes_the_uncorrected_values_of_what_is_not_excluded(
    exclude: list[str], expected: list[float]
) -> None:
    out, target = example()
    before = out.output.tensor.clone()
    result = build({"precorrector_optimization": {"exclude_names_and_prefixes": exclude}})(out, target, 0)
    close(result.main.per_channel, expected)
    close(result.total(), sum(expected) / 4)
    # The rollout goes on from the corrected output: the loss has not touched it.
    assert torch.equal(out.output.tensor, before)


def test_penalty_is_the_mean_over_corrected_channels_only_times_weight() -> None:
    out, target = example()
    # corrections in units of std: t_0 -2, t_1 0, rain 4; ps is not corrected and does not dilute
    result = build(REG)(out, target, 0)
    close(result.main.per_channel, [1.0, 4.0, 9.0, 16.0])
    close(result.regularization, 0.5 * (4.0 + 0.0 + 16.0) / 3)
    close(result.total(), 7.5 + 10 / 3)
    l1 = build({"regularization": {"loss": {"type": "L1"}, "weight": 2.0}})(out, target, 0)
    close(l1.regularization, 2.0 * (2.0 + 0.0 + 4.0) / 3)


def test_penalty_has_neither_decay_nor_channel_weights() -> None:
    out, target = example()
    result = build(REG, sqrt_loss_step_decay_constant=1.0, weights={"rain": 3.0})(out, target, 3)
    close(result.main.per_channel, [0.5, 2.0, 4.5, 72.0])
    close(result.regularization, 10 / 3)


def test_area_weighted_penalty() -> None:
    out, target = example()
    assert out.uncorrected is not None
    one_row = out.output.select(CORRECTED).clone()
    one_row[..., 0, :] += 2.0 * STD[[3, 0, 1]][:, None]
    result = build({"regularization": {"loss": {"type": "AreaWeightedMSE"}}})(
        Out(out.output, Fields(CORRECTED, one_row)), target, 0
    )
    close(result.regularization, 2.0)  # two rows of equal area: half of 2**2


def test_both_features_compose() -> None:
    out, target = example()
    result = build(PRE | REG)(out, target, 0)
    close(result.main.per_channel, [9.0, 4.0, 9.0, 0.0])
    close(result.regularization, 10 / 3)
    close(result.total(), 5.5 + 10 / 3)


@pytest.mark.parametrize(("config", "needs"), [(None, False), (PRE, True), (REG, True), (PRE | REG, True)])
def test_uncorrected_values_stay_on_the_graph_only_if_a_feature_needs_them(
    config: dict[str, Any] | None, needs: bool
) -> None:
    assert build(config).needs_uncorrected_grad is needs


def test_members_are_unfolded_sample_major_and_masks_apply_to_both_terms() -> None:
    out, target = example()
    assert out.uncorrected is not None
    rows = torch.tensor([0.0, 2.0, 1.0, 1.0])[:, None, None, None]  # of two samples with two members each
    error = out.output.tensor - target.tensor
    correction = out.output.select(CORRECTED) - out.uncorrected.tensor
    output = target.tensor + rows * error
    both = Out(Fields(NAMES, output), Fields(CORRECTED, Fields(NAMES, output).select(CORRECTED) - rows * correction))
    targets = Fields(NAMES, target.tensor.expand(2, -1, -1, -1))
    result = build(REG, n_ensemble=2)(both, targets, 0)
    # mean of rows**2: sample 0 gives 2, sample 1 gives 1
    close(result.main.per_channel, [1.5, 6.0, 13.5, 24.0])
    close(result.regularization, 1.5 * 10 / 3)
    # CRPS of two members: sample 0 |0|, |2| - half their distance = 0; sample 1 one value twice = 1
    crps = build(REG, n_ensemble=2, type="EnsembleLoss")(both, targets, 0)
    close(crps.main.per_channel, [0.5, 1.0, 1.5, 2.0])
    # rain exists in sample 0 only, t_1 in none: the penalty averages over rain (16 * 2) and t_0 (4 * 1.5)
    mask = torch.tensor([[True, False, True, True], [True, False, True, False]])
    masked = build(REG, n_ensemble=2)(both, targets, 0, mask)
    close(masked.regularization, 0.5 * (32.0 + 6.0) / 2)
    close(masked.main.total(), (1.5 + 13.5 + 32.0) / 3)


def test_cells_masked_in_the_output_have_no_correction() -> None:
    out, target = example()
    assert out.uncorrected is not None
    for t in (out.output.tensor, out.uncorrected.tensor, target.tensor):
        t[..., 0, :] = float("nan")
    result = build(PRE | REG)(out, target, 0)
    close(result.main.per_channel, [4.5, 2.0, 4.5, 0.0])
    close(result.regularization, 5 / 3)


def test_unmatched_entries_warn_once_and_typos_are_errors(caplog: pytest.LogCaptureFixture) -> None:
    out, target = example()
    loss = build({"precorrector_optimization": {"exclude_names_and_prefixes": ["ps", "rain"]}})
    with caplog.at_level(logging.WARNING):
        loss(out, target, 0)
        loss(out, target, 1)
    assert len(caplog.records) == 1
    assert "exclude_names_and_prefixes: ps: the corrector modifies no such variable" in caplog.text
    with pytest.raises(ConfigError, match=r"'rian' matches no output(.|\n)*did you mean 'rain'"):
        build({"precorrector_optimization": {"exclude_names_and_prefixes": ["rian"]}})


def test_a_corrector_that_returns_nothing_warns_once_and_the_loss_is_plain(caplog: pytest.LogCaptureFixture) -> None:
    out, target = example()
    loss, idle = build(PRE | REG), Out(out.output, None)
    with caplog.at_level(logging.WARNING):
        results = [loss(idle, target, 0), loss(Out(out.output, Fields((), torch.zeros(1, 0, 2, 4))), target, 0)]
    assert len(caplog.records) == 1
    assert "the corrector has modified nothing" in caplog.text
    for result in results:
        close(result.total(), 7.5)
        assert result.regularization is None
    caplog.clear()
    build(None)(idle, target, 0)
    assert not caplog.records


# --- gradients


MATRIX = torch.tensor(
    [[0.5, 0.2, 0.1, 0.0], [0.0, 1.0, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0], [0.1, 0.0, 0.0, 0.7]], dtype=torch.float64
)


def corrected(u: Tensor, matrix: Tensor) -> Out:
    """Channels mixed by ``matrix``; the row of ps is the identity, so ps is not corrected."""
    fields = Fields(NAMES, torch.einsum("dc,bcyx->bdyx", matrix, u))
    return Out(fields, Fields(CORRECTED, u[:, [3, 0, 1]]))


@pytest.mark.parametrize("config", [None, PRE, REG, PRE | REG])
def test_gradient_at_the_network_output_is_that_of_the_analytic_jacobian(config: dict[str, Any] | None) -> None:
    loss = build(config).double()
    u = torch.randn(2, 4, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * STD[:, None, None]
    u.requires_grad_()
    target = torch.zeros_like(u)
    loss(corrected(u, MATRIX), Fields(NAMES, target), 0).total().backward()
    values, inverse, n = u.detach(), 1.0 / STD.double()[:, None, None], u[0, 0].numel() * 2
    out = torch.einsum("dc,bcyx->bdyx", MATRIX, values)
    change = MATRIX - torch.eye(4, dtype=torch.float64)
    swapped = torch.tensor(
        [True, True, False, True] if config and "precorrector_optimization" in config else [False] * 4
    )
    # main: d/du of mean_c mean_cells (x/s)**2, x = u where swapped, M u elsewhere
    rows = torch.where(swapped[:, None], torch.eye(4, dtype=torch.float64), MATRIX)
    scored = torch.where(swapped[:, None, None], values, out)
    expected = torch.einsum("dc,bdyx->bcyx", rows, 2 * scored * inverse**2 / (4 * n))
    if config and "regularization" in config:
        delta = (out - values) * inverse**2
        expected += torch.einsum("dc,bdyx->bcyx", change, 0.5 * 2 * delta / (3 * n))
    assert u.grad is not None
    torch.testing.assert_close(u.grad, expected)

    def value(x: Tensor) -> Tensor:
        return loss(corrected(x, MATRIX), Fields(NAMES, target), 0).total()

    assert torch.autograd.gradcheck(value, (u,))


@pytest.mark.parametrize("config", [PRE, REG, PRE | REG])
def test_detached_uncorrected_values_would_corrupt_the_gradient(config: dict[str, Any]) -> None:
    """Why needs_uncorrected_grad exists: without the graph the (M - 1) term is gone."""
    grads = []
    for detach in (False, True):
        u = torch.linspace(1.0, 2.0, 32).reshape(1, 4, 2, 4).requires_grad_()
        out = corrected(u, MATRIX.float())
        assert out.uncorrected is not None
        before = Fields(CORRECTED, out.uncorrected.tensor.detach()) if detach else out.uncorrected
        build(config)(Out(out.output, before), Fields(NAMES, torch.zeros(1, 4, 2, 4)), 0).total().backward()
        grads.append(u.grad)
    assert not torch.allclose(grads[0], grads[1])


class Corrector(nn.Module):
    """A corrector with parameters, to see gradients flow through the correction."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(MATRIX.float())
        self.network = nn.Parameter(torch.eye(4) * 0.9)

    def forward(self, state: Tensor) -> Out:
        return corrected(torch.einsum("dc,bcyx->bdyx", self.network, state), self.matrix)


def rollout(loss: StepOutputLoss, accumulate: bool, detach: bool = True) -> tuple[Corrector, WindowLoss, Tensor]:
    """Three steps: either backward at once and the state detached between steps, or one backward in the end."""
    model, window = Corrector(), WindowLoss()
    state = torch.randn(2, 4, 2, 4, generator=torch.Generator().manual_seed(3)) * STD[:, None, None]
    target = Fields(NAMES, torch.zeros(2, 4, 2, 4))
    sum_of_totals = torch.zeros(())
    for step in range(3):
        out = model(state)
        total = window.add(step, loss(out, target, step))
        assert total is not None
        if accumulate:
            total.backward()
        else:
            sum_of_totals = sum_of_totals + total
        state = out.output.tensor.detach() if detach else out.output.tensor
    if not accumulate:
        sum_of_totals.backward()
    return model, window, state.detach()


@pytest.mark.parametrize("config", [None, PRE, REG, PRE | REG])
def test_accumulation_gives_the_same_losses_and_gradients_as_one_backward(config: dict[str, Any] | None) -> None:
    (a, first, end), (b, second, same_end) = (rollout(build(config), accumulate) for accumulate in (True, False))
    assert torch.equal(end, same_end)
    assert first.metrics().keys() == second.metrics().keys()
    for key, value in first.metrics().items():
        assert torch.equal(value, second.metrics()[key])
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
    # The corrector's own parameters get a gradient wherever the corrected values are scored or penalised.
    assert a.matrix.grad is not None
    assert a.network.grad is not None
    reached = a.matrix.grad[[0, 1, 3]].abs().amax(dim=1) > 0
    assert bool(reached.all()) is (config != PRE)
    assert bool((a.network.grad.abs().amax(dim=1) > 0).all())


def test_features_change_the_loss_but_never_the_rollout() -> None:
    ends = [rollout(build(config), True)[2] for config in (None, PRE, REG, PRE | REG)]
    assert all(torch.equal(e, ends[0]) for e in ends[1:])


def test_rollout_state_carries_gradient_from_later_steps_when_it_is_not_detached() -> None:
    through, cut = (rollout(build(PRE | REG), False, detach)[0] for detach in (False, True))
    assert through.matrix.grad is not None
    assert cut.matrix.grad is not None
    assert not torch.allclose(through.matrix.grad, cut.matrix.grad)


# --- metrics


def test_metrics_per_step_and_per_window() -> None:
    out, target = example()
    loss, window = build(PRE | REG, sqrt_loss_step_decay_constant=1.0), WindowLoss()
    assert window.add(0, loss(out, target, 0), optimized=False) is None
    totals = [window.add(s, loss(out, target, s)) for s in (1, 3)]
    metrics = {k: float(v) for k, v in window.metrics().items()}
    penalty, main = 10 / 3, 5.5
    assert metrics == pytest.approx(
        {
            "loss_step_0": main,
            "loss_step_1": main / 2**0.5,
            "loss_step_3": main / 2,
            "corrector_regularization_step_0": penalty,
            "corrector_regularization_step_1": penalty,
            "corrector_regularization_step_3": penalty,
            "loss": main * (2**-0.5 + 0.5) + 2 * penalty,
            "corrector_regularization": 2 * penalty,
        }
    )
    assert float(sum(t for t in totals if t is not None)) == pytest.approx(metrics["loss"])
    assert not any(v.requires_grad for v in window.metrics().values())
    channels = {k: float(v) for k, v in window.channels().items()}
    share = (2**-0.5 + 0.5) / 2
    assert channels == pytest.approx({"t_0": 9 * share, "t_1": 4 * share, "ps": 9 * share, "rain": 0.0})


def test_channel_means_are_weighted_by_the_samples_that_count() -> None:
    window, loss = WindowLoss(), build(None)
    for step, (error, mask) in enumerate([(1.0, [True] * 4), (3.0, [True, False, True, False])]):
        target = Fields(NAMES, torch.zeros(2, 4, 2, 4))
        output = Fields(NAMES, torch.zeros(2, 4, 2, 4) + error * STD[:, None, None])
        both = torch.tensor([mask, [False, False, True, False]])
        window.add(step, loss(Out(output, None), target, step, both))
    # t_0: samples 1 and 9; t_1 and rain: one sample 1; ps: 1, 1, 9, 9
    assert {k: float(v) for k, v in window.channels().items()} == pytest.approx(
        {"t_0": 5.0, "t_1": 1.0, "ps": 5.0, "rain": 1.0}
    )
    assert WindowLoss().channels() == {}


# --- configuration


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, ["precorrector_optimization or regularization"]),
        ({"regularization": {"loss": {"type": "EnsembleLoss"}}}, ["EnsembleLoss"]),
        ({"regularization": {"loss": {"type": "NaN"}}}, ["'NaN'", "one of MSE"]),
        ({"regularization": {"loss": {"type": "LpLoss"}}}, ["LpLoss is relative"]),
        ({"regularization": {"loss": {"global_mean_type": "LpLoss"}}}, ["global_mean_type is relative"]),
        ({"regularization": {"weight": 0.0}}, ["weight"]),
        ({"regularization": {"weight": -1.0}}, ["weight"]),
        ({"precorrector_optimization": {"exclude": ["t"]}}, ["unknown key", "exclude_names_and_prefixes"]),
    ],
)
def test_configurations_that_are_refused(section: dict[str, Any], words: list[str]) -> None:
    class File(StrictModel):
        corrector_loss: CorrectorLossConfig | None = None

    with pytest.raises(ConfigError) as error:
        parse(File, Source("train.yaml", {"corrector_loss": section}))
    assert all(word in str(error.value) for word in ["corrector_loss", *words]), str(error.value)
    assert parse(File, Source("train.yaml", {})).corrector_loss is None


def test_corrector_loss_on_a_step_without_corrector_is_an_error_with_all_others() -> None:
    config = CorrectorLossConfig.model_validate({"precorrector_optimization": {"exclude_names_and_prefixes": ["zz"]}})
    with pytest.raises(ConfigError, match=r"the step has no corrector(.|\n)*'zz' matches no output"):
        build_step_output_loss(StepLossConfig(), config, NAMES, SCALING, GRID, corrector_enabled=False)
    build_step_output_loss(StepLossConfig(), None, NAMES, SCALING, GRID, corrector_enabled=False)


@pytest.mark.parametrize("kind", ["MSE", "EnsembleLoss"])
def test_nothing_is_read_back_to_the_host(kind: str) -> None:
    kwargs = {"energy_score_weight": 0.5, "energy_score_whitening": {"kind": "per_sample"}}
    loss = build(PRE | REG, n_ensemble=2, type=kind, kwargs=kwargs if kind == "EnsembleLoss" else {})
    u = torch.randn(4, 4, 2, 4).requires_grad_()
    target, mask = Fields(NAMES, torch.zeros(2, 4, 2, 4)), torch.tensor([[True, False, True, True]] * 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        window = WindowLoss()
        total = window.add(0, loss(corrected(u, MATRIX.float()), target, 0, mask))
        assert total is not None
        total.backward()
        window.metrics()
        window.channels()
    called = {event.key for event in profile.key_averages()}
    assert "aten::index_copy" in called
    assert not called & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}
