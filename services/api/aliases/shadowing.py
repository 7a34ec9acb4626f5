"""Having a second model answer what the first has answered, behind everybody else, and keeping both answers.

It begins when the client has its answer, which it therefore cannot change, and only where it keeps nobody waiting for
long: on a server that has the second model in memory and at most half of its places taken.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import httpx2
import msgspec
import structlog

from services.api.aliases.answer_text import said, shortened
from services.api.aliases.counting import Counting
from services.api.aliases.trip import Outcome, Trip
from services.api.background import Background
from services.api.errors import UpstreamError
from services.api.gateway.model_names import Meaning
from services.api.gateway.outgoing import Asking, Opener
from shared import ids
from shared.alias_records import AliasRecord
from shared.errors import ReplicaLost, SelftuneError, StoreUnavailable, Unavailable
from shared.rewriting import with_fields
from shared.schemas.aliases import ShadowAnswer
from shared.store.aliases import AliasStore
from shared.store.shadow_pairs import PairStore, StoredPair

_log = structlog.get_logger()

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})

_PRIORITY = 2000
"""Behind batches, too."""
_TIMEOUT_S = 300.0
_MAX_BODY_BYTES = 64 << 10
"""Larger requests are not shadowed, since every pair keeps its request."""
_MAX_TEXT = 32 << 10
"""Characters of an answer that are kept, of text and tool calls together."""


class Shadowing:
    """Runs shadows, a bounded number of them at a time for each alias."""

    def __init__(self, aliases: AliasStore, pairs: PairStore, counting: Counting) -> None:
        self._aliases = aliases
        self._pairs = pairs
        self._counting = counting
        self._running: Counter[str] = Counter()
        self._background = Background()

    def draws(self, alias: AliasRecord, asking: Asking) -> bool:
        """Tell whether the shadow is to answer a request, too."""
        shadow = alias.shadow
        if shadow is None or asking.endpoint not in GENERATING or len(asking.body) > _MAX_BODY_BYTES:
            return False
        return random.random() * 100 < shadow.percent

    def start(
        self, alias: AliasRecord, shadow: Meaning, asking: Asking, model: str, outcome: Outcome, send: Opener
    ) -> None:
        """Ask the shadow what `model` has answered.

        Left out when as many are on as the alias allows, or no server has the shadow in memory and room to spare.
        """
        assert alias.shadow is not None
        if self._running[alias.uid] >= alias.shadow.max_in_flight:
            self._counting.add(alias, alias.revision, shadow.target, "skipped")
            return
        self._running[alias.uid] += 1
        self._background.start(self._run(alias, shadow, asking, model, outcome, send))

    async def close(self) -> None:
        """Give up what is under way."""
        await self._background.close()

    async def _run(
        self, alias: AliasRecord, shadow: Meaning, asking: Asking, model: str, outcome: Outcome, send: Opener
    ) -> None:
        try:
            other = await self._ask(shadow, asking, send)
            self._counting.add(alias, alias.revision, shadow.target, "shadowed")
            await self._keep(alias, asking, _answer(model, asking, outcome), other)
        except StoreUnavailable:
            _log.warning("shadow.not_kept", alias=alias.name, reason="the database does not answer")
        except Unavailable:
            self._counting.add(alias, alias.revision, shadow.target, "skipped")
        except Exception:  # noqa: BLE001 - nobody waits for it; the log has what went wrong
            _log.error("shadow.failed", alias=alias.name, exc_info=True)
        finally:
            self._running[alias.uid] -= 1
            if not self._running[alias.uid]:
                del self._running[alias.uid]

    async def _ask(self, shadow: Meaning, asking: Asking, send: Opener) -> ShadowAnswer:
        """Return the shadow's answer, or why it broke off. Raises Unavailable when nobody has taken the request."""
        ended: list[Outcome] = []
        trip = Trip(ended.append, keep=True)
        # An id of its own: the engine may still know the other request by the one that the client's answer has.
        asked = msgspec.structs.replace(
            asking,
            body=with_fields(asking.body, without={"request_id"}),
            request_id=ids.new_request_id(),
            priority=_PRIORITY,
            on_sent=None,
            at_leisure=True,
        )
        error: str | None = None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                response = await send(shadow, asked)
                trip.follow(response)
                async for _ in response.aiter_raw():
                    pass
        except TimeoutError:
            error = f"There was no whole answer within {_TIMEOUT_S:.0f} s."
        except (SelftuneError, UpstreamError) as refusal:
            if isinstance(refusal, Unavailable) and not isinstance(refusal, ReplicaLost):
                raise
            error = str(refusal)
        except httpx2.TransportError:
            error = "The inference server went away in the middle of the answer."
        trip.end("answered" if error is None else "failed")
        return _answer(shadow.target, asked, ended[0], error)

    async def _keep(self, alias: AliasRecord, asking: Asking, answer: ShadowAnswer, other: ShadowAnswer) -> None:
        """Keep a pair, unless the shadow was taken off or the alias deleted meanwhile."""
        current = await self._aliases.find(alias.name, project=alias.project)
        if current is None or current.uid != alias.uid or current.shadow is None:
            return
        now, kept = int(time.time()), current.shadow
        pair = StoredPair(
            created_at=now,
            expires_at=now + kept.keep_s,
            request_id=asking.request_id,
            endpoint=asking.endpoint,
            request=msgspec.Raw(asking.body),
            answer=answer,
            shadow=other,
        )
        await self._pairs.keep(alias, pair, most=kept.keep_pairs, keep_s=kept.keep_s)


def _answer(model: str, asking: Asking, outcome: Outcome, error: str | None = None) -> ShadowAnswer:
    found = said(asking.endpoint, outcome.kept, is_stream=outcome.is_stream)
    kept = shortened(found, _MAX_TEXT)
    failed = outcome.ending == "failed" and error is None
    return ShadowAnswer(
        model=model,
        error="The inference server broke its answer off with an error." if failed else error,
        text=kept.text,
        tool_calls=kept.tool_calls,
        truncated=outcome.truncated or kept != found,
        first_byte_ms=outcome.first_byte_ms,
        total_ms=outcome.total_ms,
        input_tokens=outcome.usage.input_tokens,
        output_tokens=outcome.usage.output_tokens,
    )
