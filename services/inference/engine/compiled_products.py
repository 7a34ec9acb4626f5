"""Adapter products of a few rows in one compiled call a layer.

While tokens are decoded, a layer's products are so small that calling torch for each of them, and OpenMP's threads for
each call, takes several times as long as the arithmetic: docs/performance.md, "What an adapter costs". Here one call
goes through all rows, slots and slices of a layer. numba, which vLLM brings along, compiles it when this module is
imported: four seconds, or a fifth of one when the machine has done so before (NUMBA_CACHE_DIR).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_REORDERED = {"reassoc", "contract", "nsz"}
"""What the compiler may do with sums; not that it may take numbers for finite: one row's overflow stays its own."""
_BYTES = 4


@intrinsic  # type: ignore[untyped-decorator]
def _floats_at(_context: Any, _address: Any) -> Any:
    """Take an address for that of float32 numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@numba.njit(fastmath=_REORDERED, cache=True)  # type: ignore[untyped-decorator]
def _dot_4(a: Any, w: Any, x: Any, y: Any, z: Any, size: int) -> Any:
    """Multiply one row of A with four rows of the batch, so that it is loaded once."""
    in_w = in_x = in_y = in_z = np.float32(0)
    for i in range(size):
        in_w += a[i] * w[i]
        in_x += a[i] * x[i]
        in_y += a[i] * y[i]
        in_z += a[i] * z[i]
    return in_w, in_x, in_y, in_z


@numba.njit(fastmath=_REORDERED, cache=True)  # type: ignore[untyped-decorator]
def _dot(a: Any, x: Any, size: int) -> Any:
    total = np.float32(0)
    for i in range(size):
        total += a[i] * x[i]
    return total


@numba.njit(fastmath=_REORDERED, cache=True)  # type: ignore[untyped-decorator]
def _add_8(y: Any, h: Any, b: int, width: int) -> None:
    """Add eight rows of B, from address `b` on, each times its number in `h`, to a row."""
    step = width * _BYTES
    b0, b1 = carray(_floats_at(b), (width,)), carray(_floats_at(b + step), (width,))
    b2, b3 = carray(_floats_at(b + 2 * step), (width,)), carray(_floats_at(b + 3 * step), (width,))
    b4, b5 = carray(_floats_at(b + 4 * step), (width,)), carray(_floats_at(b + 5 * step), (width,))
    b6, b7 = carray(_floats_at(b + 6 * step), (width,)), carray(_floats_at(b + 7 * step), (width,))
    h0, h1, h2, h3, h4, h5, h6, h7 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
    for j in range(width):
        y[j] += (
            h0 * b0[j] + h1 * b1[j] + h2 * b2[j] + h3 * b3[j] + h4 * b4[j] + h5 * b5[j] + h6 * b6[j] + h7 * b7[j]
        )  # fmt: skip


@numba.njit(fastmath=_REORDERED, cache=True)  # type: ignore[untyped-decorator]
def _add_1(y: Any, h: Any, b: int, width: int) -> None:
    row = carray(_floats_at(b), (width,))
    for j in range(width):
        y[j] += h * row[j]


@numba.njit(fastmath=_REORDERED, cache=True)  # type: ignore[untyped-decorator]
def _shrink(hidden: Any, x: int, stride: int, inputs: int, a: int, rows: Any, first: int, last: int) -> None:
    """Set hidden[first … last - 1] to A times the batch's rows of these places; A begins at address `a`."""
    for k in range(hidden.shape[1]):
        row = carray(_floats_at(a + k * inputs * _BYTES), (inputs,))
        q = first
        while q + 4 <= last:
            hidden[q, k], hidden[q + 1, k], hidden[q + 2, k], hidden[q + 3, k] = _dot_4(
                row,
                carray(_floats_at(x + rows[q] * stride), (inputs,)),
                carray(_floats_at(x + rows[q + 1] * stride), (inputs,)),
                carray(_floats_at(x + rows[q + 2] * stride), (inputs,)),
                carray(_floats_at(x + rows[q + 3] * stride), (inputs,)),
                inputs,
            )
            q += 4
        while q < last:
            hidden[q, k] = _dot(row, carray(_floats_at(x + rows[q] * stride), (inputs,)), inputs)
            q += 1


@numba.njit(fastmath=_REORDERED, cache=True)  # type: ignore[untyped-decorator]
def _expand(hidden: Any, y: int, stride: int, width: int, b: int, rows: Any, first: int, last: int) -> None:
    """Add B^T times hidden[first … last - 1] to the batch's rows; B begins at address `b`."""
    rank = hidden.shape[1]
    k = 0
    while k + 8 <= rank:
        for q in range(first, last):
            _add_8(carray(_floats_at(y + rows[q] * stride), (width,)), hidden[q, k:], b + k * width * _BYTES, width)
        k += 8
    while k < rank:
        for q in range(first, last):
            _add_1(carray(_floats_at(y + rows[q] * stride), (width,)), hidden[q, k], b + k * width * _BYTES, width)
        k += 1


_I = types.int64
_S = types.Array(types.int64, 1, "C", readonly=False)


@numba.njit(
    types.void(_I, _I, _I, _I, _I, _I, _S, _S, _I, _S, _S, _S, types.float32),
    nogil=True,
    fastmath=_REORDERED,
    cache=True,
)  # type: ignore[untyped-decorator]
def add_products(
    y: int,
    y_stride: int,
    x: int,
    x_stride: int,
    inputs: int,
    a: int,
    b: Integers,
    widths: Integers,
    rank: int,
    rows: Integers,
    bounds: Integers,
    slots: Integers,
    scale: float,
) -> None:
    """Add `scale * (x A^T) B^T` of each row's slot to `y`, in place. All numbers are float32, addresses are in bytes.

    `y` and `x` are addresses of the batch's first rows, `y_stride` and `x_stride` the bytes from a row to the next.
    `a` is the address of A (slots, slices * rank, inputs), `b[i]` that of slice i's B (slots, rank, widths[i]).
    `rows` lists the rows that have a slot, grouped by it: group g has `slots[g]`, from `bounds[g]` up to
    `bounds[g + 1]`.
    """
    slices = widths.shape[0]
    hidden = np.empty((rows.shape[0], slices * rank), np.float32)
    for g in range(slots.shape[0]):
        first, last = bounds[g], bounds[g + 1]
        _shrink(hidden, x, x_stride, inputs, a + slots[g] * slices * rank * inputs * _BYTES, rows, first, last)
        if scale != 1.0:
            hidden[first:last] *= scale
        column = 0
        for i in range(slices):
            width = widths[i]
            begin = b[i] + slots[g] * rank * width * _BYTES
            part = hidden[:, i * rank : (i + 1) * rank]
            _expand(part, y + column * _BYTES, y_stride, width, begin, rows, first, last)
            column += width
