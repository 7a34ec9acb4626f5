"""How many samples a second graders grade in one process, by kind.

    python -m bench.grading [--words 60] [--samples 500] [--rounds 5]

Samples are edited copies of their references. Judges answer at once, so that their rows show what is ours: filling in
the messages, the schema, reading the answer. A program's rows are bench.grading.cage's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from typing import Any

import msgspec

from bench.api.scene import print_machine, print_table
from shared.grading.run import Answer, Means, check, grade
from shared.grading.samples import sample_of
from shared.grading.similarity import METRICS
from shared.schemas.graders import Grader

WORDS = ["the", "quick", "brown", "fox", "jumps", "jumped", "over", "a", "lazy", "dog", "and", "sleeps", "under", "oak"]
_TEXTS = {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
_JUDGED = {
    "name": "j",
    "model": "m",
    "input": [{"role": "user", "content": "{{ item.answer }}: {{ sample.output_text }}"}],
}


class AtOnce:
    """A judge that needs no time."""

    async def ask(self, *_: Any) -> Answer:
        return Answer(text='{"steps": [], "result": 0.5}', prompt_tokens=100, completion_tokens=10)


def graders() -> dict[str, Grader]:
    """Return a grader of each kind, by the name of its row."""
    exact = {"type": "string_check", "name": "e", "operation": "eq", **_TEXTS}
    alike = {
        metric: {"type": "text_similarity", "name": "t", "evaluation_metric": metric, **_TEXTS} for metric in METRICS
    }
    score = {"type": "score_model", **_JUDGED}
    parts = {"exact": exact, "alike": alike["rouge_l"], "score": score}
    multi = {"type": "multi", "graders": parts, "calculate_output": "0.5 * exact + 0.3 * alike + 0.2 * score"}
    every = {"string_check": exact, **alike, "score_model": score, "multi of three": multi}
    return {name: msgspec.convert(grader, Grader) for name, grader in every.items()}


def samples(words: int, count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return pairs of item and sample."""
    source, pairs = random.Random(1), []
    for _ in range(count):
        reference = source.choices(WORDS, k=words)
        edited = [word if source.random() > 0.2 else source.choice(WORDS) for word in reference]
        pairs.append(({"answer": " ".join(reference)}, sample_of(" ".join(edited))))
    return pairs


async def rate(grader: Grader, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    """Grade each pair after the other and return how many a second."""
    means = Means(judge=AtOnce())
    start = time.perf_counter()
    for item, sample in pairs:
        done = await grade(grader, item=item, sample=sample, means=means)
        assert not done.errors, done
    return len(pairs) / (time.perf_counter() - start)


async def measure(words: int, count: int, rounds: int) -> list[list[str]]:
    """Take each grader's turn in every round; return rows of name, median and range."""
    pairs, every = samples(words, count), graders()
    found: dict[str, list[float]] = {name: [] for name in every}
    for name, grader in every.items():
        check(grader, where=name)
        await rate(grader, pairs[:5])  # what is loaded at first use is loaded now
    for _ in range(rounds):
        for name, grader in every.items():
            found[name].append(await rate(grader, pairs))
    return [
        [name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"]
        for name, rates in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--words", type=int, default=60, help="words of each text")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print_machine()
    rows = asyncio.run(measure(arguments.words, arguments.samples, arguments.rounds))
    print_table(["grader", "grades/s, median", "range"], rows)


if __name__ == "__main__":
    main()
