"""Errors meant for a person: where, what was found, what was expected, how to fix it.

Everything a user can get wrong raises :class:`AceError`; the command line prints it without a traceback and
exits with code 2. Broken invariants of our own are ``assert``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    where: file, line and dotted key, or path of a store. found / expected: short phrases. fix: an instruction.
    """

    where: str
    found: str
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.found}"]
        if self.expected:
            lines.append(f"    expected: {self.expected}")
        if self.fix:
            lines.append(f"    fix: {self.fix}")
        return "\n".join(lines)


class AceError(Exception):
    """One or more :class:`Problem`, all of which the user can mend."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems, "an AceError needs at least one problem"
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[AceError], tuple[tuple[Problem, ...]]]:
        # Exceptions cross process boundaries (Dask workers); the default protocol would pass the message instead.
        return type(self), (self.problems,)


class ConfigError(AceError):
    """A configuration that cannot be used. Lists every problem of the file at once."""


class Busy(ConfigError):
    """What is asked for is being done by another process right now."""


class DataError(AceError):
    """Data that is missing, unfinished, of the wrong grid, out of order or not finite."""


AnyAceError = TypeVar("AnyAceError", bound=AceError)


def fail(kind: type[AnyAceError], where: str, found: str, expected: str = "", fix: str = "") -> AnyAceError:
    """A single-problem error, to be raised by the caller: ``raise fail(DataError, path, "no such file")``."""
    return kind([Problem(where, found, expected, fix)])
