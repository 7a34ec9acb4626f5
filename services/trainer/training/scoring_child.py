"""The process that scores conversations with reward models, the few that were asked for last.

It reads a Batch a line, and answers each with one line. What it cannot foresee ends it: the worker starts another.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from services.trainer.launch.observed import configure_lines
from services.trainer.launch.processes import enter
from services.trainer.protocol import encode_line
from services.trainer.scoring_protocol import Batch, NotScored, Scored, batch_decoder
from services.trainer.shortages import is_out_of_memory
from services.trainer.training.child import forget_bitsandbytes, use_threads
from shared.adapters import adapter_digest
from shared.errors import InvalidTrainingData, SelftuneError

if TYPE_CHECKING:
    from services.trainer.training.scoring import Scorer
    from shared.chat_data import Message

MOST_MODELS = 2
"""Each has its base in memory."""

log = structlog.get_logger()


class Scorers:
    """Scores with any reward model; the last `most` stay in memory."""

    def __init__(self, most: int = MOST_MODELS) -> None:
        self._most = most
        self._held: OrderedDict[tuple[str, str, int], Scorer] = OrderedDict()

    def answer(self, batch: Batch) -> Scored | NotScored:
        """Score a batch, or say why not."""
        try:
            return _scored(self._scorer(batch), batch.conversations)
        except SelftuneError as error:
            return NotScored(reason=error.message)
        except Exception as error:
            self._held.clear()
            if not is_out_of_memory(error):
                raise
            log.error("scoring.out_of_memory", exc_info=error)
            return NotScored(reason="The trainer ran out of memory while it scored; shorter conversations need less.")

    def _scorer(self, batch: Batch) -> Scorer:
        """Return the batch's reward model, loaded if it is not held. Raises TrainingFailed."""
        from services.trainer.failures import TrainingFailed
        from services.trainer.training.scoring import Scorer

        key = (batch.base_folder, batch.sha256, batch.max_length)
        if key not in self._held:
            base, folder = Path(batch.base_folder), Path(batch.adapter_folder)
            if not base.is_dir():
                raise TrainingFailed("The reward model's base is not on the host of this trainer.")
            if not folder.is_dir() or adapter_digest(folder) != batch.sha256:
                raise TrainingFailed("The reward model's folder is not there any more, or is damaged.")
            while len(self._held) >= self._most:
                self._held.popitem(last=False)
            self._held[key] = Scorer.load(base, folder, max_length=batch.max_length)
        self._held.move_to_end(key)
        return self._held[key]


def _scored(scorer: Scorer, conversations: list[list[Message]]) -> Scored:
    try:
        return Scored(scores=list(scorer.scores(conversations)), problems=[""] * len(conversations))
    except InvalidTrainingData:  # of one of them, and the others are to have their scores
        each = [_scored_alone(scorer, conversation) for conversation in conversations]
        return Scored(scores=[score for score, _ in each], problems=[problem for _, problem in each])


def _scored_alone(scorer: Scorer, conversation: list[Message]) -> tuple[float | None, str]:
    try:
        return scorer.scores([conversation])[0], ""
    except InvalidTrainingData as error:
        _, _, problem = error.message.partition("line 1: ")
        return None, f"The conversation cannot be scored: {problem or error.message}"


def run(channel: socket.socket, _: str) -> int:
    """Be the process that scores, until the worker closes the channel."""
    configure_lines()
    forget_bitsandbytes()
    use_threads()
    scorers = Scorers()
    with channel.makefile("rb") as lines:
        for line in lines:
            channel.sendall(encode_line(scorers.answer(batch_decoder.decode(line))))
    return 0


if __name__ == "__main__":
    enter(run)
