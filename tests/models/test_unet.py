"""The U-Net baseline."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.models.unet import ResidualBlock, UNet, UNetBuilder, UNetConfig, halvings


def network(**changes: object) -> UNet:
    torch.manual_seed(0)
    return UNet(3, 2, **({"width": 4, "levels": 2} | changes))  # type: ignore[arg-type]


def test_a_block_is_its_formula() -> None:
    block = ResidualBlock(5, "constant")
    x = torch.randn(2, 5, 4, 6)

    def conv(h: torch.Tensor, layer: torch.nn.Conv2d) -> torch.Tensor:
        padded = functional.pad(functional.pad(h, (0, 0, 1, 1)), (1, 1, 0, 0), mode="circular")
        return functional.conv2d(padded, layer.weight, layer.bias)

    z = (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True, correction=0) + 1e-5)
    torch.testing.assert_close(
        block(x), x + conv(functional.gelu(conv(z, block.conv0)), block.conv1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("lat_pad", ["constant", "pole"])
def test_commutes_with_rotation_by_the_coarsest_cell(lat_pad: str) -> None:
    net = network(lat_pad=lat_pad)
    x = torch.randn(1, 3, 8, 16)
    torch.testing.assert_close(net(x.roll(4, dims=3)), net(x).roll(4, dims=3), atol=1e-5, rtol=1e-5)


def test_members_of_a_batch_do_not_see_each_other() -> None:
    net = network()
    x = torch.randn(3, 3, 8, 16)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-6, rtol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    net = network(blocks=2)
    net(torch.randn(2, 3, 8, 16)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_options_act() -> None:
    def block(c: int) -> int:
        return 2 * c + 2 * (9 * c * c + c)

    def size(**changes: object) -> int:
        return sum(p.numel() for p in network(**changes).parameters())

    ends = 3 * 4 * 9 + 4 + 4 * 2 + 2
    between = (4 * 4 * 8 + 8) + (4 * 4 * 8 + 4)  # halving 4 -> 8 and doubling back
    assert size(levels=1) == ends + between + 2 * block(4) + block(8)
    assert size(levels=1, blocks=3) - size(levels=1) == 2 * (2 * block(4) + block(8))
    assert size(levels=2) - size(levels=1) == (8 * 4 * 16 + 16) + (8 * 4 * 16 + 8) + block(8) + block(16)
    x = torch.randn(1, 3, 8, 16)
    assert float((network()(x) - network(lat_pad="pole")(x)).detach().abs().max()) > 1e-3


def test_a_grid_that_cannot_be_halved_is_refused_with_what_fits() -> None:
    builder = UNetBuilder(type="UNet", config=UNetConfig(width=4, levels=3))
    assert builder.build(3, 2, LatLonGrid.gaussian(16, 32))(torch.randn(1, 3, 16, 32)).shape == (1, 2, 16, 32)
    assert [halvings(shape) for shape in ((16, 32), (12, 24), (45, 90), (6, 8))] == [4, 2, 0, 1]
    with pytest.raises(ConfigError, match=r"at most 2, how often 12x24 can be halved; or .* multiples of 8") as caught:
        builder.build(3, 2, LatLonGrid.gaussian(12, 24))
    assert "set levels: 2" in str(caught.value)
    with pytest.raises(ConfigError, match="multiples of 8: 45x90 cannot be halved"):
        builder.build(3, 2, LatLonGrid.gaussian(45, 90))
    with pytest.raises(ConfigError, match="UNet takes no labels"):
        builder.build(3, 2, LatLonGrid.gaussian(16, 32), n_labels=1)
