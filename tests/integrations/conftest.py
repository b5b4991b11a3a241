"""
A real receiver of webhooks, and deliveries to it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from optimizer.bus.memory import MemoryStorage
from optimizer.clock import Clock, SystemClock
from optimizer.config.fields import Secret
from optimizer.model import SystemEvent, new_id
from optimizer.service import Health
from optimizer.telemetry.metrics import Metrics, open_metrics
from workers.integrations.delivery import Delivery, House
from workers.integrations.sender import Sender
from workers.integrations.settings import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Receiver:
    """
    Hears requests. `answers` are given in turn, then 204.
    """

    url: str = ""
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[web.Response | asyncio.Event] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.heard.append(({name.lower(): value for name, value in request.headers.items()}, await request.read()))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = None
        return answer or web.Response(status=204)

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.heard]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    app = web.Application()
    app.router.add_post("/hook", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    one.url = f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    yield one
    await runner.cleanup()


def event(kind: str = "service.failed", at: datetime | None = None) -> SystemEvent:
    """
    A system event.
    """
    return SystemEvent(
        id=new_id("evt_"),
        type=kind,
        time=at or datetime.now(UTC),
        host="h",
        environment="test",
        severity="warning",
        subject="processor",
        summary="It ended; Größe «1».",
        data={"service": "processor", "exit_code": None},
    )


async def happen(storage: MemoryStorage, *events: SystemEvent) -> list[str]:
    """
    Write events to the system log; their ids.
    """
    await storage.commit(system=[msgspec.msgpack.encode(one) for one in events])
    return [one.id for one in events]


async def until(condition: Callable[[], object], deadline_s: float = 5.0) -> None:
    """
    Return when the condition holds.
    """
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)


class Post:
    """
    Starts deliveries to one receiver, over the same storage.
    """

    def __init__(self, receiver: Receiver, metrics: Metrics) -> None:
        self.storage = MemoryStorage()
        self.health = Health()
        self.metrics = metrics
        self.clock: Clock = SystemClock()
        self.pauses: list[int] = []
        self.running: list[tuple[Delivery, asyncio.Task[None], Sender]] = []
        self._receiver = receiver

    def _pause_s(self, failures: int) -> float:
        self.pauses.append(failures)
        return 0.001

    async def start(self, **options: Any) -> Delivery:
        """
        A delivery that has stored its place.
        """
        known: dict[str, Any] = {
            "name": "w",
            "url": self._receiver.url,
            "secret": Secret(SECRET),
            "allow_private": True,
        } | options
        webhook = Webhook(**known)
        house = House(
            storage=self.storage,
            clock=self.clock,
            health=self.health,
            metrics=self.metrics,
            pause_s=self._pause_s,
            storage_pause_s=0.01,
        )
        sender = Sender(self.clock, webhook.allow_private)
        delivery = Delivery(webhook, house, sender)
        self.storage.subscribe("storage", ["log/system"], lambda *_: delivery.wake(), delivery.wake)
        self.running.append((delivery, asyncio.create_task(delivery.run()), sender))
        await until(lambda: f"consumer/webhook/{webhook.name}" in self.storage.states)
        return delivery

    async def kill(self) -> None:
        """
        End all deliveries at once, whatever they are doing.
        """
        for _, task, sender in self.running:
            task.cancel()
            await asyncio.wait([task])
            await sender.__aexit__(None, None, None)
        self.running.clear()

    async def stop(self) -> None:
        """
        End all deliveries in order.
        """
        for delivery, task, _ in self.running:
            delivery.stop()
            await asyncio.wait_for(task, 5)
        await self.kill()

    def count(self, outcome: str) -> float:
        """
        Figure of `integration_deliveries_total` of the receiver `w`.
        """
        counter = self.metrics.integration_deliveries_total.labels(integration="webhook/w", outcome=outcome)
        return float(counter._value.get())


@pytest.fixture
async def post(receiver: Receiver, tmp_path: Path) -> AsyncIterator[Post]:
    one = Post(receiver, open_metrics(tmp_path / "metrics", "integrations-0"))
    yield one
    await one.stop()
