"""The model that answers a run's rows: one of this stack, or of a configured endpoint outside."""

from __future__ import annotations

import msgspec

from services.api.batches.answering import Answering
from services.api.batches.slots import Slots
from services.api.graders.judges import Judges
from shared import ids
from shared.errors import NoReplica
from shared.grading.means import JudgeFailed
from shared.grading.outside import Away
from shared.model_records import Access
from shared.schemas.errors import ErrorBody, ErrorResponse

_NO_ANSWER = 502


class Asking:
    """Asks for one key, within the slots of `answering`."""

    def __init__(self, answering: Answering, judges: Judges, slots: Slots, access: Access) -> None:
        self._answering = answering
        self._judges = judges
        self._slots = slots
        self._access = access

    async def answer(self, model: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of a chat completion, or of the refusal when asking again does not help.

        Raises NoReplica when the model is away.
        """
        if not self._judges.is_outside(model):
            return await self._answering.answer(
                "/v1/chat/completions", body, access=self._access, request_id=ids.new_request_id()
            )
        try:
            async with self._slots.of(self._access.project):
                return 200, await self._judges.complete(model, body)
        except Away as error:
            raise NoReplica(str(error)) from error
        except JudgeFailed as error:
            refusal = ErrorBody(message=str(error), type="server_error", code="endpoint_failed")
            return _NO_ANSWER, msgspec.json.encode(ErrorResponse(error=refusal))
