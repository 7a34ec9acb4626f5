"""What reinforcement tells of itself: events in OpenAI's shape, checkpoints, the result file, curves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from services.trainer.curves import curves
from services.trainer.jobs import alarms
from services.trainer.jobs.alarms import Alarms
from services.trainer.jobs.narration import checkpoint_metrics, rehearsed_event, result_csv, step_event
from services.trainer.protocol import Exported, Metrics, Rehearsed
from services.trainer.stores import Stores
from services.trainer.training.keeping import kept_steps, still_of_use
from shared.rollout_records import RolloutStats
from shared.schemas.events import Event
from shared.schemas.graders import Grader, JudgeUsage, MultiGrader

CHECK = {"type": "string_check", "name": "x", "input": "a", "reference": "b", "operation": "eq"}
JUDGE = {"type": "score_model", "name": "y", "model": "m", "input": [{"role": "user", "content": "?"}]}
PLAIN = Metrics(
    step=2, total_steps=60, epoch=1, train_loss=0.25, train_mean_token_accuracy=0.5, tokens=900, tokens_per_s=300.0,
    learning_rate=1e-4, grad_norm=1.0, kl=0.01, step_s=10.0,
)  # fmt: skip
TRAIN = RolloutStats(
    groups=2, samples=16, reward_mean=0.25, reward_std=0.4, scores={"rule": 0.5, "a b/ü": 0.0},
    completion_tokens_mean=12.5, zero_variance_share=0.5, errors={"model_grader_parse_error": 4, "other_error": 1},
    usage={"m": JudgeUsage(prompt_tokens=160, completion_tokens=32, total_tokens=192)}, sampling_s=4.0, grading_s=1.5,
)  # fmt: skip
VALID = RolloutStats(groups=4, samples=4, reward_mean=0.75, reward_std=0.1, sampling_s=2.0, grading_s=0.5)


def grader(**fields: Any) -> Grader:
    found: Grader = msgspec.convert(fields, Grader)
    return found


def multi() -> Grader:
    return MultiGrader(name="both", graders={"rule": CHECK, "a b/ü": JUDGE}, calculate_output="rule")


def test_step_is_told_in_openai_s_shape() -> None:
    told = step_event(replace(PLAIN, rollouts=TRAIN, valid_rollouts=VALID), multi())
    assert told.message == "Step 2/60: training reward=0.25, full validation reward=0.75" and told.type == "metrics"
    data = told.data
    assert (data["step"], data["total_steps"], data["train_mean_reward"], data["full_valid_mean_reward"]) == (
        2, 60, 0.25, 0.75,
    )  # fmt: skip
    assert data["scores"] == {
        "train_reward_mean": 0.25,
        "valid_reward_mean": 0.75,
        "graders": [
            {"name": "rule", "type": "string_check", "train_reward_mean": 0.5},
            {"name": "a b/ü", "type": "score_model", "train_reward_mean": 0.0},
        ],
    }
    assert data["timing"]["step"] == {
        "sampling": 4.0, "grading": 1.5, "eval": 2.5, "training": 2.0, "full_iteration": 10.0,
    }  # fmt: skip
    assert data["usage"]["samples"] == {
        "train_completion_tokens_mean": 12.5, "valid_completion_tokens_mean": 0.0,
        "train_completion_tokens_count": 200, "valid_completion_tokens_count": 0,
    }  # fmt: skip
    [judge] = data["usage"]["graders"]
    assert (judge["name"], judge["model"], judge["train_prompt_tokens_mean"]) == ("a b/ü", "m", 10.0)
    [failures] = data["errors"]["graders"]
    assert (failures["name"], failures["type"], failures["train_model_grader_parse_error_mean"]) == (
        "both",
        "multi",
        0.25,
    )
    assert (failures["train_other_error_count"], failures["valid_other_error_count"]) == (1, 0)
    assert data["model_graders_token_usage"] == {
        "m": {"train_prompt_tokens": 160, "train_completion_tokens": 32, "train_cached_tokens": 0}
    }


def test_tokens_are_those_of_the_answers_that_were_graded() -> None:
    data = step_event(replace(PLAIN, rollouts=replace(TRAIN, ungraded=4)), multi()).data
    assert data["usage"]["samples"]["train_completion_tokens_count"] == 150  # 12.5 of 12 answers


def test_step_without_an_evaluation_says_nothing_of_it() -> None:
    told = step_event(replace(PLAIN, rollouts=TRAIN), grader(**CHECK))
    assert told.message == "Step 2/60: training reward=0.25"
    assert "full_valid_mean_reward" not in told.data and "valid_reward_mean" not in told.data["scores"]
    assert not any(name.startswith("valid_") for name in told.data["errors"]["graders"][0])


def test_judge_that_two_graders_ask_is_counted_by_model_alone() -> None:
    both = MultiGrader(name="m", graders={"a": JUDGE, "b": JUDGE}, calculate_output="a + b")
    data = step_event(replace(PLAIN, rollouts=TRAIN), both).data
    assert data["usage"]["graders"] == [{"name": name, "type": "score_model", "model": "m"} for name in "ab"]
    assert data["model_graders_token_usage"]["m"]["train_prompt_tokens"] == 160


def test_rehearsal_tells_the_reward_to_start_from() -> None:
    rehearsed = Rehearsed(seconds=1.0, peak_memory_bytes=10**9, longest_rows=True, valid_rollouts=VALID)
    assert rehearsed_event(rehearsed).message.startswith("Before training: full validation reward=0.75; the longest")


def exported(step: int, reward: float | None) -> Exported:
    valid = None if reward is None else replace(VALID, reward_mean=reward)
    metrics = replace(PLAIN, step=step, rollouts=TRAIN, valid_rollouts=valid)
    return Exported(metrics=metrics, folder="", sha256="", final=False, trained_tokens=0)


def test_best_checkpoints_by_reward_stay() -> None:
    def steps(*rewards: float | None) -> list[int]:
        return kept_steps(exported(step, reward).metrics for step, reward in enumerate(rewards, 1))

    assert steps(0.9, 0.1, 0.8, 0.2) == [1, 3]
    assert steps(0.5, 0.5, 0.5) == [1, 2]
    assert steps(None, None, None, None) == [3, 4]
    assert steps(0.1) == [1]
    assert steps() == []


def test_models_with_lower_rewards_are_of_no_use_any_more() -> None:
    def left(*rewards: float | None) -> list[int]:
        exports = [exported(step, reward) for step, reward in enumerate(rewards, 1)]
        return [one.metrics.step for one in still_of_use([*exports, replace(exported(9, 0.0), final=True)])]

    assert left(0.1, 0.2, 0.3, 0.15) == [2, 3, 9]
    assert left(None, None, None) == [1, 2, 3, 9], "early stopping may want any"
    assert left() == [9]


def test_checkpoint_and_result_file_have_rewards() -> None:
    measured = checkpoint_metrics(exported(3, 0.5))
    assert (measured.step, measured.train_reward_mean, measured.valid_reward_mean) == (3, 0.25, 0.5)
    table = result_csv([replace(PLAIN, step=1, rollouts=TRAIN), replace(PLAIN, rollouts=TRAIN, valid_rollouts=VALID)])
    columns = (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,train_reward_mean,valid_reward_mean,"
        "completion_tokens_mean,zero_variance_share,kl"
    )
    assert table.decode().splitlines() == [
        columns,
        "1,0.25,0.5,,,0.25,,12.5,0.5,0.01",
        "2,0.25,0.5,,,0.25,0.75,12.5,0.5,0.01",
    ]
    assert result_csv([PLAIN]).decode().splitlines()[1] == "2,0.25,0.5,,"


def repeating(number: int) -> Metrics:
    """Form a step of a job whose answers repeat themselves from step 8 on."""
    return replace(PLAIN, step=number, rollouts=replace(TRAIN, repeated_share=0.9 if number > 7 else 0.1))


def told_by(attempt: Alarms, *, from_step: int, reported: int) -> dict[int, list[Event]]:
    """Let a process say its steps from `from_step` to 14, of which `reported` are in the story; events by step."""

    async def story() -> dict[int, list[Event]]:
        steps = [repeating(number) for number in range(from_step, 15)]
        return {one.step: await attempt.raised_by(one, is_new=one.step > reported) for one in steps}

    return {step: events for step, events in asyncio.run(story()).items() if events}


def attempt_after(monkeypatch: pytest.MonkeyPatch, *before: Event) -> Alarms:
    async def newest_first(stores: Stores, job_id: str) -> AsyncIterator[Event]:
        for earlier in before:
            yield earlier

    monkeypatch.setattr(alarms, "newest_first", newest_first)
    return Alarms(cast(Stores, None), "ftjob-x")


def test_alarm_is_told_at_the_step_that_shows_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = attempt_after(monkeypatch)
    told = told_by(attempt, from_step=1, reported=0)
    assert list(told) == [10]
    [alarm] = told[10]
    assert alarm.level == "warn" and alarm.message.startswith("Answers repeat themselves")
    assert alarm.data["alarm"] == {
        "kind": "repetition", "step": 10, "message": alarm.message, "grader": None, "before": pytest.approx(0.1),
        "now": pytest.approx(0.58),
    }  # fmt: skip
    assert told_by(attempt, from_step=1, reported=0) == {}, "a group that was started anew says its steps again"
    assert asyncio.run(attempt.raised_by(replace(PLAIN, step=15), is_new=True)) == []


def test_later_attempt_tells_of_alarms_that_the_story_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may die after a step's event and before the alarm's."""
    [[alarm]] = told_by(attempt_after(monkeypatch), from_step=1, reported=0).values()
    step = step_event(repeating(10), grader(**CHECK))
    again = told_by(attempt_after(monkeypatch, step), from_step=1, reported=14)
    assert [told.message for told in again[10]] == [alarm.message]
    assert told_by(attempt_after(monkeypatch, step, alarm), from_step=1, reported=12) == {}


def test_curves_are_numbers_under_names_that_trackers_take() -> None:
    drawn = curves(replace(PLAIN, rollouts=TRAIN, valid_rollouts=VALID))
    assert all(isinstance(value, int | float) for value in drawn.values())
    assert (drawn["train_loss"], drawn["train_reward_mean"], drawn["full_valid_reward_mean"]) == (0.25, 0.25, 0.75)
    assert (drawn["train_score_rule"], drawn["train_score_a b__"]) == (0.5, 0.0)
    assert curves(PLAIN) == msgspec.to_builtins(PLAIN)
