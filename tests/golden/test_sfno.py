"""Our SFNO with the peer's weights gives the peer's outputs and gradients (fme 2026.10.0).

Golden file: benchmarks/peer/golden_sfno.py. Tolerances: outputs 1e-5, gradients 1e-4, relative to the largest value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ace_core.models.sfno import SphericalFourierNeuralOperatorNet

GOLDEN = np.load(Path(__file__).with_name("sfno.npz"))
CASES = {
    "dhconv": {"operator_type": "dhconv"},
    "diagonal": {"operator_type": "diagonal", "big_skip": False},
    "scaled": {"operator_type": "dhconv", "scale_factor": 2, "encoder_layers": 2},
    "no_norm": {
        "operator_type": "dhconv",
        "normalization_layer": "none",
        "use_mlp": False,
        "activation_function": "relu",
    },
}


def our_name(name: str) -> str:
    return name.replace("filter.filter", "filter").replace("mlp.fwd.0", "mlp.up").replace("mlp.fwd.2", "mlp.down")


def our_layout(name: str, value: np.ndarray) -> torch.Tensor:
    """The peer's channels-first parameter as ours."""
    t = torch.from_numpy(value)
    if name == "pos_embed":
        return t[0].permute(1, 2, 0)
    if name.endswith("filter.filter.bias"):
        return t.flatten()
    if name.endswith("filter.filter.weight"):  # in, out, L(, M), R -> L(, M), in, R, out
        return t.permute(2, 0, 3, 1) if t.ndim == 4 else t.permute(2, 3, 0, 4, 1)
    return t[..., 0, 0] if t.ndim == 4 else t


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    scale = max(float(theirs.detach().abs().max()), floor)
    assert float((ours - theirs).detach().abs().max()) < tolerance * scale, what


@pytest.mark.parametrize("case", CASES)
def test_same_weights_same_outputs_and_gradients(case: str) -> None:
    net = SphericalFourierNeuralOperatorNet(3, 4, (8, 16), embed_dim=6, num_layers=2, **CASES[case])  # type: ignore[arg-type]
    parameters = {k.split("/p/")[1]: GOLDEN[k] for k in GOLDEN if k.startswith(f"{case}/p/")}
    own = dict(net.named_parameters())
    assert {our_name(n) for n in parameters} == set(own)
    with torch.no_grad():
        for name, value in parameters.items():
            own[our_name(name)].copy_(our_layout(name, value))
    x = torch.from_numpy(GOLDEN[f"{case}/x"]).requires_grad_()
    y = net(x)
    close(y, torch.from_numpy(GOLDEN[f"{case}/y"]), 1e-5, "output")
    (y * torch.from_numpy(GOLDEN[f"{case}/pull"])).sum().backward()
    assert x.grad is not None
    close(x.grad, torch.from_numpy(GOLDEN[f"{case}/dx"]), 1e-4, "input gradient")
    # A bias before an instance norm has no effect: its gradient is rounding, to be compared with the others' size.
    largest = max(float(np.abs(GOLDEN[f"{case}/g/{name}"]).max()) for name in parameters)
    for name in parameters:
        gradient = own[our_name(name)].grad
        assert gradient is not None
        theirs = our_layout(name, GOLDEN[f"{case}/g/{name}"])
        close(gradient, theirs, 1e-4, name, floor=1e-2 * largest)
