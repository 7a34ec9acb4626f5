"""What llama.cpp makes of a GGUF file, as JSON: FILE, the number of tokens to answer, then texts.

In a process of its own, so that whatever the engine does ends with it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx2
import xllamacpp


def main(file: str, count: str, *texts: str) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 256, 1, False, -1
    # As it is by default, it would keep keys and values in half precision.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    found = [read(server.listening_address, text, int(count)) for text in texts]
    sys.stdout.write(f"\n{json.dumps(found)}")


def read(url: str, text: str, count: int) -> dict[str, list[int]]:
    """Return a text's tokens, and the tokens that greedily follow."""
    tokens = post(f"{url}/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
    options = {"n_predict": count, "temperature": 0, "top_k": 1, "ignore_eos": False, "return_tokens": True}
    return {"tokens": tokens, "answer": post(f"{url}/completion", prompt=tokens, **options)["tokens"]}


def post(url: str, **body: Any) -> Any:
    return httpx2.post(url, json=body, timeout=60).raise_for_status().json()


if __name__ == "__main__":
    main(*sys.argv[1:])
