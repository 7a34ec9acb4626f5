"""From candidates, and what was said of them, to a data set: what is dropped and why, what is trained on, what is held
out. The same candidates and results give the same data set, whoever selects, and however often."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from services.api.distillation.candidates import Candidate, answered, read_candidates
from services.api.distillation.duplicates import digest_of
from services.api.distillation.examples import Unusable, answer_of
from services.api.evals.rows import encoded
from shared.schemas.distillations import DistillationCounts, DistillationEvaluation, DistillationFilter
from shared.schemas.evals import EvalRow, OutputItem

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(Candidate).decode


class Word(Struct, frozen=True, kw_only=True):
    """What a run says of a candidate: the scores, by criterion, and the answer where the run has asked for it."""

    scores: dict[str, float]
    errors: frozenset[str]
    """Criteria that could not say anything."""
    reason: str = ""
    """Why it has no usable answer."""
    answer: dict[str, Any] | None = None
    model: str = ""


def word_of(item: OutputItem, *, is_answered: bool) -> Word:
    """Read a row's result; `is_answered` says that the answer was known before."""
    scores = {result.name: result.score for result in item.results}
    errors = frozenset(result.name for result in item.results if result.error)
    if is_answered:
        return Word(scores=scores, errors=errors)
    sample = item.sample
    if sample.error.code or not sample.output:
        return Word(scores=scores, errors=errors, reason="not_answered")
    try:
        spoken = sample.output[0]
        answer = answer_of(spoken.content, spoken.tool_calls or None, finish_reason=sample.finish_reason)
    except Unusable as error:
        return Word(scores=scores, errors=errors, reason=error.reason)
    return Word(scores=scores, errors=errors, answer=answer, model=sample.model)


class _Fate(Struct, kw_only=True, omit_defaults=True):
    """What became of a row: a line of the manifest."""

    id: str
    outcome: str
    """`training`, `held_out`, or `dropped`."""
    reason: str = ""
    like: str = ""
    model: str = ""
    scores: dict[str, float] = {}


class Selection:
    """A data set in the making. Rows that are kept lie in a file until it is closed. Everything blocks."""

    def __init__(self, draft: Path, wanted: DistillationFilter, evaluation: DistillationEvaluation, seed: int) -> None:
        self._wanted = wanted
        self._evaluation = evaluation
        self._seed = seed
        self._path = draft
        self._handle: BinaryIO = draft.open("x+b")
        self._fates: list[_Fate] = []
        self._places: dict[int, tuple[int, int]] = {}
        """Of rows that are kept, by their place among all: where in the draft they lie."""
        self._prompts: dict[int, bytes] = {}
        """Digests of their prompts."""
        self._never_held_out: set[bytes] = set()
        """Digests of the prompts that have tools in any of their rows."""

    def add(self, candidate: Candidate, word: Word | None) -> None:
        """Add the next row."""
        if candidate.dropped:
            self._drop(candidate, candidate.dropped, like=candidate.like)
            return
        scores = word.scores if word else {}
        if word and word.answer is not None:
            candidate = answered(candidate, word.answer, word.model)
        if reason := self._fault(candidate, word):
            self._drop(candidate, reason, scores=scores)
            return
        place = len(self._fates)
        line = _encode(candidate) + b"\n"
        self._places[place] = (self._handle.seek(0, os.SEEK_END), len(line))
        self._handle.write(line)
        self._fates.append(_Fate(id=candidate.id, outcome="training", model=candidate.model, scores=scores))
        digest = self._prompts[place] = digest_of(str(self._seed).encode(), _encode(candidate.input))
        if candidate.tools or (candidate.answer and candidate.answer.get("tool_calls")):
            self._never_held_out.add(digest)

    def _fault(self, candidate: Candidate, word: Word | None) -> str:
        if word and word.reason:
            return word.reason
        if candidate.answer is None:
            return "not_answered"
        try:
            candidate.line()
        except Unusable as error:
            return error.reason
        for name, least in self._wanted.minimum_scores.items():
            if word is None or name in word.errors or name not in word.scores:
                return "not_graded"
            if word.scores[name] < least:
                return "low_score"
        if self._wanted.max_rows is not None and len(self._places) >= self._wanted.max_rows:
            return "over_max_rows"
        return ""

    def _drop(
        self, candidate: Candidate, reason: str, *, like: str = "", scores: dict[str, float] | None = None
    ) -> None:
        model = candidate.model
        self._fates.append(
            _Fate(id=candidate.id, outcome="dropped", reason=reason, like=like, model=model, scores=scores or {})
        )

    def split(self) -> DistillationCounts:
        """Hold rows out, all of a prompt or none, and count."""
        most = min(self._evaluation.max_rows, max(1, round(self._evaluation.held_out * len(self._places))))
        by_prompt: dict[bytes, list[int]] = defaultdict(list)
        for place, digest in self._prompts.items():
            by_prompt[digest].append(place)
        left = most
        for digest in sorted(by_prompt.keys() - self._never_held_out):
            if len(by_prompt[digest]) > left:
                continue
            left -= len(by_prompt[digest])
            for place in by_prompt[digest]:
                self._fates[place].outcome = "held_out"
        outcomes = Counter(fate.outcome for fate in self._fates)
        return DistillationCounts(
            found=len(self._fates),
            dropped=dict(sorted(Counter(fate.reason for fate in self._fates if fate.reason).items())),
            training=outcomes["training"],
            held_out=outcomes["held_out"],
        )

    def training(self) -> Iterator[bytes]:
        """Yield the lines to train on."""
        return (self._row(place).line() for place in self._of("training"))

    def held_out(self) -> Iterator[bytes]:
        """Yield the rows of the eval, each with the teacher's answer as its sample."""
        return (eval_line(self._row(place)) for place in self._of("held_out"))

    def manifest(self, head: dict[str, Any]) -> Iterator[bytes]:
        """Yield `head`, then what became of each row, in the order in which they were found."""
        yield _encode(head) + b"\n"
        for fate in self._fates:
            yield _encode(fate) + b"\n"

    def close(self) -> None:
        self._handle.close()
        self._path.unlink(missing_ok=True)

    def _of(self, outcome: str) -> Sequence[int]:
        return [place for place in self._places if self._fates[place].outcome == outcome]

    def _row(self, place: int) -> Candidate:
        offset, length = self._places[place]
        self._handle.flush()
        return _decode(os.pread(self._handle.fileno(), length, offset))


def eval_line(candidate: Candidate) -> bytes:
    """Form a row of an eval."""
    return encoded([EvalRow(item=candidate.item, sample=candidate.sample)])


def candidate_lines(path: Path) -> Iterator[bytes]:
    """Yield those that were not dropped as rows of an eval. Raises FileNotFoundError, OSError."""
    return (eval_line(candidate) for candidate in read_candidates(path) if not candidate.dropped)
