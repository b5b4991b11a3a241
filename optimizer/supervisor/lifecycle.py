"""
The life of a service, as one table: state x event -> next state and what has to be done. Pure and total; code only looks up.

A pair that is not written below changes nothing: the event came too late (a timer that was overtaken, a second stop) and is
harmless in that state. Circuit: `Failed` is the open circuit; `due` is its half-open try, every `restart_backoff_max`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class State(StrEnum):
    """
    Names are contract: shown in /health and `status`.
    """

    INITIALIZING = "Initializing"
    WAITING = "Waiting"
    STARTING = "Starting"
    RUNNING = "Running"
    DEGRADED = "Degraded"
    BACKOFF = "Backoff"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    DISABLED = "Disabled"


class Event(StrEnum):
    """
    What can happen to a service.
    """

    BEGIN = "begin"  # the daemon starts
    NEEDS_READY = "needs_ready"  # all it needs is ready
    READY = "ready"  # it serves
    TROUBLED = "troubled"  # it reports a problem
    CLEARED = "cleared"  # it reports none any more
    DIED = "died"  # it ended by itself, and is worth another try
    GAVE_UP = "gave_up"  # it ended by itself once too often: the circuit opens
    REFUSED = "refused"  # it ended with exit code 78: a restart cannot help
    DUE = "due"  # the delay is over
    LATE = "late"  # not ready within start_timeout
    STOP = "stop"  # the daemon stops
    RESTART = "restart"  # an operator wants it anew
    ENDED = "ended"  # it ended after it was told to
    AGAIN = "again"  # it ended after it was told to, and is to start anew


class Effect(StrEnum):
    """
    What the parent has to do.
    """

    SPAWN = "spawn"
    STOP = "stop"
    KILL = "kill"
    SCHEDULE = "schedule"  # a start after the policy's delay
    FORGET = "forget"  # the scheduled start


class Step(NamedTuple):
    """
    Next state and effects, in order.
    """

    state: State
    effects: tuple[Effect, ...] = ()


ALIVE: Final = (State.STARTING, State.RUNNING, State.DEGRADED)  # has a process that was not told to end
SERVING: Final = (State.RUNNING, State.DEGRADED)

_WRITTEN: Final[dict[tuple[State, Event], Step]] = {
    (State.INITIALIZING, Event.BEGIN): Step(State.WAITING),
    (State.WAITING, Event.NEEDS_READY): Step(State.STARTING, (Effect.SPAWN,)),
    (State.STARTING, Event.READY): Step(State.RUNNING),
    (State.STARTING, Event.LATE): Step(State.STARTING, (Effect.KILL,)),
    (State.RUNNING, Event.TROUBLED): Step(State.DEGRADED),
    (State.DEGRADED, Event.CLEARED): Step(State.RUNNING),
    (State.STOPPING, Event.ENDED): Step(State.STOPPED),
    (State.STOPPING, Event.AGAIN): Step(State.STARTING, (Effect.SPAWN,)),
    (State.BACKOFF, Event.DUE): Step(State.STARTING, (Effect.SPAWN,)),
    (State.FAILED, Event.DUE): Step(State.STARTING, (Effect.SPAWN,)),
    **{(state, Event.DIED): Step(State.BACKOFF, (Effect.SCHEDULE,)) for state in ALIVE},
    **{(state, Event.GAVE_UP): Step(State.FAILED, (Effect.SCHEDULE,)) for state in ALIVE},
    **{(state, Event.REFUSED): Step(State.FAILED) for state in ALIVE},
    **{
        (state, event): Step(State.STOPPING, (Effect.STOP,)) for state in ALIVE for event in (Event.STOP, Event.RESTART)
    },
    **{(state, Event.STOP): Step(State.STOPPED, (Effect.FORGET,)) for state in (State.BACKOFF, State.FAILED)},
    **{(state, Event.STOP): Step(State.STOPPED) for state in (State.INITIALIZING, State.WAITING)},
    **{
        (state, Event.RESTART): Step(State.STARTING, (Effect.FORGET, Effect.SPAWN))
        for state in (State.BACKOFF, State.FAILED, State.STOPPED)
    },
}

TABLE: Final[dict[tuple[State, Event], Step]] = {
    (state, event): _WRITTEN.get((state, event), Step(state)) for state in State for event in Event
}
