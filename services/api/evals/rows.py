"""The rows of a run, in a file of their own: one a line, read one at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Raw, Struct

from services.api.bodies import explain
from services.api.evals.item_schema import fault_of
from shared.errors import InvalidRequest
from shared.schemas.evals import MAX_ROWS, CustomDataSource, DataSourceConfig, EvalRow

MAX_LINE_BYTES = 16 << 20


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row as it is worked on."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None
    """An answer that the row's owner brought along."""
    answer: Raw = Raw(b"null")
    """A stored chat completion, where the row was made of one; else null."""

    @property
    def is_answered(self) -> bool:
        """Whether it was made of a stored completion."""
        return bytes(self.answer) != b"null"


_decode = msgspec.json.Decoder(Row).decode
_decode_strictly = msgspec.json.Decoder(EvalRow).decode


class Rows:
    """The rows of a file; they have numbers from 0. Raises FileNotFoundError."""

    def __init__(self, path: Path, *, config: DataSourceConfig | None, is_ours: bool) -> None:
        """Read the whole file once. Raises InvalidRequest that names the first line that is wrong.

        A file that `is_ours` was written here and is not checked again.
        """
        self._handle: BinaryIO = path.open("rb")
        self._places: list[tuple[int, int]] = []
        try:
            self._read(config, is_ours=is_ours)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def row(self, number: int) -> Row:
        """Return a row; small enough, and read before, so that it is a matter of microseconds."""
        offset, length = self._places[number]
        return _decode(os.pread(self._handle.fileno(), length, offset))

    def close(self) -> None:
        self._handle.close()

    def _read(self, config: DataSourceConfig | None, *, is_ours: bool) -> None:
        offset, number = 0, 0
        while line := self._handle.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise _refused(f"line {number} has more than {MAX_LINE_BYTES:,} bytes")
            if line.strip():
                if not is_ours:
                    _check_line(line, config, f"line {number}")
                self._places.append((offset, len(line)))
            offset += len(line)
            if len(self._places) > MAX_ROWS:
                raise _refused(f"it has more than {MAX_ROWS:,} rows")
        if not self._places:
            raise _refused("it has no rows")


def _check_line(line: bytes, config: DataSourceConfig | None, where: str) -> None:
    try:
        line.decode("utf-8")
        row = _decode_strictly(line)
    except msgspec.ValidationError as error:
        raise _refused(f"{where}: {explain(str(error)).message}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(f"{where} is no valid JSON") from error
    if fault := fault_in(row.item, config):
        raise _refused(f"{where}: {fault}")


def fault_in(item: dict[str, Any], config: DataSourceConfig | None) -> str | None:
    """Say how an item differs from its eval's schema, or return None."""
    return fault_of(item, config.item_schema, "item") if isinstance(config, CustomDataSource) else None


def encoded(rows: Sequence[Row | EvalRow]) -> bytes:
    """Form lines of rows."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _refused(fault: str) -> InvalidRequest:
    return InvalidRequest(f"The run's file cannot be used: {fault}.", code="invalid_eval_file", param="data_source")
