"""Chat rows -> tokens and the mask of what is learnt, exact for any chat template.

Templates seldom mark which text is the assistant's. So each conversation is rendered several times: up to an
assistant's turn with the generation prompt, and with that turn. Both must be prefixes of the whole rendering; what lies
between them is what the model has to write. The same is done with tokens: the tokens before a span are those that a
server makes of the prompt, so the model learns to go on exactly where it will have to. A template for which the prefix
property does not hold (one that rewrites earlier turns) is refused instead of being trained on wrongly.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import jinja2
import msgspec

from shared.errors import InvalidTrainingData
from shared.training_data import ChatExample, Message

Row = tuple[int, ChatExample]
Span = tuple[int, int]
Turn = dict[str, Any]

END_OF_TURN_REACH = 4
"""How many tokens a template may write behind the special token that ends a turn (a line break, as a rule)."""


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: int | None
    all_special_ids: list[int]

    def apply_chat_template(self, conversation: list[Turn], **options: Any) -> Any: ...

    def __call__(self, text: list[str], **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row, cut after its last supervised token since nothing behind it has an effect.

    `supervised[t]` is 1 when token t is a target; never at 0.
    """

    line: int
    tokens: array[int]
    supervised: bytes

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first target."""
        return self.supervised.index(1)

    @property
    def prompt(self) -> list[int]:
        """The tokens before the first target."""
        return list(self.tokens[: self.prompt_length])

    @property
    def n_supervised(self) -> int:
        return self.supervised.count(1)

    @property
    def width(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def sides(self) -> int:
        return 1


def tokenize_rows(rows: Sequence[Row], tokenizer: ChatTokenizer, *, max_length: int, param: str) -> list[Example]:
    """Turn (line number, row) pairs into examples, in order.

    Raises InvalidTrainingData that names the first bad line and how many there are: a template that cannot render it,
    nothing to learn, more than `max_length` tokens.
    """
    rendered = _render_all(rows, tokenizer, param)
    # One call for everything: the tokenizer works on it in parallel.
    encoded = iter(_encode([part for text, spans in rendered for part in _parts(text, spans)], tokenizer))
    examples = [
        _example(line, text, spans, list(islice(encoded, 1 + 2 * len(spans))), tokenizer)
        for (line, _), (text, spans) in zip(rows, rendered, strict=True)
    ]
    nothing = [(e.line, "its assistant messages have no tokens to learn") for e in examples if not e.n_supervised]
    too_long = [
        (e.line, f"{len(e.tokens)} tokens, more than the {max_length} of this server; shorten or split it")
        for e in examples
        if len(e.tokens) > max_length
    ]
    _refuse(nothing or too_long, param)
    return examples


def assistant_spans(example: ChatExample, tokenizer: ChatTokenizer) -> tuple[str, list[Span]]:
    """Render a conversation and find the characters the model has to write: (text, [(start, end), …]), in order.

    Turns with `weight: 0` are rendered but not in the list. Raises ValueError when the template is not stable under
    prefixes, and whatever the template raises.
    """
    turns = [_turn(message) for message in example.messages]
    tools = example.tools or [{"type": "function", "function": function} for function in example.functions or []]
    options: dict[str, Any] = {"tools": tools} if tools else {}

    def render(count: int, *, generation_prompt: bool) -> str:
        prompt = {"tokenize": False, "add_generation_prompt": generation_prompt}
        return str(tokenizer.apply_chat_template(turns[:count], **prompt, **options))

    text = render(len(turns), generation_prompt=False)
    spans = []
    for index, message in enumerate(example.messages):
        if message.trained:
            if index == 0:
                raise ValueError("no prompt leads to messages[0]; put a message before it, or give it weight 0")
            before = render(index, generation_prompt=True)
            after = text if index == len(turns) - 1 else render(index + 1, generation_prompt=False)
            if not (text.startswith(after) and after.startswith(before)):
                raise ValueError(
                    f"the base model's chat template writes messages[{index}] differently as part of a longer "
                    "conversation, so what is to be learnt cannot be told apart"
                )
            spans.append((len(before), len(after)))
    return text, spans


def _render_all(rows: Sequence[Row], tokenizer: ChatTokenizer, param: str) -> list[tuple[str, list[Span]]]:
    rendered: list[tuple[str, list[Span]]] = []
    refused: list[tuple[int, str]] = []
    for line, row in rows:
        try:
            rendered.append(assistant_spans(row, tokenizer))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            refused.append((line, f"the base model's chat template cannot write it: {error}"))
    _refuse(refused, param)
    return rendered


def _turn(message: Message) -> Turn:
    """Give templates what the server gives them: text instead of parts, parsed tool arguments, no training weight."""
    turn: Turn = {"role": message.role, "content": message.text or message.refusal or ""}
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


def _parts(text: str, spans: list[Span]) -> list[str]:
    """The whole text, then for each span the text before it and the text up to its end."""
    return [text, *(text[:place] for span in spans for place in span)]


def _encode(texts: list[str], tokenizer: ChatTokenizer) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []


def _example(line: int, text: str, spans: list[Span], parts: list[list[int]], tokenizer: ChatTokenizer) -> Example:
    """Mark the spans' tokens; `parts` are the tokens of _parts(text, spans)."""
    ids, befores, ends = parts[0], parts[1::2], parts[2::2]
    ranges = [(len(before), _common_prefix(ids, end)) for before, end in zip(befores, ends, strict=True)]
    if any(ids[: len(before)] != before for before in befores):
        ids, ranges = _encode_in_pieces(text, spans, tokenizer)
    special = frozenset(tokenizer.all_special_ids)
    supervised = bytearray(len(ids))
    for first, end in ranges:
        last = _end_of_turn(ids, first, end, special)
        supervised[first:last] = b"\x01" * (last - first)
    supervised[:1] = bytes(len(supervised[:1]))  # nothing comes before the first token, so nothing can predict it
    length = supervised.rfind(1) + 1
    ids = ids[:length]
    if length and ids[-1] not in special and tokenizer.eos_token_id is not None:
        # A template without an end-of-turn token would teach the model to go on for ever.
        ids.append(tokenizer.eos_token_id)
        supervised[length:] = b"\x01"
        length += 1
    return Example(line, array("q", ids), bytes(supervised[:length]))


def _encode_in_pieces(text: str, spans: list[Span], tokenizer: ChatTokenizer) -> tuple[list[int], list[Span]]:
    """Tokenise with a cut where each answer starts, for a text in which some token would lie across it.

    "assistant: " + "yes" may be one token " yes" in the whole, which no server's prompt lets the model write.
    """
    starts = [0, *(start for start, _ in spans)]
    stops = [*starts[1:], len(text)]
    pieces = _encode([text[start:stop] for start, stop in zip(starts, stops, strict=True)], tokenizer)
    answers = _encode([text[start:end] for start, end in spans], tokenizer)
    ids, ranges = list(pieces[0]), []
    for piece, answer in zip(pieces[1:], answers, strict=True):
        ranges.append((len(ids), len(ids) + _common_prefix(piece, answer)))
        ids += piece
    return ids, ranges


def _common_prefix(left: list[int], right: list[int]) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _end_of_turn(ids: list[int], first: int, last: int, special: frozenset[int]) -> int:
    """Leave out what a template writes behind the special token that ends a turn: a server stops before it."""
    for index in range(last - 1, max(first, last - END_OF_TURN_REACH) - 1, -1):
        if ids[index] in special:
            return index + 1
    return last


def _refuse(problems: list[tuple[int, str]], param: str) -> None:
    if problems:
        line, problem = problems[0]
        role = param.removesuffix("_file")
        count = f" {len(problems)} lines are like that." if len(problems) > 1 else ""
        raise InvalidTrainingData(
            f"The job failed due to an invalid {role} file. line {line}: {problem}.{count}",
            code=f"invalid_{param}",
            param=param,
        )
