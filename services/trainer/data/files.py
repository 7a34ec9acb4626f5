"""A training file -> blocks of tokens, in as many processes as there are cores where it pays."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from services.trainer.data.lines import Block, LineMarker, line_marker, tokenize_block
from shared.json_lines import read_blocks
from shared.process import die_with_parent
from shared.token_cache import Format

RANGE_BYTES = 1 << 20
"""A piece of work: long enough that handing it over does not count, short enough that all end together."""
PARALLEL_BYTES = 4 << 20
"""Smaller files are done before other processes would have begun."""

_BOM = b"\xef\xbb\xbf"


def tokenize_here(path: Path, format_: Format, tokenizer: Any) -> Iterator[Block]:
    """Yield the file's blocks, tokenised by this process."""
    marker = line_marker(format_, tokenizer)
    for _, block in read_blocks(path):
        yield tokenize_block(block, marker)


def tokenize_file(path: Path, format_: Format, tokenizer: Any) -> Iterator[Block]:
    """Yield the file's blocks in order.

    Large files are shared among processes, forked from this one: it must not have other threads. The file must have
    passed validate(), so no line is longer than memory allows.
    """
    workers = os.cpu_count() or 1
    if workers < 2 or path.stat().st_size < PARALLEL_BYTES:
        yield from tokenize_here(path, format_, tokenizer)
        return
    marker = line_marker(format_, tokenizer)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(path, marker, os.getpid())) as pool:
        try:
            yield from in_order(pool, byte_ranges(path), 2 * workers)
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(pool: Executor, places: Iterable[tuple[int, int]], window: int) -> Iterator[Block]:
    """Yield the block of each range, in order; no more than `window` are handed over and not yet taken."""
    running: deque[Future[Block]] = deque()
    for place in places:
        if len(running) == window:
            yield running.popleft().result()
        running.append(pool.submit(_tokenize_range, place))
    while running:
        yield running.popleft().result()


def byte_ranges(path: Path, size: int = RANGE_BYTES) -> list[tuple[int, int]]:
    """Cut a file into (start, end) ranges of whole lines, each of about `size` bytes or one longer line."""
    ranges = []
    with path.open("rb") as handle:
        start, total = 0, os.fstat(handle.fileno()).st_size
        while start < total:
            handle.seek(min(total, start + size) - 1)
            handle.readline()
            end = handle.tell()
            ranges.append((start, end))
            start = end
    return ranges


_work: tuple[Path, LineMarker]
"""What a worker process works on; a function cannot be handed over otherwise."""


def _begin(path: Path, marker: LineMarker, parent_pid: int) -> None:
    global _work
    die_with_parent(parent_pid=parent_pid)
    _work = (path, marker)
    gc.freeze()  # what the libraries keep need not be looked through again and again


def _tokenize_range(place: tuple[int, int]) -> Block:
    path, marker = _work
    start, end = place
    with path.open("rb") as handle:
        handle.seek(start)
        block = handle.read(end - start)
    return tokenize_block(block.removeprefix(_BOM) if start == 0 else block, marker)
