"""Whether the models that a grader asks are there, and may be asked by whoever names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from services.api.gateway.model_names import Meaning, ModelNames
from services.api.graders.judges import Judges
from shared.errors import InvalidRequest, NotFound
from shared.grading.parts import parts_of
from shared.model_records import Access
from shared.records import AdapterRecord
from shared.schemas.graders import Grader, LabelModelGrader, MultiGrader, RewardModelGrader, ScoreModelGrader

_Asking: TypeAlias = ScoreModelGrader | LabelModelGrader | RewardModelGrader


async def check_judges(grader: Grader, access: Access, *, names: ModelNames, judges: Judges, where: str) -> None:
    """Raise NotFound, naming the field below `where`, for a model that does not exist or is not for this key.

    Raises InvalidRequest where it is no reward model and has to be one. Whether judges outside this server exist is not
    asked.
    """
    for field, part in _asking(grader, where):
        is_reward = isinstance(part, RewardModelGrader)
        if not is_reward and judges.is_outside(part.model):
            continue
        try:
            meaning = await names.look_up(part.model, access)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=field) from error
        if is_reward and not _is_reward_model(meaning, part.model):
            raise InvalidRequest(
                f"'{part.model}' is not the name of a reward model.", code="invalid_value", param=field
            )


def _is_reward_model(meaning: Meaning, name: str) -> bool:
    return meaning.target == name and isinstance(meaning.model, AdapterRecord) and meaning.model.kind == "reward"


def _asking(grader: Grader, where: str) -> Iterator[tuple[str, _Asking]]:
    """Yield each grader that asks a model, with the field that names it."""
    if isinstance(grader, MultiGrader):
        for name, part in parts_of(grader, where=where).items():
            yield from _asking(part, f"{where}.graders.{name}")
    elif isinstance(grader, ScoreModelGrader | LabelModelGrader | RewardModelGrader):
        yield f"{where}.model", grader
