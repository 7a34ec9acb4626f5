"""How likely the model finds answers that were sampled under a `response_format`.

The form hides tokens from the sampler, and vLLM 0.32 tells log probabilities among those that are left. Training goes
by the model's own, so the answer is read once more, without a form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.trainer.rollouts.replicas import AnswerUnusable, Replicas
from services.trainer.stores import persist
from shared.records import AdapterRecord
from shared.rollout_records import RolloutGroup, RolloutSample


class _Read(Struct):
    logprob: float


class _Written(Struct):
    token_logprobs: list[float]


class _Choice(Struct):
    prompt_logprobs: list[dict[str, _Read] | None]
    logprobs: _Written


class _Completion(Struct):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Completion).decode


async def scored(replicas: Replicas, policy: AdapterRecord, group: RolloutGroup) -> RolloutGroup:
    """Return the group with the model's own log probabilities. Raises as Replicas.ask does."""
    samples = await asyncio.gather(
        *(_scored(replicas, policy, group.prompt_tokens, sample) for sample in group.samples)
    )
    return replace(group, samples=samples)


async def _scored(
    replicas: Replicas, policy: AdapterRecord, prompt: Sequence[int], sample: RolloutSample
) -> RolloutSample:
    body = msgspec.json.encode(_request(policy.name, prompt, sample.tokens))
    answer = await persist(lambda: replicas.ask(body, base=policy.base, model=policy.name, path="/v1/completions"))
    return replace(sample, logprobs=read_scores(answer, sample.tokens))


def _request(model: str, prompt: Sequence[int], answer: Sequence[int]) -> dict[str, Any]:
    """Have all but the answer's last token read, and that one written: with it the context might be too long."""
    return {
        "model": model, "prompt": [*prompt, *answer[:-1]], "prompt_logprobs": 0, "max_tokens": 1,
        "allowed_token_ids": [answer[-1]], "logprobs": 0,
    }  # fmt: skip


def read_scores(answer: bytes, tokens: Sequence[int]) -> list[float]:
    """Read the log probability of each token, in nats. Raises AnswerUnusable when one is not there."""
    try:
        [choice] = _decode(answer).choices
        read = choice.prompt_logprobs[len(choice.prompt_logprobs) - len(tokens) + 1 :]
        found = [at[str(token)].logprob for at, token in zip(read, tokens[:-1], strict=True) if at is not None]
        [last] = choice.logprobs.token_logprobs
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, KeyError) as error:
        raise AnswerUnusable("the inference server's log probabilities could not be read") from error
    if len(found) != len(tokens) - 1:
        raise AnswerUnusable("the inference server left out log probabilities")
    return [*found, last]
