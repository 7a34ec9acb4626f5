"""Tokenised files, kept so that no job tokenises again what one has: where they lie, and how to look at a row.

tokens/<key>/
  meta.json     Meta: sizes, checksums
  ids           int32, little-endian: the tokens of all rows, one after the other; of a pair the preferred side first
  mask          a byte a token: 1 where it is learnt
  ends          int64: where each side ends among the ids
  used          int64: how many tokens of each side matter; those behind the last target have no effect
  lines         int64: the line of each row in its file
  labels        a byte a row: 0 for one that KTO is to make less likely, else 1
tokens/pieces-<digest>/
  ends, bytes   what each token id stands for: bytes of UTF-8, and int64 where each ends

A folder appears whole. Its key follows from the file's content, the tokenizer with its chat template, the format of the
rows, and VERSION. Opening a folder renews its time; the oldest go when there is too much.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias

import msgspec
from msgspec import Struct

VERSION = 2
"""To be raised with every change of what becomes of a row."""

Format: TypeAlias = Literal["chat", "completion", "text", "preference", "labelled", "prompt"]

PARTIAL = ".partial-"
"""How the names of folders begin that are being written or removed."""

ARRAYS = ("ids", "mask", "ends", "used", "lines", "labels")


class Meta(Struct, frozen=True, kw_only=True):
    """What a folder holds."""

    format: Format
    sides: int
    rows: int
    tokens: int
    checksums: dict[str, int]
    """CRC-32 of each array."""
    pieces: str
    """Digest of the tokenizer, which names its pieces' folder."""
    bos_id: int | None = None
    file_sha256: str = ""
    """Hash of the file's content; empty where an earlier version wrote the folder."""


def cache_key(file_sha256: str, tokenizer_digest: str, format_: Format) -> str:
    return hashlib.sha256(f"{VERSION}:{file_sha256}:{tokenizer_digest}:{format_}".encode()).hexdigest()


def read_meta(folder: Path) -> Meta:
    """Raises FileNotFoundError, or ValueError for what is not of this version."""
    return msgspec.json.decode((folder / "meta.json").read_bytes(), type=Meta)


def forget_file(tokens: Path, file_sha256: str) -> None:
    """Remove what was made of a file; who has it mapped keeps it until then. Blocks on the disk."""
    for folder in tokens.glob("[!.]*"):
        with suppress(OSError, ValueError):
            if read_meta(folder).file_sha256 == file_sha256:
                discard(folder)


def discard(folder: Path) -> None:
    """Remove a folder of tokens, which nobody sees in part."""
    aside = folder.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


class TokenRows:
    """A folder opened for looking at single rows, without any numeric library; close() it.

    Raises FileNotFoundError, or ValueError when the sizes of its arrays, or where a row ends, cannot be.
    """

    def __init__(self, folder: Path) -> None:
        self.meta = read_meta(folder)
        with suppress(PermissionError):
            os.utime(folder)
        self._maps = {name: _map(folder / name) for name in ARRAYS}
        n_sides = self.meta.rows * self.meta.sides
        sizes = (4 * self.meta.tokens, self.meta.tokens, 8 * n_sides, 8 * n_sides, 8 * self.meta.rows, self.meta.rows)
        if tuple(map(len, self._maps.values())) != sizes:
            self._close_maps()
            raise ValueError("the sizes of the arrays are others")
        self._ends = _numbers(self._maps["ends"], "q")
        self._used = _numbers(self._maps["used"], "q")
        self._ids = _numbers(self._maps["ids"], "i")
        self._mask = self._maps["mask"]
        self._lines = _numbers(self._maps["lines"], "q")

    def line(self, row: int) -> int:
        return self._lines[row]

    def row(self, row: int) -> list[Side]:
        """Return the sides of a row, counted from 0."""
        first = row * self.meta.sides
        return [self._side(index) for index in range(first, first + self.meta.sides)]

    def _side(self, index: int) -> Side:
        start = self._ends[index - 1] if index else 0
        end, used = self._ends[index], self._used[index]
        if not (0 <= start < end <= self.meta.tokens and 0 < used <= end - start):
            raise ValueError("the ends of the rows are others")
        return Side(self, start, end - start, used)

    def ids(self, start: int, stop: int) -> list[int]:
        """Return tokens by their place among those of all rows."""
        return list(self._ids[start:stop])

    def mask(self, start: int, stop: int) -> bytes:
        return self._mask[start:stop]

    def first_target(self, start: int, stop: int) -> int:
        """Return the place of the first token in a range that is learnt, -1 if none is."""
        return self._mask.find(b"\x01", start, stop)

    def close(self) -> None:
        for view in (self._ends, self._used, self._ids, self._lines):
            view.release()
        self._close_maps()

    def _close_maps(self) -> None:
        for mapped in self._maps.values():
            if isinstance(mapped, mmap.mmap):
                mapped.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a row, which may have millions of tokens; it is read a part at a time, while its rows are open."""

    _rows: TokenRows
    _start: int
    n_tokens: int
    used: int
    """Tokens from here on have no effect."""

    def ids(self, start: int, stop: int) -> list[int]:
        """Return the tokens in a range of the side."""
        return self._rows.ids(*self._places(start, stop))

    def mask(self, start: int, stop: int) -> bytes:
        """Return a byte for each token in a range of the side, 1 where it is learnt."""
        return self._rows.mask(*self._places(start, stop))

    @property
    def prompt(self) -> int:
        """Number of tokens before the first target; -1 if there is none."""
        place = self._rows.first_target(*self._places(0, self.n_tokens))
        return place if place < 0 else place - self._start

    def _places(self, start: int, stop: int) -> tuple[int, int]:
        return self._start + min(start, self.n_tokens), self._start + min(stop, self.n_tokens)


class Pieces:
    """What the tokens of a tokenizer stand for. Raises FileNotFoundError, or ValueError for a damaged folder."""

    def __init__(self, folder: Path) -> None:
        ends = (folder / "ends").read_bytes()
        self._bytes = (folder / "bytes").read_bytes()
        if len(ends) % 8:
            raise ValueError("the ends of the pieces are cut")
        self._ends = memoryview(ends).cast("q")
        if (self._ends[-1] if ends else 0) != len(self._bytes):
            raise ValueError("the pieces end elsewhere")
        with suppress(PermissionError):
            os.utime(folder)

    def of(self, token: int) -> bytes:
        """Return the bytes of a token, none for an id that the tokenizer does not have."""
        if not 0 <= token < len(self._ends):
            return b""
        return self._bytes[self._ends[token - 1] if token else 0 : self._ends[token]]


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def _numbers(mapped: mmap.mmap | bytes, kind: Literal["i", "q"]) -> memoryview[int]:
    assert sys.byteorder == "little"
    return memoryview(mapped).cast(kind)
