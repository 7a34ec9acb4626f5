"""Numbers of an adapter that are not finite are found, wherever they are and of whatever type."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from shared.adapter_values import check_values
from shared.errors import AdapterRejected
from tests.adapter_files import write_safetensors

LARGEST = {"F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}
INFINITE = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
NAN = {"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0}
WIDTH = {"F32": 4, "F16": 2, "BF16": 2}
COUNT = 300_001  # more than one block of F32, and an odd number


def numbers(dtype: str, bits: int, *, at: int | None = None) -> bytes:
    width = WIDTH[dtype]
    one = bits.to_bytes(width, "little")
    if at is None:
        return one * COUNT
    return bytes(at * width) + one + bytes((COUNT - 1 - at) * width)


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("sign", [0, 1])
def test_largest_and_smallest_numbers_are_finite(dtype: str, sign: int, tmp_path: Path) -> None:
    for bits in (0, 1, LARGEST[dtype], INFINITE[dtype] >> 1):
        signed = bits | sign << (8 * WIDTH[dtype] - 1)
        write_safetensors(tmp_path / "a", {"x": [COUNT]}, dtype=dtype, data=numbers(dtype, signed))
        check_values(tmp_path / "a")


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("at", [0, 1, 262_143, 262_144, COUNT - 1])
@pytest.mark.parametrize("special", [INFINITE, NAN])
def test_one_number_that_is_not_finite_is_found(dtype: str, at: int, special: dict[str, int], tmp_path: Path) -> None:
    for sign in (0, 1):
        bits = special[dtype] | sign << (8 * WIDTH[dtype] - 1)
        write_safetensors(tmp_path / "a", {"y": [COUNT]}, dtype=dtype, data=numbers(dtype, bits, at=at))
        with pytest.raises(AdapterRejected, match="y holds values that are not finite"):
            check_values(tmp_path / "a")


def test_numbers_of_neighbours_are_not_mixed_up(tmp_path: Path) -> None:
    """The bits that make infinity, in two numbers."""
    data = struct.pack("<8H", 0x7F00, 0x0080, 0x0080, 0x7F00, 0x00FF, 0x7F7F, 0xFF7F, 0x80FF)
    write_safetensors(tmp_path / "a", {"x": [8]}, dtype="BF16", data=data)
    check_values(tmp_path / "a")


@pytest.mark.parametrize("offsets", [[0, 8], [8, 24], [0, 20]])
def test_tensor_of_another_size_than_its_shape_is_refused(offsets: list[int], tmp_path: Path) -> None:
    text = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": offsets}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offsets[1]))
    with pytest.raises(AdapterRejected, match="does not fit its shape"):
        check_values(tmp_path / "a")


def test_element_type_of_another_kind_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"x": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(AdapterRejected, match="element type I8"):
        check_values(tmp_path / "a")
