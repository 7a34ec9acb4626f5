"""Models as judges: asked as a run's creator may, later than live requests."""

from __future__ import annotations

from typing import Any

import msgspec

from services.api.batches.answering import Answering
from services.api.batches.usage import usage_of
from services.api.evals.questions import refusal_of, stored_answer
from shared import ids
from shared.errors import NoReplica
from shared.grading.run import Answer, JudgeFailed
from shared.model_records import Access
from shared.schemas.graders import SamplingParams

_encode = msgspec.json.Encoder().encode


class GatewayJudge:
    """Asks this server's models. `is_away` tells whether one had no server when it was asked."""

    def __init__(self, answering: Answering, access: Access) -> None:
        self._answering = answering
        self._access = access
        self.is_away = False

    async def ask(
        self, model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
    ) -> Answer:
        """Return what a model says. Raises JudgeFailed."""
        fields = {
            "model": model,
            "messages": messages,
            "response_format": response_format,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "max_completion_tokens": sampling.max_completions_tokens,
            "reasoning_effort": sampling.reasoning_effort,
        }
        body = _encode({name: value for name, value in fields.items() if value is not None})
        try:
            status, answer = await self._answering.answer(
                "/v1/chat/completions", body, access=self._access, request_id=ids.new_request_id()
            )
        except NoReplica as error:
            self.is_away = True
            raise JudgeFailed(error.message) from error
        if status != 200:
            raise JudgeFailed(refusal_of(answer).message)
        usage = usage_of(answer)
        found = stored_answer(answer, [])
        return Answer(
            text=found.sample.output[0].content,
            prompt_tokens=usage.input_tokens,
            completion_tokens=usage.output_tokens,
            cached_tokens=usage.input_tokens_details.cached_tokens,
            refusal=None,
        )
