"""What Prefect's server does by itself for our runs: `python -m deployments.automations` puts it onto the server of PREFECT_API_URL.

- A flow run that has died with its host, worker and all, sends no heartbeat any more and is marked Crashed.
- A flow run that its worker has taken and that never ran, because the worker or its host has died just then, is marked Crashed, too.
- A flow run that no worker takes says so, and why that may be; it stays runnable, and a worker that is started later takes it.

What our own events do (a regression, a stalled training, a disk that fills up), the deployment `alert` says in deployments/prefect.yaml.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL

# Seconds: four of Prefect's own heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY, 180 s). Less would call the healthy runs of a worker dead
# that somebody has started without shorter ones.
DEAD_AFTER = 720.0
ZOMBIES, WAITING = "ace: runs that died without a word", "ace: runs that no worker takes"
UNBORN = "ace: runs that died before they ran"
_DEAD = (
    "no sign of life for {seconds} s: the process and its worker have ended, or their host has. "
    "Run the same again: stages that are complete are skipped, and a training goes on from its last checkpoint. "
    "If the host is up and the run goes on after all, its own last state will replace this one."
)
_NEVER_RAN = "taken by a worker {seconds} s ago, and it does not run: the worker has ended just then, or its host has. Run the same again: nothing was done."
_WAITS = (
    "no worker has taken this run yet. Either none of its work pool is running: start one with "
    "`prefect worker start --pool local` (or the pool's name), or all of it with `python -m deployments.up --keep`. "
    "Or its queue is at its limit: then it starts when the runs before it have ended."
)


def automations(dead_after: float) -> list[AutomationCore]:
    """dead_after: seconds without a heartbeat, or between a worker's taking a run and its first line."""
    every_run = {"prefect.resource.id": "prefect.flow-run.*"}

    def silence(name: str, description: str, after: list[str], message: str, **more: Any) -> dict[str, Any]:
        """Marks Crashed what is not heard of for dead_after seconds after one of these events."""
        return {
            "name": name,
            "description": description,
            "trigger": {
                "type": "event",
                "posture": "Proactive",
                "match": every_run,
                "for_each": ["prefect.resource.id"],
                "after": after,
                # Any state counts as life: states have names of our own, such as Refused.
                "expect": ["prefect.flow-run.*"],
                "threshold": 1,
                "within": dead_after,
                **more,
            },
            "actions": [
                {
                    "type": "change-flow-run-state",
                    "state": "CRASHED",
                    "message": message.format(seconds=round(dead_after)),
                }
            ],
        }

    zombies = silence(
        ZOMBIES,
        "A flow run without heartbeats is marked Crashed.",
        # Whatever runs sends heartbeats, the first when it begins to: it may have died between the two.
        ["prefect.flow-run.heartbeat", "prefect.flow-run.Running"],
        _DEAD,
    )
    unborn = silence(
        UNBORN,
        "A flow run that never runs after a worker took it is marked Crashed.",
        ["prefect.flow-run.Pending", "prefect.flow-run.Submitting"],
        _NEVER_RAN,
        # A pod may wait for a node for hours; a process starts at once.
        match_related={"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"},
    )
    waiting: dict[str, Any] = {
        "name": WAITING,
        "description": "A flow run that is late says that no worker has taken it.",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "match": every_run,
            "for_each": ["prefect.resource.id"],
            "expect": ["prefect.flow-run.Late"],
            "threshold": 1,
            "within": 0,
        },
        # Scheduled, so that workers take it; not by that name, as Prefect would call it late again, and so on.
        "actions": [{"type": "change-flow-run-state", "state": "SCHEDULED", "name": "Waiting", "message": _WAITS}],
    }
    return [AutomationCore.model_validate(one) for one in (zombies, unborn, waiting)]


def apply(dead_after: float = DEAD_AFTER) -> list[str]:
    """Put them onto the server, those of the same name replaced; returns the names."""
    with get_client(sync_client=True) as client:
        known = {one.name: one for one in client.read_automations()}
        wanted = automations(dead_after)
        for core in wanted:
            # Every field set: an update leaves out those that are not, the kinds of triggers and actions among them.
            whole = AutomationCore.model_validate(core.model_dump(mode="json", exclude={"owner_resource"}))
            if core.name in known:
                client.update_automation(known[core.name].id, whole)
            else:
                client.create_automation(whole)
    return [core.name for core in wanted]


def main() -> int:
    """Exit codes: 0 done, 1 the server does not answer."""
    parser = argparse.ArgumentParser(prog="python -m deployments.automations", description=__doc__)
    parser.add_argument(
        "--dead-after",
        type=float,
        default=DEAD_AFTER,
        metavar="SECONDS",
        help="without a heartbeat; at least three of the longest heartbeats of any worker (default: %(default)g)",
    )
    options = parser.parse_args()
    try:
        names = apply(options.dead_after)
    except (httpx.HTTPError, RuntimeError) as error:
        print(f"error: the server at {PREFECT_API_URL.value()} does not take them: {error}", file=sys.stderr)
        return 1
    for name in names:
        print(f"{name}  ({PREFECT_API_URL.value()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
