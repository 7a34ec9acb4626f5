"""Rows on their way to a data set, in a file of the distillation's own: those that were found, dropped or not.

The file is written once, whole: whoever takes the distillation over goes on with what the first has found, whatever
became of stored completions meanwhile.
"""

from __future__ import annotations

import os
import secrets
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.api.distillation.duplicates import digest_of, near_duplicates, sketch_of
from services.api.distillation.examples import said, training_line
from shared.paths import fsync_folder
from shared.schemas.distillations import DistillationFilter

MAX_BYTES = 100 << 20
"""Of rows that are not dropped; an eval's rows have the answer twice, and take 200 MiB."""
MAX_ROW_BYTES = 4 << 20

_encode = msgspec.json.Encoder(order="sorted").encode


class Candidate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A prompt, with its answer where there is one; of a dropped one its id and why."""

    id: str
    """Of the stored completion, or the prompt's number."""
    dropped: str = ""
    like: str = ""
    """The row that a duplicate is one of."""
    model: str = ""
    metadata: dict[str, str] = {}
    input: list[dict[str, Any]] = []
    answer: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    row: dict[str, Any] | None = None
    """What was posted for a prompt."""

    @property
    def item(self) -> dict[str, Any]:
        """Return what graders call `item`."""
        found: dict[str, Any] = {
            "id": self.id, "model": self.model, "metadata": self.metadata, "input": self.input,
        }  # fmt: skip
        if self.answer is not None:
            found["output"] = self.answer.get("content") or ""
        return found | ({"row": self.row} if self.row is not None else {})

    @property
    def sample(self) -> dict[str, Any] | None:
        """Return what graders call `sample`."""
        if self.answer is None:
            return None
        calls = self.answer.get("tool_calls")
        text = {"output_text": self.answer.get("content") or ""}
        return text | ({"output_tools": calls} if calls else {}) | ({"model": self.model} if self.model else {})

    def without(self, reason: str, *, like: str = "") -> Candidate:
        """Return it dropped."""
        return Candidate(id=self.id, dropped=reason, like=like)

    def line(self) -> bytes:
        """Return the line to train on. Raises Unusable."""
        return training_line(self.input, self.answer or {"role": "assistant", "content": "?"}, self.tools)


_decode = msgspec.json.Decoder(Candidate).decode


class Collection:
    """Writes candidates to a file, the newest first, each looked at for duplicates of those before. Blocks."""

    def __init__(self, path: Path, wanted: DistillationFilter) -> None:
        self._path = path
        self._wanted = wanted
        self._draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self._draft.open("x+b")
        self._seen: dict[bytes, str] = {}
        self._sketches: list[array[int]] = []
        self._sketched = array("L")
        """The places of their rows among all."""
        self._ids: list[str] = []
        self._bytes = 0
        self._stop = Event()

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Write some. Raises OSError."""
        for candidate in candidates:
            if self._stop.is_set():
                return
            looked_at = candidate if candidate.dropped else self._looked_at(candidate)
            self._handle.write(_encode(looked_at) + b"\n")
            self._ids.append(candidate.id)

    @property
    def size_bytes(self) -> int:
        """How long the file becomes at most, but for the ids of rows that near duplicates are like."""
        return self._handle.tell()

    def finish(self) -> None:
        """Drop near duplicates and have the file in its place, unless there is one. Raises OSError."""
        alike = self._alike()
        if self._stop.is_set():
            return
        final = self._draft.with_name(f"{self._draft.name}.2")
        try:
            with final.open("xb") as out:
                self._handle.seek(0)
                for place, line in enumerate(self._handle):
                    out.write(self._dropped_line(line, alike[place]) if place in alike else line)
                out.flush()
                os.fsync(out.fileno())
            _put(final, self._path)
        finally:
            final.unlink(missing_ok=True)

    def stop(self) -> None:
        """Have whatever thread is at it end soon; nothing is written then."""
        self._stop.set()

    def close(self) -> None:
        self._handle.close()
        self._draft.unlink(missing_ok=True)

    def _looked_at(self, candidate: Candidate) -> Candidate:
        digest = digest_of(_encode(candidate.input), _encode(candidate.answer), _encode(candidate.tools))
        if not self._wanted.duplicates and (like := self._seen.get(digest)) is not None:
            return candidate.without("duplicate", like=like)
        self._seen[digest] = candidate.id
        size = len(_encode(candidate))
        if size > MAX_ROW_BYTES or self._bytes + size > MAX_BYTES:
            return candidate.without("over_size")
        self._bytes += size
        if self._wanted.near_duplicates is not None:
            self._sketches.append(sketch_of(said(candidate.input, candidate.answer)))
            self._sketched.append(len(self._ids))
        return candidate

    def _alike(self) -> dict[int, int]:
        """Return the places of near duplicates, and of the rows that they are like."""
        if self._wanted.near_duplicates is None:
            return {}
        places = self._sketched
        found = near_duplicates(self._sketches, self._wanted.near_duplicates, stop=self._stop)
        return {places[one]: places[other] for one, other in found.items()}

    def _dropped_line(self, line: bytes, like: int) -> bytes:
        return _encode(_decode(line).without("near_duplicate", like=self._ids[like])) + b"\n"


def read_candidates(path: Path) -> Iterator[Candidate]:
    """Yield the candidates of a file, dropped ones included. Blocks. Raises FileNotFoundError, OSError."""
    with path.open("rb") as handle:
        for line in handle:
            yield _decode(line)


def answered(candidate: Candidate, answer: dict[str, Any], model: str) -> Candidate:
    """Return a prompt with its answer."""
    return replace(candidate, answer=answer, model=model)


def _put(draft: Path, path: Path) -> None:
    try:
        path.hardlink_to(draft)
    except FileExistsError:  # another process was faster; what it has found counts
        return
    fsync_folder(path.parent)
