"""Rollouts without a server: what is asked, what is read, what a reward is, and how a step is summed up."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.trainer.failures import TrainingFailed
from services.trainer.protocol import Rollouts, WantRollouts
from services.trainer.rollouts.answering import answer
from services.trainer.rollouts.counting import stats_of
from services.trainer.rollouts.grading import Grading, rewarded
from services.trainer.rollouts.rows import Row, read_rows
from services.trainer.rollouts.sampling import read_group, sampling_seed
from services.trainer.rollouts.scoring import read_scores
from shared.errors import NoReplica
from shared.grading.means import Means
from shared.grading.run import Grade
from shared.rollout_records import RolloutGroup, RolloutSample
from shared.schemas.graders import GraderErrors, JudgeUsage, StringCheckGrader

ROW = Row(line=4, messages=[], tools=None, item={"answer": "x"})
WANTED = WantRollouts(step=2, validation=False, folder="/f", sha256="0", lines=[1], samples=2)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_rows_are_what_the_model_is_asked_and_what_graders_see(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "first"}]},
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
                {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}] * 2},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "answer": {"deep": [1]},
        },
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(lines[0])}\n\n{json.dumps(lines[1])}\n{{}}\n")
    second, first = read_rows(path, [3, 1])
    assert first == Row(line=1, messages=lines[0]["messages"], tools=None, item=lines[0])
    assert second.messages == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "aa"},
    ]
    assert (second.line, second.tools, second.item) == (3, lines[1]["tools"], lines[1])
    for line, problem in ((2, r"Line 2 of rows\.jsonl is not there"), (9, "Line 9"), (4, "Line 4 is no prompt")):
        with pytest.raises(TrainingFailed, match=problem):
            read_rows(path, [1, line])


def test_every_answer_has_a_seed_of_its_own() -> None:
    places = [(job, step, line, valid) for job in (0, 1) for step in (1, 2, 11) for line in (1, 2) for valid in (0, 1)]
    seeds = [sampling_seed(job, step, line, validation=bool(valid)) for job, step, line, valid in places]
    assert len({seed + sample for seed in seeds for sample in range(64)}) == 64 * len(places)
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert seeds[0] == sampling_seed(0, 1, 1, validation=False)


def completion(*choices: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({"choices": list(choices), "prompt_token_ids": [5, 6], **changes}).encode()


def choice(index: int, **changes: Any) -> dict[str, Any]:
    logprobs = {"content": [{"logprob": -0.5}, {"logprob": -index}]}
    said = {"content": f"text {index}"}
    return {"index": index, "message": said, "finish_reason": "stop", "token_ids": [index, 1], "logprobs": logprobs,
            **changes}  # fmt: skip


def test_answers_are_read_in_their_order_with_tokens_and_calls() -> None:
    called = choice(1, message={"content": None, "tool_calls": [CALL]}, finish_reason="tool_calls")
    assert read_group(ROW, completion(called, choice(0, finish_reason="length")), 2) == RolloutGroup(
        line=4,
        prompt_tokens=[5, 6],
        item={"answer": "x"},
        samples=[
            RolloutSample(tokens=[0, 1], logprobs=[-0.5, 0.0], text="text 0", finish_reason="length"),
            RolloutSample(tokens=[1, 1], logprobs=[-0.5, -1.0], tool_calls=[CALL], finish_reason="tool_calls"),
        ],
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "could not be read"),
        (b"\xff", "could not be read"),
        (b"[" * 99_999, "could not be read"),
        (completion(choice(0), choice(1), prompt_token_ids=None), "could not be read"),
        (completion(choice(0), choice(1, token_ids=None)), "could not be read"),
        (completion(choice(0)), "1 answers where 2"),
        (completion(choice(0), choice(1, token_ids=[1])), "1 tokens and 2 log probabilities"),
        (completion(choice(0), choice(1, logprobs={"content": None})), "2 tokens and 0 log probabilities"),
    ],
)
def test_an_answer_that_lacks_something_is_asked_for_again(body: bytes, reason: str) -> None:
    with pytest.raises(NoReplica, match=reason):
        read_group(ROW, body, 2)


def test_scores_are_those_of_the_answers_own_tokens() -> None:
    read = [None, *({str(token): {"logprob": -token / 10}, "99": {"logprob": -9.0}} for token in (6, 1, 2))]
    written = {"token_logprobs": [-0.75]}
    body = json.dumps({"choices": [{"prompt_logprobs": read, "logprobs": written}]}).encode()
    assert read_scores(body, [1, 2, 3]) == [-0.1, -0.2, -0.75]
    assert read_scores(body, [3]) == [-0.75]
    for tokens in ([1, 4, 3], [0] * 9):
        with pytest.raises(NoReplica, match="could not be read"):
            read_scores(body, tokens)


def graded(reward: float = 0.0, **errors: Any) -> Grade:
    return Grade(
        name="g", type="multi", reward=reward, passed=None, label="", sub_rewards={"a": 1.0, "b": 0.5},
        errors=GraderErrors(**errors), usage={}, sampled_model_name=None, seconds=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "is_away"),
    [
        ({"sample_parse_error": True}, False),
        ({"model_grader_parse_error": True}, False),
        ({"python_grader_runtime_error": True, "python_grader_runtime_error_details": "why"}, False),
        ({"python_grader_server_error": True, "python_grader_server_error_type": "timeout"}, False),
        ({"python_grader_server_error": True, "python_grader_server_error_type": "unavailable"}, True),
        ({"model_grader_server_error": True, "model_grader_server_error_details": "why"}, True),
        ({"model_grader_server_error": True, "sample_parse_error": True}, True),
    ],
)
def test_only_what_says_nothing_of_an_answer_leaves_it_without_reward(errors: dict[str, Any], is_away: bool) -> None:
    sample = rewarded(RolloutSample(tokens=[1], logprobs=[-1.0]), graded(**errors))
    assert sample.reward is None if is_away else sample.reward == 0.0
    assert sample.scores == ({} if is_away else {"a": 1.0, "b": 0.5})
    assert set(sample.errors) == {name for name, value in errors.items() if value is True}
    assert sample.detail == ("why" if "why" in errors.values() else "")


def test_a_steps_numbers() -> None:
    def group(*rewards: float | None) -> RolloutGroup:
        samples = [
            RolloutSample(
                tokens=[1] * size,
                logprobs=[-1.0] * size,
                reward=reward,
                scores={} if reward is None else {"g": reward},
                errors=["other_error"] if reward is None else [],
                finish_reason="length" if size == 2 else "stop",
            )
            for size, reward in enumerate(rewards, 1)
        ]
        return RolloutGroup(line=1, prompt_tokens=[1, 2], item={}, samples=samples)

    usage = {"j": JudgeUsage(total_tokens=3)}
    groups = [group(1.0, 0.0), group(0.5, 0.5), group(None, 1.0), group(None, None)]
    found = stats_of(groups, usage=usage, sampling_s=1.23456, grading_s=0.5)
    assert (found.groups, found.samples, found.ungraded, found.errors) == (4, 8, 3, {"other_error": 3})
    assert found.reward_mean == pytest.approx(0.6) and found.scores == {"g": pytest.approx(0.6)}
    assert found.reward_std == pytest.approx(0.4183300)
    assert found.standard_error == pytest.approx(1 / 6)  # of the prompts' means 0.5, 0.5, 1
    assert found.zero_variance_share == 0.75  # a group with fewer than two rewards teaches nothing either
    assert found.completion_tokens_mean == pytest.approx(1.6) and found.prompt_tokens_mean == 2.0
    assert found.truncated_share == pytest.approx(0.6)
    assert (found.usage, found.sampling_s, found.grading_s) == (usage, 1.235, 0.5)
    nothing = stats_of([group(None)], usage={}, sampling_s=0.0, grading_s=0.0)
    assert (nothing.reward_mean, nothing.reward_std, nothing.standard_error, nothing.ungraded) == (0.0, 0.0, 0.0, 1)
    assert stats_of([group(1.0)], usage={}, sampling_s=0.0, grading_s=0.0).zero_variance_share == 0.0


class Child:
    """A training process that waits for rollouts, or ends."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.ended = asyncio.Event()

    async def wait(self) -> int:
        await self.ended.wait()
        return -9

    async def send(self, command: object) -> None:
        self.sent.append(command)


class Slow:
    """Gathers for as long as it is let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.was_stopped = False
        self.failure: Exception | None = None

    async def gather(self, wanted: WantRollouts) -> Rollouts:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_stopped = True
            raise
        if self.failure is not None:
            raise self.failure
        return Rollouts(step=wanted.step, validation=wanted.validation, path="p")


@pytest.mark.parametrize("end", ["whole", "died", "paused", "failed"])
def test_a_process_is_answered_only_as_long_as_it_waits(end: str) -> None:
    async def story() -> None:
        child, slow, stopping = Child(), Slow(), asyncio.Event()
        answering = asyncio.create_task(answer(child, slow, WANTED, stopping))  # type: ignore[arg-type]
        await slow.begun.wait()
        if end == "failed":
            slow.failure = TrainingFailed("no")
        {"whole": slow.may_end, "failed": slow.may_end, "died": child.ended, "paused": stopping}[end].set()
        if end == "failed":
            with pytest.raises(TrainingFailed, match="no"):
                await answering
        else:
            await answering
        assert child.sent == ([Rollouts(step=2, validation=False, path="p")] if end == "whole" else [])
        assert slow.was_stopped == (end in ("died", "paused"))

    asyncio.run(story())


def test_an_answer_that_has_its_reward_keeps_it() -> None:
    """What is graded again, because others have none, is not paid twice: see Grading."""
    grader = StringCheckGrader(
        name="g", input="{{ sample.output_text }}", reference="{{ item.answer }}", operation="eq"
    )
    kept = RolloutSample(tokens=[1], logprobs=[-1.0], text="x", reward=0.25)
    group = RolloutGroup(line=1, prompt_tokens=[1], item={"answer": "x"}, samples=[kept, replace(kept, reward=None)])
    found = asyncio.run(Grading(grader, Means()).grade(group))
    assert [sample.reward for sample in found.samples] == [0.25, 1.0]
