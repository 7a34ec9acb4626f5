"""Files of rows."""

from __future__ import annotations

from pathlib import Path

from services.api.evals import sources
from services.api.evals.rows import Row


def test_rows_that_are_there_stay(tmp_path: Path) -> None:
    path = tmp_path / "evalrun_1" / "rows.jsonl"
    for text in ("first", "second"):
        sources._write(path, [Row(item={"text": text})])
    assert path.read_bytes() == b'{"item":{"text":"first"}}\n'
    assert list(path.parent.iterdir()) == [path]
