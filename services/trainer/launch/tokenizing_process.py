"""Having a job's files tokenised, from the worker's side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from services.trainer.data.tokenizing_protocol import FileTokens, Request, Tokenized, answer_decoder
from services.trainer.failures import TrainingFailed
from services.trainer.launch import observed
from services.trainer.launch.processes import start
from services.trainer.protocol import Failed, encode_line
from services.trainer.stores import Stores
from shared.records import JobRecord
from shared.schemas.events import Event
from shared.schemas.options import TrainingOptions
from shared.store.jobs import event

ENTRY = "services.trainer.data.tokenizing:run"
MOST_DEATHS = 3
_LEAST_S = 3600.0
_MEGABYTE_S = 60.0

log = structlog.get_logger()


async def tokenize_files(stores: Stores, record: JobRecord, base_folder: str, options: TrainingOptions) -> Tokenized:
    """Have a job's files in the folder of tokens. Raises TrainingFailed with the reason."""
    assert options.max_length is not None and options.overlong is not None
    validation = record.validation_file
    request = Request(
        base_folder=base_folder,
        tokens_folder=str(stores.paths.tokens),
        method=record.method,
        max_length=options.max_length,
        overlong=options.overlong,
        training_path=str(stores.paths.file_content(record.training_file)),
        validation_path=str(stores.paths.file_content(validation)) if validation else None,
        requested=record.requested,
        options=options,
    )
    size = sum(_size(path) for path in (request.training_path, request.validation_path) if path)
    limit = time_limit(size)
    status, output = 0, b""
    try:
        async with asyncio.timeout(limit):
            for _ in range(MOST_DEATHS):
                status, output = await ask(request, observed.environment(stores.settings, record.id))
                if output.endswith(b"\n"):
                    break
    except TimeoutError as error:
        raise TrainingFailed(
            f"Tokenising the files, {size / 1e6:.1f} MB, took longer than the {limit / 60:.0f} minutes that it may; "
            "long conversations with many messages to learn take the most, so split them."
        ) from error
    if not output.endswith(b"\n"):
        log.error("tokenizing.died", status=status)
        raise TrainingFailed(f"The process that tokenises the files ended unexpectedly (exit status {status}).")
    answer = answer_decoder.decode(output)
    if isinstance(answer, Failed):
        raise TrainingFailed(answer.message, code=answer.code, param=answer.param)
    return answer


def time_limit(size_bytes: int) -> float:
    """Return how long files may take, in seconds: hundreds of times what they need on an idle machine."""
    return _LEAST_S + size_bytes / 1e6 * _MEGABYTE_S


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:  # deleted just now: the process says so
        return 0


async def ask(request: Request, environment: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Have a process of its own answer; returns its exit status and its answer, a whole line unless it died."""
    # The work is shared among processes, which fork; a tokenizer's own threads would not survive that.
    started = await start(ENTRY, "", environment={"TOKENIZERS_PARALLELISM": "false", **(environment or {})})
    try:
        started.writer.write(encode_line(request))
        output = b""
        with suppress(ConnectionError):  # it died before it had read the request
            output = await started.reader.readline()
        return await started.process.wait(), output
    finally:
        if started.process.returncode is None:
            started.process.kill()
            await started.process.wait()
        started.writer.close()


def overlong_events(tokens: Tokenized, max_length: int) -> list[Event]:
    """Say of each file which rows were dropped or cut, if any."""
    files = [("training", tokens.training)]
    if tokens.validation:
        files.append(("validation", tokens.validation))
    return [each for role, file in files for each in _file_events(role, file, max_length)]


def _file_events(role: str, file: FileTokens, max_length: int) -> list[Event]:
    found = [
        (file.n_dropped, file.dropped_lines, "left out", "dropped"),
        (file.n_cut, file.cut_lines, "cut at the left of their prompt", "cut"),
    ]
    return [
        event(
            f"{count} row{'s' if count > 1 else ''} of the {role} file with more than {max_length} tokens "
            f"{'are' if count > 1 else 'is'} {fate}: {_listed(lines, count)}",
            level="warn",
            data={"file": role, name: count, "lines": lines},
        )
        for count, lines, fate, name in found
        if count
    ]


def _listed(lines: list[int], count: int) -> str:
    more = ", …" if count > len(lines) else ""
    return f"line{'s' if count > 1 else ''} {', '.join(map(str, lines))}{more}"
