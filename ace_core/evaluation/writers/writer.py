"""All outputs of a rollout, written by a thread of their own while the next window is computed.

Legend: B sample, S steps of a window, C variable, Y latitude, X longitude.
"""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ace_core.diagnostics.base import Piece
from ace_core.errors import DataError, fail
from ace_core.evaluation.writers.config import DataWriterConfig
from ace_core.evaluation.writers.output import Output, OutputPlan
from ace_core.evaluation.writers.plans import Written, correction_plan, make_plans
from ace_core.telemetry import log

_AHEAD = 2  # windows that wait to be written: one in hand, one behind it, so that memory does not grow with a slow disk


class Writer:
    """Use as a context manager: entering it makes the files, leaving it waits for the thread, and without an error also has everything on the
    disk.

    Raises :class:`ConfigError` for what :func:`make_plans` refuses, and, from any other method, :class:`DataError` when the disk does not take
    what is written.
    """

    def __init__(
        self, config: DataWriterConfig, run: Written, directory: Path, state: Mapping[str, Any] | None = None
    ) -> None:
        """state: of :meth:`state`, to go on where it was taken."""
        self._config, self._run, self._directory = config, run, directory
        self._plans = make_plans(config, run, directory)
        self._outputs: list[Output] = []
        self._corrections_asked = config.save_step_diagnostics
        self._corrected: list[str] | None = None
        self._error: BaseException | None = None
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._work, name="ace-writer", daemon=True)
        self._state = state

    def append(self, piece: Piece) -> None:
        """Have a window written, soon. The initial condition (step 0) is of no file here."""
        self._check()
        if piece.first_step == 0:
            return
        if self._corrections_asked:
            self._add_corrections(tuple(piece.correction or ()), {})
        if self._outputs:
            self._put(lambda: self._write(piece))

    def flush(self) -> None:
        """Wait until everything appended is on the disk."""

        def flush() -> None:
            for output in self._outputs:
                output.flush()

        self._put(flush)
        self._queue.join()
        self._check()

    def state(self) -> dict[str, Any]:
        """Plain data and tensors from which writing goes on; only after :meth:`flush`."""
        return {"outputs": {o.plan.path: o.state() for o in self._outputs}, "corrected": self._corrected}

    # --- the thread

    def _work(self) -> None:
        while True:
            task = self._queue.get()
            try:
                if task is None:
                    return
                if self._error is None:  # after one, nothing that follows would be in its place
                    task()
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()

    def _write(self, piece: Piece) -> None:
        # Copied off the device here, where it keeps no step waiting; and once, however many outputs there are.
        kinds = {output.plan.kind for output in self._outputs}
        prediction = piece.prediction.cpu() if "predictions" in kinds else None
        target = piece.target.cpu() if "target" in kinds and piece.target is not None else None
        first = piece.first_step - 1
        for output in self._outputs:
            names = output.plan.names
            if output.plan.kind == "correction":
                assert piece.correction is not None
                values = torch.stack([piece.correction[n].cpu() for n in names], dim=2)
            else:
                source = prediction if output.plan.kind == "predictions" else target
                assert source is not None
                values = _select(source, piece.names, names)
            output.write(first, values.numpy())

    # --- the caller

    def _put(self, task: Callable[[], None]) -> None:
        self._check()
        self._queue.put(task)

    def _check(self) -> None:
        if self._error is not None:
            raise self._readable(self._error) from None

    def _readable(self, error: BaseException) -> BaseException:
        return unwritable(self._directory, error) if isinstance(error, OSError | RuntimeError) else error

    def _add(self, plan: OutputPlan, state: Mapping[str, Any] | None) -> None:
        try:
            self._outputs.append(Output(plan, self._directory, state))
        except (OSError, RuntimeError) as error:
            raise self._readable(error) from None

    def _add_corrections(self, names: tuple[str, ...], states: Mapping[str, Any]) -> None:
        self._corrections_asked, self._corrected = False, list(names)
        plan = correction_plan(self._config, self._run, names)
        if plan is None:
            log.warning("no correction_deltas.nc is written: no corrector changes any of the variables")
            return
        self._add(plan, states.get(plan.path))

    def __enter__(self) -> Writer:
        states: Mapping[str, Any] = {} if self._state is None else self._state["outputs"]
        changed = self._state["corrected"] if self._state is not None else None
        for plan in self._plans:
            self._add(plan, states.get(plan.path))
        if changed is not None:
            self._add_corrections(tuple(changed), states)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._queue.put(None)
            self._thread.join()
            for output in self._outputs:
                output.close()


def unwritable(directory: Path, error: OSError | RuntimeError) -> DataError:
    """What to tell of a disk that does not take a file."""
    reason = (error.strerror if isinstance(error, OSError) else None) or (str(error) or "no reason given").splitlines()[
        0
    ]
    free = shutil.disk_usage(directory).free if directory.exists() else 0
    return fail(
        DataError,
        str(directory),
        f"cannot be written ({reason}; {free / 1e9:.3g} GB are free)",
        "a writable folder with room for all outputs",
        "make room, then run the same command again: it goes on from its last restart point",
    )


def _select(fields: Tensor, have: tuple[str, ...], names: tuple[str, ...]) -> Tensor:
    """[B, S, len(names), Y, X] of [B, S, len(have), Y, X]."""
    if names == have:
        return fields
    return fields.index_select(2, torch.tensor([have.index(n) for n in names]))
