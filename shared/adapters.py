"""Checking that a LoRA adapter may be served, before any engine sees it.

An adapter is a folder in PEFT's format: adapter_config.json and adapter_model.safetensors. Its name is
the hash of both.
What vLLM 0.32 would refuse late, ignore in silence or die of is refused here, with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from shared.errors import AdapterRejected
from shared.safetensors_header import ADAPTER_HEADER_BYTES, TensorInfo, read_header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
SERVED_MODULES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})

PREFIX = "base_model.model."
"""Stands before a module's name in the names of an adapter's tensors."""
_FLOATS = frozenset({"F32", "F16", "BF16"})
_CHUNK_BYTES = 1 << 20


class AdapterConfig(Struct, frozen=True, kw_only=True):
    """The fields of adapter_config.json that decide whether it can be served."""

    peft_type: str
    r: int
    target_modules: list[str] | str
    base_model_name_or_path: str | None = None
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = {}
    init_lora_weights: bool | str = True
    trainable_token_indices: Any = None
    layer_replication: Any = None


def adapter_digest(folder: Path) -> str:
    """Return the SHA-256 over config and weights, in hexadecimal: the adapter's identity."""
    digest = hashlib.sha256()
    try:
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            digest.update(name.encode() + b"\0")
            for block in _blocks(folder / name):
                digest.update(block)
    except OSError as error:
        raise AdapterRejected(f"{folder.name}: {error.strerror or type(error).__name__}") from error
    return digest.hexdigest()


def verify_adapter(
    folder: Path, *, base_folder: Path, base_id: str, max_rank: int, expected_sha256: str | None = None
) -> AdapterConfig:
    """Check an adapter's bytes, options and every tensor's shape against its base.

    Reads the whole adapter once, which also fills the page cache. Raises AdapterRejected with the first reason.
    """
    if expected_sha256 is not None and adapter_digest(folder) != expected_sha256:
        raise AdapterRejected("its bytes are not those that were published: damaged or replaced")
    config = _read_config(folder / CONFIG_NAME)
    _check_options(config, base_id, max_rank)
    tensors = read_header(folder / WEIGHTS_NAME, ADAPTER_HEADER_BYTES)
    _check_shapes(tensors, linear_shapes(base_folder), config, max_rank)
    return config


def linear_shapes(base_folder: Path) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every matrix of a base model by module name, such as `model.layers.0.self_attn.q_proj`."""
    return {
        name.removesuffix(".weight"): (info.shape[0], info.shape[1])
        for path in sorted(base_folder.glob("*.safetensors"))
        for name, info in read_header(path).items()
        if name.endswith(".weight") and len(info.shape) == 2
    }


def _read_config(path: Path) -> AdapterConfig:
    try:
        return msgspec.json.decode(path.read_bytes(), type=AdapterConfig)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterRejected(f"{CONFIG_NAME}: {error}") from error


def _check_options(config: AdapterConfig, base_id: str, max_rank: int) -> None:
    if config.base_model_name_or_path not in (None, base_id):
        raise AdapterRejected(f"it was trained for {config.base_model_name_or_path!r}, this server has {base_id!r}")
    refused = {
        "it is not a LoRA adapter": config.peft_type != "LORA",
        "DoRA cannot be served": config.use_dora,
        "trained biases cannot be served": config.lora_bias or config.bias != "none",
        "modules_to_save cannot be served": bool(config.modules_to_save),
        "trained token embeddings cannot be served": config.trainable_token_indices is not None,
        "layer replication cannot be served": config.layer_replication is not None,
        "this initialisation changes the base's weights": config.init_lora_weights not in (True, False, "gaussian"),
    }
    for reason, applies in refused.items():
        if applies:
            raise AdapterRejected(reason)
    rank = max([config.r, *config.rank_pattern.values()])
    if not 1 <= rank <= max_rank:
        raise AdapterRejected(f"its rank is {rank}, this server takes 1 to {max_rank}")


def _check_shapes(
    tensors: Mapping[str, TensorInfo], base: Mapping[str, tuple[int, int]], config: AdapterConfig, max_rank: int
) -> None:
    if not tensors:
        raise AdapterRejected("it holds no tensors")
    for name, info in tensors.items():
        module, kind = tensor_module(name)
        if module.rsplit(".", 1)[-1] not in SERVED_MODULES:
            raise AdapterRejected(f"{name[:100]!r}: adapters on this module are not served")
        if module not in base:
            raise AdapterRejected(f"{name[:100]!r}: the base has no such module; it is for another base")
        out, inner = base[module]
        rank = (info.shape or [0])[0 if kind == "A" else -1]
        expected = [rank, inner] if kind == "A" else [out, rank]
        if info.shape != expected or not 1 <= rank <= max_rank:
            raise AdapterRejected(f"{name}: shape {str(info.shape)[:100]} does not fit the base's {(out, inner)}")
        if info.dtype not in _FLOATS:
            raise AdapterRejected(f"{name}: element type {info.dtype[:20]!r} is not served")
        partner = name.replace(f".lora_{kind}.", f".lora_{'B' if kind == 'A' else 'A'}.")
        if partner not in tensors:
            raise AdapterRejected(f"{name}: its other half {partner} is missing")


def tensor_module(name: str) -> tuple[str, str]:
    """Split a tensor's name into the base's module and which half it is, A (rank, in) or B (out, rank).

    Raises AdapterRejected for a name that is no LoRA weight's.
    """
    for kind in ("A", "B"):
        suffix = f".lora_{kind}.weight"
        if name.startswith(PREFIX) and name.endswith(suffix):
            return name.removeprefix(PREFIX).removesuffix(suffix), kind
    raise AdapterRejected(f"{name[:100]!r}: not a LoRA weight")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while block := handle.read(_CHUNK_BYTES):
            yield block
