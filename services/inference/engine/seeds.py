"""Requests with a seed, on a CPU: what is drawn for one whose prompt is not read to its end does not count.

vLLM 0.32 draws for every request of a step. What it drew for those that are not to be sampled from yet, it takes back
by setting their generator's offset, which a CPU's generators do not have: the engine would end with a RuntimeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def sparing_unread(runner: Any) -> Iterator[None]:
    """Keep the generators of requests that are not to be sampled from away from vLLM's model runner in the block."""
    generators, count = runner.input_batch.generators, runner.input_batch.num_reqs
    unread = map(int, np.nonzero(runner.discard_request_mask.np[:count])[0])
    spared = {place: generators.pop(place) for place in list(unread) if place in generators}
    try:
        yield
    finally:
        generators.update(spared)
