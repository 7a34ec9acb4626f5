"""Who won an A/B run: what the judge came to, what people came to, and how far they agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from services.api.ab_runs.run import decode_spec
from shared.ab_records import (
    CHOSE_FIRST,
    CHOSE_SECOND,
    LEANING_FIRST,
    LEANING_SECOND,
    VoteRecord,
    counts_in,
)
from shared.grading.statistics import SIGNIFICANT, exact_interval, kappa, mcnemar
from shared.schemas.ab_runs import (
    AbAgreement,
    AbFinding,
    AbJudged,
    AbPosition,
    AbReport,
    AbVerdict,
    AbVoted,
)
from shared.store.ab_votes import AbVoteStore, Vote
from shared.store.eval_runs import AB_MARKS, EvalRunStore

_JUDGED = {ord(AB_MARKS["a"]): "a", ord(AB_MARKS["b"]): "b", ord(AB_MARKS["tie"]): "tie"}


class Votes:
    """Votes added up, one after the other."""

    def __init__(self, marks: bytes) -> None:
        self._marks = marks
        self._balance: Counter[int] = Counter()
        """By row: votes for a less those for b."""
        self.voters: set[str] = set()
        self.choices: Counter[str] = Counter()
        self.beside_judge: Counter[tuple[str, str]] = Counter()
        """What the judge says and what a vote says: a, b or tie."""

    def add(self, vote: Vote) -> None:
        record: VoteRecord = vote.record
        winner = "tie" if record.winner == "neither" else record.winner
        self.voters.add(vote.voter)
        self.choices[record.choice] += 1
        self._balance[vote.number] += (winner == "a") - (winner == "b")
        judged = _JUDGED.get(self._marks[vote.number]) if vote.number < len(self._marks) else None
        if judged is not None:
            self.beside_judge[judged, winner] += 1

    def voted(self) -> AbVoted | None:
        """Form what people came to; None if nobody has voted."""
        if not self.choices:
            return None
        balances = self._balance.values()
        first, second = self.choices["first"], self.choices["second"]
        return AbVoted(
            votes=self.choices.total(),
            voters=len(self.voters),
            neither=self.choices["neither"],
            finding=finding_of(
                sum(one > 0 for one in balances), sum(one < 0 for one in balances), sum(one == 0 for one in balances)
            ),
            # each vote has an order drawn for it alone
            position=_position(first, second, first, second),
        )

    def agreement(self) -> AbAgreement | None:
        """Form how far votes agree with the judge; None if they have no rows in common."""
        if not self.beside_judge:
            return None
        agreed = sum(count for (judge, voter), count in self.beside_judge.items() if judge == voter)
        return AbAgreement(votes=self.beside_judge.total(), agreed=agreed, kappa=kappa(self.beside_judge))


class Reports:
    """Reports on A/B runs, at any time of theirs."""

    def __init__(self, runs: EvalRunStore, votes: AbVoteStore) -> None:
        self._runs = runs
        self._votes = votes

    async def report(self, run_id: str, *, eval_id: str, project: str) -> AbReport:
        """Say what is known so far. Raises NotFound."""
        record, tally, source = await self._runs.find(run_id, eval_id=eval_id, project=project, kind="ab")
        spec = decode_spec(source)
        counts = counts_in(record, tally)
        votes = Votes(await self._runs.marks(run_id))
        async for vote in self._votes.all(run_id):
            votes.add(vote)
        judged = AbJudged(finding=finding_of(counts.a, counts.b, counts.tie), position=_of_judge(tally))
        return AbReport(
            eval_id=eval_id,
            ab_run_id=run_id,
            run_a=spec.run_a,
            run_b=spec.run_b,
            judge=judged if spec.judge is not None else None,
            people=votes.voted(),
            agreement=votes.agreement(),
        )


def finding_of(a: int, b: int, ties: int) -> AbFinding:
    """Say whose answers are better, of so many rows that each side won."""
    p_value = mcnemar(a, b)
    verdict: AbVerdict = "no_difference_shown"
    if p_value < SIGNIFICANT:
        verdict = "a_is_better" if a > b else "b_is_better"
    decided = a + b
    return AbFinding(
        verdict=verdict,
        rows=decided + ties,
        a=a,
        b=b,
        ties=ties,
        win_rate=a / decided if decided else None,
        interval=list(exact_interval(a, decided)) if decided else None,
        p_value=p_value,
    )


def _of_judge(tally: Mapping[str, int]) -> AbPosition:
    return _position(*(tally.get(name, 0) for name in (CHOSE_FIRST, CHOSE_SECOND, LEANING_FIRST, LEANING_SECOND)))


def _position(chose_first: int, chose_second: int, leaning_first: int, leaning_second: int) -> AbPosition:
    return AbPosition(
        chose_first=chose_first,
        chose_second=chose_second,
        leaning_first=leaning_first,
        leaning_second=leaning_second,
        p_value=mcnemar(leaning_first, leaning_second),
    )
