"""A row of a job's file as tokens: which are trained on, which are only read, which are left out."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class TokenPiece(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token of a row."""

    id: int
    text: Annotated[
        str, Meta(description="What it stands for; U+FFFD where it holds a part of a character, and then see `bytes`.")
    ]
    state: Annotated[
        Literal["trained", "masked", "cut"],
        Meta(
            description="`trained`: learnt; `masked`: context, not learnt; `cut`: left out of training by "
            "`selftune.overlong`."
        ),
    ]
    bytes: Annotated[
        list[int] | None, Meta(description="Only for a piece that is no whole UTF-8: its bytes, to be joined.")
    ] = None


class PreviewSide(Struct, frozen=True, kw_only=True):
    """One sequence of a row; of a pair there are two, of which the preferred one comes first."""

    name: Literal["row", "preferred_output", "non_preferred_output"]
    n_tokens: Annotated[int, Meta(description="Tokens that training reads.")]
    n_trained: Annotated[int, Meta(description="Tokens that are learnt.")]
    n_omitted: Annotated[
        int,
        Meta(
            description="Tokens in the middle that are not listed; the first half of `tokens`, rounded up, stands "
            "before them. An answer lists 20,000 tokens at most."
        ),
    ] = 0
    tokens: list[TokenPiece]


class PreviewRow(Struct, frozen=True, kw_only=True):
    """A row of a training or validation file."""

    object: Literal["fine_tuning.job.preview_row"] = "fine_tuning.job.preview_row"
    row: Annotated[int, Meta(description="Place in the file, counted from 0; blank lines are no rows.")]
    line: Annotated[int, Meta(description="Line in the file, counted from 1.")]
    sides: list[PreviewSide]


class Preview(Struct, frozen=True, kw_only=True):
    """Some rows of a file, in the file's order; the next ones begin at the last one's `row` + 1."""

    object: Literal["list"] = "list"
    file: Literal["training", "validation"]
    data: list[PreviewRow]
    total_rows: int
    has_more: bool
