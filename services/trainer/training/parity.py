"""Does the served model say what the trained one says?

A replica generates greedily; the trainer forces the same tokens through its own model. Every token has to be the
trainer's most likely one, or tie with it within the tolerance, and its log probability has to agree within it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from services.trainer.data.chat import Example
from services.trainer.protocol import ParityMeasured, ServedSample
from services.trainer.training.losses import Scores, score_tokens
from services.trainer.training.model import TrainableModel
from services.trainer.training.reading import Reader

# fp32 sums in another order differ by about 1e-4 nats here; a wrong adapter by more than 0.1. bf16 keeps 8 bits.
TOLERANCE = {torch.float32: 2e-2, torch.bfloat16: 0.25, torch.float16: 0.1}


def measure_parity(model: TrainableModel, samples: Sequence[ServedSample]) -> ParityMeasured:
    """Compare samples with the trained model. No tokens at all does not count as agreement."""
    tolerance = TOLERANCE[model.dtype]
    n_tokens, n_equal, largest, agrees = 0, 0, 0.0, True
    for sample in samples:
        scores = score(model, sample.prompt, sample.tokens)
        for served, token, own, best, best_token in zip(
            sample.logprobs, sample.tokens, scores.logprobs, scores.best_logprobs, scores.best_tokens, strict=True
        ):
            n_tokens += 1
            n_equal += token == best_token
            largest = max(largest, abs(served - own))
            agrees &= best - own <= tolerance
    return ParityMeasured(
        agrees=agrees and n_tokens > 0 and largest <= tolerance,
        n_tokens=n_tokens,
        n_argmax_equal=n_equal,
        max_logprob_difference=largest,
        tolerance=tolerance,
    )


def score(model: TrainableModel, prompt: Sequence[int], answer: Sequence[int]) -> Scores:
    """Force `answer` after `prompt` in one forward pass."""
    model.module.eval()
    tokens = np.array([*prompt, *answer], dtype=np.int32)
    is_answer = np.arange(len(tokens)) >= len(prompt)
    example = Example(0, tokens, is_answer.astype(np.uint8))
    with torch.no_grad():
        hidden_ND, batch = Reader(model).read([example])
        return score_tokens(hidden_ND, model.head, batch.targets_N)
