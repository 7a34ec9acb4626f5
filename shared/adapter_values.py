"""Checking every number of a safetensors file without a tensor library: laid out as the header says, and finite.

A number of these types is infinite or not a number when all bits of its exponent are set. The bytes that hold the
exponent are picked out of a block by slices and compared by tables, so that no number is looked at by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shared.errors import AdapterRejected
from shared.safetensors_header import ADAPTER_HEADER_BYTES, TensorInfo, data_offset, read_header

_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
_BLOCK_BYTES = 1 << 20
_F16_SPECIAL = bytes(byte for byte in range(256) if byte & 0x7C == 0x7C)
_UPPER = bytes(int(byte & 0x7F == 0x7F) for byte in range(256))
_LOWER = bytes(int(byte & 0x80 == 0x80) for byte in range(256))


def check_values(path: Path) -> None:
    """Raise AdapterRejected unless an adapter's tensors fill its file without gaps and every number is finite.

    Takes F32, F16 and BF16; reads the file once, in blocks.
    """
    tensors = read_header(path, ADAPTER_HEADER_BYTES)
    _check_layout(tensors)
    try:
        with path.open("rb") as handle:
            begin = data_offset(handle)
            for name, info in tensors.items():
                handle.seek(begin + info.data_offsets[0])
                for block in _blocks(handle, info.data_offsets[1] - info.data_offsets[0]):
                    if not _is_finite(block, info.dtype):
                        raise AdapterRejected(f"{name} holds values that are not finite")
    except OSError as error:
        raise AdapterRejected(f"{path.name} cannot be read: {error.strerror}") from error


def _check_layout(tensors: dict[str, TensorInfo]) -> None:
    place = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        if info.dtype not in _WIDTHS:
            raise AdapterRejected(f"{name}: element type {info.dtype} is not served")
        if info.data_offsets != (place, place + math.prod(info.shape) * _WIDTHS[info.dtype]):
            raise AdapterRejected(f"{name}: its place in the file does not fit its shape {info.shape}: damaged")
        place = info.data_offsets[1]


def _blocks(handle: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    while size_bytes > 0:
        block = handle.read(min(_BLOCK_BYTES, size_bytes))
        if not block:
            raise AdapterRejected("the file ends before its tensors do: truncated")
        size_bytes -= len(block)
        yield block


def _is_finite(block: bytes, dtype: str) -> bool:
    """Tell whether a block of whole little-endian numbers is finite."""
    if dtype == "F16":  # sign, 5 bits of exponent, 2 bits: one byte
        return len(block[1::2].translate(None, _F16_SPECIAL)) == len(block) // 2
    width = _WIDTHS[dtype]  # sign and 7 bits of exponent in the last byte, the eighth bit in the one before
    upper = block[width - 1 :: width].translate(_UPPER)
    if b"\1" not in upper:
        return True
    lower = block[width - 2 :: width].translate(_LOWER)
    return not int.from_bytes(upper, "little") & int.from_bytes(lower, "little")
