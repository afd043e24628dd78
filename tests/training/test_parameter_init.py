"""Fine-tuning: what is loaded, frozen and regularised, against numbers worked out by hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ace_core.config import dump
from ace_core.errors import AceError, ConfigError, DataError
from ace_core.models.sfno import SphericalFourierNeuralOperatorNet
from ace_core.training import checkpoint
from ace_core.training.parameter_init import (
    ParameterInitializationConfig,
    Regularizer,
    initialise,
    load_base,
)

PATH = "base.tar"
Parameters = list[dict[str, Any]]


class Net(nn.Module):
    """encoder 2 -> hidden and decoder hidden -> 1, with a buffer and a parameter whose name has no dot."""

    def __init__(self, hidden: int = 3, value: float = 9.0) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, hidden)
        self.decoder = nn.Linear(hidden, 1)
        self.decoder2 = nn.Linear(hidden, 1, bias=False)
        self.scale = nn.Parameter(torch.zeros(()))
        self.offset: Tensor
        self.register_buffer("offset", torch.zeros(2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


NAMES = ("scale", "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "decoder2.weight")


def configured(parameters: Parameters | None = None, **others: Any) -> ParameterInitializationConfig:
    return ParameterInitializationConfig.model_validate({"weights_path": PATH, "parameters": parameters or []} | others)


def filled(net: nn.Module, value: float) -> dict[str, Tensor]:
    return {n: torch.full_like(p, value) for n, p in net.state_dict().items()}


def values(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in net.state_dict().items()}


def assert_untouched(net: nn.Module, before: Mapping[str, Tensor]) -> None:
    assert all(torch.equal(x, before[n]) for n, x in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def frozen(net: nn.Module) -> set[str]:
    return {n for n, p in net.named_parameters() if not p.requires_grad}


def messages(error: AceError) -> list[tuple[str, str, str]]:
    return [(p.where, p.found, p.fix) for p in error.problems]


def wheres(error: AceError) -> list[str]:
    return [p.where for p in error.problems]


# --- loading


def test_loads_everything_but_buffers_and_what_is_excluded() -> None:
    net = Net()
    base = filled(net, 2.0) | {"device_buffer": torch.ones(7)}
    assert initialise(configured([{"exclude": ["decoder.*"]}]), [net], [base]) is None
    assert {n: float(x.mean()) for n, x in net.state_dict().items()} == {
        "scale": 2.0,
        "offset": 0.0,
        "encoder.weight": 2.0,
        "encoder.bias": 2.0,
        "decoder.weight": 9.0,
        "decoder.bias": 9.0,
        "decoder2.weight": 2.0,
    }
    assert not frozen(net)


def test_smaller_base_overwrites_the_leading_slice() -> None:
    small, large = Net(hidden=2), Net(hidden=3)
    base = filled(small, 1.0)
    base["encoder.weight"] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    base["decoder.weight"] = torch.tensor([[5.0, 6.0]])
    before = large.encoder.weight
    initialise(configured(), [large], [base])
    assert large.encoder.weight is before
    assert large.encoder.weight.tolist() == [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]
    assert large.encoder.bias.tolist() == [1.0, 1.0, 9.0]
    assert large.decoder.weight.tolist() == [[5.0, 6.0, 9.0]]
    assert large.scale.item() == 1.0


def test_what_the_base_lacks_keeps_its_values_and_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Net(), Net()
    base = filled(first, 2.0)
    del base["decoder2.weight"], base["scale"]
    with caplog.at_level(logging.INFO):
        initialise(configured(), [first, second], [base])
    assert first.scale.item() == first.decoder2.weight.mean().item() == 9.0
    assert first.encoder.bias.tolist() == [2.0] * 3
    assert_untouched(second, values(Net()))
    lines = [r.getMessage() for r in caplog.records if "own initialisation kept" in r.getMessage()]
    expected = [f"networks[0].{n}" for n in ("scale", "decoder2.weight")] + [f"networks[1].{n}" for n in NAMES]
    assert [line.split("kept: ")[1].split(", ") for line in lines] == [expected]


def test_base_and_parameter_share_no_memory() -> None:
    net = Net()
    base = filled(net, 2.0)
    regularizer = initialise(configured(alpha=2.0), [net], [base])
    assert regularizer is not None
    for value in base.values():
        value.fill_(1e6)
    assert regularizer().item() == 0.0
    assert net.encoder.bias.tolist() == [2.0] * 3


def test_base_that_does_not_fit_is_refused_with_all_its_faults_and_nothing_is_loaded() -> None:
    net, second = Net(), Net()
    base = filled(net, 2.0)
    base["encoder.weight"] = torch.zeros(4, 2)
    base["encoder.bias"] = torch.zeros(3, 1)
    base["scale"] = torch.zeros((), dtype=torch.complex64)
    base["decodr.weight"] = torch.zeros(1)
    before = values(net)
    config = configured([{"exclude": ["decoder.*"], "frozen": {"include": ["encoder.*"]}}], alpha=1.0)
    with pytest.raises(DataError) as caught:
        initialise(config, [net, second], [base, {"nothing": torch.zeros(1)}, {}])
    assert [(p.where, p.found, p.expected) for p in caught.value.problems] == [
        ("base.tar networks[2]", "one network too many", "at most 2, as in stepper.step"),
        (
            "base.tar networks[0].scale",
            "is torch.complex64",
            "real numbers, as the network's torch.float32",
        ),
        (
            "base.tar networks[0].encoder.weight",
            "has shape [4, 2]",
            "the rank of the network's [3, 2] and no larger size",
        ),
        (
            "base.tar networks[0].encoder.bias",
            "has shape [3, 1]",
            "the rank of the network's [3] and no larger size",
        ),
        (
            "base.tar networks[0].decodr.weight",
            "the network has no such parameter, but 'decoder.weight'",
            "weights of a network that is contained in the one configured",
        ),
        (
            "base.tar networks[1].nothing",
            "the network has no such parameter",
            "weights of a network that is contained in the one configured",
        ),
    ]
    assert caught.value.problems[2].fix == "exclude 'encoder.weight' in stepper_training.parameter_init.parameters[0]"
    assert_untouched(net, before)
    assert_untouched(second, before)


def test_excluded_parameter_may_have_any_shape() -> None:
    net = Net()
    base = filled(net, 2.0) | {"decoder.weight": torch.zeros(5, 5, 5)}
    initialise(configured([{"exclude": ["decoder.weight"]}]), [net], [base])
    assert net.decoder.weight.tolist() == [[9.0] * 3]


def test_real_checkpoints_new_layout_old_layout_and_none(tmp_path: Path) -> None:
    def network(embed_dim: int) -> nn.Module:
        return SphericalFourierNeuralOperatorNet(2, 3, (8, 16), embed_dim=embed_dim, num_layers=1)

    torch.manual_seed(0)
    small, large = network(4), network(6)
    own = values(large)
    layouts = {"new": {"networks": [small.state_dict(), Net().state_dict()]}, "old": {"network": small.state_dict()}}
    for name, emulator in layouts.items():
        path = tmp_path / f"{name}.tar"
        checkpoint.save(path, {"emulator": {"config": {}} | emulator})
        base = load_base(str(path)).networks
        assert len(base) == (2 if name == "new" else 1)
        assert list(base[0]) == list(small.state_dict())
        large.load_state_dict(own)
        initialise(configured(weights_path=str(path)), [large, Net()], base)
        n_overwritten = 0
        for key, parameter in large.named_parameters():
            theirs = dict(small.named_parameters())[key]
            inside = torch.zeros_like(parameter, dtype=torch.bool)
            inside[tuple(slice(n) for n in theirs.shape)] = True
            assert torch.equal(parameter[inside], theirs.flatten()), key
            assert torch.equal(parameter[~inside], own[key][~inside]), key
            n_overwritten += int(inside.sum())
        assert n_overwritten == sum(p.numel() for p in small.parameters())
    holdings: list[dict[str, Any]] = [
        {},
        {"emulator": {}},
        {"emulator": {"networks": []}},
        {"emulator": {"networks": [{"a": None}]}},
    ]
    for content in holdings:
        checkpoint.save(tmp_path / "none.tar", content)
        with pytest.raises(DataError, match=r"none\.tar: holds no network"):
            load_base(tmp_path / "none.tar")
    with pytest.raises(DataError, match="no such checkpoint"):
        load_base(tmp_path / "absent.tar")


# --- names and patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", set(NAMES)),
        ("decoder.*", {"decoder.weight", "decoder.bias"}),  # a dot is a dot: not decoder2.weight
        ("decoder*", {"decoder.weight", "decoder.bias", "decoder2.weight"}),
        ("*.bias", {"encoder.bias", "decoder.bias"}),
        ("*oder*.w*t", {"encoder.weight", "decoder.weight", "decoder2.weight"}),
        ("scale", {"scale"}),  # the whole name, from its beginning to its end
        ("module.decoder.bias", {"decoder.bias"}),
        ("module.*", set(NAMES)),
    ],
)
def test_patterns(pattern: str, expected: set[str]) -> None:
    net = Net()
    others = expected != set(NAMES)
    if others:
        initialise(configured([{"frozen": {"include": [pattern]}}]), [net], [{}])
        assert frozen(net) == expected
        opposite = Net()
        initialise(configured([{"frozen": {"exclude": [pattern]}}]), [opposite], [{}])
        assert frozen(opposite) == set(NAMES) - expected
    initialise(configured([{"exclude": [pattern]}]), [net], [filled(net, 2.0)])
    assert {n for n, p in net.named_parameters() if float(p.detach().mean()) == 9.0} == expected


@pytest.mark.parametrize(
    "pattern", ["decoder", "coder.weight", "encoder.weigh", "encoder?bias", "encoder.[bw]*", "encoder.bias|scale", ".+"]
)
def test_all_other_characters_are_literal(pattern: str) -> None:
    with pytest.raises(ConfigError, match="matches no parameter"):
        initialise(configured([{"exclude": [pattern]}]), [Net()], [{}])


def test_unmatched_patterns_are_reported_together_before_anything_is_done() -> None:
    net, second, base = Net(), Net(), filled(Net(), 2.0)
    before = values(net)
    config = configured(
        [
            {"exclude": ["scale", "decodr.weight"], "frozen": {"include": ["encoder.*", "offset", "encoder.wieght"]}},
            {"frozen": {"exclude": ["*", "scal"]}},
        ]
    )
    with pytest.raises(ConfigError) as caught:
        initialise(config, [net, second], [base, base])
    where = "stepper_training.parameter_init.parameters"
    assert messages(caught.value) == [
        (f"{where}[0].exclude", "'decodr.weight' matches no parameter", "did you mean 'decoder.weight'?"),
        (f"{where}[0].frozen.include", "'offset' matches no parameter", "did you mean 'scale'?"),
        (f"{where}[0].frozen.include", "'encoder.wieght' matches no parameter", "did you mean 'encoder.weight'?"),
        (f"{where}[1].frozen.exclude", "'scal' matches no parameter", "did you mean 'scale'?"),
    ]
    assert_untouched(net, before)
    assert_untouched(second, before)


def test_star_matches_unless_there_is_no_parameter() -> None:
    initialise(configured([{"frozen": {"exclude": ["*"]}}]), [Net()], [{}])
    with pytest.raises(ConfigError, match=r"'\*' matches no parameter(.|\n)*the network has no parameters"):
        initialise(configured([{"frozen": {"exclude": ["*"]}}]), [nn.Identity()], [{}])


def test_prefix_of_fme_is_dropped_in_the_base_and_a_part_called_module_is_not() -> None:
    net = Net()
    base = {f"module.{n}": x for n, x in filled(net, 2.0).items()} | {"module.device_buffer": torch.zeros(1)}
    regularizer = initialise(configured([{"exclude": ["decoder.*"]}], alpha=2.0, beta=2.0), [net], [base])
    assert net.scale.item() == 2.0
    assert regularizer is not None
    assert regularizer().item() == pytest.approx(9.0 * 3**0.5 + 9.0)

    wrapped = nn.ModuleDict({"module": nn.Linear(2, 1), "other": nn.Linear(2, 1)})
    for prefix in ("", "module."):
        base = {prefix + n: x for n, x in filled(wrapped, 3.0).items()}
        initialise(configured([{"exclude": ["module.*"]}]), [wrapped], [base])
        assert float(wrapped["other"].bias.detach()) == 3.0
        assert float(wrapped["module"].bias.detach()) != 3.0

    with pytest.raises(DataError, match="stored twice"):
        initialise(configured(), [Net()], [{"scale": torch.zeros(()), "module.scale": torch.zeros(())}])


def test_more_entries_than_networks() -> None:
    net = Net()
    with pytest.raises(ConfigError) as caught:
        initialise(configured([{}, {"exclude": ["nothing"]}]), [net], [filled(net, 2.0)])
    assert [(p.where, p.found, p.expected) for p in caught.value.problems] == [
        ("stepper_training.parameter_init.parameters", "2 entries", "at most 1, one per network")
    ]
    assert_untouched(net, values(Net()))


# --- freezing


def test_frozen_parameters_get_no_gradient_and_stay() -> None:
    net, second = Net(), Net()
    config = ParameterInitializationConfig.model_validate({"parameters": [{"frozen": {"include": ["encoder.*"]}}]})
    assert initialise(config, [net, second], None) is None
    before = values(net)
    optimizer = torch.optim.AdamW([*net.parameters(), *second.parameters()], lr=0.1, weight_decay=0.5)
    x = torch.ones(4, 2)
    sum(m.scale * (m.decoder(m.encoder(x)) + m.decoder2(m.encoder(x))).sum() for m in (net, second)).backward()
    optimizer.step()
    assert net.encoder.weight.grad is None
    assert net.encoder.bias.grad is None
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(NAMES) - {"encoder.weight", "encoder.bias"}
    assert not any(torch.equal(p, before[n]) for n, p in second.named_parameters())


def test_an_empty_exclude_freezes_the_whole_network_but_not_all_networks() -> None:
    net, second = Net(), Net()
    initialise(configured([{"frozen": {"exclude": []}}]), [net, second], [{}])
    assert frozen(net) == set(NAMES)
    assert not frozen(second)
    alone = Net()
    for key in ({"exclude": []}, {"include": ["*"]}):
        with pytest.raises(ConfigError, match="every parameter is frozen"):
            initialise(configured([{"frozen": key}]), [alone], [{}])
    assert_untouched(alone, values(Net()))


# --- regularisation


def tuned(
    parameters: Parameters | None, alpha: float, beta: float, base: Mapping[str, Tensor], net: Net
) -> Regularizer:
    regularizer = initialise(configured(parameters, alpha=alpha, beta=beta), [net], [base])
    assert regularizer is not None
    return regularizer


def test_regularizer_in_closed_form() -> None:
    """|p - p0| is 5 and 2, |p| of the excluded is 13: value alpha/2 7 + beta/2 13, gradient the unit vectors' multiple."""
    net = Net()
    regularizer = tuned([{"exclude": ["decoder.weight"]}], 0.6, 0.2, filled(net, 1.0), net)
    with torch.no_grad():
        net.encoder.weight += torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, -4.0]])
        net.scale -= 2.0
        net.decoder.weight.copy_(torch.tensor([[3.0, 4.0, 12.0]]))
    value = regularizer()
    assert value.shape == ()
    assert value.item() == pytest.approx(0.3 * 7 + 0.1 * 13)
    (3.0 * value).backward()  # type: ignore[no-untyped-call]
    expected = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    expected["encoder.weight"] = 0.9 * torch.tensor([[0.6, 0.0], [0.0, 0.0], [0.0, -0.8]])
    expected["scale"] = torch.tensor(-0.9)
    expected["decoder.weight"] = 0.3 * torch.tensor([[3.0, 4.0, 12.0]]) / 13
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_gradient_is_zero_where_training_starts_and_a_nan_stays_one() -> None:
    net = Net(value=0.0)
    base = filled(net, 1.0)
    regularizer = tuned([{"exclude": ["decoder*"]}], 2.0, 2.0, base, net)
    value = regularizer()
    assert value.item() == 0.0
    value.backward()  # type: ignore[no-untyped-call]
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name
    with torch.no_grad():
        net.encoder.bias[1] = torch.nan
    value = regularizer()
    assert value.isnan()
    value.backward()  # type: ignore[no-untyped-call]
    assert net.encoder.bias.grad is not None
    assert net.encoder.bias.grad.isnan().all()


def test_gradient_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    net, base = Net(hidden=4).double(), filled(Net(hidden=2).double(), 0.5)
    regularizer = tuned([{"exclude": ["decoder.*"]}], 0.7, 0.3, base, net)
    parameters = list(net.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn_like(parameter))
    assert torch.autograd.gradcheck(lambda *_: regularizer(), parameters)


def test_only_the_loaded_slice_is_held() -> None:
    small, large = Net(hidden=2), Net(hidden=3)
    regularizer = tuned(None, 2.0, 0.0, filled(small, 1.0), large)
    assert regularizer().item() == 0.0
    with torch.no_grad():
        large.encoder.weight[2] = 100.0
        large.encoder.weight[1] += torch.tensor([3.0, 4.0])
    value = regularizer()
    assert value.item() == pytest.approx(5.0)
    value.backward()  # type: ignore[no-untyped-call]
    assert large.encoder.weight.grad is not None
    torch.testing.assert_close(large.encoder.weight.grad, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0]]))


def test_what_the_base_lacks_is_free_and_what_is_frozen_costs_nothing() -> None:
    net = Net()
    base = filled(net, 1.0)
    del base["decoder.weight"], base["decoder2.weight"]
    parameters: Parameters = [
        {"exclude": ["decoder*", "encoder.bias"], "frozen": {"include": ["encoder.bias", "scale"]}}
    ]
    regularizer = tuned(parameters, 2.0, 2.0, base, net)
    # Of the excluded, the base has decoder.bias (one 9) and the frozen encoder.bias (three): a constant, as in fme.
    assert regularizer().item() == pytest.approx(9.0 + 9.0 * 3**0.5)
    regularizer().backward()  # type: ignore[no-untyped-call]
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {"encoder.weight", "decoder.bias"}


def test_several_networks_add_up() -> None:
    nets = [Net(), Net()]
    config = configured([{}, {"exclude": ["encoder.bias"]}], alpha=2.0, beta=4.0)
    regularizer = initialise(config, nets, [filled(n, 0.0) for n in nets])
    assert regularizer is not None
    with torch.no_grad():
        nets[0].scale += 5.0
        nets[1].decoder.bias -= 7.0
    assert regularizer().item() == pytest.approx(5.0 + 7.0 + 2 * 9.0 * 3**0.5, rel=1e-6)


def test_pulls_back_under_a_trainers_step() -> None:
    """A constant force lr alpha/2 along the unit vector: from distance 5, ten steps of 0.1 leave 4."""
    net = Net()
    regularizer = tuned(None, 2.0, 0.0, filled(net, 1.0), net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.no_grad():
        net.encoder.bias += torch.tensor([3.0, 4.0, 0.0])
    for _ in range(10):
        optimizer.zero_grad()
        regularizer().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(net.encoder.bias.detach(), 1.0 + 0.8 * torch.tensor([3.0, 4.0, 0.0]))
    assert regularizer().item() == pytest.approx(4.0, rel=1e-5)


def test_nothing_to_regularise(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    assert initialise(configured(), [net], [filled(net, 1.0)]) is None
    assert initialise(ParameterInitializationConfig(), [net], None) is None
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert initialise(configured([{"exclude": ["*"]}], alpha=1.0), [net], [filled(net, 1.0)]) is None
    assert "alpha has no effect: no loaded parameter is trained" in caplog.text
    caplog.clear()
    parameters: Parameters = [{"exclude": ["decoder*"], "frozen": {"include": ["encoder.*", "scale"]}}]
    assert initialise(configured(parameters, alpha=1.0), [Net()], [filled(net, 1.0)]) is None
    assert "alpha has no effect" in caplog.text
    assert initialise(configured(beta=1.0), [net], [filled(net, 1.0)]) is None
    assert "beta has no effect: no parameter of base.tar is excluded" in caplog.text


def test_follows_the_parameters_to_another_device() -> None:
    """No second device here: ``meta`` has shapes and devices and no values."""
    net = Net()
    regularizer = tuned([{"exclude": ["decoder.*"]}], 1.0, 1.0, filled(net, 1.0), net)
    assert regularizer().device.type == "cpu"
    for parameter in net.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to("meta")))
    value = regularizer()
    assert (value.device.type, value.shape) == ("meta", ())


class Operations(TorchDispatchMode):
    """Names of the operations that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_operations_do_not_grow_with_the_parameters_and_ask_the_device_nothing() -> None:
    def operations(n: int) -> tuple[list[str], list[str]]:
        net = nn.ModuleList(nn.Linear(3, 3) for _ in range(n))
        regularizer = initialise(configured(alpha=1.0), [net], [filled(net, 1.0)])
        assert regularizer is not None
        with Operations() as forward:
            value = regularizer()
        with Operations() as backward:
            value.backward()  # type: ignore[no-untyped-call]
        views = ("aten.detach", "aten.unbind", "aten.select", "aten.slice")
        return ([x for x in names if not x.startswith(views)] for names in (forward.names, backward.names))  # type: ignore[return-value]

    (few, few_back), (many, many_back) = operations(2), operations(40)
    assert few == many
    assert few_back == many_back
    assert not any("_local_scalar_dense" in x or "item" in x for x in many + many_back)


# --- configuration


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"parameters": [{"frozen": {"include": ["a"], "exclude": []}}]},
            "include and exclude are both given: remove one of the two",
        ),
        ({"alpha": -0.1}, "greater than or equal to 0"),
        ({"beta": float("inf")}, "finite"),
        ({"alpha": 0.5}, "alpha acts only with a weights_path: remove it, or set one"),
        (
            {"alpha": 0.5, "beta": 1, "parameters": [{}, {"exclude": ["a"]}]},
            r"parameters\[1\]\.exclude, alpha, beta act only with a weights_path",
        ),
        ({"exclude_parameters": ["a"]}, r"parameters\[0\]\.exclude acts only with a weights_path"),
        (
            {"exclude_parameters": [], "frozen_parameters": {}, "parameters": [{}]},
            r"exclude_parameters and frozen_parameters beside parameters: move",
        ),
        ({"frozen_parameters": {"includes": []}}, r"parameters\.0\.frozen\.includes"),
        ({"weight_path": "a"}, "weight_path"),
    ],
)
def test_configuration_is_checked(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ParameterInitializationConfig.model_validate(data)


def test_retired_keys_are_read_as_the_first_entry(caplog: pytest.LogCaptureFixture) -> None:
    parse = ParameterInitializationConfig.model_validate
    old = {"weights_path": PATH, "exclude_parameters": ["a"], "frozen_parameters": {"include": ["b"]}}
    before = dict(old)
    new = parse({"weights_path": PATH, "parameters": [{"exclude": ["a"], "frozen": {"include": ["b"]}}]})
    with caplog.at_level(logging.WARNING):
        assert parse({"exclude_parameters": None, "frozen_parameters": None}) == parse({})
        assert parse(dump(new)) == new
        assert not caplog.records
        assert parse(old) == new
    assert old == before
    assert [r.getMessage() for r in caplog.records] == [
        "stepper_training.parameter_init: retired, read as parameters[0]: exclude_parameters, frozen_parameters"
    ]
    assert parse({"frozen_parameters": {"exclude": []}}) == parse({"parameters": [{"frozen": {"exclude": []}}]})
