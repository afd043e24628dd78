"""Our SFNO with the peer's weights gives the peer's outputs and gradients (fme 2026.10.0).

Golden file: benchmarks/peer/golden_sfno.py. Tolerances: outputs 1e-5, gradients 1e-4, relative to the largest value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ace_core.grid import LatLonGrid
from ace_core.interop.sfno_names import to_ours, to_peer
from ace_core.models.builders import SFNOBuilder, SFNOConfig

GOLDEN = np.load(Path(__file__).with_name("sfno.npz"))
CASES: dict[str, dict[str, Any]] = {
    "dhconv": {"operator_type": "dhconv"},
    "diagonal": {"operator_type": "diagonal", "big_skip": False},
    "scaled": {"operator_type": "dhconv", "scale_factor": 2, "encoder_layers": 2},
    "no_norm": {
        "operator_type": "dhconv",
        "normalization_layer": "none",
        "use_mlp": False,
        "activation_function": "relu",
    },
    "cp": {"pos_embed": False, "operator_type": "dhconv", "factorization": "cp", "rank": 0.3},
    "cp_diagonal": {"pos_embed": False, "factorization": "ComplexCP", "rank": 5, "scale_factor": 2},
    "cp_separable": {"pos_embed": False, "factorization": "CP", "rank": 0.5, "separable": True},
    "tt": {"pos_embed": False, "operator_type": "dhconv", "factorization": "tt", "rank": 0.5},
    "tt_diagonal": {
        "pos_embed": False,
        "normalization_layer": "none",
        "factorization": "tt",
        "rank": 0.1,
        "scale_factor": 2,
    },
    "tt_separable": {
        "pos_embed": False,
        "operator_type": "dhconv",
        "factorization": "tt",
        "rank": 2,
        "separable": True,
    },
    "dense": {"pos_embed": False, "operator_type": "dhconv", "factorization": "dense"},
    "dense_separable": {"pos_embed": False, "factorization": "dense", "separable": True},
    "nonlinear": {"pos_embed": False, "filter_type": "non-linear", "data_grid": "equiangular"},
    "nonlinear_degrees": {
        "pos_embed": False,
        "normalization_layer": "none",
        "filter_type": "non-linear",
        "operator_type": "l-dependant",
        "complex_activation": "cartesian",
        "spectral_layers": 2,
        "scale_factor": 2,
    },
    "nonlinear_halfplane": {
        "pos_embed": False,
        "filter_type": "non-linear",
        "complex_activation": "halfplane",
        "spectral_layers": 2,
        "use_mlp": False,
    },
}


def ours_of(case: str, kind: str) -> dict[str, torch.Tensor]:
    """The peer's parameters (p) or their gradients (g) under our names and in our layout."""
    return to_ours(theirs(case, kind), separable=CASES[case].get("separable", False))


def theirs(case: str, kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{case}/{kind}/"
    return {k.removeprefix(prefix): torch.from_numpy(GOLDEN[k]) for k in GOLDEN if k.startswith(prefix)}


def network(case: str) -> nn.Module:
    options = {"embed_dim": 6, "num_layers": 2} | CASES[case]
    builder = SFNOBuilder(type="SphericalFourierNeuralOperatorNet", config=SFNOConfig.model_validate(options))
    even = LatLonGrid(np.linspace(-90, 90, 8), np.arange(16) * 22.5)
    return builder.build(3, 4, even if options.get("data_grid") == "equiangular" else LatLonGrid.gaussian(8, 16))


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    scale = max(float(theirs.detach().abs().max()), floor)
    assert float((ours - theirs).detach().abs().max()) < tolerance * scale, what


@pytest.mark.parametrize("case", CASES)
def test_same_weights_same_outputs_and_gradients(case: str) -> None:
    net = network(case)
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
    for name, expected in gradients.items():
        gradient = own[name].grad
        assert gradient is not None
        close(gradient, expected, 1e-4, name, floor=1e-2 * largest)


@pytest.mark.parametrize("case", CASES)
def test_names_and_values_survive_the_round_trip_bit_for_bit(case: str) -> None:
    net, peer = network(case), theirs(case, "p")
    net.load_state_dict(ours_of(case, "p"))
    back = to_peer(net.state_dict(), separable=CASES[case].get("separable", False))
    assert set(back) == set(peer)
    assert all(torch.equal(back[name], value) for name, value in peer.items())
