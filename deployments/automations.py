"""What Prefect's server does by itself for our runs: `python -m deployments.automations` puts it onto the server of PREFECT_API_URL.

- A flow run that has died with its host, worker and all, sends no heartbeat any more and is marked Crashed.
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
_DEAD = (
    "no sign of life for {seconds} s: the process and its worker have ended, or their host has. "
    "Run the same again: stages that are complete are skipped, and a training goes on from its last checkpoint. "
    "If the host is up and the run goes on after all, its own last state will replace this one."
)
_WAITS = (
    "no worker has taken this run yet. Either none of its work pool is running: start one with "
    "`prefect worker start --pool local` (or the pool's name), or all of it with `python -m deployments.up --keep`. "
    "Or its queue is at its limit: then it starts when the runs before it have ended."
)


def automations(dead_after: float) -> list[AutomationCore]:
    """dead_after: seconds without a heartbeat."""
    every_run = {"prefect.resource.id": "prefect.flow-run.*"}
    zombies: dict[str, Any] = {
        "name": ZOMBIES,
        "description": "A flow run without heartbeats is marked Crashed.",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": every_run,
            "for_each": ["prefect.resource.id"],
            "after": ["prefect.flow-run.heartbeat"],
            # Any state counts as life: states have names of our own, such as Refused.
            "expect": ["prefect.flow-run.*"],
            "threshold": 1,
            "within": dead_after,
        },
        "actions": [
            {"type": "change-flow-run-state", "state": "CRASHED", "message": _DEAD.format(seconds=round(dead_after))}
        ],
    }
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
    return [AutomationCore.model_validate(one) for one in (zombies, waiting)]


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
