from __future__ import annotations

import pytest

from services.api.gateway.mending import mended
from shared.rewriting import with_fields


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b'{"role":"x","annotations":null,"audio":null}', b'{"role":"x","audio":null}'),
        (b'{"a":1,"function_call":null,"tool_calls":null}', b'{"a":1}'),
        (b'{"content":"a,\\"annotations\\":null"}', b'{"content":"a,\\"annotations\\":null"}'),
        (b'{"a":1,"annotations":[]}', b'{"a":1,"annotations":[]}'),
        (b'{"i":0,"logprobs":{"content":[]}}', b'{"i":0,"logprobs":{"refusal":null,"content":[]}}'),
        (b'{"i":0,"logprobs":null}', b'{"i":0,"logprobs":null}'),
    ],
)
def test_only_what_breaks_the_document_changes(answer: bytes, shown: bytes) -> None:
    assert mended(answer) == shown


def test_values_that_are_not_named_keep_their_bytes() -> None:
    body = b'{ "a" : 1.50, "model": "x", "b": {"c": [ 1e3 ]}, "d": "\\u00fc" }'
    assert with_fields(body, model="y", without={"b"}) == b'{"a":1.50,"model":"y","d":"\\u00fc"}'
