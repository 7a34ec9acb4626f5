"""Running a grader: whatever its kind, whatever a sample does to it, a Grade comes out."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from shared.schemas.graders import Grader, GraderErrors, JudgeUsage, SamplingParams


class JudgeFailed(Exception):
    """A judge gave no answer; the text says why and may be shown to whoever asked."""


class Answer(Struct, frozen=True, kw_only=True):
    """What a judge said, and its cost in tokens."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    refusal: str | None = None


class Judge(Protocol):
    """Has models answer."""

    async def ask(
        self, model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
    ) -> Answer:
        """Return the answer to messages in chat completions' form. Raises JudgeFailed."""


class Outcome(Protocol):
    """What came of a Python grader: a finite score, or a problem with its details."""

    @property
    def score(self) -> float | None: ...
    @property
    def problem(self) -> str: ...
    @property
    def details(self) -> str: ...


class Cage(Protocol):
    """Runs the Python of strangers."""

    async def grade(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """Run `grade(sample, item)` of `source`."""


class Means(Struct, frozen=True, kw_only=True):
    """What graders may use; without one, graders that need it give their error."""

    judge: Judge | None = None
    cage: Cage | None = None


class Grade(Struct, frozen=True, kw_only=True):
    """What a grader made of a sample."""

    name: str
    type: str
    reward: float
    """Finite; 0 when `errors` has any."""
    passed: bool | None
    """None where the grader has nothing that says what passes."""
    sub_rewards: dict[str, float]
    """Of a multi grader: each grader's score by its name in the formula."""
    errors: GraderErrors
    usage: dict[str, JudgeUsage]
    """By judge."""
    sampled_model_name: str | None
    """The judge; None without one, or with several."""
    seconds: float


async def grade(grader: Grader, *, item: dict[str, Any], sample: dict[str, Any], means: Means) -> Grade:
    """Grade one sample. What sample, item, judge or program cause is in the grade's `errors`; nothing is raised."""
    raise NotImplementedError


def check(grader: Grader, *, where: str) -> None:
    """Raise InvalidRequest, naming the field below `where`, for a grader that could not grade anything.

    Looks at templates and their namespaces, formulas and their names, labels, ranges and sizes; asks nobody.
    """
    raise NotImplementedError
