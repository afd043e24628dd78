"""SongUNet: the peer's outputs and gradients with its weights (fme 2026.10.0), dropout by key, layouts, sides that do not halve.

Golden file: benchmarks/peer/golden_song_unet.py. Tolerances: outputs 1e-5, gradients 1e-4, relative to the largest value.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.downscaling.song_unet import SongUNet
from ace_core.downscaling.song_unet_names import song_unet_from_fme

GOLDEN = np.load(Path(__file__).parent.with_name("golden") / "song_unet.npz")
SMALL: dict[str, Any] = {
    "model_channels": 4,
    "channel_mult": [1, 2],
    "channel_mult_emb": 1,
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
FILTER = [1, 3, 3, 1]
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (12, {}),
    "attention": (8, {"attn_resolutions": [4, 8], "model_channels": 8}),
    "no_bottleneck": (8, {"bottleneck_attention": False, "channel_mult": [2, 1, 1]}),
    "fourier": (8, {"embedding_type": "fourier", "channel_mult_noise": 2}),
    "zero": (8, {"embedding_type": "zero"}),
    "skip": (8, {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 1, 2]}),
    "residual": (8, {"encoder_type": "residual", "decoder_type": "skip"}),
    "filter": (8, {"encoder_type": "residual", "decoder_type": "skip", "resample_filter": FILTER}),
    "filter_skip": (8, {"encoder_type": "skip", "resample_filter": FILTER}),
}
WRITTEN = sorted(name.removesuffix("/y") for name in GOLDEN if name.endswith("/y"))


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name].astype(np.float32))


def peer_tensors(key: str, what: str) -> dict[str, Tensor]:
    """The peer's state (p) or its gradients (g) by name."""
    shapes = json.loads(str(GOLDEN[f"{key}/names"]))
    pieces = golden(f"{key}/{what}").split([math.prod(shape) for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces)}


def build(key: str) -> SongUNet:
    resolution, config = CASES[key[:-1]]
    net = SongUNet(resolution, 3, 2, **(SMALL | config))
    net.load_state_dict(song_unet_from_fme(peer_tensors(key, "p")))
    return net


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    scale = max(float(theirs.abs().max()), floor)
    error = float((ours - theirs).detach().abs().max())
    assert error < tolerance * scale, f"{what}: {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize("key", WRITTEN)
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_same_weights_same_output(key: str, mode: str) -> None:
    net = build(key).train(mode == "train")
    x = golden(f"{key}/x").requires_grad_(mode != "no_grad")
    with torch.set_grad_enabled(mode != "no_grad"):
        y = net(x, golden(f"{key}/level"))
    close(y, golden(f"{key}/y"), 1e-5, "output")
    if mode == "no_grad":
        return
    (y * golden(f"{key}/pull")).sum().backward()
    assert x.grad is not None
    close(x.grad, golden(f"{key}/dx"), 1e-4, "gradient of the input")


@pytest.mark.parametrize("key", ["attention1", "attention2"])
def test_same_weights_same_gradients(key: str) -> None:
    net = build(key).train()
    (net(golden(f"{key}/x"), golden(f"{key}/level")) * golden(f"{key}/pull")).sum().backward()
    gradients = song_unet_from_fme(peer_tensors(key, "g"))
    own = dict(net.named_parameters())
    assert set(own) == set(gradients)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, theirs in gradients.items():
        gradient = own[name].grad
        assert gradient is not None, name
        # A bias before a norm has next to no effect: its gradient is rounding, to be compared with the others' size.
        close(gradient, theirs, 1e-4, name, floor=1e-2 * largest)
