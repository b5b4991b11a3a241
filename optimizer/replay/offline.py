"""
Replay without a daemon: the same learner and the same policy, driven directly; exact for a seed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from optimizer.decision.learner import Learner
from optimizer.decision.policy import Policy, cold
from optimizer.decision.ticket import Ticket
from optimizer.model import Event
from optimizer.replay.course import Course, outcome_event
from optimizer.replay.table import Request

_BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_PUBLISHED: Final = 20  # reports between two publications; a daemon at 100 requests/s publishes every 0.2 s
MAX_DRAWS: Final = 50  # until an offered variant is drawn; then any offered one serves


def replay(course: Course, seed: int, tick: Callable[[], None] = lambda: None) -> list[str]:
    """
    The variants that the policy chose for the requests in `course.order(seed)`.

    Args:
        tick: called after each request.
    """
    rng = random.Random(f"draw {seed}")
    task = course.task(course.table.name)
    learner = Learner.create(task, seed)
    policy = Policy(learner.snapshot() or cold(task))
    waiting: deque[tuple[Event, Ticket]] = deque()
    chosen: list[str] = []
    unpublished = 0
    rows = course.rows
    for i, request in enumerate(rows[row] for row in course.order(seed)):
        ticket = draw(policy, course, request, rng)
        at = _BEGIN + timedelta(seconds=i)
        outcome = request.outcomes[ticket.variant]
        waiting.append((outcome_event(str(i), at, task.task, ticket.variant, str(i), outcome), ticket))
        chosen.append(ticket.variant)
        while len(waiting) > course.delay:
            event, known = waiting.popleft()
            learner.update(event, True, known)
            unpublished += 1
        if unpublished >= _PUBLISHED:
            policy, unpublished = Policy(learner.snapshot() or cold(task)), 0
        tick()
    return chosen


def draw(policy: Policy, course: Course, request: Request, rng: random.Random) -> Ticket:
    """
    The choice of a policy for a request, among the variants that were offered for it.
    """
    context = course.context(request)
    choice = policy.choose(context, rng)
    for _ in range(MAX_DRAWS):
        if choice.variant in request.outcomes:
            break
        choice = policy.choose(context, rng)
    else:
        choice = choice._replace(variant=rng.choice(list(request.outcomes)), propensity=1 / len(request.outcomes))
    snapshot = policy.snapshot
    return Ticket(snapshot.task, choice.variant, choice.propensity, snapshot.policy_version, 0, choice.features)
