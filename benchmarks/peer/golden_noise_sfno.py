"""Outputs and gradients of the peer's noise-conditioned SFNO on random weights -> tests/golden/noise_sfno.npz.

Of every case one vector of its parameters, one of their gradients (16 significant bits) and the names and shapes as JSON: a thousand
arrays of their own would be mostly headers. Parameters include the buffers of the state dict, which have no gradient.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_noise_sfno.py
"""

import json
import types
from pathlib import Path

import numpy as np
import torch
from fme.ace.registry import stochastic_sfno
from fme.ace.registry.stochastic_sfno import NoiseConditionedSFNOBuilder

N_LABELS = {"labels": 2, "label_embedding": 3, "global_norm": 2, "everything": 3}
CASES = {
    "plain": {},
    "labels": {"pos_embed": False, "context_pos_embed_dim": 2, "affine_norms": True, "normalize_big_skip": True},
    "label_embedding": {"pos_embed": False, "label_embed_dim": 2, "encoder_layers": 2, "activation_function": "silu"},
    "isotropic": {"noise_type": "isotropic", "pos_embed": False, "activation_function": "relu", "mlp_ratio": 1.5},
    "filters": {"filter_residual": True, "filter_output": True, "pos_embed": False, "normalize_big_skip": True},
    "groups": {
        "pos_embed": False,
        "filter_num_groups": 2,
        "filter_preserves_global_mean": True,
        "lora_rank": 2,
        "lora_alpha": 3.0,
        "spectral_lora_rank": 1,
        "spectral_lora_alpha": 0.5,
    },
    "ratio": {"pos_embed": False, "spectral_ratio": 0.8, "filter_residual": True, "big_skip": False},
    "global_norm": {"pos_embed": False, "num_layers": 1, "global_layer_norm": True, "affine_norms": True},
    "makani": {
        "pos_embed": False,
        "filter_type": "makani-linear",
        "use_mlp": False,
        "filter_num_groups": 2,
        "filter_residual": True,
    },
    "equiangular": {"pos_embed": False, "data_grid": "equiangular", "filter_preserves_global_mean": True},
    "makani_equiangular": {
        "pos_embed": False,
        "data_grid": "equiangular",
        "filter_type": "makani-linear",
        "filter_num_groups": 4,
        "use_mlp": False,
    },
    "clip": {"pos_embed": False, "clip_latent_global_means": True, "affine_norms": True},
    "local": {
        "pos_embed": False,
        "num_layers": 3,
        "local_blocks": [0, 2],
        "filter_residual": True,
        "affine_norms": True,
    },
    "local_equiangular": {
        "pos_embed": False,
        "num_layers": 3,
        "data_grid": "equiangular",
        "local_blocks": [0, 1, 2, 7],
        "lora_rank": 1,
        "noise_type": "isotropic",
    },
    "local_makani": {
        "pos_embed": False,
        "num_layers": 1,
        "data_grid": "equiangular",
        "local_blocks": [0],
        "filter_type": "makani-linear",
        "filter_num_groups": 2,
        "use_mlp": False,
    },
    "everything": {
        "noise_type": "isotropic",
        "pos_embed": False,
        "context_pos_embed_dim": 2,
        "label_embed_dim": 2,
        "filter_num_groups": 2,
        "spectral_ratio": 0.8,
        "lora_rank": 1,
        "spectral_lora_rank": 2,
        "spectral_lora_alpha": 3.0,
        "filter_preserves_global_mean": True,
        "filter_residual": True,
        "filter_output": True,
        "normalize_big_skip": True,
        "affine_norms": True,
        "checkpointing": 3,
    },
}


def short(*shape: int, std: float = 1.0) -> torch.Tensor:
    """Normal numbers of eight significant bits, which compress."""
    return (torch.randn(*shape) * std).bfloat16().float()


def rounded(a: np.ndarray) -> np.ndarray:
    """float32 of 16 significant bits."""
    return ((np.ascontiguousarray(a).view(np.uint32) + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)


def flat(t: torch.Tensor) -> np.ndarray:
    t = t.detach()
    return (torch.view_as_real(t) if t.is_complex() else t).flatten().numpy()


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for case, options in CASES.items():
        torch.manual_seed(0)
        builder = NoiseConditionedSFNOBuilder(**({"embed_dim": 8, "num_layers": 2, "noise_embed_dim": 2} | options))
        n_labels = N_LABELS.get(case, 0)
        net = builder.build(2, 2, types.SimpleNamespace(all_labels=set(range(n_labels)), img_shape=(8, 16)))
        drawn = []

        def randn(shape, drawn=drawn, **kwargs):
            drawn.append(short(*shape))
            return drawn[-1].clone()

        stochastic_sfno.randn = randn
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name.endswith("norm.weight"):
                    p.copy_(1 + short(*p.shape, std=0.2))
                elif p.is_complex():
                    p.copy_(torch.complex(short(*p.shape, std=0.3), short(*p.shape, std=0.3)))
                else:
                    p.copy_(short(*p.shape, std=0.3 if "filter" in name else 0.2))
            buffers = {n: b for n, b in net.named_buffers() if "_gm_" in n}
            for name, buffer in buffers.items():
                # Some means are below, some above, some inside.
                buffer.copy_(torch.linspace(-0.4, 0.4, 8)[None, :, None, None] + (0.1 if "max" in name else 0.0))
        net.eval()
        x = short(2, 2, 8, 16).requires_grad_()
        labels = torch.eye(n_labels)[[1, 0]] if n_labels else None
        if n_labels:
            labels[0, -1] = 1.0
            arrays[f"{case}/labels"] = labels.numpy()
        y = net(x, labels=labels)
        for i, noise in enumerate(drawn):
            arrays[f"{case}/noise{i}"] = noise.numpy()
        pull = short(*y.shape)
        (y * pull).sum().backward()
        arrays |= {f"{case}/x": x.detach().numpy(), f"{case}/y": y.detach().numpy(), f"{case}/pull": pull.numpy()}
        arrays[f"{case}/dx"] = rounded(x.grad.numpy())
        parameters = dict(net.named_parameters())
        assert set(parameters) | set(buffers) == set(net.state_dict())
        assert all(p.grad is not None for p in parameters.values())
        tensors = parameters | buffers
        shapes = {n: [*t.shape, "complex"] if t.is_complex() else list(t.shape) for n, t in tensors.items()}
        arrays[f"{case}/names"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
        arrays[f"{case}/p"] = np.concatenate([flat(t) for t in tensors.values()])
        arrays[f"{case}/g"] = rounded(np.concatenate([flat(p.grad) for p in parameters.values()]))
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "noise_sfno.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size)


main()
