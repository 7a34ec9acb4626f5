"""An adapter from elsewhere on its way to its place: put into our form, checked number by number, hashed.

Our form is PEFT's with this server's name of the base, and with the modules that the weights are for listed by name.
An adapter that was exported from here comes out with the bytes, and so the hash, that it had.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from shared.adapter_form import AdapterForm, is_pattern_of, read_form
from shared.adapter_values import check_values
from shared.adapters import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    adapter_digest,
    linear_shapes,
    tensor_module,
    verify_adapter,
)
from shared.blobs.interface import Blobs
from shared.errors import AdapterRejected, Unavailable
from shared.paths import Paths
from shared.records import BaseRecord
from shared.safetensors_header import ADAPTER_HEADER_BYTES, TensorInfo, read_header

_INDEX_NAME = "model.safetensors.index.json"
_MAX_CONFIG_BYTES = 1 << 20
_PATTERNS = ("rank_pattern", "alpha_pattern")
_MAX_GIVEN_PATTERNS = 1000
_MAX_PATTERNS = 400
"""Of both kinds together: engines match with a library that forgets compiled patterns beyond 500, and then takes
minutes for an adapter."""
_MAX_PATTERN_CHARS = 200
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files of torch.save begin: a zip archive, or a bare pickle."""
_PLAIN_PATTERN = re.compile(r"\^?(?:\.\*)?(?:\w|-|\\?\.)+\$?", re.ASCII)
"""A module's name or its end, with at most one `.*` before it: others can take for ever to match, in every service."""


class Staged(Struct, frozen=True):
    """An adapter that may be published."""

    folder: Path
    sha256: str
    rank: int
    named_base: str
    """What its own configuration calls the base; empty if it does not."""


@asynccontextmanager
async def staged(
    config: Path, weights: Path, *, base: BaseRecord, max_rank: int, paths: Paths
) -> AsyncIterator[Staged]:
    """Copy an adapter's two files into a folder of their own, in our form, and check them against a base.

    The folder goes at the end, unless `publish` has moved it. Raises AdapterRejected with the first reason, OSError,
    Unavailable when the base's own files are not to be read.
    """
    folder = paths.partial / f"adapter-{secrets.token_hex(8)}"
    await asyncio.to_thread(folder.mkdir)
    try:
        yield await asyncio.to_thread(_stage, folder, config, weights, base=base, max_rank=max_rank)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def publish(adapter: Staged, base: BaseRecord, blobs: Blobs) -> Path:
    """Move a checked adapter to its place for good, and return that. The same bytes twice are one folder."""
    final = blobs.paths.adapter_folder(base.id, adapter.sha256)
    await blobs.publish(adapter.folder, final)
    return final


def _stage(folder: Path, config: Path, weights: Path, *, base: BaseRecord, max_rank: int) -> Staged:
    (folder / WEIGHTS_NAME).hardlink_to(weights)
    _refuse_pickle(folder / WEIGHTS_NAME)
    options = _options(config)
    tensors = read_header(folder / WEIGHTS_NAME, ADAPTER_HEADER_BYTES)
    modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    options |= _used_patterns(options, modules & _modules_of(base))
    kinds = sorted({module.rpartition(".")[2] for module in modules})
    (folder / CONFIG_NAME).write_bytes(_in_our_form(options, base.id, kinds))
    verify_adapter(folder, base_folder=Path(base.path), base_id=base.id, max_rank=max_rank)
    form = read_form((folder / CONFIG_NAME).read_bytes())
    _check_ranks(form, tensors)
    check_values(folder / WEIGHTS_NAME)
    named_base = options.get("base_model_name_or_path")
    return Staged(
        folder=folder,
        sha256=adapter_digest(folder),
        rank=max([form.rank, *form.rank_pattern.values()]),
        named_base=named_base if isinstance(named_base, str) else "",
    )


def _refuse_pickle(weights: Path) -> None:
    with weights.open("rb") as handle:
        if handle.read(4).startswith(_PICKLES):
            raise AdapterRejected(
                f"{WEIGHTS_NAME} is a pickle, such as adapter_model.bin, which runs code when it is read; load the "
                "adapter with PEFT where it was made, and save it again with safe_serialization=True"
            )


def _options(config: Path) -> dict[str, Any]:
    """Read adapter_config.json as it came. Raises AdapterRejected also for patterns that take long to match."""
    if config.stat().st_size > _MAX_CONFIG_BYTES:
        raise AdapterRejected(f"{CONFIG_NAME} has more than {_MAX_CONFIG_BYTES:,} bytes")
    try:
        options = msgspec.json.decode(config.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterRejected(f"{CONFIG_NAME} is not a JSON object: {error}") from error
    for name in _PATTERNS:
        _check_patterns(name, options.get(name))
    return options


def _modules_of(base: BaseRecord) -> set[str]:
    """Name the base's matrices. Raises Unavailable when its files are damaged, or one is missing."""
    folder = Path(base.path)
    try:
        index = (folder / _INDEX_NAME).read_bytes() if (folder / _INDEX_NAME).exists() else b"{}"
        shards = msgspec.json.decode(index, type=_Index).weight_map.values()
        found = set(linear_shapes(folder))
    except (AdapterRejected, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _unreadable(base) from error
    if not found or not all((folder / name).is_file() for name in set(shards)):
        raise _unreadable(base)
    return found


class _Index(Struct):
    weight_map: dict[str, str] = {}


def _unreadable(base: BaseRecord) -> Unavailable:
    return Unavailable(
        f"The files of '{base.id}' on this server are damaged or not all there; nothing can be compared with them.",
        code="storage_unavailable",
    )


def _check_patterns(name: str, patterns: object) -> None:
    if not isinstance(patterns, dict):
        return
    if len(patterns) > _MAX_GIVEN_PATTERNS:
        raise AdapterRejected(f"{CONFIG_NAME}: {name} has more than {_MAX_GIVEN_PATTERNS} entries")
    for key in patterns:
        if len(key) > _MAX_PATTERN_CHARS:
            raise AdapterRejected(
                f"{CONFIG_NAME}: {name} has the pattern {key[:100]!r}…, which is longer than {_MAX_PATTERN_CHARS} "
                "characters"
            )
        if not _PLAIN_PATTERN.fullmatch(key):
            raise AdapterRejected(
                f"{CONFIG_NAME}: {name} has the pattern {key[:100]!r}; name the modules one by one instead"
            )


def _used_patterns(options: dict[str, Any], modules: Collection[str]) -> dict[str, Any]:
    """Return the patterns without those that no module of the adapter matches. Raises AdapterRejected for too many."""
    given = {name: options[name] for name in _PATTERNS if isinstance(options.get(name), dict)}
    used = {
        name: {key: value for key, value in patterns.items() if is_pattern_of(key, modules)}
        for name, patterns in given.items()
    }
    count = sum(map(len, used.values()))
    if count > _MAX_PATTERNS:
        raise AdapterRejected(
            f"{CONFIG_NAME}: {' and '.join(_PATTERNS)} have {count} entries, {_MAX_PATTERNS} are taken; name the end "
            "of modules' names, which many layers share"
        )
    return used


def _in_our_form(options: dict[str, Any], base_id: str, modules: list[str]) -> bytes:
    """Write the configuration as training writes it: sorted, with the modules that there are weights for.

    Patterns stay in their order, of which the first that matches counts.
    """
    ours = options | {
        "base_model_name_or_path": base_id,
        "revision": None,
        "target_modules": modules,
        "exclude_modules": None,
        "inference_mode": True,
    }
    return msgspec.json.format(msgspec.json.encode(dict(sorted(ours.items()))), indent=2) + b"\n"


def _check_ranks(form: AdapterForm, tensors: dict[str, TensorInfo]) -> None:
    """Raise AdapterRejected where the configuration says another rank than the weights have: the scale would be off."""
    for name, info in tensors.items():
        module, half = tensor_module(name)
        rank = info.shape[0] if half == "A" else info.shape[1]
        if form.rank_of(module) != rank:
            raise AdapterRejected(f"{name} has rank {rank}, where {CONFIG_NAME} says {form.rank_of(module)}")
