"""
The integrations service: tells receivers what happened to the daemon. Without receivers it only says that it is
well, and loads nothing.
"""

from __future__ import annotations

from optimizer.service import Frame
from workers.integrations.settings import Settings


async def serve(frame: Frame[Settings]) -> None:
    """
    Deliver until the daemon stops.
    """
    webhooks = [webhook for webhook in frame.settings.webhooks if webhook.enabled]
    frame.health.metadata["webhooks"] = str(len(webhooks))
    if webhooks:
        from workers.integrations.outbox import deliver  # an idle service pays for no HTTP client

        await deliver(frame, webhooks)
    else:
        frame.ready()
        await frame.stopping.wait()
