"""Lines of a file for reinforcement fine-tuning: a conversation to be answered, and what graders need to know.

    {"messages": [{"role": …, "content": …}, …], "tools": […], "reference_answer": …, any other key}

The last message is the user's, the developer's or a tool's: the model answers it. Every key but `messages` and `tools`
is for graders, who see the whole line as `item`.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from shared.chat_data import Message, check_messages


class PromptExample(Struct, frozen=True, kw_only=True, gc=False):
    """One conversation to be answered; other keys of the line are not looked at here."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None


def check_prompt(example: PromptExample) -> int:
    """Return 1, for the answer that is to come; raises ValueError that says what is wrong."""
    check_messages(example.messages, "messages")
    if example.messages[-1].role not in ("user", "developer", "tool"):
        raise ValueError("messages must end with what the model is to answer: a user's, developer's or tool's message")
    return 1
