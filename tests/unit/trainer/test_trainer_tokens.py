"""Files of tokens: the same rows from memory, from the cache and from several processes; damage; sweeping; policies."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import psutil
import pytest

from services.trainer.data import files, tokenizing
from services.trainer.data.cache import KEPT_S, RECENT_S, TokenCache, map_table, sweep, tokenize_in_memory
from services.trainer.data.coder import Coder
from services.trainer.data.files import byte_ranges, tokenize_here
from services.trainer.data.pieces import token_pieces
from services.trainer.data.table import TokenTable, examples, fit, pairs
from services.trainer.data.tokenizing_protocol import Request, Tokenized, answer_decoder
from services.trainer.failures import TrainingFailed
from services.trainer.launch import tokenizing_process
from services.trainer.protocol import Failed
from services.trainer.training.run_job import load_data
from shared.errors import InvalidTrainingData
from shared.paths import publish_folder
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from shared.settings import Settings
from shared.token_cache import TokenRows, forget_file
from tests.unit.trainer.templates import FAMILIES, family_tokenizer
from tests.unit.trainer.tiny import make_spec, preference_rows, tiny_tokenizer, training_rows, write_rows

N = 37_000
"""Rows of a file that is shared among processes."""


def rows_of(table: TokenTable) -> list[Any]:
    return examples(table, fit(table, 10_000, "refuse", "training_file"))


def in_memory(path: Path, format_: Any = "chat") -> TokenTable:
    return tokenize_in_memory(path, format_, tiny_tokenizer(), "training_file")


def cache_at(tmp_path: Path, base: Path) -> TokenCache:
    return TokenCache(tmp_path / "tokens", base, tiny_tokenizer(), is_alone=False)


def test_kept_tokens_are_those_that_were_made_and_are_not_made_again(tmp_path: Path, tiny_base: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", training_rows(30))
    cache = cache_at(tmp_path, tiny_base)
    key = cache.key(path, "chat")
    assert cache.find(key) is None
    made = cache.build(key, path, "chat", "training_file")
    found = cache.find(key)
    assert found is not None
    assert rows_of(made) == rows_of(found) == rows_of(in_memory(path))
    with TokenRows(tmp_path / "tokens" / key) as kept:
        [side] = kept.row(7)
        example = rows_of(found)[7]
        assert side.ids(0, side.used) == list(example.tokens)
        assert list(side.mask(0, side.used)) == list(example.supervised)
        assert side.prompt == example.prompt_length
        assert kept.line(7) == example.line == 8
    assert cache.key(path, "text") != key


@pytest.mark.parametrize("name", ["ids", "mask", "ends", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_tokens_are_made_again(tmp_path: Path, tiny_base: Path, name: str, damage: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", training_rows(12))
    cache = cache_at(tmp_path, tiny_base)
    key = cache.key(path, "chat")
    cache.build(key, path, "chat", "training_file")
    victim = tmp_path / "tokens" / key / name
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(content[:-3] if damage == "cut" else b"\x07" + content[1:])
    assert cache.find(key) is None
    assert rows_of(cache.build(key, path, "chat", "training_file")) == rows_of(in_memory(path))


def test_training_maps_what_validation_tokenised(tmp_path: Path, tiny_base: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, tokens_folder=str(tmp_path / "tokens"))
    first = load_data(spec)
    with mock.patch("services.trainer.data.cache.tokenize_here", side_effect=AssertionError):
        again = load_data(spec)
    assert (first.train, first.valid) == (again.train, again.valid)


def test_old_and_many_tokens_are_swept_and_recent_ones_never(tmp_path: Path) -> None:
    ages = {"new": 0.0, "day": 86400.0, "week": 7 * 86400.0, "old": KEPT_S + 60, ".partial-x": RECENT_S + 60}
    now = 10.0**9
    for name, age in ages.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "ids").write_bytes(bytes(100))
        os.utime(folder, (now - age, now - age))
    sweep(tmp_path, kept_bytes=320, now=now)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "day"}
    sweep(tmp_path, kept_bytes=0, now=now)
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_ranges_are_whole_lines_and_cover_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"\n".join(b"x" * length for length in (0, 3, 50, 7, 0, 0, 19, 1)))
    for size in (1, 5, 20, 1000):
        ranges = byte_ranges(path, size)
        content = path.read_bytes()
        assert b"".join(content[start:end] for start, end in ranges) == content
        assert all(content[:end].endswith(b"\n") for _, end in ranges[:-1])


def ask(**values: Any) -> Any:
    """Have a process of its own tokenise, as the worker does."""
    request = Request(**{"method": "supervised", "max_length": 128, "overlong": "refuse", **values})

    async def answered() -> bytes:
        status, output = await tokenizing_process.ask(request)
        assert status == 0
        return output

    return answer_decoder.decode(asyncio.run(answered()))


def test_several_processes_give_what_one_does(tmp_path: Path, tiny_base: Path) -> None:
    rows = training_rows(N)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert path.stat().st_size > files.PARALLEL_BYTES
    answer = ask(base_folder=str(tiny_base), tokens_folder=str(tmp_path / "tokens"), training_path=str(path))
    assert (answer.training.rows, answer.training.n_dropped) == (N, 0)
    alone = in_memory(path)
    with TokenRows(tmp_path / "tokens" / answer.training.key) as kept:
        assert kept.meta.tokens == len(alone.ids_T)
        for row in (0, N // 2, N - 1):
            assert kept.row(row)[0].ids(0, alone.side(row, 0).width) == list(alone.side(row, 0).tokens)
            assert kept.line(row) == row + 1


def test_first_bad_line_is_named_whichever_process_reads_it(tmp_path: Path, tiny_base: Path) -> None:
    rows = training_rows(N)
    for bad in (N - 900, N - 1):
        rows[bad]["messages"].insert(0, {"role": "assistant", "content": "hello"})
    path = write_rows(tmp_path / "rows.jsonl", rows)
    answer = ask(base_folder=str(tiny_base), tokens_folder=str(tmp_path / "tokens"), training_path=str(path))
    assert isinstance(answer, Failed)
    assert f"line {N - 899}: " in answer.message and "2 lines are like that" in answer.message
    assert [entry.name for entry in (tmp_path / "tokens").iterdir()] == []


def long_rows(tmp_path: Path) -> TokenTable:
    rows = training_rows(3)
    rows[1]["messages"][0]["content"] = "please " * 100
    return in_memory(write_rows(tmp_path / "rows.jsonl", rows))


def test_rows_that_are_too_long_are_refused_dropped_or_cut(tmp_path: Path) -> None:
    table = long_rows(tmp_path)
    width = table.side(1, 2).width
    with pytest.raises(InvalidTrainingData, match=r"line 2: \d+ tokens, more than the 40 of this job"):
        fit(table, 40, "refuse", "training_file")
    dropped = fit(table, 40, "drop", "training_file")
    assert (dropped.dropped, [e.line for e in examples(table, dropped)]) == ([2], [1, 3])
    cut = fit(table, 40, "truncate_prompt", "training_file")
    row = examples(table, cut)[1]
    whole = table.side(1, 2)
    assert (cut.cut, row.width) == ([2], 40)
    assert list(row.tokens) == list(whole.tokens[width - 40 :])
    assert row.n_supervised == whole.n_supervised


def test_answers_are_never_cut(tmp_path: Path) -> None:
    rows = training_rows(2)
    rows[1]["messages"][1]["content"] = "fruit " * 60
    table = in_memory(write_rows(tmp_path / "rows.jsonl", rows))
    with pytest.raises(InvalidTrainingData, match=r"line 2: .*never cut"):
        fit(table, 40, "truncate_prompt", "training_file")


def test_token_that_begins_a_text_stays_where_a_prompt_is_cut(tmp_path: Path) -> None:
    tokenizer = family_tokenizer("llama")
    rows = training_rows(2)
    rows[1]["messages"][0]["content"] = "please " * 100
    table = tokenize_in_memory(write_rows(tmp_path / "rows.jsonl", rows), "chat", tokenizer, "training_file")
    row = examples(table, fit(table, 60, "truncate_prompt", "training_file"))[1]
    assert (row.width, int(row.tokens[0])) == (60, tokenizer.bos_token_id)


def test_both_sides_of_a_pair_keep_the_same_prompt(tmp_path: Path) -> None:
    rows = preference_rows(2)
    rows[1]["input"]["messages"][0]["content"] = "please " * 100
    rows[1]["non_preferred_output"][0]["content"] = "animal " * 9
    table = in_memory(write_rows(tmp_path / "rows.jsonl", rows), "preference")
    pair = pairs(table, fit(table, 60, "truncate_prompt", "training_file"))[1]
    assert pair.width == 60
    assert pair.chosen.prompt == pair.rejected.prompt
    assert pair.chosen.width < pair.rejected.width


def test_tokenizer_without_padding_token_will_do(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    path = write_rows(tmp_path / "rows.jsonl", training_rows(4))
    table = tokenize_in_memory(path, "chat", tokenizer, "training_file")
    assert rows_of(table) == rows_of(in_memory(path))


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_are_what_the_tokens_stand_for(name: str, tmp_path: Path) -> None:
    tokenizer = family_tokenizer(name)
    pieces = token_pieces(tokenizer)
    text = "The dog 🙂 isn't é\n\n  blue"
    begin = FAMILIES[name].special[0]
    ids = tokenizer(begin + text, add_special_tokens=False)["input_ids"]
    assert b"".join(pieces[number] for number in ids).decode() == begin + text


def test_blank_lines_count_as_lines_but_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [msgspec.json.encode(row) for row in training_rows(3)]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\n\n  \r\n" + lines[1] + b"\r\n" + lines[2])
    [block] = tokenize_here(path, "chat", tiny_tokenizer())
    assert (block.lines, block.problems) == ([0, 3, 4], [])


def test_two_jobs_make_the_tokens_of_one_file(tmp_path: Path, tiny_base: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", training_rows(12))
    cache = cache_at(tmp_path, tiny_base)
    key = cache.key(path, "chat")

    def too_early(folder: Path) -> TokenTable:
        """Find nothing, whereupon another job publishes."""
        cache.build(key, path, "chat", "training_file")
        raise FileNotFoundError(folder)

    first = [too_early]

    def mapped(folder: Path) -> TokenTable:
        return first.pop()(folder) if first else map_table(folder)

    with mock.patch("services.trainer.data.cache.map_table", mapped):
        found = cache.find(key)
    assert found is not None and rows_of(found) == rows_of(in_memory(path))
    assert (tmp_path / "tokens" / key / "meta.json").exists()


def test_full_disk_leaves_good_tokens_alone(tmp_path: Path, tiny_base: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", training_rows(12))
    cache = cache_at(tmp_path, tiny_base)
    key = cache.key(path, "chat")
    cache.build(key, path, "chat", "training_file")
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch("services.trainer.data.cache.write_pieces", side_effect=full),
        pytest.raises(OSError, match="space"),
    ):
        cache.find(key)
    assert cache.find(key) is not None


def test_tokens_that_are_still_being_written_look_so(tmp_path: Path, tiny_base: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", training_rows(12))
    cache = cache_at(tmp_path, tiny_base)
    ages = []

    def slow(*given: Any) -> Any:
        [staged] = (tmp_path / "tokens").iterdir()
        for _ in range(2):
            ages.append(time.time() - staged.stat().st_mtime)
            os.utime(staged, (1, 1))
            yield from tokenize_here(*given)
        ages.append(time.time() - staged.stat().st_mtime)

    with mock.patch.object(cache, "_blocks", slow):
        cache.build(cache.key(path, "chat"), path, "chat", "training_file")
    assert len(ages) == 3 and max(ages) < 60


def test_tokens_go_with_their_file(tmp_path: Path, tiny_base: Path) -> None:
    path, other = (write_rows(tmp_path / f"{count}.jsonl", training_rows(count)) for count in (12, 13))
    cache = cache_at(tmp_path, tiny_base)
    keys = [cache.key(each, "chat") for each in (path, other)]
    for key, each in zip(keys, (path, other), strict=True):
        cache.build(key, each, "chat", "training_file")
    forget_file(tmp_path / "tokens", hashlib.sha256(path.read_bytes()).hexdigest())
    assert {entry.name for entry in (tmp_path / "tokens").iterdir()} == {keys[1], f"pieces-{cache.digest}"}

    def deleted_meanwhile(*given: Any) -> None:
        publish_folder(*given)
        path.unlink(missing_ok=True)

    with mock.patch("services.trainer.data.cache.publish_folder", deleted_meanwhile), pytest.raises(FileNotFoundError):
        cache.build(keys[0], path, "chat", "training_file")
    assert not (tmp_path / "tokens" / keys[0]).exists()


def test_only_a_few_ranges_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[Any] = []

    class Pool(Executor):
        def submit(self, _: Any, place: Any) -> Any:  # type: ignore[override]
            submitted.append(place)
            future: Future[Any] = Future()
            future.set_result(place)
            return future

    taken: list[Any] = []
    for block in files.in_order(Pool(), [(n, n) for n in range(20)], 4):
        taken.append(block)
        assert len(submitted) - len(taken) < 4
    assert taken == submitted == [(n, n) for n in range(20)]


def test_long_texts_are_not_remembered() -> None:
    coder = Coder(family_tokenizer("llama"))
    for text in ("short one", "long " * 10_000):
        assert coder.encode(text) == coder.ask(text)
    assert list(coder._texts) == ["short one"]


SHORT = Request(
    base_folder="", tokens_folder="", method="supervised", max_length=1, overlong="drop", training_path="/no"
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (MemoryError(), "out_of_memory"),
        (BrokenProcessPool(), "out_of_memory"),
        (FileNotFoundError(errno.ENOENT, "gone", "/no"), "invalid_training_file"),
    ],
)
def test_what_is_short_while_files_are_tokenised_is_told(
    error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "tokenize", mock.Mock(side_effect=error))
    answer = tokenizing.answer(SHORT)
    assert isinstance(answer, Failed) and answer.code == code


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "tokenize", mock.Mock(side_effect=IndexError))
    with pytest.raises(IndexError):
        tokenizing.answer(SHORT)


def test_tokenising_that_takes_too_long_is_ended(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", training_rows(12))
    stores = mock.Mock()
    stores.settings = Settings()
    stores.paths.tokens = tmp_path / "tokens"
    stores.paths.file_content.return_value = path
    asked = SupervisedHyperparameters()
    record = mock.Mock(id="ftjob-1", method="supervised", training_file="file-1", validation_file=None, requested=asked)
    options = TrainingOptions(max_length=128, overlong="refuse")

    def tokens() -> Tokenized:
        return asyncio.run(tokenizing_process.tokenize_files(stores, record, str(tiny_base), options))

    assert tokens().training.rows == 12
    assert tokenizing_process.time_limit(512 << 20) > tokenizing_process.time_limit(0) >= 600
    write_rows(path, training_rows(5000))
    for seconds in (0.001, 0.05):
        monkeypatch.setattr(tokenizing_process, "time_limit", lambda _, seconds=seconds: seconds)
        with pytest.raises(TrainingFailed, match="took longer than"):
            tokens()
        left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
        assert not [words for words in left if "services.trainer.data.tokenizing" in " ".join(words)]
