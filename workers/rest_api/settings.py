"""
`[rest_api]`: the HTTP interface.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import Duration, option
from optimizer.config.limits import Limited


@dataclass(frozen=True, slots=True)
class Settings(Limited):
    """
    Port and bounds of REST.
    """

    enabled: bool = option(True, "Run the REST API.", reload="restart")
    instances: int = option(
        1, "Processes that share the port; a reload adds or ends some.", reload="live", minimum=1, maximum=64
    )
    port: int = option(8080, "TCP port; 0 takes any free one.", minimum=0, maximum=65535)
    timeout_secs: Duration = option(Duration(30), "Longest time of one request.", minimum=0.1)
    max_body_bytes: int = option(8 * 1024 * 1024, "Largest request body.", minimum=1024)
    max_concurrency: int = option(256, "Requests in hand at once; beyond it 503 with Retry-After.", minimum=1)
    enable_tls: bool = option(False, "Serve HTTPS.", unused="TLS comes in a later version; put a proxy in front")
    tls_cert: str = option("", "Certificate chain, PEM.", unused="TLS comes in a later version")
    tls_key: str = option("", "Private key, PEM.", unused="TLS comes in a later version")
