"""Signs of reward hacking in a job's rollouts, found as its steps come, by what these were like.

A model that is rewarded learns what the grader measures, not what its author meant (Amodei et al. 2016,
arXiv:1606.06565, section 4). What shows it first, without a person reading answers:

    length      answers become twice or half as long while the reward rises (Singhal et al. 2023, arXiv:2310.03716:
                much of what a reward model gives is for length)
    repetition  answers say the same again (Holtzman et al. 2019, arXiv:1904.09751)
    drift       of the parts of a multi grader one rises while another falls
    agreement   a part that agreed with the others on which answers are good does so no longer

The first WINDOW steps are compared with the WINDOW steps up to each later one, so that one odd batch raises no alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations
from statistics import StatisticsError, correlation, fmean, stdev

from shared.rollout_records import RolloutHeader
from shared.schemas.rollouts import RolloutAlarm

WINDOW = 5
"""Steps at each end that are compared; without twice as many there is nothing to say."""
LENGTH_FACTOR = 2.0
REPEATED_SHARE = 0.2
"""Share of repeated n-grams from which on answers count as repetitive, if they had half of it or less at first."""
N_GRAM = 4
SIGNIFICANT_ERRORS = 3.0
"""How many standard errors a mean has to move to have risen or fallen, and by LEAST_MOVE at least."""
LEAST_MOVE = 0.02
AGREED, DISAGREED = 0.3, 0.0
"""Correlations from which a part counts as agreeing with the others, and below which it does not."""


class Watch:
    """What the alarms of one job depend on: its first steps, its latest ones, and which were raised."""

    def __init__(self) -> None:
        self._first: list[RolloutHeader] = []
        self._last: deque[RolloutHeader] = deque(maxlen=WINDOW)
        self._seen = 0
        self._raised: set[tuple[str, str | None]] = set()

    def add(self, step: RolloutHeader) -> list[RolloutAlarm]:
        """Return the alarms that a training step is the first to raise; steps come once each, in order from step 1."""
        self._seen += 1
        if self._seen <= WINDOW:
            self._first.append(step)
        self._last.append(step)
        if self._seen < 2 * WINDOW:
            return []
        found: dict[tuple[str, str | None], RolloutAlarm] = {}
        for alarm in _met(self._first, self._last):
            found.setdefault((alarm.kind, alarm.grader), alarm)
        fresh = [alarm for key, alarm in found.items() if key not in self._raised]
        self._raised |= found.keys()
        return fresh


def alarms(history: Iterable[RolloutHeader]) -> list[RolloutAlarm]:
    """Return each alarm at the step at which it was first met, oldest first.

    `history` are the training steps' rollouts in order from step 1. Earlier ones decide nothing anew: with one more
    step, the list is the same and perhaps longer.
    """
    watch = Watch()
    return [alarm for step in history for alarm in watch.add(step)]


def repeated_share(answers: Sequence[Sequence[int]]) -> float:
    """Return the share of 4-grams of tokens that stood in the same answer before, from 0 to 1, over all answers."""
    total = repeated = 0
    for tokens in answers:
        grams = [tuple(tokens[at : at + N_GRAM]) for at in range(len(tokens) - N_GRAM + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def agreement(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return how each grader's scores correlate with the mean of the others', from -1 to 1, over these answers.

    Scores are brought to one scale first. Graders that gave every answer the same, or have no others, are left out.
    """
    columns = {name: column for name in (scores[0] if scores else ()) if (column := _standardised(scores, name))}
    found: dict[str, float] = {}
    for name, column in columns.items():
        others = [other for key, other in columns.items() if key != name]
        if not others:
            continue
        try:
            found[name] = correlation(column, [fmean(values) for values in zip(*others, strict=True)])
        except StatisticsError:  # the others cancel out
            continue
    return found


def _standardised(scores: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """Return a grader's scores with mean 0 and deviation 1; empty where they do not vary or one is missing."""
    column = [answer[name] for answer in scores if name in answer]
    if len(column) < max(2, len(scores)) or not (spread := stdev(column)):
        return []
    mean = fmean(column)
    return [(score - mean) / spread for score in column]


def _met(first: Sequence[RolloutHeader], last: Sequence[RolloutHeader]) -> Iterator[RolloutAlarm]:
    yield from _length(first, last)
    yield from _repetition(first, last)
    yield from _drift(first, last)
    yield from _agreement(first, last)


def _length(first: Sequence[RolloutHeader], last: Sequence[RolloutHeader]) -> Iterator[RolloutAlarm]:
    before, now = (fmean(step.stats.completion_tokens_mean for step in window) for window in (first, last))
    changed = now >= LENGTH_FACTOR * before or now * LENGTH_FACTOR <= before
    if before and changed and _move(first, last, lambda step: step.stats.reward_mean) > 0:
        way = "longer" if now > before else "shorter"
        yield RolloutAlarm(
            kind="length",
            step=last[-1].step,
            message=f"Answers become much {way} while the reward rises: {before:.0f} tokens at first, {now:.0f} now",
            before=before,
            now=now,
        )


def _repetition(first: Sequence[RolloutHeader], last: Sequence[RolloutHeader]) -> Iterator[RolloutAlarm]:
    before, now = (fmean(step.stats.repeated_share for step in window) for window in (first, last))
    if now >= REPEATED_SHARE and now >= 2 * before:
        yield RolloutAlarm(
            kind="repetition",
            step=last[-1].step,
            message=f"Answers repeat themselves: {now:.0%} of their {N_GRAM}-grams were there before, {before:.0%} at "
            "first",
            before=before,
            now=now,
        )


def _drift(first: Sequence[RolloutHeader], last: Sequence[RolloutHeader]) -> Iterator[RolloutAlarm]:
    names = [name for name in first[0].stats.scores if all(name in step.stats.scores for step in (*first, *last))]
    moves = {name: _move(first, last, partial(_score, name=name)) for name in names}
    for rising, falling in permutations(names, 2):
        if moves[rising] > 0 > moves[falling]:
            before, now = (fmean(step.stats.scores[falling] for step in window) for window in (first, last))
            yield RolloutAlarm(
                kind="drift",
                step=last[-1].step,
                message=f"'{rising}' rises while '{falling}' falls: the latter gave {before:.2f} at first, {now:.2f} "
                "now",
                grader=falling,
                before=before,
                now=now,
            )


def _score(step: RolloutHeader, *, name: str) -> float:
    return step.stats.scores[name]


def _agreement(first: Sequence[RolloutHeader], last: Sequence[RolloutHeader]) -> Iterator[RolloutAlarm]:
    for name in {name: None for step in first for name in step.stats.agreement}:
        known = [
            [step.stats.agreement[name] for step in window if name in step.stats.agreement] for window in (first, last)
        ]
        if min(map(len, known)) <= WINDOW // 2:
            continue
        before, now = map(fmean, known)
        if before >= AGREED and now <= DISAGREED:
            yield RolloutAlarm(
                kind="agreement",
                step=last[-1].step,
                message=f"'{name}' no longer agrees with the other graders on which answers are good: correlation "
                f"{before:.2f} at first, {now:.2f} now",
                grader=name,
                before=before,
                now=now,
            )


def _move(first: Sequence[RolloutHeader], last: Sequence[RolloutHeader], of: Callable[[RolloutHeader], float]) -> float:
    """Return by how much a mean has risen from the first steps to the last; 0 where that may be chance."""
    before, now = ([of(step) for step in window] for window in (first, last))
    moved = fmean(now) - fmean(before)
    error = math.sqrt(_variance(before) / len(before) + _variance(now) / len(now))
    return moved if abs(moved) >= max(LEAST_MOVE, SIGNIFICANT_ERRORS * error) else 0.0


def _variance(values: Sequence[float]) -> float:
    """Return the variance of at least two numbers; that of `statistics` computes with fractions, 50 times as long."""
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)
