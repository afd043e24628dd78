"""Every key of fme's training, inference and evaluator YAML -> tests/golden/fme_keys.json.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/fme_keys.py

roots: {kind: layout}; layouts: {layout: {key: entry}}, where a layout is a dataclass that fme reads a section into. An entry has the key's
"default", where that is plain data; the "layouts" its value may have; "list": true where it may be a list of them; and, where fme tells the
layout by a ``type`` beside the key, "of": {type: layout}.
"""

import collections.abc
import dataclasses
import json
import types
import typing
from pathlib import Path

from fme.ace.inference.evaluator import InferenceEvaluatorConfig
from fme.ace.inference.inference import InferenceConfig
from fme.ace.train.train_config import TrainConfig

KINDS = {"train": TrainConfig, "infer": InferenceConfig, "evaluate": InferenceEvaluatorConfig}


def layouts(annotation: typing.Any) -> tuple[list[type], bool]:
    """Dataclasses that a value may be, and whether it may be a list of them."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        found = [layouts(a) for a in typing.get_args(annotation)]
        return [c for classes, _ in found for c in classes], any(many for _, many in found)
    if origin is typing.Annotated:
        return layouts(typing.get_args(annotation)[0])
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return [], False
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        classes = [c for a in typing.get_args(annotation) if a is not Ellipsis for c in layouts(a)[0]]
        return classes, bool(classes)
    return ([annotation], False) if dataclasses.is_dataclass(annotation) else ([], False)


def plain(value: typing.Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


def registered(cls: type) -> dict[str, type]:
    """Name -> the dataclass of its ``config``, of a {type, config} that fme tells apart by name."""
    return dict(getattr(getattr(cls, "registry", None), "_types", {}))


def name_of(cls: type) -> str:
    return f"{cls.__module__.removeprefix('fme.')}.{cls.__qualname__}"


def describe(cls: type, found: dict[str, typing.Any]) -> str:
    """Add a layout and all that it refers to; its name."""
    name = name_of(cls)
    if name in found:
        return name
    keys = found[name] = {}
    hints, named = typing.get_type_hints(cls), registered(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        classes, many = layouts(hints[field.name])
        entry: dict[str, typing.Any] = {}
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if plain(default):
            entry["default"] = default
        if field.name == "config" and named:
            entry["of"] = {n: describe(c, found) for n, c in sorted(named.items()) if dataclasses.is_dataclass(c)}
        elif classes:
            entry["layouts"] = [describe(c, found) for c in dict.fromkeys(classes)]
            entry |= {"list": True} if many else {}
        keys[field.name] = entry
    return name


def main() -> None:
    found: dict[str, typing.Any] = {}
    roots = {kind: describe(cls, found) for kind, cls in KINDS.items()}
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "fme_keys.json"
    path.write_text(json.dumps({"roots": roots, "layouts": found}, indent=1, sort_keys=True) + "\n")
    print(path, path.stat().st_size)


main()
