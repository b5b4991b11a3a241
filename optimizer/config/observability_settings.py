"""
`[observability]`: logs, metrics and traces of the daemon itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from optimizer.config.fields import option


def _appendable(value: str) -> str:
    """
    What is expected instead of a log file, or "" if there can be one. Whether this process may write there is not asked: it
    may be `optimizerctl` of another user.
    """
    if not value:
        return ""
    path = Path(value).absolute()
    try:
        if not path.exists():
            return "" if path.parent.is_dir() else f"a folder {path.parent} that exists"
        return "" if path.is_file() else "a path of a regular file"
    except PermissionError:
        return ""


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        right = bool(re.fullmatch(r"https?://[^\s?#]+", value) and parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    return "" if right or not value else "http:// or https://, a host and perhaps a port"


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What the daemon says of itself.
    """

    log_level: str = option(
        "info", "Lowest level that is logged.", reload="live", choices=("trace", "debug", "info", "warn", "error")
    )
    json_logging: bool = option(False, "One JSON object a line instead of text.", reload="live")
    log_file: str = option(
        "",
        "File that gets the log lines; empty: standard error. SIGUSR1 opens it anew after it was moved.",
        reload="live",
        check=_appendable,
    )
    metrics_port: int = option(
        9090, "TCP port of the Prometheus endpoint; 0 takes any free one.", reload="restart", minimum=0, maximum=65535
    )
    otel_endpoint: str = option(
        "",
        "Where traces of the daemon's own requests are sent by OTLP/HTTP, e.g. http://127.0.0.1:4318; empty: nowhere.",
        reload="fixed",
        check=_address,
    )
    otel_sample_rate: float = option(
        1.0,
        "Share of requests that are traced, 0..1; a request whose caller decided (traceparent) follows that.",
        reload="fixed",
        minimum=0,
        maximum=1,
    )

    @property
    def log_path(self) -> Path | None:
        """
        The log file as an absolute path, None for standard error.
        """
        return Path(self.log_file).absolute() if self.log_file else None
