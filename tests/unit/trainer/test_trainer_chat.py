"""Which tokens of a conversation are learnt."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from services.trainer.data.chat import MAX_TRAINED, Example, tokenize_rows
from shared.errors import InvalidTrainingData
from shared.training_data import ChatExample
from tests.unit.trainer.tiny import CHATML, FORGETFUL, HEADERS, PLAIN, conversation, tiny_tokenizer

TWO_TURNS = conversation(
    ("system", "be brief"), ("user", "red apple?"), ("assistant", "fruit"), ("user", "dog?"), ("assistant", "animal")
)


def tokenize(row: ChatExample, template: str, max_length: int = 256) -> tuple[Any, Example]:
    tokenizer = tiny_tokenizer(template)
    [example] = tokenize_rows([(1, row)], tokenizer, max_length=max_length, param="training_file")
    return tokenizer, example


def learnt(row: ChatExample, template: str) -> list[str]:
    """Decode each unbroken run of supervised tokens."""
    tokenizer, example = tokenize(row, template)
    runs: list[list[int]] = []
    previous = 0
    for token, flag in zip(example.tokens, example.supervised, strict=True):
        if flag and not previous:
            runs.append([])
        if flag:
            runs[-1].append(token)
        previous = flag
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (HEADERS, "<|eot|>")], ids=["chatml", "headers"])
def test_every_assistant_turn_is_learnt_with_its_end_and_nothing_else(template: str, end: str) -> None:
    assert learnt(TWO_TURNS, template) == [f"fruit{end}", f"animal{end}"]


def test_template_without_end_of_turn_gets_the_end_of_text_token() -> None:
    assert learnt(TWO_TURNS, PLAIN) == ["fruit\n", "animal\n<|im_end|>"]


def test_functions_stand_in_the_prompt_as_tools_do() -> None:
    function = {"name": "look", "parameters": {"type": "object"}}
    row = conversation(("user", "dog?"), ("assistant", "animal"))
    template = "{{ tools | tojson }}" + CHATML
    tool = {"type": "function", "function": function}
    tokenizer, example = tokenize(replace(row, functions=[function]), template)
    assert list(example.tokens) == list(tokenize(replace(row, tools=[tool]), template)[1].tokens)
    assert "look" in tokenizer.decode(list(example.tokens))


def test_weight_zero_is_context_only() -> None:
    row = conversation(
        ("user", "red apple?"), ("assistant", "nonsense", 0), ("user", "dog?"), ("assistant", "animal", 1)
    )
    assert learnt(row, CHATML) == ["animal<|im_end|>"]


def test_prompt_tokens_are_what_a_server_makes_of_the_messages() -> None:
    row = conversation(("user", "is a dog blue?"), ("assistant", "animal"))
    tokenizer, example = tokenize(row, CHATML)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "is a dog blue?"}], add_generation_prompt=True, return_dict=False
    )
    assert list(example.tokens[: example.prompt_length]) == prompt


def test_text_after_the_last_learnt_token_is_dropped() -> None:
    row = conversation(("user", "dog?"), ("assistant", "animal"), ("user", "and what else do you know?"))
    tokenizer, example = tokenize(row, CHATML)
    assert tokenizer.decode(list(example.tokens)).endswith("animal<|im_end|>")


def test_conversation_that_opens_with_the_assistant_needs_weight_zero() -> None:
    turns = (("user", "dog?"), ("assistant", "animal"))
    assert learnt(conversation(("assistant", "hello", 0), *turns), CHATML) == ["animal<|im_end|>"]
    with pytest.raises(InvalidTrainingData, match=r"line 1: .*no prompt leads to messages\[0\]"):
        learnt(conversation(("assistant", "hello"), *turns), CHATML)


def test_template_that_rewrites_earlier_turns_is_refused_with_the_line() -> None:
    single = conversation(("user", "dog?"), ("assistant", "animal"))
    assert learnt(single, FORGETFUL) == ["animal<|im_end|>"]
    rows = [(1, single), (4, TWO_TURNS), (5, TWO_TURNS)]
    with pytest.raises(InvalidTrainingData) as caught:
        tokenize_rows(rows, tiny_tokenizer(FORGETFUL), max_length=64, param="training_file")
    assert caught.value.code == "invalid_training_file"
    assert "line 4: the base model's chat template" in caught.value.message
    assert "2 lines" in caught.value.message


def test_rows_that_are_too_long_are_refused_with_the_first_line_and_their_number() -> None:
    rows = [(1, conversation(("user", "dog?"), ("assistant", "animal")))]
    rows += [(line, conversation(("user", "dog " * 90), ("assistant", "animal"))) for line in (3, 9)]
    with pytest.raises(InvalidTrainingData) as caught:
        tokenize_rows(rows, tiny_tokenizer(), max_length=64, param="validation_file")
    assert caught.value.param == "validation_file"
    assert "line 3: " in caught.value.message and "more than the 64" in caught.value.message
    assert "2 lines" in caught.value.message


def test_answer_of_no_tokens_is_refused() -> None:
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InvalidTrainingData, match=r"line 2: .* no tokens to learn"):
        tokenize_rows(
            [(2, conversation(("user", "dog"), ("assistant", "")))], tokenizer, max_length=9, param="training_file"
        )


def test_tool_calls_reach_the_template_with_parsed_arguments() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.city }}{% else %}{{ m['content'] }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "white"}'}}
    row = ChatExample(messages=conversation(("user", "dog?"), ("assistant", "")).messages)
    messages = [row.messages[0], _with_calls(call)]
    assert learnt(ChatExample(messages=messages), template) == ["white<|im_end|>"]


def _with_calls(call: dict[str, Any]) -> Any:
    import msgspec

    from shared.training_data import Message

    return msgspec.convert({"role": "assistant", "content": None, "tool_calls": [call]}, Message)


@pytest.mark.parametrize(
    "call", ["{{ messages[0].content.nothing.more }}", "{{ 1 // 0 }}", "{{ [].pop() }}", "{{ ''.join(7) }}"]
)
def test_whatever_a_template_raises_names_the_line(call: str) -> None:
    row = conversation(("user", "dog?"), ("assistant", "animal"))
    with pytest.raises(InvalidTrainingData, match="line 1: the base model's chat template cannot write it"):
        tokenize(row, call + CHATML)


def test_row_has_a_thousand_messages_to_learn_at_most() -> None:
    row = conversation(*[("user", "dog?"), ("assistant", "animal")] * (MAX_TRAINED + 1))
    with pytest.raises(InvalidTrainingData, match="line 1: 1001 messages to learn, more than the 1000"):
        tokenize(row, CHATML)
