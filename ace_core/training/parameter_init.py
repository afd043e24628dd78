"""Fine-tuning (fme's ``stepper_training.parameter_init``): weights from a checkpoint, some frozen, the others held close.

A parameter has one name everywhere: that inside its network, as in ``named_parameters()``. fme's wrapper writes ``module.``
before it; in patterns and in base weights that prefix is dropped. In a pattern ``*`` stands for any characters, everything
else for itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, DataError, Problem, fail
from ace_core.interop.fme_checkpoint import emulator_from_fme, is_fme
from ace_core.interop.unpickle import unpickle
from ace_core.telemetry import log
from ace_core.training import checkpoint

WHERE, COPY = "stepper_training.parameter_init", "copy_weights_after_batch"
_PREFIX = "module."
_DEVICE_BUFFER = "device_buffer"

Coefficient = Annotated[float, Field(ge=0)]


class FrozenParameterConfig(StrictModel):
    """Patterns of the parameters that training leaves alone: those of ``include``, or all but those of ``exclude``."""

    include: list[str] = []
    exclude: list[str] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> FrozenParameterConfig:
        if self.include and self.exclude is not None:
            raise ValueError("include and exclude are both given: remove one of the two")
        return self


class ParameterClassification(StrictModel):
    """One network. exclude: patterns of the parameters that keep their own initialisation; frozen: those not trained."""

    exclude: list[str] = []
    frozen: FrozenParameterConfig = FrozenParameterConfig()


class ParameterInitializationConfig(StrictModel):
    """weights_path: checkpoint to start from. parameters: one entry per network, primary first; those left out load
    everything and freeze nothing. alpha, beta: see :class:`Regularizer`.

    The retired keys exclude_parameters and frozen_parameters are read as ``parameters[0]``.
    """

    weights_path: str | None = None
    parameters: list[ParameterClassification] = []
    alpha: Coefficient = 0.0
    beta: Coefficient = 0.0

    @model_validator(mode="before")
    @classmethod
    def _retired(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        old = {k: data.pop(k, None) for k in ("exclude_parameters", "frozen_parameters")}
        given = [k for k, value in old.items() if value is not None]
        if not given:
            return data
        if data.get("parameters"):
            raise ValueError(f"{' and '.join(given)} beside parameters: move what is in there to parameters[0]")
        log.warning("%s: retired, read as parameters[0]: %s", WHERE, ", ".join(given))
        data["parameters"] = [{k.removesuffix("_parameters"): old[k] for k in given}]
        return data

    @model_validator(mode="after")
    def _weights_are_there(self) -> ParameterInitializationConfig:
        idle = [f"parameters[{i}].exclude" for i, entry in enumerate(self.parameters) if entry.exclude]
        idle += [name for name, value in (("alpha", self.alpha), ("beta", self.beta)) if value]
        if self.weights_path is None and idle:
            act = "acts" if len(idle) == 1 else "act"
            raise ValueError(f"{', '.join(idle)} {act} only with a weights_path: remove it, or set one")
        return self


class Regularizer:
    """``alpha/2 sum_i |p_i - p0_i| + beta/2 sum_j |p_j|``: i over what was loaded, j over what the base has but was excluded.

    L2-SP (Li et al. 2018, arXiv:1802.01483) with norms that are not squared, as in fme: each parameter is pulled with a
    constant force, whatever the distance. Where only the leading slice of a parameter was loaded, |p - p0| is over that
    slice; the rest has no p0 and, like parameters that the base does not know, is free. (fme subtracts the smaller from
    the larger: an error, or a broadcast of p0.) A frozen p stays its p0 and is left out.
    """

    def __init__(
        self,
        alpha: float,
        beta: float,
        loaded: Sequence[tuple[nn.Parameter, Tensor]],
        excluded: Sequence[nn.Parameter],
    ) -> None:
        """loaded: parameters with their p0, of equal rank and at most the parameter's size."""
        assert loaded or excluded
        self.alpha, self.beta = alpha, beta
        self._loaded = [p for p, _ in loaded]
        # A copy: the caller's tensors may be those of a network in use.
        self._origin = [torch.empty(value.shape, dtype=p.dtype, device=p.device).copy_(value) for p, value in loaded]
        self._excluded = list(excluded)

    def __call__(self) -> Tensor:
        """0-d, on the parameters' device, with a graph; add it to the loss before the one backward pass."""
        tensors: list[Tensor] = list(self._excluded)
        if self._loaded:
            if self._origin[0].device != self._loaded[0].device:
                self._origin = [origin.to(p.device) for p, origin in zip(self._loaded, self._origin)]
            # One slice with gaps would send all of them to a kernel each.
            slices = [_leading(p, origin.shape).contiguous() for p, origin in zip(self._loaded, self._origin)]
            tensors = [*torch._foreach_sub(slices, self._origin), *tensors]
        norms: Tensor = _Norms.apply(*tensors)  # type: ignore[no-untyped-call]
        n = len(self._loaded)
        return 0.5 * (self.alpha * norms[:n].sum() + self.beta * norms[n:].sum())


class _Norms(torch.autograd.Function):
    """Euclidean norms [n] of n tensors, and their gradient x / |x|, which is 0 at x = 0: where every p starts.

    One kernel for all tensors; in the backward pass one product for each, where torch's own has four.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        norms = torch.stack(torch._foreach_norm(tensors))
        ctx.save_for_backward(norms, *tensors)
        return norms

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        norms, *tensors = ctx.saved_tensors
        # Not `norms > 0`: a NaN is to stay one.
        factors = (gradients[0] / norms).masked_fill(norms == 0, 0.0)
        return tuple(torch._foreach_mul(tensors, factors.unbind()))


def initialise(
    config: ParameterInitializationConfig,
    modules: Sequence[nn.Module],
    base: Sequence[Mapping[str, Tensor]] | None,
) -> Regularizer | None:
    """Load and freeze parameters of ``modules``; None if nothing is to be regularised.

    modules: the networks, primary first, before they are wrapped for several ranks and before optimizer and EMA are made
    of them. base: state dicts of the checkpoint's networks in the same order (:func:`load_base`), None without
    weights_path; a network that the base does not have keeps its own initialisation. A loaded tensor overwrites the
    leading slice of its parameter; buffers are skipped.

    Raises :class:`ConfigError` for entries beyond the networks, patterns that match nothing, nothing left to train;
    :class:`DataError` for base weights that the networks cannot take. Then nothing has been changed.
    """
    assert base is not None or config.weights_path is None, "the weights of weights_path are to be given"
    own = [dict(m.named_parameters(remove_duplicate=False)) for m in modules]
    entries = _entries(config, own)
    frozen = [_frozen(entry.frozen, parameters) for entry, parameters in zip(entries, own)]
    if any(frozen) and all(name in names for names, parameters in zip(frozen, own) for name in parameters):
        expected = "at least one parameter left to train"
        raise fail(ConfigError, f"{WHERE}.parameters", "every parameter is frozen", expected, "freeze fewer")
    excluded = [_matching(entry.exclude, parameters) for entry, parameters in zip(entries, own)]
    states = None if base is None else _states(str(config.weights_path), modules, base, excluded)

    for names, parameters in zip(frozen, own):
        for name in names:
            parameters[name].requires_grad_(False)
    if any(frozen):
        log.info("%s: %d of %d parameters frozen", WHERE, sum(map(len, frozen)), sum(map(len, own)))
    if states is None:
        return None
    loaded = [(own[i][n], x) for i, state in enumerate(states) for n, x in state.items() if n not in excluded[i]]
    apart = [own[i][n] for i, state in enumerate(states) for n in state if n in excluded[i]]
    with torch.no_grad():
        for parameter, value in loaded:
            _leading(parameter, value.shape).copy_(value)
    lacking = [f"networks[{i}].{n}" for i, state in enumerate(states) for n in own[i] if n not in state]
    log.info("%s: %d parameters loaded from %s, %d excluded", WHERE, len(loaded), config.weights_path, len(apart))
    if lacking:
        log.info("%s: not in %s, own initialisation kept: %s", WHERE, config.weights_path, ", ".join(lacking))
    return _regularizer(config, loaded, apart)


def copier(
    configs: Sequence[FrozenParameterConfig], modules: Sequence[nn.Module], base: Sequence[Mapping[str, Tensor]]
) -> Callable[[], None]:
    """A function that overwrites chosen parameters of ``modules`` with the base's (fme's ``copy_weights_after_batch``): a larger one's
    leading slice, so that training changes only what is around it. Called after every batch. The modules are where they will train.

    configs: one per network, primary first; the others are left alone. Raises :class:`ConfigError` for a pattern that matches nothing,
    or that matches a parameter the base does not have; :class:`DataError` for base weights that the networks cannot take.
    """
    own = [dict(m.named_parameters(remove_duplicate=False)) for m in modules]
    entries = _entries(
        ParameterInitializationConfig(parameters=[ParameterClassification(frozen=c) for c in configs]), own, COPY
    )
    chosen = [_frozen(entry.frozen, parameters) for entry, parameters in zip(entries, own)]
    states = _states("copy_weights_after_batch:", modules, base, [set(p) - c for p, c in zip(own, chosen)])
    problems = [
        Problem(
            f"{COPY}[{i}]", f"{name!r} is not in the base", "parameters of the checkpoint weights_path", "narrow it"
        )
        for i, names in enumerate(chosen)
        for name in sorted(names)
        if i >= len(states) or name not in states[i]
    ]
    if problems:
        raise ConfigError(problems)
    pairs = [(own[i][n], states[i][n].to(own[i][n].device)) for i, names in enumerate(chosen) for n in sorted(names)]

    @torch.no_grad()
    def copy() -> None:
        for parameter, value in pairs:
            _leading(parameter, value.shape).copy_(value)

    return copy


@dataclass(frozen=True, eq=False)
class Base:
    """networks: state dicts, primary first, on the CPU. labels: in the order in which the networks are told of them."""

    networks: list[dict[str, Tensor]]
    labels: tuple[str, ...] = ()

    def with_more(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The order of the labels of data for networks that begin with these weights: new ones come after those that they know."""
        return (*self.labels, *sorted(set(labels) - set(self.labels))) if labels else ()


def load_base(path: str | Path) -> Base:
    """What a checkpoint, ours or fme's, gives to begin with. Raises :class:`DataError`."""
    content = unpickle(Path(path))
    if is_fme(content):
        theirs = emulator_from_fme(content, str(path))
        return Base([n.state_dict() for n in theirs.step.networks], theirs.info.labels)
    emulator = checkpoint.ours(content, Path(path)).get("emulator")
    networks: Any = None
    if isinstance(emulator, dict):
        # Before there could be several, the one network was stored by itself.
        networks = emulator["networks"] if "networks" in emulator else [emulator.get("network")]
    if not isinstance(networks, list) or not networks or not all(_is_state(n) for n in networks):
        raise fail(DataError, str(path), "holds no network", "a checkpoint of an emulator")
    assert isinstance(emulator, dict)
    return Base([dict(n) for n in networks], tuple(emulator.get("dataset_info", {}).get("labels", ())))


def _is_state(network: Any) -> bool:
    return isinstance(network, dict) and all(isinstance(x, Tensor) for x in network.values())


# --- what the patterns select


def _entries(
    config: ParameterInitializationConfig, own: Sequence[Mapping[str, nn.Parameter]], where: str = f"{WHERE}.parameters"
) -> list[ParameterClassification]:
    """One entry per network, each pattern of which matches a parameter."""
    entries = config.parameters
    if len(entries) > len(own):
        expected = f"at most {len(own)}, one per network"
        raise fail(
            ConfigError, where, f"{len(entries)} entries", expected, "remove those of networks that are not there"
        )
    entries = entries + [ParameterClassification()] * (len(own) - len(entries))
    problems = []
    for i, (entry, names) in enumerate(zip(entries, own)):
        for key, pattern in _patterns(entry):
            if not _matching([pattern], names):
                closest = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
                problems.append(
                    Problem(
                        f"{where}[{i}].{key if where != COPY else key.removeprefix('frozen.')}",
                        f"{pattern!r} matches no parameter",
                        "a parameter's name inside its network, * for any characters",
                        f"did you mean {closest[0]!r}?" if closest else "remove it: the network has no parameters",
                    )
                )
    if problems:
        raise ConfigError(problems)
    return entries


def _patterns(entry: ParameterClassification) -> Iterator[tuple[str, str]]:
    """(key, pattern)."""
    frozen = entry.frozen
    for key, patterns in (
        ("exclude", entry.exclude),
        ("frozen.include", frozen.include),
        ("frozen.exclude", frozen.exclude or []),
    ):
        for pattern in patterns:
            yield key, pattern


def _frozen(config: FrozenParameterConfig, names: Collection[str]) -> set[str]:
    if config.exclude is not None:
        return set(names) - _matching(config.exclude, names)
    return _matching(config.include, names)


def _matching(patterns: Iterable[str], names: Collection[str]) -> set[str]:
    """Those of ``names`` that a pattern matches."""
    found: set[str] = set()
    for pattern in patterns:
        # A network may have a part of its own that is called module: the pattern as written goes first.
        as_written = {n for n in names if _expression(pattern).fullmatch(n)}
        found |= as_written or {n for n in names if _expression(pattern.removeprefix(_PREFIX)).fullmatch(n)}
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")))


# --- what the base gives


def _states(
    path: str, modules: Sequence[nn.Module], base: Sequence[Mapping[str, Tensor]], excluded: Sequence[Collection[str]]
) -> list[dict[str, Tensor]]:
    """Per module the base's parameters by our names, without buffers. Raises :class:`DataError` for what does not fit."""
    problems = [
        Problem(f"{path} networks[{i}]", "one network too many", f"at most {len(modules)}, as in stepper.step")
        for i in range(len(modules), len(base))
    ]
    states: list[dict[str, Tensor]] = [{} for _ in modules]
    for i, (module, weights) in enumerate(zip(modules, base)):
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = {n for n, _ in module.named_buffers(remove_duplicate=False)} | {_DEVICE_BUFFER}
        for key, value in weights.items():
            name = key if key in parameters or key in buffers else key.removeprefix(_PREFIX)
            if name in buffers:
                continue
            problem = None
            where = f"{path} networks[{i}].{name}"
            if name not in parameters:
                closest = difflib.get_close_matches(name, parameters, n=1)
                problem = Problem(
                    where,
                    "the network has no such parameter" + (f", but {closest[0]!r}" if closest else ""),
                    "weights of a network that is contained in the one configured",
                    "configure stepper.step as in the checkpoint, or larger",
                )
            elif name in states[i]:
                problem = Problem(where, f"stored twice, with and without {_PREFIX!r}", "once")
            elif name not in excluded[i]:
                problem = _misfit(where, value, parameters[name], f"exclude {name!r} in {WHERE}.parameters[{i}]")
            if problem is not None:
                problems.append(problem)
            states[i][name] = value
    if problems:
        raise DataError(problems)
    return states


def _misfit(where: str, value: Tensor, parameter: nn.Parameter, fix: str) -> Problem | None:
    theirs, ours = list(value.shape), list(parameter.shape)
    if len(theirs) != len(ours) or any(n > m for n, m in zip(theirs, ours)):
        return Problem(where, f"has shape {theirs}", f"the rank of the network's {ours} and no larger size", fix)
    if value.is_complex() and not parameter.is_complex():
        return Problem(where, f"is {value.dtype}", f"real numbers, as the network's {parameter.dtype}", fix)
    return None


def _leading(parameter: Tensor, shape: torch.Size) -> Tensor:
    """The part of ``parameter`` that begins at index 0 of each axis and has ``shape``: a view."""
    return parameter if parameter.shape == shape else parameter[tuple(slice(n) for n in shape)]


def _regularizer(
    config: ParameterInitializationConfig,
    loaded: Sequence[tuple[nn.Parameter, Tensor]],
    excluded: Sequence[nn.Parameter],
) -> Regularizer | None:
    """Only terms that can differ from 0."""
    loaded = [(p, value) for p, value in loaded if p.requires_grad] if config.alpha else []
    excluded = list(excluded) if config.beta else []
    if config.alpha and not loaded:
        log.warning("%s: alpha has no effect: no loaded parameter is trained", WHERE)
    if config.beta and not excluded:
        log.warning("%s: beta has no effect: no parameter of %s is excluded", WHERE, config.weights_path)
    return Regularizer(config.alpha, config.beta, loaded, excluded) if loaded or excluded else None
