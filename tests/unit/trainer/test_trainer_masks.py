"""The quick way to tokens and masks gives what the plain one does: the whole text, and each prompt for itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.data.chat import ChatMarker
from services.trainer.data.coder import Coder
from services.trainer.data.masks import carefully, mark, mark_completion, mark_text, quickly
from services.trainer.data.template import ChatTemplate
from shared.chat_data import ChatExample
from tests.unit.trainer.templates import FAMILIES, family_tokenizer

WORDS = [
    "cat", "The dog", "isn't", " ", "  ", "\n", "\n\n", "\t", "12 3456", "é", "e\u0301", "\u00a0", "\u2028x", "日本 語",
    "🙂", "<|im_end|>", "<|im_start|>", "<|im_", "end|>", "</s>", "<s", "[INST]", "<eos>", "<tool_call>", ".", "a  b",
    "<|eot_id|>", "<end_of_turn>", "'S", "\x1c", "/\n", "...\n\n  x", "\u0301x",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(WORDS), max_size=7).map("".join) | st.text(max_size=12)
CALL = st.fixed_dictionaries(
    {"name": st.sampled_from(["look", "find"]), "arguments": st.sampled_from(['{"city": "Oslo"}', "{}", "no json"])}
).map(lambda function: {"id": "c1", "type": "function", "function": function})
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXT},
    optional={"weight": st.sampled_from([0, 1]), "tool_calls": st.lists(CALL, min_size=1, max_size=2)},
)
OTHER = st.fixed_dictionaries({"role": st.sampled_from(["user", "user", "tool"]), "content": TEXT})
CONVERSATION = st.tuples(
    st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": TEXT}), max_size=1),
    st.lists(st.tuples(OTHER, ANSWER), min_size=1, max_size=3),
    st.lists(OTHER, max_size=1),
).map(lambda parts: [*parts[0], *(turn for pair in parts[1] for turn in pair), *parts[2]])
TOOLS = st.none() | st.just([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}])


class PlainCoder(Coder):
    """Lets the tokenizer do everything."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.cuts = False

    def encode(self, text: str) -> bytes:
        return self.ask(text)


@cache
def family(name: str) -> tuple[Any, ChatMarker, PlainCoder]:
    tokenizer = family_tokenizer(name)
    return tokenizer, ChatMarker(tokenizer), PlainCoder(tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
@given(messages=CONVERSATION, tools=TOOLS)
@settings(max_examples=60, deadline=None)
def test_quick_marks_are_those_of_the_plain_way(name: str, messages: list[Any], tools: Any) -> None:
    tokenizer, marker, plain = family(name)
    row = msgspec.convert({"messages": messages, "tools": tools}, ChatExample)
    try:
        text, spans = ChatTemplate(tokenizer).spans(row)
    except (ValueError, jinja2.TemplateError):
        with pytest.raises(ValueError):
            marker(row)
        return
    assert marker(row) == carefully(text, spans, plain)


@pytest.mark.parametrize("name", [name for name, each in FAMILIES.items() if each.template])
def test_rendering_is_the_tokenizer_s_own(name: str) -> None:
    tokenizer = family_tokenizer(name)
    turns = [{"role": "user", "content": " dog? "}, {"role": "assistant", "content": "animal"}]
    for generation_prompt in (False, True):
        rendered = ChatTemplate(tokenizer).render(turns, None, generation_prompt=generation_prompt)
        theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
        assert rendered == theirs


@pytest.mark.parametrize(
    ("name", "is_quick"), [(name, name not in ("unmarked", "nested", "zephyr")) for name in FAMILIES]
)
def test_ordinary_rows_go_the_quick_way(name: str, is_quick: bool) -> None:
    tokenizer, marker, _ = family(name)
    messages = [{"role": "user", "content": "the dog?"}, {"role": "assistant", "content": "animal"}] * 2
    text, spans = ChatTemplate(tokenizer).spans(msgspec.convert({"messages": messages}, ChatExample))
    assert (quickly(text, spans, marker.coder) is not None) == is_quick


@pytest.mark.parametrize("change", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}], ids=str)
@given(messages=CONVERSATION)
@settings(max_examples=40, deadline=None)
def test_added_tokens_that_swallow_blanks_go_the_plain_way(change: dict[str, bool], messages: list[Any]) -> None:
    tokenizer = _changed(*change)
    row = msgspec.convert({"messages": messages}, ChatExample)
    text, spans = ChatTemplate(tokenizer).spans(row)
    assert mark(text, spans, Coder(tokenizer)) == carefully(text, spans, PlainCoder(tokenizer))


@cache
def _changed(name: str) -> Any:
    return family_tokenizer("smollm", **{name: True})


@pytest.mark.parametrize("name", ["smollm", "llama", "gemma"])
@given(prompt=TEXT, completion=TEXT.filter(bool))
@settings(max_examples=60, deadline=None)
def test_completions_begin_where_a_server_s_prompt_ends(name: str, prompt: str, completion: str) -> None:
    tokenizer, marker, plain = family(name)
    marked = mark_completion(prompt, completion, marker.coder)
    assert marked == mark_completion(prompt, completion, plain)
    asked = plain.opening + plain.ask(prompt)
    assert marked.ids.startswith(asked)
    first = max(1, len(asked) // 4)
    assert marked.mask == bytes(first)[: len(marked.mask)] + b"\x01" * (len(marked.mask) - first)
    assert marked.ids[-4:] == tokenizer.eos_token_id.to_bytes(4, "little")


@given(text=TEXT.filter(bool))
@settings(max_examples=60, deadline=None)
def test_of_plain_text_all_is_learnt_but_the_first_token(text: str) -> None:
    tokenizer, marker, plain = family("qwen")
    marked = mark_text(text, marker.coder)
    assert marked.mask == b"\x00" + b"\x01" * (len(marked.mask) - 1)
    eos = tokenizer.eos_token_id.to_bytes(4, "little")
    asked = plain.ask(text)
    assert marked.ids == asked + (b"" if asked.endswith(eos) else eos)
