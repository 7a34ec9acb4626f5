"""Grading with models: judges, which write what they think, and reward models, which give a number."""

from __future__ import annotations

from shared.grading.judging import Unreadable, label_format, messages_for, read_label, read_score, score_format
from shared.grading.means import Answer, Judge, JudgeFailed, NotFinite, RewardModels, Unresponsive, Unscorable
from shared.grading.rewarding import NoConversation, conversation_for, shaped
from shared.grading.score import Namespaces, Score, failed
from shared.grading.templates import Room
from shared.schemas.graders import (
    GraderErrors,
    JudgeUsage,
    LabelModelGrader,
    RewardModelGrader,
    SamplingParams,
    ScoreModelGrader,
)

MAX_DETAIL_CHARS = 2000


async def judged(
    grader: ScoreModelGrader | LabelModelGrader, namespaces: Namespaces, judge: Judge | None, room: Room
) -> Score:
    """Have a judge grade. Raises as templates.render does."""
    messages = messages_for(grader.input, namespaces, room)
    if judge is None:
        return _judge_failed("no judge can be asked here")
    wanted = label_format(grader.labels) if isinstance(grader, LabelModelGrader) else score_format()
    try:
        answer = await judge.ask(grader.model, messages, grader.sampling_params or SamplingParams(), wanted)
    except JudgeFailed as error:
        return _judge_failed(str(error))
    usage = {grader.model: _usage(answer)}
    if answer.refusal:
        return Score(errors=GraderErrors(model_grader_refusal_error=True), usage=usage)
    try:
        reward, label = _verdict(grader, answer.text)
        return Score(reward=reward, label=label, usage=usage)
    except Unreadable:
        return Score(errors=GraderErrors(model_grader_parse_error=True), usage=usage)


def _verdict(grader: ScoreModelGrader | LabelModelGrader, text: str) -> tuple[float, str]:
    """Return the reward, and the label where one was asked for."""
    if isinstance(grader, LabelModelGrader):
        label = read_label(text, grader.labels)
        return float(label in grader.passing_labels), label
    return read_score(text, grader.bounds), ""


def _judge_failed(details: str, **flags: bool) -> Score:
    """The contract has one text for what judges and reward models have to say of an error."""
    return failed(
        **(flags or {"model_grader_server_error": True}), model_grader_server_error_details=details[:MAX_DETAIL_CHARS]
    )


def _usage(answer: Answer) -> JudgeUsage:
    return JudgeUsage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        total_tokens=answer.prompt_tokens + answer.completion_tokens,
        cached_tokens=answer.cached_tokens,
    )


async def scored(
    grader: RewardModelGrader, namespaces: Namespaces, reward_models: RewardModels | None, room: Room
) -> Score:
    """Have a reward model grade. Raises as templates.render does."""
    try:
        conversation = conversation_for(grader, namespaces, room)
    except NoConversation as error:
        return _judge_failed(str(error), invalid_variable_error=True)
    if reward_models is None:
        return _judge_failed("no reward model can be asked here")
    try:
        return Score(reward=shaped(grader, await reward_models.score(grader.model, conversation)))
    except NotFinite as error:
        return _judge_failed(str(error), model_grader_parse_error=True)
    except Unscorable as error:
        return _judge_failed(str(error), other_error=True)
    except Unresponsive as error:
        return _judge_failed(str(error), model_grader_server_error=True, unresponsive_reward_error=True)
    except JudgeFailed as error:
        return _judge_failed(str(error))
