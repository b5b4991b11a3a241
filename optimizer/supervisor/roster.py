"""
Which wards there are: by service, as many as the configuration wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optimizer.catalog import Service
from optimizer.supervisor.lifecycle import SERVING, State
from optimizer.supervisor.ward import Ward


class Roster:
    """
    Args:
        services: of the catalogue. `make`: (service, index) -> a new ward.

    `wards` has the slots of each service by its name, at least one.
    """

    def __init__(self, services: Sequence[Service], make: Callable[[Service, int], Ward]) -> None:
        self._services = {service.name: service for service in services}
        self._make = make
        self._surplus: list[Ward] = []
        self.wards: dict[str, list[Ward]] = {service.name: [] for service in services}

    def service(self, name: str) -> Service:
        """
        A row of the catalogue.
        """
        return self._services[name]

    def services(self) -> list[Service]:
        """
        All rows.
        """
        return list(self._services.values())

    def all(self) -> list[Ward]:
        """
        Wards of all services; those that a smaller number of instances made superfluous too, while they have processes.
        """
        self._surplus = [ward for ward in self._surplus if ward.processes()]
        return [*(ward for wards in self.wards.values() for ward in wards), *self._surplus]

    def resize(self, service: Service, wanted: int) -> tuple[list[Ward], list[Ward]]:
        """
        Have `wanted` wards of a service; returns the new ones, and those that are too many (the caller stops them).
        """
        wards = self.wards[service.name]
        fresh = [self._make(service, index) for index in range(len(wards), wanted)]
        wards += fresh
        surplus = wards[wanted:]
        del wards[wanted:]
        self._surplus += surplus
        return fresh, surplus

    def lost_needs(self, service: Service) -> list[str]:
        """
        What a service needs and does not serve now; what is disabled is not missed.
        """
        return [
            need
            for need in service.needs
            if not any(ward.state in (*SERVING, State.DISABLED) for ward in self.wards.get(need, []))
        ]
