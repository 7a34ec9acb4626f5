"""A run learns what its labels say about unseen rows, and nothing when the labels say nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.unit.trainer.test_trainer_loop import supervised, train
from tests.unit.trainer.tiny import make_spec, training_rows, write_rows
from tests.unit.trainer.tiny_models import save_tiny_model

ROWS = training_rows(60)
"""All questions that there are; two answers, each to half of them."""
N_TRAINED = 48


def shuffled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Deal the answers anew, so that they have nothing to do with the questions."""
    answers = [row["messages"][1] for row in rows]
    random.Random(5).shuffle(answers)
    return [{"messages": [row["messages"][0], answer]} for row, answer in zip(rows, answers, strict=True)]


def outcome(base: Path, folder: Path, rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Train on `rows`; returns the share of unseen questions answered right, and their loss before and after."""
    spec = make_spec(
        base, folder, training_path=str(write_rows(folder / "rows.jsonl", rows)), learning_rate_multiplier=20.0,
        validation_path=str(write_rows(folder / "unseen.jsonl", ROWS[N_TRAINED:])), n_epochs=6, batch_size=8, rank=16,
        alpha=32,
    )  # fmt: skip
    run = train(spec, folder)
    unseen = run.loop.data.valid
    right = sum(run.session.evaluate([row]).accuracy == 1.0 for row in unseen)
    return right / len(unseen), supervised(spec).evaluate(unseen).loss, run.session.evaluate(unseen).loss


def test_true_labels_are_learnt_and_shuffled_ones_are_not(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama")
    accuracy, before, after = outcome(base, tmp_path / "true", ROWS[:N_TRAINED])
    assert accuracy >= 0.9, "of unseen questions; the untrained base answers none"
    assert after < before / 2
    guessed, _, loss = outcome(base, tmp_path / "shuffled", shuffled(ROWS[:N_TRAINED]))
    assert guessed <= 0.75, "one of two answers is right half of the time"
    assert loss > after * 2
