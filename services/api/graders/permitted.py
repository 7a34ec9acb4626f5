"""Whether the models that a grader asks are there, and may be asked by whoever names them."""

from __future__ import annotations

from collections.abc import Iterator

from services.api.gateway.model_names import ModelNames
from services.api.graders.judges import Judges
from shared.errors import NotFound
from shared.grading.parts import parts_of
from shared.model_records import Access
from shared.schemas.graders import Grader, LabelModelGrader, MultiGrader, ScoreModelGrader


async def check_judges(grader: Grader, access: Access, *, names: ModelNames, judges: Judges, where: str) -> None:
    """Raise NotFound, naming the field below `where`, for a judge that does not exist or is not for this key.

    Whether those outside this server exist is not asked.
    """
    for field, model in _judges_of(grader, where):
        if judges.is_outside(model):
            continue
        try:
            await names.look_up(model, access)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=field) from error


def _judges_of(grader: Grader, where: str) -> Iterator[tuple[str, str]]:
    """Yield (field, model) of each judge."""
    if isinstance(grader, MultiGrader):
        for name, part in parts_of(grader, where=where).items():
            yield from _judges_of(part, f"{where}.graders.{name}")
    elif isinstance(grader, ScoreModelGrader | LabelModelGrader):
        yield f"{where}.model", grader.model
