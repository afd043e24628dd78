"""Make `prefect deployment run train-ace` work as typed: a deployment name without a slash names flow and deployment alike.

Prefect wants ``<flow>/<deployment>``; all our deployments are called like their flow. Prefect loads this module through the
entry point ``prefect.plugins`` where plugins are enabled (``[tool.prefect.plugins]`` of pyproject.toml, so in the repository
root; elsewhere with PREFECT_PLUGINS_ENABLED=1). This is our convenience, not Prefect's: it wraps two client methods, and should
a new Prefect move them, the bare name fails with Prefect's own message while ``train-ace/train-ace`` goes on working.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import httpx
from prefect.plugins import HookContext, register_hook
from prefect.settings import PREFECT_API_URL


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Called once when Prefect is imported."""
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient, DeploymentClient

    for client in (DeploymentAsyncClient, DeploymentClient):
        method = client.read_deployment_by_name
        if not hasattr(method, "__wrapped__"):
            client.read_deployment_by_name = _with_bare_names(method)


def _with_bare_names(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Any, name: str) -> Any:
        try:
            return method(self, full_name(name))
        except httpx.ConnectError:
            raise SystemExit(nobody_answers()) from None

    @functools.wraps(method)
    async def awaited(self: Any, name: str) -> Any:
        try:
            return await method(self, full_name(name))
        except httpx.ConnectError:
            raise SystemExit(nobody_answers()) from None

    return awaited if inspect.iscoroutinefunction(method) else wrapper


def nobody_answers() -> str:
    """What to do about a server that is down, instead of Prefect's traceback."""
    return (
        f"error: no Prefect server answers at {PREFECT_API_URL.value()}\n"
        "    fix: start one with python -m deployments.up --keep, or set PREFECT_API_URL to that of yours"
    )


def full_name(name: str) -> str:
    """``train-ace`` -> ``train-ace/train-ace``; a name with a slash stays as it is."""
    return name if "/" in name else f"{name}/{name}"
