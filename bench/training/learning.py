"""Whether a run on real data learns, and on shuffled labels does not: the demo's task, with a verdict.

    python -m bench.training.learning [--base FOLDER] [--epochs 2]

Trains the base twice on the training rows of examples/chatterbot_topics.py, once as they are and once with the answers
dealt anew among the questions, and asks all three models the held-out questions. An answer counts when every token of
it, its end included, is the model's first choice. Always answering the most frequent topic is what labels without
meaning can teach. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.training.measure import ROOT

SHUFFLE_SEED = 5
MARGIN = 0.15
"""A difference that is no accident: three standard errors of a share of about a hundred and thirty answers."""
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, help="folder of a base model; the embedded one if left out")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, help="only so many training rows")
    arguments = parser.parse_args()
    from bench.training.__main__ import embedded_base

    base = (arguments.base or embedded_base()).absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = _topics().write(folder / "topics")
        rows = [json.loads(line) for line in data["train"].read_text().splitlines()][: arguments.rows]
        unseen = [json.loads(line) for line in data["test"].read_text().splitlines()]
        true = outcome(base, folder / "true", rows, data["test"], arguments.epochs)
        dealt = outcome(base, folder / "shuffled", shuffled(rows), data["test"], arguments.epochs)
    return _verdict(true, dealt, chance(unseen))


def _topics() -> Any:
    """Load the example, which is no package."""
    spec = importlib.util.spec_from_file_location("chatterbot_topics", ROOT / "examples" / "chatterbot_topics.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """Keep questions and answers, but not which belongs to which."""
    answers = [row["messages"][-1] for row in rows]
    random.Random(SHUFFLE_SEED).shuffle(answers)
    return [{"messages": [*row["messages"][:-1], answer]} for row, answer in zip(rows, answers, strict=True)]


def chance(rows: Sequence[Row]) -> float:
    """The share that always answering the most frequent topic gets."""
    return Counter(row["messages"][-1]["content"] for row in rows).most_common(1)[0][1] / len(rows)


class Outcome:
    """Held-out loss and share of right answers, before and after training."""

    def __init__(self, loss: tuple[float, float], right: tuple[float, float]) -> None:
        self.loss = loss
        self.right = right

    def __str__(self) -> str:
        loss, right = (f"{before:.3f} → {after:.3f}" for before, after in (self.loss, self.right))
        return f"validation loss {loss}, right answers {right}"


def outcome(base: Path, folder: Path, rows: Sequence[Row], validation: Path, epochs: int) -> Outcome:
    """Train through the session, with the product's own rates, and ask before and after."""
    from services.trainer.data.batches import epoch_batches
    from services.trainer.protocol import TrainSpec
    from services.trainer.training.model import build_model
    from services.trainer.training.objectives import Supervised
    from services.trainer.training.optim import BASE_LEARNING_RATE, learning_rate_at
    from services.trainer.training.reading import Reader
    from services.trainer.training.run_job import load_data
    from services.trainer.training.session import TrainingSession

    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TrainSpec(
        job_id="ftjob-bench", base_id="base", base_folder=str(base), base_fingerprint="", adapters_folder="",
        training_path=str(folder / "rows.jsonl"), validation_path=str(validation), n_epochs=epochs, batch_size=8,
        learning_rate_multiplier=1.0, seed=1,
    )  # fmt: skip
    data = load_data(spec)
    session = TrainingSession(Supervised(Reader(build_model(spec))))

    def ask() -> tuple[float, float]:
        right = sum(session.evaluate([row]).accuracy == 1.0 for row in data.valid)
        return session.evaluate(data.valid).loss, right / len(data.valid)

    before = ask()
    lengths = [row.width for row in data.train]
    batches = [b for epoch in range(epochs) for b in epoch_batches(lengths, 8, seed=1, epoch=epoch)]
    for step, batch in enumerate(batches, start=1):
        loss = session.forward_backward([data.train[row] for row in batch]).loss
        session.optim_step(learning_rate_at(step, len(batches), BASE_LEARNING_RATE))
        if step % 16 == 0:
            print(f"  {folder.name}: step {step} of {len(batches)}, loss {loss:.3f}", flush=True)
    after = ask()
    return Outcome((before[0], after[0]), (before[1], after[1]))


def _verdict(true: Outcome, dealt: Outcome, most_frequent: float) -> int:
    print(f"\ntrue labels:     {true}\nshuffled labels: {dealt}\nmost frequent topic: {most_frequent:.3f}\n")
    checks = {
        "true labels: validation loss falls": true.loss[1] < true.loss[0],
        "true labels: right answers rise above the base's": true.right[1] > true.right[0] + MARGIN,
        "true labels: right answers rise above the most frequent topic": true.right[1] > most_frequent + MARGIN,
        "shuffled labels: no more right answers than the most frequent topic": dealt.right[1] < most_frequent + MARGIN,
        "shuffled labels: a higher validation loss than true ones": dealt.loss[1] > true.loss[1],
    }
    for check, holds in checks.items():
        print(f"{'holds' if holds else 'does not hold':<14}{check}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
