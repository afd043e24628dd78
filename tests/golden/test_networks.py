"""Our Samudra, LandNet and SFNO-v0.1.0 with the peer's weights give the peer's outputs and gradients (fme 2026.10.0).

Golden file: benchmarks/peer/golden_networks.py. Tolerances: outputs 1e-5, gradients 1e-4, relative to the largest value.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ace_core.errors import DataError
from ace_core.grid import LatLonGrid
from ace_core.interop.other_names import NAMES
from ace_core.models.context import Context, call
from ace_core.models.land_net import LandNetBuilder
from ace_core.models.samudra import SamudraBuilder
from ace_core.models.sfno_v0 import SFNOv0Builder

with np.load(Path(__file__).with_name("networks.npz")) as stored:
    VALUES = stored["values"]
    HEADER = json.loads(stored["header"].tobytes())
CASES: dict[str, Any] = HEADER["cases"]
BUILDERS = {"Samudra": SamudraBuilder, "LandNet": LandNetBuilder, "SFNO-v0.1.0": SFNOv0Builder}
N_IN, N_OUT, BATCH = 3, 2, 2


@dataclass(frozen=True)
class GivenNoise:
    """In place of a NoiseKey."""

    values: Tensor

    def normal(self, shape: tuple[int, ...], device: torch.device, what: str = "noise") -> Tensor:
        assert tuple(self.values.shape[1:]) == shape
        return self.values.to(device)


def draw(case: str, name: str, shape: tuple[int, ...]) -> Tensor:
    rng = np.random.default_rng(zlib.crc32(f"{case}/{name}".encode()))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def weight(case: str, name: str, shape: tuple[int, ...]) -> Tensor:
    return float(CASES[case]["scale"]) * draw(case, name, shape)


def golden(key: str) -> Tensor:
    start, shape = HEADER["places"][key]
    return torch.from_numpy(VALUES[start : start + int(np.prod(shape))].reshape(shape))


def theirs(case: str, kind: str = "g") -> dict[str, Tensor]:
    prefix = f"{case}/{kind}/"
    return {key.removeprefix(prefix): golden(key) for key in HEADER["places"] if key.startswith(prefix)}


def network(case: str) -> nn.Module:
    """With the peer's weights."""
    kind, (ny, nx), options = (CASES[case][key] for key in ("kind", "grid", "options"))
    lat = np.linspace(-90, 90, ny) if options.get("data_grid") == "equiangular" else LatLonGrid.gaussian(ny, nx).lat
    grid = LatLonGrid(lat, np.arange(nx) * 360.0 / nx)
    net = BUILDERS[kind].model_validate({"type": kind, "config": options}).build(N_IN, N_OUT, grid)
    parameters = {name: weight(case, name, tuple(value.shape)) for name, value in theirs(case).items()}
    missing, unexpected = net.load_state_dict(NAMES[kind].to_ours(parameters), strict=False)
    assert unexpected == []
    assert all("running" in name or "num_batches" in name for name in missing)
    return net


def close(ours: Tensor, expected: Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    assert ours.shape == expected.shape, what
    scale = max(float(expected.abs().max()), floor)
    assert float((ours.detach() - expected).abs().max()) < tolerance * scale, what


@pytest.mark.parametrize("case", CASES)
def test_same_weights_same_outputs_and_gradients(case: str) -> None:
    net, kind, options = network(case), CASES[case]["kind"], CASES[case]["options"]
    grid = tuple(CASES[case]["grid"])
    x = draw(case, "x", (BATCH, N_IN, *grid)).requires_grad_()
    noise = draw(case, "noise", (BATCH, options.get("noise_embed_dim", 0), *grid))
    y = call(net, x, Context(noise=GivenNoise(noise)))  # type: ignore[arg-type]
    close(y, golden(f"{case}/y"), 1e-5, "output")
    (y * draw(case, "pull", tuple(y.shape))).sum().backward()
    assert x.grad is not None
    close(x.grad, golden(f"{case}/dx"), 1e-4, "input gradient")
    expected = NAMES[kind].to_ours(theirs(case))
    # A bias before an instance or batch norm has no effect: its gradient is rounding, to be compared with the others' size.
    largest = max(float(value.abs().max()) for value in expected.values())
    own = dict(net.named_parameters())
    assert set(own) == set(expected)
    for name, value in expected.items():
        gradient = own[name].grad
        assert gradient is not None, name
        close(gradient, value, 1e-4, name, floor=1e-2 * largest)
    for name, value in theirs(case, "s").items():
        close(net.state_dict()[name].float(), value, 1e-5, name)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_peers_state_dict_bit_for_bit(case: str) -> None:
    names, expected = NAMES[CASES[case]["kind"]], CASES[case]["state"]
    peer = names.to_peer(network(case).state_dict())
    assert {name: list(value.shape) for name, value in peer.items()} == expected
    again = names.to_peer(names.to_ours(peer))
    assert list(again) == list(peer)
    assert all(torch.equal(again[name], value) for name, value in peer.items())
    # And the values are those that were loaded, under the names they had.
    for name in theirs(case):
        assert torch.equal(peer[name], weight(case, name, tuple(expected[name]))), name


def test_another_cap_is_refused() -> None:
    with pytest.raises(DataError, match=r"layers\.0\.convblock\.2\.cap: activations capped at 2\.0"):
        NAMES["Samudra"].to_ours({"layers.0.convblock.2.cap": torch.tensor(2.0)})
