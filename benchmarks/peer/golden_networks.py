"""Outputs and gradients of the peer's Samudra, LandNet and SFNO-v0.1.0 on random weights -> tests/golden/networks.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_networks.py

Weights, input, noise and what the output is multiplied with are drawn from their names on both sides, so that only results are
kept. Per case: the names and shapes of the peer's state dict, the output, and the gradient of every parameter and of the input.
"""

import json
import types
import zlib
from pathlib import Path

import numpy as np
import torch
from fme.ace.registry.land_net import LandNetBuilder
from fme.ace.registry.m2lines import SamudraBuilder
from fme.ace.registry.sfno import SFNO_V0_1_0
from fme.core.models.conditional_sfno.layers import Context

N_IN, N_OUT, BATCH = 3, 2, 2
BUILDERS = {"Samudra": SamudraBuilder, "LandNet": LandNetBuilder, "SFNO-v0.1.0": SFNO_V0_1_0}
SMALL = {"ch_width": [4, 6], "dilation": [1, 2], "n_layers": [1, 1], "upscale_factor": 2}
SFNO = {"embed_dim": 4, "num_layers": 2, "scale_factor": 1}
NOISE = {"noise_embed_dim": 2}
# Of the weights: far from the small ones that would leave the norms little but rounding to divide by.
SCALE = {"Samudra": 0.3, "LandNet": 0.3, "SFNO-v0.1.0": 0.8}
# name -> (type, grid, options)
CASES = {
    "samudra": ("Samudra", (16, 32), SMALL),
    "samudra_one_level": ("Samudra", (6, 8), {"ch_width": [3], "dilation": [2], "n_layers": [1], "upscale_factor": 3}),
    "samudra_odd": ("Samudra", (9, 19), SMALL | {"pad": "reflect", "norm": "layer", "checkpoint_strategy": "all"}),
    "samudra_poles": (
        "Samudra",
        (9, 19),
        SMALL | {"lat_pad": "pole", "norm": "batch", "zonally_periodic_upsample": True, "norm_kwargs": {"eps": 1e-3}},
    ),
    "samudra_affine": (
        "Samudra",
        (8, 16),
        SMALL | {"norm_kwargs": {"affine": True, "eps": 1e-4}, "pad": "constant", "checkpoint_strategy": "simple"},
    ),
    "samudra_periodic": ("Samudra", (8, 16), SMALL | {"pad": "replicate", "zonally_periodic_upsample": True}),
    "samudra_long_dilation": ("Samudra", (16, 16), SMALL | {"dilation": [1, 2, 3], "lat_pad": "pole"}),
    "samudra_noise": (
        "Samudra",
        (9, 18),
        SMALL | NOISE | {"conditioned_blocks": "all_blocks", "norm": "layer"},
    ),
    "samudra_bottleneck": (
        "Samudra",
        (8, 16),
        SMALL | NOISE | {"conditioned_blocks": "bottleneck", "checkpoint_strategy": "all"},
    ),
    "land": ("LandNet", (6, 8), {"hidden_dims": [5, 7]}),
    "land_where": ("LandNet", (6, 8), {"hidden_dims": [5], "use_positional_embedding": True}),
    "v0": ("SFNO-v0.1.0", (8, 16), SFNO),
    "v0_frequency": ("SFNO-v0.1.0", (8, 16), SFNO | {"pos_embed": "frequency", "scale_factor": 2, "repeat_layers": 2}),
    "v0_equiangular": (
        "SFNO-v0.1.0",
        (9, 16),
        SFNO | {"data_grid": "equiangular", "encoder_layers": 2, "big_skip": False, "checkpointing": 3},
    ),
    # The peer starts diagonal weights in a way that needs as many degrees as orders.
    "v0_diagonal": (
        "SFNO-v0.1.0",
        (8, 14),
        SFNO | {"operator_type": "diagonal", "pos_embed": "none", "normalization_layer": "none", "use_mlp": False},
    ),
    "v0_truncated": (
        "SFNO-v0.1.0",
        (8, 16),
        SFNO | {"hard_thresholding_fraction": 0.75, "activation_function": "silu", "num_layers": 3, "checkpointing": 2},
    ),
    "v0_plane": ("SFNO-v0.1.0", (8, 16), SFNO | {"spectral_transform": "fft", "scale_factor": 2, "num_layers": 3}),
    "v0_plane_odd": (
        "SFNO-v0.1.0",
        (9, 14),
        SFNO
        | {
            "spectral_transform": "fft",
            "hard_thresholding_fraction": 0.8,
            "pos_embed": "frequency",
            "checkpointing": 3,
        },
    ),
    "v0_plane_diagonal": (
        "SFNO-v0.1.0",
        (8, 14),
        SFNO | {"spectral_transform": "fft", "operator_type": "diagonal", "pos_embed": "none"},
    ),
    "v0_plane_cp": (
        "SFNO-v0.1.0",
        (8, 16),
        SFNO | {"spectral_transform": "fft", "factorization": "ComplexCP", "rank": 0.4, "pos_embed": "none"},
    ),
    "v0_cp": ("SFNO-v0.1.0", (8, 16), SFNO | {"factorization": "ComplexCP", "rank": 0.4, "pos_embed": "none"}),
    "v0_tt": (
        "SFNO-v0.1.0",
        (8, 16),
        SFNO | {"factorization": "ComplexTT", "operator_type": "diagonal", "rank": 0.2, "pos_embed": "none"},
    ),
    "v0_dense": ("SFNO-v0.1.0", (8, 16), SFNO | {"factorization": "ComplexDense", "pos_embed": "none"}),
}


def draw(case: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers that depend on the two names alone."""
    rng = np.random.default_rng(zlib.crc32(f"{case}/{name}".encode()))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    cases: dict[str, object] = {}
    for case, (kind, grid, options) in CASES.items():
        net = BUILDERS[kind](**options).build(N_IN, N_OUT, types.SimpleNamespace(all_labels=set(), img_shape=grid))
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(SCALE[kind] * draw(case, name, tuple(p.shape)))
        state = {name: list(value.shape) for name, value in net.state_dict().items()}
        x = draw(case, "x", (BATCH, N_IN, *grid)).requires_grad_()
        if "noise_embed_dim" in options:
            noise = draw(case, "noise", (BATCH, options["noise_embed_dim"], *grid))
            y = net.conditional_model(x, Context(embedding_scalar=None, embedding_pos=None, labels=None, noise=noise))
        else:
            y = net(x)
        (y * draw(case, "pull", tuple(y.shape))).sum().backward()
        arrays |= {f"{case}/y": y.detach().numpy(), f"{case}/dx": x.grad.numpy()}
        for name, p in net.named_parameters():
            arrays[f"{case}/g/{name}"] = p.grad.numpy()
        statistics = [n for n in state if "running" in n and options.get("checkpoint_strategy") is None]
        arrays |= {f"{case}/s/{n}": net.state_dict()[n].numpy() for n in statistics}
        cases[case] = {"kind": kind, "grid": grid, "options": options, "scale": SCALE[kind], "state": state}
    # A zip member costs a hundred bytes or two: one array of results, and where each begins.
    places, start = {}, 0
    for key, value in arrays.items():
        places[key] = [start, list(value.shape)]
        start += value.size
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "networks.npz"
    flat = np.concatenate([value.ravel() for value in arrays.values()]).astype(np.float32)
    header = np.frombuffer(json.dumps({"cases": cases, "places": places}).encode(), np.uint8)
    np.savez_compressed(path, values=flat, header=header)
    print(path, path.stat().st_size)


main()
