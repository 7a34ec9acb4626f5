"""How fast a file of chat rows becomes tokens and masks on disk, and whether ten times the rows take ten times as long.

    python -m bench.training.tokenize BASE_FOLDER [--rows 100000] [--rounds 3]

BASE_FOLDER holds a tokenizer with a chat template; the weights are not touched. Each row has the same system prompt, a
question and an answer of random words. Files of ROWS / 10 and of ROWS rows are tokenised in turn, by the function that
the trainer uses and with as many processes as there are cores, from the file's bytes to the folder in the cache.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

WORDS = 20_000
SYSTEM = "You are the assistant of a shipping company. Answer in one sentence, and say when you do not know."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", help="folder with a tokenizer that has a chat template")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.modules["torch"] = None  # type: ignore[assignment]  # as in the process that tokenises
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'rows':>9}{'MB':>8}{'tokens/row':>12}{'seconds':>9}{'rows/s':>9}{'MB/s':>7}")
    with tempfile.TemporaryDirectory() as folder:
        medians = [_measure(Path(folder), arguments.base, n, arguments.rounds) for n in _sizes(arguments.rows)]
    ratio = medians[1] / medians[0]
    print(f"ten times the rows take {ratio:.2f} times as long; in proportion within {abs(ratio / 10 - 1):.0%}")


def _sizes(rows: int) -> tuple[int, int]:
    return rows // 10, rows


def _measure(folder: Path, base: str, n_rows: int, rounds: int) -> float:
    path = _write(folder / f"{n_rows}.jsonl", n_rows)
    seconds = [_tokenize(folder / "tokens", base, path) for _ in range(rounds)]
    median = statistics.median(took for took, _ in seconds)
    table = seconds[0][1]
    megabytes = path.stat().st_size / 1e6
    print(
        f"{n_rows:>9,}{megabytes:>8.1f}{len(table.ids_T) / n_rows:>12.1f}{median:>9.2f}{n_rows / median:>9,.0f}"
        f"{megabytes / median:>7.1f}"
    )
    return median


def _tokenize(tokens: Path, base: str, path: Path) -> tuple[float, Any]:
    """Return seconds, without those for the tokenizer's own files, and what came of it."""
    from services.trainer.data.loading import TokenSource

    source = TokenSource(base, str(tokens), "supervised", is_alone=True)
    started = time.perf_counter()
    _, table = source.table(str(path), "training_file")
    took = time.perf_counter() - started
    shutil.rmtree(tokens)
    return took, table


def _write(path: Path, n_rows: int) -> Path:
    rng = random.Random(n_rows)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters[: 4 + rank // 1000], k=rng.randint(2, 8))) for rank in range(WORDS)]
    shares = [1 / (rank + 1) for rank in range(WORDS)]  # Zipf's law
    with path.open("wb") as file:
        for _ in range(n_rows):
            question, answer = (" ".join(rng.choices(words, shares, k=rng.randint(8, 20))) for _ in range(2))
            messages = [("system", SYSTEM), ("user", question + "?"), ("assistant", answer + ".")]
            row = {"messages": [{"role": role, "content": content} for role, content in messages]}
            file.write(msgspec.json.encode(row) + b"\n")
    return path


if __name__ == "__main__":
    main()
