"""Whether one of two runs over the same rows is better, or only luckier.

McNemar's exact test for what passes (Q. McNemar, Psychometrika 12, 1947): of the rows that only one run passes, as many
should be the one's as the other's if neither is better. A paired bootstrap for scores (B. Efron and R. Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13): rows are drawn with their difference, so what makes a row hard for
both does not count. Where few rows differ, a bootstrap sees less luck than there is; so those have to pass Wilcoxon's
signed-rank test as well (F. Wilcoxon, Biometrics Bulletin 1, 1945).

For votes between two: the exact interval of a share (C. Clopper and E. Pearson, Biometrika 26, 1934), which holds one
half exactly where McNemar's test says that chance explains the votes; and how far two who judge the same things agree
beyond chance (J. Cohen, Educational and Psychological Measurement 20, 1960).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

SIGNIFICANT = 0.05
_RESAMPLES = 2000
_MOST_RANKED = 50
_EXACT = 1e-12
_MOST_BLOCKS = 256
"""More rows are put into so many blocks, which are drawn instead: as good for a mean, and the time stays bounded. A
random byte draws one of them."""


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of so many rows that one run alone passed, and so many that the other did."""
    count = only_first + only_second
    if only_first == only_second:
        return 1.0
    log_all = math.lgamma(count + 1) - count * math.log(2)
    tail = math.fsum(
        math.exp(log_all - math.lgamma(place + 1) - math.lgamma(count - place + 1))
        for place in range(min(only_first, only_second) + 1)
    )
    return min(1.0, 2 * tail)


def exact_interval(hits: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share of which `hits` in `count`, at least one, were seen."""
    cut = (1 - level) / 2
    return _least_share(hits, count, cut), 1 - _least_share(count - hits, count, cut)


def _least_share(hits: int, count: int, cut: float) -> float:
    """Return the share under which so many hits or more have the probability `cut`."""
    if hits == 0:
        return 0.0
    low, high = 0.0, hits / count
    while high - low > _EXACT:
        middle = (low + high) / 2
        low, high = (middle, high) if _upper_tail(hits, count, middle) < cut else (low, middle)
    return (low + high) / 2


def _upper_tail(hits: int, count: int, share: float) -> float:
    """Return the probability of `hits` or more in `count`, where `share` is between 0 and hits / count."""
    odds = share / (1 - share)
    term = math.exp(
        math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
        + hits * math.log(share) + (count - hits) * math.log1p(-share)
    )  # fmt: skip
    total = 0.0
    for place in range(hits, count + 1):
        total += term
        term *= (count - place) / (place + 1) * odds
        if term < _EXACT * total:
            break
    return total


def kappa(counts: Mapping[tuple[str, str], int]) -> float | None:
    """Return Cohen's kappa of how often one said the first and the other the second label of each pair.

    1 is full agreement, 0 what chance gives. None where chance alone would agree always, or nothing was counted.
    """
    total = sum(counts.values())
    firsts, seconds = Counter[str](), Counter[str]()
    for (first, second), count in counts.items():
        firsts[first] += count
        seconds[second] += count
    by_chance = sum(firsts[label] * seconds[label] for label in firsts)
    if by_chance == total * total:
        return None
    agreed = sum(count for (first, second), count in counts.items() if first == second)
    return (agreed * total - by_chance) / (total * total - by_chance)


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p value of these differences, of which those that are 0 say nothing.

    None where more than 50 others are left: a bootstrap of so many is good enough by itself.
    """
    ranks = _doubled_ranks([one for one in differences if one])
    if len(ranks) > _MOST_RANKED:
        return None
    only_ranks = [rank for rank, _ in ranks]
    total, positive = sum(only_ranks), sum(rank for rank, difference in ranks if difference > 0)
    least = min(positive, total - positive)
    return min(1.0, 2 * _share_of_signs(only_ranks, least))


def _doubled_ranks(differences: Sequence[float]) -> list[tuple[int, float]]:
    """Return twice the rank of each difference by its size, with the difference; equal ones have their mean rank."""
    ranked: list[tuple[int, float]] = []
    for _, group in groupby(sorted(differences, key=abs), key=abs):
        equal = list(group)
        ranked += [(2 * len(ranked) + len(equal) + 1, one) for one in equal]
    return ranked


def _share_of_signs(ranks: Sequence[int], least: int) -> float:
    """Return how many of all ways to give ranks a sign have positive ones with a sum of `least` or less."""
    ways = [1] + [0] * least
    for rank in ranks:
        for place in range(least, rank - 1, -1):
            ways[place] += ways[place - rank]
    return float(sum(ways) / 2 ** len(ranks))


def paired_interval(differences: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the mean of these differences, at least one; the same ones give the same interval."""
    mean = math.fsum(differences) / len(differences)
    if min(differences) == max(differences):
        return mean, mean
    drawing = random.Random(seed)
    blocks = _blocks(differences, drawing)
    means = sorted(_drawn_means(blocks, drawing))
    # A sample varies less than what it is drawn from, by this much.
    widening = math.sqrt(len(blocks) / (len(blocks) - 1))
    cut = (1 - level) / 2
    lower, upper = (_quantile(means, share) for share in (cut, 1 - cut))
    return mean + widening * (lower - mean), mean + widening * (upper - mean)


def _blocks(differences: Sequence[float], drawing: random.Random) -> list[tuple[float, int]]:
    """Return the sum and the size of each block; rows that stand together in the file do not stay together."""
    shuffled = drawing.sample(differences, len(differences))
    parts = [shuffled[start::_MOST_BLOCKS] for start in range(min(_MOST_BLOCKS, len(shuffled)))]
    return [(math.fsum(part), len(part)) for part in parts]


def _drawn_means(blocks: Sequence[tuple[float, int]], drawing: random.Random) -> Iterator[float]:
    """Yield the means of _RESAMPLES drawings of as many blocks as there are, each put back before the next."""
    totals, sizes = [total for total, _ in blocks], [size for _, size in blocks]
    places = range(len(blocks))
    for _ in range(_RESAMPLES):
        many = len(blocks) == _MOST_BLOCKS
        drawn = drawing.randbytes(_MOST_BLOCKS) if many else drawing.choices(places, k=len(blocks))
        yield sum(map(totals.__getitem__, drawn)) / sum(map(sizes.__getitem__, drawn))


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
