"""Where settings come from, which one wins, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import InvalidRequest
from shared.settings import Settings, describe


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    (tmp_path / "selftune.toml").write_text("port = 1111\nmax_loras = 7\norganization = 'file'\n")
    environ = {"SELFTUNE_DATA_DIR": str(tmp_path), "SELFTUNE_PORT": "2222", "SELFTUNE_MAX_LORAS": "8"}
    settings = Settings.load({"port": "3333", "host": None}, environ=environ)
    assert (settings.port, settings.max_loras, settings.organization) == (3333, 8, "file")
    assert settings.host == Settings().host


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SELFTUNE_PORT": "eighty"}, "setting port: Expected `int`"),
        ({"SELFTUNE_PORT": "70000"}, "setting port: Expected `int` <= 65535"),
        ({"SELFTUNE_ORGANIZATION": "a:b"}, "setting organization: "),
        ({"SELFTUNE_CONFIG": "/nowhere/selftune.toml"}, "settings file /nowhere/selftune.toml"),
    ],
)
def test_wrong_setting_is_named(environ: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Settings.load({"data_dir": str(tmp_path)}, environ=environ)
    assert message in str(caught.value)


def test_unknown_setting_in_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "selftune.toml").write_text("prot = 1\n")
    with pytest.raises(InvalidRequest, match="prot"):
        Settings.load({"data_dir": str(tmp_path)}, environ={})


def test_child_process_reads_exactly_what_its_parent_has(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), port=4321, lease_ttl_s=3.5, base_model="/models/x")
    assert Settings.load(environ=settings.to_env()) == settings


def test_child_process_reads_no_file_and_takes_empty_for_empty(tmp_path: Path) -> None:
    (tmp_path / "selftune.toml").write_text("redis_url = 'unix:///elsewhere'\nmax_loras = 7\nunknown = 1\n")
    settings = Settings(data_dir=str(tmp_path), redis_url="", base_model_id="")
    environ = {**settings.to_env(), "SELFTUNE_CONFIG": "/nowhere.toml"}
    assert Settings.load(environ=environ) == settings
    assert Settings.load(environ=environ | {"SELFTUNE_PORT": "4321"}).port == 4321


def test_every_setting_is_explained() -> None:
    assert [name for name, text, _ in describe() if not text] == []
