"""Adapters and bases as files, written without a model library: shapes that fit each other, numbers of one's choice."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.adapters import CONFIG_NAME, WEIGHTS_NAME

HIDDEN, KEYS = 16, 8
Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"
CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "tiny",
}  # fmt: skip
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def write_safetensors(
    path: Path, shapes: Mapping[str, Sequence[int]], *, dtype: str = "F32", data: bytes | None = None
) -> None:
    """Write tensors one behind the other; of zeros, unless `data` has the bytes of all of them."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (bytes(offset) if data is None else data))


def lora(module: str, rank: int, inner: int, out: int) -> dict[str, list[int]]:
    name = f"base_model.model.{module}.lora_"
    return {f"{name}A.weight": [rank, inner], f"{name}B.weight": [out, rank]}


def write_base(folder: Path) -> Path:
    """Write a base of two matrices."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", {f"{Q}.weight": [HIDDEN, HIDDEN], f"{K}.weight": [KEYS, HIDDEN]})
    return folder


def write_adapter(folder: Path) -> Path:
    """Write an adapter of rank 4 on both of them."""
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(CONFIG))
    write_safetensors(folder / WEIGHTS_NAME, lora(Q, 4, HIDDEN, HIDDEN) | lora(K, 4, HIDDEN, KEYS))
    return folder
