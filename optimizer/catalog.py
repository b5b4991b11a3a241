"""
The table of services: names, needs, modules, listeners (contract: names and needs). The one place that names
the workers; a new service is a folder and a line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from optimizer.errors import Permanent


@dataclass(frozen=True, slots=True)
class Listener:
    """
    A public TCP port of a service. The parent binds it; the child inherits it.

    `inherit`: the child accepts on the parent's listening socket. `reserve`: the parent only holds the port
    (bound with SO_REUSEPORT, not listening) for a library that insists on binding for itself.
    """

    name: str
    section: str
    field: str
    kind: Literal["inherit", "reserve"] = "inherit"


@dataclass(frozen=True, slots=True)
class Service:
    """
    One worker process. `module` has `async def serve(frame)`; `section` is its table in the configuration.

    `overlaps`: two of its processes may serve beside each other, so a planned restart has no gap and there may be several
    instances. The others own something alone (a store, a checkpoint, an outbox).
    """

    name: str
    needs: tuple[str, ...] = ()
    listeners: tuple[Listener, ...] = ()
    section: str = ""
    overlaps: bool = False

    @property
    def module(self) -> str:
        return f"workers.{self.name}.service"


SERVICES: Final[tuple[Service, ...]] = (
    Service("storage", section="storage"),
    Service("collector", (), (Listener("otlp_http", "collector", "otlp_http_port"),), "collector", overlaps=True),
    Service("integrations", section="integrations"),
    Service("processor", ("collector", "storage"), section="processor"),
    Service("rest_api", ("processor", "storage"), (Listener("http", "rest_api", "port"),), "rest_api", overlaps=True),
    Service(
        "grpc_api",
        ("processor", "storage"),
        (Listener("grpc", "grpc_api", "port", "reserve"),),
        "grpc_api",
        overlaps=True,
    ),
    Service("metrics", (), (Listener("http", "observability", "metrics_port"),), "observability", overlaps=True),
)

# section of the configuration -> module with a dataclass `Settings`
SECTIONS: Final[Mapping[str, str]] = {
    "service": "optimizer.config.service_settings",
    "service_manager": "optimizer.config.service_manager_settings",
    "collector": "workers.collector.settings",
    "processor": "workers.processor.settings",
    "rest_api": "workers.rest_api.settings",
    "grpc_api": "workers.grpc_api.settings",
    "storage": "workers.storage.settings",
    "integrations": "workers.integrations.settings",
    "observability": "optimizer.config.observability_settings",
}


def start_levels(services: Iterable[Service]) -> list[list[str]]:
    """
    The order of starting: each inner list may start in parallel once all earlier ones are ready.

    A need outside of the given services (one that is disabled) does not hold anybody back.

    Raises:
        Permanent: the needs form a cycle; the message names it.

    Source: Kahn 1962, "Topological sorting of large networks".
    """
    table = {service.name: service for service in services}
    waiting = {name: {need for need in service.needs if need in table} for name, service in table.items()}
    levels: list[list[str]] = []
    while waiting:
        level = [name for name, needs in waiting.items() if not needs]
        if not level:
            raise Permanent(f"services need each other in a cycle: {' -> '.join(_cycle(waiting))}")
        levels.append(level)
        waiting = {name: needs.difference(level) for name, needs in waiting.items() if needs}
    return levels


def _cycle(waiting: Mapping[str, set[str]]) -> list[str]:
    path: list[str] = []
    name = min(waiting)
    while name not in path:
        path.append(name)
        name = min(waiting[name])
    return [*path[path.index(name) :], name]
