"""Whose generators vLLM's model runner gets to see in a step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from services.inference.engine.seeds import sparing_unread


def test_generators_of_unread_prompts_are_kept_away_and_come_back() -> None:
    kept = {0: "first", 1: "unread", 3: "last"}
    mask = SimpleNamespace(np=np.array([False, True, True, False, True]))  # places 2 and 4 have no seed, or no request
    batch = SimpleNamespace(generators=dict(kept), num_reqs=4)
    runner, seen = SimpleNamespace(input_batch=batch, discard_request_mask=mask), batch.generators
    with sparing_unread(runner):
        assert seen == {0: "first", 3: "last"}
    assert seen == kept
    with pytest.raises(ValueError, match="sampling"), sparing_unread(runner):
        raise ValueError("sampling failed")
    assert seen == kept
