"""Reading the header of a safetensors file without a tensor library.

Format: 8 bytes little-endian length of the header, the header as JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta, Struct

from shared.errors import AdapterRejected

FORMAT_HEADER_BYTES = 100 << 20
"""The format's own limit."""
ADAPTER_HEADER_BYTES = 4 << 20
"""Enough for the adapter of a model with thousands of layers; parsing takes many times as much memory."""


class TensorInfo(Struct, frozen=True):
    """One tensor: element type such as F32, shape, and its bytes' place behind the header."""

    dtype: str
    shape: list[Annotated[int, Meta(ge=0)]]
    data_offsets: tuple[int, int]


_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_header(path: Path, limit: int = FORMAT_HEADER_BYTES) -> dict[str, TensorInfo]:
    """Return the tensors of a file by name.

    Raises AdapterRejected when the file is not safetensors, is shorter or longer than its header says, or has a header
    of more than `limit` bytes, which is not read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= size - 8:
                raise AdapterRejected(f"{path.name} is not a safetensors file, or is cut off inside its header")
            if length > limit:
                raise AdapterRejected(f"{path.name} has a header of {length:,} bytes; {limit:,} are taken")
            entries = _decode(handle.read(length))
        tensors = {
            name: msgspec.json.decode(raw, type=TensorInfo) for name, raw in entries.items() if name != "__metadata__"
        }
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterRejected(f"{path.name} cannot be read as safetensors: {type(error).__name__}") from error
    expected = 8 + length + max((info.data_offsets[1] for info in tensors.values()), default=0)
    if size != expected:
        raise AdapterRejected(f"{path.name} has {size} bytes, its header promises {expected}: truncated or damaged")
    return tensors


def data_offset(handle: BinaryIO) -> int:
    """Return where the tensors' bytes begin in an open file that `read_header` has accepted."""
    handle.seek(0)
    return 8 + int.from_bytes(handle.read(8), "little")
