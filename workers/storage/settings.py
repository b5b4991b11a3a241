"""
`[storage]`: where events and state are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import Secret, option
from optimizer.config.limits import Limited

_LATER = "this version keeps everything in LMDB"


@dataclass(frozen=True, slots=True)
class Settings(Limited):
    """
    The embedded store, and the servers that a later version adds to it.
    """

    lmdb_path: str = option("", "Folder of the LMDB environment; empty: data_dir/lmdb.", reload="restart")
    max_size_bytes: int = option(
        0, "Refuse events beyond this size of the store; 0: as far as the disk goes.", reload="restart", minimum=0
    )
    sled_path: str = option("", "Older name of lmdb_path.", alias_of="lmdb_path")
    postgres_url: Secret = option(Secret(""), "System of record.", unused=_LATER)
    redis_url: Secret = option(Secret(""), "State shared between replicas.", unused=_LATER)
    max_connections: int = option(10, "Connections to PostgreSQL.", unused=_LATER, minimum=1)
