"""
`[collector]`: how telemetry comes in.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.config.fields import option
from optimizer.config.limits import Limited

_KAFKA = "this version takes in OTLP/HTTP, REST and gRPC, not Kafka"


@dataclass(frozen=True, slots=True)
class Settings(Limited):
    """
    Ports and bounds of the door.
    """

    enabled: bool = option(True, "Run the collector.", reload="restart")
    otlp_http_port: int = option(4318, "TCP port of OTLP/HTTP; 0 takes any free one.", minimum=0, maximum=65535)
    otlp_grpc_port: int = option(
        4317, "TCP port of OTLP/gRPC.", minimum=0, maximum=65535, unused="OTLP/gRPC comes in a later version"
    )
    max_body_bytes: int = option(64 * 1024 * 1024, "Largest request, before and after decompression.", minimum=1024)
    buffer_size: int = option(20_000, "Events in hand that are not yet durable; beyond it senders get 503.", minimum=1)
    batch_size: int = option(500, "Events per message to storage.", minimum=1, maximum=10_000)
    keep_content: bool = option(
        False,
        "Keep prompt and completion text instead of dropping it at the door.",
        reload="restart",
        also=("rest_api", "grpc_api"),
    )
    kafka_brokers: tuple[str, ...] = option((), "Kafka bootstrap servers.", unused=_KAFKA)
    kafka_topic: str = option("llm-feedback", "Kafka topic of feedback events.", unused=_KAFKA)
    kafka_group: str = option("llm-optimizer", "Kafka consumer group.", unused=_KAFKA)
