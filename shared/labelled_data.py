"""Lines of a file for KTO: a conversation whose last answer is said to be good or bad, without another to compare.

    {"messages": [{"role": …, "content": …}, …], "tools": […], "label": true or false}

The last message, the assistant's, is what the label is about; what stands before it is context. In place of `messages`
a line may have `prompt` and `completion`, each a list of messages, as TRL's unpaired preferences do, which together
are the conversation.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace

from shared.chat_data import ChatExample, Message, check_messages

Messages = Annotated[list[Message], Meta(min_length=1)]


class LabelledExample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One conversation with a label: true for an answer to be given more often, false for one to be given less."""

    label: bool
    messages: Messages | None = None
    prompt: Messages | None = None
    completion: Messages | None = None
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None

    def conversation(self) -> ChatExample:
        """Return the conversation, of which the last message alone is learnt; check_labelled() has passed it."""
        *context, answer = self.messages or [*(self.prompt or ()), *(self.completion or ())]
        return ChatExample(
            messages=[*map(unlearnt, context), replace(answer, weight=None)],
            tools=self.tools,
            parallel_tool_calls=self.parallel_tool_calls,
        )


def unlearnt(message: Message) -> Message:
    """Return the message as context."""
    return replace(message, weight=0) if message.role == "assistant" else message


def check_labelled(example: LabelledExample) -> int:
    """Return how many messages are labelled, which is 1; raises ValueError that says what is wrong."""
    if example.messages is not None:
        if example.prompt is not None or example.completion is not None:
            raise ValueError("it has messages and prompt or completion; give the conversation once")
        if len(example.messages) < 2:
            raise ValueError("messages has one message; expected what the answer replies to, and the answer")
        return _check_answered(example.messages, "messages")
    if example.prompt is None or example.completion is None:
        raise ValueError("expected messages, or prompt and completion")
    check_messages(example.prompt, "prompt")
    return _check_answered(example.completion, "completion")


def _check_answered(messages: list[Message], where: str) -> int:
    check_messages(messages, where)
    if messages[-1].role != "assistant":
        raise ValueError(f"{where} must end with an assistant message, which the label is about")
    return 1
