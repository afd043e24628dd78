"""Our SFNO with the peer's weights gives the peer's outputs and gradients (fme 2026.10.0).

Golden file: benchmarks/peer/golden_sfno.py. Tolerances: outputs 1e-5, gradients 1e-4, relative to the largest value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ace_core.interop.sfno_names import to_ours
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


def ours_of(case: str, kind: str) -> dict[str, torch.Tensor]:
    """The peer's parameters (p) or their gradients (g) under our names and in our layout."""
    prefix = f"{case}/{kind}/"
    return to_ours({k.removeprefix(prefix): torch.from_numpy(GOLDEN[k]) for k in GOLDEN if k.startswith(prefix)})


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    scale = max(float(theirs.detach().abs().max()), floor)
    assert float((ours - theirs).detach().abs().max()) < tolerance * scale, what


@pytest.mark.parametrize("case", CASES)
def test_same_weights_same_outputs_and_gradients(case: str) -> None:
    net = SphericalFourierNeuralOperatorNet(3, 4, (8, 16), embed_dim=6, num_layers=2, **CASES[case])  # type: ignore[arg-type]
    net.load_state_dict(ours_of(case, "p"))
    x = torch.from_numpy(GOLDEN[f"{case}/x"]).requires_grad_()
    y = net(x)
    close(y, torch.from_numpy(GOLDEN[f"{case}/y"]), 1e-5, "output")
    (y * torch.from_numpy(GOLDEN[f"{case}/pull"])).sum().backward()
    assert x.grad is not None
    close(x.grad, torch.from_numpy(GOLDEN[f"{case}/dx"]), 1e-4, "input gradient")
    gradients, own = ours_of(case, "g"), dict(net.named_parameters())
    assert set(gradients) == set(own)
    # A bias before an instance norm has no effect: its gradient is rounding, to be compared with the others' size.
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, theirs in gradients.items():
        gradient = own[name].grad
        assert gradient is not None
        close(gradient, theirs, 1e-4, name, floor=1e-2 * largest)
