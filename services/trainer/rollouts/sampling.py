"""Answers to prompts: what is asked of an inference server, and what it says that it has sampled."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import Struct, field

from services.trainer.failures import TrainingFailed
from services.trainer.protocol import ReinforcementSpec, WantRollouts
from services.trainer.rollouts.replicas import AnswerUnusable, QuestionRefused, Replicas
from services.trainer.rollouts.rows import Row
from services.trainer.rollouts.scoring import scored
from services.trainer.rollouts.waiting import Waiting
from services.trainer.stores import persist
from shared.errors import NoReplica
from shared.records import AdapterRecord, JobRecord
from shared.rollout_records import RolloutGroup, RolloutSample

_MODEL_DEFAULT = "default"
MOST_UNUSABLE = 5
"""So many answers to a prompt that are of no use fail the job; the pauses between them add up to half a minute."""


class _Token(Struct):
    logprob: float


class _Logprobs(Struct):
    content: list[_Token] | None = None


class _Message(Struct):
    content: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


class _Choice(Struct):
    index: int
    message: _Message
    finish_reason: str
    token_ids: list[int]
    logprobs: _Logprobs


class _Completion(Struct):
    choices: list[_Choice]
    prompt_token_ids: list[int]


_decode = msgspec.json.Decoder(_Completion).decode


class Sampling:
    """Samples for one job."""

    def __init__(
        self, replicas: Replicas, waiting: Waiting, record: JobRecord, chosen: ReinforcementSpec, *, reads_tools: bool
    ) -> None:
        """`reads_tools` tells whether the servers read calls of tools out of answers."""
        self._replicas = replicas
        self._waiting = waiting
        self._seed = record.seed
        self._asked: dict[str, Any] = {
            "temperature": chosen.temperature,
            "max_completion_tokens": chosen.max_completion_tokens,
            "logprobs": True,
            "return_token_ids": True,
            "tool_choice": "auto" if reads_tools else "none",
            **_of_method(record),
        }
        self._has_form = self._asked.get("response_format", {}).get("type", "text") != "text"

    async def group(self, policy: AdapterRecord, row: Row, wanted: WantRollouts) -> RolloutGroup:
        """Return a prompt's answers, not graded yet; waits as long as no server answers.

        Raises TrainingFailed when a server refuses the prompt, or answers it with what is of no use again and again.
        """
        body = msgspec.json.encode(self._request(policy, row, wanted))
        role = "validation" if wanted.validation else "training"
        unusable = 0
        while True:
            try:
                return await self._answered(policy, row, body, wanted.samples)
            except QuestionRefused as error:
                raise TrainingFailed(
                    f"The inference server refuses line {row.line} of the {role} file: {error.message}",
                    code="prompt_refused",
                    param=f"{role}_file",
                ) from error
            except AnswerUnusable as error:
                unusable += 1
                if unusable == MOST_UNUSABLE:
                    raise TrainingFailed(
                        f"Line {row.line} of the {role} file had no answer that can be used, in {unusable} tries: "
                        f"{error.message}",
                        code="answers_unusable",
                    ) from error
                await self._waiting.pause(error.message, times=2 ** (unusable - 1))
            except NoReplica as error:
                await self._waiting.pause(error.message)

    async def _answered(self, policy: AdapterRecord, row: Row, body: bytes, samples: int) -> RolloutGroup:
        """Ask once. Raises as Replicas.ask does."""
        answer = await persist(lambda: self._replicas.ask(body, base=policy.base, model=policy.name))
        group = read_group(row, answer, samples)
        return await scored(self._replicas, policy, group) if self._has_form else group

    def _request(self, policy: AdapterRecord, row: Row, wanted: WantRollouts) -> dict[str, Any]:
        asked = {name: value for name, value in self._asked.items() if row.tools or name != "tool_choice"}
        tools = {"tools": row.tools} if row.tools else {}
        seed = sampling_seed(self._seed, wanted.step, row.line, validation=wanted.validation)
        return {
            "model": policy.name,
            "messages": row.messages,
            "n": wanted.samples,
            "seed": seed,
            **asked,
            **tools,
        }


def _of_method(record: JobRecord) -> dict[str, Any]:
    """Return what the job's method says of every answer."""
    method, chosen = record.reinforcement, record.resolved_reinforcement
    asked: dict[str, Any] = {}
    if method is not None and method.response_format is not None:
        asked["response_format"] = method.response_format
    hyperparameters = chosen or (method and method.hyperparameters)
    if hyperparameters and hyperparameters.reasoning_effort != _MODEL_DEFAULT:
        asked["reasoning_effort"] = hyperparameters.reasoning_effort
    return asked


def sampling_seed(job_seed: int, step: int, line: int, *, validation: bool) -> int:
    """Return the seed of a prompt's first answer in a step; vLLM gives answer i of a request the seed i above it."""
    text = f"{job_seed}\0{step}\0{int(validation)}\0{line}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def read_group(row: Row, answer: bytes, samples: int) -> RolloutGroup:
    """Read a completion of vLLM's. Raises AnswerUnusable when it is not what was asked for."""
    try:
        completion = _decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AnswerUnusable("the inference server's answer could not be read") from error
    choices = sorted(completion.choices, key=lambda choice: choice.index)
    if len(choices) != samples:
        raise AnswerUnusable(f"the inference server gave {len(choices)} answers where {samples} were asked for")
    return RolloutGroup(
        line=row.line,
        prompt_tokens=completion.prompt_token_ids,
        item=row.item,
        samples=[_sample(choice) for choice in choices],
    )


def _sample(choice: _Choice) -> RolloutSample:
    logprobs = [token.logprob for token in choice.logprobs.content or ()]
    if len(logprobs) != len(choice.token_ids):
        raise AnswerUnusable(
            f"the inference server sent {len(choice.token_ids)} tokens and {len(logprobs)} log probabilities"
        )
    return RolloutSample(
        tokens=choice.token_ids,
        logprobs=logprobs,
        text=choice.message.content or "",
        tool_calls=choice.message.tool_calls or None,
        finish_reason=choice.finish_reason,
    )
