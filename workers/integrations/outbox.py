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
from optimizer.errors import Invalid, Problem
from optimizer.messages import Message
from optimizer.resilience import backoff
from optimizer.service import Frame
from optimizer.telemetry import tracing
from optimizer.telemetry.logs import log
from optimizer.telemetry.metrics import open_metrics
from workers.integrations.delivery import Delivery, House
from workers.integrations.sender import Send, Sender
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
    metrics = open_metrics(frame.metrics_dir, frame.slot)
    async with (
        tracing.running(frame.config, frame.slot, metrics),
        Bus(frame.bus_dir, frame.name) as bus,
        AsyncExitStack() as stack,
    ):
        house = House(
            storage=RemoteStorage(bus.client("storage")),
            clock=frame.clock,
            health=frame.health,
            metrics=metrics,
            pause_s=lambda n: backoff(n, _FIRST_PAUSE_S, _LONGEST_PAUSE_S, _JITTER, rng),
        )
        senders = [await stack.enter_async_context(Sender(frame.clock, one.allow_private)) for one in webhooks]
        deliveries = _deliveries(webhooks, senders, house)

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


def _deliveries(webhooks: Sequence[Webhook], senders: Sequence[Send], house: House) -> list[Delivery]:
    """
    A delivery for each receiver that is declared right; a wrong one does not keep the others from theirs.
    """
    deliveries: dict[str, Delivery] = {}
    for webhook, send in zip(webhooks, senders, strict=True):
        try:
            if not webhook.name or webhook.name in deliveries:
                raise Invalid([Problem("name", f'is "{webhook.name}"', "a name of its own")])
            deliveries[webhook.name] = Delivery(webhook, house, send)
        except Invalid as error:
            sentence = f'[[integrations.webhooks]] "{webhook.name}" gets nothing, its {error}'
            house.health.degrade(f"webhook/{webhook.name}", sentence)
            log.error("webhook.refused", webhook=webhook.name, reason=str(error))
    return list(deliveries.values())
