"""People's votes: which pair a voter sees next, and what is kept of the vote.

Which answer stands first is drawn for each voter and row from the run's salt, which is never shown, and so is the row
that a voter begins at. So nothing is written when a pair is shown; the pair's token has the row, the voter, and a code
that only this server can make.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from services.api.ab_runs.run import decode_spec
from shared.ab_records import AbSpec, VoteRecord
from shared.errors import InvalidRequest, NotFound
from shared.schemas.ab_runs import AbItem, AbNext, AbPair, AbVote, CreateAbVote, Side
from shared.store.ab_votes import AbVoteStore, Vote
from shared.store.eval_runs import AB_MARKS, EvalRunStore, Found

_log = structlog.get_logger()

_PREFIX = "abpair_"
_CODE_BYTES, _NUMBER_BYTES = 12, 4
_AT_ONCE = 500
_TO_VOTE_ON = bytes(ord(AB_MARKS[status]) for status in ("a", "b", "tie", "unjudged", "error"))

_decode_item = msgspec.json.Decoder(AbItem).decode


class _Shown(NamedTuple):
    """What a token stands for."""

    number: int
    voter: str


class Voting:
    """Shows pairs and takes votes. A voter who is shown a pair and does not vote is shown it again."""

    def __init__(self, runs: EvalRunStore, votes: AbVoteStore) -> None:
        self._runs = runs
        self._votes = votes

    async def next(self, run_id: str, voter: str, *, eval_id: str, project: str) -> AbNext:
        """Return a pair that this voter has not voted on, blind. Raises NotFound."""
        spec = await self._spec(run_id, eval_id, project)
        marks = await self._runs.marks(run_id)
        numbers = [number for number, mark in enumerate(marks) if mark in _TO_VOTE_ON]
        start = random.Random(f"{spec.salt} {voter}").randrange(len(numbers) or 1)
        number = await self._first_unseen(run_id, voter, numbers[start:] + numbers[:start])
        texts = [] if number is None else await self._runs.items(run_id, [number])
        pair = _pair(spec, _decode_item(texts[0]), voter) if texts else None
        return AbNext(ab_run_id=run_id, voter=voter, pair=pair)

    async def vote(self, run_id: str, given: CreateAbVote, *, eval_id: str, project: str) -> AbVote:
        """Count a vote; the same one twice is the same as once.

        Raises NotFound, RateLimited, and InvalidRequest for a pair that was not shown here, or was voted on otherwise.
        """
        spec = await self._spec(run_id, eval_id, project)
        shown = _read_token(spec, given.pair)
        record = VoteRecord(choice=given.choice, first=_first(spec, shown), created_at=int(time.time()))
        kept = await self._votes.keep(run_id, Vote(shown.number, shown.voter, record), project=project)
        if kept.choice != given.choice:
            raise InvalidRequest(
                f"This voter has said '{kept.choice}' to this pair before; a voter has one vote on each.",
                code="already_voted",
                param="pair",
            )
        _log.info("ab_run.voted", run_id=run_id)
        return AbVote(ab_run_id=run_id, voter=shown.voter, choice=kept.choice, created_at=kept.created_at)

    async def _spec(self, run_id: str, eval_id: str, project: str) -> AbSpec:
        found: Found = await self._runs.find(run_id, eval_id=eval_id, project=project, kind="ab")
        return decode_spec(found.source)

    async def _first_unseen(self, run_id: str, voter: str, numbers: Sequence[int]) -> int | None:
        for start in range(0, len(numbers), _AT_ONCE):
            some = numbers[start : start + _AT_ONCE]
            for number, voted in zip(some, await self._votes.voted(run_id, voter, some), strict=True):
                if not voted:
                    return number
        return None


def _pair(spec: AbSpec, item: AbItem, voter: str) -> AbPair:
    shown = _Shown(item.datasource_item_id, voter)
    first, second = (item.a, item.b) if _first(spec, shown) == "a" else (item.b, item.a)
    return AbPair(pair=_token(spec, shown), item=item.datasource_item, input=item.input, first=first, second=second)


def _first(spec: AbSpec, shown: _Shown) -> Side:
    """Draw whose answer stands first."""
    return "a" if random.Random(f"{spec.salt} {shown.number} {shown.voter}").random() < 0.5 else "b"


def _token(spec: AbSpec, shown: _Shown) -> str:
    content = shown.number.to_bytes(_NUMBER_BYTES) + shown.voter.encode()
    return _PREFIX + base64.urlsafe_b64encode(_code(spec, content) + content).decode().rstrip("=")


def _read_token(spec: AbSpec, token: str) -> _Shown:
    """Raises InvalidRequest for one that is none of this run's."""
    text = token.removeprefix(_PREFIX)
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        code, content = raw[:_CODE_BYTES], raw[_CODE_BYTES:]
        if token == text or len(content) <= _NUMBER_BYTES or not hmac.compare_digest(code, _code(spec, content)):
            raise _unknown_pair()
        return _Shown(int.from_bytes(content[:_NUMBER_BYTES]), content[_NUMBER_BYTES:].decode())
    except (UnicodeError, binascii.Error) as error:
        raise _unknown_pair() from error


def _code(spec: AbSpec, content: bytes) -> bytes:
    return hashlib.blake2b(content, key=spec.salt.encode(), digest_size=_CODE_BYTES).digest()


def _unknown_pair() -> NotFound:
    return NotFound("This A/B run has shown no such pair; ask for the next one.", param="pair")
