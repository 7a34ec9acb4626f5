"""Looking at the tokens of a job's rows: long ones are shown in part, damaged ones count as swept."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.api.jobs import preview as module
from services.api.jobs.preview import preview
from services.trainer.data.cache import TokenCache
from shared.errors import NotFound
from shared.paths import Paths
from shared.records import JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from tests.unit.trainer.tiny import tiny_tokenizer, training_rows, write_rows


def tokenized(tmp_path: Path, base: Path, *, options: TrainingOptions | None = None) -> tuple[Paths, JobRecord]:
    """Keep the tokens of three rows, of which the second has a long prompt."""
    rows = training_rows(3)
    rows[1]["messages"][0]["content"] = "please " * 300
    path = write_rows(tmp_path / "rows.jsonl", rows)
    paths = Paths(tmp_path)
    cache = TokenCache(paths.tokens, base, tiny_tokenizer(), is_alone=False)
    key = cache.key(path, "chat")
    cache.build(key, path, "chat", "training_file")
    record = JobRecord(
        id="ftjob-1", project="p", organization="o", created_at=1, model="m", training_file="file-1", seed=1,
        requested=SupervisedHyperparameters(), model_name="ft:m", training_tokens=key,
        options=options or TrainingOptions(),
    )  # fmt: skip
    return paths, record


def test_long_rows_are_shown_from_both_ends(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainingOptions(max_length=64, overlong="truncate_prompt")
    paths, record = tokenized(tmp_path, tiny_base, options=options)
    [whole] = preview(paths, record, "training", row=1, limit=1).data[0].sides
    assert whole.n_omitted == 0
    monkeypatch.setattr(module, "MAX_PIECES", 101)
    [part] = preview(paths, record, "training", row=1, limit=1).data[0].sides
    assert (len(part.tokens), part.n_omitted) == (101, len(whole.tokens) - 101)
    assert part.tokens == whole.tokens[:51] + whole.tokens[-50:]
    assert (part.n_tokens, part.n_trained) == (whole.n_tokens, whole.n_trained) == (64, 2)
    several = preview(paths, record, "training", row=0, limit=3).data
    sides = [row.sides[0] for row in several]
    assert [side.n_omitted > 0 for side in sides] == [False, True, False]
    assert sum(len(side.tokens) for side in sides) <= 101


ARRAYS = ["ids", "mask", "ends", "used", "lines", "labels", "pieces/ends", "pieces/bytes"]
DAMAGES = [("ends", "wild"), ("used", "wild"), *((name, how) for name in ARRAYS for how in ("odd", "short", "empty"))]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_tokens_count_as_swept(tmp_path: Path, tiny_base: Path, name: str, damage: str) -> None:
    paths, record = tokenized(tmp_path, tiny_base)
    [pieces] = paths.tokens.glob("pieces-*")
    folder = pieces if "/" in name else paths.token_folder(record.training_tokens)
    victim = folder / name.rpartition("/")[2]
    content = victim.read_bytes()
    victim.write_bytes({"odd": content[:-3], "short": content[:-8], "empty": b"", "wild": b"\xff" * 24}[damage])
    with pytest.raises(NotFound, match="not kept any more"):
        preview(paths, record, "training", row=0, limit=3)
