"""
What is known of a task.
"""

from __future__ import annotations

import msgspec

from optimizer.model import TaskStats, VariantStats
from optimizer.operations.house import House
from optimizer.operations.tasks import NamedTask, get_task

_decoder = msgspec.msgpack.Decoder(TaskStats)


async def task_stats(house: House, request: NamedTask) -> TaskStats:
    """
    The statistics of a task, declared or observed, variant by variant; those not used yet have a count of 0.

    Raises:
        NotFound: there is no such task.
    """
    task = await get_task(house, request)
    key = f"stats/{task.task}"
    state = (await house.storage.get([key])).get(key)
    known = _decoder.decode(state.body) if state else None
    offer = house.book.offers.get(task.task)
    served = offer.policy.snapshot if offer else None
    version = max(known.policy_version if known else 0, served.policy_version if served else 0)
    variants = dict(known.variants) if known else {}
    for name, share in (served.shares if served else {}).items():
        variants[name] = msgspec.structs.replace(variants.get(name, _NOTHING), share=share)
    return TaskStats(task=task.task, events=known.events if known else 0, policy_version=version, variants=variants)


_NOTHING = VariantStats(
    count=0,
    feedback_count=0,
    mean_quality=None,
    quality_low=None,
    quality_high=None,
    mean_cost_usd=None,
    p50_latency_ms=None,
    p95_latency_ms=None,
    error_rate=None,
    share=0.0,
)
