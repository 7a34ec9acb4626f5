"""A/B runs: two runs' answers side by side, judged blind in both orders by a model, and by people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from shared import keys
from shared.store import entries
from shared.store.client import Client
from shared.store.files import FileStore
from tests.ab_scene import JUDGE, RIGHT, WRONG, Scene, honest, says
from tests.api_server import BASE, ApiServer, with_store
from tests.batch_requests import serve
from tests.eval_scene import Speaker, asking, content, rows
from tests.integration.test_api_limits import PROJECTS, new_key, new_project


@pytest.fixture
def upstream() -> Iterator[Speaker]:
    with Speaker(says=says(honest)) as server:
        yield server


@pytest.fixture
def scene(api: ApiServer, redis_url: str, upstream: Speaker) -> Iterator[Scene]:
    serve(redis_url, upstream)
    with api.client() as http:
        yield Scene(openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0), http)


def test_a_judge_that_sees_what_is_right_says_who_is_better(scene: Scene, upstream: Speaker) -> None:
    right, wrong = scene.run(RIGHT), scene.run(WRONG)
    made = scene.create(right, wrong, judge=JUDGE, seed=7, name="n", metadata={"k": "v"})
    assert (made["status"], made["object"], made["seed"]) == ("queued", "eval.ab_run", 7)
    assert made["judge"] == JUDGE
    done = scene.end(made)
    assert (done["status"], done["name"], done["metadata"]) == ("completed", "n", {"k": "v"}), done
    nothing = {"b": 0, "tie": 0, "unjudged": 0, "errored": 0, "left_out": 0}
    assert done["result_counts"] == {"total": 8, "a": 8, **nothing}
    (usage,) = done["per_model_usage"]
    assert (usage["model_name"], usage["invocation_count"], usage["total_tokens"]) == (BASE, 16, 80)
    asked = [json.loads(one.body) for one in upstream.received]
    assert not any(right in str(one) or wrong in str(one) for one in asked), "the judge is not told whose they are"
    assert asked[0]["response_format"]["json_schema"]["schema"]["properties"]["result"] == {
        "type": "string", "enum": ["first", "second", "tie"],
    }  # fmt: skip
    report = scene.get("/report", made)
    assert report["judge"]["finding"] == {
        "verdict": "a_is_better", "rows": 8, "a": 8, "b": 0, "ties": 0, "win_rate": 1.0,
        "interval": [pytest.approx(0.025 ** (1 / 8)), 1.0], "p_value": pytest.approx(2 / 2**8),
    }  # fmt: skip
    assert report["judge"]["position"] == {
        "chose_first": 8, "chose_second": 8, "leaning_first": 0, "leaning_second": 0, "p_value": 1.0,
    }  # fmt: skip
    assert (report["people"], report["agreement"]) == (None, None)
    items = scene.get("/items", made, limit="8")["data"]
    assert [one["datasource_item_id"] for one in items] == [*range(8)]
    assert {one["judgements"][0]["first"] for one in items} == {"a", "b"}, "which order comes first is drawn"
    assert all({one["first"] for one in item["judgements"]} == {"a", "b"} for item in items)
    assert (items[3]["a"][0]["content"], items[3]["b"][0]["content"], items[3]["status"]) == ("6", "no", "a")

    again = scene.end(scene.create(wrong, right, judge=JUDGE, seed=7))
    assert again["result_counts"]["b"] == 8
    order = [one["judgements"][0]["first"] for one in scene.get("/items", again, limit="8")["data"]]
    assert order == [one["judgements"][0]["first"] for one in items], "the same seed draws the same order"
    page = scene.http.get(scene.url, params={"limit": 1}).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made["id"]], True)
    assert [one.id for one in scene.sdk.evals.runs.list(scene.eval_id)] == [right, wrong], "they are no usual runs"
    with pytest.raises(openai.NotFoundError):
        scene.sdk.evals.runs.retrieve(made["id"], eval_id=scene.eval_id)
    assert scene.http.get(f"{scene.url}/{right}").status_code == 404


def test_what_a_judge_prefers_for_its_place_is_a_tie_and_told(scene: Scene, upstream: Speaker) -> None:
    upstream.says = says(lambda number, first, second: "tie" if number == 0 else "first")
    done = scene.end(scene.create(scene.run(RIGHT), scene.run(WRONG), judge=JUDGE))
    assert (done["result_counts"]["tie"], done["result_counts"]["a"], done["result_counts"]["b"]) == (8, 0, 0)
    report = scene.get("/report", done)["judge"]
    assert report["finding"] == {
        "verdict": "no_difference_shown", "rows": 8, "a": 0, "b": 0, "ties": 8, "win_rate": None, "interval": None,
        "p_value": 1.0,
    }  # fmt: skip
    assert report["position"] == {
        "chose_first": 14, "chose_second": 0, "leaning_first": 7, "leaning_second": 0,
        "p_value": pytest.approx(2 / 2**7),
    }  # fmt: skip


def test_rows_that_cannot_be_compared_and_judges_that_break_down_stop_nobody(scene: Scene, upstream: Speaker) -> None:
    upstream.says = says(lambda number, *_: "neither of them" if number == 1 else honest(number, *_))
    other = [*rows(3), {"item": {"question": "9 and 9", "answer": "x"}}, *rows(6)[4:]]
    a, b = scene.run(RIGHT[:5]), scene.run(["no"] * 6, of=other)
    done = scene.end(scene.create(a, b, judge=JUDGE))
    assert done["status"] == "completed"
    assert done["result_counts"] == {
        "total": 6, "a": 3, "b": 0, "tie": 0, "unjudged": 0, "errored": 1, "left_out": 2,
    }  # fmt: skip
    left = scene.get("/items", done, status="left_out")["data"]
    assert [(one["datasource_item_id"], one["error"]["code"]) for one in left] == [
        (3, "rows_differ"), (5, "only_in_one_run"),
    ]  # fmt: skip
    (broken,) = scene.get("/items", done, status="error")["data"]
    assert [one["error"]["code"] for one in broken["judgements"]] == ["model_grader_parse_error"]
    assert scene.get("/report", done)["judge"]["position"]["chose_first"] == 3


def test_an_ab_run_waits_for_its_runs_and_ends_with_them(scene: Scene, upstream: Speaker) -> None:
    upstream.stuck = {"What is 0 and 0?"}
    stuck = scene.sdk.evals.runs.create(scene.eval_id, data_source=asking(content(rows(1))))
    right = scene.run(RIGHT)
    made = scene.create(right, stuck.id)
    cancelled = scene.create(right, stuck.id, judge=JUDGE)
    url = f"{scene.url}/{cancelled['id']}"
    assert scene.http.post(f"{url}/cancel").json()["status"] == "canceled"
    assert scene.http.post(f"{url}/cancel").json()["status"] == "canceled", "twice is the same as once"
    assert scene.get("", made)["status"] == "queued"
    scene.sdk.evals.runs.cancel(stuck.id, eval_id=scene.eval_id)
    done = scene.end(made)
    assert (done["status"], done["error"]["code"]) == ("failed", "invalid_run_state")
    refused = scene.http.post(f"{scene.url}/{done['id']}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_run_state")
    refused = scene.http.post(scene.url, json={"run_a": right, "run_b": stuck.id})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "run_b")
    assert scene.http.delete(url).json() == {
        "object": "eval.ab_run.deleted", "deleted": True, "ab_run_id": cancelled["id"],
    }  # fmt: skip
    assert scene.http.get(url).status_code == 404


def test_people_vote_blind_once_each_and_are_set_beside_the_judge(scene: Scene) -> None:
    made = scene.end(scene.create(scene.run(RIGHT), scene.run([*WRONG[:6], *RIGHT[6:]]), judge=JUDGE))
    assert made["result_counts"]["tie"] == 2
    firsts = []
    for voter in ("ann", "bob/..:1 ü"):
        for _ in range(8):
            shown = scene.get("/next", made, voter=voter)
            assert scene.get("/next", made, voter=voter) == shown, "what was not voted on is shown again"
            pair = shown["pair"]
            said = [pair[place][0]["content"] for place in ("first", "second")]
            firsts.append(said[0])
            choice = "neither" if said[0] == said[1] else "second" if said[0] == "no" else "first"
            voted = scene.vote(made, pair["pair"], choice)
            assert voted.status_code == 201, voted.text
            assert (voted.json()["voter"], voted.json()["choice"]) == (voter, choice)
            assert scene.vote(made, pair["pair"], choice).json() == voted.json(), "twice is the same as once"
            again = scene.vote(made, pair["pair"], "tie")
            assert (again.status_code, again.json()["error"]["code"]) == (400, "already_voted")
        assert scene.get("/next", made, voter=voter)["pair"] is None
    assert {"no"} < set(firsts) and firsts.count("no") < 12, "which stands first is drawn"
    report = scene.get("/report", made)
    people = report["people"]
    assert (people["votes"], people["voters"], people["neither"]) == (16, 2, 4)
    assert (people["finding"]["a"], people["finding"]["b"], people["finding"]["ties"]) == (6, 0, 2)
    assert people["finding"]["verdict"] == "a_is_better", "rows are counted, not votes"
    assert people["position"]["chose_first"] + people["position"]["chose_second"] == 12
    assert report["agreement"] == {"votes": 16, "agreed": 16, "kappa": 1.0}

    for wrong in ("abpair_", "x", pair["pair"][:-2], "abpair_" + "A" * 40, pair["pair"] + "ü"):
        assert scene.vote(made, wrong, "tie").status_code == 404, wrong
    other = scene.end(scene.create(made["run_a"], made["run_b"]))
    assert scene.vote(other, pair["pair"], "tie").status_code == 404, "a pair is of one A/B run"


def test_without_a_judge_people_alone_say_who_is_better(scene: Scene, upstream: Speaker) -> None:
    made = scene.end(scene.create(scene.run(RIGHT), scene.run(WRONG)))
    assert (made["result_counts"]["unjudged"], made["judge"], upstream.received) == (8, None, [])
    pair = scene.get("/next", made, voter="v")["pair"]
    assert scene.vote(made, pair["pair"], "first").status_code == 201
    report = scene.get("/report", made)
    assert (report["judge"], report["agreement"]) == (None, None)
    assert report["people"]["finding"]["verdict"] == "no_difference_shown"


def test_wrong_ab_runs_are_refused_by_the_name_of_the_field(scene: Scene) -> None:
    a, b = scene.run(RIGHT[:1]), scene.run(WRONG[:1])

    def asked(text: str) -> dict[str, Any]:
        return {"judge": {"model": BASE, "input": [{"role": "user", "content": text}]}}

    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"run_a": "evalrun_x"}, 404, "run_a"),
        ({"run_b": "../x:y"}, 404, "run_b"),
        ({"run_b": a}, 400, "run_b"),
        ({"run_b": None}, 400, "run_b"),
        ({"run_b": "r" * 129}, 400, "run_b"),
        ({"seed": -1}, 400, "seed"),
        ({"judge": {"model": "nobody"}}, 404, "judge.model"),
        ({"judge": {**JUDGE, "input": []}}, 400, "judge.input"),
        ({"judge": {**JUDGE, "range": [0, 1]}}, 400, "judge.range"),
        (asked("{{ x }}"), 400, "judge.input[0].content"),
        (asked("{{ sample.first }}"), 400, "judge.input"),
        (asked("{{ sample.output_text }}"), 400, "judge.input"),
        ({"surprise": 1}, 400, "surprise"),
    ]
    for changes, status, param in cases:
        answer = scene.http.post(scene.url, json={"run_a": a, "run_b": b, **changes})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert scene.http.get(scene.url).json()["data"] == []
    for voter in ("", "v" * 129):
        url = f"{scene.url}/abrun_x/next"
        assert scene.http.get(url, params={"voter": voter}).json()["error"]["param"] == "voter"
    assert scene.http.get(f"{scene.url}/abrun_x/next", params={"voter": "v"}).status_code == 404


def test_votes_count_are_kept_and_go_with_their_run(scene: Scene, api: ApiServer, redis_url: str) -> None:
    project = new_project(api, storage_bytes=100_000)
    key = new_key(api, project)
    with api.client(key) as http:
        own = Scene(scene.sdk.with_options(api_key=key), http)
        made = own.end(own.create(own.run(RIGHT[:2]), own.run(WRONG[:2])))

        def used() -> int:
            return with_store(redis_url, lambda client: FileStore(client).used_bytes(project))

        def keep_vote(voter: str) -> httpx2.Response:
            return own.vote(made, own.get("/next", made, voter=voter)["pair"]["pair"], "first")

        before = used()
        assert keep_vote("v" * 128).status_code == 201
        assert 128 < used() - before < 300

        async def lose_and_restore(client: Client) -> int:
            (entry,) = [one async for one in entries.read(client, "eval_run", [keys.eval_run(made["id"])])]
            await client.call("DEL", keys.ab_votes(made["id"]), keys.eval_run(made["id"]))
            assert await entries.put_back(client, entry)
            return int(await client.call("PTTL", keys.ab_votes(made["id"])))

        assert 0 < with_store(redis_url, lose_and_restore) <= 90 * 86_400_000, "votes live as long as the results"
        assert own.get("/report", made)["people"]["votes"] == 1
        with api.client() as admin:
            limits = {"selftune": {"limits": {"storage_bytes": 1}}}
            admin.post(f"{PROJECTS}/{project}", json=limits).raise_for_status()
        refused = keep_vote("v")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "storage_limit_exceeded")
        assert http.delete(f"/v1/evals/{own.eval_id}").status_code == 200
        assert used() == 0
        assert with_store(redis_url, lambda client: client.call("KEYS", "selftune:ab_votes:*")) == []
