"""Evaluates in processes that are killed where they are told to be.

    python -m tests.evaluation.killed PLAN.json

Everything is imported once; every attempt is a fork of that. Prints the exit code of every attempt, a signal's negative, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from ace_core import rollout
from ace_core.distributed import Ranks
from ace_core.errors import AceError
from ace_core.evaluation import evaluator
from ace_core.evaluation.config import EvaluatorConfig
from ace_core.evaluation.writers import netcdf, output
from ace_core.provenance import SealingFile
from ace_core.training.trainer import Stopped

# What a process does -> where it is found: a step, a field being written (others of the window are not), files being forced to the disk, a
# restart point being written.
PLACES: dict[str, tuple[Any, str]] = {
    "field": (netcdf.NetCDFFile, "write"),
    "output": (output.Output, "write"),
    "flush": (netcdf.NetCDFFile, "flush"),
    "point": (SealingFile, "write"),
    "findings": (evaluator, "write_findings"),
    "check": (rollout, "_require_finite"),
}


def attempt(config: EvaluatorConfig, directory: Path, blow: list[Any] | None) -> int:
    """blow: (signal, place, n): of what the process dies at the n-th time it is there."""
    pid = os.fork()
    if pid == 0:
        _evaluate(config, directory, blow)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _evaluate(config: EvaluatorConfig, directory: Path, blow: list[Any] | None) -> NoReturn:
    code = 1
    try:
        if blow is not None:
            _arm(*blow)
        evaluator.evaluate(config, directory, Ranks())
        code = 0
    except Stopped as error:
        print(error, file=sys.stderr)
        code = 143
    except AceError as error:
        print(error, file=sys.stderr)
        code = 2
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _arm(name: str, place: str, n: int) -> None:
    owner, method = PLACES[place]
    plain: Callable[..., Any] = getattr(owner, method)
    left = n

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, name))
        return plain(*args, **kwargs)

    setattr(owner, method, struck)


def main(path: Path) -> None:
    torch.set_num_threads(1)
    plan = json.loads(path.read_text())
    codes = []
    for directory, changes, blow in plan["attempts"]:
        Path(directory).mkdir(exist_ok=True)
        codes.append(attempt(EvaluatorConfig.model_validate(plan["config"] | changes), Path(directory), blow))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
