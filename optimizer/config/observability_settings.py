"""
`[observability]`: logs and metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import option


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What the daemon says of itself.
    """

    log_level: str = option(
        "info", "Lowest level that is logged.", reload="fixed", choices=("trace", "debug", "info", "warn", "error")
    )
    json_logging: bool = option(False, "One JSON object a line instead of text.", reload="fixed")
    metrics_port: int = option(
        9090, "TCP port of the Prometheus endpoint; 0 takes any free one.", reload="restart", minimum=0, maximum=65535
    )
    otel_endpoint: str = option(
        "",
        "OTLP endpoint for the daemon's own traces.",
        reload="fixed",
        unused="tracing the daemon itself comes in a later version",
    )
