"""What Prefect's server does by itself for our runs: `python -m deployments.automations` puts it onto the server of PREFECT_API_URL.

- A flow run that has died with its host, worker and all, sends no heartbeat any more and is marked Crashed.
- A flow run that no worker takes says so, and why that may be; it stays runnable, and a worker that is started later takes it.

What our own events do (a regression, a stalled training, a disk that fills up), the deployment `alert` says in deployments/prefect.yaml.
"""

from __future__ import annotations

import sys
from typing import Any

from prefect.client.orchestration import get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import get_current_settings

BEATS = 4  # heartbeats that are missed before a run counts as dead
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


def apply(dead_after: float | None = None) -> list[str]:
    """Put them onto the server, those of the same name replaced; returns the names.

    dead_after: left out, as long as four of the heartbeats that the settings here say (PREFECT_FLOWS_HEARTBEAT_FREQUENCY); a worker
    elsewhere must not have longer ones.
    """
    beat = get_current_settings().flows.heartbeat_frequency or 180
    with get_client(sync_client=True) as client:
        known = {one.name: one for one in client.read_automations()}
        wanted = automations(BEATS * beat if dead_after is None else dead_after)
        for core in wanted:
            # Every field set: an update leaves out those that are not, the kinds of triggers and actions among them.
            whole = AutomationCore.model_validate(core.model_dump(mode="json", exclude={"owner_resource"}))
            if core.name in known:
                client.update_automation(known[core.name].id, whole)
            else:
                client.create_automation(whole)
    return [core.name for core in wanted]


def main() -> int:
    """Say what was put where."""
    from prefect.settings import PREFECT_API_URL

    for name in apply():
        print(f"{name}  ({PREFECT_API_URL.value()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
