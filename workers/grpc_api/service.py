"""
The gRPC interface: SelectionService, HealthService, grpc.health.v1 and reflection over the same operations as REST.

grpcio cannot adopt a listening socket, so the server binds the port that the parent reserves, by SO_REUSEPORT. Everything of
gRPC is made here, after the fork.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from optimizer.bus.link import Bus
from optimizer.errors import Transient
from optimizer.operations.house import House
from optimizer.pb.v1 import health_pb2 as own_health
from optimizer.pb.v1 import selection_pb2 as selection
from optimizer.service import Frame
from optimizer.telemetry import tracing
from optimizer.telemetry.metrics import open_metrics
from workers.grpc_api.crowd import MOST_WATCHERS, Crowd
from workers.grpc_api.gate import Gate
from workers.grpc_api.servicers import Health, Selections
from workers.grpc_api.settings import Settings

_WATCH_S: Final = 1.0
_MARGIN_S: Final = 0.5  # of the stop budget, left for closing the bus
_KEEPALIVE_MS: Final = 60_000  # a peer that vanished without a word gives its streams back after this and a half
_HANDSHAKE_MS: Final = 5_000  # a peer that connects and says nothing gives its descriptor back

_SELECTION: Final = selection.DESCRIPTOR.services_by_name["SelectionService"]
_HEALTH: Final = own_health.DESCRIPTOR.services_by_name["HealthService"]


async def serve(frame: Frame[Settings]) -> None:
    """
    Answer calls until stopped; those in flight are finished.
    """
    frame.assert_owner()
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    keep_content = bool(frame.config.section("collector").keep_content)
    async with (
        tracing.running(frame.config, frame.slot, metrics),
        Bus(frame.bus_dir, frame.name) as bus,
        House.open(bus, frame.secret, clock=frame.clock, fleet=lambda: frame.fleet, keep_content=keep_content) as house,
    ):
        gate = Gate(frame.name, frame.settings, metrics)
        standard = health.aio.HealthServicer()  # type: ignore[attr-defined] # its stub hides it
        server = _server(frame)
        server.add_generic_rpc_handlers(
            (gate.handlers(_SELECTION, Selections(house, metrics).acts), gate.handlers(_HEALTH, Health(frame).acts))
        )
        health_pb2_grpc.add_HealthServicer_to_server(standard, server)
        names = (_SELECTION.full_name, _HEALTH.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        if not await frame.unless_stopped(house.book.joined()):
            return
        async with asyncio.TaskGroup() as group:
            await server.start()
            watching = group.create_task(_watch(frame, house, standard))
            frame.ready()
            await frame.stopping.wait()
            watching.cancel()
            await standard.enter_graceful_shutdown()
            await server.stop(max(0.1, frame.stop_budget_s - _MARGIN_S))


def _server(frame: Frame[Settings]) -> grpc.aio.Server:
    settings = frame.settings
    server = grpc.aio.server(
        # The gate and the crowd refuse with a delay for the retry; this is the bound behind them.
        maximum_concurrent_rpcs=4 * settings.max_concurrency + 2 * MOST_WATCHERS,
        interceptors=(Crowd(),),
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS // 2),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ],
    )
    host, port = frame.listeners["grpc"].getsockname()[:2]
    server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return server


async def _watch(frame: Frame[Settings], house: House, standard: Any) -> None:
    """
    Tell the standard health service how the daemon is, and the parent who cannot be reached.

    SelectionService serves as long as this process does: it answers from memory. The daemon as a whole (the empty name)
    does not while the daemon is unhealthy.
    """
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in (_SELECTION.full_name, _HEALTH.full_name):
        await standard.set(name, serving)
    while True:
        unhealthy = frame.fleet is not None and frame.fleet.status == "unhealthy"
        await standard.set("", health_pb2.HealthCheckResponse.NOT_SERVING if unhealthy else serving)
        view = frame.fleet.services.get("collector") if frame.fleet else None
        if view is not None and view.state not in ("Running", "Degraded"):
            frame.health.degrade("collector", f"feedback waits: the collector is {view.state}")
        else:
            frame.health.clear("collector")
        try:
            async with asyncio.timeout(_WATCH_S):
                await house.storage.inspect()
        except (Transient, TimeoutError):
            frame.health.degrade(
                "storage", "storage does not answer: selections are answered from memory, nothing else"
            )
        else:
            frame.health.clear("storage")
        await asyncio.sleep(_WATCH_S)
