"""The job's states form the machine that OpenAI documents."""

from __future__ import annotations

import itertools

import pytest

from shared.errors import TransitionRefused
from shared.states import ALLOWED, TERMINAL, JobState, check_transition


def test_every_state_has_its_row() -> None:
    assert set(ALLOWED) == set(JobState)
    assert {state for state, targets in ALLOWED.items() if not targets} == TERMINAL


@pytest.mark.parametrize(("current", "target"), list(itertools.product(JobState, JobState)))
def test_transitions_follow_the_table(current: JobState, target: JobState) -> None:
    if target == current or target in ALLOWED[current]:
        check_transition(current, target)
    else:
        with pytest.raises(TransitionRefused, match=current.value):
            check_transition(current, target)


def test_every_state_can_reach_an_end() -> None:
    assert all(state in TERMINAL or targets & TERMINAL for state, targets in ALLOWED.items())
