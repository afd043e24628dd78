"""Everything that is wrong with a run, told at once."""

from __future__ import annotations

from types import TracebackType

from ace_core.errors import AceError, ConfigError, Problem


class Problems:
    """``with problems.part(): ...`` for every check that can be made whatever the others find, then :meth:`check`."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.kinds: set[type[AceError]] = set()

    def part(self) -> _Part:
        """An :class:`AceError` ends the part, and is kept."""
        return _Part(self)

    def check(self) -> None:
        """Raises the kind of error that all were of, or :class:`ConfigError`, with all that was found."""
        if self.found:
            raise (self.kinds.pop() if len(self.kinds) == 1 else ConfigError)(self.found)


class _Part:
    def __init__(self, problems: Problems) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, AceError):
            return False
        found = self._problems.found
        self._problems.kinds.add(type(error))
        found += [p for p in error.problems if p not in found]
        return True
