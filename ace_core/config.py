"""Strict YAML -> frozen pydantic models.

Every error is reported at once, with file, line, dotted key, what was found, what is allowed and the nearest valid name.
A key either acts or is rejected. ``${name}`` in a string is replaced from ``variables`` (``--var name=value``), so that a
file can name an earlier stage's output.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ace_core.errors import ConfigError, Problem, fail

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
Key = tuple[str | int, ...]


class StrictModel(BaseModel):
    """Base of every configuration: frozen, unknown keys are errors.

    FME_KEYS: keys of fme's section that are not here, each with what to do instead, for the message. FME_IDLE: of these, values that
    ask for nothing, which are accepted. FME_TYPES: the same of types of a section's {type, config}.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {}
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {}
    FME_TYPES: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _without_idle(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not cls.FME_IDLE:
            return data
        return {k: v for k, v in data.items() if k not in cls.FME_IDLE or not cls.FME_IDLE[k](v)}


def off(value: Any) -> bool:
    """Whether a value of a key that switches things on switches on nothing: null, false, 0, or sections and lists of such."""
    if isinstance(value, dict):
        # What is not enabled may say in detail how it would be.
        return value.get("enabled") is False or all(off(v) for v in value.values())
    return all(off(v) for v in value) if isinstance(value, list) else value in (None, False, 0)


def only(*values: Any) -> Callable[[Any], bool]:
    """Whether a value is one of these."""
    return lambda value: any(value == v and type(value) is type(v) for v in values)


Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Source:
    """A parsed YAML file: plain data, the line of every key, and the variables still unresolved."""

    path: str
    data: dict[str, Any]
    lines: Mapping[Key, int] = field(default_factory=dict)
    unresolved: tuple[str, ...] = ()

    def where(self, key: Key) -> str:
        """``file.yaml:12 stepper.step.type``; the line is that of the nearest enclosing key that is in the file."""
        for n in range(len(key), -1, -1):
            if key[:n] in self.lines:
                return f"{self.path}:{self.lines[key[:n]]} {dotted(key)}".rstrip()
        return f"{self.path} {dotted(key)}".rstrip()


def dotted(key: Key) -> str:
    """('a', 0, 'b') -> ``a[0].b``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def read(path: str | Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> Source:
    """Read a YAML file, apply ``a.b=value`` overrides, substitute ``${name}``.

    Raises :class:`ConfigError` for a missing file, a syntax error, a duplicate key or an override that is not ``key=value``.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise fail(ConfigError, str(path), f"cannot be read ({reason})", "a YAML file", "check the path") from None
    lines: dict[Key, int] = {}
    problems: list[Problem] = []
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        data = {} if node is None else _construct(loader, node, (), lines, problems, str(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise fail(ConfigError, where, f"not YAML: {getattr(error, 'problem', error)}", "", "mend the syntax") from None
    except RecursionError:
        raise fail(ConfigError, str(path), _ENDLESS, "", "write the value out") from None
    if problems:
        raise ConfigError(problems)
    if not isinstance(data, dict):
        raise fail(ConfigError, str(path), f"holds a {type(data).__name__}", "a mapping of keys to values")
    for override in overrides:
        _override(data, override)
    unresolved: dict[str, None] = {}
    data = _substitute(data, variables or {}, unresolved)
    return Source(str(path), data, lines, tuple(unresolved))


def parse(model: type[Model], source: Source) -> Model:
    """Validate. Raises :class:`ConfigError` that lists all problems."""
    try:
        parsed = model.model_validate(source.data)
    except ValidationError as error:
        raise ConfigError(_problems(model, source, error)) from None
    # What a checkpoint says, which has no lines, nobody can mend.
    switched = [(key, on) for key, on in _switches(parsed, source.data) if source.lines]
    if switched:
        raise ConfigError(
            [Problem(source.where(key), str(on).lower(), "a number", "write it out") for key, on in switched]
        )
    return parsed


def load(
    model: type[Model], path: str | Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> Model:
    """:func:`read`, refuse unresolved variables, :func:`parse`."""
    source = read(path, overrides, variables)
    require_resolved(source)
    return parse(model, source)


def require_resolved(source: Source) -> None:
    """Raise :class:`ConfigError` if a ``${name}`` is left."""
    if source.unresolved:
        raise ConfigError(
            [
                Problem(source.path, f"${{{name}}} has no value", "", f"add --var {name}=VALUE")
                for name in source.unresolved
            ]
        )


def require_used(path: str | Path, overrides: Sequence[str], variables: Mapping[str, str]) -> None:
    """Raise :class:`ConfigError` for a variable that the file does not name: what was given with it would be another path than what is read."""
    named = read(path, overrides).unresolved
    expected = f"one of {', '.join(named)}" if named else "no --var; the file names none"
    idle = [name for name in variables if name not in named]
    if idle:
        raise ConfigError(
            [
                Problem(f"--var {name}", f"{path} has no ${{{name}}}", expected, nearest(name, named) or "leave it out")
                for name in idle
            ]
        )


def dump(model: BaseModel) -> dict[str, Any]:
    """Plain data with every default filled in, fit for YAML, JSON and hashing."""
    return model.model_dump(mode="json", by_alias=True)


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> value of all of plain data that is no section."""
    if isinstance(value, dict) and value:
        children = ((f"{key}.{k}" if key else k, v) for k, v in value.items())
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        children = ((f"{key}[{i}]", v) for i, v in enumerate(value))
    else:
        return {key: value}
    return {k: v for name, child in children for k, v in leaves(child, name).items()}


def nearest(name: str, allowed: Sequence[str]) -> str:
    """``did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


# --- reading

_ENDLESS = "an alias contains itself, or sections are too deep within each other"


def _construct(
    loader: yaml.SafeLoader, node: yaml.Node, key: Key, lines: dict[Key, int], problems: list[Problem], path: str
) -> Any:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(loader.construct_object(key_node, deep=True))
            line = key_node.start_mark.line + 1
            if name in result:
                problems.append(
                    Problem(
                        f"{path}:{line} {dotted((*key, name))}", "the key appears twice", "", "remove one of the two"
                    )
                )
            lines[(*key, name)] = line
            result[name] = _construct(loader, value_node, (*key, name), lines, problems, path)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*key, i), lines, problems, path) for i, item in enumerate(node.value)]
    # Dates stay text: they belong to the data's calendar, in which 30 February may be one.
    if node.tag == "tag:yaml.org,2002:timestamp":
        return str(node.value)
    try:
        value = loader.construct_object(node, deep=True)
    except ValueError as error:
        where = f"{path}:{node.start_mark.line + 1} {dotted(key)}"
        problems.append(Problem(where, f"{_show(node.value)} ({error})", "a value of its tag", "mend the value"))
        return None
    if isinstance(value, str) and "\0" in value:
        # No name or path has one, and where one is opened it is too late to say which key it was.
        where = f"{path}:{node.start_mark.line + 1} {dotted(key)}"
        problems.append(Problem(where, f"{_show(value)}, with a NUL", "text without one", "remove it"))
    # YAML 1.1 reads 1e-3 as text; people mean the number.
    if (
        isinstance(value, str)
        and getattr(node, "style", None) is None
        and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
    ):
        return float(value)
    return value if isinstance(value, str | int | float | bool | None) else str(node.value)


def _override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise fail(ConfigError, f"--override {override}", "not of the form key=value", "dotted.key=value")
    parts = name.split(".")
    here: Any = data
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                raise fail(ConfigError, f"--override {override}", f"{part!r} is not an index of a list of {len(here)}")
            index = int(part)
            if last:
                here[index] = _scalar(text, name)
            else:
                here = here[index]
        elif isinstance(here, dict):
            if last:
                here[part] = _scalar(text, name)
            else:
                here = here.setdefault(part, {})
        else:
            raise fail(ConfigError, f"--override {override}", f"{'.'.join(parts[:i])} is a value, not a section")


def _scalar(text: str, name: str) -> Any:
    """The value of an override of the key ``name``."""
    where, problems = f"--override {name}", list[Problem]()
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        value = None if node is None else _construct(loader, node, (), {}, problems, where)
    except yaml.YAMLError as error:
        found = f"{text!r} is not YAML ({getattr(error, 'problem', error)})"
        raise fail(ConfigError, where, found, "a value", "quote it as in the file") from None
    except RecursionError:
        raise fail(ConfigError, where, _ENDLESS, "", "write the value out") from None
    if problems:
        raise ConfigError(problems)
    return value


def _substitute(value: Any, variables: Mapping[str, str], unresolved: dict[str, None]) -> Any:
    if isinstance(value, dict):
        return {k: _substitute(v, variables, unresolved) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, variables, unresolved) for v in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        if match[1] in variables:
            return variables[match[1]]
        unresolved[match[1]] = None
        return match[0]

    return _VARIABLE.sub(one, value)


def _switches(value: Any, data: Any, key: Key = ()) -> Iterator[tuple[Key, bool]]:
    """Where true or false is written for a number, for which pydantic takes 1 or 0. value: what was made of ``data``."""
    if isinstance(data, bool):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, data
    elif isinstance(data, dict):
        if isinstance(value, BaseModel):
            made = {f.alias or n: getattr(value, n) for n, f in type(value).model_fields.items()}
        else:
            made = dict(value) if isinstance(value, Mapping) else {}
        for name, child in data.items():
            if name in made:
                yield from _switches(made[name], child, (*key, name))
    elif isinstance(data, list) and isinstance(value, list | tuple) and len(value) == len(data):
        for i, child in enumerate(data):
            yield from _switches(value[i], child, (*key, i))


# --- messages


def _problems(model: type[BaseModel], source: Source, error: ValidationError) -> list[Problem]:
    found = []
    seen = set()
    for item in error.errors(include_url=False):
        raw = tuple(item["loc"])
        of_name = raw[-1] == _OF_NAME if raw else False
        key, owner = _resolve(model, source.data, raw[:-1] if of_name else raw)
        problem = _problem(source, item, key, owner, key[-1] if of_name else _value_at(source.data, key))
        if problem not in seen:
            seen.add(problem)
            found.append(problem)
    return found


_OF_NAME = "[key]"  # pydantic's last word on where something is that is wrong with a key itself


def _problem(source: Source, item: Any, key: Key, owner: type[BaseModel] | None, value: Any) -> Problem:
    """value: what is wrong."""
    kind, context = item["type"], item.get("ctx", {})
    where = source.where(key)
    names = [f.alias or n for n, f in owner.model_fields.items()] if owner else []
    if kind == "extra_forbidden":
        if owner is not None and issubclass(owner, StrictModel) and key[-1] in owner.FME_KEYS:
            return Problem(where, "a key of fme that is not here", "", owner.FME_KEYS[str(key[-1])])
        guess = nearest(str(key[-1]), names)
        return Problem(where, "unknown key", f"one of {', '.join(names)}" if names else "", guess or "remove it")
    if kind == "missing":
        return Problem(where, "missing", "a value; the key is required", f"add {key[-1]!r}")
    if kind == "union_tag_invalid":
        allowed = [t.strip().strip("'") for t in str(context["expected_tags"]).split(",")]
        tag = str(context["tag"])
        instead = owner.FME_TYPES.get(tag) if owner is not None and issubclass(owner, StrictModel) else None
        return Problem(
            source.where((*key, str(context["discriminator"]).strip("'"))),
            f"{tag!r}",
            f"one of {', '.join(allowed)}",
            instead or nearest(tag, allowed),
        )
    if kind == "union_tag_not_found":
        return Problem(where, "has no type", f"a key {context['discriminator']}", "say which kind it is")
    if kind == "literal_error":
        allowed = [t.strip().strip("'") for t in re.split(r",| or ", str(context["expected"])) if t.strip()]
        return Problem(where, _show(value), f"one of {', '.join(allowed)}", nearest(str(value), allowed))
    if kind == "value_error":
        return Problem(where, str(context["error"]))
    message = str(item["msg"])
    return Problem(where, _show(value), message[0].lower() + message[1:])


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _value_at(data: Any, key: Key) -> Any:
    for part in key:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _resolve(model: type[BaseModel], data: Any, loc: Key) -> tuple[Key, type[BaseModel] | None]:
    """Drop from pydantic's location the parts that are tags of unions, and find the model that owns the last key.

    pydantic writes ``('stepper', 'step', 'single_module', 'config', 'lr')``; the file has no key ``single_module``.
    """
    key: list[str | int] = []
    candidates: list[type[BaseModel]] = [model]
    here: Any = data
    owner: type[BaseModel] | None = model
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(part, int) and isinstance(here, dict):
            continue  # a section by itself where a list of them may be
        owners = [c for c in candidates if isinstance(part, str) and _field(c, part) is not None]
        in_data = isinstance(here, dict | list) and _has(here, part)
        a_tag = any(part == c.__name__ or (not in_data and part in _tags(c)) for c in candidates)
        if isinstance(part, int) or owners or in_data or (last and isinstance(here, dict) and not a_tag):
            owner = owners[0] if owners else (candidates[0] if candidates else None)
            key.append(part)
            if owners:
                annotation = [_field(c, part) for c in owners if isinstance(part, str)]
                candidates = [m for a in annotation for m in _models(a)]
            elif not isinstance(part, int):
                candidates = []
            here = here[part] if in_data else None
        else:
            # The tag of a union: a discriminator's value or the name of the member model.
            tagged = [c for c in candidates if part == c.__name__ or part in _tags(c)]
            candidates = tagged or candidates
    return tuple(key), owner


def _has(here: Any, part: str | int) -> bool:
    if isinstance(here, dict):
        return part in here
    return isinstance(part, int) and part < len(here)


def _field(model: type[BaseModel], name: str) -> Any:
    for field_name, info in model.model_fields.items():
        if name in (field_name, info.alias):
            return info.annotation
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, Annotated):
        return [m for a in get_args(annotation) for m in _models(a)]
    return []


def _tags(model: type[BaseModel]) -> set[str]:
    tags: set[str] = set()
    for info in model.model_fields.values():
        if get_origin(info.annotation) is Literal:
            tags.update(str(a) for a in get_args(info.annotation))
    return tags
