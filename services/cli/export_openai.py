"""`selftune export-openai`: fetch the fine-tuning files and jobs of a project, while its server has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.cli.export_folder import CONTENTS, FILES, JOBS, PURPOSE, write_page
from services.cli.openai_api import OpenAIApi
from shared.errors import InvalidRequest, NotFound


def export(folder: Path, api: OpenAIApi, say: Callable[[str], None]) -> None:
    """Write the folder; contents that are there already are not fetched again. Raises InvalidRequest, and api's."""
    files = list(api.all("/files", purpose=PURPOSE))
    jobs = list(api.all("/fine_tuning/jobs", limit=100))
    try:
        (folder / CONTENTS).mkdir(parents=True, exist_ok=True)
        kept = [file for file in files if _fetch(folder, file["id"], file.get("bytes"), api, say)]
        write_page(folder / FILES, kept)
        write_page(folder / JOBS, jobs)
    except OSError as error:
        raise InvalidRequest(f"{error.filename or folder}: {error.strerror}") from error
    say(f"{len(kept)} files and {len(jobs)} jobs are in {folder}")


def _fetch(folder: Path, file_id: str, size_bytes: int | None, api: OpenAIApi, say: Callable[[str], None]) -> bool:
    """Fetch a file's content; False when the server no longer has it."""
    target = folder / CONTENTS / Path(file_id).name
    if target.is_file() and target.stat().st_size == size_bytes:
        return True
    try:
        api.download(f"/files/{file_id}/content", target)
    except NotFound as error:
        say(f"{file_id}: left out: {error.message}")
        return False
    say(f"{file_id}: {target.stat().st_size:,} bytes")
    return True
