"""A request to an alias: which of its models answers, what is kept of it, and whether the shadow answers, too."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx2

from services.api.aliases.choice import takes_canary, user_of
from services.api.aliases.counting import Counting
from services.api.aliases.sampling import Sampling
from services.api.aliases.shadowing import GENERATING, Shadowing
from services.api.aliases.trip import Outcome, Trip
from services.api.errors import UpstreamError
from services.api.gateway.model_names import Meaning
from services.api.gateway.outgoing import Asking, Opener
from shared.alias_records import AliasRecord
from shared.errors import NoReplica, ReplicaLost, SelftuneError, Unavailable

_COUNTED = GENERATING | {"/v1/embeddings"}


@dataclass(frozen=True)
class _Answerer:
    """The model that answers, and since which revision of the alias it has been what it is."""

    meaning: Meaning
    since: int


class Traffic:
    """Opens answers for aliases."""

    def __init__(self, counting: Counting, shadowing: Shadowing, sampling: Sampling) -> None:
        self._counting = counting
        self._shadowing = shadowing
        self._sampling = sampling

    async def open(self, alias: AliasRecord, meaning: Meaning, asking: Asking, send: Opener) -> httpx2.Response:
        """Return the open answer of the alias's target, or of its canary. Raises as Gateway.open does.

        A canary that has no inference server is passed over; its failure is counted all the same.
        """
        if meaning.canary is not None and _is_for_canary(alias, asking):
            try:
                return await self._opened(alias, _Answerer(meaning.canary, alias.canary_since), asking, send)
            except ReplicaLost:
                raise
            except NoReplica:
                pass
        return await self._opened(alias, _Answerer(meaning, alias.target_since), asking, send, shadow=meaning.shadow)

    async def _opened(
        self, alias: AliasRecord, answerer: _Answerer, asking: Asking, send: Opener, *, shadow: Meaning | None = None
    ) -> httpx2.Response:
        drawn = shadow is not None and self._shadowing.draws(alias, asking)
        model = answerer.meaning.target
        sampled = model == alias.target and self._sampling.draws(alias, asking)

        def end(outcome: Outcome) -> None:
            if asking.endpoint in _COUNTED:
                # A request that lets others pass takes as long as these want; that says nothing of the model.
                self._counting.count(alias, answerer.since, model, outcome, timed=asking.priority == 0)
            if drawn and shadow is not None and outcome.ending == "answered":
                self._shadowing.start(alias, shadow, asking, model, outcome, send)
            if sampled and outcome.ending == "answered":
                self._sampling.start(alias, asking, model, outcome)

        trip = Trip(end, keep=drawn or sampled)
        try:
            response = await send(answerer.meaning, asking)
        except asyncio.CancelledError:
            trip.leave()
            raise
        except (SelftuneError, UpstreamError) as error:
            is_ours = isinstance(error, Unavailable) and not isinstance(error, NoReplica)
            if not is_ours:  # trouble of the gateway's own says nothing of the model
                trip.refuse(error)
            raise
        trip.follow(response)
        return response


def _is_for_canary(alias: AliasRecord, asking: Asking) -> bool:
    return alias.canary is not None and takes_canary(alias.uid, alias.canary, user_of(asking.body, asking.sticky))
