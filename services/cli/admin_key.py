"""Replacing the admin key that a data folder keeps."""

from __future__ import annotations

from collections.abc import Callable

from services.cli.openai_api import OpenAIApi
from shared import ids
from shared.errors import InvalidRequest, Unavailable
from shared.paths import Paths, write_atomic
from shared.settings import Settings


def rotate(settings: Settings, base_url: str, say: Callable[[str], None]) -> None:
    """Write a new admin.key, and ask the API for something with it, which has it take the former one's place.

    Raises InvalidRequest for a folder that holds no admin key.
    """
    path = Paths(settings.home).admin_key
    if not path.is_file():
        raise InvalidRequest(f"{path} is not there; the API makes it when it starts on this folder for the first time")
    key = ids.new_api_key()
    write_atomic(path, f"{key}\n".encode(), mode=0o600)
    say(f"admin key, shown this once: {key}")
    say(f"it is kept in {path}")
    try:
        with OpenAIApi(base_url, key) as api:
            api.get("/models")
    except Unavailable:
        say(f"no API answers at {base_url}; the former key stops working when one starts on this folder")
    else:
        say("the former key does not work any more")
