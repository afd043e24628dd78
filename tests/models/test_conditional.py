"""The conditional norm and its perceptron as loops in C++: their numbers beside float64 and beside torch's operators."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ace_core.models.blocks import LOOPS
from ace_core.models.conditional import ConditionalNorm, LoRALinear, activated_norm_mlp
from tests.threads import threads

SHAPE = (17, 25)  # more chunks than are summed over at once, of an odd number of rows
# Samples, channels, hidden and, of the maps, channels: of noise, of positions; labels; the maps' gradient is wanted.
CASES = [
    (1, 32, 48, 5, 0, 0, False),
    (2, 48, 32, 3, 13, 2, True),
    (3, 16, 64, 0, 0, 3, False),
    (2, 256, 512, 256, 0, 0, True),
]


@pytest.fixture(autouse=True)
def _with_loops() -> Iterator[None]:
    torch.manual_seed(0)
    assert LOOPS.have(torch.zeros(16)), "these tests are of the loops"
    with threads(torch.get_num_threads()):  # tests change them
        yield


class Layers(nn.Module):
    def __init__(self, case: tuple[int, ...]) -> None:
        super().__init__()
        _, c, hidden, n_noise, n_position, n_labels, _ = case
        counts = {"n_noise": n_noise, "n_position": n_position, "n_labels": n_labels}
        self.norm = ConditionalNorm(c, SHAPE, **counts, affine=True, over_grid=False)
        self.up, self.down = LoRALinear(c, hidden, rank=2), LoRALinear(hidden, c)
        for p in self.norm.parameters():
            nn.init.normal_(p, std=0.3)


def inputs(case: tuple[int, ...]) -> list[Tensor | None]:
    """x, maps, labels, residual, and what pulls at the result; x has a mean that takes digits."""
    b, c, _, n_noise, n_position, n_labels, of_maps = case
    maps = torch.randn(b, *SHAPE, n_noise + n_position, requires_grad=bool(of_maps))
    x, residual = ((torch.randn(b, *SHAPE, c) + 2).requires_grad_() for _ in range(2))
    return [x, maps, torch.randn(b, n_labels) if n_labels else None, residual, torch.randn(b, *SHAPE, c)]


def results(layers: nn.Module, given: list[Tensor | None], of: Callable[..., Tensor]) -> list[Tensor]:
    """The result and its gradients."""
    layers.zero_grad()
    given = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in given]
    out = of(layers, *given[:4])
    out.backward(given[4])
    leaves = [*(t for t in given if t is not None), *layers.parameters()]
    return [out.detach(), *(t.grad.clone() for t in leaves if t.grad is not None)]


def normed(layers: Layers, x: Tensor, maps: Tensor, labels: Tensor | None, residual: Tensor) -> Tensor:
    return layers.norm(x, maps, labels) + residual


def perceptron(before: str | None, between: str, recompute: bool) -> Callable[..., Tensor]:
    def of(layers: Layers, x: Tensor, maps: Tensor, labels: Tensor | None, residual: Tensor) -> Tensor:
        weights = (layers.norm, maps, labels, layers.up, layers.down)
        return activated_norm_mlp(x, residual, *weights, before=before, between=between, recompute=recompute)

    return of


FORMS = {
    "norm": normed,
    "perceptron": perceptron("gelu", "gelu", False),
    "nothing before": perceptron(None, "silu", False),
    "hidden layer again": perceptron("relu", "gelu", True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_loops_and_operators_are_the_same(form: str, case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layers, given, of = Layers(case), inputs(case), FORMS[form]
    used: list[str] = []
    call = LOOPS.call
    monkeypatch.setattr(LOOPS, "call", lambda name, *a: used.append(name) or call(name, *a))
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(results(layers, given, of))
    name = "conditional_norm" if form == "norm" else "conditional_perceptron"
    assert {name, f"{name}_backward", "conditional_norm_backward"} <= set(used)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), "threads change no number"
    wide = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in given]
    exact = results(copy.deepcopy(layers).double(), wide, of)
    monkeypatch.setattr(LOOPS, "run", lambda _: False)
    monkeypatch.setattr(LOOPS, "call", None)
    operators = results(layers, given, of)
    for ours, theirs, right in zip(found[0], operators, exact, strict=True):
        assert ours.shape == theirs.shape
        size = right.norm().clamp_min(1e-30)
        assert float((ours.double() - right).norm() / size) < 3e-6
        assert float((ours - theirs).double().norm() / size) < 4e-6


@pytest.mark.parametrize("form", FORMS)
def test_without_a_graph_the_result_is_the_same(form: str) -> None:
    layers, given, of = Layers(CASES[1]), inputs(CASES[1]), FORMS[form]
    with torch.no_grad():
        alone = of(layers, *given[:4])
    assert torch.equal(alone, results(layers, given, of)[0])


def test_what_the_loops_do_not_take_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: object) -> None:
        assert not name.startswith("conditional")

    for case in ((1, 24, 32, 3, 0, 0, False), (1, 16, 24, 3, 0, 0, False), (1, 16, 32, 3, 0, 0, True)):
        layers, given = Layers(case), inputs(case)
        monkeypatch.setattr(LOOPS, "call", refuse)
        perceptron(None, "gelu", False)(layers, *given[:4])
        monkeypatch.undo()
