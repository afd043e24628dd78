"""Outputs and gradients of the peer's deterministic SFNO on random weights -> tests/golden/sfno.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_sfno.py
"""

import types
from pathlib import Path

import numpy as np
import torch
from fme.ace.registry.sfno import SphericalFourierNeuralOperatorBuilder

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


def rounded(a: np.ndarray) -> np.ndarray:
    """float32 of 16 significant bits."""
    return ((np.ascontiguousarray(a).view(np.uint32) + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for case, options in CASES.items():
        torch.manual_seed(0)
        builder = SphericalFourierNeuralOperatorBuilder(embed_dim=6, num_layers=2, **options)
        info = types.SimpleNamespace(all_labels=set(), img_shape=(8, 16))
        net = builder.build(3, 4, info)
        for name, p in net.named_parameters():
            # The peer's own initial spectral weights are too small to test anything.
            torch.nn.init.normal_(p, std=0.3 if "filter" in name else 0.2)
            # Eight significant bits, which compress.
            p.data = p.data.bfloat16().float()
        x = torch.randn(2, 3, 8, 16).bfloat16().float().requires_grad_()
        y = net(x)
        pull = torch.randn_like(y).bfloat16().float()
        (y * pull).sum().backward()
        arrays |= {f"{case}/x": x.detach().numpy(), f"{case}/y": y.detach().numpy(), f"{case}/pull": pull.numpy()}
        arrays[f"{case}/dx"] = rounded(x.grad.numpy())
        for name, p in net.named_parameters():
            arrays[f"{case}/p/{name}"] = p.detach().numpy()
            if p.grad is not None:
                arrays[f"{case}/g/{name}"] = rounded(p.grad.numpy())
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "sfno.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size)


main()
