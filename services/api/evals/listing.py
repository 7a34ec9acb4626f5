"""Pages of rows with their results. A page costs what is on it, however many rows the run has."""

from __future__ import annotations

from collections.abc import Sequence

from litestar import Response
from msgspec import Raw

from services.api.gateway.raw_pages import page_of
from shared.errors import NotFound
from shared.eval_records import output_item_id, output_item_number
from shared.store.eval_runs import EvalRunStore, Mark


async def items_of(
    runs: EvalRunStore, run_id: str, *, mark: Mark | None, after: str | None, limit: int, newest_first: bool
) -> Response[bytes]:
    """Form a page of those that have a mark, or of all. Raises NotFound when `after` names none of the run's."""
    marks = await runs.marks(run_id)
    wanted = _wanted(marks, mark, newest_first=newest_first)
    if after is not None:
        place = output_item_number(run_id, after)
        if place is None or not (place < len(marks) and marks[place]):
            raise NotFound(f"No such object to list after: {after[:100]}", param="after")
        wanted = [number for number in wanted if (number < place if newest_first else number > place)]
    shown = wanted[:limit]
    items = await runs.items(run_id, shown)
    return page_of([output_item_id(run_id, one) for one in shown], list(map(Raw, items)), has_more=len(wanted) > limit)


async def item_of(runs: EvalRunStore, run_id: str, item_id: str) -> bytes:
    """Return one row's result. Raises NotFound."""
    number = output_item_number(run_id, item_id)
    found = [] if number is None else await runs.items(run_id, [number])
    if not found:
        raise NotFound(f"No output item found with id '{item_id[:100]}'.", param="output_item_id")
    return found[0]


def _wanted(marks: bytes, mark: Mark | None, *, newest_first: bool) -> Sequence[int]:
    numbers = [number for number, found in enumerate(marks) if (found if mark is None else found == ord(mark))]
    return numbers[::-1] if newest_first else numbers
