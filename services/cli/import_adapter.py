"""`selftune models import`: send an adapter's two files to the server and have a model made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from services.cli.adapter_sources import FoundAdapter, find_adapter
from services.cli.openai_api import OpenAIApi
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME
from shared.errors import InvalidRequest, SelftuneError

_PURPOSE = "user_data"
_KEPT_S = 6 * 3600
"""How long the server keeps the files should they not be deleted afterwards: more than any import takes."""


def import_adapter(
    source: str, api: OpenAIApi, *, base: str | None, suffix: str | None, say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:  # fmt: skip
    """Import from a folder, an archive or a hub, and say the model's name.

    Raises what `find_adapter` and `api` raise, and InvalidRequest when the base has to be named.
    """
    with find_adapter(source) as adapter:
        body: dict[str, Any] = {"base": base or _base_for(adapter, api)}
        if suffix is not None:
            body["suffix"] = suffix
        with _uploaded(adapter, api, warn) as files:
            made = api.post("/models", {**body, "files": files}, idempotency_key=f"import:{':'.join(files.values())}")
    if made.get("warning"):
        warn(f"warning: {made['warning']}")
    say(made["id"])


def _base_for(adapter: FoundAdapter, api: OpenAIApi) -> str:
    """Find the server's base that the adapter names, by its id or the end of it; else the server's only one."""
    bases = [str(model["id"]) for model in api.get("/models")["data"] if model.get("owned_by") == "system"]
    named = adapter.base.rstrip("/")
    alike = [base for base in bases if base == named] or [
        base for base in bases if base.rpartition("/")[2] == named.rpartition("/")[2]
    ]
    choice = alike or bases
    if len(choice) != 1:
        raise InvalidRequest(
            f"the adapter calls its base {named!r}; say with --base which of the server's that is: "
            f"{', '.join(choice) or 'it has none yet'}"
        )
    return choice[0]


@contextmanager
def _uploaded(adapter: FoundAdapter, api: OpenAIApi, warn: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Upload the files and give their ids; they are deleted at the end. Raises InvalidRequest for unreadable ones."""
    ids: dict[str, str] = {}
    try:
        for name, path in ((CONFIG_NAME, adapter.config), (WEIGHTS_NAME, adapter.weights)):
            try:
                ids[name] = api.upload(path, filename=name, purpose=_PURPOSE, kept_s=_KEPT_S)["id"]
            except OSError as error:
                raise InvalidRequest(f"{path} cannot be read: {error}") from error
        yield ids
    finally:
        for file_id in ids.values():
            try:
                api.delete(f"/files/{file_id}")
            except SelftuneError as error:
                warn(f"{file_id} was not deleted, and goes by itself in some hours: {error}")
