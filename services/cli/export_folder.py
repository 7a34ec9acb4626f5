"""A folder that holds what OpenAI has of a project, in OpenAI's own JSON.

files.json    File objects: a list, or the page that the API answers with
files/<id>    their contents; <id>.jsonl or the file's own name will do as well
jobs.json     fine_tuning.job objects, likewise
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from shared.errors import InvalidRequest
from shared.paths import write_atomic

T = TypeVar("T", bound=Struct)

FILES, JOBS, CONTENTS = "files.json", "jobs.json", "files"
PURPOSE = "fine-tune"


class ExportedFile(Struct, frozen=True, kw_only=True):
    """What is read of a File object."""

    id: str
    filename: str = ""
    purpose: str = PURPOSE


class ExportedJob(Struct, frozen=True, kw_only=True):
    """What is read of a fine_tuning.job object."""

    id: str
    model: str
    training_file: str
    created_at: int = 0
    status: str = "succeeded"
    validation_file: str | None = None
    fine_tuned_model: str | None = None
    user_provided_suffix: str | None = None
    seed: int | None = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None


def read_files(folder: Path) -> list[ExportedFile]:
    """Read files.json. Raises InvalidRequest that names file and place."""
    return _read(folder / FILES, ExportedFile)


def read_jobs(folder: Path) -> list[ExportedJob]:
    """Read jobs.json, oldest first, as they may build on each other. Raises InvalidRequest that names the place."""
    jobs = _read(folder / JOBS, ExportedJob)
    jobs.reverse()  # the API lists newest first, and its times are whole seconds
    return sorted(jobs, key=lambda job: job.created_at)


def content_of(folder: Path, file: ExportedFile) -> Path | None:
    """Find a file's content; None when it is not in the folder."""
    names = [file.id, f"{file.id}.jsonl", file.filename]
    places = [folder / CONTENTS / Path(name).name for name in names if Path(name).name]
    return next((place for place in places if place.is_file()), None)


def write_page(path: Path, objects: list[dict[str, Any]]) -> None:
    """Write objects as one page of the API."""
    page = {"object": "list", "data": objects, "has_more": False}
    write_atomic(path, msgspec.json.format(msgspec.json.encode(page), indent=2) + b"\n")


def _read(path: Path, kind: type[T]) -> list[T]:
    try:
        data = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: not valid JSON: {error}") from error
    try:
        return msgspec.convert(data.get("data") if isinstance(data, dict) else data, list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{path}: {error}") from error
