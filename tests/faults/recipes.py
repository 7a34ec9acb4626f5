"""The trainings that clients ask for: three data sets with a seed each, so that each has one right outcome."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.integration.inference_stack import BASE_ID

_WORDS = ("red", "green", "blue", "black", "white")


@dataclass(frozen=True)
class Recipe:
    """What to upload, and what to ask for."""

    number: int
    n_epochs: int
    batch_size: int

    def content(self) -> bytes:
        """Twenty-four rows in the chat format."""
        rows = (
            {
                "messages": [
                    {"role": "user", "content": f"colour {row} of {self.number}?"},
                    {"role": "assistant", "content": _WORDS[(row * (self.number + 1)) % len(_WORDS)]},
                ]
            }
            for row in range(24)
        )
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def job(self, file_id: str, tag: str) -> dict[str, Any]:
        """Form the body that creates the job."""
        asked = {"n_epochs": self.n_epochs, "batch_size": self.batch_size, "learning_rate_multiplier": 1.0}
        return {
            "model": BASE_ID,
            "training_file": file_id,
            "seed": 100 + self.number,
            "suffix": f"r{self.number}",
            "metadata": {"tag": tag},
            "method": {"type": "supervised", "supervised": {"hyperparameters": asked}},
            "selftune": {"checkpoint_interval": 40},
        }

    @property
    def steps(self) -> int:
        return self.n_epochs * -(-24 // self.batch_size)


RECIPES = (Recipe(0, 12, 2), Recipe(1, 20, 2), Recipe(2, 10, 1))
