"""Sweeps, their costs, and a base replay: the API and a trainer on a tiny base, without an inference server of its own.

Where models have to answer, one stands in that is right by the model's base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx2
import openai
import pytest
from msgspec.structs import replace

from services.trainer.base.description import describe_base
from shared.settings import Settings
from shared.store.client import Client
from shared.store.jobs import JobStore
from shared.store.presence import Presence
from shared.store.registry import Registry
from shared.store.usage import Day, UsageStore, Used, today
from tests.api_server import ApiServer, make_replica, wait_until, with_store
from tests.batch_requests import prompt_of
from tests.eval_scene import EXACT, QUESTION, SCHEMA, Speaker, adds, rows, spoken
from tests.integration.trainer_stack import BASE_ID, own_database, running_trainer
from tests.unit.trainer.tiny import save_tiny_base, training_rows

NEW_BASE = "tiny-two"
SWEEPS, REPLAYS = "/v1/fine_tuning/sweeps", "/v1/fine_tuning/replays"
PRICES = {
    "device_hour_price": 36.0,
    "model_prices": {BASE_ID: {"input": 1.0, "output": 2.0, "cached_input": 0.5}},
    "hosted_prices": {"large": {"input": 10.0, "output": 20.0}},
}
ENDED = {"completed", "failed", "canceled"}


@pytest.fixture(scope="module")
def own_settings(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Settings]:
    """A database and a trainer of these tests' own: they look at all that was ever trained."""
    with own_database(tmp_path_factory.mktemp("swept") / "data", tiny_base) as settings:
        yield settings


@pytest.fixture(scope="module")
def api(own_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_trainer(own_settings, tmp_path_factory.mktemp("sweeps")):
        yield from _api(own_settings)


def _api(own_settings: Settings) -> Iterator[ApiServer]:
    options = {"lora_rank": 4, "max_model_len": 128, "lease_ttl_s": 2.0, **PRICES}
    server = ApiServer(own_settings.home, own_settings.redis_url, **options)
    with server.client() as http:
        wait_until(lambda: http.get(f"/v1/models/{BASE_ID}").is_success, timeout_s=180)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def http(api: ApiServer) -> Iterator[httpx2.Client]:
    with api.client() as client:
        yield client


def upload(http: httpx2.Client, count: int, *, first: int = 0) -> str:
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in training_rows(first + count)[first:])
    answer = http.post("/v1/files", files={"file": ("rows.jsonl", lines)}, data={"purpose": "fine-tune"})
    return str(answer.json()["id"])


def answered(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ended(http: httpx2.Client, path: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = answered(http.get(path))
        return found if found["status"] in ENDED else None

    found = wait_until(look, timeout_s=120)
    assert found is not None
    return found


@dataclass
class Swept:
    """A sweep that has ended, and what was said of such a job before."""

    sweep: dict[str, Any]
    before: dict[str, Any]
    job_body: dict[str, Any]


def job_body(http: httpx2.Client, **hyperparameters: Any) -> dict[str, Any]:
    return {
        "model": BASE_ID, "training_file": upload(http, 16), "validation_file": upload(http, 6, first=16), "seed": 3,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 8, **hyperparameters}}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def swept(http: httpx2.Client) -> Swept:
    body = job_body(http, n_epochs=2, learning_rate_multiplier=4.0)
    before = answered(http.post("/v1/fine_tuning/estimates", json=body))
    wanted = {
        **body,
        "method": {
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"batch_size": 8, "n_epochs": 2, "learning_rate_multiplier": [0.001, 4.0]}
            },
        },
        "selftune": {"rank": [2, 4]},
        "sweep": {"keep": "best", "n_runs": 3, "seed": 1},
    }
    made = answered(http.post(SWEEPS, json=wanted))
    assert [run["status"] for run in made["runs"]] == ["waiting"] * 3
    assert (made["grid_size"], made["seed"], made["metric"]) == (4, 1, {"name": "full_valid_loss", "better": "lower"})
    return Swept(ended(http, f"{SWEEPS}/{made['id']}"), before, body)


def test_runs_are_ranked_by_validation_and_the_best_model_is_kept(
    swept: Swept, http: httpx2.Client, own_settings: Settings
) -> None:
    sweep = swept.sweep
    assert (sweep["status"], sweep["error"]) == ("completed", None)
    runs = sweep["runs"]
    parameters = {(run["parameters"]["learning_rate_multiplier"], run["parameters"]["selftune.rank"]) for run in runs}
    assert len(parameters) == 3
    assert parameters < {(rate, rank) for rate in (0.001, 4.0) for rank in (2, 4)}
    by_rank = sorted(runs, key=lambda run: run["rank"])
    assert [run["value"] for run in by_rank] == sorted(run["value"] for run in runs)
    best = by_rank[0]
    assert best["parameters"]["learning_rate_multiplier"] == 4.0
    assert {name: sweep["best"][name] for name in ("job_id", "model", "value")} == {
        "job_id": best["job_id"], "model": best["model"], "value": best["value"],
    }  # fmt: skip
    checkpoints = with_store(own_settings.redis_url, lambda client: JobStore(client).checkpoints(best["job_id"]))
    assert best["value"] == checkpoints[0].metrics.full_valid_loss
    listed = {model["id"] for model in answered(http.get("/v1/models"))["data"]}
    assert best["model"] in listed
    assert [run["model_kept"] for run in by_rank] == [True, False, False]
    assert not {run["model"] for run in by_rank[1:]} & listed
    job = answered(http.get(f"/v1/fine_tuning/jobs/{best['job_id']}"))
    assert job["metadata"] == {"sweep_id": sweep["id"]}
    assert (job["selftune"]["rank"], job["seed"]) == (best["parameters"]["selftune.rank"], 3)
    picture = http.get(f"{SWEEPS}/{sweep['id']}/plot")
    assert picture.headers["content-type"] == "image/svg+xml"
    circles = ElementTree.fromstring(picture.text).iter("{http://www.w3.org/2000/svg}circle")  # noqa: S314 - our own
    assert len(list(circles)) == 2 * 3
    assert [one["id"] for one in answered(http.get(SWEEPS))["data"]] == [sweep["id"]]
    refused = http.post(f"{SWEEPS}/{sweep['id']}/cancel")
    assert refused.status_code == 400


def test_device_seconds_become_costs_and_the_next_estimate(swept: Swept, http: httpx2.Client) -> None:
    before = swept.before
    assert (before["steps"], before["n_epochs"], before["batch_size"], before["examples"]) == (4, 2, 8, 16)
    assert (before["tokens_source"], before["device_seconds"], before["price"]) == ("assumed", None, None)
    assert "neither its time nor its memory is known" in before["remarks"][0]
    jobs = [answered(http.get(f"/v1/fine_tuning/jobs/{run['job_id']}")) for run in swept.sweep["runs"]]
    costs = [job["selftune"]["cost"] for job in jobs]
    for cost in costs:
        assert cost["currency"] == "USD" and cost["device_seconds"] > 0
    after = answered(http.post("/v1/fine_tuning/estimates", json=swept.job_body))
    assert (after["tokens_source"], after["measured_jobs"]) == ("tokenised", 3)
    assert after["tokens"] == pytest.approx(jobs[0]["trained_tokens"], rel=0.05)  # less what follows the last target
    assert after["memory_bytes"] == jobs[-1]["selftune"]["estimated_memory_bytes"]
    assert after["device_seconds"] == pytest.approx(after["tokens"] / after["tokens_per_device_second"], abs=2e-3)
    assert after["price"] == pytest.approx(after["device_seconds"] / 100, abs=1e-4)
    [day] = answered(http.get("/v1/usage/costs", params={"group_by": "day", "start": today()}))["data"]
    assert day["device_seconds"] > 0
    assert day["training_price"] == pytest.approx(day["device_seconds"] / 100, abs=1e-4)
    by_model = answered(http.get("/v1/usage/costs"))["data"]
    assert {run["model"] for run in swept.sweep["runs"]} == {group["group"] for group in by_model}


def test_training_is_paid_back_by_what_requests_save(swept: Swept, http: httpx2.Client, own_settings: Settings) -> None:
    best = swept.sweep["best"]
    path = f"/v1/fine_tuning/jobs/{best['job_id']}/break_even"
    unknown = http.get(path, params={"against": "huge"}).json()["error"]
    assert (unknown["code"], unknown["param"]) == ("unknown_hosted_model", "against")
    assert http.get(path, params={"against": "large"}).json()["error"]["code"] == "nothing_measured"
    tokens = {"requests": 10, "input_tokens": 1000, "cached_tokens": 400, "output_tokens": 500}
    counts = {Used(metric, best["model"]): number for metric, number in tokens.items()}
    with_store(own_settings.redis_url, lambda client: UsageStore(client).add({Day("proj_default", today()): counts}))
    found = answered(http.get(path, params={"against": "large", "prompt_tokens_saved": 900}))
    assert found["request"] == {"input_tokens": 100.0, "cached_tokens": 40.0, "output_tokens": 50.0}
    assert found["price_per_request"] == pytest.approx((60 * 1 + 40 * 0.5 + 50 * 2) / 1e6)
    assert found["hosted_price_per_request"] == pytest.approx((1000 * 10 + 50 * 20) / 1e6)
    needed = found["training_price"] / found["saved_per_request"]
    assert needed <= found["requests_to_break_even"] < needed + 1.001
    assert found["requests_left"] == max(0, found["requests_to_break_even"] - 10)
    [group] = [one for one in answered(http.get("/v1/usage/costs"))["data"] if one["group"] == best["model"]]
    assert group["serving_price"] == pytest.approx(10 * found["price_per_request"])
    for query, param in [({"start": "yesterday"}, "start"), ({"start": "2026-02-02", "end": "2026-02-01"}, "start")]:
        refused = http.get("/v1/usage/costs", params=query)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"validation_file": None}, "validation_file"),
        ({"training_file": "file-none"}, "training_file"),
        ({"selftune": {"rank": [4, 512]}}, "selftune.rank"),
        ({"selftune": {"rank": [4, "many"]}}, "selftune.rank"),
        ({"selftune": {"max_length": [32, 64]}}, "selftune.max_length"),
        ({"sweep": {"n_runs": 65}}, "sweep.n_runs"),
        ({"sweep": {"eval": {"eval_id": "e", "data_source": {"type": "jsonl"}}}}, "sweep.eval.data_source.type"),
        ({"method": {"type": "supervised"}, "selftune": {}}, "method"),
    ],
)  # fmt: skip
def test_sweep_whose_runs_could_be_no_jobs_is_refused(
    http: httpx2.Client, swept: Swept, change: dict[str, Any], param: str
) -> None:
    wanted = {**swept.job_body, "selftune": {"rank": [2, 4]}, **change}
    answer = http.post(SWEEPS, json={name: value for name, value in wanted.items() if value is not None})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


def test_cancelled_sweep_stops_its_jobs(http: httpx2.Client, swept: Swept) -> None:
    wanted = {
        **swept.job_body,
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"batch_size": 1, "n_epochs": 50, "learning_rate_multiplier": [1, 2]}},
        },
    }
    made = answered(http.post(SWEEPS, json=wanted))

    def statuses() -> set[str]:
        runs = answered(http.get(f"{SWEEPS}/{made['id']}"))["runs"]
        return {run["status"] for run in runs}

    wait_until(lambda: "waiting" not in statuses(), timeout_s=120)
    for _ in range(2):
        assert answered(http.post(f"{SWEEPS}/{made['id']}/cancel"))["status"] == "canceled"
    for run in made["runs"]:
        path = f"/v1/fine_tuning/jobs/{run['job_id']}"
        wait_until(lambda path=path: answered(http.get(path))["status"] == "cancelled", timeout_s=60)  # type: ignore[misc]


class Knowing(Speaker):
    """Is right where the model is on the new base, and wrong on any other."""

    def _whole(self, request: dict[str, Any]) -> bytes:
        right = adds(prompt_of(request))
        return spoken(request["model"], right if f"ft:{NEW_BASE}:" in request["model"] else "no idea")


def test_model_is_replayed_on_a_new_base_and_promoted(
    http: httpx2.Client, api: ApiServer, swept: Swept, own_settings: Settings, tmp_path: Path
) -> None:
    champion, redis_url = swept.sweep["best"]["model"], own_settings.redis_url
    base = replace(
        describe_base(save_tiny_base(tmp_path / NEW_BASE), NEW_BASE), path=str(tmp_path / NEW_BASE), context_length=64
    )
    with_store(redis_url, lambda client: Registry(client).put_base(base))
    sdk = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    eval_ = sdk.evals.create(data_source_config=config, testing_criteria=[EXACT])  # type: ignore[list-item]
    source = {
        "type": "completions",
        "source": {"type": "file_content", "content": rows(12)},
        "input_messages": QUESTION,
    }
    answered(http.post("/v1/aliases", json={"name": "support", "model": champion, "wait_warm": False}))
    gone = f"ft:{BASE_ID}:selftune::AbCdEfGh"
    wanted = {
        "base": NEW_BASE, "models": [champion, gone], "eval": {"eval_id": eval_.id, "data_source": source},
        "suffix": "again",
    }  # fmt: skip
    refused = http.post(REPLAYS, json={**wanted, "base": champion}).json()["error"]
    assert (refused["code"], refused["param"]) == ("invalid_value", "base")
    replay = answered(http.post(REPLAYS, json=wanted))
    path = f"{REPLAYS}/{replay['id']}"
    early = http.post(f"{path}/promote", json={}).json()["error"]
    assert early["code"] == "invalid_replay_state"

    def row(place: int) -> dict[str, Any]:
        found: dict[str, Any] = answered(http.get(path))["rows"][place]
        return found

    wait_until(lambda: row(0)["status"] in ("evaluating", "failed"), timeout_s=120)
    with Knowing() as model:

        async def serve(client: Client) -> None:
            for name in (BASE_ID, NEW_BASE):
                await Presence(client).beat_replica(make_replica(model.url, id=name, base=name), ttl_s=300)

        with_store(redis_url, serve)
        done = ended(http, path)
        moved = answered(http.post(f"{path}/promote", json={"wait_warm": False}))["data"]
        with_store(redis_url, lambda client: client.call("DEL", "selftune:replicas"))
    first, second = done["rows"]
    assert (done["status"], first["status"], first["error"]) == ("completed", "compared", None)
    assert (first["champion_pass_rate"], first["challenger_pass_rate"], first["verdict"]) == (0.0, 1.0, "better")
    assert first["challenger"].startswith(f"ft:{NEW_BASE}:selftune:again:")
    assert "max_length is 64" in first["remarks"][0]
    assert (second["status"], second["error"]["code"]) == ("failed", "model_not_found")
    old, new = (answered(http.get(f"/v1/fine_tuning/jobs/{first[name]}")) for name in ("replayed_job_id", "job_id"))
    assert new["model"] == NEW_BASE
    for name in ("training_file", "validation_file", "seed", "hyperparameters"):
        assert new[name] == old[name], name
    assert new["selftune"]["rank"] == old["selftune"]["rank"]
    assert [(one["alias"], one["previous_model"], one["model"], one["error"]) for one in moved] == [
        ("support", champion, first["challenger"], None)
    ]
    assert answered(http.get("/v1/aliases/support"))["model"] == first["challenger"]
    assert answered(http.post(f"{path}/promote", json={}))["data"] == []
    named = http.post(f"{path}/promote", json={"models": [gone]}).json()["error"]
    assert (named["code"], named["param"]) == ("no_challenger", "models")
