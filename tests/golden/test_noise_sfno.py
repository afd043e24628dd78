"""Our noise-conditioned SFNO with the peer's weights and noise gives the peer's outputs and gradients (fme 2026.10.0).

Golden file: benchmarks/peer/golden_noise_sfno.py. Tolerances: outputs 1e-5, gradients 1e-4, relative to the largest value.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ace_core.errors import DataError
from ace_core.interop.noise_sfno_names import to_ours, to_peer
from ace_core.models.noise_sfno import NoiseConditionedSFNO, NoiseConditionedSFNOConfig

GOLDEN = np.load(Path(__file__).with_name("noise_sfno.npz"))
LORA = {"lora_rank": 2, "lora_alpha": 3.0, "spectral_lora_rank": 1, "spectral_lora_alpha": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"pos_embed": True},
    "labels": {"context_pos_embed_dim": 2, "affine_norms": True, "normalize_big_skip": True},
    "label_embedding": {"label_embed_dim": 2, "encoder_layers": 2, "activation_function": "silu"},
    "isotropic": {"noise_type": "isotropic", "activation_function": "relu", "mlp_ratio": 1.5},
    "filters": {"filter_residual": True, "filter_output": True, "normalize_big_skip": True},
    "groups": {"filter_num_groups": 2, "filter_preserves_global_mean": True, **LORA},
    "ratio": {"spectral_ratio": 0.8, "filter_residual": True, "big_skip": False},
    "global_norm": {"num_layers": 1, "global_layer_norm": True, "affine_norms": True},
    "makani": {"filter_type": "makani-linear", "use_mlp": False, "filter_num_groups": 2, "filter_residual": True},
    "equiangular": {"data_grid": "equiangular", "filter_preserves_global_mean": True},
    "makani_equiangular": {
        "data_grid": "equiangular",
        "filter_type": "makani-linear",
        "filter_num_groups": 4,
        "use_mlp": False,
    },
    "clip": {"clip_latent_global_means": True, "affine_norms": True},
    "local": {"num_layers": 3, "local_blocks": [0, 2], "filter_residual": True, "affine_norms": True},
    "local_equiangular": {
        "num_layers": 3,
        "data_grid": "equiangular",
        "local_blocks": [0, 1, 2, 7],
        "lora_rank": 1,
        "noise_type": "isotropic",
    },
    "local_makani": {
        "num_layers": 1,
        "data_grid": "equiangular",
        "local_blocks": [0],
        "filter_type": "makani-linear",
        "filter_num_groups": 2,
        "use_mlp": False,
    },
    "everything": {
        "noise_type": "isotropic",
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


def tensors(case: str, what: str) -> dict[str, torch.Tensor]:
    """The peer's state dict, or the gradients of its parameters."""
    shapes, values = json.loads(bytes(GOLDEN[f"{case}/names"])), torch.from_numpy(GOLDEN[f"{case}/{what}"])
    out, at = {}, 0
    for name, shape in shapes.items():
        real = [2 if n == "complex" else n for n in shape]
        n = math.prod(real)
        if at + n > len(values):
            assert what == "g", name
            break
        value = values[at : at + n].view(real)
        out[name] = torch.view_as_complex(value) if shape[-1] == "complex" else value
        at += n
    assert at == len(values)
    return out


def network(case: str) -> NoiseConditionedSFNO:
    options = {"embed_dim": 8, "num_layers": 2, "noise_embed_dim": 2, "pos_embed": False} | CASES[case]
    labels = GOLDEN.get(f"{case}/labels")
    n_labels = 0 if labels is None else labels.shape[1]
    return NoiseConditionedSFNO(2, 2, (8, 16), NoiseConditionedSFNOConfig(**options), n_labels).eval()


def noise(case: str, net: NoiseConditionedSFNO) -> torch.Tensor:
    """The noise the peer drew: values, or real and imaginary parts of coefficients [B, N, L, M]."""
    first = torch.from_numpy(GOLDEN[f"{case}/noise0"])
    if net.config.noise_type == "gaussian":
        return first.permute(0, 2, 3, 1)
    second = torch.from_numpy(GOLDEN[f"{case}/noise1"])
    return net.isotropic(torch.stack([first, second]).permute(4, 3, 1, 0, 2))


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    scale = max(float(theirs.abs().max()), floor)
    assert ours.shape == theirs.shape, what
    assert float((ours.detach() - theirs).abs().max()) < tolerance * scale, what


@pytest.mark.parametrize("case", CASES)
def test_same_weights_and_noise_same_outputs_and_gradients(case: str) -> None:
    net = network(case)
    net.load_state_dict(to_ours(tensors(case, "p")))
    x = torch.from_numpy(GOLDEN[f"{case}/x"]).requires_grad_()
    labels = torch.from_numpy(GOLDEN[f"{case}/labels"]) if net.n_labels else None
    y = net.conditioned(x, noise(case, net), labels)
    close(y, torch.from_numpy(GOLDEN[f"{case}/y"]), 1e-5, "output")
    (y * torch.from_numpy(GOLDEN[f"{case}/pull"])).sum().backward()
    assert x.grad is not None
    close(x.grad, torch.from_numpy(GOLDEN[f"{case}/dx"]), 1e-4, "input gradient")
    theirs, own = to_ours(tensors(case, "g")), dict(net.named_parameters())
    assert set(theirs) == set(own)
    # Some gradients vanish (of what a norm takes away again) and are rounding, to be compared with the others' size.
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        close(parameter.grad, theirs[name], 1e-4, name, floor=1e-2 * largest)


@pytest.mark.parametrize("case", CASES)
def test_names_and_values_survive_the_round_trip_bit_for_bit(case: str) -> None:
    """With L equal to the channels of a group (8 here, with one group) too, where the peer takes new weights for old ones."""
    peer = tensors(case, "p")
    back = to_peer(to_ours(peer))
    assert set(back) == set(peer)
    for name, value in peer.items():
        assert (
            torch.equal(torch.view_as_real(back[name]), torch.view_as_real(value))
            if value.is_complex()
            else torch.equal(back[name], value)
        ), name
        assert back[name].dtype == value.dtype, name


def test_old_spectral_weights_are_the_same_weights() -> None:
    new = tensors("groups", "p")  # G, L, O, I, R of 2, 8, 4, 4, 2
    spectral = [n for n in new if n.endswith(("filter.filter.weight", "lora_A", "lora_B"))]
    assert len(spectral) == 6
    old = new | {name: new[name].permute(0, 3, 2, 1, 4) for name in spectral}
    for key, value in to_ours(new).items():
        assert torch.equal(to_ours(old)[key], value), key
        assert torch.equal(to_ours(old, old_weights=True)[key], value), key
    square = tensors("plain", "p")  # 1, 8, 8, 8, 2: only the caller can know
    name = "conditional_model.blocks.0.filter.filter.weight"
    other = "conditional_model.blocks.1.filter.filter.weight"
    old = square | {n: square[n].permute(0, 3, 2, 1, 4) for n in (name, other)}
    oldest = square | {n: square[n].permute(0, 3, 2, 1, 4)[0] for n in (name, other)}
    for told in (to_ours(old, old_weights=True), to_ours(oldest)):
        assert torch.equal(told["blocks.0.filter.weight"], to_ours(square)["blocks.0.filter.weight"])


def test_tensors_of_another_network_are_refused() -> None:
    peer = tensors("plain", "p")
    with pytest.raises(DataError, match=r"blocks\.0\.filter\.filter\.conv\.bias"):
        to_ours(peer | {"conditional_model.blocks.0.filter.filter.conv.bias": torch.zeros(8)})
    del peer["conditional_model.blocks.0.norm0.W_bias_2d.weight"]
    with pytest.raises(DataError, match="only scale"):
        to_ours(peer)
    with pytest.raises(DataError, match=r"blocks\.0\.strange"):
        to_peer({"blocks.0.strange": torch.zeros(3)})
