"""
The services as the world is shown them. Pure: from wards to views.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

from optimizer.messages import Fleet, ServiceView, SlotView
from optimizer.supervisor.lifecycle import SERVING, State
from optimizer.supervisor.ward import Ward

Status = Literal["healthy", "degraded", "unhealthy"]

_WORST_FIRST: Final = (
    State.FAILED,
    State.BACKOFF,
    State.STOPPING,
    State.STOPPED,
    State.INITIALIZING,
    State.WAITING,
    State.STARTING,
    State.DEGRADED,
    State.RUNNING,
    State.DISABLED,
)


def service_view(wards: Sequence[Ward], ports: Mapping[str, int], lost: Sequence[str], now: float) -> ServiceView:
    """
    One service, from its slots.

    Args:
        wards: its slots, at least one. `lost`: what it needs and cannot have now.
    """
    first = wards[0]
    processes = [process for ward in wards for process in ward.processes()]
    current = [ward.process for ward in wards if ward.process is not None]
    state, message = _state(wards, lost)
    missed = max(ward.missed(now) for ward in wards)
    missed_too_many = any(ward.missed(now) >= ward.settings.failure_threshold for ward in wards)
    ready = [process.ready_at for process in current if process.ready_at is not None]
    retries = [ward.next_retry_at for ward in wards if ward.next_retry_at is not None]
    restarts: Counter[str] = sum((ward.restarts for ward in wards), Counter())
    entered: Counter[str] = sum((ward.entered for ward in wards), Counter())
    return ServiceView(
        state=state.value,
        healthy=state in (State.RUNNING, State.DISABLED) and not missed_too_many,
        wanted=state is not State.DISABLED and not all(ward.unwanted for ward in wards),
        consecutive_failures=max(missed, *(w.policy.in_a_row if w.state not in SERVING else 0 for w in wards)),
        message=message,
        metadata=first.process.metadata if first.process is not None else {},
        pid=first.process.pid if first.process is not None else None,
        incarnation=first.incarnation,
        restarts=dict(restarts),
        entered=dict(entered),
        started_at=min((process.started_at for process in current), default=None),
        ready_at=min(ready, default=None),
        start_secs=max((ward.start_secs for ward in wards if ward.start_secs is not None), default=None),
        heartbeat_at=min((process.beat_at for process in current), default=None),
        last_exit=next((ward.last_exit for ward in wards if ward.last_exit is not None), None),
        next_retry_at=min(retries, default=None),
        circuit=_circuit(wards),
        cpu_percent=round(sum(process.usage.cpu_percent for process in processes), 1),
        memory_bytes=sum(process.usage.memory_bytes for process in processes),
        fds=sum(process.usage.fds for process in processes),
        threads=sum(process.usage.threads for process in processes),
        ports=dict(ports),
        needs=first.service.needs,
        slots={ward.name: _slot(ward) for ward in wards},
    )


def overall(services: Mapping[str, ServiceView], critical: Collection[str]) -> Status:
    """
    How the daemon is: unhealthy without a critical service; healthy when all that are wanted are.
    """
    serving = tuple(state.value for state in SERVING)
    if any(name in critical and view.state not in serving for name, view in services.items()):
        return "unhealthy"
    if all(view.healthy for view in services.values() if view.wanted):
        return "healthy"
    return "degraded"


def sentence(fleet: Fleet) -> str:
    """
    How the daemon is, on one line.
    """
    ill = [f"{name} is {view.state}" for name, view in fleet.services.items() if view.wanted and not view.healthy]
    return ", ".join([fleet.status, *ill])


def _slot(ward: Ward) -> SlotView:
    pid = ward.process.pid if ward.process is not None else None
    leaving = [process.pid for process in ward.leaving]
    return SlotView(state=ward.state.value, pid=pid, incarnation=ward.incarnation, leaving=leaving)


def _state(wards: Sequence[Ward], lost: Sequence[str]) -> tuple[State, str | None]:
    worst = min(wards, key=lambda ward: _WORST_FIRST.index(ward.state))
    serving = [ward for ward in wards if ward.state in SERVING]
    if len(serving) < len(wards):
        told = worst.reason
        if worst.state is State.WAITING and lost:
            told = f"waits for {' and '.join(lost)}"
        if serving:
            return State.DEGRADED, f"{worst.name} is {worst.state}: {told}"
        return worst.state, told if worst.state is not State.DISABLED else None
    if worst.state is State.DEGRADED:
        problems = worst.process.problems if worst.process is not None else {}
        return State.DEGRADED, "; ".join(problems.values()) or worst.reason
    if lost:
        return State.DEGRADED, f"needs {' and '.join(lost)}, which cannot serve now"
    return State.RUNNING, None


def _circuit(wards: Sequence[Ward]) -> Literal["closed", "open", "half_open"]:
    found = {ward.circuit for ward in wards}
    return "open" if "open" in found else "half_open" if "half_open" in found else "closed"
