"""Where exported preferences come from: those that are stored, or what was said in an A/B run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec
from msgspec import Raw

from services.api.ab_runs.run import decode_spec
from services.api.preferences.statements import Better, Conversation, Judgement, Labelled, Opinion
from shared.ab_records import AbSpec
from shared.errors import NotFound
from shared.preference_data import PreferenceExample, check_preference
from shared.preference_records import PreferenceRecord
from shared.schemas.ab_runs import AbItem
from shared.schemas.evals import SampleMessage
from shared.store.ab_votes import AbVoteStore, Vote
from shared.store.eval_runs import AB_MARKS, EvalRunStore
from shared.store.preferences import PreferenceStore, Wanted

_decode = msgspec.json.decode
_decode_item = msgspec.json.Decoder(AbItem).decode


class OpinionSources:
    """Reads opinions, oldest first or in the order of rows; twice in a row they are the same but for new ones."""

    def __init__(self, preferences: PreferenceStore, runs: EvalRunStore, votes: AbVoteStore) -> None:
        self._preferences = preferences
        self._runs = runs
        self._votes = votes

    async def stored(self, project: str, wanted: Wanted) -> AsyncIterator[Opinion]:
        """Yield what stored preferences say."""
        async for record in self._preferences.all(project, wanted):
            yield _stored(record)

    async def check_ab_run(self, run_id: str, project: str) -> None:
        """Raises NotFound when it is unknown, or belongs to another project."""
        await self._spec(run_id, project)

    async def voted(self, run_id: str, project: str, wanted: Wanted) -> AsyncIterator[Opinion]:
        """Yield what people said in an A/B run."""
        spec = await self._spec(run_id, project)
        votes = [vote async for vote in self._votes.all(run_id) if _is_wanted(vote, wanted)]
        votes.sort(key=lambda vote: (vote.number, vote.record.created_at, vote.voter))
        by_row = {number: [*some] for number, some in groupby(votes, key=lambda vote: vote.number)}
        async for item in self._items(run_id, [*by_row]):
            for vote in by_row[item.datasource_item_id]:
                yield _opinion(spec, item, vote.voter, vote.record.winner)

    async def judged(self, run_id: str, project: str) -> AsyncIterator[Opinion]:
        """Yield what the judge of an A/B run said of each row that it has judged."""
        spec = await self._spec(run_id, project)
        winners = {ord(AB_MARKS[name]): name for name in ("a", "b", "tie")}
        marks = await self._runs.marks(run_id)
        numbers = [number for number, mark in enumerate(marks) if mark in winners]
        async for item in self._items(run_id, numbers):
            yield _opinion(spec, item, "the judge", winners[marks[item.datasource_item_id]])

    async def _spec(self, run_id: str, project: str) -> AbSpec:
        for record in await self._runs.read([run_id]):
            if record.project == project:
                found = await self._runs.find(run_id, eval_id=record.eval_id, project=project, kind="ab")
                return decode_spec(found.source)
        raise NotFound(f"No A/B run found with id '{run_id[:100]}'.", param="ab_run_id")

    async def _items(self, run_id: str, numbers: Sequence[int]) -> AsyncIterator[AbItem]:
        async for texts in self._runs.many_items(run_id, numbers):
            for text in texts:
                yield _decode_item(text)


def _is_wanted(vote: Vote, wanted: Wanted) -> bool:
    return wanted.voter in (None, vote.voter) and wanted.is_between(vote.record.created_at)


def _stored(record: PreferenceRecord) -> Opinion:
    if record.label is not None:
        says: Judgement = Labelled(_json(record.output), record.label)
    else:
        says = Better(_json(record.preferred_output), _json(record.non_preferred_output))
    return Opinion(record.id, record.voter or record.id, _json(record.input), [says])


def _json(raw: Raw) -> Any:
    return _decode(bytes(raw))


def _opinion(spec: AbSpec, item: AbItem, who: str, winner: str) -> Opinion:
    a, b = ([_message(one) for one in side] for side in (item.a, item.b))
    asked = _asked(spec, item)
    is_sound = asked is not None and _is_sound(asked, a, b)
    return Opinion(f"{item.datasource_item_id} {who}", who, asked if is_sound else None, [*_said(winner, a, b)])


def _said(winner: str, a: Conversation, b: Conversation) -> Iterator[Judgement]:
    """Yield what a choice says: nothing of a tie, and of `neither` that none of them is good."""
    if winner in ("a", "b") and a != b:
        yield Better(a, b) if winner == "a" else Better(b, a)
    elif winner == "neither":
        yield Labelled(a, False)
        if a != b:
            yield Labelled(b, False)


def _asked(spec: AbSpec, item: AbItem) -> dict[str, Any] | None:
    """Return what the answers reply to: what both models were asked, or the messages that the row itself holds.

    None where that is not the same for both, or not all there.
    """
    if spec.tools_differ or item.input_status in ("differs", "shortened"):
        return None
    messages: Any = [_message(one) for one in item.input]
    if not messages:
        messages = item.datasource_item.get("input") or item.datasource_item.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    return {"messages": messages, **({"tools": spec.tools} if spec.tools else {})}


def _is_sound(asked: dict[str, Any], a: Conversation, b: Conversation) -> bool:
    """Tell whether it could be a line of a training file."""
    line = {"input": asked, "preferred_output": a, "non_preferred_output": b}
    try:
        check_preference(msgspec.convert(line, PreferenceExample))
    except (ValueError, msgspec.ValidationError):
        return False
    return True


def _message(message: SampleMessage) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(message)
    return found
