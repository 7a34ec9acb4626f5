"""Rows that say the same, or nearly the same, as one before.

How alike two texts are is the Jaccard index of their runs of three words, whatever the case and the punctuation: of all
runs that either has, the share that both have. A text of fewer words is one run. Of a text with more than SKETCH runs
those with the smallest hashes stand for all (A. Broder, "On the resemblance and containment of documents", 1997).
"""

from __future__ import annotations

import hashlib
import heapq
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from threading import Event

SKETCH = 128
COMPARED = 100
"""A row is compared with so many earlier ones at most."""
INDEXED = 100
"""So many rows at most are found by a hash that they share: a template's runs of words tell no rows apart."""
_RUN = 3
_WORD = re.compile(r"\w+")


def digest_of(*parts: bytes) -> bytes:
    """Return 16 bytes that are the same only for the same parts."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def sketch_of(text: str) -> array[int]:
    """Return the hashes of at most SKETCH runs of words, the smallest first; none for a text without words."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    runs = {" ".join(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))} if words else set()
    hashes = sorted(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs)
    return array("Q", hashes[:SKETCH])


def near_duplicates(sketches: Sequence[array[int]], threshold: float, *, stop: Event | None = None) -> dict[int, int]:
    """Return, for each row that is at least so alike to an earlier one that is kept, the number of that one.

    Two sets can be so alike only if they have one of the first few of their hashes in common, rarest first; so few rows
    are compared (R. Bayardo et al., "Scaling up all pairs similarity search", 2007): of those that have such a hash in
    common the COMPARED that have the most, the earliest first. Of rows that share a hash the INDEXED that came first
    are found by it. Ends early, with what was found so far, when `stop` is set.
    """
    frequency = Counter(one for sketch in sketches for one in sketch)
    by_hash: dict[int, array[int]] = {}
    found: dict[int, int] = {}
    for number, sketch in enumerate(sketches):
        if stop is not None and stop.is_set():
            break
        ordered = sorted(sketch, key=lambda one: (frequency[one], one))
        first = ordered[: len(ordered) - math.ceil(threshold * len(ordered)) + 1]
        before = _alike(sketch, _together(by_hash, first), sketches, threshold)
        if before is not None:
            found[number] = before
            continue
        for one in first:
            if frequency[one] > 1 and len(kept := by_hash.setdefault(one, array("L"))) < INDEXED:
                kept.append(number)
    return found


def _together(by_hash: dict[int, array[int]], hashes: Iterable[int]) -> list[int]:
    """Return the rows to compare with, the earliest first."""
    shared = Counter(number for one in hashes for number in by_hash.get(one, ()))
    if len(shared) <= COMPARED:
        return sorted(shared)
    return sorted(heapq.nsmallest(COMPARED, shared, key=lambda number: (-shared[number], number)))


def _alike(
    sketch: array[int], candidates: Sequence[int], sketches: Sequence[array[int]], threshold: float
) -> int | None:
    own = frozenset(sketch)
    for number in candidates:
        if are_alike(own, sketches[number], threshold):
            return number
    return None


def are_alike(own: frozenset[int], other: array[int], threshold: float) -> bool:
    """Tell whether two sketches have so large a share of their hashes in common."""
    both = len(own.intersection(other))
    return both > 0 and both >= threshold * (len(own) + len(other) - both)
