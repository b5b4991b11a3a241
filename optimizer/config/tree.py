"""
The validated configuration as one frozen value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.config.observability_settings import Settings as ObservabilitySettings
from optimizer.config.service_manager_settings import Settings as ServiceManagerSettings
from optimizer.config.service_settings import Settings as ServiceSettings


@dataclass(frozen=True)
class Config:
    """
    Sections by name. The daemon's own are attributes; a worker's is got with `section(name)`.

    Args:
        data_dir, runtime_dir: absolute, with the defaults resolved.
        tasks: declared `[[tasks]]`, as in REST's POST /api/v1/tasks.
        warnings: what is accepted but has no effect or an older name; one sentence each, naming the key.
        path: the file it was read from, or None.
    """

    service: ServiceSettings
    service_manager: ServiceManagerSettings
    observability: ObservabilitySettings
    workers: Mapping[str, Any]
    data_dir: Path
    runtime_dir: Path
    tasks: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    path: Path | None = None

    def section(self, name: str) -> Any:
        """
        The settings of one section, e.g. `rest_api`.
        """
        own = {"service": self.service, "service_manager": self.service_manager, "observability": self.observability}
        return own[name] if name in own else self.workers[name]

    def enabled(self, section: str) -> bool:
        """
        Whether the service of a section is to run; one without the switch always does.
        """
        return bool(getattr(self.section(section), "enabled", True))
