"""The lives of jobs and batches, as tables."""

from __future__ import annotations

import itertools
from typing import get_args, get_type_hints

import pytest

from shared import batch_states
from shared.batch_states import BatchState, check_batch_transition
from shared.errors import TransitionRefused
from shared.schemas.batches import Batch
from shared.schemas.jobs import Job
from shared.states import ALLOWED, TERMINAL, JobState, check_transition

EDGES = {
    ("validating_files", "queued"),
    ("validating_files", "failed"),
    ("validating_files", "cancelled"),
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("validating_files", "paused"),
    ("queued", "paused"),
    ("running", "paused"),
    ("paused", "validating_files"),
    ("paused", "queued"),
    ("paused", "cancelled"),
}


@pytest.mark.parametrize(("current", "target"), list(itertools.product(JobState, JobState)))
def test_only_the_tables_transitions_are_allowed(current: JobState, target: JobState) -> None:
    if current == target or (current.value, target.value) in EDGES:
        check_transition(current, target)
    else:
        with pytest.raises(TransitionRefused):
            check_transition(current, target)


def test_table_is_complete_and_ends_are_ends() -> None:
    assert set(ALLOWED) == set(JobState)
    assert {state for state, targets in ALLOWED.items() if not targets} == TERMINAL


def test_states_are_those_on_the_wire() -> None:
    assert set(get_args(get_type_hints(Job)["status"])) == {state.value for state in JobState}


BATCH_EDGES = {
    ("validating", "in_progress"),
    ("validating", "failed"),
    ("validating", "cancelling"),
    ("in_progress", "finalizing"),
    ("in_progress", "expired"),
    ("in_progress", "failed"),
    ("in_progress", "cancelling"),
    ("finalizing", "completed"),
    ("finalizing", "failed"),
    ("cancelling", "cancelled"),
}


@pytest.mark.parametrize(("current", "target"), list(itertools.product(BatchState, BatchState)))
def test_only_the_tables_transitions_of_batches_are_allowed(current: BatchState, target: BatchState) -> None:
    if current == target or (current.value, target.value) in BATCH_EDGES:
        check_batch_transition(current, target)
    else:
        with pytest.raises(TransitionRefused):
            check_batch_transition(current, target)


def test_table_of_batches_is_complete_and_as_on_the_wire() -> None:
    assert set(batch_states.ALLOWED) == set(BatchState)
    assert {state for state, targets in batch_states.ALLOWED.items() if not targets} == batch_states.ENDED
    assert set(get_args(get_type_hints(Batch)["status"])) == {state.value for state in BatchState}
