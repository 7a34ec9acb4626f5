"""What ends a run before its last row."""

from __future__ import annotations

from shared.schemas.evals import EvalError

MODEL_GONE = "model_not_found"


class RunFailed(Exception):
    """The run cannot go on; `error` is the run's."""

    def __init__(self, error: EvalError) -> None:
        super().__init__(error.message)
        self.error = error
