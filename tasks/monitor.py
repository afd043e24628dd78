"""What a person sees of a training while it runs: how far it is, its loss curve, and an alert when somebody should look.

Everything is read from the files of the training's folder, so it is the same for ranks of this machine and for a job elsewhere that
shares the disk. Looking and telling happen in a thread of their own: a server that is down, or a disk that hangs, costs the training
nothing, and neither a cancellation.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import ObjectNotFound

from ace_core.lineage import CONFIG, RUN, read_json
from ace_core.pipeline import Alerts
from ace_core.stages import EPOCH, PREDICTED
from ace_core.telemetry import METRICS, MetricsTail
from ace_core.training.course import Course, in_words
from ace_core.training.figures import loss_curve
from tasks.events import DISK_LOW, STALLED, alert_key, alert_record, raise_alert
from tasks.report import image, short

EVERY = 5.0  # seconds between two looks
CURVE_SECONDS = 300.0  # after which a curve is drawn anew though no epoch ended
CURVE_SHARE = 20  # times what drawing takes lie between two curves, at least
AGAIN = 900.0  # seconds after which an alert is raised again of which there is no record
PATIENCE = 15.0  # seconds that the end of a training waits for the server


class Monitor:
    """Watches the training whose results go to ``directory``; made just before it starts.

    folder: of the pipeline, where alerts are kept. starts_at_once: the training runs when somebody waits for it, so that it is silent from
    the first tick on, before which it may have waited for GPUs; otherwise, for a job that may wait in a queue, from its first sign of life.
    """

    def __init__(
        self,
        directory: Path,
        folder: Path,
        alerts: Alerts,
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        starts_at_once: bool = True,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.folder = folder
        self.alerts = alerts
        self.log = log
        self.every = every
        self.clock = clock
        self._tail = MetricsTail(directory / METRICS)
        self._course: Course | None = None
        self._marker = _changed(directory / RUN)
        self._starts_at_once = starts_at_once
        self._alive: float | None = None  # the last sign of life
        self._longest = 0.0  # seconds between two signs of life
        self._first: tuple[float, float] | None = None  # when the first new line came, and the share that was done then
        self._last = 0.0  # when the last one came
        self._looked = False
        self._raised: dict[str, float] = {}  # when
        self._warned = False
        self._progress: tuple[UUID, str] | None = None
        self._curve: UUID | None = None
        self._drawn_epoch, self._next_curve, self._due_curve = 0, 0.0, 0.0
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def tick(self) -> None:
        """Called often from the loop that waits for the training; returns at once."""
        now = self.clock()
        if self._starts_at_once and self._thread is None:
            self._alive = now
        if now >= self._next and not self._busy():
            self._next = now + self.every
            with contextlib.suppress(RuntimeError):  # this process may have no more threads
                self._start(self._look)

    def close(self) -> None:
        """A last look at a training that has ended well; waits a few seconds for the server, no longer."""
        if self._thread is not None:
            self._thread.join(PATIENCE)
        if not self._busy():
            with contextlib.suppress(RuntimeError):
                self._start(lambda: self._look(last=True)).join(PATIENCE)

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self, function: Callable[[], None]) -> threading.Thread:
        # The context says which run the artifacts belong to. A daemon, as nothing may wait for it at exit.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(function,), daemon=True)
        self._thread.start()
        return self._thread

    def _look(self, last: bool = False) -> None:
        try:
            now = self.clock()
            self._read(now)
            if not last:
                self._judge(now)
            if self._course is not None:
                self._show(self._course, now, last)
            self._warned = False
        except Exception as error:
            if not self._warned:
                self.log.warning("the UI cannot be told how far the training is, which goes on: %s", error)
            self._warned = True

    # --- what there is to see

    def _read(self, now: float) -> None:
        changed = _changed(self.directory / RUN)
        if changed != self._marker:
            self._marker, self._alive = changed, now
        records, again = self._tail.new()
        if again or self._course is None:
            self._course = self._begin()
        if self._course is None:
            if records:
                self._tail = MetricsTail(self.directory / METRICS)  # read again when the folder says whose they are
            return
        if self._course.batches_per_epoch is None:
            run = read_json(self.directory / RUN) or {}
            self._course.batches_per_epoch = run.get(PREDICTED, {}).get(EPOCH)
        for record in records:
            self._course.add(record)
        if records and self._looked:
            if self._first is None or self._course.done < self._first[1]:
                self._first = (now, self._course.done)
            else:
                self._longest = max(self._longest, now - self._last)
            self._last = self._alive = now
            self._raised.pop("silent", None)
        self._looked = True

    def _begin(self) -> Course | None:
        """A course without records; None before the training has said what it is."""
        config = read_json(self.directory / CONFIG)
        return None if config is None else Course(config["max_epochs"])

    def _left(self, course: Course) -> float | None:
        """Seconds, if it goes on as it did since the first line that came while we looked."""
        if self._first is None or course.done <= self._first[1]:
            return None
        at, done = self._first
        # From the last line: what was trained since is not in the log.
        left = (self._last - at) * (1.0 - course.done) / (course.done - done)
        return max(left - (self.clock() - self._last), 0.0)

    # --- alerts

    def _judge(self, now: float) -> None:
        alerts, course, name = self.alerts, self._course, short(self.directory)
        if alerts.silent_minutes is not None and self._alive is not None:
            silent = now - self._alive
            if silent > max(60 * alerts.silent_minutes, 2 * self._longest):
                after = f"batch {course.step}" if course is not None and course.step else "its start"
                text = (
                    f"{name} has logged nothing for {in_words(silent)}, since {after}. It may hang, or evaluate longer than it ever did; "
                    "the log of the run tells. Cancelling the run keeps its last checkpoint, and running again goes on from there."
                )
                self._raise("silent", STALLED, f"silent after {after}", f"{name} is silent", text)
        if course is not None:
            self._judge_loss(course, name)
        free = shutil.disk_usage(_existing(self.directory)).free
        if alerts.free_disk_gb is not None and free < 1e9 * alerts.free_disk_gb:
            text = (
                f"{free / 1e9:.3g} GB are free on the disk of {self.directory}, less than {alerts.free_disk_gb:g} GB (alerts.free_disk_gb). "
                "A full disk ends the training; what it has done is kept."
            )
            self._raise("disk", DISK_LOW, "disk", f"Little disk space left for {name}", text)
        elif alerts.free_disk_gb is not None:
            self._raised.pop("disk", None)

    def _judge_loss(self, course: Course, name: str) -> None:
        epochs = self.alerts.stalled_epochs
        if epochs is None:
            return
        if course.diverged:
            text = f"The validation loss of epoch {course.epoch} of {name} is not finite. Look at its loss curve; a lower optimization.lr may help."
            self._raise(
                f"diverged {course.epoch}", STALLED, f"diverged in epoch {course.epoch}", f"{name} diverged", text
            )
        best = course.best
        if best is not None and course.epochs_without_gain >= epochs:
            text = (
                f"The validation loss of {name} has not improved for {course.epochs_without_gain} epochs: the best, {best[1]:.4g}, is of epoch "
                f"{best[0]}, the last, {list(course.validation.values())[-1]:.4g}, of epoch {course.epoch}. Its best checkpoint is kept."
            )
            self._raise(
                f"stalled {best[0]}", STALLED, f"no gain since epoch {best[0]}", f"{name} does not improve", text
            )

    def _raise(self, once: str, kind: str, subject: str, title: str, text: str) -> None:
        """An alert, once as long as its reason lasts; and again, after a while, if there is no record that it was given.

        An event is lost when the server is away, and the run that answers it when the server or its worker is restarted just then.
        """
        subject = f"{self.directory.absolute()} {subject}"
        now, raised = self.clock(), self._raised.get(once)
        if raised is None:
            self.log.warning("%s", text)
        elif now < raised + AGAIN or alert_record(self.folder, alert_key(kind, subject)).is_file():
            return
        self._raised[once] = now
        raise_alert(kind, subject, title, text, self.folder)

    # --- artifacts

    def _show(self, course: Course, now: float, last: bool) -> None:
        run = read_json(self.directory / RUN)
        if run is None or (not course.step and not course.validation):
            return
        key = run["key"][:10]
        try:
            self._show_progress(course, key)
            if last or self._is_curve_due(course, now):
                self._show_curve(course, key)
        except ObjectNotFound:
            # Somebody has deleted them, or the server's database: they are made anew.
            self._progress = self._curve = None

    def _show_progress(self, course: Course, key: str) -> None:
        words = course.words(self._left(course))
        if self._progress is None:
            self._progress = (
                create_progress_artifact(100 * course.done, key=f"progress-{key}", description=words),
                words,
            )
        elif self._progress[1] != words:
            self._progress = (update_progress_artifact(self._progress[0], 100 * course.done, description=words), words)

    def _is_curve_due(self, course: Course, now: float) -> bool:
        return now >= self._next_curve and (course.epoch != self._drawn_epoch or now >= self._due_curve)

    def _show_curve(self, course: Course, key: str) -> None:
        started = self.clock()
        with tempfile.TemporaryDirectory() as scratch:
            loss_curve(self.directory / METRICS, Path(scratch) / "loss.png")
            text = f"{course.words(self._left(course))}\n\n{image(Path(scratch) / 'loss.png')}"
        if self._curve is None:
            made = create_markdown_artifact(
                text, key=f"loss-curve-{key}", description=f"Loss of {short(self.directory)}"
            )
            self._curve = made if isinstance(made, UUID) else None
        else:
            # In place: a version for each of a thousand epochs would fill the server's database.
            get_client(sync_client=True).update_artifact(self._curve, ArtifactUpdate(data=text))
        ended = self.clock()
        self._drawn_epoch, self._due_curve = course.epoch, ended + CURVE_SECONDS
        self._next_curve = ended + CURVE_SHARE * (ended - started)


def _changed(path: Path) -> int:
    """When a file was written, on the clock of its disk; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _existing(path: Path) -> Path:
    """``path``, or the innermost folder above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
