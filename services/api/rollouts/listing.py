"""Pages of rollouts: in the order of their steps, in each as the step asked for them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from services.api.rollouts.files import RolloutFiles
from shared.errors import NotFound
from shared.rollout_records import Place, RolloutGroup
from shared.schemas.paging import Page
from shared.schemas.rollouts import Rollout

_ID = re.compile(r"rollout_(train|valid)_(\d{1,9})_(\d{1,9})_(\d{1,9})")
_OWN_KEYS = ("messages", "tools")


class Wanted(NamedTuple):
    """Which rollouts a list has; None is any."""

    step: int | None = None
    validation: bool | None = None
    line: int | None = None

    def has(self, place: Place) -> bool:
        return self.step in (None, place.step) and self.validation in (None, place.validation)


class _Cursor(NamedTuple):
    place: Place
    line: int
    sample: int


async def rollouts_of(
    files: RolloutFiles, job_id: str, wanted: Wanted, *, after: str | None, limit: int, newest_first: bool
) -> Page[Rollout]:
    """Form a page; `newest_first` turns the steps round. Raises NotFound when `after` names none of the job's."""
    known = {place: at for place, at in (await files.places(job_id)).items() if wanted.has(place)}
    places = [*known] if wanted.line is None else await files.with_line(job_id, known, wanted.line)
    if newest_first:
        places.reverse()
    cursor = None if after is None else _cursor(after)
    if cursor is not None:
        places = places[places.index(cursor.place) :] if cursor.place in places else []
    found: list[Rollout] = []
    async with aclosing(_following(files, job_id, places, wanted, cursor, after)) as following:
        async for rollout in following:
            if len(found) == limit:
                return _page(found, has_more=True)
            found.append(rollout)
    return _page(found, has_more=False)


async def _following(
    files: RolloutFiles,
    job_id: str,
    places: Sequence[Place],
    wanted: Wanted,
    cursor: _Cursor | None,
    after: str | None,
) -> AsyncGenerator[Rollout]:
    """Yield those behind the cursor. Raises NotFound when it is nowhere."""
    is_behind = cursor is None
    for place in places:
        lines = () if wanted.line is None else (wanted.line,)
        async with aclosing(files.groups(job_id, place, lines=lines)) as groups:
            async for group in groups:
                for number in range(len(group.samples)):
                    if is_behind:
                        yield _rollout(job_id, place, group, number)
                    else:
                        is_behind = (place, group.line, number) == cursor
        if not is_behind:
            break  # its file is the first one
    if not is_behind:
        raise NotFound(f"No such object to list after: {(after or '')[:100]}", param="after")


def _cursor(after: str) -> _Cursor:
    found = _ID.fullmatch(after)
    if found is None:
        raise NotFound(f"No such object to list after: {after[:100]}", param="after")
    step, line, sample = map(int, found.groups()[1:])
    return _Cursor(Place(step, found[1] == "valid"), line, sample)


def _page(found: list[Rollout], *, has_more: bool) -> Page[Rollout]:
    first, last = (found[0].id, found[-1].id) if found else ("", "")
    return Page(data=found, first_id=first, last_id=last, has_more=has_more)


def _rollout(job_id: str, place: Place, group: RolloutGroup, number: int) -> Rollout:
    sample, kind = group.samples[number], "valid" if place.validation else "train"
    return Rollout(
        id=f"rollout_{kind}_{place.step}_{group.line}_{number}",
        fine_tuning_job_id=job_id,
        step=place.step,
        validation=place.validation,
        line=group.line,
        sample=number,
        messages=group.item.get("messages", []),
        tools=group.item.get("tools"),
        item={name: value for name, value in group.item.items() if name not in _OWN_KEYS},
        output_text=sample.text,
        output_tools=sample.tool_calls,
        finish_reason=sample.finish_reason,
        reward=sample.reward,
        scores=sample.scores,
        errors=sample.errors,
        error_details=sample.detail,
        prompt_tokens=len(group.prompt_tokens),
        completion_tokens=len(sample.tokens),
    )
