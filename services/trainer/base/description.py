"""What there is to know about a base model from its files, without loading it. No torch."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec

from services.trainer.failures import TrainingFailed
from shared.records import BaseRecord
from shared.safetensors_header import read_header

# What an adapter's tensors and tokens depend on; two bases that agree here can exchange adapters' shapes.
_FINGERPRINTED = (
    "architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip


def describe_base(folder: Path, base_id: str) -> BaseRecord:
    """Read what there is to know about a base from its files, without loading it."""
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise TrainingFailed(f"{folder} holds no readable config.json: {error}", code="invalid_base_model") from error
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise TrainingFailed(
            f"{folder} holds no *.safetensors; other formats are not loaded.", code="invalid_base_model"
        )
    tensors = [info for path in weights for info in read_header(path).values()]
    return BaseRecord(
        id=base_id,
        path=str(folder),
        fingerprint=_fingerprint(config, folder),
        context_length=int(config.get("max_position_embeddings", 2048)),
        created_at=int((folder / "config.json").stat().st_mtime),
        architecture=(config.get("architectures") or [""])[0],
        parameters=sum(math.prod(info.shape) for info in tensors),
    )


def _fingerprint(config: dict[str, Any], folder: Path) -> str:
    """Hash the architecture and the vocabulary; the weights' values are the adapter's business, not its shape's."""
    digest = hashlib.sha256()
    chosen = {name: config.get(name) for name in _FINGERPRINTED}
    digest.update(msgspec.json.encode(chosen, order="sorted"))
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists():
        digest.update(hashlib.sha256(tokenizer.read_bytes()).digest())
    return digest.hexdigest()
