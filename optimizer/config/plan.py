"""
What it takes to go from one configuration to another, field by field. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from optimizer.catalog import SECTIONS, SERVICES
from optimizer.config.fields import Option, Reload, Secret
from optimizer.config.tree import Config

_OWN: Final = ("service", "service_manager", "observability")
_TASKS: Final = "tasks"


@dataclass(frozen=True, slots=True)
class Change:
    """
    One field that differs. Secrets are shown as stars.

    Args:
        how: live; restart: of `services`; fixed: it takes a restart of the daemon, and is left as it is until then.
    """

    key: str
    before: str
    after: str
    how: Reload
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Changes, and the configuration that holds after they were applied: the new one, with the fixed fields of the old.
    """

    changes: tuple[Change, ...]
    result: Config

    @property
    def restarts(self) -> frozenset[str]:
        """
        Services that restart; those that are switched on or off among them.
        """
        return frozenset(name for change in self.changes for name in change.services)

    def document(self) -> list[dict[str, Any]]:
        """
        For people and programs.
        """
        return [dataclasses.asdict(change) for change in self.changes]


def plan(old: Config, new: Config) -> Plan:
    """
    What differs, and what that takes.
    """
    changes: list[Change] = []
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        found, sections[name] = _section(name, old.section(name), new.section(name))
        changes += found
    if old.tasks != new.tasks:
        users = tuple(service.name for service in SERVICES if service.section == "rest_api")
        changes.append(Change(_TASKS, f"{len(old.tasks)} declared", f"{len(new.tasks)} declared", "restart", users))
    workers = {name: value for name, value in sections.items() if name not in _OWN}
    result = dataclasses.replace(
        new,
        service=sections["service"],
        service_manager=sections["service_manager"],
        observability=sections["observability"],
        workers=workers,
        data_dir=old.data_dir,
        runtime_dir=old.runtime_dir,
    )
    return Plan(tuple(changes), result)


def _section(name: str, old: Any, new: Any) -> tuple[list[Change], Any]:
    changes: list[Change] = []
    kept: dict[str, Any] = {}
    for key, option, before, after, root in _differences(name, old, new):
        services = _services(name, option) if option.reload == "restart" else ()
        changes.append(Change(key, _shown(before), _shown(after), option.reload, services))
        if option.reload == "fixed":
            kept[root] = getattr(old, root)
    return changes, dataclasses.replace(new, **kept) if kept else new


def _differences(path: str, old: Any, new: Any, root: str = "") -> Iterator[tuple[str, Option, Any, Any, str]]:
    for field in fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        key, top = f"{path}.{field.name}", root or field.name
        if is_dataclass(after) and is_dataclass(before):
            yield from _differences(key, before, after, top)
        elif _revealed(before) != _revealed(after):
            yield key, field.metadata["option"], before, after, top


def _services(section: str, option: Option) -> tuple[str, ...]:
    own = [service.name for service in SERVICES if service.section == section]
    return tuple(dict.fromkeys((*own, *option.also)))


def _revealed(value: Any) -> Any:
    return value.reveal() if isinstance(value, Secret) else value


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "unset" if value is None else '""'
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, tuple):
        return f"{len(value)} entries" if value and is_dataclass(value[0]) else ", ".join(map(str, value)) or "none"
    return str(value)
