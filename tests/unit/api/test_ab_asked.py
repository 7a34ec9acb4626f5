"""What the two answers of an A/B run's row reply to, and what of that may become a training file."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.ab_runs.asked import input_status
from services.api.evals.questions import shown_messages
from services.api.preferences.sources import _opinion
from shared.ab_records import AbSpec
from shared.schemas.ab_runs import AbItem, InputStatus
from shared.schemas.evals import OutputItem, Sample, SampleMessage

ASKED = [{"role": "user", "content": "Capital?"}]
OTHER = [{"role": "user", "content": "River?"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Capital?"}, {"type": "image_url", "image_url": {}}]}]
EMPTY: list[dict[str, Any]] = [{"role": "system"}, *ASKED]
CALLED: list[dict[str, Any]] = [
    *ASKED,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
    {"role": "tool", "tool_call_id": "c", "content": "Paris"},
]


def answer(asked: list[Any], item: dict[str, Any], said: str = "Paris") -> OutputItem:
    sample = Sample(input=shown_messages(asked), output=[SampleMessage(role="assistant", content=said)])
    return OutputItem(
        id="x", run_id="r", eval_id="e", created_at=0, status="pass", datasource_item_id=0, datasource_item=item,
        results=[], sample=sample,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "item", "status"),
    [
        (ASKED, ASKED, {}, "same"),
        (ASKED, ASKED, {"messages": ASKED}, "same"),
        (ASKED, OTHER, {"messages": ASKED}, "differs"),
        (PARTS, PARTS, {"deep": {"there": PARTS}}, "shortened"),
        (CALLED, CALLED, {"input": CALLED}, "shortened"),
        (EMPTY, EMPTY, {"input": EMPTY}, "shortened"),
        ([], [], {"messages": CALLED}, "unknown"),
        (ASKED, [], {"messages": ASKED}, "unknown"),
        ([], ASKED, {"messages": OTHER}, "differs"),
        ([], ASKED, {}, "differs"),
    ],
)
def test_status_of_what_was_asked(one: list[Any], other: list[Any], item: dict[str, Any], status: str) -> None:
    assert input_status(answer(one, item), answer(other, item)) == status


@pytest.mark.parametrize(
    ("status", "differ", "asked"),
    [
        ("same", False, ASKED),
        ("unknown", False, ASKED),
        ("differs", False, None),
        ("shortened", False, None),
        ("same", True, None),
    ],
)
def test_only_what_both_were_asked_is_exported(status: InputStatus, differ: bool, asked: list[Any] | None) -> None:
    item = AbItem(
        id="i", ab_run_id="r", eval_id="e", created_at=0, status="a", datasource_item_id=0,
        datasource_item={"messages": ASKED}, input=[], input_status=status,
        a=[SampleMessage(role="assistant", content="Paris")], b=[SampleMessage(role="assistant", content="Rome")],
    )  # fmt: skip
    spec = AbSpec(run_a="a", run_b="b", seed=1, salt="00", tools_differ=differ)
    found = _opinion(spec, item, "v", "a").input
    assert found == (None if asked is None else {"messages": asked})
