"""
The gRPC interface: SelectionService, HealthService, grpc.health.v1 and reflection over the same operations as REST.

grpcio cannot adopt a listening socket, so the server binds the port that the parent reserves, by SO_REUSEPORT. Everything of
gRPC is made here, after the fork.
"""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from optimizer.bus.link import Bus
from optimizer.operations.house import House
from optimizer.pb.v1 import health_pb2 as own_health
from optimizer.pb.v1 import health_pb2_grpc as own_health_grpc
from optimizer.pb.v1 import selection_pb2 as selection
from optimizer.pb.v1 import selection_pb2_grpc as selection_grpc
from optimizer.service import Frame
from optimizer.telemetry.metrics import open_metrics
from workers.grpc_api.servicers import Health, Selections
from workers.grpc_api.settings import Settings

_MARGIN_S: Final = 0.5  # of the stop budget, left for closing the bus


async def serve(frame: Frame[Settings]) -> None:
    """
    Answer calls until stopped; those in flight are finished.
    """
    frame.assert_owner()
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    keep_content = bool(frame.config.section("collector").keep_content)
    async with (
        Bus(frame.bus_dir, frame.name) as bus,
        House.open(bus, frame.secret, clock=frame.clock, fleet=lambda: frame.fleet, keep_content=keep_content) as house,
    ):
        server = _server(frame.settings)
        names = [
            selection.DESCRIPTOR.services_by_name["SelectionService"].full_name,
            own_health.DESCRIPTOR.services_by_name["HealthService"].full_name,
        ]
        selection_grpc.add_SelectionServiceServicer_to_server(Selections(house, metrics), server)
        own_health_grpc.add_HealthServiceServicer_to_server(Health(frame), server)
        standard = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(standard, server)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        host, port = frame.listeners["grpc"].getsockname()[:2]
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        joined = asyncio.ensure_future(house.book.joined())
        stopping = asyncio.ensure_future(frame.stopping.wait())
        await asyncio.wait((joined, stopping), return_when=asyncio.FIRST_COMPLETED)
        if joined.done():
            await server.start()
            for name in ("", *names):
                await standard.set(name, health_pb2.HealthCheckResponse.SERVING)
            frame.ready()
            await stopping
            await standard.enter_graceful_shutdown()
            await server.stop(max(0.1, frame.stop_budget_s - _MARGIN_S))
        joined.cancel()
        stopping.cancel()


def _server(settings: Settings) -> grpc.aio.Server:
    return grpc.aio.server(
        maximum_concurrent_rpcs=settings.max_concurrency,
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_metadata_size", 16 * 1024),
        ],
    )
