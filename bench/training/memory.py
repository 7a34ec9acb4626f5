"""The memory estimate against the truth: what each job was expected to need, and the most its process ever held."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.training.job import run_job
from bench.training.report import Line
from bench.training.rows import MAKERS, chats, write_jsonl
from services.trainer.protocol import SPEC_FILE, spec_decoder

AIM = 0.15
ROWS = 16


@dataclass(frozen=True)
class Case:
    """A job of one step, or of two."""

    rows: Callable[[random.Random], list[dict[str, Any]]]
    changes: dict[str, Any] = field(default_factory=dict)


def _long(order: random.Random) -> list[dict[str, Any]]:
    """Rows of some 2,000 tokens, each a piece of its own."""
    return [_padded_out(row, 1900, order) for row in MAKERS["mixed"](order)[:ROWS]]


def _padded_out(row: dict[str, Any], words: int, order: random.Random) -> dict[str, Any]:
    system, user, answer = row["messages"]
    known = user["content"].split()
    return {
        "messages": [system, {**user, "content": " ".join(order.choices(known, k=words))}, {**answer, "content": "yes"}]
    }


CASES = {
    "short rows, shared prompt": Case(lambda order: chats(ROWS, order)),
    "rows of mixed length": Case(lambda order: MAKERS["mixed"](order)),
    "rows of 2,000 tokens": Case(_long, {"batch_size": 2}),
    "rank 64": Case(lambda order: chats(ROWS, order), {"rank": 64, "alpha": 128}),
    "two rows at once": Case(lambda order: MAKERS["mixed"](order), {"gradient_accumulation_steps": 4}),
    "DPO": Case(lambda order: MAKERS["pairs"](order)[:ROWS], {"method": "dpo"}),
    "QLoRA": Case(lambda order: chats(ROWS, order), {"quantization": "nf4"}),
    "every weight": Case(lambda order: chats(ROWS, order), {"finetuning_type": "full"}),
    "every weight, mixed length": Case(lambda order: MAKERS["mixed"](order), {"finetuning_type": "full"}),
    "dropout": Case(lambda order: chats(ROWS, order), {"dropout": 0.1}),
    "plain path (NEFTune)": Case(lambda order: chats(ROWS, order), {"neftune_noise_alpha": 5.0}),
}


def measure(base: Path, folder: Path, *, rounds: int, quick: bool) -> list[Line]:
    """One run of each case: what a process holds at most differs by a few per cent at most."""
    del rounds
    lines = []
    print("\n| case | estimate | truth | estimate / truth |\n" + "| --- " * 4 + "|")
    for number, (name, case) in enumerate(CASES.items()):
        if quick and number:
            break
        rows = write_jsonl(folder / f"memory-{number}.jsonl", case.rows(random.Random(number)))
        job = folder / f"memory-{number}"
        truth_mb = run_job(job, base, rows, **case.changes).peak_mb
        expected_mb = (spec_decoder.decode((job / SPEC_FILE).read_bytes()).estimated_memory_bytes or 0) / 1e6
        print(f"| {name} | {expected_mb:.0f} MB | {truth_mb:.0f} MB | {expected_mb / truth_mb:.2f} |", flush=True)
        lines.append(
            Line(f"memory estimate, {name}: relative error", f"{expected_mb:.0f} MB", f"truth {truth_mb:.0f} MB",
                 abs(expected_mb / truth_mb - 1), AIM, at_least=False)
        )  # fmt: skip
    return lines
