"""Alarms for reward hacking: what raises them, at which step, and what does not."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from shared.grading.hacking import WINDOW, Watch, agreement, alarms, repeated_share
from shared.rollout_records import RolloutHeader, RolloutStats


def history(n: int, values: Callable[[int], dict[str, Any]]) -> list[RolloutHeader]:
    """Form the headers of steps 1 to n; `values` gives what differs from an ordinary step."""
    plain = RolloutStats(groups=8, samples=64, reward_mean=0.5, reward_std=0.3, completion_tokens_mean=100.0)
    return [
        RolloutHeader(step=step, validation=False, policy="00", stats=replace(plain, **values(step)))
        for step in range(1, n + 1)
    ]


def noisy(step: int, value: float, spread: float = 0.01) -> float:
    return value + random.Random(step).uniform(-spread, spread)


def test_job_that_learns_raises_no_alarm() -> None:
    learning = history(
        60,
        lambda step: {
            "reward_mean": noisy(step, 0.2 + 0.01 * step),
            "completion_tokens_mean": 100.0 + step,
            "repeated_share": 0.05,
            "scores": {"rule": noisy(step, 0.2 + 0.01 * step), "judge": noisy(step + 99, 0.5)},
            "agreement": {"rule": 0.6, "judge": 0.6},
        },
    )
    assert alarms(learning) == []


def test_too_short_history_says_nothing() -> None:
    grows = history(2 * WINDOW - 1, lambda step: {"reward_mean": step / 10, "completion_tokens_mean": 10.0**step})
    assert alarms(grows) == []


@pytest.mark.parametrize(("late", "way"), [(250.0, "longer"), (40.0, "shorter")])
def test_length_that_changes_while_the_reward_rises(late: float, way: str) -> None:
    steps = history(
        30,
        lambda step: {
            "reward_mean": noisy(step, 0.2 if step <= 10 else 0.7),
            "completion_tokens_mean": 100.0 if step <= 10 else late,
        },
    )
    (alarm,) = alarms(steps)
    assert (alarm.kind, alarm.before) == ("length", 100.0) and way in alarm.message
    assert alarm.step == (14 if way == "longer" else 15)  # 4 · 250 + 100 is twice 500; for half of it all five count


def test_length_that_changes_without_a_rise_is_left_alone() -> None:
    grows = history(30, lambda step: {"reward_mean": noisy(step, 0.5), "completion_tokens_mean": 100.0 + 20 * step})
    assert alarms(grows) == []


def test_repetition_counts_from_a_fifth_and_twice_the_first() -> None:
    assert [alarm.kind for alarm in alarms(history(20, lambda step: {"repeated_share": step / 40}))] == ["repetition"]
    assert alarms(history(20, lambda _: {"repeated_share": 0.5})) == []


def test_part_that_falls_while_another_rises() -> None:
    steps = history(
        40, lambda step: {"scores": {"rule": noisy(step, step / 50), "judge": noisy(step, 0.9 - step / 50), "c": 1.0}}
    )
    (alarm,) = alarms(steps)
    assert (alarm.kind, alarm.grader) == ("drift", "judge") and alarm.now < alarm.before
    assert "'rule' rises while 'judge' falls" in alarm.message


def test_part_that_no_longer_agrees() -> None:
    steps = history(20, lambda step: {"agreement": {"rule": 0.5 if step <= 8 else -0.4}})
    (alarm,) = alarms(steps)
    assert (alarm.kind, alarm.grader, alarm.before) == ("agreement", "rule", 0.5)
    assert alarm.now <= 0


def test_one_more_step_keeps_the_alarms_before() -> None:
    steps = history(30, lambda step: {"repeated_share": step / 40, "agreement": {"a": 0.9 - step / 20}})
    all_of_them = alarms(steps)
    assert len(all_of_them) == 2
    for n in range(len(steps) + 1):
        assert alarms(steps[:n]) == [alarm for alarm in all_of_them if alarm.step <= n]


def test_watch_keeps_no_more_than_it_compares() -> None:
    """What a step costs does not grow with the steps before it."""
    watch = Watch()
    steps = history(200, lambda step: {"repeated_share": 0.5 if step > 150 else 0.1})
    raised = {step.step: found for step in steps if (found := watch.add(step))}
    assert [(at, [alarm.kind for alarm in found]) for at, found in raised.items()] == [(152, ["repetition"])]
    assert len(watch._first) == len(watch._last) == WINDOW


def test_repeated_share_counts_within_an_answer() -> None:
    assert repeated_share([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)
    assert repeated_share([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.0
    assert repeated_share([[7] * 103]) == pytest.approx(0.99)
    assert repeated_share([[1, 2], []]) == repeated_share([]) == 0.0


def test_agreement_is_the_correlation_with_the_other_parts() -> None:
    graded = [{"a": x, "b": 10 * x + 3, "flat": 1.0} for x in (0.0, 0.5, 1.0, 0.25)]
    assert agreement(graded) == pytest.approx({"a": 1.0, "b": 1.0})
    opposed = agreement([{"a": x, "b": -x} for x in (0.0, 0.5, 1.0)])
    assert opposed == pytest.approx({"a": -1.0, "b": -1.0})
    assert agreement([{"a": 1.0}, {"a": 0.0}]) == {} == agreement([])
    assert agreement([{"a": 1.0, "b": 0.0}, {"a": 0.0}]) == {}
    three = agreement([{"a": x, "b": x, "c": -x} for x in (0.0, 0.5, 1.0)])
    assert three["c"] == pytest.approx(-1.0) and not any(map(math.isnan, three.values()))
