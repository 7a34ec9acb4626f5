"""A base model's chat template, compiled once: conversations -> text, and which of it the model has to write.

Templates seldom mark which text is the assistant's. So each conversation is rendered several times: up to an
assistant's turn with the generation prompt, and with that turn. Both must be prefixes of the whole rendering; what lies
between them is what the model has to write. A template for which the prefix property does not hold (one that rewrites
earlier turns) is refused instead of being trained on wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from jinja2.runtime import LoopContext
from transformers.utils.chat_template_utils import _compile_jinja_template as compile_template

from shared.chat_data import ChatExample, Message

Span = tuple[int, int]
Turn = dict[str, Any]
Tools = list[dict[str, Any]]

_OF_LOOPS = frozenset({"first", "last", "index", "index0", "length", "revindex", "revindex0"})


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: int | None
    bos_token_id: int | None
    all_special_ids: list[int]
    special_tokens_map: dict[str, Any]
    added_tokens_decoder: dict[int, Any]

    def get_chat_template(self, chat_template: str | None = None, tools: Tools | None = None) -> str: ...

    def __call__(self, text: list[str], **options: Any) -> Any: ...


class ChatTemplate:
    """Renders as the tokenizer's apply_chat_template does."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_tokens_map
        self._compiled: dict[bool, tuple[Any, dict[str, Any]]] = {}

    def render(self, turns: list[Turn], tools: Tools | None, *, generation_prompt: bool) -> str:
        """Write a conversation. Raises whatever the template raises."""
        compiled = self._compiled.get(tools is not None)
        if compiled is None:
            compiled = self._compiled[tools is not None] = self._compile(tools)
        template, names = compiled
        # What template.render() does, but for putting together the names that never change: a third of its time.
        given = {**names, "messages": turns, "tools": tools, "add_generation_prompt": generation_prompt}
        context = template.environment.context_class(template.environment, given, template.name, template.blocks)
        return "".join(template.root_render_func(context))

    def _compile(self, tools: Tools | None) -> tuple[Any, dict[str, Any]]:
        """Compile the template, of which some bases have a second one for conversations with tools."""
        template = compile_template(self._tokenizer.get_chat_template(None, tools))
        template.environment.getattr = _quick_getattr(template.environment)
        return template, {**template.globals, **self._special, "documents": None}

    def prompt(self, messages: Sequence[Message], tools: Tools | None) -> str:
        """Render a conversation up to where the model goes on. Raises whatever the template raises."""
        return self.render(list(map(_turn, messages)), tools, generation_prompt=True)

    def spans(self, example: ChatExample) -> tuple[str, list[Span]]:
        """Render a conversation and find the characters the model has to write: (text, [(start, end), …]), in order.

        Turns with `weight: 0` are rendered but not in the list. Raises ValueError when the template is not stable under
        prefixes, and whatever the template raises.
        """
        turns = [_turn(message) for message in example.messages]
        tools = example.tools or [{"type": "function", "function": each} for each in example.functions or []] or None
        text = self.render(turns, tools, generation_prompt=False)
        spans = []
        for index, message in enumerate(example.messages):
            if message.trained:
                if index == 0:
                    raise ValueError("no prompt leads to messages[0]; put a message before it, or give it weight 0")
                before = self.render(turns[:index], tools, generation_prompt=True)
                last = index == len(turns) - 1
                after = text if last else self.render(turns[: index + 1], tools, generation_prompt=False)
                if not (text.startswith(after) and after.startswith(before)):
                    raise ValueError(
                        f"the base model's chat template writes messages[{index}] differently as part of a longer "
                        "conversation, so what is to be learnt cannot be told apart"
                    )
                spans.append((len(before), len(after)))
        return text, spans


def _quick_getattr(environment: Any) -> Callable[[Any, str], Any]:
    """Give a sandbox's getattr a short way for the two things that templates mostly ask for, which are always safe.

    `loop.first` and the like, and `message.role`, where a dict has no method of that name.
    """
    careful = type(environment).getattr.__get__(environment)

    def look_up(value: Any, name: str) -> Any:
        if type(value) is LoopContext and name in _OF_LOOPS:
            return getattr(value, name)
        if type(value) is dict and name in value and not hasattr(dict, name):
            return value[name]
        return careful(value, name)

    return look_up


def _turn(message: Message) -> Turn:
    """Give templates what the server gives them: text instead of parts, parsed tool arguments, no training weight."""
    content = message.content
    text = content if type(content) is str else message.text
    turn: Turn = {"role": message.role, "content": text or message.refusal or ""}
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        calls = [msgspec.to_builtins(call) for call in message.tool_calls]
        turn["tool_calls"] = [{**call, "function": _parsed(call["function"])} for call in calls]
    if message.function_call:
        turn["function_call"] = _parsed(msgspec.to_builtins(message.function_call))
    return turn


def _parsed(function: dict[str, Any]) -> dict[str, Any]:
    try:
        return {**function, "arguments": msgspec.json.decode(function["arguments"])}
    except msgspec.DecodeError:  # the model is to learn text that is no JSON: its owner's choice
        return function
