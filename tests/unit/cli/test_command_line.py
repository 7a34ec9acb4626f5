"""The selftune command: help that is quick and complete, mistakes that are named."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.cli import doctor
from shared import embedded_valkey
from shared.settings import Settings, describe


def selftune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment},
    )  # fmt: skip


def test_help_explains_every_setting_but_the_secrets() -> None:
    done = selftune("up", "--help")
    assert done.returncode == 0
    shown = {name for name, _, _ in describe() if f"--{name.replace('_', '-')} " in done.stdout}
    assert shown == {name for name, _, _ in describe()} - {"internal_key", "key_secret"}
    assert "SELFTUNE_BASE_MODEL" in done.stdout


def test_help_is_quick() -> None:
    selftune("--help")  # compiles what is not compiled yet
    times = []
    for _ in range(5):
        begun = time.monotonic()
        assert selftune("--help").returncode == 0
        times.append(time.monotonic() - begun)
    assert min(times) < 1.0  # 0.3 s on an idle machine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "http"), "setting port: Expected `int`"),
        (("--base-model", "/nowhere"), "there is no config.json in that folder"),
        (("--config", "/nowhere.toml"), "settings file /nowhere.toml"),
        (("--redis-url", "unix:///nowhere.sock"), "the database does not answer"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    done = selftune("up", "--data-dir", str(tmp_path), *arguments, SELFTUNE_PORT=str(free))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = selftune("up", "--data-dir", str(tmp_path), "--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


def test_doctor_says_what_is_set_where_and_what_would_be_chosen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    (tmp_path / "selftune.toml").write_text("max_loras = 7\n")
    done = selftune("doctor", "--data-dir", str(tmp_path), "--port", str(free), SELFTUNE_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "max_loras 7, from the settings file" in lines
    assert "threads 1, from the environment" in lines
    assert f"port {free} free on 127.0.0.1" in lines
    assert "compute threads 1 - set by `threads`" in lines
    assert any(line.startswith("weights ") for line in lines)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--base-model", "/nowhere"), "x base model /nowhere is no folder"),
        (("--redis-url", "unix:///nowhere.sock"), "x database does not answer at redis_url"),
        (("--data-dir", "/dev/null/here"), "x data folder /dev/null/here: /dev/null is no folder"),
    ],
)
def test_doctor_names_what_is_in_the_way(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    done = selftune("doctor", *(() if "--data-dir" in arguments else ("--data-dir", str(tmp_path))), *arguments)
    assert done.returncode == 1
    assert line in [" ".join(found.split()) for found in done.stdout.splitlines()]


def test_url_that_is_no_database_s_is_refused_without_its_password(tmp_path: Path) -> None:
    done = selftune("doctor", "--data-dir", str(tmp_path), "--redis-url", "http://:secret@x")
    assert done.returncode == 2
    assert "redis_url: it is not redis://" in done.stderr and "secret" not in done.stdout + done.stderr


def test_doctor_shows_no_password_and_what_is_merged(tmp_path: Path) -> None:
    merged = "ft:a:b::c"
    settings = {"SELFTUNE_MLFLOW_TRACKING_URI": "http://me:secret@mlflow", "SELFTUNE_MERGED_MODEL": merged}
    done = selftune("doctor", "--data-dir", str(tmp_path), **settings)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "mlflow_tracking_uri (hidden), from the environment" in lines and "secret" not in done.stdout
    assert any(line.startswith(f"merged {merged} - ") for line in lines)
    assert not any(line.startswith(("rank of a slot", "adapters ")) for line in lines)


def test_doctor_says_why_it_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(doctor, "_EXPLAIN", ["-c", "echo one >&2; echo two >&2; exit 1"])
    assert doctor._choices(Settings())[0] == ("failed", "choices", "the inference server could not say: two")


def test_place_that_may_not_be_looked_at_is_a_line() -> None:
    def look() -> doctor.Line:
        raise PermissionError(13, "Permission denied", "/root/x")

    assert doctor._looked("base model", look) == ("failed", "base model", "/root/x: Permission denied")


def test_doctor_tells_a_taken_port_from_a_free_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = selftune("doctor", "--data-dir", str(tmp_path), "--port", str(port))
    assert done.returncode == 1
    assert f"x port {port}" in " ".join(done.stdout.split())


def test_socket_of_a_deep_folder_fits_into_its_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    assert len(str(embedded_valkey.socket_path(deep))) <= 100
    assert embedded_valkey.socket_path(deep) == embedded_valkey.socket_path(deep)
    assert embedded_valkey.socket_path(deep) != embedded_valkey.socket_path(deep / "other")
    assert embedded_valkey.socket_path(Path("/srv/x")) == Path("/srv/x/valkey.sock")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ft:a:b::c", "--to", "out"), "the database that knows the models' names does not answer"),
        (("/nowhere", "--to", "out", "--gguf", "q8_0"), "ends in .gguf"),
        (("ft:a:b::c", "--to", "/etc/passwd", "--force"), "/etc/passwd is there already"),
        (("ft:a:b::c", "--to", "out", "--gguf", "q2_k"), "'q2_k' is not one of"),
    ],
)
def test_export_that_cannot_be_is_explained(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = selftune("export", *arguments, "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
