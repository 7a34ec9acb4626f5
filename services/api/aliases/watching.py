"""An alias's monitor at work: samples are graded, and each stretch of time is compared with what was before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from services.api.aliases.proposals import Proposals
from services.api.aliases.quality import compared, means_of
from services.api.aliases.sample_grading import SampleGrading
from services.api.aliases.training_inputs import TrainingInputs
from shared.alias_records import AliasRecord
from shared.drift.traits import Traits
from shared.monitor_records import Sample, TrainingTraits
from shared.schemas.quality import AliasQuality, QualityBaseline, QualityWindow
from shared.store.alias_samples import SampleStore

_log = structlog.get_logger()

_SHOWN_WINDOWS = 50
_PATIENCE_S = 600.0
"""A window is compared so long after its end at the latest, be all its answers graded or not."""


class Watching:
    """Does for one alias at a time what is due."""

    def __init__(
        self, samples: SampleStore, grading: SampleGrading, inputs: TrainingInputs, proposals: Proposals
    ) -> None:
        self._samples = samples
        self._grading = grading
        self._inputs = inputs
        self._proposals = proposals
        self._not_before: dict[tuple[str, int, int], float] = {}
        """When the window is over that an alias's answers of late are in, by what decides on its windows."""

    async def tend(self, alias: AliasRecord, now: float) -> None:
        """Grade what is due, and compare a window that is over. Raises StoreUnavailable."""
        if alias.monitor is None:
            return
        await self._learn_training(alias)
        await self._grading.grade_due(alias, first_until=first_until(alias))
        place = (alias.uid, alias.target_since, alias.monitor.window_s)
        if now < self._not_before.get(place, 0.0) or (window := await self._next_window(alias, now)) is None:
            return
        if window.ends_at > now:
            waiting = {one: until for one, until in self._not_before.items() if until > now}
            self._not_before = {**waiting, place: window.ends_at}
        elif await self._is_settled(alias, window, now):
            await self._compare(alias, window)

    async def shown(self, alias: AliasRecord) -> AliasQuality:
        """Form what has been seen so far."""
        first = await self._samples.first(alias.uid, since=alias.target_since)
        windows = await self._samples.windows(alias.uid, limit=_SHOWN_WINDOWS)
        training = await self._training(alias)
        start = self._start(alias, windows)
        current = [one for one in await self._latest(alias) if one.at >= start]
        return AliasQuality(
            alias=alias.name,
            model=alias.target,
            due_samples=await self._samples.count_due(alias.uid),
            baseline=QualityBaseline(
                training_samples=0 if training is None else len(training.traits),
                training_note="" if training is None else training.note,
                first_samples=len(first),
                first_until=first_until(alias),
                scores=means_of(first, alias.monitor),
            ),
            current=means_of(current, alias.monitor),
            current_samples=len(current),
            windows=list(windows),
        )

    async def _learn_training(self, alias: AliasRecord) -> None:
        """Read the training file of the alias's model, once."""
        assert alias.monitor is not None
        if alias.monitor.baseline.training and await self._training(alias) is None:
            await self._samples.keep_training(alias, await self._inputs.read(alias.target, alias.project))

    async def _training(self, alias: AliasRecord) -> TrainingTraits | None:
        found = await self._samples.training(alias.uid)
        return found if found is not None and found.model == alias.target else None

    async def _next_window(self, alias: AliasRecord, now: float) -> QualityWindow | None:
        """Return the next window in which there are answers, its numbers still missing; None where none can be over.

        Windows follow each other without a gap from the end of the baseline on; empty ones are left out.
        """
        assert alias.monitor is not None
        length_s, start = alias.monitor.window_s, self._start(alias, await self._samples.windows(alias.uid, limit=1))
        if now < start + length_s or await self._samples.newest_at(alias.uid) < start:
            return None
        answered = [one.at for one in await self._latest(alias) if one.at >= start]
        if not answered:
            return None
        start += (min(answered) - start) // length_s * length_s
        number = f"{alias.target_since}-{start:.0f}"
        return QualityWindow(
            id=number,
            model=alias.target,
            starts_at=start,
            ends_at=start + length_s,
            samples=0,
            status="too_few_samples",
        )

    def _start(self, alias: AliasRecord, windows: Sequence[QualityWindow]) -> float:
        """Return where the window after the last one begins."""
        return max(first_until(alias), windows[0].ends_at if windows else 0.0)

    async def _latest(self, alias: AliasRecord) -> Sequence[Sample]:
        return await self._samples.latest(alias.uid, since=alias.target_since)

    async def _is_settled(self, alias: AliasRecord, window: QualityWindow, now: float) -> bool:
        """Tell whether every answer of a window is graded, or was waited for long enough."""
        oldest = await self._samples.due(alias.uid, limit=1)
        return not oldest or oldest[0].at >= window.ends_at or now > window.ends_at + _PATIENCE_S

    async def _compare(self, alias: AliasRecord, window: QualityWindow) -> None:
        assert alias.monitor is not None
        inside = [one for one in await self._latest(alias) if window.starts_at <= one.at < window.ends_at]
        first = await self._samples.first(alias.uid, since=alias.target_since)
        training: Sequence[Traits] = []
        if alias.monitor.baseline.training and (found := await self._training(alias)) is not None:
            training = found.traits
        done = await asyncio.to_thread(compared, window, inside, first=first, training=training, monitor=alias.monitor)
        actions = alias.monitor.actions
        if done.alarms:
            _log.warning("alias.drifted", alias=alias.name, project=alias.project, alarms=done.alarms)
            # First, since the window says that it is over with: whoever dies in between finds the proposal again.
            if "propose_retraining" in actions or "retrain" in actions:
                await self._proposals.propose(alias, done)
        await self._samples.add_window(alias, done, tell=bool(done.alarms) and "webhook" in actions)


def first_until(alias: AliasRecord) -> float:
    """Return the Unix time at which the baseline of an alias's model ends."""
    assert alias.monitor is not None
    assert alias.monitor_set is not None
    return float(max(alias.moved_at, alias.monitor_set.at) + alias.monitor.baseline.first_s)
