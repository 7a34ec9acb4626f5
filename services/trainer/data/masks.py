"""Text and spans -> token ids and the mask of what is learnt, exact for any tokenizer.

The tokens before a span are those that a server makes of the prompt, so the model learns to go on exactly where it will
have to. carefully() finds them by tokenising each prompt for itself; quickly() gives the same where it can be sure of
it, which is the case for every template that opens and closes turns with added tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.trainer.data.coder import ID_BYTES, Coder
from services.trainer.data.template import Span

END_OF_TURN_REACH = 4
"""How many tokens a template may write behind the special token that ends a turn (a line break, as a rule)."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A tokenised text: ids as little-endian int32, and a byte a token that is 1 where it is a target, never at 0.

    Tokens from `used` on have no effect on training: they follow the last target.
    """

    ids: bytes
    mask: bytes
    used: int


def mark(text: str, spans: list[Span], coder: Coder) -> Marked:
    """Tokenise `text`, of which the characters in `spans`, in order, are learnt."""
    return quickly(text, spans, coder) or carefully(text, spans, coder)


def quickly(text: str, spans: list[Span], coder: Coder) -> Marked | None:
    """Tokenise piece by piece; None where a piece may not be told from the next without looking closer.

    A piece is the text up to the last added token before a span, or from there to the span's end.
    """
    if not coder.cuts:
        return None
    pieces: list[bytes] = []
    ranges: list[Span] = []
    place = count = 0
    for start, end in spans:
        prompt = coder.parts(text[place:start])
        if len(prompt) < 3 or not coder.ends_safely(prompt[-1]):
            return None
        opening = prompt[-2:]
        answer = coder.parts(text[start:end])
        if end < len(text) and not (coder.starts_added(text, end) and coder.ends_safely(answer[-1])):
            return None
        before = coder.join(["", *opening])
        turn = coder.join(["", opening[0], opening[1] + answer[0], *answer[1:]])
        if not turn.startswith(before):
            return None
        context = coder.join(prompt[:-2])
        pieces += (context, turn)
        count += len(context) // ID_BYTES
        ranges.append((count + len(before) // ID_BYTES, count + len(turn) // ID_BYTES))
        count += len(turn) // ID_BYTES
        place = end
    if place < len(text):
        pieces.append(coder.encode(text[place:]))
    return _marked(b"".join(pieces), ranges, coder)


def carefully(text: str, spans: list[Span], coder: Coder) -> Marked:
    """Tokenise the whole, and each prompt and each end of a turn for itself."""
    ids, ranges = _careful_ranges(text, spans, coder)
    return _marked(ids, ranges, coder)


def mark_prompt(text: str, coder: Coder) -> Marked:
    """Tokenise what is to be answered. Nothing of it is learnt: the mark on its last token says where it ends."""
    ids = coder.encode(text)
    count = len(ids) // ID_BYTES
    return Marked(ids, bytes(max(count - 1, 0)) + b"\x01" * min(count, 1), count)


def mark_completion(prompt: str, completion: str, coder: Coder) -> Marked:
    """Tokenise a text behind what a server puts before every prompt; the completion and an end of text are learnt."""
    ids, [(first, last)] = _careful_ranges(prompt + completion, [(len(prompt), len(prompt) + len(completion))], coder)
    shift = len(coder.opening) // ID_BYTES
    return _ended(coder.opening + ids, first + shift, last + shift, coder)


def mark_text(text: str, coder: Coder) -> Marked:
    """Tokenise a text of which all but the first token is learnt, and an end of text."""
    ids = coder.opening + coder.encode(text)
    return _ended(ids, 1, len(ids) // ID_BYTES, coder)


def _ended(ids: bytes, first: int, last: int, coder: Coder) -> Marked:
    """Mark tokens from `first` on, and put an end-of-text token behind `last` unless one stands there."""
    ids = ids[: last * ID_BYTES]
    if coder.eos_id is not None and (not last or _id(ids, last - 1) != coder.eos_id):
        ids += coder.eos_id.to_bytes(ID_BYTES, "little")
    count = len(ids) // ID_BYTES
    first = max(first, 1)
    return Marked(ids, bytes(first)[:count] + b"\x01" * (count - first), count if count > first else 0)


def _careful_ranges(text: str, spans: list[Span], coder: Coder) -> tuple[bytes, list[Span]]:
    ids = coder.encode(text)
    befores = [coder.encode(text[:start]) for start, _ in spans]
    if not all(ids.startswith(before) for before in befores):
        return _in_pieces(text, spans, coder)
    ends = [ids if end == len(text) else coder.encode(text[:end]) for _, end in spans]
    lengths = [_common_prefix(ids, end) for end in ends]
    return ids, [(len(before) // ID_BYTES, length) for before, length in zip(befores, lengths, strict=True)]


def _in_pieces(text: str, spans: list[Span], coder: Coder) -> tuple[bytes, list[Span]]:
    """Tokenise with a cut where each answer starts, for a text in which some token would lie across it.

    "assistant: " + "yes" may be one token " yes" in the whole, which no server's prompt lets the model write.
    """
    starts = [0, *(start for start, _ in spans)]
    stops = [*starts[1:], len(text)]
    pieces = [coder.encode(text[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    ranges = []
    count = len(pieces[0]) // ID_BYTES
    for piece, (start, end) in zip(pieces[1:], spans, strict=True):
        ranges.append((count, count + _common_prefix(piece, coder.encode(text[start:end]))))
        count += len(piece) // ID_BYTES
    return b"".join(pieces), ranges


def _common_prefix(left: bytes, right: bytes) -> int:
    """Count the tokens that both begin with."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter // ID_BYTES
    differ = np.frombuffer(left[:shorter], np.int32) != np.frombuffer(right[:shorter], np.int32)
    return int(differ.argmax())


def _marked(ids: bytes, ranges: list[Span], coder: Coder) -> Marked:
    mask = bytearray(len(ids) // ID_BYTES)
    used = 0
    for first, end in ranges:
        last = _end_of_turn(ids, first, end, coder)
        mask[first:last] = b"\x01" * (last - first)
        used = last if last > max(first, 1) else used
    mask[:1] = bytes(len(mask[:1]))  # nothing comes before the first token, so nothing can predict it
    if used and coder.eos_id is not None and _id(ids, used - 1) not in coder.special_ids:
        # A template without an end-of-turn token would teach the model to go on for ever.
        place = used * ID_BYTES
        ids = ids[:place] + coder.eos_id.to_bytes(ID_BYTES, "little") + ids[place:]
        mask[used:used] = b"\x01"
        used += 1
    return Marked(ids, bytes(mask), used)


def _end_of_turn(ids: bytes, first: int, last: int, coder: Coder) -> int:
    """Leave out what a template writes behind the special token that ends a turn: a server stops before it."""
    for index in range(last - 1, max(first, last - END_OF_TURN_REACH) - 1, -1):
        if _id(ids, index) in coder.special_ids:
            return index + 1
    return last


def _id(ids: bytes, index: int) -> int:
    return int.from_bytes(ids[index * ID_BYTES : (index + 1) * ID_BYTES], "little")
