"""Let schemathesis try to break the API by what openapi.yaml says: `python -m tests.contract.fuzz SECONDS`.

A real API process with a base model, a fine-tuned model, files, a job and the stand-in for an inference server; every
answer has to be documented, of the documented shape, and never a 500.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ROOT, ApiServer, know_key, make_adapter, make_base, make_replica, with_store
from tests.conftest import start_valkey
from tests.fakes.upstream import Send, Upstream

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,ignored_auth"
)
NOT_ASKED = ("readiness", "countResponseInputTokens")
"""/readyz answers 503 on purpose while there is no trainer, and the stand-in counts no tokens."""
WRONG = {"error": {"message": "messages: a list of objects is expected", "type": "BadRequestError", "code": 400}}


class StandIn(Upstream):
    """Refuses, as the real server does, conversations that are none: what is stored of others could not be shown."""

    async def _answer(self, request: dict[str, Any], send: Send) -> None:
        messages = request.get("messages", None if request.get("store") else [])
        if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
            await super()._answer(request, send)
            return
        await self._start(send, 400, "application/json")
        await send({"type": "http.response.body", "body": json.dumps(WRONG).encode()})


def fuzz(url: str, key: str, *, seconds: int, seed: int | None = None) -> tuple[int, str]:
    """Run schemathesis for about `seconds` and return its exit status and report."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--url", url,
        "--header", f"Authorization: Bearer {key}", "--checks", CHECKS, "--max-time", str(seconds),
        "--continue-on-failure", "--request-timeout", "20", "--suppress-health-check", "all", "--warnings", "off",
        "--generation-database", "none", "--no-color", *(("--seed", str(seed)) if seed is not None else ()),
        *(part for name in NOT_ASKED for part in ("--exclude-operation-id", name)),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + 300)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def scene() -> Iterator[ApiServer]:
    """An API with something of everything in it."""
    with tempfile.TemporaryDirectory(prefix="st-fuzz-") as folder, StandIn(pause_s=0.0) as upstream:
        (Path(folder) / "valkey").mkdir()
        valkey = start_valkey(Path(folder) / "valkey")
        api = ApiServer(Path(folder) / "data", f"unix://{folder}/valkey/valkey.sock", max_body_bytes=1 << 20)
        try:
            know_key(api.settings.redis_url, api.key)
            furnish(api, upstream.url)
            yield api
        finally:
            api.stop()
            valkey.terminate()
            valkey.wait(timeout=30)


def furnish(api: ApiServer, upstream_url: str) -> None:
    redis_url = api.settings.redis_url
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(f"ft:{BASE}:acme::fuzz0000")))
    with_store(redis_url, lambda client: Presence(client).beat_replica(make_replica(upstream_url), ttl_s=86_400))
    with api.client() as client:
        client.post("/v1/aliases", json={"name": "fuzzed", "model": BASE}).raise_for_status()
        client.post("/v1/aliases/fuzzed", json={"monitor": {"sample_rate": 0.5}}).raise_for_status()
        client.post("/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "fine-tune"}).raise_for_status()


def main() -> int:
    with scene() as api:
        status, report = fuzz(api.url, api.key, seconds=int(sys.argv[1]))
        log = api.log.read_text()
    print(report)
    failed = [line for line in log.splitlines() if "request.failed" in line or "request.cut" in line]
    print(f"{len(failed)} requests failed on the server's own account", *failed[:5], sep="\n")
    return status or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
