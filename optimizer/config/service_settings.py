"""
`[service]`: the daemon as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import option


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Names, address and folders of the daemon.
    """

    name: str = option("llm-optimizer", "Name of this daemon in logs and events.", reload="fixed")
    environment: str = option(
        "development", "Where it runs: production, staging, development …; part of every system event.", reload="fixed"
    )
    host: str = option("127.0.0.1", "Address all listeners bind to; 0.0.0.0 opens them to the network.", reload="fixed")
    data_dir: str = option("./data", "Folder of everything that must survive a restart.", reload="fixed")
    runtime_dir: str = option(
        "",
        "Folder of sockets and metric files; empty: $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/llm-optimizer, else data_dir/run.",
        reload="fixed",
    )
