"""What ``test_tiles.py`` starts with torchrun: everything that looks over the grid, whole and in tiles, in one process group.

Argument: h w. Each case gives a module, its whole input and how it is called; compared are outputs, gradients of inputs, and of
parameters as data parallel training takes them (mean over all ranks), all in float64 or to float32's rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn

from ace_core.depth import DepthLayers
from ace_core.distributed import Ranks, Tiles, divide, process_group
from ace_core.fields import Draft, Fields
from ace_core.grid import LatLonGrid
from ace_core.harmonics import InverseRealSHT, RealSHT
from ace_core.loss.ensemble import Crps, EnergyScore, FiniteDifferenceCrps, Whitening
from ace_core.loss.terms import (
    AreaMeanSquared,
    MeanAbsolute,
    MeanSquared,
    RelativeGlobalMean,
    RelativeNorm,
    WeightedSum,
)
from ace_core.models.blocks import GridNorm, InstanceNorm
from ace_core.models.context import Context, NoiseKey
from ace_core.models.land_net import LandNet
from ace_core.models.mlp import PointwiseMLP
from ace_core.models.noise_sfno import NoiseConditionedSFNO, NoiseConditionedSFNOConfig
from ace_core.models.sfno import SphericalFourierNeuralOperatorNet
from ace_core.physics.corrector.atmosphere import AtmosphereCorrector, MoistureBudget
from ace_core.physics.corrector.config import CorrectorConfig, build_corrector
from ace_core.physics.corrector.corrector import Corrector
from ace_core.physics.corrector.state import CorrectorState
from ace_core.physics.insolation import Insolation, Orbit
from ace_core.spatial_mask import SpatialMasks
from ace_core.step.global_mean import GlobalMeanRemoval
from ace_core.step.normalizer import Scaling
from ace_core.step.spatial_masking import SpatialMasking
from ace_core.vertical import HybridSigma

GRID = LatLonGrid.gaussian(13, 22)  # odd, so that no two tiles need be alike
SHAPE = GRID.shape


@dataclass(frozen=True)
class Case:
    """call(module, x): x [..., Y, X] and what comes of it likewise; ``scalar``: the same numbers on every tile."""

    name: str
    make: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    call: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)
    scalar: bool = False


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def channels_last(module: nn.Module, x: Tensor) -> Tensor:
    return module(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


def there_and_back(module: nn.Module, x: Tensor) -> Tensor:
    sht, isht = module
    return isht(sht(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def sfno(**keys: Any) -> Case:
    keys = {"embed_dim": 6, "num_layers": 3, "operator_type": "dhconv", "encoder_layers": 1} | keys
    return Case(
        f"SFNO {keys}",
        lambda: SphericalFourierNeuralOperatorNet(3, 2, SHAPE, **keys),
        partial(draw, 2, 3, *SHAPE),
    )


def noisy(n_labels: int = 0, **keys: Any) -> Case:
    config = NoiseConditionedSFNOConfig(**{"embed_dim": 6, "num_layers": 2, "noise_embed_dim": 3} | keys)
    context = Context(torch.eye(2, n_labels) if n_labels else None, NoiseKey((3, 5), 1))

    def call(network: nn.Module, x: Tensor) -> Tensor:
        for norm in network.modules():  # all zero at first, which would hide what conditions them
            for name in ("noise", "position", "labels"):
                if isinstance(getattr(norm, name, None), nn.Parameter):
                    nn.init.constant_(getattr(norm, name), 0.1)
        network.eval()
        return network(x, context)

    return Case(
        f"NoiseConditionedSFNO {keys} {n_labels} labels",
        lambda: NoiseConditionedSFNO(3, 2, SHAPE, config, n_labels),
        partial(draw, 2, 3, *SHAPE),
        call,
    )


def loss(term: Callable[[], nn.Module], name: str) -> Case:
    """x [B, 1 + E, C, Y, X]: the target and errors."""
    return Case(name, term, partial(draw, 2, 4, 3, *SHAPE), lambda m, x: m(x[:, 1:], x[:, :1]), scalar=True)


def removed(module: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = module.remove(x)[0]  # type: ignore[operator]
    return out


def corrected(module: nn.Module, x: Tensor) -> Tensor:
    """x [B, 2 C, Y, X]: the state before and after, in numbers near 1 that are scaled to what an atmosphere has."""
    assert isinstance(module, AtmosphereCorrector)
    scale = torch.tensor([SCALES[n.rstrip("_0123456789")] for n in NAMES], dtype=x.dtype)[:, None, None]
    before, after = (Fields(NAMES, half * scale) for half in (1.0 + 0.05 * x).chunk(2, dim=1))
    draft = Draft(after, owned=False)
    module.correct(before, draft, before, CorrectorState())
    return draft.finish().tensor / scale


SCALES = {
    "PRESsfc": 1e5,
    "specific_total_water": 5e-3,
    "air_temperature": 280.0,
    "HGTsfc": 300.0,
    "LHTFLsfc": 100.0,
    "SHTFLsfc": 20.0,
    "PRATEsfc": 3e-5,
    "tendency_of_total_water_path_due_to_advection": 1e-5,
    "DSWRFtoa": 340.0,
    "USWRFtoa": 100.0,
    "ULWRFtoa": 240.0,
    "DSWRFsfc": 180.0,
    "USWRFsfc": 30.0,
    "DLWRFsfc": 330.0,
    "ULWRFsfc": 390.0,
}
NAMES = tuple(
    n if not n.startswith(("specific", "air")) else f"{n}_{k}"
    for n in SCALES
    for k in (range(2) if n.startswith(("specific", "air")) else range(1))
)


def corrector() -> AtmosphereCorrector:
    vertical = HybridSigma((0.0, 5000.0, 0.0), (0.0, 0.4, 1.0))
    return AtmosphereCorrector(
        vertical,
        21600.0,
        torch.from_numpy(GRID.area_weights),
        conserve_dry_air=True,
        zero_mean_advection=True,
        moisture=MoistureBudget("precipitation_rate", advection=True, clip_frozen=False),
        energy=True,
    )


def salt_and_heat(module: nn.Module, x: Tensor) -> Tensor:
    """x [B, 2 C, Y, X]: the state before and after."""
    assert isinstance(module, Corrector)
    mean = torch.tensor([float(n[:2] in ("th", "so")) * 20.0 for n in SEA], dtype=x.dtype)[:, None, None]
    before, after = (Fields(SEA, mean + 0.1 * half) for half in x.chunk(2, dim=1))
    draft = Draft(after, owned=False)
    module.correct(before, draft, before, CorrectorState())
    return draft.finish().tensor


SEA = ("thetao_0", "thetao_1", "so_0", "so_1", "sst", "zos", "SSH", "hfds", "sea_surface_fraction")


def ocean() -> nn.Module:
    mask = (draw(*SHAPE, seed=3) > -0.7).double()
    layers = DepthLayers(torch.tensor([0.0, 10.0, 60.0]), mask.expand(2, -1, -1))
    heat = {"method": "scaled_temperature", "constant_unaccounted_heating": 2.0}
    salt = {"method": "scaled_salinity", "budget_config": {"type": "sea_surface_height"}}
    keys = {
        "ocean_heat_content_correction": heat,
        "ocean_salt_content_correction": salt,
        "zos_global_mean_correction": {"reference_global_mean": 0.5},
    }
    config = TypeAdapter(CorrectorConfig).validate_python({"type": "ocean_corrector", "config": keys})
    built = build_corrector(
        config, layers, 86400.0, torch.from_numpy(GRID.area_weights), SpatialMasks({"mask_2d": mask})
    )
    assert built is not None
    return built


def masked() -> SpatialMasking:
    return SpatialMasking(draw(3, *SHAPE, seed=4) > 0.0, torch.tensor([1.0, 2.0, 3.0]))


def sunlit(module: nn.Module, x: Tensor) -> Tensor:
    return x * module(torch.tensor([0, 40_000_000]), 1361.0)[:, None] / 1361.0


CASES = [
    Case(
        "transform there and back",
        lambda: nn.ModuleList([RealSHT(*SHAPE, 13, 12), InverseRealSHT(*SHAPE, 13, 12)]),
        partial(draw, 2, 5, *SHAPE),
        there_and_back,
    ),
    Case(
        "fewer channels than tiles",
        lambda: nn.ModuleList([RealSHT(*SHAPE, 13, 12), InverseRealSHT(*SHAPE, 13, 12)]),
        partial(draw, 1, 1, *SHAPE),
        there_and_back,
    ),
    Case("instance norm", lambda: InstanceNorm(5), partial(draw, 2, 5, *SHAPE), channels_last),
    Case("grid norm", lambda: GridNorm(SHAPE), partial(draw, 2, 5, *SHAPE), channels_last),
    sfno(),
    sfno(operator_type="diagonal", normalization_layer="layer_norm", encoder_layers=2),
    sfno(separable=True, scale_factor=2),
    sfno(factorization="cp", rank=0.5, use_mlp=False),
    sfno(factorization="tt", rank=0.5, hard_thresholding_fraction=0.7),
    sfno(filter_type="non-linear", operator_type="l-dependant", checkpointing=3),
    sfno(filter_type="non-linear", operator_type="diagonal", normalization_layer="none", pos_embed=False),
    noisy(),
    noisy(noise_type="isotropic", global_layer_norm=True, affine_norms=True, filter_residual=True),
    noisy(n_labels=2, pos_embed=False, context_pos_embed_dim=2, label_embed_dim=3, filter_output=True),
    noisy(spectral_lora_rank=2, filter_preserves_global_mean=True, filter_num_groups=2, clip_latent_global_means=True),
    noisy(filter_type="makani-linear", lora_rank=2, normalize_big_skip=True, checkpointing=2),
    Case(
        "LandNet",
        lambda: LandNet(3, 2, SHAPE, hidden_dims=(4, 4), use_positional_embedding=True),
        partial(draw, 2, 3, *SHAPE),
    ),
    Case("MLP", lambda: PointwiseMLP(3, 2, hidden_dim=4), partial(draw, 2, 3, *SHAPE)),
    Case(
        "global means removed",
        lambda: GlobalMeanRemoval(
            ["a", "b"],
            {"a": 0, "b": 1},
            ["a", "b", "c"],
            ["a"],
            Scaling(dict.fromkeys("abc", 2.0), dict.fromkeys("abc", 1.0)),
            append_as_input=False,
            shared=False,
        ),
        partial(draw, 2, 3, *SHAPE),
        removed,
    ),
    Case("all budgets of the atmosphere", corrector, partial(draw, 2, 2 * len(NAMES), *SHAPE), corrected),
    Case("heat and salt of the ocean", ocean, partial(draw, 2, 2 * len(SEA), *SHAPE), salt_and_heat),
    Case("masks", masked, partial(draw, 2, 3, *SHAPE)),
    Case("insolation", lambda: Insolation(GRID, "noleap", 21600.0, Orbit()), partial(draw, 2, 3, *SHAPE), sunlit),
    loss(MeanSquared, "MSE"),
    loss(MeanAbsolute, "L1"),
    loss(lambda: RelativeNorm(2.0), "LpLoss"),
    loss(lambda: AreaMeanSquared(GRID), "AreaWeightedMSE"),
    loss(lambda: WeightedSum([RelativeGlobalMean(GRID)], [2.0]), "global mean"),
    loss(lambda: Crps(0.95), "CRPS"),
    loss(lambda: FiniteDifferenceCrps(0.95, 2, SHAPE), "finite differences"),
    loss(lambda: EnergyScore(GRID, None), "energy score"),
    loss(lambda: EnergyScore(GRID, Whitening(13, 12, 0.02, 0.5)), "whitened energy score"),
]


def main() -> None:
    h, w = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    with process_group() as ranks:
        divided = ranks.divided(h, w)
        for case in CASES:
            compare(case, divided)
        exact(divided)
        if ranks.is_root:
            print(f"{len(CASES)} cases agree")


def compare(case: Case, ranks: Ranks) -> None:
    tiles, world = ranks.tiles, ranks.world
    whole, divided = seeded(case), seeded(case)
    divide(divided, tiles)
    x = case.x()
    x_whole, x_tile = x.clone().requires_grad_(), tiles.part(x).clone().requires_grad_()
    expected, found = case.call(whole, x_whole), case.call(divided, x_tile)
    weights = draw(*expected.shape, seed=1)
    (expected * weights).sum().backward()
    if case.scalar:
        near(found, expected, f"{case.name}: value")
        (found * weights).sum().backward()
    else:
        near(found, tiles.part(expected), f"{case.name}: output")
        # As a loss has it: the same number on all tiles.
        tiles.sum((found * tiles.part(weights)).sum()).backward()
    assert x_whole.grad is not None
    assert x_tile.grad is not None
    near(x_tile.grad / tiles.count, tiles.part(x_whole.grad), f"{case.name}: gradient of the input")
    # Some are zero but for rounding: a bias before a norm that takes it off again.
    largest = max((float(p.grad.abs().max()) for p in whole.parameters() if p.grad is not None), default=1.0)
    for (name, p), (_, q) in zip(whole.named_parameters(), divided.named_parameters(), strict=True):
        grad = torch.zeros_like(q) if q.grad is None else q.grad
        dist.all_reduce(grad)
        wanted = torch.zeros_like(p) if p.grad is None else p.grad
        scale = max(float(wanted.abs().max()), 1e-3 * largest)
        near(grad / world, wanted, f"{case.name}: gradient of {name}", scale)


def seeded(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().double()


def near(found: Tensor, expected: Tensor, what: str, scale: float = 0.0) -> None:
    scale = scale or float(expected.detach().abs().max()) or 1.0
    error = float((found.detach() - expected.detach()).abs().max()) / scale if expected.numel() else 0.0
    # The order of sums differs, and transforms have tables in single precision.
    assert error < 2e-6, f"{what}: {error:.1e}"


def exact(ranks: Ranks) -> None:
    """What only moves numbers moves all of them, and every cell counts once."""
    tiles, x = ranks.tiles, draw(2, *SHAPE)
    assert torch.equal(tiles.gather(tiles.part(x), SHAPE), x)
    assert sum(t.shape[0] * t.shape[1] for t in tiles.all_of(SHAPE)) == SHAPE[0] * SHAPE[1]
    ones = ranks.sum(torch.ones(1))
    assert float(ones) == ranks.places, ones
    assert ranks.from_root(ranks.rank + 7) == 7
    assert isinstance(tiles, Tiles)


if __name__ == "__main__":
    main()
