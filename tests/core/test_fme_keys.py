"""Every key of fme 2026.10.0's YAML is accepted, or refused with its name and what to do instead.

The keys: tests/golden/fme_keys.json (benchmarks/peer/fme_keys.py). Each is put, with fme's default where there is one, into a document that
holds nothing but the sections around it, and that is parsed as its kind: pydantic tells of every key, whatever else is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_core.config import Key, Source, dotted, parse
from ace_core.errors import ConfigError, Problem
from ace_core.stages import KINDS

CONTENT = json.loads((Path(__file__).parents[1] / "golden" / "fme_keys.json").read_text())
LAYOUTS: dict[str, dict[str, Any]] = CONTENT["layouts"]
UNKNOWN, FMES = "unknown key", "a key of fme that is not here"
# What a layout must hold besides the key in question, for its place to be told at all which layout it is.
BESIDE: dict[str, dict[str, Any]] = {
    "ace.inference.inference.InitialConditionConfig": {"path": "initial.nc"},
    "ace.data_loading.inference.TimestampList": {"times": ["2001-01-01T00:00:00"]},
    "core.dataset.concat.ConcatDatasetConfig": {"concat": [{"data_path": "a"}]},
    "core.registry.module.ModuleSelector": {"type": "MLP"},
    "core.registry.corrector.CorrectorSelector": {"type": "ocean_corrector"},
    "core.step.global_mean_removal.PerChannelGlobalMeanRemovalConfig": {"kind": "per_channel"},
    "core.step.global_mean_removal.SharedGlobalMeanRemovalConfig": {"kind": "shared"},
}
# What is said of keys once all of them are known.
OF_VALUES = ("give both global_means_path", "give precorrector_optimization or")
PAGE = Path(__file__).parents[2] / "docs" / "from-fme.md"
BEGIN = "<!-- What follows is written by tests/core/test_fme_keys.py. -->\n"


@dataclass(frozen=True)
class Answer:
    """To one key of a layout. problem: None for a key that is accepted; idle: it is refused, but not with its default, or as an empty
    section."""

    layout: str
    key: Key
    problem: Problem | None
    idle: bool = False


def answers(kind: str, layout: str, at: Key = (), seen: tuple[str, ...] = ()) -> Iterator[Answer]:
    """Of a layout and, below every key that is accepted, of all layouts its value may have."""
    seen = (*seen, layout)
    for name, entry in LAYOUTS[layout].items():
        key = (*at, name)
        for tag, inner in entry.get("of", {}).items():
            of_tag = (*at, f"type={tag}", name)
            problem = problem_of(kind, of_tag, {})
            yield Answer(layout, of_tag, problem)
            if problem is None and inner not in seen:
                yield from answers(kind, inner, (*of_tag, f"layout={inner}"), seen)
        if "of" in entry or name == "type":
            continue
        inner = [x for x in entry.get("layouts", ()) if x not in seen]
        # A word is no value of a section, list or switch: what is said of it is said of the key.
        problem = problem_of(kind, key, "no such value")
        yield Answer(
            layout, key, problem, problem is not None and problem_of(kind, key, entry.get("default", {})) is None
        )
        for x in inner if problem is None else ():
            yield from answers(kind, x, (*key, *([0] if entry.get("list") else []), f"layout={x}"), seen)


def problem_of(kind: str, key: Key, value: Any) -> Problem | None:
    """Why the key, or what it is in, is refused; None if it is not, whatever is wrong with its value."""
    own = yaml_key(key)
    above = {dotted(own[:n]) for n in range(1, len(own))}
    tags = {f"{dotted(own[:n])}.type" for n in range(len(own))}
    try:
        parse(KINDS[kind][1](), Source("x.yaml", document(key, value)))
    except ConfigError as error:
        for problem in error.problems:
            where = problem.where.removeprefix("x.yaml").strip()
            if (where in {*above, dotted(own)} and problem.found in (UNKNOWN, FMES)) or where in tags:
                return problem
            # Refused by a sentence that names it; anything else above the key would keep it from being looked at.
            if where in above and problem.found != "missing" and not problem.found.startswith(OF_VALUES):
                assert str(own[-1]) in problem.found, f"{dotted(own)}: {problem}"
                return problem
    return None


def yaml_key(key: Key) -> Key:
    return tuple(k for k in key if not (isinstance(k, str) and "=" in k))


def document(key: Key, value: Any) -> Any:
    """Nothing but the sections around the key."""
    for part in reversed(key):
        if isinstance(part, int):
            value = [value]
        elif part.startswith("type="):
            value = {"type": part.removeprefix("type="), **value}
        elif part.startswith("layout="):
            value = BESIDE.get(part.removeprefix("layout="), {}) | value
        else:
            value = {part: value}
    return value


# --- tests


def every_answer() -> list[tuple[str, Answer]]:
    return [(kind, a) for kind, root in CONTENT["roots"].items() for a in answers(kind, root)]


def test_no_key_of_fme_is_unknown() -> None:
    wrong = [
        (dotted(yaml_key(a.key)), a.problem)
        for _, a in every_answer()
        if a.problem is not None
        and (a.problem.found == UNKNOWN or not a.problem.fix + a.problem.expected)
        and not a.problem.found.startswith(str(yaml_key(a.key)[-1]))
    ]
    assert not wrong


def test_what_fme_takes_when_nothing_is_said_can_be_said() -> None:
    """A default of fme is a value that we take too, of every key that we take."""
    wrong = []
    for kind, a in every_answer():
        entry = LAYOUTS[a.layout].get(str(a.key[-1]), {})
        if a.problem is not None or "default" not in entry or "of" in entry:
            continue
        own = dotted(yaml_key(a.key))
        try:
            parse(KINDS[kind][1](), Source("x.yaml", document(a.key, entry["default"])))
        except ConfigError as error:
            wrong += [str(p) for p in error.problems if p.where == f"x.yaml {own}"]
    # fme says null and then asks for a number; and its default of ``target`` is refused, by fme too, where normalised fields are meant.
    known = ("stepper_training.n_forward_steps: None", "_norm.target: 'denorm'")
    assert [w for w in wrong if not any(k in w for k in known)] == []


def test_the_page_is_what_the_code_does() -> None:
    """If not: python tests/core/test_fme_keys.py"""
    assert PAGE.read_text().partition(BEGIN)[2] == page()


def page() -> str:
    """Every section of fme once, whatever the places it is found in."""
    accepted: dict[str, dict[str, None]] = {}
    refused: dict[str, dict[str, str]] = {}
    places: dict[str, dict[str, None]] = {}
    for kind, a in every_answer():
        own = yaml_key(a.key)
        tag = next((str(part).removeprefix("type=") for part in a.key[-2:-1] if str(part).startswith("type=")), None)
        name = str(own[-1]) if tag is None else f"type: {tag}"
        where = ".".join(str(part) for part in own[:-1] if not isinstance(part, int))
        places.setdefault(a.layout, {})[f"{where} ({kind})" if where else f"({kind})"] = None
        if a.problem is None:
            accepted.setdefault(a.layout, {})[name] = None
        else:
            said = a.problem.fix or a.problem.found.partition(": ")[2]
            refused.setdefault(a.layout, {})[name] = said + (" (accepted with fme's default)" if a.idle else "")
    whole = ", ".join(f"`{layout.rpartition('.')[2]}`" for layout in places if layout not in refused)
    lines = [f"Every key is accepted of: {whole}.", ""]
    for layout, where in places.items():
        if layout not in refused:
            continue
        first, *more = where
        lines += [f"### `{layout.rpartition('.')[2]}`", "", f"{first}{f' and {len(more)} more' if more else ''}", ""]
        both = refused.get(layout, {})
        taken = [n for n in accepted.get(layout, {}) if n not in both]
        if taken:
            lines += ["Accepted: " + ", ".join(f"`{n}`" for n in taken) + ".", ""]
        if both:
            lines += ["| refused | instead |", "|---|---|", *(f"| `{n}` | {said} |" for n, said in both.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    before, _, _ = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + page())
