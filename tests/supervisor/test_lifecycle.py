from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

from optimizer.resilience import RestartPolicy, backoff
from optimizer.supervisor.lifecycle import ALIVE, SERVING, TABLE, Effect, Event, State, picture


def test_the_table_is_total() -> None:
    assert set(TABLE) == set(product(State, Event))


def test_a_stop_wins_in_every_state() -> None:
    for state in State:
        after = TABLE[state, Event.STOP].state
        assert after in (State.STOPPING, State.STOPPED, State.DISABLED)


def test_only_states_without_a_process_spawn() -> None:
    for (state, event), step in TABLE.items():
        if Effect.SPAWN in step.effects:
            assert state not in ALIVE
            assert step.state is State.STARTING
            assert event in (Event.NEEDS_READY, Event.DUE, Event.RESTART, Event.AGAIN)


def test_delays_double_up_to_the_longest_and_jitter_stays_inside() -> None:
    rng = random.Random(1)
    assert [backoff(n, 1, 60, 0, rng) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert all(3.2 <= backoff(3, 1, 60, 0.2, rng) <= 4.8 for _ in range(200))
    with pytest.raises(ValueError, match="count from 1"):
        backoff(0, 1, 60, 0, rng)


def policy() -> RestartPolicy:
    return RestartPolicy(attempts=3, base_s=1, longest_s=60, jitter=0, stable_after_s=60)


def test_the_first_restart_is_at_once_then_it_backs_off_then_the_circuit_opens() -> None:
    dying = policy()
    rng = random.Random(1)
    assert [dying.died(t, 0.0, rng) for t in range(5)] == [(0, False), (1, False), (2, False), (60, True), (60, True)]
    dying.clear()
    assert dying.died(100, 0.0, rng) == (0, False)


def test_a_stable_run_closes_the_circuit_without_another_death() -> None:
    dying, rng = policy(), random.Random(1)
    for t in range(5):
        dying.died(t, 0.0, rng)
    dying.survived(100, 95.0)
    assert dying.in_a_row == 5  # too many deaths lately
    dying.survived(700, 695.0)
    assert dying.in_a_row == 0


def test_a_stable_run_clears_the_row_but_not_for_ever() -> None:
    living, rng = policy(), random.Random(1)
    outcomes = [living.died(61.0 * i, 61.0, rng) for i in range(1, 9)]
    assert outcomes[:3] == [(0, False)] * 3
    assert outcomes[-1] == (60, True)
    for i in range(9, 1000):
        living.died(61.0 * i, 61.0, rng)
    assert len(living.deaths) == 10  # those of the last ten spans are all that is kept


def test_every_state_but_disabled_has_a_way_to_a_serving_one() -> None:
    reached = set(SERVING)
    for _ in State:
        reached |= {state for (state, _event), step in TABLE.items() if step.state in reached}
    assert reached == set(State)


def test_a_successor_never_outlives_the_decision_to_stop() -> None:
    for state in SERVING:
        assert TABLE[state, Event.STOP].effects == (Effect.STOP,)
    for state in set(State) - set(SERVING):
        assert Effect.SPAWN_SUCCESSOR not in TABLE[state, Event.REPLACE].effects


def test_the_diagram_names_every_written_step_and_is_the_documented_one() -> None:
    drawn = picture()
    assert drawn in (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()
    assert "Running --> Degraded: hung" in drawn
    assert all(f" {state}" in drawn for state in State)
