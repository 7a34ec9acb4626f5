"""Keeping a share of an alias's chat answers, to be graded later; it begins when the client has its answer.

A sample's text is a stored completion like any other: listed, counted towards the project's storage, and deleted when
its owner says so or its days are over.
"""

from __future__ import annotations

import random
import time

import msgspec
import structlog
from msgspec import Struct

from services.api.aliases.trip import Outcome
from services.api.background import Background
from services.api.gateway.chat_pieces import ChatPieces
from services.api.gateway.outgoing import Asking
from services.api.gateway.sse_pieces import data_of
from services.api.gateway.stored_form import stored_form
from shared.alias_records import AliasRecord
from shared.errors import RateLimited, StoreUnavailable
from shared.monitor_records import DueSample
from shared.store.alias_samples import SampleStore
from shared.store.completions import CompletionStore

_log = structlog.get_logger()

SAMPLED_BY = "selftune_alias"
"""Metadata of the stored completions that a monitor keeps: the alias's name."""
_MAX_BODY_BYTES = 64 << 10
_AT_ONCE = 32
"""Of one process; what is drawn while as many are being kept is left out."""


class _Request(Struct, frozen=True):
    store: bool | None = None
    n: int | None = None


class _Named(Struct, frozen=True):
    id: str = ""


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_named = msgspec.json.Decoder(_Named).decode


class Sampling:
    """Draws answers and keeps them."""

    def __init__(self, samples: SampleStore, completions: CompletionStore) -> None:
        self._samples = samples
        self._completions = completions
        self._background = Background()

    def draws(self, alias: AliasRecord, asking: Asking) -> bool:
        """Tell whether a request's answer is to be kept: of live chat, not of batches and evals."""
        if alias.monitor is None or asking.endpoint != "/v1/chat/completions" or asking.priority > 0:
            return False
        if len(asking.body) > _MAX_BODY_BYTES or len(self._background) >= _AT_ONCE:
            return False
        return random.random() < alias.monitor.sample_rate

    def start(self, alias: AliasRecord, asking: Asking, model: str, outcome: Outcome) -> None:
        """Keep what `model`, to which the alias points, has answered."""
        if not outcome.truncated:
            self._background.start(self._keep_whatever_happens(alias, asking, model, outcome))

    async def close(self) -> None:
        """Finish what is under way."""
        await self._background.close(patience_s=2.0)

    async def _keep_whatever_happens(self, alias: AliasRecord, asking: Asking, model: str, outcome: Outcome) -> None:
        try:
            await self._keep(alias, asking, model, outcome)
        except (StoreUnavailable, RateLimited) as error:
            _log.warning("sample.not_kept", alias=alias.name, reason=error.message)
        except msgspec.MsgspecError:
            _log.warning("sample.not_kept", alias=alias.name, reason="the answer is no chat completion")
        except Exception:  # noqa: BLE001 - nobody waits for it; the log has what went wrong
            _log.error("sample.failed", alias=alias.name, exc_info=True)

    async def _keep(self, alias: AliasRecord, asking: Asking, model: str, outcome: Outcome) -> None:
        assert alias.monitor is not None
        request, answer, now = _decode_request(asking.body), _completion(outcome), time.time()
        completion_id = _decode_named(answer).id
        if not completion_id or (request.n or 1) != 1:
            return
        if not await self._samples.claim(alias, most=alias.monitor.max_samples_per_hour, now=now):
            return
        if not request.store:  # else the client has it stored already
            metadata = {SAMPLED_BY: alias.name}
            stored, messages = stored_form(
                answer, asking.body, metadata, project=alias.project, request_id=asking.request_id
            )
            await self._completions.check_room(alias.project, len(stored.body) + len(messages))
            await self._completions.keep(stored, messages=messages)
        due = DueSample(id=completion_id, at=now, model=model, since=alias.target_since)
        await self._samples.add_due(alias, due)


def _completion(outcome: Outcome) -> bytes:
    """Return an answer as a whole completion, without an id if it has no end. Raises MsgspecError when it is none."""
    if not outcome.is_stream:
        return outcome.kept
    pieces = ChatPieces()
    for event in outcome.kept.split(b"\n\n"):
        data = data_of(event)
        if data not in (None, b"[DONE]"):
            pieces.add(data)
    return pieces.completion() if pieces.complete else b"{}"
