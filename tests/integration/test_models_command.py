"""`selftune models` and `selftune export --oci` on a real API: from a folder, an archive and a hub, and out again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest

from services.trainer.base.description import describe_base
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from shared.oci_layout import About, write_archive
from shared.store.client import Client
from shared.store.registry import Registry
from tests.adapter_files import CONFIG, write_adapter, write_base
from tests.api_server import ROOT, ApiServer, make_base, with_store

BASE = "hub/tiny"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, tmp_path: Path) -> openai.OpenAI:
    base = write_base(tmp_path / "base")

    async def fill(client: Client) -> None:
        described = describe_base(base, BASE)
        await Registry(client).put_base(described)
        await Registry(client).put_base(make_base("other", path=str(base)))

    with_store(redis_url, fill)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def selftune(sdk: openai.OpenAI, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"OPENAI_BASE_URL": str(sdk.base_url), "OPENAI_API_KEY": sdk.api_key, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *map(str, arguments)],
        cwd=ROOT, env={"PATH": os.environ["PATH"], **settings, **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def run(sdk: openai.OpenAI, *arguments: str | Path, **environment: str) -> str:
    done = selftune(sdk, *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def refusal(sdk: openai.OpenAI, *arguments: str | Path, **environment: str) -> str:
    done = selftune(sdk, *arguments, **environment)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr


def test_folder_becomes_a_model_and_its_files_go(sdk: openai.OpenAI, adapter: Path) -> None:
    name = run(sdk, "models", "import", adapter, "--suffix", "mine")
    assert name.startswith(f"ft:{BASE}:acme:mine:")
    assert run(sdk, "models", "list").splitlines() == [BASE, "other", name]
    assert list(sdk.files.list()) == []
    run(sdk, "models", "delete", name)
    assert name not in run(sdk, "models", "list")
    assert "does not exist" in refusal(sdk, "models", "delete", name)


def test_archive_goes_out_and_comes_back(
    sdk: openai.OpenAI, api: ApiServer, redis_url: str, adapter: Path, tmp_path: Path
) -> None:
    where = {"SELFTUNE_DATA_DIR": str(api.paths.home), "SELFTUNE_REDIS_URL": redis_url}
    name = run(sdk, "models", "import", adapter)
    for place in ("one.tar", "two.tar"):
        run(sdk, "export", name, "--oci", tmp_path / place, **where)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    again = run(sdk, "models", "import", tmp_path / "one.tar")

    async def digests(client: Client) -> set[str]:
        found = [await Registry(client).get(model) for model in (name, again)]
        return {record.sha256 for record in found if record is not None}

    assert again != name and len(with_store(redis_url, digests)) == 1
    assert "is there already" in refusal(sdk, "export", name, "--oci", tmp_path / "one.tar", **where)
    assert "ends in .tar" in refusal(sdk, "export", name, "--oci", tmp_path / "one.zip", **where)
    assert "neither --merge nor" in refusal(sdk, "export", name, "--merge", "--oci", tmp_path / "x.tar", **where)
    assert "one of the two" in refusal(sdk, "export", name, **where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "one.tar", "two.tar"]


def test_base_is_asked_for_when_it_cannot_be_told(sdk: openai.OpenAI, adapter: Path) -> None:
    (adapter / CONFIG_NAME).write_text(json.dumps(CONFIG | {"base_model_name_or_path": "/models/else"}))
    message = refusal(sdk, "models", "import", adapter)
    assert "'/models/else'" in message and f"--base which of the server's that is: {BASE}, other" in message
    done = selftune(sdk, "models", "import", adapter, "--base", "other")
    assert done.returncode == 0 and done.stdout.startswith("ft:other:acme::")
    assert "warning: The adapter says that it was trained on '/models/else'" in done.stderr


def test_refusals_are_told_and_leave_no_files(sdk: openai.OpenAI, adapter: Path, tmp_path: Path) -> None:
    (adapter / CONFIG_NAME).write_text(json.dumps(CONFIG | {"use_dora": True}))
    assert "DoRA cannot be served" in refusal(sdk, "models", "import", adapter)
    assert list(sdk.files.list()) == []
    (adapter / WEIGHTS_NAME).rename(adapter / "adapter_model.bin")
    assert "safe_serialization=True" in refusal(sdk, "models", "import", adapter)
    assert "holds no adapter_config.json" in refusal(sdk, "models", "import", tmp_path / "base")
    assert "not an uncompressed tar archive" in refusal(sdk, "models", "import", tmp_path / "base" / "config.json")
    assert "no such folder or archive" in refusal(sdk, "models", "import", tmp_path / "nothing")
    assert "cannot be read" in refusal(sdk, "models", "import", "x" * 1000)


def test_full_disk_is_told(sdk: openai.OpenAI, adapter: Path, tmp_path: Path) -> None:
    about = About(name="ft:tiny:acme::abcdefgh", base=BASE, rank=4, sha256=adapter_digest(adapter))
    write_archive(adapter, about, tmp_path / "adapter.tar")
    limit = f"ulimit -f 0; exec {sys.executable} -m services.cli models import {tmp_path / 'adapter.tar'}"
    done = subprocess.run(
        ["/bin/sh", "-c", limit], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "OPENAI_BASE_URL": str(sdk.base_url), "OPENAI_API_KEY": sdk.api_key},
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "there is no space to unpack it" in done.stderr


class HubStandIn(BaseHTTPRequestHandler):
    """The calls of a model hub that fetching files of a repository takes, as huggingface_hub makes them."""

    files: dict[str, bytes]
    asked: list[str]
    commit = "c" * 40

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/owner/adapter"):
            self._send(200, json.dumps(self._described()).encode(), with_body=with_body)
        elif path.startswith("/owner/adapter/resolve/") and name in self.files:
            self.asked.append(name)
            self._send(200, self.files[name], with_body=with_body)
        else:
            self._send(404, b"{}", with_body=with_body)

    def _described(self) -> object:
        if "/tree/" in self.path:
            return [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in self.files.items()]
        return {
            "id": "owner/adapter", "sha": self.commit, "private": False, "downloads": 0, "likes": 0, "tags": [],
            "siblings": [{"rfilename": name} for name in self.files],
        }  # fmt: skip

    def _send(self, status: int, content: bytes, *, with_body: bool) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("x-repo-commit", self.commit)
        if status == 404:
            self.send_header("x-error-code", "RepoNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Run a hub with one repository, owner/adapter; yields its URL and the names of the files that were asked for."""
    asked: list[str] = []
    handler = type("Handler", (HubStandIn,), {"files": files, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_hub_is_asked_for_the_two_files_alone(sdk: openai.OpenAI, adapter: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with hub(files | {"adapter_model.bin": b"\x80\x04", "README.md": b"x"}) as (url, asked):
        cache = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        assert run(sdk, "models", "import", "owner/adapter", **cache).startswith(f"ft:{BASE}:acme::")
        assert set(asked) == {CONFIG_NAME, WEIGHTS_NAME}
        assert "the hub does not have it" in refusal(sdk, "models", "import", "owner/unknown", **cache)
    away = {**cache, "HF_HOME": str(tmp_path / "empty")}
    assert "cannot be fetched from the hub" in refusal(sdk, "models", "import", "owner/adapter", **away)
