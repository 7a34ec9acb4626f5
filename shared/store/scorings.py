"""Requests to reward models and the answers: any process asks, any trainer that is alive scores.

A request is taken for the time of a lease, which its taker renews; when that one dies, another takes it. It vanishes
with the patience of whoever asked. Answers go into a stream of the process that asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from shared import keys
from shared.chat_data import Message
from shared.errors import TooLarge
from shared.store.client import Argument, Client

MAX_WAITING = 1024
"""Requests of all processes together, those that are being scored included."""
MAX_REQUEST_BYTES = 1 << 20
"""Longest request, as JSON."""
REPLIES_S = 600
_MAX_REPLIES = 10_000
_PIECE = 100


class ScoringRequest(Struct, frozen=True, kw_only=True):
    """A conversation whose last message a reward model is to score."""

    id: str
    asker: str
    """The process that waits for the answer."""
    model: str
    base: str
    base_fingerprint: str
    sha256: str
    """Of the model's adapter."""
    messages: list[Message]


class ScoringReply(Struct, frozen=True, kw_only=True):
    """A score, or why there is none."""

    id: str
    score: float | None = None
    """None where it is not finite, too."""
    problem: str = ""
    is_unscorable: bool = False
    """Whether the problem is the conversation, and would be the same another time."""


class Taken(Struct, frozen=True):
    """A request, and how often it was taken by now."""

    request: ScoringRequest
    takes: int


_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(ScoringRequest).decode
_decode_reply = msgspec.json.Decoder(ScoringReply).decode


class ScoringStore:
    """The queue of requests, and the answers by process that asked."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def add(self, request: ScoringRequest, *, lifetime_s: float) -> bool:
        """Queue a request for so long; False where too many wait. Raises TooLarge."""
        record = _encode(request)
        if len(record) > MAX_REQUEST_BYTES:
            raise TooLarge(f"The conversation has {len(record)} bytes; {MAX_REQUEST_BYTES} are the most.")
        added = await self._client.script(
            "add_scoring",
            [keys.SCORINGS, keys.scoring(request.id)],
            [
                request.id,
                record,
                f"{request.sha256} {request.base}",
                max(1, int(lifetime_s * 1000)),
                MAX_WAITING,
                keys.scoring(""),
            ],
        )
        return bool(added)

    async def take(self, *, most: int, lease_s: float) -> list[Taken]:
        """Take requests to one model, the one that has waited longest; without an answer they are due after the lease.

        The first of them was queued first.
        """
        found = await self._client.script("take_scorings", [keys.SCORINGS], [keys.scoring(""), lease_s, most])
        return [Taken(_decode_request(raw), takes) for raw, takes in found]

    async def hold(self, request_ids: Sequence[str], *, lease_s: float) -> None:
        """Have requests due again in so many seconds, those that are not answered."""
        arguments: list[Argument] = [lease_s, *request_ids]
        await self._client.script("hold_scorings", [keys.SCORINGS], arguments)

    async def hand_back(self, request_ids: Sequence[str], *, due_s: float) -> None:
        """Undo a take: have requests that are not answered due again in so many seconds, and count it no more."""
        arguments: list[Argument] = [keys.scoring(""), due_s, *request_ids]
        await self._client.script("hand_back_scorings", [keys.SCORINGS], arguments)

    async def answer(self, asker: str, replies: Sequence[ScoringReply]) -> None:
        """End requests of one process with their answers."""
        stream = keys.scoring_replies(asker)
        ids = [reply.id for reply in replies]
        await self._client.together(
            [
                ("ZREM", keys.SCORINGS, *ids),
                ("DEL", *map(keys.scoring, ids)),
                *(("XADD", stream, "MAXLEN", "~", _MAX_REPLIES, "*", "reply", _encode(reply)) for reply in replies),
                ("EXPIRE", stream, REPLIES_S),
            ]
        )

    async def withdraw(self, request_id: str) -> None:
        """Drop a request that nobody waits for any more."""
        await self._client.together([("ZREM", keys.SCORINGS, request_id), ("DEL", keys.scoring(request_id))])

    async def replies(self, asker: str, after: str, *, block_ms: int) -> tuple[str, list[ScoringReply]]:
        """Wait up to `block_ms` for answers behind `after`, "0-0" at first; returns the place of the last, and them."""
        found = await self._client.call(
            "XREAD", "COUNT", _PIECE, "BLOCK", block_ms, "STREAMS", keys.scoring_replies(asker), after
        )
        entries = found[0][1] if found else []
        replies = [_decode_reply(fields[b"reply"]) for _, fields in entries]
        return (entries[-1][0].decode() if entries else after), replies
