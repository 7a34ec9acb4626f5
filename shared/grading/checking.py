"""Whether a grader is sound: everything that can be known before there is anything to grade."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from shared.errors import InvalidRequest
from shared.grading import formula, templates
from shared.grading.formula import FormulaError
from shared.grading.parts import parts_of
from shared.grading.templates import TemplateError
from shared.schemas.graders import (
    Grader,
    GraderMessage,
    InputAudio,
    InputImage,
    LabelModelGrader,
    MultiGrader,
    Part,
    PythonGrader,
    RewardModelGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)

_PARSED_CHARS = 8192
_GRADE = re.compile(r"^def\s+grade\s*\(", re.MULTILINE)


def check(grader: Grader, *, where: str) -> None:
    """Raise InvalidRequest, naming the field below `where`, for a grader that could not grade anything.

    Looks at templates and their namespaces, formulas and their names, labels, ranges and sizes; asks nobody, and runs
    no program.
    """
    match grader:
        case StringCheckGrader():
            _check_texts(grader, where)
        case TextSimilarityGrader():
            _check_texts(grader, where)
            _check_metric(grader, where)
        case ScoreModelGrader():
            _check_messages(grader.input, where)
            _check_range(grader, where)
        case LabelModelGrader():
            _check_messages(grader.input, where)
            _check_labels(grader, where)
        case PythonGrader():
            _check_source(grader, where)
        case RewardModelGrader():
            _check_conversation(grader, where)
            _check_range(grader, where)
        case MultiGrader():
            _check_multi(grader, where)


def _refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{field}': {reason}.", code="invalid_value", param=field)


def _check_template(text: str, field: str) -> None:
    try:
        templates.parse(text)
    except TemplateError as error:
        raise _refused(field, str(error)) from error


def _check_texts(grader: StringCheckGrader | TextSimilarityGrader, where: str) -> None:
    _check_template(grader.input, f"{where}.input")
    _check_template(grader.reference, f"{where}.reference")


def _check_metric(grader: TextSimilarityGrader, where: str) -> None:
    if grader.evaluation_metric == "cosine":
        raise _refused(
            f"{where}.evaluation_metric",
            "cosine compares embeddings, and graders have no embedding model here; use fuzzy_match, bleu, gleu, meteor "
            "or rouge, or compute vectors at /v1/embeddings of a base that makes them",
        )


def _check_messages(messages: list[GraderMessage], where: str) -> None:
    for number, message in enumerate(messages):
        for field, text in texts_of(message, f"{where}.input[{number}].content"):
            _check_template(text, field)


def texts_of(message: GraderMessage, field: str) -> Iterator[tuple[str, str]]:
    """Yield (field, template) of each text in a message that stands at `field`."""
    if not isinstance(message.content, list):
        yield field, _text(message.content)
        return
    for number, part in enumerate(message.content):
        yield f"{field}[{number}]", _text(part)


def _text(part: str | Part) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, InputAudio):
        return part.input_audio.data
    return part.image_url if isinstance(part, InputImage) else part.text


def _check_conversation(grader: RewardModelGrader, where: str) -> None:
    if not grader.input:
        return
    for number, message in enumerate(grader.input):
        _check_template(message.content, f"{where}.input[{number}].content")
    if grader.input[0].role == "assistant":
        raise _refused(f"{where}.input[0].role", "no message that asks comes before the assistant's")
    if grader.input[-1].role != "assistant":
        raise _refused(f"{where}.input", "its last message is the answer that is scored, and has the role assistant")


def _check_range(grader: ScoreModelGrader | RewardModelGrader, where: str) -> None:
    low, high = grader.bounds or (0.0, 1.0)
    if not low < high:
        raise _refused(f"{where}.range", f"it is [least, greatest], and {low:g} is not below {high:g}")


def _check_labels(grader: LabelModelGrader, where: str) -> None:
    if len(set(grader.labels)) < len(grader.labels):
        raise _refused(f"{where}.labels", "a label is there twice")
    foreign = [label for label in grader.passing_labels if label not in grader.labels]
    if foreign:
        raise _refused(f"{where}.passing_labels", f"'{foreign[0][:100]}' is none of the labels")


def _check_source(grader: PythonGrader, where: str) -> None:
    """A long program's other faults are found when it runs: parsing it would hold up whoever else is asking."""
    field = f"{where}.source"
    try:
        if len(grader.source) <= _PARSED_CHARS:
            ast.parse(grader.source)
    except SyntaxError as error:
        raise _refused(field, f"line {error.lineno}: {error.msg}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise _refused(field, "it cannot be read as Python") from error
    if not _GRADE.search(grader.source):
        raise _refused(field, "it has no `def grade(sample, item)`")


def _check_multi(grader: MultiGrader, where: str) -> None:
    parts = parts_of(grader, where=where)
    for name, part in parts.items():
        if not formula.is_name(name):
            raise _refused(
                f"{where}.graders",
                f"formulas cannot speak of '{name[:100]}'; use letters, digits and _, and no word of Python's",
            )
        check(part, where=f"{where}.graders.{name}")
    try:
        formula.check(grader.calculate_output, parts.keys())
    except FormulaError as error:
        raise _refused(f"{where}.calculate_output", str(error)) from error
