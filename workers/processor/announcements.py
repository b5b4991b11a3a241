"""
Which policies may be published, which are worth an announcement, and what it says.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from optimizer.clock import Clock
from optimizer.decision.policy import Snapshot
from optimizer.model import SystemEvent, new_id

_TOLD_SHIFT: Final = 0.1  # total variation between announced and new shares that is worth an announcement
_ROUNDING: Final = 1e-6


class Told(msgspec.Struct, frozen=True):
    """
    What a snapshot says of how selections are shared out; decodes from a whole Snapshot.
    """

    task: str
    policy: str
    shares: dict[str, float]


def told(snapshot: Snapshot) -> Told:
    """
    The part of a snapshot that is remembered.
    """
    return Told(snapshot.task, snapshot.policy, snapshot.shares)


def sound(snapshot: Snapshot) -> bool:
    """
    Whether the shares are probabilities: not a number is none.
    """
    shares = snapshot.shares.values()
    return all(0 <= share <= 1 + _ROUNDING for share in shares) and abs(sum(shares) - 1) <= _ROUNDING


def worth_telling(last: Told | None, snapshot: Snapshot) -> bool:
    """
    Whether a snapshot says something new to those who heard of the last one.
    """
    if last is None or last.policy != snapshot.policy or set(last.shares) != set(snapshot.shares):
        return True
    moved = sum(abs(share - last.shares[name]) for name, share in snapshot.shares.items()) / 2
    return moved > _TOLD_SHIFT


def announcement(snapshot: Snapshot, clock: Clock, environment: str) -> SystemEvent:
    """
    `policy.changed` (contract: design section 8).
    """
    leader = max(snapshot.shares, key=lambda name: snapshot.shares[name])
    return SystemEvent(
        id=new_id("evt_"),
        type="policy.changed",
        time=clock.at(),
        host=socket.gethostname(),
        environment=environment,
        severity="info",
        subject=snapshot.task,
        summary=f"{snapshot.task}: {leader} now gets {snapshot.shares[leader]:.0%} of the selections",
        data={
            "task": snapshot.task,
            "policy": snapshot.policy,
            "policy_version": snapshot.policy_version,
            "shares": snapshot.shares,
        },
    )
