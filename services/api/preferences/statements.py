"""What preferences say, weighed: what was said twice, what contradicts itself, and what goes into a training file.

A statement is about one thing, two answers to an input for DPO, one answer to it for KTO, and says one of two things of
it: which of them is better, or whether it is good. Whoever says it has one vote on each thing, the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

Conversation: TypeAlias = list[dict[str, Any]]
Method: TypeAlias = Literal["dpo", "kto"]

_encode = msgspec.json.Encoder(order="sorted").encode


class Better(NamedTuple):
    """One answer is better than another."""

    preferred: Conversation
    other: Conversation


class Labelled(NamedTuple):
    """An answer is good, or is not."""

    output: Conversation
    label: bool


Judgement: TypeAlias = Better | Labelled


class Opinion(NamedTuple):
    """What one stored preference, or one vote, says of answers to `input`, which is that of a training file."""

    ref: str
    """Its name, by which it is known again at a second reading."""
    who: str
    input: dict[str, Any] | None
    """None where there is no conversation that could be trained on."""
    says: Sequence[Judgement]


class Statement(NamedTuple):
    """As much of an opinion as one line of a training file holds."""

    ref: str
    who: bytes
    about: bytes
    says: bool
    input: dict[str, Any]
    judgement: Judgement

    def line(self) -> bytes:
        """Form the line."""
        return _encode(_line(self.input, self.judgement)) + b"\n"


class Kept(NamedTuple):
    """A statement that is being weighed; without its text, since there may be many."""

    ref: str
    says: bool


class Weighed(NamedTuple):
    """What goes into the file."""

    refs: frozenset[str]
    duplicates: int
    contradictions: int
    dropped: int


class Scales:
    """Statements put in one after the other, oldest first; about 300 bytes each, whatever the answers are."""

    def __init__(self) -> None:
        self._said: dict[bytes, dict[bytes, Kept]] = {}
        self._count = 0

    def add(self, statement: Statement) -> None:
        self._count += 1
        self._said.setdefault(statement.about, {})[statement.who] = Kept(statement.ref, statement.says)

    def weigh(self, *, by_majority: bool) -> Weighed:
        """Choose a statement for each thing: what all say, or what more say, unless contradictions are dropped."""
        refs: set[str] = set()
        contradictions = dropped = told_apart = 0
        for votes in self._said.values():
            yes = [vote.ref for vote in votes.values() if vote.says]
            no = [vote.ref for vote in votes.values() if not vote.says]
            contradictions += bool(yes and no)
            told_apart += bool(yes) + bool(no)
            if yes and no and (len(yes) == len(no) or not by_majority):
                dropped += 1
                continue
            refs.add((yes if len(yes) > len(no) else no)[0])
        return Weighed(frozenset(refs), self._count - told_apart, contradictions, dropped)


def statements_of(opinion: Opinion, method: Method) -> Iterator[Statement]:
    """Yield what an opinion says that a file for this method can hold."""
    if opinion.input is None:
        return
    for place, judgement in enumerate(opinion.says):
        if isinstance(judgement, Labelled):
            parts = [judgement] if method == "kto" else []
            who = opinion.who.encode()
        elif method == "dpo":
            yield _about_pair(f"{opinion.ref} {place}", opinion, judgement)
            continue
        else:
            # A pair gives two labels; what is said of an answer beside another is no last word on it beside a third.
            parts = [Labelled(judgement.preferred, True), Labelled(judgement.other, False)]
            who = opinion.who.encode() + _digest(*sorted(map(_encode, judgement)))
        for part in parts:
            about = _digest(_encode(opinion.input), _encode(part.output))
            yield Statement(f"{opinion.ref} {place} {part.label}", who, about, part.label, opinion.input, part)


def _about_pair(ref: str, opinion: Opinion, judgement: Better) -> Statement:
    assert opinion.input is not None
    preferred, other = _encode(judgement.preferred), _encode(judgement.other)
    about = _digest(_encode(opinion.input), *sorted((preferred, other)))
    return Statement(ref, opinion.who.encode(), about, preferred <= other, opinion.input, judgement)


def _line(asked: dict[str, Any], judgement: Judgement) -> dict[str, Any]:
    if isinstance(judgement, Better):
        return {
            "input": asked, "preferred_output": judgement.preferred, "non_preferred_output": judgement.other,
        }  # fmt: skip
    rest = {name: value for name, value in asked.items() if name != "messages"}
    return {"messages": [*asked["messages"], *judgement.output], "label": judgement.label, **rest}


def _digest(*parts: bytes) -> bytes:
    """Return 16 bytes that tell these texts from all others, in this order."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8) + part)
    return found.digest()
