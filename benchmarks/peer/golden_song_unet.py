"""Outputs and gradients of the peer's SongUNets on random weights -> tests/golden/song_unet.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_song_unet.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from fme.downscaling.modules.physicsnemo_unets_v1 import SongUNet
from fme.downscaling.modules.physicsnemo_unets_v2 import SongUNetv2

SMALL = {
    "model_channels": 4,
    "channel_mult": [1, 2],
    "channel_mult_emb": 1,
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
# name: resolution, shape, configuration
CASES = {
    "plain": (12, (12, 16), SMALL),
    "attention": (8, (8, 16), SMALL | {"attn_resolutions": [4, 8], "model_channels": 8}),
    "no_bottleneck": (8, (8, 12), SMALL | {"bottleneck_attention": False, "channel_mult": [2, 1, 1]}),
    "fourier": (8, (8, 12), SMALL | {"embedding_type": "fourier", "channel_mult_noise": 2}),
    "zero": (8, (8, 8), SMALL | {"embedding_type": "zero"}),
    "skip": (8, (8, 12), SMALL | {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 1, 2]}),
    "residual": (8, (8, 12), SMALL | {"encoder_type": "residual", "decoder_type": "skip"}),
    "filter": (
        8,
        (8, 12),
        SMALL | {"encoder_type": "residual", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    ),
    "filter_skip": (8, (8, 12), SMALL | {"encoder_type": "skip", "resample_filter": [1, 3, 3, 1]}),
}


def half(x: torch.Tensor) -> torch.Tensor:
    """Rounded to numbers that take two bytes in the file."""
    return x.half().float()


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for case, (resolution, shape, config) in CASES.items():
        for version in (1, 2) if case in ("attention", "skip") else (2,):
            torch.manual_seed(0)
            # In training: in evaluation both versions divide by one value fewer than there are.
            if version == 1:
                net = SongUNet(resolution, 3, 2, **config).train()
            else:
                net = SongUNetv2(resolution, 3, 2, use_apex_gn=False, amp_mode=False, **config).train()
            for p in net.parameters():
                # The peer starts second convolutions at almost zero, where nothing is tested.
                p.data = half(torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.5) + (0.7 if p.ndim == 1 else 0.0))
            x = half(torch.randn(2, 3, *shape)).requires_grad_()
            level = half(torch.tensor([-1.1, 0.6]))
            y = net(x, level, None)
            pull = half(torch.randn_like(y))
            (y * pull).sum().backward()
            key = f"{case}{version}"
            arrays |= {f"{key}/x": x.detach().numpy().astype(np.float16), f"{key}/level": level.numpy()}
            arrays |= {
                f"{key}/y": y.detach().numpy(),
                f"{key}/pull": pull.numpy().astype(np.float16),
                f"{key}/dx": x.grad.numpy(),
            }
            if version == 2 and case == "plain":
                with torch.no_grad():
                    arrays[f"{key}/eval"] = net.eval()(x, level, None).numpy()
            # One array of all, because every array of the file costs a few hundred bytes.
            state = net.state_dict()
            arrays[f"{key}/names"] = np.array(json.dumps({name: list(v.shape) for name, v in state.items()}))
            values = np.concatenate([v.numpy().ravel() for v in state.values()])
            arrays[f"{key}/p"] = values.astype(np.float32 if case == "fourier" else np.float16)
            if case == "attention":
                gradients = {name: p.grad for name, p in net.named_parameters()}
                arrays[f"{key}/g"] = np.concatenate(
                    [gradients.get(name, torch.zeros_like(v)).numpy().ravel() for name, v in state.items()]
                )
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "song_unet.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size)


main()
