"""Telling one base model's weights from another's, without reading gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

BLOCKS = 32
BLOCK_BYTES = 64 << 10


def weights_digest(folder: Path) -> str:
    """Return a SHA-256 over name, size, and 32 blocks of 64 KiB spread over each safetensors file in `folder`.

    A model trained further differs nearly everywhere, so the blocks find it; a single changed number may escape them.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as handle:
            for block in range(BLOCKS):
                handle.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
                digest.update(handle.read(BLOCK_BYTES))
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that transformers would load: the single one, else those of the index.

    Some repositories hold the weights a second time under other names. Raises ValueError where there is neither.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} holds neither {SINGLE_FILE} nor a readable {INDEX}") from error
    names = sorted(set(index.weight_map.values()))
    if strange := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{folder / INDEX} names a file outside of its folder: {strange[0]}")
    return [folder / name for name in names]


def whole_digest(folder: Path) -> str:
    """Return the SHA-256 over configuration and weights, in hexadecimal: a whole model's identity."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weight_files(folder)):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


class _Index(Struct):
    weight_map: dict[str, str]
