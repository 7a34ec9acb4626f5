"""What each token id stands for, written once a tokenizer for those who have no tokenizer."""

from __future__ import annotations

import re
import secrets
import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shared.paths import publish_folder

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def write_pieces(folder: Path, tokenizer: Any) -> None:
    """Write the folder that shared.token_cache.Pieces reads, unless it is there."""
    if (folder / "bytes").exists():
        folder.touch()
        return
    pieces = token_pieces(tokenizer)
    staged = folder.with_name(f".partial-{secrets.token_hex(8)}")
    staged.mkdir()
    try:
        (staged / "bytes").write_bytes(b"".join(pieces))
        np.array(list(accumulate(map(len, pieces))), np.int64).tofile(staged / "ends")
        publish_folder(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def token_pieces(tokenizer: Any) -> list[bytes]:
    """Return the bytes of every token, by id; none for numbers that are no token's."""
    added = {
        number: token.content.encode()
        for number, token in tokenizer.added_tokens_decoder.items()
        if not _BYTE.fullmatch(token.content)
    }
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    decode = _byte_level if _is_byte_level(tokenizer) else _sentencepiece
    for text, number in vocabulary.items():
        pieces[number] = added[number] if number in added else decode(text)
    return pieces


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return False
    state = msgspec.json.decode(backend.decoder.__getstate__())
    return "ByteLevel" in {step["type"] for step in state.get("decoders", [state])}


def _sentencepiece(text: str) -> bytes:
    byte = _BYTE.fullmatch(text)
    return bytes.fromhex(byte[1]) if byte else text.replace("\u2581", " ").encode()


def _byte_level(text: str) -> bytes:
    try:
        return bytes(map(_BYTES.__getitem__, text))
    except KeyError:
        return text.encode()


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes: visible ones for themselves, others moved up by 256."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _byte_letters()
