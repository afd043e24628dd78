"""The noise-conditioned SFNO against its written definition; its noise; what its options do and which are refused."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from ace_core.distributed import Ranks
from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.harmonics import power_spectrum
from ace_core.models import conditional
from ace_core.models.conditional import ConditionalNorm, LoRALinear
from ace_core.models.context import NO_CONTEXT, Context, NoiseKey, takes_noise
from ace_core.models.local_net import LocalNet
from ace_core.models.noise_sfno import (
    LatentEnvelope,
    NoiseConditionedSFNO,
    NoiseConditionedSFNOBuilder,
    NoiseConditionedSFNOConfig,
    contract,
)
from ace_core.models.samudra import Samudra

CPU = torch.device("cpu")


def config(**changes: Any) -> NoiseConditionedSFNOConfig:
    return NoiseConditionedSFNOConfig(**({"embed_dim": 6, "num_layers": 2, "noise_embed_dim": 3} | changes))


def network(n_labels: int = 0, stirred: bool = True, **changes: Any) -> NoiseConditionedSFNO:
    """stirred: the parameters that are zero at first are random too."""
    torch.manual_seed(0)
    net = NoiseConditionedSFNO(3, 4, (8, 16), config(**changes), n_labels)
    if stirred:
        with torch.no_grad():
            for p in net.parameters():
                if not p.any():
                    p.normal_(std=0.2)
    return net


def key(*rows: int, step: int = 0) -> Context:
    return Context(noise=NoiseKey(rows, step))


# The conditional norm.


@pytest.mark.parametrize("over_grid", [False, True])
@pytest.mark.parametrize("n_labels", [0, 2])
def test_conditional_norm_and_its_gradients_are_its_formula(
    over_grid: bool, n_labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditional, "TILE", 5 * 7)  # Seven positions a tile: several, and a last one that is not full.
    norm = ConditionalNorm(
        5, (4, 6), n_noise=3, n_position=2, n_labels=n_labels, affine=True, over_grid=over_grid
    ).double()
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    x = (torch.randn(2, 4, 6, 5, dtype=torch.float64) * 3 + 7).requires_grad_()
    maps = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(2, n_labels, dtype=torch.float64, requires_grad=True) if n_labels else None
    axes = (1, 2, 3) if over_grid else (3,)
    z = (x - x.mean(axes, keepdim=True)) / torch.sqrt(x.var(axes, correction=0, keepdim=True) + 1e-5)
    assert norm.noise is not None
    assert norm.position is not None
    scale, shift = (maps[..., :3] @ norm.noise[i].t() + maps[..., 3:] @ norm.position[i].t() for i in (0, 1))
    if labels is not None:
        assert norm.labels is not None
        assert norm.label_bias is not None
        of_labels = [functional.linear(labels, norm.labels[i], norm.label_bias[i])[:, None, None] for i in (0, 1)]
        scale, shift = scale + of_labels[0], shift + of_labels[1]
    expected = (z * norm.weight + norm.bias) * (1 + scale) + shift
    y = norm(x, maps, labels)
    torch.testing.assert_close(y, expected)
    inputs = [t for t in (x, maps, labels, *norm.parameters()) if t is not None]
    pull = torch.randn_like(y)
    for ours, theirs in zip(torch.autograd.grad(y, inputs, pull), torch.autograd.grad(expected, inputs, pull)):
        torch.testing.assert_close(ours, theirs)


def test_conditional_norm_does_not_depend_on_the_size_of_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = ConditionalNorm(5, (4, 6), n_noise=3, n_position=0, n_labels=0, affine=False, over_grid=False)
    torch.nn.init.normal_(norm.noise)
    x, maps = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 3)
    whole = norm(x, maps, None)
    monkeypatch.setattr(conditional, "TILE", 1)
    torch.testing.assert_close(norm(x, maps, None), whole, atol=1e-6, rtol=1e-6)


# The network.


@pytest.mark.parametrize("groups", [1, 2])
def test_contraction_and_its_gradients_are_complex_arithmetic_where_there_are_coefficients(groups: int) -> None:
    lmax, mmax = 11, 9
    rows = torch.randn(lmax, mmax, 2, 2, 6, dtype=torch.float64)
    exists = torch.arange(mmax)[None] <= torch.arange(lmax)[:, None]
    rows = torch.where(exists[..., None, None, None], rows, 0.0).requires_grad_()
    weight = torch.randn(lmax, groups, 6 // groups, 2, 4, dtype=torch.float64, requires_grad=True)
    x = torch.view_as_complex(rows.unflatten(4, (groups, -1)).movedim(3, -1).contiguous())
    w = torch.view_as_complex(weight.movedim(3, -1).contiguous())
    expected = torch.view_as_real(torch.einsum("lmbgi,lgio->lmbgo", x, w)).movedim(-1, 3).flatten(4)
    y = contract(rows, weight)
    torch.testing.assert_close(y[exists], expected[exists])
    pull = torch.where(exists[..., None, None, None], torch.randn_like(y), 0.0)
    (drows, dweight), (theirs, its) = (torch.autograd.grad(z, (rows, weight), pull) for z in (y, expected))
    torch.testing.assert_close(drows[exists], theirs[exists])
    torch.testing.assert_close(dweight, its)


def test_at_first_nothing_is_conditioned_and_the_weights_are_pytorchs() -> None:
    net = network(n_labels=2, stirred=False, lora_rank=2, spectral_lora_rank=1, affine_norms=True)
    x, labels = torch.randn(2, 3, 8, 16), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    a = net.conditioned(x, torch.randn(2, 8, 16, 3), labels)
    b = net.conditioned(x, torch.randn(2, 8, 16, 3), labels.flip(0))
    torch.testing.assert_close(a, b, atol=0, rtol=0)
    up = net.blocks[0].mlp.up
    assert isinstance(up, LoRALinear)
    bound = 6**-0.5
    assert 0.8 * bound < float(up.weight.detach().abs().max()) <= bound
    assert 0.5 * bound < float(up.bias.detach().abs().max()) <= bound
    assert torch.equal(up.matrix, up.weight)


def test_spectral_weights_at_first_have_the_variance_of_the_specification() -> None:
    torch.manual_seed(0)
    wide = config(embed_dim=64, num_layers=1, filter_num_groups=2, spectral_ratio=0.5, spectral_lora_rank=8)
    linear = NoiseConditionedSFNO(1, 1, (8, 16), wide).blocks[0].filter
    for w in (linear.weight, linear.lora_a):
        assert float(w.detach()[1:].var()) == pytest.approx(1 / 32, rel=0.05)
        assert float(w.detach()[0].var()) == pytest.approx(2 / 32, rel=0.15)
    assert not linear.lora_b.any()
    makani_config = config(embed_dim=64, num_layers=1, filter_num_groups=2, filter_type="makani-linear")
    makani = NoiseConditionedSFNO(1, 1, (8, 16), makani_config).blocks[0].filter
    squared_modulus = makani.weight.detach().square().sum(dim=3)
    assert float(squared_modulus[1:].mean()) == pytest.approx(2 / 64, rel=0.05)
    assert float(squared_modulus[0].mean()) == pytest.approx(4 / 64, rel=0.1)


def test_without_position_the_network_commutes_with_rotation() -> None:
    net = network(pos_embed=False)
    x, noise = torch.randn(1, 3, 8, 16), torch.randn(1, 8, 16, 3)
    turned = net.conditioned(x.roll(3, dims=3), noise.roll(3, dims=2))
    torch.testing.assert_close(turned, net.conditioned(x, noise).roll(3, dims=3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("noise_type", ["gaussian", "isotropic"])
def test_a_row_does_not_depend_on_the_batch_it_is_in(noise_type: str) -> None:
    net = network(n_labels=2, noise_type=noise_type)
    x, labels = torch.randn(3, 3, 8, 16), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    together = net(x, Context(labels, NoiseKey((7, 8, 9), 4)))
    alone = net(x[1:2], Context(labels[1:2], NoiseKey((8,), 4)))
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-5)
    others = net(x[1:2], Context(labels[1:2], NoiseKey((7,), 4)))
    assert float((others - alone).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_parameter_gets_the_gradient_it_has_without_checkpointing(level: int) -> None:
    """The encoder too, whose input needs none."""
    options: dict[str, Any] = {"pos_embed": False, "context_pos_embed_dim": 2, "lora_rank": 1, "spectral_lora_rank": 1}
    options |= {"normalize_big_skip": True, "affine_norms": True, "label_embed_dim": 2, "spectral_ratio": 0.5}
    x, context = torch.randn(2, 3, 8, 16), Context(torch.eye(2), NoiseKey((1, 2), 0))
    gradients = []
    for net in (network(2, **options), network(2, checkpointing=level, **options)):
        net(x, context).square().sum().backward()
        gradients.append({n: p.grad for n, p in net.named_parameters()})
    for name, gradient in gradients[1].items():
        assert gradient is not None, name
        assert float(gradient.abs().sum()) > 0, name
        torch.testing.assert_close(gradient, gradients[0][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"spectral_ratio": 0.5}, {"global_layer_norm": True, "checkpointing": 2}])
def test_lower_precision_gives_nearly_the_same(changes: dict[str, Any]) -> None:
    net = network(**changes)
    x = torch.randn(2, 3, 8, 16)
    exact = net(x, key(1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x, key(1, 2))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert float((y - exact).detach().abs().max()) < 0.05 * float(exact.detach().abs().max())


def test_options_act() -> None:
    n = {
        name: sum(p.numel() for p in network(stirred=False, **options).parameters())
        for name, options in {
            "plain": {},
            "no skip": {"big_skip": False},
            "no mlp": {"use_mlp": False},
            "wide mlp": {"mlp_ratio": 3.0},
            "no position": {"pos_embed": False},
            "deep encoder": {"encoder_layers": 2},
            "two noises": {"noise_embed_dim": 2},
            "affine": {"affine_norms": True},
            "affine over grid": {"affine_norms": True, "global_layer_norm": True},
            "norm of skip": {"normalize_big_skip": True},
            "groups": {"filter_num_groups": 3},
            "ratio": {"spectral_ratio": 0.5},
            "lora": {"lora_rank": 2},
            "spectral lora": {"spectral_lora_rank": 2},
            "makani": {"filter_type": "makani-linear"},
        }.items()
    }
    plain = n.pop("plain")
    assert {name: count - plain for name, count in n.items()} == {
        "no skip": -3 * 6,
        "no mlp": -2 * (6 * 12 + 12 + 12 * 6 + 6),
        "wide mlp": 2 * (2 * 6 * 6 + 6),
        "no position": -8 * 16 * 6,
        "deep encoder": 2 * (6 * 6 + 6),
        "two noises": -4 * 2 * 6,
        "affine": 4 * 2 * 6,
        "affine over grid": 4 * 2 * 6 * 8 * 16,
        "norm of skip": 2 * 3 * 3,
        "groups": -2 * 8 * (36 - 12) * 2,
        "ratio": 2 * (-8 * (36 - 9) * 2 + 2 * 3 * 6),
        # Encoder and decoder, two maps each; in every block the skip and the two of the MLP.
        "lora": 2 * ((3 + 6) + (6 + 6) + (6 + 3 + 6) + (6 + 4)) + 2 * 2 * (2 * 6 + 2 * (6 + 12)),
        "spectral lora": 2 * 8 * 2 * (6 * 2 + 2 * 6),
        "makani": -2 * 6,
    }


def test_a_filter_that_preserves_the_global_mean_does() -> None:
    net = network(filter_preserves_global_mean=True, spectral_lora_rank=1)
    block = net.blocks[0].filter
    filtered, _ = block(torch.randn(2, 8, 16, 6, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(2, 8, 16, 6, generator=torch.Generator().manual_seed(1))
    means = [net.sht(field)[0, 0] for field in (x, filtered)]
    torch.testing.assert_close(means[0], means[1], atol=1e-5, rtol=1e-5)
    assert float((net.sht(x)[0, 1] - net.sht(filtered)[0, 1]).detach().abs().max()) > 0.1


def test_filtered_output_has_nothing_the_coefficients_do_not_say() -> None:
    net = network(filter_output=True)
    y = net(torch.randn(1, 3, 8, 16), key(1)).permute(0, 2, 3, 1)
    torch.testing.assert_close(net.isht(net.sht(y)), y, atol=1e-5, rtol=1e-4)


# The noise.


def test_gaussian_noise_is_independent_standard_normal() -> None:
    noise = network(noise_embed_dim=64).noise(NoiseKey((1, 2), 0), CPU)
    assert noise.shape == (2, 8, 16, 64)
    n = noise.numel()
    assert float(noise.mean()) == pytest.approx(0, abs=4 / math.sqrt(n))
    assert float(noise.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    neighbours = float((noise * noise.roll(1, dims=2)).mean())
    assert neighbours == pytest.approx(0, abs=4 / math.sqrt(n))


def test_isotropic_noise_has_unit_variance_everywhere_and_a_white_spectrum() -> None:
    fields, ny = 512, 16
    net = NoiseConditionedSFNO(1, 1, (ny, 2 * ny), config(num_layers=1, noise_type="isotropic", noise_embed_dim=fields))
    noise = net.noise(NoiseKey((3,), 0), CPU)[0]
    # At every latitude: 2 ny correlated values of each field, so no fewer than `fields` independent ones.
    assert noise.shape == (ny, 2 * ny, fields)
    torch.testing.assert_close(noise.square().mean(dim=(1, 2)), torch.ones(ny), atol=4 * math.sqrt(2 / fields), rtol=0)
    assert float(noise.square().mean()) == pytest.approx(1, abs=0.01)
    power = power_spectrum(noise.permute(2, 0, 1)).mean(dim=0)
    degree = torch.arange(ny)
    of_a_coefficient = power / (2 * degree + 1) * ny**2 / (4 * math.pi)
    deviation = (of_a_coefficient - 1) / torch.sqrt(2 / (fields * (2 * degree + 1)))
    assert float(deviation.abs().max()) < 4


@pytest.mark.parametrize("noise_type", ["gaussian", "isotropic"])
def test_noise_is_a_function_of_seed_and_step_alone(noise_type: str) -> None:
    net = network(noise_type=noise_type)
    torch.manual_seed(1)
    first = net.noise(NoiseKey((1, 2), 5), CPU)
    torch.manual_seed(2)
    assert torch.equal(first, net.noise(NoiseKey((1, 2), 5), CPU))
    torch.testing.assert_close(first.flip(0), net.noise(NoiseKey((2, 1), 5), CPU), atol=1e-6, rtol=0)
    for other in (NoiseKey((1, 2), 6), NoiseKey((3, 4), 5)):
        correlation = float((first * net.noise(other, CPU)).mean())
        assert abs(correlation) < 0.15


# What is refused.


def test_a_context_that_lacks_something_is_refused() -> None:
    x = torch.randn(2, 3, 8, 16)
    with pytest.raises(ValueError, match="noise is missing"):
        network()(x, NO_CONTEXT)
    with pytest.raises(ValueError, match=r"labels are missing.*needs 2"):
        network(2)(x, key(1, 2))
    with pytest.raises(ValueError, match=r"labels of shape \(2, 2\).*takes none"):
        network()(x, Context(torch.eye(2), NoiseKey((1, 2), 0)))
    with pytest.raises(ValueError, match=r"labels of shape \(2, 3\).*takes \(2, 2\)"):
        network(2)(x, Context(torch.zeros(2, 3), NoiseKey((1, 2), 0)))
    with pytest.raises(ValueError, match=r"noise of 3 rows.*batch of 2"):
        network()(x, key(1, 2, 3))


def test_a_network_takes_noise_if_it_has_channels_of_it() -> None:
    """Of every kind that can, and inside of others."""
    for n in (0, 4):
        kinds = (
            network(noise_embed_dim=n),
            LocalNet(2, 2, (8, 16), embed_dim=4, block_types=("conv1x1",), noise_embed_dim=n),
            Samudra(
                2, 2, ch_width=[2], dilation=[1], noise_embed_dim=n, conditioned_blocks="all_blocks" if n else None
            ),
        )
        for net in kinds:
            assert takes_noise(net) == takes_noise(torch.nn.Sequential(net)) == (n > 0), type(net).__name__


def test_without_noise_channels_no_noise_is_asked_for() -> None:
    net = network(noise_embed_dim=0)
    assert net(torch.randn(2, 3, 8, 16), NO_CONTEXT).shape == (2, 4, 8, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local_blocks": [0], "spectral_ratio": 0.5}, "local_blocks beside spectral_ratio below 1"),
        ({"local_blocks": [0], "spectral_lora_rank": 1}, "local_blocks beside spectral_lora_rank"),
        (
            {"local_blocks": [0], "filter_preserves_global_mean": True},
            "local_blocks beside filter_preserves_global_mean",
        ),
        ({"local_blocks": [-1]}, "local_blocks"),
        ({"context_pos_embed_dim": 2}, "set pos_embed: false"),
        ({"filter_num_groups": 4}, "4 do not divide embed_dim 6"),
        ({"spectral_ratio": 0.8, "filter_num_groups": 2}, "leaves 5 of 6 channels"),
        ({"spectral_ratio": 0.01}, "leaves 0 of 6 channels"),
        ({"spectral_ratio": 0.5, "filter_type": "makani-linear"}, "spectral_ratio: below 1 only with"),
        ({"spectral_lora_rank": 1, "filter_type": "makani-linear"}, "spectral_lora_rank: only with"),
        ({"filter_preserves_global_mean": True, "filter_type": "makani-linear"}, "filter_preserves_global_mean: only"),
        ({"normalize_big_skip": True, "big_skip": False}, "nothing to normalise"),
        ({"operator_type": "diagonal"}, "operator_type: no longer a choice, only 'dhconv'"),
        ({"factorization": "cp"}, "factorization: no longer"),
        ({"separable": True}, "separable: no longer"),
        ({"filter_type": "local"}, "filter_type"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_configuration_that_cannot_act_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_retired_keys_are_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        old = config(spectral_transform="sht", rank=1.0, operator_type="dhconv", factorization=None, separable=False)
    assert old == config()
    (record,) = caplog.records
    assert record.getMessage().endswith("retired and without effect: spectral_transform, rank")
    caplog.clear()
    config(residual_filter_factor=2, spectral_lora_alpha=2.0)
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == [
        "retired and without effect",
        "spectral_lora_alpha has no effect without spectral_lora_rank",
    ]


def test_local_blocks_reach_as_far_as_their_filter_and_say_which_are_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        options = config(num_layers=2, local_blocks=[0, 1, 5], big_skip=False, noise_embed_dim=0)
    assert caplog.records[-1].getMessage().endswith("local_blocks [5] without effect: there are blocks 0 to 1")
    net = NoiseConditionedSFNO(2, 1, (24, 48), options).eval()
    x = torch.randn(1, 2, 24, 48)
    moved = x.clone()
    moved[:, :, 12, 20] += 1.0
    changed = (net(moved, Context()) - net(x, Context()))[0, 0].abs() > 0
    # Two filters of radius 4 pi / 23 and rows pi / 24 apart: within 9 rows, while a spectral block reaches everywhere.
    rows = changed.any(dim=1).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (12 - 8, 12 + 8)
    spectral = NoiseConditionedSFNO(2, 1, (24, 48), config(num_layers=2, big_skip=False, noise_embed_dim=0)).eval()
    assert bool(((spectral(moved, Context()) - spectral(x, Context()))[0, 0].abs() > 0).any(dim=1).all())


def test_the_builder_refuses_grids_and_labels_that_do_not_fit() -> None:
    grid = LatLonGrid.gaussian(8, 16)

    def builder(conditional: bool = False, **changes: Any) -> NoiseConditionedSFNOBuilder:
        return NoiseConditionedSFNOBuilder(
            type="NoiseConditionedSFNO", config=config(**changes), conditional=conditional
        )

    assert builder(conditional=True).build(3, 4, grid, n_labels=2).n_labels == 2
    with pytest.raises(ConfigError, match=r"builder\.config\.data_grid"):
        builder(data_grid="equiangular").build(3, 4, grid)
    with pytest.raises(ConfigError, match="set conditional: true"):
        builder().build(3, 4, grid, n_labels=2)
    with pytest.raises(ConfigError, match="but the data have no labels"):
        builder(conditional=True).build(3, 4, grid)
    with pytest.raises(ConfigError, match="remove label_embed_dim"):
        builder(label_embed_dim=2).build(3, 4, grid)


# The envelope of latent means.


def test_the_latent_envelope_is_that_of_the_latest_epoch() -> None:
    envelope = LatentEnvelope(2)
    low, high, wild = (torch.tensor(v).expand(1, 4, 6, 2) for v in ([-1.0, 0.0], [1.0, 0.5], [5.0, -5.0]))
    envelope.eval()
    assert torch.equal(envelope(wild), wild)  # Nothing is known yet.
    envelope.train()
    assert torch.equal(envelope(torch.cat([low, high])), torch.cat([low, high]))
    envelope.eval()
    inside = torch.randn(1, 4, 6, 2) * 1e-3 + 0.2
    assert torch.equal(envelope(inside), inside)
    waves = torch.randn(1, 4, 6, 2)
    shifted = envelope(wild + waves)
    torch.testing.assert_close(shifted.mean(dim=(1, 2))[0], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(shifted - shifted.mean(dim=(1, 2)), waves - waves.mean(dim=(1, 2)), atol=1e-5, rtol=0)
    envelope.begin_epoch()
    assert envelope(wild)[0, 0, 0].tolist() == [1.0, 0.0]  # The old one holds until the epoch's first batch.
    envelope.train()
    envelope(high)
    assert (envelope.lowest.tolist(), envelope.highest.tolist()) == ([1.0, 0.5], [1.0, 0.5])


def test_ranks_agree_on_the_envelope(monkeypatch: pytest.MonkeyPatch) -> None:
    envelopes = [LatentEnvelope(1).train() for _ in range(2)]
    for value, envelope in zip((-1.0, 2.0), envelopes):
        envelope(torch.full((1, 2, 2, 1), value))
    sent: list[torch.Tensor] = []
    for rank, envelope in enumerate(envelopes):  # What each sends, then the sum of both.
        monkeypatch.setattr(Ranks, "sum", lambda self, t: sent.append(t) or t)
        LatentEnvelope.agree(_copy(envelope), Ranks(rank, 2))
    monkeypatch.setattr(Ranks, "sum", lambda self, t: sent[0] + sent[1])
    for rank, envelope in enumerate(envelopes):
        envelope.agree(Ranks(rank, 2))
        assert (envelope.lowest.tolist(), envelope.highest.tolist()) == ([-1.0], [2.0])


def _copy(envelope: LatentEnvelope) -> LatentEnvelope:
    copy = LatentEnvelope(1)
    copy.load_state_dict(envelope.state_dict())
    return copy
