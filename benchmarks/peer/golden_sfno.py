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
}


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
        x = torch.randn(2, 3, 8, 16, requires_grad=True)
        y = net(x)
        pull = torch.randn_like(y)
        (y * pull).sum().backward()
        arrays |= {f"{case}/x": x.detach().numpy(), f"{case}/y": y.detach().numpy(), f"{case}/pull": pull.numpy()}
        arrays[f"{case}/dx"] = x.grad.numpy()
        for name, p in net.named_parameters():
            arrays[f"{case}/p/{name}"] = p.detach().numpy()
            if p.grad is not None:
                arrays[f"{case}/g/{name}"] = p.grad.numpy()
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "sfno.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size)


main()
