"""Judges of a reinforcement job: models of this stack that its project may use, asked at replicas directly.

Here is noted, too, whether any of those that a grader asks is away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from services.trainer.rollouts.replicas import QuestionRefused, Replicas
from services.trainer.stores import Stores
from shared.alias_records import is_alias_name
from shared.chat_data import Message
from shared.errors import SelftuneError, Unavailable
from shared.grading.means import Answer, Judge, JudgeFailed, RewardModels, Unresponsive
from shared.grading.outside import Busy
from shared.key_hash import KeyHash
from shared.model_defaults import with_defaults
from shared.model_records import Access
from shared.records import AdapterRecord
from shared.reward_scoring import NoTrainer
from shared.rewriting import with_fields, with_text
from shared.schemas.graders import SamplingParams
from shared.store.registry import Found, Known, unknown_model

_CHAT = "/v1/chat/completions"


class StackModels:
    """Asks for a job's project. An alias of the project is the model that it points to, without its canary."""

    def __init__(self, stores: Stores, replicas: Replicas, project: str) -> None:
        self._stores = stores
        self._replicas = replicas
        self._access = Access(project=project)
        # Its own corner of the engines' prefix caches: what a judge was asked cannot be told from answering times.
        self._salt = KeyHash(stores.internal_key()).cache_salt(project)

    async def ask(self, model: str, body: bytes) -> bytes:
        """Return a completion's body. Raises Busy where asking again may help, else JudgeFailed."""
        try:
            name, known = await self._look_up(model)
            if name != model:
                body = with_fields(body, model=name)
            if known.settings is not None:
                body = with_defaults(_CHAT, body, known.settings)
            body = with_text(body, "cache_salt", self._salt)
            return await self._replicas.ask(body, base=_base(model, known), model=name, path=_CHAT)
        except QuestionRefused as error:
            raise JudgeFailed(error.message) from error
        except SelftuneError as error:
            raise (Busy if isinstance(error, Unavailable) else JudgeFailed)(error.message) from error

    async def _look_up(self, model: str) -> tuple[str, Known]:
        """Return a model's own name and what is known of it; the operator's aliases come first. Raises NotFound."""
        aliases = self._stores.settings.model_aliases
        name = aliases.get(model, model)
        found = await self._stores.registry.find(
            name, self._access, alias=model not in aliases and is_alias_name(model)
        )
        if found.own is not None:
            return name, found.own
        return _pointed(found, model)


def _pointed(found: Found, model: str) -> tuple[str, Known]:
    if found.alias is None or found.alias.target not in found.named:
        raise unknown_model(model)
    return found.alias.target, found.named[found.alias.target]


def _base(model: str, known: Known) -> str:
    """Return the base whose servers answer. Raises JudgeFailed for a model that writes nothing."""
    if not isinstance(known.model, AdapterRecord):
        return known.model.id
    if known.model.kind == "reward":
        raise JudgeFailed(f"the model '{model}' is a reward model: it scores answers and writes none")
    return known.model.served_on


class Noting:
    """Passes questions on to judges and reward models; `are_away` says that one may answer later, and did not now."""

    def __init__(self, judge: Judge, reward_models: RewardModels) -> None:
        self.are_away = False
        self._judge = judge
        self._reward_models = reward_models

    async def ask(
        self, model: str, messages: list[dict[str, Any]], sampling: SamplingParams, response_format: dict[str, Any]
    ) -> Answer:
        """Return the answer of a judge. Raises JudgeFailed."""
        with self._noting():
            return await self._judge.ask(model, messages, sampling, response_format)

    async def score(self, model: str, conversation: Sequence[Message]) -> float:
        """Return the score of a reward model. Raises JudgeFailed."""
        with self._noting():
            return await self._reward_models.score(model, conversation)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (Busy, NoTrainer, Unresponsive):
            self.are_away = True
            raise
