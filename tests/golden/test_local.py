"""Our local networks and Swin transformers with the peer's weights give the peer's outputs and gradients (fme 2026.10.0).

Golden file: benchmarks/peer/golden_local.py. Tolerances: outputs 1e-5, gradients 1e-4, relative to the largest value.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ace_core.grid import LatLonGrid
from ace_core.interop.local_names import to_ours, to_peer
from ace_core.models.disco import DiscoConvolution, DiscoTables
from ace_core.models.local_net import AnkurLocalNet, AnkurLocalNetBuilder, LocalNet, LocalNetBuilder
from ace_core.models.swin import NoiseConditionedSwinTransformerBuilder, SwinTransformerBuilder

GOLDEN = np.load(Path(__file__).with_name("local.npz"))
BUILDERS = {
    b.model_fields["type"].annotation.__args__[0]: b  # type: ignore[union-attr]
    for b in (LocalNetBuilder, AnkurLocalNetBuilder, SwinTransformerBuilder, NoiseConditionedSwinTransformerBuilder)
}
LOCAL = {"embed_dim": 4, "noise_embed_dim": 2, "block_types": ["disco", "conv1x1"]}
SWIN = {"embed_dim": 4, "num_heads": [1, 2, 2, 1], "window_size": [2, 4], "mlp_ratio": 0.5, "cpb_hidden_dim": 2}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "local": ("LocalNet", LOCAL),
    "local_labels": (
        "LocalNet",
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
    ),
    "local_plain": (
        "LocalNet",
        LOCAL
        | {
            "global_layer_norm": True,
            "use_mlp": False,
            "normalize_big_skip": False,
            "affine_norms": False,
            "kernel_shape": [2, 3],
            "activation_function": "silu",
        },
    ),
    "local_no_skip": (
        "LocalNet",
        LOCAL
        | {
            "embed_dim": 2,
            "noise_embed_dim": 0,
            "big_skip": False,
            "normalize_big_skip": False,
            "global_layer_norm": True,
        },
    ),
    "ankur": ("AnkurLocalNet", {"embed_dim": 6, "pos_embed": True}),
    "ankur_plain": ("AnkurLocalNet", {"embed_dim": 6, "use_disco_encoder": False, "activation_function": "relu"}),
    "swin": ("SwinTransformer", SWIN),
    "swin_labels": (
        "SwinTransformer",
        SWIN
        | {
            "use_skip": False,
            "mlp_layer": "swiglu",
            "padding_conf": {"activate": True, "mode": "earth", "pad_lat": [3, 1], "pad_lon": [2, 4]},
        },
    ),
    "swin_mirror": (
        "SwinTransformer",
        SWIN
        | {
            "use_cpb_scaling": False,
            "window_size": [3, 2],
            "padding_conf": {"activate": True, "mode": "mirror", "pad_lat": [1, 2], "pad_lon": [1, 0]},
        },
    ),
    "noise_swin": (
        "NoiseConditionedSwinTransformer",
        SWIN
        | {
            "noise_embed_dim": 2,
            "label_embed_dim": 2,
            "padding_conf": {"activate": True, "mode": "earth", "pad_lat": [0, 2], "pad_lon": [1, 1]},
        },
    ),
}


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name].astype(np.float32))


def build(case: str) -> tuple[nn.Module, str, int]:
    kind, config = CASES[case]
    n_labels = GOLDEN[f"{case}/labels"].shape[1] if f"{case}/labels" in GOLDEN else 0
    grid = LatLonGrid.gaussian(*GOLDEN[f"{case}/x"].shape[2:])
    builder = BUILDERS[kind].model_validate({"type": kind, "config": config, "conditional": n_labels > 0})
    return builder.build(3, 2, grid, n_labels).eval(), kind, n_labels  # type: ignore[attr-defined, no-any-return]


def peer_tensors(case: str, what: str) -> dict[str, Tensor]:
    """The peer's parameters (p) or their gradients (g) by name."""
    shapes = json.loads(str(GOLDEN[f"{case}/names"]))["parameters"]
    pieces = golden(f"{case}/{what}").split([int(np.prod(shape)) for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces)}


def run(net: nn.Module, case: str, x: Tensor) -> Tensor:
    labels = golden(f"{case}/labels") if f"{case}/labels" in GOLDEN else None
    if isinstance(net, AnkurLocalNet):
        out: Tensor = net(x)
        return out
    if isinstance(net, LocalNet) and net.isht is not None:
        drawn = torch.stack([golden(f"{case}/noise{i}") for i in range(2)])  # [R, B, N, L, M]
        noise = net.isotropic(drawn.permute(4, 3, 1, 0, 2))
    elif f"{case}/noise0" in GOLDEN:
        noise = golden(f"{case}/noise0").permute(0, 2, 3, 1)
    else:
        noise = x.new_empty(len(x), *x.shape[2:], 0)
    out = net.conditioned(x, noise, labels)  # type: ignore[operator]
    return out


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    scale = max(float(theirs.abs().max()), floor)
    error = float((ours - theirs).detach().abs().max())
    assert error < tolerance * scale, f"{what}: {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize("case", CASES)
def test_same_weights_same_outputs_and_gradients(case: str) -> None:
    net, kind, _ = build(case)
    loaded = to_ours(kind, peer_tensors(case, "p"))
    own = dict(net.named_parameters())
    assert set(loaded) == set(own)
    net.load_state_dict(loaded, strict=False)
    x = golden(f"{case}/x").requires_grad_()
    y = run(net, case, x)
    close(y, golden(f"{case}/y"), 1e-5, "output")
    (y * golden(f"{case}/pull")).sum().backward()
    assert x.grad is not None
    close(x.grad, golden(f"{case}/dx"), 1e-4, "input gradient")
    # A bias before a norm over the grid has no effect: its gradient is rounding, to be compared with the others' size.
    gradients = to_ours(kind, peer_tensors(case, "g"))
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, theirs in gradients.items():
        gradient = own[name].grad
        assert gradient is not None, name
        close(gradient, theirs, 1e-4, name, floor=1e-2 * largest)


@pytest.mark.parametrize("case", CASES)
def test_names_there_and_back(case: str) -> None:
    net, kind, _ = build(case)
    state = net.state_dict()
    peer = to_peer(kind, state)
    names = json.loads(str(GOLDEN[f"{case}/names"]))
    assert {n: list(v.shape) for n, v in peer.items()} == names["parameters"] | names["buffers"]
    back = to_ours(kind, peer)
    assert set(back) == set(state)
    assert all(torch.equal(back[n], v) for n, v in state.items())


@pytest.mark.parametrize(
    ("case", "grid", "kernel_shape", "cutoff"),
    [("gauss", "legendre-gauss", (3, 3), 1.4), ("equiangular", "equiangular", (2, 3), 0.7)],
)
def test_convolution_in_groups_on_either_grid(
    case: str, grid: str, kernel_shape: tuple[int, int], cutoff: float
) -> None:
    conv = DiscoConvolution(4, 6, DiscoTables((10, 20), cutoff, grid, kernel_shape), groups=2)
    conv.load_state_dict({"weight": golden(f"conv_{case}/p")})
    y = conv(golden(f"conv_{case}/x").permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    close(y, golden(f"conv_{case}/y"), 1e-5, "output")
