"""Judges and reward models of a run: asked with patience, since nobody waits and a row's result is for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.api.batches.answering import Answering
from services.api.batches.slots import Slots
from services.api.evals.failing import MODEL_GONE, RunFailed
from services.api.evals.questions import refusal_of
from services.api.graders.judges import Judges
from shared import ids
from shared.chat_data import Message
from shared.errors import NoReplica
from shared.grading.asking import read_answer, wanted
from shared.grading.means import Answer, JudgeFailed, Unresponsive
from shared.grading.outside import Away
from shared.model_records import Access
from shared.reward_scoring import NoTrainer, RewardScoring, UnknownModel
from shared.schemas.evals import EvalError
from shared.schemas.graders import SamplingParams


class PatientJudge:
    """Asks for one key, within the slots of `answering`; `judges` asks the configured servers."""

    def __init__(self, answering: Answering, judges: Judges, slots: Slots, access: Access) -> None:
        self._answering = answering
        self._judges = judges
        self._slots = slots
        self._access = access

    async def ask(
        self, model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
    ) -> Answer:
        """Return the answer, however long that takes. Raises JudgeFailed for what lies in the question.

        Raises NoReplica when the judge is away, so that the run rests, and RunFailed when its model is gone.
        """
        if self._judges.is_outside(model):
            return await self._ask_outside(model, messages, sampling, response_format)
        status, body = await self._answering.answer(
            "/v1/chat/completions",
            wanted(model, messages, sampling, response_format),
            access=self._access,
            request_id=ids.new_request_id(),
        )
        if status == 200:
            return read_answer(model, body)
        refusal = refusal_of(body)
        if refusal.code == MODEL_GONE:
            raise RunFailed(refusal)
        raise JudgeFailed(refusal.message)

    async def _ask_outside(
        self, model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
    ) -> Answer:
        try:
            async with self._slots.of(self._access.project):
                return await self._judges.of(self._access).ask(model, messages, sampling, response_format)
        except Away as error:
            raise NoReplica(str(error)) from error


class PatientRewardModels:
    """Has conversations scored for one key."""

    def __init__(self, reward_models: RewardScoring, access: Access) -> None:
        self._reward_models = reward_models
        self._access = access

    async def score(self, model: str, conversation: Sequence[Message]) -> float:
        """Return the score of the last message. Raises JudgeFailed for what lies in the conversation.

        Raises NoReplica when no trainer answers, so that the run rests, and RunFailed when the model is gone.
        """
        try:
            return await self._reward_models.score(model, conversation, self._access)
        except (NoTrainer, Unresponsive) as error:
            raise NoReplica(str(error)) from error
        except UnknownModel as error:
            raise RunFailed(EvalError(code=MODEL_GONE, message=str(error))) from error
