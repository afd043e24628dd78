"""What every stage task has in common: its result, its states, when a retry makes sense."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from prefect.tasks import Task

from ace_core.errors import AceError

if TYPE_CHECKING:
    from ace_core.stages import StageResult

P = ParamSpec("P")
R = TypeVar("R")
REFUSED = "Refused"


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
    """The value of a stage that ran; a Completed state named Skipped for one that was complete already."""
    value = as_dict(result)
    if not result.skipped:
        return value
    message = f"already complete: {result.directory} (key {result.key[:10]})"
    return Completed(name="Skipped", message=message, data=value)


def user_errors(function: Callable[P, R]) -> Callable[P, R]:
    """End a task or flow in the state Refused with the whole message when the user has to mend something.

    A state instead of an exception: the message is what a person reads in the log and the UI, not the end of a traceback.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        except AceError as error:
            return Failed(name=REFUSED, message=str(error), data=error)

    return wrapper


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Crashes and lost connections, yes; what the user has to mend, no."""
    return state.name != REFUSED


def run(task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a task directly and give its value, also when it ended in a state of its own making. Raises what it raised."""
    return task(*args, **kwargs, return_state=True).result()


def best_checkpoint(trained: dict[str, Any]) -> Path:
    """The checkpoint of the lowest validation loss among a training's outputs."""
    [name] = [name for name in trained["outputs"] if Path(name).name == "best_ckpt.tar"]
    return Path(trained["directory"]) / name
