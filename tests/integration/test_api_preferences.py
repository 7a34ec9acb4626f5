"""Preferences: collected one by one, or voted in A/B runs, and made into training files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from shared.store import entries
from shared.store.client import Client
from shared.store.files import FileStore
from shared.training_data import Method, validate
from tests.ab_scene import JUDGE, Scene, honest, says
from tests.api_server import ApiServer, with_store
from tests.batch_requests import serve
from tests.eval_scene import Speaker, adds, asking, content, ended, rows
from tests.integration.test_api_limits import new_key, new_project

URL = "/v1/preferences"


def asks(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def pair(question: str, better: str, worse: str, **more: Any) -> dict[str, Any]:
    return {"input": asks(question), "preferred_output": said(better), "non_preferred_output": said(worse), **more}


def labelled(question: str, answer: str, label: bool, **more: Any) -> dict[str, Any]:
    return {"input": asks(question), "output": said(answer), "label": label, **more}


@pytest.fixture
def http(api: ApiServer) -> Iterator[httpx2.Client]:
    with api.client() as client:
        yield client


def keep(http: httpx2.Client, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = http.post(URL, json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def export(http: httpx2.Client, method: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the answer to an export, less its file, and the lines of that."""
    answer = http.post(f"{URL}/export", json={"method": method, **options})
    assert answer.status_code == 201, answer.text
    told = dict(answer.json())
    file = told.pop("file")
    assert (file["purpose"], told.pop("object"), told.pop("method")) == ("fine-tune", "preference.export", method)
    text = http.get(f"/v1/files/{file['id']}/content").text
    assert http.get(f"/v1/files/{file['id']}").json() == file
    return {**told, "lineage": file["lineage"]}, [json.loads(line) for line in text.splitlines()]


def trained_on(tmp_path: Path, lines: list[dict[str, Any]], method: Method) -> int:
    """Return how many examples training finds in them."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return validate(path, role="validation", method=method).examples


def test_preferences_are_kept_found_and_deleted(http: httpx2.Client) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    first = pair("q", "a", "b", source="x/y:z", voter="ann", metadata={"team": "1"})
    first["input"]["tools"] = tools
    made = [keep(http, first), keep(http, labelled("q", "a", False, voter="bob")), keep(http, pair("r", "a", "b"))]
    shown = {name: made[0][name] for name in first}
    assert (shown, made[0]["object"], made[0]["label"], made[0]["output"]) == (first, "preference", None, None)
    assert (made[1]["label"], made[1]["preferred_output"], made[1]["source"]) == (False, None, None)
    ids = [one["id"] for one in made]
    assert http.get(f"{URL}/{ids[0]}").json() == made[0]
    listings: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ids),
        ({"order": "desc", "limit": 2}, ids[:0:-1]),
        ({"after": ids[0]}, ids[1:]),
        ({"source": "x/y:z"}, ids[:1]),
        ({"voter": "bob"}, ids[1:2]),
        ({"metadata[team]": "1"}, ids[:1]),
        ({"metadata[team]": "1", "voter": "bob"}, []),
    ]
    for query, expected in listings:
        page = http.get(URL, params=query).json()
        assert [one["id"] for one in page["data"]] == expected, query
    again = [keep(http, pair("s", "a", "b"), **{"idempotency-key": "k"}) for _ in range(2)]
    assert again[0] == again[1]
    assert http.delete(f"{URL}/{ids[0]}").json() == {
        "id": ids[0], "object": "preference.deleted", "deleted": True,
    }  # fmt: skip
    assert http.delete(f"{URL}/{ids[0]}").status_code == http.get(f"{URL}/{ids[0]}").status_code == 404
    assert [one["id"] for one in http.get(URL, params={"after": ids[0]}).json()["data"]] == [*ids[1:], again[0]["id"]]
    assert http.get(f"{URL}/..%2Fx:y").status_code == 404


def test_wrong_preferences_are_refused_by_the_name_of_the_field(http: httpx2.Client) -> None:
    user = [{"role": "user", "content": "x"}]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input": asks("q")}, "preferred_output"),
        ({"input": {"messages": []}, "output": said("a"), "label": True}, "input.messages"),
        ({"input": asks("q"), "output": said("a")}, "label"),
        ({"input": asks("q"), "label": True}, "output"),
        ({"input": asks("q"), "preferred_output": said("a")}, "non_preferred_output"),
        (pair("q", "a", "a"), "non_preferred_output"),
        (pair("q", "a", "b", label=True), "label"),
        (pair("q", "a", "b") | {"preferred_output": user}, "preferred_output[0].role"),
        (labelled("q", "a", True) | {"output": [{"role": "assistant"}]}, "output[0]"),
        (labelled("q", "a", True) | {"output": [{"role": "robot"}]}, "output[0].role"),
        ({"input": {"messages": [{"role": "user"}]}, "output": said("a"), "label": True}, "input.messages[0]"),
        (pair("q", "a", "b", voter=""), "voter"),
        (pair("q", "a", "b", voter="v" * 129), "voter"),
        (pair("q", "a", "b", source="s" * 257), "source"),
        (pair("q", "a", "b", metadata={"k": 1}), "metadata"),
        (pair("q", "a", "b", surprise=1), "surprise"),
    ]
    for body, param in cases:
        answer = http.post(URL, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert http.post(URL, json=pair("q" * (1 << 20), "a", "b")).status_code == 413
    refused: list[tuple[dict[str, Any], str | None]] = [
        ({"method": "orpo"}, "method"),
        ({"method": "dpo", "said_by": "judge"}, "said_by"),
        ({"method": "dpo", "ab_run_id": "x", "source": "s"}, "source"),
        ({"method": "dpo", "ab_run_id": "x", "said_by": "judge", "voter": "v"}, "voter"),
        ({"method": "dpo", "contradictions": "keep"}, "contradictions"),
        ({"method": "dpo"}, None),
    ]
    for body, named in refused:
        answer = http.post(f"{URL}/export", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named), answer.text
    assert answer.json()["error"]["code"] == "nothing_to_export"
    unknown = http.post(f"{URL}/export", json={"method": "dpo", "ab_run_id": "../x:y"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "ab_run_id")


def test_a_file_for_dpo_has_each_pair_once_and_what_most_say(http: httpx2.Client, tmp_path: Path) -> None:
    for voter, better, worse in (("1", "a", "b"), ("2", "a", "b"), ("3", "b", "a"), ("4", "b", "a"), ("4", "a", "b")):
        keep(http, pair("contested", better, worse, voter=voter))
    for better, worse in ("ab", "ba"):
        keep(http, pair("even", better, worse))
    keep(http, pair("clear", "a", "b", source="s", metadata={"k": "v"}))
    keep(http, labelled("clear", "a", True))
    told, lines = export(http, "dpo")
    assert lines == [pair("contested", "a", "b"), pair("clear", "a", "b")]
    assert trained_on(tmp_path, lines, "dpo") == 2
    assert told == {
        "preferences": 9, "lines": 2, "duplicates": 3, "contradictions": 2, "dropped": 1, "without_preference": 0,
        "unusable": 1,
        "lineage": {
            "type": "preferences", "method": "dpo", "said_by": "people", "contradictions": "majority",
            "preferences": 9, "duplicates": 3, "contradicted": 2,
        },
    }  # fmt: skip
    told, lines = export(http, "dpo", contradictions="drop", filename="../f.jsonl")
    assert (lines, told["dropped"]) == ([pair("clear", "a", "b")], 2)
    told, lines = export(http, "dpo", source="s", metadata={"k": "v"}, created_after=1, created_before=2**40)
    assert (told["preferences"], told["lineage"]["metadata"], len(lines)) == (1, {"k": "v"}, 1)
    assert http.post(f"{URL}/export", json={"method": "dpo", "created_before": 1}).status_code == 400


def test_a_file_for_kto_has_a_label_for_each_answer(http: httpx2.Client, tmp_path: Path) -> None:
    keep(http, pair("q", "a", "b", voter="v"))
    keep(http, pair("q", "c", "a", voter="v"))
    keep(http, labelled("r", "a", True))
    keep(http, labelled("r", "a", True))
    told, lines = export(http, "kto")
    assert [(one["messages"][0]["content"], one["messages"][-1]["content"], one["label"]) for one in lines] == [
        ("q", "b", False), ("q", "c", True), ("r", "a", True),
    ]  # fmt: skip
    assert (told["contradictions"], told["dropped"], told["duplicates"]) == (1, 1, 1), "a is better, and worse"
    assert trained_on(tmp_path, lines, "kto") == 3


def test_what_was_said_in_an_ab_run_becomes_a_training_file(
    http: httpx2.Client, api: ApiServer, redis_url: str, tmp_path: Path
) -> None:
    with Speaker(says=adds) as upstream:
        serve(redis_url, upstream)
        scene = Scene(openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0), http)
        runs = []
        for answer in (adds, lambda _: "no"):
            upstream.says = answer
            run = scene.sdk.evals.runs.create(scene.eval_id, data_source=asking(content(rows(3))))
            assert ended(scene.sdk, run).status == "completed"
            runs.append(run.id)
        upstream.says = says(honest)
        made = scene.end(scene.create(*runs, judge=JUDGE))
    choices = {0: "better", 1: "neither", 2: "tie"}
    for _ in range(3):
        shown = scene.get("/next", made, voter="v")["pair"]
        choice = choices[int(shown["item"]["answer"]) // 2]
        place = "second" if shown["first"][0]["content"] == "no" else "first"
        assert scene.vote(made, shown["pair"], place if choice == "better" else choice).status_code == 201
    voted = [pair(f"What is {n} and {n}?", str(2 * n), "no") for n in range(3)]
    told, lines = export(http, "dpo", ab_run_id=made["id"])
    assert (lines, told["without_preference"], told["lineage"]["ab_run_id"]) == (voted[:1], 2, made["id"])
    told, lines = export(http, "dpo", ab_run_id=made["id"], said_by="judge")
    assert lines == voted and trained_on(tmp_path, lines, "dpo") == 3
    told, lines = export(http, "kto", ab_run_id=made["id"], voter="v")
    assert [(one["messages"][-1]["content"], one["label"]) for one in lines] == [
        ("0", True), ("no", False), ("2", False), ("no", False),
    ]  # fmt: skip
    assert http.post(f"{URL}/export", json={"method": "dpo", "ab_run_id": made["id"], "voter": "w"}).status_code == 400
    for run_id in runs:  # the A/B run has its answers
        scene.sdk.evals.runs.delete(run_id, eval_id=scene.eval_id)
    assert export(http, "dpo", ab_run_id=made["id"])[1] == voted[:1]


def test_preferences_take_their_projects_room_and_are_in_backups(api: ApiServer, redis_url: str) -> None:
    project = new_project(api, storage_bytes=1000)

    def used() -> int:
        return with_store(redis_url, lambda client: FileStore(client).used_bytes(project))

    async def lose_and_restore(client: Client) -> None:
        (entry,) = [one async for one in entries.read(client, "preference", [f"selftune:preference:{made['id']}"])]
        await client.call("DEL", f"selftune:preference:{made['id']}", f"selftune:preferences:{project}")
        assert await entries.put_back(client, entry)

    with api.client(new_key(api, project)) as http:
        made = keep(http, pair("q", "a", "b" * 500))
        assert 500 < used() < 1000
        refused = http.post(URL, json=pair("q", "a", "b" * 500))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "storage_limit_exceeded")
        with_store(redis_url, lose_and_restore)
        assert http.get(URL).json()["data"] == [made]
        refused = http.post(f"{URL}/export", json={"method": "dpo"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "storage_limit_exceeded")
        assert not any(one["purpose"] == "fine-tune" for one in http.get("/v1/files").json()["data"])
        http.delete(f"{URL}/{made['id']}").raise_for_status()
        assert used() == 0
