"""
`[service]`: the daemon as a whole.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from optimizer.config.fields import option

_HOST_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?", re.IGNORECASE)


def _address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if not _HOST_NAME.fullmatch(value) or re.fullmatch(r"[0-9.]+", value):  # the latter is no address, and no name
            return "an address of this machine, 0.0.0.0 or :: for all of them, or a host name"
    return ""


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Names, address and folders of the daemon.
    """

    name: str = option("llm-optimizer", "Name of this daemon in logs and events.", reload="fixed")
    environment: str = option(
        "development",
        "Where it runs: production, staging, development ...; part of every system event.",
        reload="fixed",
    )
    host: str = option(
        "127.0.0.1",
        "Address all listeners bind to; 0.0.0.0 opens them to the network.",
        reload="fixed",
        check=_address,
    )
    data_dir: str = option(
        "./data",
        "Folder of everything that must survive a restart.",
        reload="fixed",
        check=lambda value: "" if value else "a folder; ./data is the default",
    )
    runtime_dir: str = option(
        "",
        "Folder of sockets and metric files; empty: $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/llm-optimizer, else data_dir/run.",
        reload="fixed",
    )
