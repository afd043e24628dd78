"""Factorized spectral weights: their products, sizes and start."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ace_core.models.builders import SFNOConfig
from ace_core.models.factorized import FactorizedWeight, cp_rank, tt_ranks


@pytest.mark.parametrize("lead", [(5,), (5, 4)], ids=["dhconv", "diagonal"])
def test_a_cp_contracted_is_the_weight_multiplied_out(lead: tuple[int, ...]) -> None:
    weight = FactorizedWeight("cp", (3, 6, *lead), 0.7, 1.0)
    with torch.no_grad():
        assert weight.weights is not None
        weight.weights.normal_()
    x = torch.randn(5, 4, 2, 3, dtype=torch.complex64)
    equation = "lmbi,iol->lmbo" if len(lead) == 1 else "lmbi,iolm->lmbo"
    torch.testing.assert_close(weight.contract(x), torch.einsum(equation, x, weight()))


@pytest.mark.parametrize(
    ("shape", "share", "terms", "ranks"),
    [
        ((384, 384, 180), 0.01, 280, (1, 30, 22, 1)),
        ((384, 384, 180), 0.1, 2800, (1, 96, 71, 1)),
        ((256, 256, 45, 46), 0.1, 22497, (1, 295, 173, 52, 1)),
        ((256, 180, 181), 1.0, 13518, (1, 235, 195, 1)),
        ((6, 8), 1.0, 3, (1, 2, 1)),
        # The peer comes to no term at all.
        ((6, 8), 0.01, 1, (1, 1, 1)),
    ],
)
def test_ranks_are_those_of_tensorly(shape: tuple[int, ...], share: float, terms: int, ranks: tuple[int, ...]) -> None:
    assert (cp_rank(shape, share), tt_ranks(shape, share)) == (terms, ranks)
    assert (cp_rank(shape, 7), tt_ranks(shape, 7)) == (7, (1, *[7] * (len(shape) - 1), 1))


@pytest.mark.parametrize("kind", ["dense", "cp", "tt"])
def test_elements_start_with_the_variance_asked_for(kind: str) -> None:
    torch.manual_seed(0)
    squares = [FactorizedWeight(kind, (24, 24, 10), 0.3, 0.25)().detach().abs().square().mean() for _ in range(20)]
    assert float(torch.stack(squares).mean()) == pytest.approx(0.25, rel=0.15)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"factorization": "tucker"}, "fme cannot build 'tucker' either"),
        ({"factorization": "dens"}, "did you mean 'dense'"),
        ({"operator_type": "l-dependant"}, "operator_type: 'l-dependant' with filter_type: linear"),
        ({"filter_type": "non-linear", "operator_type": "dhconv"}, "diagonal and l-dependant"),
        ({"filter_type": "non-linear", "complex_activation": "modulus"}, "divides by zero, in fme too"),
        ({"spectral_transform": "fft"}, "cannot be built in fme either"),
        ({"rank": 0.0}, "rank"),
        ({"rank": -1}, "rank"),
    ],
)
def test_keys_of_filters_that_cannot_act_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SFNOConfig.model_validate(config)


def test_keys_of_the_other_filter_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="ace"):
        SFNOConfig.model_validate({"rank": 1.0, "complex_activation": "real", "spectral_layers": 1})  # the defaults
        SFNOConfig.model_validate({"rank": 0.5, "spectral_layers": 3})
        SFNOConfig.model_validate({"rank": 0.5, "factorization": "cp"})
        SFNOConfig.model_validate({"filter_type": "non-linear", "rank": 0.5, "separable": True, "spectral_layers": 3})
    assert [r.getMessage() for r in caplog.records] == [
        "SphericalFourierNeuralOperatorNet: spectral_layers, rank without effect, as in fme",
        "SphericalFourierNeuralOperatorNet: separable, rank without effect, as in fme",
    ]
