"""
`[grpc_api]`: the gRPC interface.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import Duration, option
from optimizer.config.limits import Limited


@dataclass(frozen=True, slots=True)
class Settings(Limited):
    """
    Port and bounds of gRPC.
    """

    enabled: bool = option(True, "Run the gRPC API.", reload="restart")
    instances: int = option(
        1, "Processes that share the port; a reload adds or ends some.", reload="live", minimum=1, maximum=64
    )
    port: int = option(50051, "TCP port; 0 takes any free one.", minimum=0, maximum=65535)
    timeout_secs: Duration = option(Duration(30), "Longest time of one unary call.", minimum=0.1)
    max_message_bytes: int = option(8 * 1024 * 1024, "Largest message.", minimum=1024)
    max_concurrency: int = option(256, "Calls in hand at once; beyond it UNAVAILABLE with RetryInfo.", minimum=1)
    enable_tls: bool = option(False, "Serve with TLS.", unused="TLS comes in a later version; put a proxy in front")
