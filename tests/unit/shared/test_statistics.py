"""Whether one run is better than another: against values from textbooks, and by trying it out."""

from __future__ import annotations

import math
import random

import pytest

from services.api.evals.comparison import passing_of, scores_of, verdict_of
from shared.grading.statistics import exact_interval, kappa, mcnemar, paired_interval, wilcoxon

ROWS, TRIALS = 300, 200


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 1, 1.0), (0, 6, 2 / 2**6), (1, 9, 22 / 2**10), (9, 1, 22 / 2**10)],
)
def test_mcnemar_is_twice_the_binomial_tail(first: int, second: int, expected: float) -> None:
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_of_many_rows_is_what_exact_numbers_give() -> None:
    exact = 2 * sum(math.comb(2000, place) for place in range(941)) / 2**2000
    assert mcnemar(940, 1060) == pytest.approx(exact, rel=1e-9)


def test_interval_is_that_of_the_normal_distribution_where_there_are_many_rows() -> None:
    drawing = random.Random(1)
    for count in (400, 3000):
        differences = [drawing.gauss(0.3, 1.0) for _ in range(count)]
        mean = math.fsum(differences) / count
        half = 1.96 * math.sqrt(math.fsum((one - mean) ** 2 for one in differences) / (count - 1) / count)
        lower, upper = paired_interval(differences)
        assert (lower, upper) == pytest.approx((mean - half, mean + half), abs=0.15 * half)
        assert paired_interval(differences) == (lower, upper), "the same rows give the same interval"


def test_interval_of_equal_differences_is_a_point() -> None:
    assert paired_interval([0.25]) == (0.25, 0.25)
    assert paired_interval([0.0] * 50) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [
        (0, 10, (0.0, 0.3084971)),  # Clopper and Pearson's limits, as statistical tables have them
        (5, 10, (0.1870861, 0.8129139)),
        (81, 263, (0.2527107, 0.3676582)),  # Newcombe, Statistics in Medicine 17, 1998, table I, method 5
        (15, 148, (0.0578, 0.1617)),
        (1, 29, (0.0009, 0.1776)),
    ],
)
def test_exact_interval_is_that_of_the_tables(hits: int, count: int, expected: tuple[float, float]) -> None:
    found = exact_interval(hits, count)
    assert found == pytest.approx(expected, abs=6e-5)
    assert exact_interval(count - hits, count) == pytest.approx((1 - found[1], 1 - found[0]))


@pytest.mark.parametrize("count", [1, 6, 9, 40, 301])
def test_exact_interval_holds_one_half_where_mcnemar_finds_nothing(count: int) -> None:
    for hits in range(count + 1):
        lower, upper = exact_interval(hits, count)
        assert (lower <= 0.5 <= upper) == (mcnemar(hits, count - hits) >= 0.05)


def test_exact_interval_of_many_votes_is_that_of_exact_numbers() -> None:
    lower, upper = exact_interval(26_000, 50_000)
    half = 1.96 * math.sqrt(0.52 * 0.48 / 50_000)
    assert (lower, upper) == pytest.approx((0.52 - half, 0.52 + half), abs=2e-5)


def test_kappa_is_that_of_cohens_definition() -> None:
    # Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions, 3rd edition, table 18.1: kappa = 0.676
    labels = ("psychotic", "neurotic", "organic")
    table = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]
    counts = {(a, b): count for a, row in zip(labels, table, strict=True) for b, count in zip(labels, row, strict=True)}
    assert kappa(counts) == pytest.approx(0.676, abs=5e-4)
    assert kappa({("a", "b"): 5, ("b", "a"): 5}) == -1.0
    assert kappa({("a", "a"): 25, ("a", "b"): 25, ("b", "a"): 25, ("b", "b"): 25}) == 0.0
    assert kappa({("a", "a"): 7}) is None and kappa({}) is None


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.0] * 9, 1.0),
        ([0.5], 1.0),
        ([0.1, 0.2, 0.3, 0.4], 2 / 2**4),
        ([1.0] * 6 + [0.0] * 50, 2 / 2**6),
        ([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 4 / 2**6),
    ],
)
def test_wilcoxon_counts_the_ways_to_give_ranks_a_sign(differences: list[float], expected: float) -> None:
    assert wilcoxon(differences) == pytest.approx(expected)
    assert wilcoxon([-one for one in differences]) == pytest.approx(expected)


def test_wilcoxon_leaves_many_rows_to_the_bootstrap() -> None:
    assert wilcoxon([1.0] * 33 + [-1.0] * 17) == pytest.approx(mcnemar(33, 17))
    assert wilcoxon([1.0] * 51) is None


@pytest.mark.parametrize("differing", [1, 2, 4, 5])
def test_few_rows_that_differ_make_no_winner(differing: int) -> None:
    for rows in (differing, 300):
        here = [0.9] * differing + [0.5] * (rows - differing)
        verdict = verdict_of(passing_of([True] * rows, [True] * rows), scores_of(here, [0.5] * rows))
        assert verdict == "no_difference_shown"


def test_runs_that_differ_in_few_rows_by_luck_are_told_apart_as_seldom() -> None:
    def said(seed: int) -> str:
        drawing = random.Random(seed)
        here = [drawing.gauss(0, 1) for _ in range(8)] + [0.0] * 32
        return verdict_of(passing_of([True] * 40, [True] * 40), scores_of(here, [0.0] * 40))

    assert sum(said(seed) != "no_difference_shown" for seed in range(TRIALS)) <= 0.05 * TRIALS


def trial(seed: int, gain: float) -> tuple[list[bool], list[bool]]:
    """Return which rows two runs pass: rows differ in how hard they are, and each run has its own luck."""
    drawing = random.Random(seed)
    chances = [drawing.betavariate(0.6, 0.6) * (1 - gain) for _ in range(ROWS)]
    here = [drawing.random() < chance + gain for chance in chances]
    other = [drawing.random() < chance for chance in chances]
    return here, other


def said_of(seed: int, gain: float) -> str:
    """Return what is said of a trial where passing and scores both have a say, as everywhere with a threshold."""
    here, other = trial(seed, gain)
    passing = passing_of(here, other)
    if verdict_of(passing) == "no_difference_shown":
        return "no_difference_shown"
    return verdict_of(passing, scores_of([float(one) for one in here], [float(one) for one in other]))


def test_runs_that_are_alike_have_a_winner_in_five_trials_of_a_hundred_at_most() -> None:
    said = [verdict_of(passing_of(*trial(seed, 0.0))) for seed in range(TRIALS)]
    assert TRIALS - said.count("no_difference_shown") <= 0.05 * TRIALS


def test_ten_points_more_on_300_rows_are_found_in_four_trials_of_five_at_least() -> None:
    said = [verdict_of(passing_of(*trial(seed, 0.1))) for seed in range(TRIALS)]
    assert said.count("better") >= 0.8 * TRIALS and "worse" not in said


def test_scores_beside_passing_make_it_no_less_likely_to_be_found() -> None:
    said = [said_of(seed, 0.1) for seed in range(TRIALS // 4)]
    assert said.count("better") >= 0.8 * len(said)


def test_scores_alone_are_told_apart_as_carefully() -> None:
    """Where everything passes, scores decide."""

    def said(seed: int, gain: float) -> str:
        drawing = random.Random(seed)
        hard = [drawing.random() for _ in range(80)]
        here = [min(1.0, max(0.0, one + gain + drawing.gauss(0, 0.2))) for one in hard]
        other = [min(1.0, max(0.0, one + drawing.gauss(0, 0.2))) for one in hard]
        return verdict_of(passing_of([True] * 80, [True] * 80), scores_of(here, other))

    assert sum(said(seed, 0.0) != "no_difference_shown" for seed in range(TRIALS)) <= 0.05 * TRIALS
    assert sum(said(seed, 0.1) == "better" for seed in range(TRIALS // 4)) >= 0.8 * TRIALS // 4
