"""How far two sets of conversations or scores are apart, and whether chance alone would take them there.

Population stability index of lengths, languages and character classes: the sum over classes of (p - q) ln(p / q).
Credit scoring takes 0.1 for a small and 0.25 for a large shift (N. Siddiqi, "Credit Risk Scorecards", 2006). Where
nothing has changed it is as a chi-square variable times (1/n + 1/m) (B. Yurdakul and J. Naranjo, "Statistical
properties of the population stability index", Journal of Risk Model Validation 14, 2020), which gives its p value.

Jensen-Shannon divergence of word frequencies (J. Lin, IEEE Transactions on Information Theory 37, 1991), in bits. Words
of one conversation belong together, so chance is told by exchanging whole blocks of conversations, until enough of the
exchanges were as far apart (J. Besag and P. Clifford, "Sequential Monte Carlo p-values", Biometrika 78, 1991).

Means of scores are compared as A. Agresti and B. Caffo do for shares (The American Statistician 54, 2000): each side is
given one score of the least and one of the greatest that was seen, since few scores vary less than what they are of.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from operator import sub
from statistics import NormalDist
from typing import Literal, TypeAlias

from msgspec import Struct

from shared.drift.traits import BUCKETS, Traits

Measure: TypeAlias = Literal["input_length", "input_language", "input_characters", "input_words"]

_BINS = 10
_LEAST_EXPECTED = 5.0
"""Classes of which fewer are expected on either side are put together with their neighbour."""
_SYMBOL_EDGES = (0.02, 0.05, 0.1, 0.2, 0.35)
_EXCHANGES = 1999
_ENOUGH = 10
"""So many exchanges as far apart as what was seen settle that it is chance."""
_AVERAGED = 20
_BLOCKS = 32
_LEAST_BLOCKS = 8


class Shift(Struct, frozen=True, kw_only=True):
    """How far apart two sets are."""

    value: float
    """In the measure's own unit, without what chance adds to it."""
    p_value: float
    """How likely so much is where nothing has changed."""


class Difference(Struct, frozen=True, kw_only=True):
    """How much higher the second mean is."""

    value: float
    lower: float
    upper: float
    p_lower: float
    """How likely so low a second mean is where nothing has changed (one-sided)."""


def input_shifts(before: Sequence[Traits], after: Sequence[Traits]) -> dict[Measure, Shift]:
    """Compare what was asked; both need some conversations. The same ones give the same result."""
    return {
        "input_length": stability(*_in_bins(before, after)),
        "input_language": stability([one.language for one in before], [one.language for one in after]),
        "input_characters": stability([_characters(one) for one in before], [_characters(one) for one in after]),
        "input_words": divergence(before, after),
    }


def stability(before: Sequence[Hashable], after: Sequence[Hashable]) -> Shift:
    """Return the population stability index of classes, each conversation being in one; small classes together."""
    counts = _joined(Counter(before), Counter(after))
    spread = 1 / len(before) + 1 / len(after)
    if len(counts) < 2:
        return Shift(value=0.0, p_value=1.0)
    index = math.fsum(_term((one + 0.5) / len(before), (other + 0.5) / len(after)) for one, other in counts)
    return Shift(value=index, p_value=chi_square_tail(index / spread, len(counts) - 1))


def divergence(before: Sequence[Traits], after: Sequence[Traits], *, seed: int = 0) -> Shift:
    """Return the Jensen-Shannon distance of word frequencies, from 0 to 1: the root of the divergence in bits, less
    what some exchanges of blocks have on the average."""
    drawing = random.Random(seed)
    size = max(1, min(-(-(len(before) + len(after)) // _BLOCKS), min(len(before), len(after)) // _LEAST_BLOCKS))
    # Both sides tell the same; the one of fewer blocks is added up faster.
    fewer, more = sorted((_blocks(before, size, drawing), _blocks(after, size, drawing)), key=len)
    blocks, total = more + fewer, _added(more + fewer)
    seen = _added(fewer)
    order, as_far, tries = _disorder(seen, total), 0, 0
    by_chance: list[float] = []
    while as_far < _ENOUGH and tries < _EXCHANGES:
        exchanged = _added(drawing.sample(blocks, len(fewer)))
        as_far += _disorder(exchanged, total) <= order + 1e-6
        tries += 1
        if len(by_chance) < _AVERAGED:
            by_chance.append(_divergence_of(exchanged, total))
    p_value = as_far / tries if as_far == _ENOUGH else (as_far + 1) / (tries + 1)
    excess = _divergence_of(seen, total) - math.fsum(by_chance) / len(by_chance)
    return Shift(value=math.sqrt(max(0.0, excess)), p_value=p_value)


def difference_of_means(before: Sequence[float], after: Sequence[float], *, level: float = 0.95) -> Difference:
    """Compare two sets of scores, at least one each; the interval is that of the second mean less the first."""
    least, most = min(*before, *after), max(*before, *after)
    (one, one_variance), (other, other_variance) = (_mean([*side, least, most]) for side in (before, after))
    error = math.sqrt(one_variance + other_variance)
    seen = math.fsum(after) / len(after) - math.fsum(before) / len(before)
    if not error:
        return Difference(value=seen, lower=seen, upper=seen, p_lower=1.0 if seen >= 0 else 0.0)
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    centre = other - one
    return Difference(
        value=seen,
        lower=min(seen, centre - half),
        upper=max(seen, centre + half),
        p_lower=NormalDist().cdf(centre / error),
    )


def mean_interval(scores: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of some scores, at least one, and the ends of its interval."""
    mean = math.fsum(scores) / len(scores)
    centre, variance = _mean([*scores, min(scores), max(scores)])
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return mean, min(mean, centre - half), max(mean, centre + half)


def chi_square_tail(value: float, degrees: int) -> float:
    """Return how likely a chi-square variable of so many degrees of freedom, at least 1, is to be larger."""
    half = max(value, 0.0) / 2
    tail, place = (math.erfc(math.sqrt(half)), 0.5) if degrees % 2 else (math.exp(-half), 1.0)
    while place < degrees / 2:
        if half:
            tail += math.exp(place * math.log(half) - half - math.lgamma(place + 1))
        place += 1
    return min(1.0, tail)


def _term(one: float, other: float) -> float:
    return (other - one) * math.log(other / one)


def _in_bins(before: Sequence[Traits], after: Sequence[Traits]) -> tuple[list[int], list[int]]:
    """Sort lengths into the tenths of the first side."""
    ordered = sorted(one.length for one in before)
    edges = sorted({ordered[len(ordered) * place // _BINS] for place in range(1, _BINS)})
    bin_of: Callable[[Traits], int] = lambda one: bisect_right(edges, one.length)  # noqa: E731
    return list(map(bin_of, before)), list(map(bin_of, after))


def _characters(one: Traits) -> int:
    return bisect_right(_SYMBOL_EDGES, one.symbols)


def _joined(before: Counter[Hashable], after: Counter[Hashable]) -> list[tuple[int, int]]:
    """Return the counts of each class; those with too few are one class, in the order of classes next to them."""
    total = before.total() + after.total()
    share = min(before.total(), after.total()) / total
    joined: list[tuple[int, int]] = []
    one = other = 0
    for name in sorted(before.keys() | after.keys(), key=lambda name: (str(type(name)), name)):
        one, other = one + before[name], other + after[name]
        if (one + other) * share >= _LEAST_EXPECTED:
            joined.append((one, other))
            one = other = 0
    if (one or other) and joined:
        joined[-1] = (joined[-1][0] + one, joined[-1][1] + other)
    return joined


def _blocks(traits: Sequence[Traits], size: int, drawing: random.Random) -> list[list[int]]:
    """Return the counts of words in blocks of so many conversations; the rest that makes no block is left out."""
    shuffled = drawing.sample(traits, len(traits))
    found: list[list[int]] = []
    for start in range(0, len(shuffled) - size + 1, size):
        counts = [0] * BUCKETS
        for one in shuffled[start : start + size]:
            for bucket, count in one.words.items():
                counts[bucket % BUCKETS] += count
        found.append(counts)
    return found


def _added(blocks: Sequence[Sequence[int]]) -> list[int]:
    return list(map(sum, zip(*blocks, strict=True)))


def _disorder(here: Sequence[int], total: Sequence[int]) -> float:
    """Return the entropy that is left in words when their side is known, in bits over all of them: the less, the more
    the sides differ. It orders exchanges as the divergence does when sides are weighted by their words."""
    there = list(map(sub, total, here))
    return _weighed((sum(here), sum(there))) - _weighed(here) - _weighed(there)


def _weighed(counts: Sequence[int]) -> float:
    return sum(count * math.log2(count) for count in counts if count)


def _divergence_of(here: Sequence[int], total: Sequence[int]) -> float:
    """Return the divergence, in bits, of the words on one side from the others."""
    sum_here = sum(here)
    sum_there = sum(total) - sum_here
    if not sum_here or not sum_there:
        return 0.0
    bits = 0.0
    for count, every in zip(here, total, strict=True):
        one, other = count / sum_here, (every - count) / sum_there
        middle = (one + other) / 2
        bits += (one * math.log2(one / middle) if one else 0.0) + (other * math.log2(other / middle) if other else 0.0)
    return max(0.0, bits / 2)


def _mean(scores: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the variance of the mean."""
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((one - mean) ** 2 for one in scores) / (len(scores) - 1)
    return mean, variance / len(scores)
