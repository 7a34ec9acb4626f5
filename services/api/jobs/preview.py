"""A job's rows as the trainer has them, from the files of tokens that it wrote; no tokenizer is needed for that."""

from __future__ import annotations

from typing import Literal, TypeAlias

from shared.errors import InvalidRequest, NotFound
from shared.overlong import DROPPED, REFUSED, Overlong, first_kept, tokens_to_cut
from shared.paths import Paths
from shared.records import JobRecord
from shared.schemas.preview import Preview, PreviewRow, PreviewSide, TokenPiece
from shared.states import JobState
from shared.token_cache import Pieces, Side, TokenRows

PreviewFile: TypeAlias = Literal["training", "validation"]

MAX_PIECES = 20_000
"""Tokens listed in an answer, all rows together: some 2 MB; a line may have millions."""

_PAIR: tuple[Literal["preferred_output"], Literal["non_preferred_output"]] = (
    "preferred_output",
    "non_preferred_output",
)


def preview(paths: Paths, record: JobRecord, file: PreviewFile, *, row: int, limit: int) -> Preview:
    """Show up to `limit` rows from `row` on. Blocks on the disk.

    Raises InvalidRequest before the files are validated, for a file that the job does not have and for a row that it
    does not have, NotFound when the tokens are no longer kept.
    """
    name = _tokens_of(record, file)
    try:
        with TokenRows(paths.token_folder(name)) as rows:
            pieces = Pieces(paths.token_folder(f"pieces-{rows.meta.pieces}"))
            if row >= rows.meta.rows:
                raise InvalidRequest(f"The file has {rows.meta.rows} rows, counted from 0.", param="row")
            stop = min(row + limit, rows.meta.rows)
            data, left = [], MAX_PIECES
            for number in range(row, stop):
                data.append(_row(rows, number, record, pieces, left // (stop - number)))
                left -= sum(len(side.tokens) for side in data[-1].sides)
            return Preview(file=file, data=data, total_rows=rows.meta.rows, has_more=stop < rows.meta.rows)
    except (FileNotFoundError, ValueError) as error:
        raise NotFound(f"The tokens of the {file} file are not kept any more; a new job makes them again.") from error


def _tokens_of(record: JobRecord, file: PreviewFile) -> str:
    if file == "validation" and record.validation_file is None:
        raise InvalidRequest("The job has no validation file.", param="file")
    name = record.training_tokens if file == "training" else record.validation_tokens
    if name:
        return name
    if record.status in (JobState.VALIDATING_FILES, JobState.PAUSED):
        raise InvalidRequest(
            f"The files of {record.id} are not validated yet; ask again when the job is queued.",
            code="preview_not_ready",
        )
    raise InvalidRequest(f"The files of {record.id} were not tokenised, so there is nothing to show.")


def _row(rows: TokenRows, number: int, record: JobRecord, pieces: Pieces, room: int) -> PreviewRow:
    """Show one row in at most `room` tokens, of which each of its sides has the same share."""
    sides = rows.row(number)
    cut = _cut(sides, record)
    names: tuple[Literal["row", "preferred_output", "non_preferred_output"], ...] = (
        _PAIR if len(sides) > 1 else ("row",)
    )
    return PreviewRow(
        row=number,
        line=rows.line(number),
        sides=[
            _side(side, name, _cut_range(side, cut, rows.meta.bos_id), pieces, room // len(sides))
            for side, name in zip(sides, names, strict=True)
        ],
    )


def _cut(sides: list[Side], record: JobRecord) -> int:
    options = record.options
    if options.max_length is None:
        return 0
    policy: Overlong = options.overlong or "refuse"
    width, prompt = max(side.used for side in sides), min(side.prompt for side in sides)
    return tokens_to_cut(width, prompt, options.max_length, policy)


def _cut_range(side: Side, cut: int, bos_id: int | None) -> range:
    if cut in (DROPPED, REFUSED):
        return range(side.n_tokens)
    start = first_kept(side.ids(0, 1)[0], bos_id)
    return range(start, start + cut)


def _side(
    side: Side, name: Literal["row", "preferred_output", "non_preferred_output"], cut: range, pieces: Pieces, room: int
) -> PreviewSide:
    """Show a side in at most `room` tokens, of which half are its first and half its last."""
    n_omitted = max(0, side.n_tokens - room)
    head = side.n_tokens if not n_omitted else room - room // 2
    tokens = [
        _piece(token, pieces.of(token), "cut" if place in cut else "trained" if learnt else "masked")
        for start, stop in ((0, head), (head + n_omitted, side.n_tokens))
        for place, token, learnt in zip(range(start, stop), side.ids(start, stop), side.mask(start, stop), strict=True)
    ]
    return PreviewSide(
        name=name,
        n_tokens=max(0, side.used - len(cut)),
        n_trained=side.mask(0, side.n_tokens).count(1) - side.mask(cut.start, cut.stop).count(1),
        n_omitted=n_omitted,
        tokens=tokens,
    )


def _piece(token: int, content: bytes, state: Literal["trained", "masked", "cut"]) -> TokenPiece:
    try:
        return TokenPiece(id=token, text=content.decode(), state=state)
    except UnicodeDecodeError:
        return TokenPiece(id=token, text=content.decode(errors="replace"), state=state, bytes=list(content))
