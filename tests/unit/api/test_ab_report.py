"""Who won an A/B run: what votes come to, and how seldom equals are told apart."""

from __future__ import annotations

import random

import pytest

from services.api.ab_runs.report import Votes, finding_of
from shared.ab_records import VoteRecord
from shared.schemas.ab_runs import Side, VoteChoice
from shared.store.ab_votes import Vote


def vote(number: int, voter: str, choice: VoteChoice, first: Side = "a") -> Vote:
    return Vote(number, voter, VoteRecord(choice=choice, first=first, created_at=0))


def test_a_row_goes_to_whom_more_of_its_votes_chose() -> None:
    votes = Votes(b"abtuen")
    for one in (
        vote(0, "1", "first"), vote(0, "2", "second", "b"), vote(0, "3", "second"),  # two for a, one for b
        vote(1, "1", "first"), vote(1, "2", "second"),  # one each
        vote(2, "1", "neither"), vote(3, "1", "second"), vote(4, "1", "tie"), vote(9, "1", "first"),
    ):  # fmt: skip
        votes.add(one)
    people = votes.voted()
    assert people is not None
    assert (people.votes, people.voters, people.neither) == (9, 3, 1)
    assert (people.finding.a, people.finding.b, people.finding.ties, people.finding.rows) == (2, 1, 3, 6)
    assert (people.position.chose_first, people.position.chose_second) == (3, 4)
    agreement = votes.agreement()
    assert agreement is not None, "rows that the judge has not judged say nothing of agreement"
    assert (agreement.votes, agreement.agreed) == (6, 4)
    # by chance: (3 * 3 + 2 * 2 + 1 * 1) / 36; agreed: 4 / 6
    assert agreement.kappa == pytest.approx((4 / 6 - 14 / 36) / (1 - 14 / 36))


def test_without_votes_there_is_nothing_to_say() -> None:
    votes = Votes(b"ab")
    assert (votes.voted(), votes.agreement()) == (None, None)
    finding = finding_of(0, 0, 5)
    assert (finding.verdict, finding.win_rate, finding.interval, finding.p_value) == (
        "no_difference_shown", None, None, 1.0,
    )  # fmt: skip


def test_equals_are_told_apart_in_a_twentieth_of_trials_at_most_and_others_are_found() -> None:
    drawing = random.Random(11)

    def said(share: float) -> str:
        wins = sum(drawing.random() < share for _ in range(200))
        return finding_of(wins, 200 - wins, 100).verdict

    assert sum(said(0.5) != "no_difference_shown" for _ in range(200)) <= 10
    assert sum(said(0.62) == "a_is_better" for _ in range(200)) >= 160
