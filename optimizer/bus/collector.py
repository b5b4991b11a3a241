"""
What the collector promises to the APIs, and its client over the bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from optimizer.bus.requests import Client
from optimizer.errors import Permanent
from optimizer.messages import Submit, Submitted

_TIMEOUT_S: Final = 10.0  # a restart of the collector or of storage fits in several times


class Collector(Protocol):
    """
    The door for events that an API has checked.
    """

    async def submit(self, source: str, events: Sequence[bytes]) -> Submitted:
        """
        Make events (MessagePack of model.Event, ids minted) durable; idempotent by event id.

        Raises:
            Invalid: a selection id is forged or of another installation; the problem's field is `[i].selection_id`;
                nothing was stored. Transient: no answer in time. Rejected: no room.
        """


class RemoteCollector:
    """
    The collector service, over the bus.
    """

    def __init__(self, client: Client, timeout_s: float = _TIMEOUT_S) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def submit(self, source: str, events: Sequence[bytes]) -> Submitted:
        answer = await self._client.request(Submit(source=source, events=list(events)), self._timeout_s)
        if not isinstance(answer, Submitted):
            raise Permanent(f"the collector answered Submit with {type(answer).__name__}")
        return answer
