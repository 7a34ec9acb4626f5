"""Votes of people on the rows of A/B runs, by row and voter. They live as long as the run's results do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import msgspec

from shared import keys
from shared.ab_records import VoteRecord
from shared.errors import NotFound
from shared.store.client import Client
from shared.store.storage import Storage

_decode = msgspec.json.Decoder(VoteRecord).decode
_encode = msgspec.json.Encoder().encode

_GONE = -1
_AT_ONCE = 1000


class Vote(NamedTuple):
    """A vote with the row's number and who gave it."""

    number: int
    voter: str
    record: VoteRecord


class AbVoteStore:
    """The only writer of votes. They count towards their project's storage, whose default limit is `project_bytes`."""

    def __init__(self, client: Client, *, project_bytes: int | None = None) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=project_bytes)

    async def keep(self, run_id: str, vote: Vote, *, project: str) -> VoteRecord:
        """Keep a vote and return it, or the one that this voter gave on the row before.

        Raises NotFound when the row is gone or was never there, RateLimited.
        """
        field, text = _field(vote.number, vote.voter), _encode(vote.record)
        await self._storage.check_room(project, len(field) + len(text))
        found = [
            keys.eval_run(run_id), keys.eval_items(run_id), keys.ab_votes(run_id), keys.ACTIVE_EVAL_RUNS,
            keys.answers(project), keys.project_bytes(project),
        ]  # fmt: skip
        outcome = await self._client.script("keep_ab_vote", found, [run_id, vote.number, field, text])
        if outcome == _GONE:
            raise NotFound("The pair is gone: its A/B run was deleted, or does not keep it any more.", param="pair")
        return vote.record if outcome == 1 else _decode(outcome)

    async def voted(self, run_id: str, voter: str, numbers: Sequence[int]) -> Sequence[bool]:
        """Tell for each of these rows, at least one, whether somebody has voted on it."""
        fields = [_field(number, voter) for number in numbers]
        return [vote is not None for vote in await self._client.call("HMGET", keys.ab_votes(run_id), *fields)]

    async def all(self, run_id: str) -> AsyncIterator[Vote]:
        """Yield every vote that is there from the beginning to the end of the reading, once, in no order."""
        seen: set[bytes] = set()
        cursor = 0
        while True:
            cursor, found = await self._client.call("HSCAN", keys.ab_votes(run_id), cursor, "COUNT", _AT_ONCE)
            for field, text in found.items():
                if field not in seen:
                    seen.add(field)
                    number, _, voter = field.decode().partition(" ")
                    yield Vote(int(number), voter, _decode(text))
            if not int(cursor):
                return


def _field(number: int, voter: str) -> str:
    return f"{number} {voter}"
