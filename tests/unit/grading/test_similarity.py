"""Every metric against another implementation of it, on a thousand seeded random pairs of texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from shared.grading.similarity import METRICS, similarity

WORDS = [
    "the", "a", "of", "to", "walk", "walks", "walked", "walking", "run", "runs", "running", "city", "cities", "nation",
    "national", "nations", "quick", "quickly", "Paris", "paris", "U.S.", "3.14", "1,000", "well-known", "it's", "don't",
    "end,", "stop.", "(yes)", "no!", "why?", "x-ray", "snake_case",
]  # fmt: skip
TOLERANCE = 1e-9


def pairs() -> list[tuple[str, str]]:
    """A thousand pairs: some unrelated, some a text and an edited copy of it, some empty."""
    source = random.Random(7)
    return [_pair(source) for _ in range(1000)]


def _pair(source: random.Random) -> tuple[str, str]:
    reference = source.choices(WORDS, k=source.randrange(0, 25))
    if source.random() < 0.3:
        return " ".join(source.choices(WORDS, k=source.randrange(0, 25))), " ".join(reference)
    edited = [word for word in reference if source.random() > 0.2]
    for _ in range(source.randrange(4)):
        edited.insert(source.randrange(len(edited) + 1), source.choice(WORDS))
    return " ".join(edited), " ".join(reference)


def tokens(text: str) -> list[str]:
    return str(Tokenizer13a()(text)).split()  # type: ignore[no-untyped-call]


def indel_ratio(text: str, reference: str) -> float:
    """Return 2 · LCS / (n + m) over characters, by the table of the textbook."""
    row = [0] * (len(reference) + 1)
    for letter in text:
        before = row
        row = [0]
        for at, other in enumerate(reference):
            row.append(before[at] + 1 if letter == other else max(before[at + 1], row[at]))
    whole = len(text) + len(reference)
    return 2 * row[-1] / whole if whole else 1.0


def nltk_bleu(text: str, reference: str) -> float:
    given, expected = tokens(text), tokens(reference)
    if not given or not expected:
        return 0.0
    order = min(4, len(given))
    smoothing = SmoothingFunction().method3  # halves with every order without a match, as sacrebleu's "exp"
    return float(sentence_bleu([expected], given, weights=[1 / order] * order, smoothing_function=smoothing))


def nltk_gleu(text: str, reference: str) -> float:
    given, expected = tokens(text), tokens(reference)
    return float(sentence_gleu([expected], given)) if given and expected else 0.0


class NoSynonyms:
    """A WordNet without a word in it."""

    def synsets(self, _word: str) -> list[object]:
        return []


def nltk_meteor(text: str, reference: str) -> float:
    given, expected = tokens(text), tokens(reference)
    return float(single_meteor_score(expected, given, wordnet=NoSynonyms())) if given and expected else 0.0


@cache
def scorer() -> RougeScorer:
    return RougeScorer([*(f"rouge{n}" for n in range(1, 6)), "rougeL"], use_stemmer=False)


def rouge(name: str) -> Callable[[str, str], float]:
    return lambda text, reference: float(scorer().score(reference, text)[name].fmeasure)


REFERENCES: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": indel_ratio,
    "bleu": nltk_bleu,
    "gleu": nltk_gleu,
    "meteor": nltk_meteor,
    **{f"rouge_{n}": rouge(f"rouge{n}") for n in range(1, 6)},
    "rouge_l": rouge("rougeL"),
}


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_metric_equals_another_implementation(metric: str) -> None:
    reference = REFERENCES[metric]
    wrong = [
        (text, other, found, expected)
        for text, other in pairs()
        if abs((found := similarity(metric, text, other)) - (expected := reference(text, other))) > TOLERANCE
    ]
    assert not wrong, f"{len(wrong)} of 1000 differ, such as {wrong[0]}"


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_metric_stays_within_its_range(metric: str) -> None:
    for text, other in [
        ("", ""),
        ("", "a"),
        ("a", ""),
        ("a b c d e f", "a b c d e f"),
        ("\x00 ((", "🙂"),
        ("a" * 500, "b"),
    ]:
        assert 0.0 <= similarity(metric, text, other) <= 1.0
    same = "it was the best of times , it was the worst of times"
    assert similarity(metric, same, same) == pytest.approx(1.0, abs=1e-3)  # METEOR's one chunk costs 0.5 / 12³
    assert similarity(metric, "one two", "three four five") < 0.5


def test_words_of_other_scripts_count() -> None:
    assert similarity("rouge_1", "Здравствуй мир", "здравствуй, земля") == pytest.approx(0.5)
    assert similarity("rouge_l", "café au lait", "Café au lait!") == 1.0
    assert similarity("rouge_2", "你好 世界", "你好 世界") == 1.0


def test_meteor_takes_equal_words_before_equal_stems() -> None:
    # By hand: 'walks' = 'walks', then walking ~ walked; P = R = 1, two matches in two chunks.
    assert similarity("meteor", "walking walks", "walks walked") == pytest.approx(1 - 0.5 * (2 / 2) ** 3)
    assert similarity("meteor", "walked home", "walks home") == pytest.approx(1 - 0.5 * (1 / 2) ** 3)
