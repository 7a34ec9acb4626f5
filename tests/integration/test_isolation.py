"""A second project's key at every endpoint, with the first one's ids wherever an id goes.

The walk is made of the OpenAPI document: a route, a path or query parameter or a body that this file does not know
fails it. What is compared is the answer for an id of the first project and that for one that nobody has: all but the id
must be the same. Everything of the first project holds a mark, which no answer may hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.api.openapi import document
from shared.schemas.checkpoints import Checkpoint, CheckpointMetrics
from shared.store.client import Client
from shared.store.jobs import JobStore, event
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_adapter, make_base, make_replica, wait_until, with_store
from tests.fakes.upstream import Upstream

MARK = "zebrafish"
TUNED = f"ft:{BASE}:acme:{MARK}:AbCdEfGh"
PROJECTS = "/v1/organization/projects"
USER = {"role": "user", "content": f"{MARK} asks"}
CHANGING = {"date", "x-request-id", "openai-processing-ms", "content-length", "x-ratelimit-reset-requests"}

Ids = Mapping[str, str]
Bodies = Callable[[Ids], list[dict[str, Any]]]


@dataclass
class World:
    """Two projects on one server; `ids` by the names that path parameters have."""

    api: ApiServer
    owner: httpx2.Client
    other: httpx2.Client
    other_usual: httpx2.Client
    """A key of the second project that does not rule the organization."""
    ids: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    """The second project's."""

    @property
    def unknown(self) -> dict[str, str]:
        """Return ids of the same form that nobody has."""
        return {name: _unlike(value) for name, value in self.ids.items()}


def _unlike(value: str) -> str:
    if value.isdigit():
        return str(int(value) + 10_000)
    if value.startswith("ftevent-"):
        return "ftevent-1-1"
    head, mark, tail = value.partition(MARK)
    if mark:
        return f"{head}{'y' * len(MARK)}{tail}"
    cut = re.match(r"[a-z_]*[-_]?", value)
    assert cut is not None
    return value[: cut.end()] + "Q" * (len(value) - cut.end())


@pytest.fixture
def redis_url(redis_url: str) -> str:
    """A database of these tests' own: the API that other tests share would take up its batches."""
    return f"{redis_url}?db=1"


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> Iterator[World]:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    api = ApiServer(tmp_path / "data", redis_url, organization="acme", webhook_allow_private=True)
    with Upstream(pause_s=0.0) as upstream, api.client() as admin:
        with_store(redis_url, lambda client: Registry(client).put_base(make_base(path=str(base))))
        with_store(redis_url, lambda client: Presence(client).beat_replica(make_replica(upstream.url), ttl_s=600))
        projects = [_project(admin, name) for name in (f"{MARK} project", "second project")]
        every = {"scopes": ["read", "train", "infer", "admin"]}
        usual = {"scopes": ["read", "train", "infer"]}
        values = [
            _key(admin, project, f"{MARK} key" if not place else "k", every) for place, project in enumerate(projects)
        ]
        with (
            api.client(values[0]["value"]) as owner,
            api.client(values[1]["value"]) as other,
            api.client(_key(admin, projects[1], "u", usual)["value"]) as other_usual,
        ):
            world = World(api, owner, other, other_usual)
            world.ids |= {
                "project_id": projects[0], "key_id": values[0]["id"], "rate_limit_id": f"rl_{projects[0]}",
                "service_account_id": values[0]["owner"]["service_account"]["id"],
            }  # fmt: skip
            _plant(world, owner, world.ids, upstream, redis_url, project=projects[0], mark=MARK)
            _plant(world, other, world.own, upstream, redis_url, project=projects[1], mark="plain")
            upstream.answer = b""
            yield world
    api.stop()
    log = api.log.read_text()
    assert "request.failed" not in log and "request.cut" not in log, log[-3000:]


def _project(admin: httpx2.Client, name: str) -> str:
    return str(_answered(admin.post(PROJECTS, json={"name": name}))["id"])


def _key(admin: httpx2.Client, project: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    return _answered(admin.post(f"{PROJECTS}/{project}/api_keys", json={"name": name, "selftune": options}))


def _answered(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()
    return found


def _plant(
    world: World,
    http: httpx2.Client,
    ids: dict[str, str],
    upstream: Upstream,
    redis_url: str,
    *,
    project: str,
    mark: str,
) -> None:
    """Give a project something of everything, each with a mark."""
    model = TUNED.replace(MARK, mark)
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(model, project=project)))

    def upload(purpose: str, content: bytes) -> str:
        files = {"file": (f"{mark}.jsonl", content)}
        return str(_answered(http.post("/v1/files", files=files, data={"purpose": purpose}))["id"])

    row = json.dumps({"messages": [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]}).encode()
    line = {
        "custom_id": mark,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": [USER]},
    }
    ids |= {
        "model": model,
        "file_id": upload("fine-tune", row * 1 + b"\n"),
        "user_file_id": upload("user_data", mark.encode()),
        "batch_file_id": upload("batch", json.dumps(line).encode() + b"\n"),
    }
    new_upload = {"filename": f"{mark}.jsonl", "purpose": "fine-tune", "bytes": 5, "mime_type": "text/jsonl"}
    ids["upload_id"] = _answered(http.post("/v1/uploads", json=new_upload))["id"]
    part = http.post(f"/v1/uploads/{ids['upload_id']}/parts", files={"data": (mark, b"hello")})
    ids["part_id"] = _answered(part)["id"]
    job = {"model": BASE, "training_file": ids["file_id"], "suffix": mark, "metadata": {"team": mark}}
    ids["job_id"] = _answered(http.post("/v1/fine_tuning/jobs", json=job))["id"]
    ids["rollout_id"] = "rollout_train_1_1_0"
    ids["event_id"], ids["checkpoint_id"] = with_store(redis_url, lambda client: _tell(client, ids["job_id"], mark))
    settings = {"system_prompt": f"{mark} rules"}
    _answered(http.post(f"/v1/models/{model}/settings", json=settings))
    grant = http.post(f"/v1/fine_tuning/checkpoints/{model}/permissions", json={"project_ids": ["proj_default"]})
    ids["permission_id"] = _answered(grant)["data"][0]["id"]
    ids["alias"] = _answered(
        http.post(
            "/v1/aliases",
            json={"name": f"{mark}-alias", "model": model, "description": f"{mark} text", "wait_warm": False},
        )
    )["id"]
    ids["revision"] = "1"
    chat = {"model": model, "messages": [USER | {"content": mark}], "store": True, "metadata": {"team": mark}}
    upstream.answer = _completion(model, mark)
    ids["completion_id"] = _answered(http.post("/v1/chat/completions", json=chat))["id"]
    upstream.answer = _response(model, mark)
    asked = {"model": model, "input": mark, "metadata": {"team": mark}}
    ids["response_id"] = _answered(http.post("/v1/responses", json=asked))["id"]
    items = _answered(http.get(f"/v1/responses/{ids['response_id']}/input_items"))["data"]
    ids["item_id"] = items[0]["id"]
    messages = _answered(http.get(f"/v1/chat/completions/{ids['completion_id']}/messages"))["data"]
    ids["message_id"] = messages[0]["id"]
    upstream.answer = b""
    batch = {"input_file_id": ids["batch_file_id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    ids["batch_id"] = _answered(http.post("/v1/batches", json=batch | {"metadata": {"team": mark}}))["id"]
    path = f"/v1/batches/{ids['batch_id']}"  # what it writes is to be there before anybody looks
    wait_until(lambda: _answered(http.get(path))["status"] in ("completed", "failed"), timeout_s=30)
    check = {"type": "string_check", "name": mark, "input": "{{ item.q }}", "reference": mark, "operation": "eq"}
    logs = {"type": "logs", "metadata": {"team": mark}}
    wanted = {"name": f"{mark} eval", "data_source_config": logs, "testing_criteria": [check]}
    ids["eval_id"] = _answered(http.post("/v1/evals", json=wanted))["id"]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"q": mark}}]}}
    runs = f"/v1/evals/{ids['eval_id']}/runs"
    ids["run_id"] = _answered(http.post(runs, json={"name": mark, "data_source": source}))["id"]
    run = f"{runs}/{ids['run_id']}"
    wait_until(lambda: _answered(http.get(run))["status"] == "completed", timeout_s=30)
    ids["output_item_id"] = _answered(http.get(f"{run}/output_items"))["data"][0]["id"]
    hook = {"name": f"{mark} hook", "url": f"http://127.0.0.1:9/{mark}", "event_types": ["batch.completed"]}
    ids["webhook_endpoint_id"] = _answered(http.post("/v1/webhook_endpoints", json=hook))["id"]


async def _tell(client: Client, job_id: str, mark: str) -> tuple[str, str]:
    store = JobStore(client)
    await store.append_events(job_id, [event(f"{mark} has begun", data={"note": mark})])
    checkpoint = Checkpoint(
        id=f"ftckpt_{mark}{job_id[-15:]}", created_at=1, fine_tuning_job_id=job_id, step_number=1,
        fine_tuned_model_checkpoint=f"ft:{BASE}:acme:{mark}:AAAAAAAA:ckpt-step-1", metrics=CheckpointMetrics(step=1),
    )  # fmt: skip
    await store.append_checkpoint(checkpoint)
    (newest, *_), _ = await store.events(job_id, limit=1)
    return newest.id, checkpoint.id


def _completion(model: str, text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    whole = {
        "id": f"chatcmpl-{text}", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
        "usage": usage,
    }  # fmt: skip
    return json.dumps(whole).encode()


def _response(model: str, text: str) -> bytes:
    message = {
        "id": "msg_x", "type": "message", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }  # fmt: skip
    whole = {
        "id": "resp_upstream", "object": "response", "created_at": 1, "model": model, "status": "completed",
        "output": [message], "usage": None, "metadata": {"team": text},
    }  # fmt: skip
    return json.dumps(whole).encode()


def _model_bodies(*names: str, **more: Any) -> Bodies:
    return lambda ids: [{"model": ids[name], **more} for name in names]


_HI = [{"role": "user", "content": "hi"}]
CHECK = {"type": "string_check", "name": "c", "input": "a", "reference": "b", "operation": "eq"}
_NOTHING: Bodies = lambda _: [{}]  # noqa: E731
BODIES: dict[str, Bodies] = {
    "/v1/files": _NOTHING,
    "/v1/uploads": _NOTHING,
    "/v1/uploads/{upload_id}/parts": _NOTHING,
    "/v1/uploads/{upload_id}/complete": lambda ids: [{"part_ids": [ids["part_id"]]}],
    "/v1/fine_tuning/jobs": lambda ids: [
        {"model": BASE, "training_file": ids["file_id"]},
        {"model": BASE, "training_file": ids["own_file_id"], "validation_file": ids["file_id"]},
        {"model": ids["model"], "training_file": ids["own_file_id"]},
        {"model": ids["alias"], "training_file": ids["own_file_id"]},
    ],
    "/v1/fine_tuning/jobs/{job_id}/rollouts/regrade": lambda _: [{"grader": CHECK}],
    "/v1/fine_tuning/checkpoints/{model}/permissions": lambda ids: [{"project_ids": ["proj_default"]}],
    "/v1/models": lambda ids: [
        {"base": BASE, "files": _adapter_files(ids["user_file_id"], ids["own_user_file_id"])},
        {"base": BASE, "files": _adapter_files(ids["own_user_file_id"], ids["user_file_id"])},
        {"base": ids["model"], "files": _adapter_files(ids["own_user_file_id"], ids["own_user_file_id"])},
    ],
    "/v1/models/{model}/settings": lambda ids: [{"temperature": 0.5}, {"allowed_keys": [ids["key_id"]]}],
    "/v1/models/{model}/residency": lambda ids: [{"state": "warm"}],
    "/v1/aliases": lambda ids: [
        {"name": "mine", "model": ids[name], "wait_warm": False} for name in ("model", "alias")
    ],
    "/v1/aliases/{alias}": lambda ids: [
        {"description": "x"},
        {"model": ids["model"], "wait_warm": False},
        {"canary": {"model": ids["model"], "percent": 5}},
        {"shadow": {"model": ids["model"], "percent": 5}},
    ],
    "/v1/aliases/{alias}/promote": _NOTHING,
    "/v1/aliases/{alias}/rollback": lambda ids: [{}, {"revision": 1}],
    "/v1/chat/completions": _model_bodies("model", "alias", messages=_HI),
    "/v1/completions": _model_bodies("model", "alias", prompt="hi"),
    "/v1/embeddings": _model_bodies("model", "alias", input="hi"),
    "/v1/responses": lambda ids: [
        *_model_bodies("model", "alias", input="hi")(ids),
        {"model": BASE, "input": "hi", "previous_response_id": ids["response_id"]},
    ],
    "/v1/responses/input_tokens": lambda ids: [
        *_model_bodies("model", "alias", input="hi")(ids),
        {"model": BASE, "input": "hi", "previous_response_id": ids["response_id"]},
    ],
    "/v1/messages": _model_bodies("model", "alias", messages=_HI, max_tokens=5),
    "/v1/messages/count_tokens": _model_bodies("model", "alias", messages=_HI),
    "/v1/chat/completions/{completion_id}": lambda ids: [{"metadata": {"a": "b"}}],
    "/v1/batches": lambda ids: [
        {"input_file_id": ids["batch_file_id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    ],
    "/v1/fine_tuning/alpha/graders/run": _NOTHING,
    "/v1/fine_tuning/alpha/graders/validate": _NOTHING,
    "/v1/evals": _NOTHING,
    "/v1/evals/{eval_id}": lambda ids: [{"name": "x"}],
    "/v1/evals/{eval_id}/runs": lambda ids: [{"data_source": _eval_source(ids["file_id"], BASE)}],
    "/v1/webhook_endpoints": _NOTHING,
    "/v1/webhook_endpoints/{webhook_endpoint_id}": lambda ids: [{"name": "x"}],
    "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": _NOTHING,
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": lambda ids: [{"event_type": "batch.completed"}],
}
"""What is sent to a path that takes a body, with the ids of somebody else in it; `own_…` are the caller's."""

PLACES = {
    "/v1/files": "file_id", "/v1/fine_tuning/jobs": "job_id", "/v1/aliases": "alias", "/v1/batches": "batch_id",
    "/v1/chat/completions": "completion_id", "/v1/webhook_endpoints": "webhook_endpoint_id",
    "/v1/fine_tuning/jobs/{job_id}/rollouts": "rollout_id",
    "/v1/fine_tuning/jobs/{job_id}/events": "event_id", "/v1/fine_tuning/jobs/{job_id}/checkpoints": "checkpoint_id",
    "/v1/fine_tuning/checkpoints/{model}/permissions": "permission_id", "/v1/aliases/{alias}/history": "revision",
    "/v1/aliases/{alias}/shadow_pairs": "event_id", "/v1/responses/{response_id}/input_items": "item_id",
    "/v1/chat/completions/{completion_id}/messages": "message_id",
    "/v1/evals": "eval_id", "/v1/evals/{eval_id}/runs": "run_id",
    "/v1/evals/{eval_id}/runs/{run_id}/output_items": "output_item_id",
}  # fmt: skip
"""What `after` holds in a list."""
HARMLESS = {
    "limit",
    "order",
    "order_by",
    "status",
    "purpose",
    "stream",
    "file",
    "row",
    "step",
    "validation",
    "line",
    "window_s",
    "include_archived",
    "owner_project_access",
}
"""Query parameters that name nothing of anybody's."""
IN_PATH = {
    "file_id", "upload_id", "job_id", "model", "permission_id", "alias", "completion_id", "response_id", "batch_id",
    "webhook_endpoint_id", "eval_id", "run_id", "output_item_id",
}  # fmt: skip


def _eval_source(file_id: str, model: str) -> dict[str, Any]:
    messages = {"type": "item_reference", "item_reference": "item.input"}
    source = {"type": "file_id", "id": file_id}
    return {"type": "completions", "source": source, "model": model, "input_messages": messages}


def _adapter_files(config: str, weights: str) -> dict[str, str]:
    return {"adapter_config.json": config, "adapter_model.safetensors": weights}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _queries(path: str, operation: dict[str, Any]) -> list[Callable[[Ids], dict[str, str]]]:
    """Return the queries that name something: of each parameter alone."""
    found: list[Callable[[Ids], dict[str, str]]] = []
    for parameter in operation.get("parameters", []):
        name = parameter["name"]
        if parameter["in"] != "query" or name in HARMLESS:
            continue
        if name == "after":
            found.append(lambda ids, place=PLACES[path]: {"after": ids[place]})  # type: ignore[misc]
        elif name == "against":
            found.append(lambda ids: {"against": ids["run_id"]})
        elif name in ("model", "project_id"):
            found.append(lambda ids, name=name: {name: ids[name]})  # type: ignore[misc]
        elif name == "metadata":
            found.append(lambda ids: {"metadata[team]": ids["mark"]})
        else:
            raise AssertionError(f"{path}: say here what the query parameter '{name}' may name")
    return found


def _told(answer: httpx2.Response, ids: Ids) -> tuple[int, str, dict[str, str]]:
    """Return an answer without the ids that were asked for."""
    headers = {name: value for name, value in answer.headers.items() if name not in CHANGING}
    text = answer.text
    for value in sorted({value for value in ids.values() if len(value) > 3}, key=len, reverse=True):
        text = text.replace(value, "ID")
    return answer.status_code, text, headers


class Walk:
    """Sends every request twice, and collects what differs or holds the mark."""

    def __init__(self, world: World) -> None:
        self._world = world
        own = {f"own_{name}": value for name, value in world.own.items()}
        self._foreign = {**world.ids, **own, "mark": MARK}
        self._unknown = {**world.unknown, **own, "mark": "y" * len(MARK)}
        self.faults: list[str] = []
        self.compared = 0

    def compare(
        self,
        http: httpx2.Client,
        method: str,
        path: Callable[[Ids], str],
        query: Callable[[Ids], dict[str, str]] = lambda _: {},
        body: Callable[[Ids], dict[str, Any] | None] = lambda _: None,
    ) -> None:
        answers = []
        for ids in (self._foreign, self._unknown):
            answer = http.request(method, path(ids), params=query(ids), json=body(ids))
            asked = {name: value for name, value in ids.items() if not name.startswith("own_")}
            answers.append(_told(answer, asked))
        what = f"{method} {path(self._foreign)} {query(self._foreign)} {body(self._foreign)}"
        self.compared += 1
        if answers[0] != answers[1]:
            self.faults.append(f"{what}:\n  foreign {answers[0]}\n  unknown {answers[1]}")
        if MARK in answers[0][1].lower() or MARK in str(answers[0][2]).lower():
            self.faults.append(f"{what}: holds the mark: {answers[0]}")
        refers = what.count(MARK) or any(value in what for value in self._world.ids.values() if len(value) > 3)
        if refers and method != "GET" and answers[0][0] < 400:
            self.faults.append(f"{what}: was done: {answers[0]}")


def test_every_endpoint_treats_anothers_things_as_unknown(world: World) -> None:
    walk = Walk(world)
    before = _seen(world.owner, world.ids)
    for method, template, operation in operations():
        for_admins = template.startswith("/v1/organization")
        names = set(re.findall(r"\{(\w+)\}", template))
        if template == "/docs/{part}":
            continue  # parts of the page, the same for everybody
        assert for_admins or names <= IN_PATH, f"{template}: add what the parameters {names - IN_PATH} may name"
        http = world.other_usual if for_admins else world.other
        has_body = "requestBody" in operation or method == "POST"
        bodies: list[dict[str, Any] | None] = [None]
        if "requestBody" in operation and not for_admins:
            assert template in BODIES, f"{method} {template}: say what a body with somebody else's ids is"
        count = len(BODIES[template](walk._foreign)) if has_body and template in BODIES else 0
        bodies = list(range(count)) or [None]  # type: ignore[assignment]
        queries = [] if for_admins else _queries(template, operation)
        for number, query in chain(((one, None) for one in bodies), ((None, one) for one in queries)):
            walk.compare(
                http, method, lambda ids, template=template: template.format(**ids),  # type: ignore[misc]
                query or (lambda _: {}),
                lambda ids, number=number, template=template: None if number is None else BODIES[template](ids)[number],  # type: ignore[misc]
            )  # fmt: skip
    assert not walk.faults, "\n".join(walk.faults)
    assert walk.compared > 120
    assert _seen(world.owner, world.ids) == before, "nothing of the first project has changed"


def test_anothers_places_and_parts_in_ones_own_things(world: World) -> None:
    """Own paths with foreign ids behind: pages of one's own lists, parts of one's own uploads, one's own aliases."""
    walk = Walk(world)
    for method, template, operation in operations():
        names = re.findall(r"\{(\w+)\}", template)
        if template.startswith("/v1/organization") or not names or template == "/docs/{part}":
            continue
        own = template.format(**{name: world.own[name] for name in names})
        if method == "GET":
            for query in _queries(template, operation):
                if query(walk._foreign) != {"after": "1"}:
                    walk.compare(world.other, method, lambda _, own=own: own, query)  # type: ignore[misc]
    alias, upload = world.own["alias"], world.own["upload_id"]
    for change in ("canary", "shadow"):
        walk.compare(
            world.other, "POST", lambda _: f"/v1/aliases/{alias}",
            body=lambda ids, change=change: {change: {"model": ids["model"], "percent": 5}},  # type: ignore[misc]
        )  # fmt: skip
    walk.compare(
        world.other,
        "POST",
        lambda _: f"/v1/aliases/{alias}",
        body=lambda ids: {"model": ids["model"], "wait_warm": False},
    )
    walk.compare(
        world.other, "POST", lambda _: f"/v1/uploads/{upload}/complete", body=lambda ids: {"part_ids": [ids["part_id"]]}
    )
    runs = f"/v1/evals/{world.own['eval_id']}/runs"
    for model, file in (("model", "own_file_id"), ("own_model", "file_id")):
        walk.compare(
            world.other, "POST", lambda _: runs,
            body=lambda ids, model=model, file=file: {"data_source": _eval_source(ids[file], ids[model])},  # type: ignore[misc]
        )  # fmt: skip
    own_model = world.own["model"]
    walk.compare(
        world.other, "DELETE",
        lambda ids: f"/v1/fine_tuning/checkpoints/{own_model}/permissions/{ids['permission_id']}",
    )  # fmt: skip
    walk.compare(
        world.other, "POST", lambda _: f"/v1/models/{own_model}/settings",
        body=lambda ids: {"allowed_keys": [ids["key_id"]]},
    )  # fmt: skip
    assert not walk.faults, "\n".join(walk.faults)


def test_lists_and_pages_for_everybody_hold_nothing_of_anothers(world: World) -> None:
    for method, template, _ in operations():
        if method != "GET" or "{" in template:
            continue
        for http in (world.other_usual, world.api.client("")):
            answer = http.get(template)
            held = f"{answer.headers} {answer.text}"
            assert MARK not in held, f"{template}: {held[:2000]}"
            for name, value in world.ids.items():
                assert len(value) < 8 or value not in held, f"{template} shows the {name} of another project"


def test_streams_of_anothers_jobs_and_a_batch_over_anothers_model(world: World) -> None:
    for ids in (world.ids, world.unknown):
        answer = world.other.get(f"/v1/fine_tuning/jobs/{ids['job_id']}/events", params={"stream": "true"})
        assert answer.status_code == 404
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": TUNED, "messages": _HI},
    }
    files = {"file": ("b.jsonl", json.dumps(line).encode() + b"\n")}
    file = _answered(world.other.post("/v1/files", files=files, data={"purpose": "batch"}))["id"]
    batch = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch_id = _answered(world.other.post("/v1/batches", json=batch))["id"]

    def ended() -> dict[str, Any] | None:
        found = _answered(world.other.get(f"/v1/batches/{batch_id}"))
        return found if found["status"] in ("completed", "failed") else None

    done = wait_until(ended, timeout_s=30)
    assert done["request_counts"] == {"total": 1, "completed": 0, "failed": 1}, done
    errors = world.other.get(f"/v1/files/{done['error_file_id']}/content").text
    assert "model_not_found" in errors and MARK not in errors.replace(TUNED, "")


def _seen(owner: httpx2.Client, ids: Ids) -> dict[str, Any]:
    """Return what the first project's owner sees of its things."""
    paths = [
        "/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/v1/aliases", "/v1/chat/completions",
        "/v1/webhook_endpoints", f"/v1/aliases/{ids['alias']}/history", f"/v1/responses/{ids['response_id']}",
        f"/v1/models/{ids['model']}/settings", f"/v1/fine_tuning/jobs/{ids['job_id']}/events",
    ]  # fmt: skip
    return {path: _answered(owner.get(path)) for path in paths}


def test_the_mark_is_where_it_should_be(world: World) -> None:
    """The owner sees it everywhere; else the tests above would prove nothing."""
    seen = _seen(world.owner, world.ids)
    assert [path for path, shown in seen.items() if MARK not in str(shown)] == []
