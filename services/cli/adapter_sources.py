"""Where an adapter can be imported from: a folder, an archive that `selftune export --oci` wrote, or a model hub."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shared.adapters import CONFIG_NAME, WEIGHTS_NAME
from shared.errors import InvalidRequest, NotFound, Unavailable
from shared.oci_layout import unpack

_PICKLE = "adapter_model.bin"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter's two files, for as long as the context lasts that gave it."""

    config: Path
    weights: Path
    base: str
    """What the adapter calls its base; empty if it does not."""


@contextmanager
def find_adapter(source: str) -> Iterator[FoundAdapter]:
    """Have an adapter's files at hand; what exists on this machine comes before a hub's id.

    Raises InvalidRequest for what is no adapter or not to be read, NotFound, and Unavailable when the hub does not
    answer.
    """
    with ExitStack() as until_done:
        try:
            found = _find(source, until_done)
        except OSError as error:
            raise InvalidRequest(f"{source} cannot be read, or there is no space to unpack it: {error}") from error
        yield found


def _find(source: str, until_done: ExitStack) -> FoundAdapter:
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        folder = Path(until_done.enter_context(tempfile.TemporaryDirectory(prefix="selftune-import-")))
        about = unpack(path, folder)
        return FoundAdapter(folder / CONFIG_NAME, folder / WEIGHTS_NAME, about.base)
    if _HUB_ID.fullmatch(source):
        return _in_folder(_download(source))
    raise NotFound(f"{source}: there is no such folder or archive, and it is no id of a model hub (owner/name)")


def _in_folder(folder: Path) -> FoundAdapter:
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not config.is_file():
        raise InvalidRequest(f"{folder} holds no {CONFIG_NAME}: it is no adapter in PEFT's format")
    if not weights.is_file():
        how = (
            f": {_PICKLE} is a pickle, which runs code when it is read; load the adapter with PEFT where it was made, "
            "and save it again with safe_serialization=True"
            if (folder / _PICKLE).exists()
            else ""
        )
        raise InvalidRequest(f"{folder} holds no {WEIGHTS_NAME}{how}")
    return FoundAdapter(config, weights, _named_base(config))


def _named_base(config: Path) -> str:
    try:
        named = msgspec.json.decode(config.read_bytes(), type=dict[str, Any]).get("base_model_name_or_path")
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{config} cannot be read: {error}") from error
    return named if isinstance(named, str) else ""


def _download(hub_id: str) -> Path:
    """Fetch the two files into the hub's cache; nothing else of the repository, and never a pickle."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise InvalidRequest(
            f"{hub_id} is no folder or archive here, and for a hub's ids the package huggingface_hub is missing"
        ) from error
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except GatedRepoError as error:
        raise NotFound(f"{hub_id}: the hub gives it only to who has agreed to its terms; set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise NotFound(
            f"{hub_id}: no folder or archive here, and the hub does not have it, or not for this HF_TOKEN"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise Unavailable(
            f"{hub_id}: no folder or archive here, and it cannot be fetched from the hub ({type(error).__name__}); "
            "without a way to the hub, copy the adapter's folder here and give that"
        ) from error
