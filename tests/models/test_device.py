"""What networks do where passes over memory count and not caches (a GPU): the same numbers, seen here on the CPU by asking for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ace_core import harmonics
from ace_core.models import blocks, sfno
from ace_core.models.sfno import SphericalFourierNeuralOperatorNet

SHAPE = (12, 24)


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to have it from then on."""

    def ask() -> None:
        for module in (harmonics, blocks, sfno):
            monkeypatch.setattr(module, "streams", lambda x: True)

    return ask


def _network(**options: Any) -> SphericalFourierNeuralOperatorNet:
    torch.manual_seed(0)
    net = SphericalFourierNeuralOperatorNet(
        3, 4, SHAPE, embed_dim=8, num_layers=3, **({"operator_type": "dhconv"} | options)
    )
    with torch.no_grad():
        for p in net.parameters():  # no bias is zero, no scale one
            p.add_(0.1 * torch.randn(p.shape))
    return net


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"normalization_layer": "none"}, {"operator_type": "diagonal"}, {"scale_factor": 2}]
)
def test_a_network_is_the_same_function_there(
    as_on_a_device: Callable[[], None],
    options: dict[str, Any],
    batch: int,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = _network(**options).double()
    x = torch.randn(batch, 3, *SHAPE, generator=torch.Generator().manual_seed(1)).double().requires_grad_()

    def results() -> list[Tensor]:
        with torch.no_grad():
            plain = net(x)
        y = net(x)
        gradients = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), [x, *net.parameters()])
        return [plain, y.detach(), *gradients]

    before = results()
    as_on_a_device()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    for a, b in zip(results(), before, strict=True):
        assert float((a - b).abs().max()) < 1e-7 * max(1.0, float(b.abs().max()))  # tables are float32
