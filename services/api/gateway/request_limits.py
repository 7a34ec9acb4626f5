"""How much one request may ask of an inference server that others wait for, however few bytes say it.

A body of a few megabytes can hold a million prompts, and each becomes a sequence in the engine. What is a matter of
tokens the inference server checks itself.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from shared.errors import InvalidRequest

MOST = {"messages": 10_000, "input": 10_000, "tools": 1024, "functions": 1024, "stop": 64, "stop_sequences": 64}
"""Entries of a list."""
MAX_PROMPTS = 2048
"""Texts, or lists of tokens, in `prompt` or `input`; as many as OpenAI takes."""
MAX_BIASES = 1024
MAX_CHOICES = 128
"""Of `n` and `best_of`."""
_WHOLE_NUMBERS = ("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens")
_WHOLE = re.compile(rb"null|-?[0-9]+")

_NONE = Raw(b"null")


class _Counted(Struct, frozen=True):
    """The fields that are counted, not decoded."""

    messages: Raw = _NONE
    input: Raw = _NONE
    prompt: Raw = _NONE
    tools: Raw = _NONE
    functions: Raw = _NONE
    stop: Raw = _NONE
    stop_sequences: Raw = _NONE
    logit_bias: Raw = _NONE
    n: Raw = _NONE
    best_of: Raw = _NONE
    max_tokens: Raw = _NONE
    max_completion_tokens: Raw = _NONE
    max_output_tokens: Raw = _NONE


_decode = msgspec.json.Decoder(_Counted).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


def check_request(body: bytes) -> None:
    """Look at a JSON object that was decoded before.

    Raises InvalidRequest that names the field with too much, or the number that is not written as a whole one: vLLM
    takes `1e4` and `"5000"` too, which neither these limits nor those of tokens would see.
    """
    counted = _decode(body)
    for name, most in MOST.items():
        _check_list(name, bytes(getattr(counted, name)), most)
    for name in ("prompt", "input"):
        raw = bytes(getattr(counted, name))
        if raw[:1] == b"[" and raw[1:].lstrip()[:1] in (b'"', b"["):  # else one list of tokens, or of items
            _check_list(name, raw, MAX_PROMPTS)
    bias = bytes(counted.logit_bias)
    if bias[:1] == b"{" and len(_decode_object(bias)) > MAX_BIASES:
        raise _too_much("logit_bias", MAX_BIASES)
    for name in _WHOLE_NUMBERS:
        if _WHOLE.fullmatch(bytes(getattr(counted, name))) is None:
            raise InvalidRequest(
                f"Invalid type for '{name}': expected an integer, written as one, or null.",
                code="invalid_type",
                param=name,
            )
    for name in ("n", "best_of"):
        number = bytes(getattr(counted, name))
        if number.isdigit() and (len(number) > 9 or int(number) > MAX_CHOICES):
            raise InvalidRequest(
                f"Invalid value for '{name}': expected at most {MAX_CHOICES}.", code="invalid_value", param=name
            )


def _check_list(name: str, raw: bytes, most: int) -> None:
    if raw[:1] == b"[" and raw.count(b",") >= most and len(_decode_list(raw)) > most:
        raise _too_much(name, most)


def _too_much(name: str, most: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{name}': it has more than {most:,} entries.", code="invalid_value", param=name
    )
