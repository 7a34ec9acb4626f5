"""Writing and mapping the folders that shared.token_cache describes."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog

from services.trainer.data.files import tokenize_file, tokenize_here
from services.trainer.data.lines import N_SIDES
from services.trainer.data.pieces import write_pieces
from services.trainer.data.table import Builder, TokenTable
from shared.paths import publish_folder, write_atomic
from shared.token_cache import ARRAYS, PARTIAL, Format, Meta, cache_key, discard, read_meta

KEPT_BYTES = 4 << 30
"""Tokens kept, all files together, not counting those of the last hour."""
KEPT_S = 30 * 86400.0
RECENT_S = 3600.0
"""What was used so lately stays, whatever its size; what is unfinished for longer was left behind."""

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer.tiktoken",
)  # fmt: skip

log = structlog.get_logger()


def tokenizer_digest(base_folder: Path) -> str:
    """Hash every file that a tokenizer, or a chat template, may be read from; a missing one counts as such."""
    digest = hashlib.sha256()
    files = [base_folder / name for name in _TOKENIZER_FILES]
    for path in [*files, *sorted((base_folder / "additional_chat_templates").glob("*.jinja"))]:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class TokenCache:
    """The folder tokens/ for one tokenizer."""

    def __init__(self, folder: Path, base_folder: Path, tokenizer: Any, *, is_alone: bool) -> None:
        self.digest = tokenizer_digest(base_folder)
        self._folder = folder
        self._pieces = folder / f"pieces-{self.digest}"
        self._tokenizer = tokenizer
        self._blocks = tokenize_file if is_alone else tokenize_here

    def key(self, path: Path, format_: Format) -> str:
        return cache_key(file_sha256(path), self.digest, format_)

    def find(self, key: str) -> TokenTable | None:
        """Map a folder; None when there is none. A damaged one is removed, and counts as none."""
        table = self._map(self._folder / key)
        if table is not None:
            write_pieces(self._pieces, self._tokenizer)
        return table

    def _map(self, folder: Path) -> TokenTable | None:
        reason = ""
        for _ in range(2):  # another process may have made it, or removed it, meanwhile
            try:
                return map_table(folder)
            except (ValueError, OSError) as error:
                reason = str(error)
            if not folder.exists():
                return None
        log.warning("tokens.damaged", key=folder.name, reason=reason)
        discard(folder)
        return None

    def build(self, key: str, path: Path, format_: Format, param: str) -> TokenTable:
        """Tokenise a file, keep the result, and map it. Raises InvalidTrainingData with the first bad line."""
        self._folder.mkdir(parents=True, exist_ok=True)
        staged = self._folder / f"{PARTIAL}{secrets.token_hex(8)}"
        staged.mkdir()
        try:
            self._write(staged, path, format_, param)
            write_pieces(self._pieces, self._tokenizer)
            publish_folder(staged, self._folder / key)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        if not path.exists():  # deleted meanwhile, and its tokens with it, so nobody else would remove these
            discard(self._folder / key)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        sweep(self._folder)
        return map_table(self._folder / key)

    def _write(self, staged: Path, path: Path, format_: Format, param: str) -> None:
        with (staged / "ids").open("wb") as ids, (staged / "mask").open("wb") as mask:
            builder = Builder(ids, mask)
            for block in self._blocks(path, format_, self._tokenizer):
                builder.add(block)
                staged.touch()  # or a sweep would take it for left behind
        arrays = builder.arrays(param)
        for name, array in arrays.items():
            array.tofile(staged / name)
        meta = Meta(
            format=format_,
            sides=N_SIDES[format_],
            rows=len(arrays["lines"]),
            tokens=int(arrays["ends"][-1]) if len(arrays["ends"]) else 0,
            checksums={name: _checksum(staged / name) for name in ARRAYS},
            pieces=self.digest,
            bos_id=self._tokenizer.bos_token_id,
            file_sha256=file_sha256(path),
        )
        write_atomic(staged / "meta.json", msgspec.json.encode(meta))


def tokenize_in_memory(path: Path, format_: Format, tokenizer: Any, param: str) -> TokenTable:
    """Tokenise a file without keeping anything on disk. Raises InvalidTrainingData with the first bad line."""
    ids, mask = BytesIO(), BytesIO()
    builder = Builder(ids, mask)
    for block in tokenize_here(path, format_, tokenizer):
        builder.add(block)
    arrays = builder.arrays(param)
    return TokenTable(
        np.frombuffer(ids.getvalue(), np.int32),
        np.frombuffer(mask.getvalue(), np.uint8),
        arrays["ends"],
        arrays["used"],
        arrays["lines"],
        arrays["labels"],
        tokenizer.bos_token_id,
    )


def map_table(folder: Path) -> TokenTable:
    """Map a folder of tokens. Raises FileNotFoundError, or ValueError when its files are not what was written."""
    meta = read_meta(folder)
    for name in ARRAYS:
        if _checksum(folder / name) != meta.checksums[name]:
            raise ValueError(f"the checksum of {name} is another")

    def mapped(name: str, kind: Any) -> Any:
        # A plain view of the mapping: slices of numpy's own class cost ten times as much.
        return np.asarray(np.memmap(folder / name, kind, "r")).view(np.ndarray)

    table = TokenTable(
        ids_T=mapped("ids", np.int32),
        mask_T=mapped("mask", np.uint8),
        ends_S=mapped("ends", np.int64),
        used_S=mapped("used", np.int64),
        lines_R=mapped("lines", np.int64),
        labels_R=mapped("labels", np.uint8),
        bos_id=meta.bos_id,
    )
    folder.touch()
    return table


def sweep(folder: Path, *, kept_bytes: int = KEPT_BYTES, now: float | None = None) -> None:
    """Remove what was not used for a month, then the longest unused until the rest fits; leftovers after an hour."""
    now = time.time() if now is None else now
    room = kept_bytes
    for used_at, size, path in sorted(_entries(folder), reverse=True):
        room -= size
        age = now - used_at
        if age > KEPT_S or (age > RECENT_S and (room < 0 or path.name.startswith(PARTIAL))):
            discard(path)
            log.info("tokens.removed", key=path.name)


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    for path in folder.iterdir():
        try:
            yield path.stat().st_mtime, sum(each.stat().st_size for each in path.iterdir()), path
        except (FileNotFoundError, NotADirectoryError):  # another process swept it
            continue


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
