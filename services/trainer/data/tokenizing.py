"""The process that tokenises a job's files before it is queued.

It answers Tokenized, or Failed with the first bad line.
"""

from __future__ import annotations

import socket
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import structlog

from services.trainer.data.tokenizing_protocol import FileTokens, Request, Tokenized, request_decoder
from services.trainer.failures import DiskFull, OutOfMemory
from services.trainer.launch.observed import configure_lines
from services.trainer.protocol import Failed, encode_line
from services.trainer.shortages import is_disk_full, is_out_of_memory
from shared.errors import InvalidTrainingData, SelftuneError
from shared.training_data import MIN_EXAMPLES, min_validation_examples, one_label

log = structlog.get_logger()


def tokenize(request: Request) -> Tokenized:
    """Tokenise and judge both files. Raises InvalidTrainingData, TrainingFailed."""
    from services.trainer.data.heaviest import Reading, heaviest_answers, heaviest_piece
    from services.trainer.data.loading import TokenSource
    from services.trainer.data.table import FIRST_LINES, Fitting, TokenTable, count_desirable, fit

    source = TokenSource(request.base_folder, request.tokens_folder, request.method, is_alone=True)

    room = answer_room(request)
    longest = request.max_length - room

    def tokens(path: str, param: str, least: int) -> tuple[FileTokens, TokenTable, Fitting]:
        key, table = source.table(path, param)
        fitting = fit(table, longest, request.overlong, param)
        rows = len(table.lines_R) - len(fitting.dropped)
        if rows < least:
            raise InvalidTrainingData(
                f"{len(fitting.dropped)} rows have more than {longest} tokens and are left out; "
                f"of the {rows} that remain at least {least} are needed.",
                code=f"invalid_{param}",
                param=param,
            )
        n_desirable = count_desirable(table, fitting)
        if request.method == "kto" and param == "training_file" and n_desirable in (0, rows):
            raise InvalidTrainingData(one_label(n_desirable > 0), code=f"invalid_{param}", param=param)
        file = FileTokens(
            key=key,
            rows=rows,
            n_desirable=n_desirable,
            n_dropped=len(fitting.dropped),
            n_cut=len(fitting.cut),
            dropped_lines=fitting.dropped[:FIRST_LINES],
            cut_lines=fitting.cut[:FIRST_LINES],
        )
        return file, table, fitting

    least = min_validation_examples(request.method)
    validation = tokens(request.validation_path, "validation_file", least)[0] if request.validation_path else None
    training, table, fitting = tokens(request.training_path, "training_file", MIN_EXAMPLES)
    heaviest = (
        heaviest_answers(table, fitting, room)
        if room
        else heaviest_piece(table, fitting, Reading.of(request, training.rows))
    )
    return Tokenized(training=training, validation=validation, heaviest=heaviest)


def answer_room(request: Request) -> int:
    """Return how many tokens of a row are kept for the answer that is tried; 0 but for reinforcement."""
    if request.method != "reinforcement":
        return 0
    chosen = request.options.reinforcement
    assert chosen is not None and chosen.max_completion_tokens is not None
    return chosen.max_completion_tokens


def shortage(error: Exception, request: Request) -> SelftuneError | None:
    """Say what was short, or gone, when files could not be tokenised; None if it was something else."""
    if is_out_of_memory(error) or isinstance(error, BrokenProcessPool):
        return OutOfMemory(
            "The trainer ran out of memory while it tokenised the files, or one of its processes was ended, which is "
            "most often the same. Shorter lines need less."
        )
    if is_disk_full(error):
        return DiskFull(
            "The trainer's disk is full, so the tokens of the files could not be kept; free some space in the data "
            "folder and create the job again."
        )
    if isinstance(error, FileNotFoundError):
        files = {"training_file": request.training_path, "validation_file": request.validation_path}
        for param, path in files.items():
            if path and not Path(path).exists():
                role = param.removesuffix("_file")
                return InvalidTrainingData(
                    f"The {role} file was deleted while it was read.", code=f"invalid_{param}", param=param
                )
    return None


def _failed(error: SelftuneError) -> Failed:
    return Failed(code=error.code or "training_failed", message=error.message, param=error.param)


def answer(request: Request) -> Tokenized | Failed:
    """Tokenise, or say why not."""
    try:
        return tokenize(request)
    except SelftuneError as error:
        return _failed(error)
    except Exception as error:
        failure = shortage(error, request)
        if failure is None:
            raise
        log.error("tokenizing.failed", exc_info=error)
        return _failed(failure)


def run(channel: socket.socket, _: str) -> int:
    """Be the process that tokenises: a Request comes as one line, and one line is the answer."""
    configure_lines()
    with channel.makefile("rb") as lines:
        request = request_decoder.decode(lines.readline())
    channel.sendall(encode_line(answer(request)))
    return 0
