"""Sampled answers, graded behind everybody else's requests; what was asked is noted without its text."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from services.api.evals.questions import output_text, shown_messages, stored_answer
from services.api.graders.running import Graders
from shared.alias_records import AliasRecord
from shared.drift.traits import asked_text, traits_of
from shared.errors import NotFound
from shared.grading.run import grade
from shared.model_records import Access
from shared.monitor_records import DueSample, Sample
from shared.schemas.graders import Grader
from shared.store.alias_samples import SampleStore
from shared.store.completions import CompletionStore

_PRIORITY = 2000
"""Of judges: behind batches and evals, too."""
_AT_ONCE = 4
_A_ROUND = 64
_BEING_STORED_S = 60.0
"""A completion that the client itself has stored may be written a little later than its sample."""

_decode_messages = msgspec.json.Decoder(list[Any]).decode


class SampleGrading:
    """Grades what is due of an alias."""

    def __init__(self, samples: SampleStore, completions: CompletionStore, graders: Graders) -> None:
        self._samples = samples
        self._completions = completions
        self._graders = graders

    async def grade_due(self, alias: AliasRecord, *, first_until: float) -> None:
        """Grade some of what is due, a few at a time. Raises StoreUnavailable."""
        due = iter(await self._samples.due(alias.uid, limit=_A_ROUND))

        async def work() -> None:
            for one in due:
                await self._take(alias, one, first_until)

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))

    async def _take(self, alias: AliasRecord, due: DueSample, first_until: float) -> None:
        sample: Sample | None = None
        if alias.monitor is not None and due.since == alias.target_since:
            try:
                sample = await self._graded(alias, due, alias.monitor.graders)
            except NotFound:  # deleted by its owner, or being stored just now
                if time.time() < due.at + _BEING_STORED_S:
                    return
            except (msgspec.MsgspecError, RecursionError):  # no completion that could be graded
                pass
        await self._samples.keep(alias, due, sample, window=_window_of(alias, due, first_until))

    async def _graded(self, alias: AliasRecord, due: DueSample, graders: list[Grader]) -> Sample:
        completion = await self._completions.get(due.id, project=alias.project)
        messages = _decode_messages(await self._completions.messages(due.id, project=alias.project))
        item = {
            "id": completion.id,
            "model": completion.model,
            "metadata": completion.metadata,
            "input": messages,
            "messages": messages,
            "output": output_text(completion.body),
        }
        spoken = stored_answer(completion.body, shown_messages(messages)).spoken
        access = Access(project=alias.project) if alias.monitor_set is None else alias.monitor_set.access(alias.project)
        means = self._graders.means(
            self._graders.judges.of(access, priority=_PRIORITY), self._graders.reward_models.of(access)
        )
        grades = [await grade(one, item=item, sample=spoken, means=means) for one in graders]
        return Sample(
            id=due.id,
            at=due.at,
            model=due.model,
            since=due.since,
            traits=await asyncio.to_thread(traits_of, asked_text(messages)),
            scores={one.name: one.reward for one in grades if not one.errors},
        )


def _window_of(alias: AliasRecord, due: DueSample, first_until: float) -> float | None:
    """Return the Unix time at which the window of an answer begins; None for an answer of the baseline."""
    if alias.monitor is None or due.at < first_until:
        return None
    length_s = alias.monitor.window_s
    return first_until + (due.at - first_until) // length_s * length_s
