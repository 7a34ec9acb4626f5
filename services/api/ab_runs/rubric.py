"""What a judge is asked about two answers, and whether that can be asked."""

from __future__ import annotations

from collections.abc import Iterator

from services.api.graders.running import Graders
from shared.errors import InvalidRequest
from shared.grading.templates import Path, parse
from shared.schemas.ab_runs import AbJudge
from shared.schemas.graders import GraderMessage, InputAudio, InputImage, LabelModelGrader, Part

PLACES = ("first", "second")
CHOICES = [*PLACES, "tie"]
"""What a judge may say."""

_SYSTEM = """You compare two answers to the same task. Judge what they say: whether it is right, whether it does what \
the task asks, and whether it is clear. Neither length nor the order in which they stand makes an answer better. \
Result: "first" if the first answer is better, "second" if the second one is, "tie" if they are equally good."""
_USER = """The task:
{{ item }}

The first answer:
{{ sample.first.output_text }}

The second answer:
{{ sample.second.output_text }}"""
_USUAL = [GraderMessage(role="system", content=_SYSTEM), GraderMessage(role="user", content=_USER)]


def grader_of(judge: AbJudge) -> LabelModelGrader:
    """Form the grader that asks it."""
    return LabelModelGrader(
        name="judge",
        model=judge.model,
        input=judge.input or _USUAL,
        labels=CHOICES,
        passing_labels=[],
        sampling_params=judge.sampling_params,
    )


async def check_judge(judge: AbJudge, graders: Graders) -> None:
    """Raise InvalidRequest, naming the field, for a question that could not be asked, or that leaves an answer out."""
    grader = grader_of(judge)
    await graders.check(grader, where="judge")
    paths = [path for message in grader.input for path in _paths(message) if path[0] == "sample"]
    foreign = [path for path in paths if len(path) > 1 and path[1] not in PLACES]
    if foreign:
        raise _refused(f"'sample.{str(foreign[0][1])[:100]}' is neither 'sample.first' nor 'sample.second'")
    if ("sample",) not in paths and not {path[1] for path in paths if len(path) > 1} >= set(PLACES):
        raise _refused("it shows the judge one answer at most; name both 'sample.first' and 'sample.second'")


def _paths(message: GraderMessage) -> Iterator[Path]:
    parts = message.content if isinstance(message.content, list) else [message.content]
    for part in parts:
        yield from (piece for piece in parse(_text(part)) if not isinstance(piece, str))


def _text(part: str | Part) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, InputAudio):
        return part.input_audio.data
    return part.image_url if isinstance(part, InputImage) else part.text


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'judge.input': {reason}.", code="invalid_value", param="judge.input")
