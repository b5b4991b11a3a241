"""
The life of a service, as one table: state x event -> next state and what has to be done. Pure and total; code only looks up.

A pair that is not written below changes nothing: the event came too late (a timer that was overtaken, a second stop) and is
harmless in that state. Circuit: `Failed` is the open circuit; `due` is its half-open try, every `restart_backoff_max`.

A successor is a second process of the same slot that is made ready beside the first, so that a planned restart refuses
nobody: the first serves on until the successor is ready, and only then is told to finish.
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

    BEGIN = "begin"  # it is to run: the daemon starts, or an operator says so
    NEEDS_READY = "needs_ready"  # all it needs is ready
    READY = "ready"  # it serves
    TROUBLED = "troubled"  # it reports a problem
    CLEARED = "cleared"  # it reports none any more
    DIED = "died"  # it ended by itself, and is worth another try
    GAVE_UP = "gave_up"  # it ended by itself once too often: the circuit opens
    REFUSED = "refused"  # it ended with exit code 78: a restart cannot help
    DUE = "due"  # the delay is over
    LATE = "late"  # not ready within start_timeout
    HUNG = "hung"  # its work loop has not been heard for too long
    STOP = "stop"  # the daemon stops, or an operator stops it
    RESTART = "restart"  # it is wanted anew, by an end and a start
    ENDED = "ended"  # it ended after it was told to
    AGAIN = "again"  # it ended after it was told to, and is to start anew
    DISABLE = "disable"  # the configuration does not want it any more, and it has no process
    REPLACE = "replace"  # it is wanted anew, without a gap
    SUCCEEDED = "succeeded"  # the successor is ready
    UNREPLACED = "unreplaced"  # the successor did not become ready
    INHERITED = "inherited"  # it ended by itself while its successor was on its way


class Effect(StrEnum):
    """
    What the parent has to do.
    """

    SPAWN = "spawn"
    STOP = "stop"  # the process, and a successor on its way
    KILL = "kill"
    ABORT = "abort"  # let it write where it hangs, then kill it
    SCHEDULE = "schedule"  # a start after the policy's delay
    FORGET = "forget"  # the scheduled start
    SPAWN_SUCCESSOR = "spawn_successor"
    SWAP = "swap"  # the successor takes over; the first finishes
    DROP_SUCCESSOR = "drop_successor"


class Step(NamedTuple):
    """
    Next state and effects, in order.
    """

    state: State
    effects: tuple[Effect, ...] = ()


ALIVE: Final = (State.STARTING, State.RUNNING, State.DEGRADED)  # has a process that was not told to end
SERVING: Final = (State.RUNNING, State.DEGRADED)
RESTING: Final = (State.BACKOFF, State.FAILED)  # has no process, and a start in view
SETTLED: Final = (*SERVING, State.STOPPED, State.FAILED, State.DISABLED)  # nothing is under way

_WRITTEN: Final[dict[tuple[State, Event], Step]] = {
    **{(state, Event.BEGIN): Step(State.WAITING) for state in (State.INITIALIZING, State.STOPPED, State.DISABLED)},
    **{(state, Event.BEGIN): Step(State.WAITING, (Effect.FORGET,)) for state in RESTING},
    (State.WAITING, Event.NEEDS_READY): Step(State.STARTING, (Effect.SPAWN,)),
    (State.STARTING, Event.READY): Step(State.RUNNING),
    (State.STARTING, Event.LATE): Step(State.STARTING, (Effect.KILL,)),
    (State.RUNNING, Event.TROUBLED): Step(State.DEGRADED),
    (State.DEGRADED, Event.CLEARED): Step(State.RUNNING),
    **{(state, Event.HUNG): Step(State.DEGRADED, (Effect.ABORT,)) for state in SERVING},
    (State.STOPPING, Event.STOP): Step(State.STOPPING, (Effect.STOP,)),  # by then at the latest
    (State.STOPPING, Event.ENDED): Step(State.STOPPED),
    (State.STOPPING, Event.AGAIN): Step(State.STARTING, (Effect.SPAWN,)),
    **{(state, Event.DUE): Step(State.STARTING, (Effect.SPAWN,)) for state in RESTING},
    **{(state, Event.DIED): Step(State.BACKOFF, (Effect.SCHEDULE,)) for state in ALIVE},
    **{(state, Event.GAVE_UP): Step(State.FAILED, (Effect.SCHEDULE,)) for state in ALIVE},
    **{(state, Event.REFUSED): Step(State.FAILED) for state in ALIVE},
    **{
        (state, event): Step(State.STOPPING, (Effect.STOP,)) for state in ALIVE for event in (Event.STOP, Event.RESTART)
    },
    **{(state, Event.STOP): Step(State.STOPPED, (Effect.FORGET,)) for state in RESTING},
    **{(state, Event.STOP): Step(State.STOPPED) for state in (State.INITIALIZING, State.WAITING)},
    **{(state, Event.RESTART): Step(State.STARTING, (Effect.FORGET, Effect.SPAWN)) for state in RESTING},
    (State.STOPPED, Event.RESTART): Step(State.WAITING),
    **{
        (state, Event.DISABLE): Step(State.DISABLED, (Effect.FORGET,))
        for state in (State.INITIALIZING, State.WAITING, State.STOPPED, *RESTING)
    },
    **{(state, Event.REPLACE): Step(state, (Effect.SPAWN_SUCCESSOR,)) for state in SERVING},
    **{(state, Event.SUCCEEDED): Step(State.RUNNING, (Effect.SWAP,)) for state in SERVING},
    **{(state, Event.UNREPLACED): Step(state, (Effect.DROP_SUCCESSOR,)) for state in SERVING},
    **{(state, Event.INHERITED): Step(State.STARTING, (Effect.SWAP,)) for state in SERVING},
}

TABLE: Final[dict[tuple[State, Event], Step]] = {
    (state, event): _WRITTEN.get((state, event), Step(state)) for state in State for event in Event
}


def picture() -> str:
    """
    The table as a Mermaid state diagram, for the documentation.
    """
    arrows = [
        f"    {state} --> {step.state}: {event}"
        for (state, event), step in _WRITTEN.items()
        if step.state is not state or step.effects
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.INITIALIZING}", *arrows])
