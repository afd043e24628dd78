"""Outputs and gradients of the peer's local networks and Swin transformers on random weights -> tests/golden/local.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_local.py
"""

import json
import types
from pathlib import Path

import fme.ace.registry.stochastic_sfno as stochastic
import numpy as np
import torch
from fme.ace.registry.local_net import AnkurLocalNetBuilder, LocalNetBuilder
from fme.ace.registry.swin_transformer import NoiseConditionedSwinTransformerBuilder, SwinTransformerBuilder
from fme.core.disco import DiscreteContinuousConvS2

SHAPE = (10, 20)
SWIN_SHAPE = (6, 10)
LOCAL = {"embed_dim": 4, "noise_embed_dim": 2, "block_types": ["disco", "conv1x1"]}
SWIN = {"embed_dim": 4, "num_heads": [1, 2, 2, 1], "window_size": [2, 4], "mlp_ratio": 0.5, "cpb_hidden_dim": 2}
CASES = {
    "local": (LocalNetBuilder, LOCAL, 0),
    "local_labels": (
        LocalNetBuilder,
        LOCAL
        | {
            "label_embed_dim": 2,
            "context_pos_embed_dim": 2,
            "noise_type": "isotropic",
            "lora_rank": 2,
            "lora_alpha": 3.0,
            "encoder_layers": 2,
            "pos_embed": False,
        },
        3,
    ),
    "local_plain": (
        LocalNetBuilder,
        LOCAL
        | {
            "global_layer_norm": True,
            "use_mlp": False,
            "normalize_big_skip": False,
            "affine_norms": False,
            "kernel_shape": (2, 3),
            "activation_function": "silu",
        },
        2,
    ),
    "local_no_skip": (
        LocalNetBuilder,
        LOCAL
        | {
            "embed_dim": 2,
            "noise_embed_dim": 0,
            "big_skip": False,
            "normalize_big_skip": False,
            "global_layer_norm": True,
        },
        0,
    ),
    "ankur": (AnkurLocalNetBuilder, {"embed_dim": 6, "pos_embed": True}, 0),
    "ankur_plain": (
        AnkurLocalNetBuilder,
        {"embed_dim": 6, "use_disco_encoder": False, "activation_function": "relu"},
        0,
    ),
    "swin": (SwinTransformerBuilder, SWIN, 0),
    "swin_labels": (
        SwinTransformerBuilder,
        SWIN
        | {
            "use_skip": False,
            "mlp_layer": "swiglu",
            "padding_conf": {"activate": True, "mode": "earth", "pad_lat": [3, 1], "pad_lon": [2, 4]},
        },
        2,
    ),
    "swin_mirror": (
        SwinTransformerBuilder,
        SWIN
        | {
            "use_cpb_scaling": False,
            "window_size": [3, 2],
            "padding_conf": {"activate": True, "mode": "mirror", "pad_lat": [1, 2], "pad_lon": [1, 0]},
        },
        0,
    ),
    "noise_swin": (
        NoiseConditionedSwinTransformerBuilder,
        SWIN
        | {
            "noise_embed_dim": 2,
            "label_embed_dim": 2,
            "padding_conf": {"activate": True, "mode": "earth", "pad_lat": [0, 2], "pad_lon": [1, 1]},
        },
        3,
    ),
}
TABLES = {"gauss": ("legendre-gauss", (3, 3), 1.4), "equiangular": ("equiangular", (2, 3), 0.7)}


def half(x: torch.Tensor) -> torch.Tensor:
    """Rounded to numbers that take two bytes in the file."""
    return x.half().float()


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    draws: list[torch.Tensor] = []

    def randn(shape: torch.Size, **options: object) -> torch.Tensor:
        draws.append(half(torch.randn(shape, **options)))
        return draws[-1].clone()

    stochastic.randn = randn
    for case, (builder, options, n_labels) in CASES.items():
        torch.manual_seed(0)
        ny, nx = SWIN_SHAPE if "swin" in case else SHAPE
        lat = torch.rad2deg(torch.arcsin(torch.from_numpy(np.polynomial.legendre.leggauss(ny)[0]))).float()
        info = types.SimpleNamespace(all_labels={f"l{i}" for i in range(n_labels)}, img_shape=(ny, nx), lat_1d=lat)
        net = builder(**options).build(3, 2, info).eval()
        for name, p in net.named_parameters():
            # The peer starts norms and gates at the identity, where nothing is tested.
            p.data = half(torch.randn_like(p) * (0.7 if "norm" in name or "cpb" in name else 0.4))
            if name.endswith("tau"):
                p.data = half(0.1 + p.data.abs())
        x = half(torch.randn(2, 3, ny, nx)).requires_grad_()
        labels = half(torch.randn(2, n_labels)) if n_labels else None
        draws.clear()
        y = net(x, labels) if n_labels else net(x)
        pull = half(torch.randn_like(y))
        (y * pull).sum().backward()
        arrays |= {f"{case}/x": x.detach().numpy().astype(np.float16), f"{case}/y": y.detach().numpy()}
        arrays |= {f"{case}/pull": pull.numpy().astype(np.float16), f"{case}/dx": x.grad.numpy()}
        if labels is not None:
            arrays[f"{case}/labels"] = labels.numpy().astype(np.float16)
        for i, draw in enumerate(draws):
            arrays[f"{case}/noise{i}"] = draw.numpy().astype(np.float16)
        # One array of all, because every array of the file costs a few hundred bytes.
        parameters = list(net.named_parameters())
        shapes = {name: list(p.shape) for name, p in parameters}
        fixed = {name: list(v.shape) for name, v in net.state_dict().items() if name not in shapes}
        arrays[f"{case}/names"] = np.array(json.dumps({"parameters": shapes, "buffers": fixed}))
        arrays[f"{case}/p"] = np.concatenate([p.detach().numpy().ravel() for _, p in parameters]).astype(np.float16)
        arrays[f"{case}/g"] = np.concatenate([p.grad.numpy().ravel() for _, p in parameters])
    for case, (grid, kernel_shape, cutoff) in TABLES.items():
        torch.manual_seed(0)
        conv = DiscreteContinuousConvS2(
            4, 6, SHAPE, SHAPE, kernel_shape, "morlet", "mean", 2, grid, grid, bias=False, theta_cutoff=cutoff
        )
        x = torch.randn(2, 4, *SHAPE)
        arrays |= {f"conv_{case}/x": x.numpy(), f"conv_{case}/p": conv.weight.detach().numpy()}
        arrays[f"conv_{case}/y"] = conv(x).detach().numpy()
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "local.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size)


main()
