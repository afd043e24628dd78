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
from torch.nn import functional

from ace_core.downscaling import conv
from ace_core.downscaling.group_norm import GroupNorm, norm_silu
from ace_core.downscaling.kernels import LOOPS
from ace_core.downscaling.song_unet import SongUNet, require_divisible
from ace_core.downscaling.song_unet_names import song_unet_from_fme
from ace_core.errors import ConfigError, DataError
from ace_core.models.context import NoiseKey
from tests.threads import threads

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
    scale = max(float(theirs.detach().abs().max()), floor)
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


def test_evaluation_of_the_peer_differs_by_one_point() -> None:
    """fme divides by n - 1 values of a group in evaluation: norms whose weight and eps are made so give its number."""
    net = build("plain2").eval()
    points = {"enc.0": 12 * 16, "enc.1": 6 * 8, "dec.0": 6 * 8, "dec.1": 12 * 16}
    for name, module in net.named_modules():
        if isinstance(module, GroupNorm):
            level = points[name[:5]]
            if name == "enc.1.down.norm0":
                level = 12 * 16
            elif name == "dec.1.up.norm0":
                level = 6 * 8
            n = level * len(module.weight) // module.groups
            module.weight.data *= math.sqrt((n - 1) / n)
            module.eps *= (n - 1) / n
    with torch.no_grad():
        y = net(golden("plain2/x"), golden("plain2/level"))
    close(y, golden("plain2/eval"), 1e-5, "output")
    assert float((golden("plain2/eval") - golden("plain2/y")).abs().max()) > 1e-3


WIDE = SMALL | {"model_channels": 64, "channel_mult": [1, 1], "dropout": 0.25}


def wide(seed: int = 0, **more: Any) -> SongUNet:
    torch.manual_seed(seed)
    net = SongUNet(12, 3, 2, **(WIDE | more))
    for p in net.parameters():
        p.data = torch.randn_like(p) * (0.05 if p.ndim > 1 else 0.3) + (0.7 if p.ndim == 1 else 0.0)
    return net


def test_fast_products_give_what_direct_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and gradients in float32, with Winograd's products, beside those in float64, which are direct."""
    fast, exact = wide(dropout=0.0), wide(dropout=0.0).double()
    x, level = torch.randn(2, 3, 12, 20), torch.tensor([-0.4, 0.3])
    y, reference = fast(x, level), exact(x.double(), level.double())
    close(y.double(), reference, 1e-5, "output")
    with torch.no_grad():
        close(fast(x, level).double(), reference, 1e-5, "output of packed kernels")
    pull = torch.randn_like(y)
    (y * pull).sum().backward()
    (reference * pull.double()).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in exact.parameters() if p.grad is not None)
    for (name, p), q in zip(fast.named_parameters(), exact.parameters()):
        assert p.grad is not None
        assert q.grad is not None
        close(p.grad.double(), q.grad, 1e-4, name, floor=1e-2 * largest)
    used: list[str] = []
    call = LOOPS.call
    monkeypatch.setattr(LOOPS, "call", lambda name, *a: used.append(name) or call(name, *a))
    fast(x, level)
    blocks = len(list(fast.blocks()))
    assert used.count("convolve") == 2 * blocks, "all but the first and the last convolution"
    assert used.count("norm_silu") == 2 * blocks + 1
    weight = torch.randn(16, 32, 3, 3).requires_grad_()
    nothing = conv.conv3x3(torch.randn(0, 12, 12, 32), weight, None)
    assert nothing.shape == (0, 12, 12, 16)
    nothing.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize(
    ("batch", "rows", "columns", "n_in", "n_out"),
    # Tiles that are not full, fields smaller than a tile, more tiles than a part has, halves of panels.
    [(2, 5, 12, 64, 96), (2, 6, 13, 16, 48), (1, 3, 2, 32, 16), (2, 45, 24, 32, 32), (3, 9, 17, 256, 80)],
)
def test_winograd_is_a_convolution(batch: int, rows: int, columns: int, n_in: int, n_out: int) -> None:
    """Value and gradients against torch's own in float64, with the same bits for every number of threads."""
    draw = torch.Generator().manual_seed(columns)
    shapes = ((batch, rows, columns, n_in), (n_out, n_in, 3, 3), (n_out,))
    x, weight, bias = (torch.randn(*s, generator=draw) for s in shapes)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    z = functional.conv2d(exact[0].permute(0, 3, 1, 2), exact[1] * 0.5, exact[2], padding=1).permute(0, 2, 3, 1)
    pull = torch.randn(z.shape, generator=draw)
    theirs = [z, *torch.autograd.grad(z, exact, pull.double())]
    found = []
    for n in (1, 2):
        with threads(n):
            mine = [t.clone().requires_grad_() for t in (x, weight, bias)]
            y = conv.conv3x3(mine[0], mine[1], mine[2], 0.5)
            assert y.grad_fn is not None
            assert "Winograd" in y.grad_fn.name()
            found.append([y, *torch.autograd.grad(y, mine, pull)])
    for one, two, other in zip(*found, theirs):
        assert torch.equal(one, two)
        close(one.double(), other, 5e-6, "value and gradients of field, weight, bias")


def test_packed_kernels_follow_the_weights() -> None:
    """The same weight, changed in place or by a fused optimizer, which does not say so, is packed anew."""
    x = torch.randn(1, 12, 12, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        once = conv.conv3x3(x, weight, None)
        assert torch.equal(conv.conv3x3(x, weight, None), once)
        close(conv.conv3x3(x, weight.mul_(2.0), None), 2.0 * once, 1e-6, "twice the weight")
        close(conv.conv3x3(x, weight, None, 0.5), once, 1e-6, "half of it")
    weight.requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for _ in range(2):
        y = conv.conv3x3(x, weight, None)
        with torch.no_grad():
            close(conv.conv3x3(x, weight, None), y, 1e-6, "as it is trained")
        optimizer.zero_grad()
        y.square().sum().backward()
        optimizer.step()
        trained = conv.conv3x3(x, weight, None)
        with torch.no_grad():
            close(conv.conv3x3(x, weight, None), trained, 1e-6, "trained")
        assert float((trained - y).detach().abs().max()) > 1.0


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("dtype", "channels", "batch"),
    # By operators, by loops: groups of 4, of 6 (no vector holds whole ones), a field for both threads.
    [(torch.float64, 24, 3), (torch.float32, 32, 3), (torch.float32, 192, 3), (torch.float32, 192, 1)],
)
def test_norm_silu_against_torch(dtype: torch.dtype, channels: int, batch: int, masked: bool) -> None:
    """Value and every gradient against torch's norm and SiLU in float64, also of fields whose mean is large; the mask too."""
    draw = torch.Generator().manual_seed(0)
    norm = GroupNorm(channels, 1e-3).double()
    for p in (norm.weight, norm.bias):
        p.data = torch.randn(channels, generator=draw, dtype=torch.float64)
    x, shift = (torch.randn(*s, generator=draw).double() for s in ((batch, 13, 6, channels), (batch, channels)))
    x = x + 100.0 * torch.randn(batch, 1, 1, channels, generator=draw)
    # As the masks of a network are: a part of the flags of all its blocks.
    flags = torch.rand(batch, 7 + x[0].numel() + 5, generator=draw) > 0.3
    keep = flags[:, 7:-5].view(x.shape) if masked else None
    exact = [x.requires_grad_(), *([shift.requires_grad_()] if masked else []), norm.weight, norm.bias]
    z = functional.silu(norm(x + shift[:, None, None] if masked else x)) * (keep if masked else 1.0)
    pull = torch.randn(z.shape, generator=draw)
    theirs = [z, *torch.autograd.grad(z, exact, pull.double())]
    size = 1e-11 if dtype == torch.float64 else 3e-5
    own = GroupNorm(channels, 1e-3).to(dtype)
    own.load_state_dict(norm.state_dict())
    found = []
    for n in (1, 2):
        with threads(n):
            mine = [t.detach().to(dtype).requires_grad_() for t in exact[:-2]]
            y = norm_silu(mine[0], own, mine[1] if masked else None, keep)
            assert y.grad_fn is not None
            found.append([y, *torch.autograd.grad(y, [*mine, own.weight, own.bias], pull.to(dtype))])
    for one, two, other in zip(*found, theirs):
        assert torch.equal(one, two)
        close(one.double(), other, size, "value and gradients of field, shift, weight, bias", floor=1e-3)


def test_silu_of_any_number() -> None:
    """Beside torch's in float64, from where e^x is nothing to where it overflows; what is no number stays none."""
    norm = GroupNorm(16, 0.0)
    z = torch.cat([torch.linspace(-120.0, 120.0, 4797), torch.tensor([0.0, 1e-30, -1e-30])])
    # A norm of scale 0: what comes out is SiLU(bias).
    norm.weight.data.zero_()
    for part in z.split(16):
        norm.bias.data = part.clone()
        y = norm_silu(torch.randn(1, 2, 2, 16), norm)[0, 0, 0]
        exact = functional.silu(part.double())
        assert torch.all((y.double() - exact).abs() <= 1e-6 * exact.abs() + 1e-36)
    norm.bias.data[3] = torch.nan
    assert norm_silu(torch.randn(1, 2, 2, 16), norm)[0, 0, 0].isnan().tolist() == [i == 3 for i in range(16)]


def test_without_a_compiler_operators_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = wide().train()
    x, level, key = torch.randn(3, 3, 12, 12), torch.tensor([0.1, -0.2, 0.3]), NoiseKey((5, 6, 7), 2)
    parameters = list(net.parameters())
    found = []
    assert LOOPS.have(torch.zeros(16))
    for have in (LOOPS.have, lambda _: False):
        monkeypatch.setattr(LOOPS, "have", have)
        y = net(x, level, key)
        found.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    largest = max(float(g.abs().max()) for g in found[0][1:])
    close(found[1][0], found[0][0], 1e-5, "output, with the same dropout")
    for a, b in zip(found[1][1:], found[0][1:]):
        close(a, b, 1e-4, "gradient", floor=1e-2 * largest)


def test_dropout_is_a_function_of_the_row_and_its_key() -> None:
    net = wide().train()
    x, level = torch.randn(3, 3, 12, 12), torch.tensor([0.1, -0.2, 0.3])
    all_rows = net(x, level, NoiseKey((5, 6, 7), 2))
    torch.manual_seed(123)
    assert torch.equal(net(x, level, NoiseKey((5, 6, 7), 2)), all_rows)
    alone = net(x[1:2], level[1:2], NoiseKey((6,), 2))
    close(alone, all_rows[1:2], 1e-5, "the row without the others")
    other = net(x, level, NoiseKey((5, 8, 7), 2))
    close(other[::2], all_rows[::2], 1e-6, "rows of the same key")
    size = float(all_rows.detach().std())
    assert float((other[1] - all_rows[1]).detach().std()) > 0.05 * size
    assert float((net(x, level, NoiseKey((5, 6, 7), 3)) - all_rows).detach().std()) > 0.05 * size
    with pytest.raises(AssertionError, match="needs a key"):
        net(x, level)
    assert torch.equal(net.eval()(x, level), net(x, level, NoiseKey((5, 6, 7), 2)))


def test_dropout_rate_and_mean() -> None:
    """A quarter of the values is zero, of every site and row its own quarter; outputs keep their mean over many keys."""
    net = wide().train()
    keeps = [k for k in net._masks(torch.zeros(8, 12, 12, 3), NoiseKey(tuple(range(8)), 0)) if k is not None]
    assert len(keeps) == len(list(net.blocks()))
    for keep in keeps:
        n = keep.numel()
        assert keep.dtype == torch.bool
        assert abs(float(keep.double().mean()) - 0.75) < 4.0 * math.sqrt(0.75 * 0.25 / n)
    first, second = (k[:, :6, :6].flatten(1).double() for k in keeps[:2])
    for a, b in ((first, second), (first[:-1], first[1:])):
        assert abs(float(((a - 0.75) * (b - 0.75)).mean())) < 4.0 * 0.1875 / math.sqrt(a.numel())


@pytest.mark.parametrize("case", CASES)
def test_layout_of_the_input_does_not_matter(case: str) -> None:
    resolution, config = CASES[case]
    torch.manual_seed(0)
    net = SongUNet(resolution, 3, 2, **(SMALL | config)).train()
    x, level = torch.randn(2, 3, 8, 16), torch.tensor([-0.4, 0.3])
    assert torch.equal(net(x.contiguous(memory_format=torch.channels_last), level), net(x, level))


def test_initial_weights_are_those_of_edm() -> None:
    """Bounds of Glorot's uniform distribution, second convolutions 1e-5 of it, no bias (EDM, training/networks.py)."""
    net = SongUNet(16, 3, 2, model_channels=32, channel_mult=[1, 2], num_blocks=1)
    block = net.enc[1]["block0"]  # type: ignore[index]
    for weight, fan, gain in (
        (block.conv0.weight, (32 + 64) * 9, 1.0),
        (block.conv1.weight, (64 + 64) * 9, 1e-5),
        (block.skip.weight, 32 + 64, 1.0),
        (net.dec[0]["in0"].attn.qkv.weight, 64 + 3 * 64, math.sqrt(0.2)),  # type: ignore[index]
        (net.shifts.weight[:32], 128 + 32, 1.0),
    ):
        bound = gain * math.sqrt(6.0 / fan)
        assert 0.98 * bound < float(weight.abs().max()) <= bound
    assert all(
        float(p.abs().max()) == 0.0
        for name, p in net.named_parameters()
        if name.endswith("bias") and "norm" not in name
    )


@pytest.mark.parametrize(
    ("shape", "near"), [((24, 30), "24x28"), ((25, 33), "24x32"), ((3, 8), "4x8"), ((30, 34), "28x32"), ((1, 4), "4x4")]
)
def test_sides_that_do_not_halve(shape: tuple[int, int], near: str) -> None:
    with pytest.raises(ConfigError, match=f"multiples of 4, for instance {near}"):
        require_divisible(shape, 3, "train_data.patch")
    require_divisible((24, 32), 3, "train_data.patch")


def test_networks_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="144 channels, in 32 groups"):
        SongUNet(24, 3, 2, **(SMALL | {"model_channels": 48, "channel_mult": [1, 2], "num_blocks": 1}))
    with pytest.raises(ConfigError, match="at most 2 levels"):
        SongUNet(3, 3, 2, **(SMALL | {"channel_mult": [1, 1, 1]}))
    with pytest.raises(ConfigError, match="even number"):
        SongUNet(8, 3, 2, **(SMALL | {"resample_filter": [1, 2, 1]}))


def test_names_of_no_song_unet() -> None:
    state = peer_tensors("plain2", "p")
    prefixed = song_unet_from_fme({f"module.unet.model.{name}": value for name, value in state.items()})
    assert all(torch.equal(value, prefixed[name]) for name, value in song_unet_from_fme(state).items())
    with pytest.raises(DataError, match=r"map_label\.weight"):
        song_unet_from_fme(state | {"map_label.weight": torch.zeros(4, 2)})
