"""Whether the models that a grader asks are there, and may be asked by whoever names them."""

from __future__ import annotations

from collections.abc import Iterator

from services.api.gateway.model_names import Meaning, ModelNames
from services.api.graders.judges import Judges
from shared.errors import InvalidRequest, NotFound
from shared.grading.parts import parts_of
from shared.model_records import Access
from shared.records import AdapterRecord
from shared.schemas.graders import Grader, LabelModelGrader, MultiGrader, RewardModelGrader, ScoreModelGrader

_Asking = LabelModelGrader | RewardModelGrader | ScoreModelGrader


async def check_judges(grader: Grader, access: Access, *, names: ModelNames, judges: Judges, where: str) -> None:
    """Raise NotFound, naming the field below `where`, for a model that does not exist or is not for this key.

    Whether judges outside this server exist is not asked. Raises InvalidRequest for a reward model that is none.
    """
    for field, asking in _asking(grader, where):
        if isinstance(asking, RewardModelGrader):
            _check_reward_model(await _found(asking.model, access, names, field), asking.model, field)
        elif not judges.is_outside(asking.model):
            await _found(asking.model, access, names, field)


def asks_models(grader: Grader) -> bool:
    """Tell whether a grader, or a part of it, has a model answer or score."""
    return any(True for _ in _asking(grader, "grader"))


def _check_reward_model(found: Meaning, name: str, field: str) -> None:
    is_reward = isinstance(found.model, AdapterRecord) and found.model.kind == "reward"
    if found.target != name or not is_reward:
        raise InvalidRequest(f"'{name}' is not the name of a reward model.", code="invalid_value", param=field)


async def _found(model: str, access: Access, names: ModelNames, field: str) -> Meaning:
    try:
        return await names.look_up(model, access)
    except NotFound as error:
        raise NotFound(error.message, code=error.code, param=field) from error


def _asking(grader: Grader, where: str) -> Iterator[tuple[str, _Asking]]:
    """Yield each grader that asks a model, with its field."""
    if isinstance(grader, MultiGrader):
        for name, part in parts_of(grader, where=where).items():
            yield from _asking(part, f"{where}.graders.{name}")
    elif isinstance(grader, _Asking):
        yield f"{where}.model", grader
