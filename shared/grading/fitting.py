"""Whether the rows of a file have what a grader's templates name, before a model is asked anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

import msgspec

from shared.grading.checking import texts_of
from shared.grading.parts import parts_of
from shared.grading.templates import Path, UnknownVariable, look_up, parse
from shared.json_lines import read_lines
from shared.schemas.graders import Grader, MultiGrader, StringCheckGrader, TextSimilarityGrader


def unfit_row(path: FilePath, grader: Grader) -> str:
    """Say which row first lacks what the grader's templates name as `item.…`; empty where all rows have everything.

    The file is one of JSON objects, one a line, that has been checked. What a grader in Python looks at is not known.
    Raises OSError.
    """
    wanted = [place for place in dict.fromkeys(_paths_of(grader)) if place[0] == "item"]
    if not wanted:
        return ""
    for number, line in read_lines(path):
        namespaces = {"item": msgspec.json.decode(line)}
        for place in wanted:
            try:
                look_up(place, namespaces)
            except UnknownVariable as error:
                return f"line {number}: it has no {error}, which the grader's template names"
    return ""


def _paths_of(grader: Grader) -> Iterator[Path]:
    for template in _templates_of(grader):
        yield from (piece for piece in parse(template) if not isinstance(piece, str))


def _templates_of(grader: Grader) -> Iterator[str]:
    if isinstance(grader, MultiGrader):
        for part in parts_of(grader).values():
            yield from _templates_of(part)
    elif isinstance(grader, StringCheckGrader | TextSimilarityGrader):
        yield from (grader.input, grader.reference)
    else:
        for message in getattr(grader, "input", None) or ():
            yield from (text for _, text in texts_of(message, ""))
