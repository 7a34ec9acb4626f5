"""Models as judges: asked as a run's creator may, later than live requests."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict

from services.api.batches.answering import Answering
from services.api.batches.usage import usage_of
from services.api.evals.questions import refusal_of, stored_answer
from shared import ids
from shared.errors import NoReplica
from shared.grading.run import Answer, JudgeFailed
from shared.model_records import Access
from shared.schemas.graders import SamplingParams

_encode = msgspec.json.Encoder().encode
_SPELT = {"max_completions_tokens": "max_completion_tokens"}
"""What chat completions call the fields of a judge's sampling, where they differ."""


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
        given = {
            _SPELT.get(name, name): value for name, value in asdict(sampling).items() if value not in (None, UNSET)
        }
        body = _encode({"model": model, "messages": messages, "response_format": response_format, **given})
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
