from __future__ import annotations

import pytest

from optimizer.catalog import SERVICES, Service, start_levels
from optimizer.errors import Permanent


def test_services_and_needs_are_those_of_the_contract() -> None:
    needs = {service.name: set(service.needs) for service in SERVICES}
    assert needs == {
        "storage": set(),
        "collector": set(),
        "integrations": set(),
        "processor": {"collector", "storage"},
        "rest_api": {"processor", "storage"},
        "grpc_api": {"processor", "storage"},
        "metrics": set(),
    }


def test_every_need_stands_on_an_earlier_level() -> None:
    levels = start_levels(SERVICES)
    rank = {name: i for i, level in enumerate(levels) for name in level}
    assert set(rank) == {service.name for service in SERVICES}
    for service in SERVICES:
        assert all(rank[need] < rank[service.name] for need in service.needs)


def test_a_disabled_need_holds_nobody_back() -> None:
    assert start_levels([Service("api", ("absent",))]) == [["api"]]


def test_a_cycle_is_named() -> None:
    services = [Service("a", ("c",)), Service("b", ("a",)), Service("c", ("b",)), Service("d", ("a",))]
    with pytest.raises(Permanent, match="a -> c -> b -> a"):
        start_levels(services)
