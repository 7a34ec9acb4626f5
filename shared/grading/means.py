"""What graders may use besides the texts before them: judges, a cage for Python, and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from shared.chat_data import Message
from shared.schemas.graders import SamplingParams


class JudgeFailed(Exception):
    """A judge gave no answer; the text says why and may be shown to whoever asked."""


class Unresponsive(JudgeFailed):
    """There was no answer in time."""


class Unscorable(JudgeFailed):
    """A reward model cannot read the conversation: it is too long, or its template does not write it."""


class NotFinite(JudgeFailed):
    """A reward model gave something that is no number."""


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
    def score(self) -> float | None:
        """None where there is a problem."""

    @property
    def problem(self) -> str:
        """Empty, or runtime_error, invalid_value, timeout, memory, output, unavailable."""

    @property
    def details(self) -> str:
        """What the program said of it, or the cage."""


class Cage(Protocol):
    """Runs the Python of strangers."""

    async def grade(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """Return what `grade(sample, item)` of `source` gives."""


class RewardModels(Protocol):
    """Score conversations."""

    async def score(self, model: str, conversation: Sequence[Message]) -> float:
        """Return the finite score of the last message. Raises JudgeFailed."""


class Means(Struct, frozen=True, kw_only=True):
    """What is at hand; without one of them, graders that need it give their error."""

    judge: Judge | None = None
    cage: Cage | None = None
    reward_models: RewardModels | None = None
