"""What a reward model is asked about a sample, and what becomes of its score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.chat_data import Message, check_messages
from shared.grading.templates import Room, UnknownVariable, render
from shared.schemas.graders import RewardModelGrader


class NoConversation(Exception):
    """A row whose `messages` are none that a reward model can score; the text says why."""


def conversation_for(grader: RewardModelGrader, namespaces: Mapping[str, Any], room: Room) -> list[Message]:
    """Return the conversation that is scored; its last message is the answer.

    Raises NoConversation, and as templates.render does: UnknownVariable also for a row without messages.
    """
    if not grader.input:
        answer = Message(role="assistant", content=render("{{ sample.output_text }}", namespaces, room))
        return [*_asked(namespaces["item"], room), answer]
    return [Message(role=one.role, content=render(one.content, namespaces, room)) for one in grader.input]


def shaped(grader: RewardModelGrader, score: float) -> float:
    """Bring a score between the grader's bounds: by 1 / (1 + exp(-score)) if it squashes, else by clipping."""
    if grader.bounds is None:
        return score
    low, high = grader.bounds
    if not grader.squash:
        return min(max(score, low), high)
    share = 0.5 * (1.0 + math.tanh(0.5 * score))  # the logistic function, without its overflow
    return low * (1.0 - share) + high * share


def _asked(item: Mapping[str, Any], room: Room) -> list[Message]:
    if "messages" not in item:
        raise UnknownVariable(("item", "messages"))
    try:
        messages = msgspec.convert(item["messages"], list[Message])
        check_messages(messages, "item.messages")
    except msgspec.ValidationError as error:
        fault, _, place = str(error).partition(" - at `$")
        raise NoConversation(f"item.messages{place.rstrip('`')}: {fault}") from error
    except ValueError as error:
        raise NoConversation(str(error)) from error
    if not messages or messages[0].role == "assistant":
        raise NoConversation("item.messages begins with no message that asks")
    if messages[-1].role == "assistant":
        raise NoConversation("item.messages ends with an answer already; name what is asked in the grader's `input`")
    room.take(sum(len(message.text) for message in messages))
    return messages
