"""What every stage task has in common: its result, its states, when a retry makes sense."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.flows import Flow
from prefect.states import Completed, Failed
from prefect.task_engine import TaskRunTimeoutError
from prefect.tasks import Task

from ace_core.errors import AceError, DataError, fail
from tasks.follow import TrainingFailed, WorkerGone, noticing_the_worker

if TYPE_CHECKING:
    from ace_core.stages import StageResult

P = ParamSpec("P")
R = TypeVar("R")
REFUSED, CACHED, TIMED_OUT = "Refused", "Cached", "TimedOut"
RETRY_SECONDS = 10
TIMEOUT_SECONDS = 24 * 3600.0  # of a stage whose pipeline says nothing else
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class TooLong(AceError):
    """A stage that its timeout ended."""


def as_dict(result: StageResult) -> dict[str, Any]:
    """A stage's result as JSON data: paths, hashes and numbers."""
    return {
        "stage": result.stage,
        "key": result.key,
        "directory": str(result.directory),
        "skipped": result.skipped,
        "outputs": dict(result.outputs),
        "summary": dict(result.summary),
    }


def stage_state(result: StageResult) -> Any:
    """The value of a stage that ran; a Completed state named Cached for one that was complete already."""
    value = as_dict(result)
    if not result.skipped:
        return value
    message = f"already complete: {result.directory} (key {result.key[:10]})"
    return Completed(name=CACHED, message=message, data=value)


def ace_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """A flow whose result is JSON, and which what the user has to mend ends in the state Refused."""

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        make = flow(name=name, persist_result=True, result_serializer="json")
        return cast("Flow[P, R]", make(user_errors(function)))

    return decorate


def stage_task(name: str, retries: int, run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that runs a stage: JSON result, tried again after a crash, Refused for what the user has to mend.

    Prefect's own cache is off: a stage is named by the hash of its configuration, code and data, and found complete only if every file
    it left has the hash it had then (:func:`ace_core.stages.read_complete`); the state is then called Cached.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        make = task(
            name=name,
            task_run_name=run_name,
            retries=retries,
            retry_delay_seconds=RETRY_SECONDS,
            retry_condition_fn=worth_retrying,
            timeout_seconds=TIMEOUT_SECONDS,
            cache_policy=NO_CACHE,
            persist_result=True,
            result_serializer="json",
        )
        return cast("Task[P, R]", make(user_errors(_announced(name, function))))

    return decorate


def _announced(stage: str, function: Callable[P, R]) -> Callable[P, R]:
    """Say in the run's log, at the beginning and the end, which stage runs on which host, with and from which checkpoint."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        log, host, began = get_run_logger(), socket.gethostname(), time.monotonic()
        given = signature.bind(*args, **kwargs).arguments
        named = [f"{key} {given[key]}" for key in ("name", "checkpoint", "data") if given.get(key)]
        log.info(
            "stage %s begins on host %s, process %d: %s", stage, host, os.getpid(), ", ".join(named) or given["config"]
        )
        result = function(*args, **kwargs)
        value = result.data if isinstance(result, State) else result
        left = f": results in {value['directory']}" if isinstance(value, dict) else ""
        if left and stage == "train":
            left += f", checkpoint {best_checkpoint(value)}"
        log.info("stage %s ended on host %s after %.1f s%s", stage, host, time.monotonic() - began, left)
        return result

    return wrapper


def user_errors(function: Callable[P, R]) -> Callable[P, R]:
    """End a task or flow in the state Refused with the whole message when the user has to mend something, a full disk among it; and with a
    message of its own where its worker is gone.

    A state instead of an exception: the message is what a person reads in the log and the UI, not the end of a traceback.
    """

    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            with noticing_the_worker("what is done is kept"):
                return function(*args, **kwargs)
        except AceError as error:
            return _refused(error)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            # An error of writing does not name its file, one of opening does.
            where = str(error.filename or signature.bind(*args, **kwargs).arguments.get("root", "results"))
            fix = "free some space and run again: what is done is kept"
            return _refused(fail(DataError, where, f"cannot be written ({error.strerror})", "a disk with room", fix))

    # Prefect would look the names of the annotations up in this module.
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return wrapper


def _refused(error: AceError) -> State[Any]:
    # Flow and task may end for the same reason; a page of it is wanted once.
    if TaskRunContext.get() is None:
        create_markdown_artifact(f"# What has to be mended\n\n```\n{error}\n```", description="why the run was refused")
    return Failed(name=TIMED_OUT if isinstance(error, TooLong) else REFUSED, message=str(error), data=error)


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Crashes and lost connections, yes; what the user has to mend, what took too long, and what no worker runs any more, no."""
    return state.name != REFUSED and not isinstance(state.data, TaskRunTimeoutError | WorkerGone)


class _SaidAlready(logging.Filter):
    """Takes the traceback from an error whose message says where, what and how to mend it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], AceError | TaskRunTimeoutError | TrainingFailed):
            record.exc_info = record.exc_text = None
            record.msg = f"{record.msg}: see the state's message"
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_SaidAlready())


def run(task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a task directly and give its value, also when it ended in a state of its own making. Raises what it raised, and
    :class:`TooLong` where the pipeline's ``timeouts`` ended it."""
    state = task(*args, **kwargs, return_state=True)
    # Prefect calls a lost connection of a shared disk TimedOut, too.
    if isinstance(state.data, TaskRunTimeoutError):
        found = f"was stopped after {(task.timeout_seconds or 0) / 60:g} minutes"
        fix = f"run again, with a larger timeouts.{task.name} in the pipeline file: what is done is kept"
        raise fail(TooLong, task.name, found, "an end before its timeout", fix)
    return state.result()


def best_generator(trained: dict[str, Any]) -> Path:
    """Of a downscaling training's outputs the checkpoint whose members were best (:data:`ace_core.training.checkpoint.BEST_INFERENCE`); where
    none was scored, that of the lowest validation loss."""
    from ace_core.training.checkpoint import BEST_INFERENCE

    found = [name for name in trained["outputs"] if Path(name).name == BEST_INFERENCE]
    return Path(trained["directory"]) / found[0] if found else best_checkpoint(trained)


def best_checkpoint(trained: dict[str, Any]) -> Path:
    """The checkpoint of the lowest validation loss among a training's outputs."""
    [name] = [name for name in trained["outputs"] if Path(name).name == "best_ckpt.tar"]
    return Path(trained["directory"]) / name
