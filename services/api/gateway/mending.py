"""What an inference server's answers need to be as OpenAI's document says.

vLLM writes `null` where the document allows a field to be absent only, and leaves out a field of log probabilities that
it requires. The bytes are changed without reading the JSON. That is exact: inside a text the quotes would be escaped,
and the answers to chat and text completions have no keys that come from a client (tokens aside, whose values are
numbers).
"""

from __future__ import annotations

import re

_NEVER_NULL = re.compile(
    rb',"(?:annotations|function_call|tool_calls|system_fingerprint|prompt_tokens_details|completion_tokens_details)":null'
)
_LOGPROBS, _WHOLE_LOGPROBS = b',"logprobs":{"content":', b',"logprobs":{"refusal":null,"content":'


def mended(answer: bytes) -> bytes:
    """Return a whole answer of /v1/chat/completions or /v1/completions as the document wants it."""
    return _NEVER_NULL.sub(b"", answer).replace(_LOGPROBS, _WHOLE_LOGPROBS)
