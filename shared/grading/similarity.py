"""How alike two texts are, from 0 to 1, by the measures that text_similarity names.

| metric      | what is computed                                                                                      |
| ----------- | ------------------------------------------------------------------------------------------------------|
| fuzzy_match | 2 · LCS / (characters of both): rapidfuzz's `ratio`                                                   |
| bleu        | sentence BLEU, n = 1…4, of sacrebleu, with its tokens (13a), smoothing (exp) and effective order      |
| gleu        | smaller of precision and recall of n-grams, n = 1…4 (Wu et al. 2016, arXiv:1609.08144), same tokens   |
| meteor      | Banerjee and Lavie 2005, stages exact and Porter stem, same tokens in lower case                      |
| rouge_1 … 5 | F1 of n-grams of words in lower case (Lin 2004), without stemming                                     |
| rouge_l     | F1 of the longest common subsequence of those words                                                   |

METEOR's third stage, synonyms, needs WordNet's data and is left out, so that nothing has to be downloaded.
Words of ROUGE are runs of letters and digits of any script; for ASCII that is what the package rouge-score takes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, pairwise
from typing import Any

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

MAX_CHARS = 100_000
"""Longest text that is compared."""
MAX_PAIRS = 1_000_000_000
"""Greatest product of both lengths: the slowest measures take time in proportion to it, and hold the interpreter."""

_WORD = re.compile(r"[^\W_]+")
_LONGEST_GRAM = 4


def similarity(metric: str, text: str, reference: str) -> float:
    """Return how alike the texts are by a metric of METRICS, within [0, 1]."""
    return min(1.0, max(0.0, METRICS[metric](text, reference)))


def fuzzy_match(text: str, reference: str) -> float:
    return fuzz.ratio(text, reference) / 100


def bleu(text: str, reference: str) -> float:
    return float(_bleu().sentence_score(text, [reference]).score) / 100


def gleu(text: str, reference: str) -> float:
    tokens, expected = _tokens(text), _tokens(reference)
    orders = range(1, _LONGEST_GRAM + 1)
    given = Counter(chain.from_iterable(_grams(tokens, n) for n in orders))
    wanted = Counter(chain.from_iterable(_grams(expected, n) for n in orders))
    return _ratio((given & wanted).total(), max(given.total(), wanted.total()))


def meteor(text: str, reference: str) -> float:
    """F-mean 10PR / (R + 9P), less 0.5 · (chunks / matches)³ of itself."""
    tokens, expected = _tokens(text.lower()), _tokens(reference.lower())
    matches = _aligned(tokens, expected)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(tokens), len(matches) / len(expected)
    mean = 10 * precision * recall / (recall + 9 * precision)
    chunks = 1 + sum((after[0] - before[0], after[1] - before[1]) != (1, 1) for before, after in pairwise(matches))
    return mean * (1 - 0.5 * (chunks / len(matches)) ** 3)


def rouge_n(text: str, reference: str, n: int) -> float:
    given, wanted = Counter(_grams(_words(text), n)), Counter(_grams(_words(reference), n))
    return _f1((given & wanted).total(), given.total(), wanted.total())


def rouge_l(text: str, reference: str) -> float:
    words, expected = _words(text), _words(reference)
    return _f1(LCSseq.similarity(words, expected), len(words), len(expected))


def _rouge(n: int) -> Callable[[str, str], float]:
    return lambda text, reference: rouge_n(text, reference, n)


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": _rouge(n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(tokens: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _f1(common: int, given: int, wanted: int) -> float:
    """Return the harmonic mean of precision and recall: 2 · common / (given + wanted)."""
    return _ratio(2 * common, given + wanted) if given and wanted else 0.0


def _aligned(tokens: Sequence[str], expected: Sequence[str]) -> list[tuple[int, int]]:
    """Match tokens one to one, first what is equal, then what has the same stem; sorted by the first place.

    Among equal ones the last goes with the last, the one before with the one before, and so on.
    """
    matches, left, wanted = _matched(list(enumerate(tokens)), list(enumerate(expected)))
    if left and wanted:
        stem = _stemmer().stem
        stemmed, _, _ = _matched([(at, stem(token)) for at, token in left], [(at, stem(token)) for at, token in wanted])
        matches += stemmed
    return sorted(matches)


_Places = list[tuple[int, str]]


def _matched(given: _Places, wanted: _Places) -> tuple[list[tuple[int, int]], _Places, _Places]:
    """Return the pairs of places with the same token, and what is left of both."""
    places: defaultdict[str, deque[int]] = defaultdict(deque)
    for at, token in wanted:
        places[token].append(at)
    matches, left = [], []
    for at, token in reversed(given):
        if places.get(token):
            matches.append((at, places[token].pop()))
        else:
            left.append((at, token))
    taken = {place for _, place in matches}
    return matches, left[::-1], [(at, token) for at, token in wanted if at not in taken]


# Loaded when they are first used: a third and half a second.


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)


@cache
def _tokenizer() -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()  # type: ignore[no-untyped-call]


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def _tokens(text: str) -> list[str]:
    return str(_tokenizer()(text)).split()
