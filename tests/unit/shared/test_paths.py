"""Files become visible whole or not at all, and names never leave their folder."""

from __future__ import annotations

import os
import shutil
import stat
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from shared.errors import InvalidRequest
from shared.paths import Paths, publish_folder, read_or_create_secret, slug, write_atomic


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0b"])
def test_names_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    paths = Paths(tmp_path)
    for build in (paths.file_folder, paths.job_folder):
        with pytest.raises(ValueError, match="not a file name"):
            build(name)


def test_slug_is_one_component() -> None:
    assert slug("Qwen/Qwen2.5-0.5B") == "Qwen--Qwen2.5-0.5B"


def test_published_folder_is_readable_and_publishing_twice_is_once(tmp_path: Path) -> None:
    for attempt in range(2):
        staged = tmp_path / f"staged-{attempt}"
        staged.mkdir(mode=0o700)
        (staged / "weights").write_bytes(b"w")
        (staged / "weights").chmod(0o600)
        publish_folder(staged, tmp_path / "final" / "digest")
        assert not staged.exists()
    assert stat.S_IMODE((tmp_path / "final" / "digest" / "weights").stat().st_mode) == 0o644


def test_publishing_again_renews_the_time_of_the_folder_or_brings_it_back(tmp_path: Path) -> None:
    final = tmp_path / "final" / "digest"
    for is_there in (True, False):
        final.mkdir(parents=True, exist_ok=True)
        (final / "weights").write_bytes(b"w")
        os.utime(final, (0, 0))
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "weights").write_bytes(b"w")
        with mock.patch("os.utime", os.utime if is_there else partial(gone, final)):
            publish_folder(staged, final)
        assert final.stat().st_mtime > 0 and (final / "weights").read_bytes() == b"w" and not staged.exists()


def gone(final: Path, place: Path) -> None:
    """Stand in for os.utime while another process deletes the folder."""
    if place == final:
        shutil.rmtree(final)
        raise FileNotFoundError


def test_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    assert read_or_create_secret(path, "first") == ("first", True)
    assert read_or_create_secret(path, "second") == ("first", False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["admin.key"]


def test_empty_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "internal.key").touch()
    with pytest.raises(InvalidRequest, match="is empty"):
        read_or_create_secret(tmp_path / "internal.key", "new")
