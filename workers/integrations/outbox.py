"""
All deliveries of this process: one task a receiver, woken when the system log grows.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from optimizer.bus.link import Bus
from optimizer.bus.storage import RemoteStorage
from optimizer.messages import Message
from optimizer.resilience import backoff
from optimizer.service import Frame
from optimizer.telemetry.metrics import open_metrics
from workers.integrations.delivery import Delivery, House
from workers.integrations.sender import Sender
from workers.integrations.settings import Settings, Webhook

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_JITTER: Final = 0.2


async def deliver(frame: Frame[Settings], webhooks: Sequence[Webhook]) -> None:
    """
    Deliver to all receivers until stopped; an attempt in hand is finished if the stop's budget allows.
    """
    frame.assert_owner()
    rng = random.Random()
    async with Bus(frame.bus_dir, frame.name) as bus, AsyncExitStack() as stack:
        house = House(
            storage=RemoteStorage(bus.client("storage")),
            clock=frame.clock,
            health=frame.health,
            metrics=open_metrics(frame.metrics_dir, frame.slot),
            pause_s=lambda n: backoff(n, _FIRST_PAUSE_S, _LONGEST_PAUSE_S, _JITTER, rng),
        )
        deliveries = [
            Delivery(webhook, house, await stack.enter_async_context(Sender(frame.clock, webhook.allow_private)))
            for webhook in webhooks
        ]

        def wake() -> None:
            for delivery in deliveries:
                delivery.wake()

        def on_grown(_topic: str, _message: Message) -> None:
            wake()

        bus.subscribe("storage", ["log/system"], on_grown, wake)
        async with asyncio.TaskGroup() as group:
            running = {group.create_task(delivery.run()) for delivery in deliveries}
            frame.ready()
            await frame.stopping.wait()
            for delivery in deliveries:
                delivery.stop()
            _, late = await asyncio.wait(running, timeout=frame.stop_budget_s * 0.8)
            for task in late:
                task.cancel()
