"""One stack, traced and measured: a request and a job seen across api, trainer, training process, gateway and vLLM."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api_server import ApiServer, free_port, wait_until
from tests.integration.inference_stack import BASE_ID, KEY, InferenceStack, inference_stack, make_base
from tests.integration.trainer_stack import TrainerProcess, running_trainer
from tests.otlp_receiver import Collector, Span, collector
from tests.unit.trainer.tiny import training_rows

ROOT = Path(__file__).parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
MESSAGES = [{"role": "user", "content": "what is the capital of france?"}]


class Scene(NamedTuple):
    """Everything that runs."""

    inference: InferenceStack
    trainer: TrainerProcess
    api: ApiServer
    traces: Collector
    job: dict[str, Any]
    """A job that has succeeded, created by a client with a trace of its own."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    base = make_base(tmp_path_factory.mktemp("base"))
    ports = {name: free_port() for name in ("api_metrics_port", "trainer_metrics_port", "inference_metrics_port")}
    with pytest.MonkeyPatch.context() as environment, collector() as traces:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", traces.url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with (
            inference_stack(base, threads=1, lora_rank=4, max_model_len=256, **ports) as inference,
            running_trainer(inference.settings, tmp_path_factory.mktemp("log")) as trainer,
        ):
            inference.start()
            inference.wait_ready()
            api = ApiServer(
                inference.home, inference.settings.redis_url, internal_key=KEY, base_model=str(base),
                base_model_id=BASE_ID, lora_rank=4, max_model_len=256, **ports,
            )  # fmt: skip
            try:
                yield Scene(inference, trainer, api, traces, trained(api))
            finally:
                api.stop()


def trained(api: ApiServer) -> dict[str, Any]:
    """Have a small job done through the api."""
    rows = "".join(json.dumps(row) + "\n" for row in training_rows(12)).encode()
    with api.client() as http:
        file = http.post("/v1/files", files={"file": ("rows.jsonl", rows)}, data={"purpose": "fine-tune"}).json()
        body = {
            "model": BASE_ID, "training_file": file["id"],
            "hyperparameters": {"n_epochs": 2, "batch_size": 8},
        }  # fmt: skip
        created = http.post("/v1/fine_tuning/jobs", json=body, headers={"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"})
        assert created.status_code == 200, created.text
        job_id = created.json()["id"]

        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
            return found if found["status"] in ("succeeded", "failed", "cancelled") else None

        job = wait_until(ended, timeout_s=180)
        assert job is not None and job["status"] == "succeeded", job
        return job


def one(spans: list[Span], name: str, service: str, parent: str) -> Span:
    """Return the span of this name below another; there is exactly one."""
    [found] = [span for span in spans if (span.name, span.service, span.parent) == (name, service, parent)]
    return found


def arrived(scene: Scene, trace: str, *names: str) -> list[Span]:
    """Wait for spans of these names in a trace, and return all of it."""

    def there() -> list[Span]:
        spans = scene.traces.spans(trace)
        return spans if set(names) <= {span.name for span in spans} else []

    return wait_until(there, timeout_s=30)


def test_a_jobs_trace_goes_from_the_request_to_the_training_process(scene: Scene) -> None:
    spans = arrived(scene, TRACE, "POST /v1/fine_tuning/jobs", "job.validate", "job.train", "job.process")
    request = one(spans, "POST /v1/fine_tuning/jobs", "selftune-api", CLIENT_SPAN)
    one(spans, "job.validate", "selftune-trainer", request.id)
    train = one(spans, "job.train", "selftune-trainer", request.id)
    assert train.attributes["selftune.job_id"] == scene.job["id"]
    for name in ("model.publish", "adapter.wait", "parity.check"):
        one(spans, name, "selftune-trainer", train.id)
    process = one(spans, "job.process", "selftune-training", train.id)
    for name in ("model.load", "parity.measure"):
        one(spans, name, "selftune-training", process.id)
    written = {span.name for span in spans if span.parent == process.id}
    assert {"checkpoint.write", "model.export"} <= written
    asked = one(spans, "adapter.ask", "selftune-trainer", train.id)
    served = [span for span in spans if span.parent == asked.id]
    assert {(span.name, span.service) for span in served} == {("inference /v1/completions", "selftune-inference")}
    assert not [span for span in spans if span.failed]


@pytest.mark.parametrize("stream", [False, True])
def test_a_requests_trace_goes_through_the_gateway_into_vllm(scene: Scene, stream: bool) -> None:
    trace = f"{int(time.time()):08x}{int(stream):024x}"
    body = {"model": scene.job["fine_tuned_model"], "messages": MESSAGES, "max_tokens": 4, "stream": stream}
    with scene.api.client() as http:
        answer = http.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{trace}-{CLIENT_SPAN}-01"})
    assert answer.status_code == 200, answer.text
    spans = arrived(scene, trace, "POST /v1/chat/completions", "llm_request", "inference /v1/chat/completions")
    request = one(spans, "POST /v1/chat/completions", "selftune-api", CLIENT_SPAN)
    gateway = one(spans, "gateway /v1/chat/completions", "selftune-api", request.id)
    served = one(spans, "inference /v1/chat/completions", "selftune-inference", gateway.id)
    one(spans, "llm_request", "selftune-inference", served.id)
    request_id = answer.headers["x-request-id"]
    assert {span.attributes["selftune.request_id"] for span in (request, gateway, served)} == {request_id}
    for log in (scene.api.log, scene.inference.log):
        [line] = [
            line for line in lines(log) if line.get("request_id") == request_id and line["event"] == "request.done"
        ]
        assert line["trace_id"] == trace and line["span_id"]


def test_a_malformed_trace_begins_a_new_one(scene: Scene) -> None:
    with scene.api.client() as http:
        answer = http.get("/v1/models", headers={"traceparent": "00-nonsense-01"})
    assert answer.status_code == 200

    def there() -> list[Span]:
        request_id = answer.headers["x-request-id"]
        return [s for s in scene.traces.spans() if s.attributes.get("selftune.request_id") == request_id]

    [span] = wait_until(there)
    assert span.name == "GET /v1/models" and span.parent == "" and len(span.trace) == 32


def test_lines_of_a_job_carry_its_id(scene: Scene) -> None:
    job_id = scene.job["id"]
    of_worker = [line for line in lines(scene.trainer.log) if line["event"].split(".")[0] in ("job", "child", "lease")]
    assert len(of_worker) >= 4 and {line.get("job_id") for line in of_worker} == {job_id}
    text = (scene.inference.home / "jobs" / job_id / "train.log").read_text().splitlines()
    of_child = [json.loads(line) for line in text if line.startswith("{")]
    assert all(line["job_id"] == job_id and line["service"] == "training" for line in of_child)
    assert any(line["event"] == "tracing.started" for line in of_child)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def scrape(port: int) -> dict[str, float]:
    """Return every sample by name and labels, as PromQL writes them."""
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=30).text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_the_ports_tell_what_was_done(scene: Scene) -> None:
    settings, model = scene.api.settings, scene.job["fine_tuned_model"]
    before = scrape(settings.inference_metrics_port)
    with scene.api.client() as http:
        body = {"model": model, "messages": MESSAGES, "max_tokens": 5, "stream": True, "ignore_eos": True, "n": 2}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        whole = http.post("/v1/chat/completions", json={**body, "stream": False}).json()
        assert http.get("/v1/nothing/here").status_code == 404
        assert (
            http.post("/v1/completions", json={"model": BASE_ID, "prompt": "a", "temperature": -5}).status_code == 400
        )
    api, trainer = scrape(settings.api_metrics_port), scrape(settings.trainer_metrics_port)

    labels = f'model="{model}",outcome="answered",project="proj_default"'
    assert api[f"selftune_gateway_requests_total{{{labels}}}"] >= 2
    assert api[f'selftune_gateway_requests_total{{model="{BASE_ID}",outcome="refused",project="proj_default"}}'] == 1
    assert api['selftune_gateway_first_byte_seconds_count{endpoint="/v1/chat/completions"}'] >= 2
    assert api['selftune_gateway_seconds_count{endpoint="/v1/chat/completions"}'] >= 2
    assert api['selftune_api_requests_total{method="POST",route="/v1/chat/completions",status="2xx"}'] >= 2
    assert api['selftune_api_requests_total{method="GET",route="unknown",status="4xx"}'] == 1
    assert api["selftune_api_requests_in_flight"] == 0
    assert api["selftune_api_uploaded_bytes_total"] > 1000
    assert api['selftune_api_jobs_created_total{method="supervised"}'] == 1
    assert api["selftune_store_up"] == 1 and api["selftune_data_free_bytes"] > 0
    assert api['selftune_replicas{state="ready"}'] == 1
    # by the worker's next heartbeat after the job
    wait_until(lambda: scrape(settings.api_metrics_port).get('selftune_workers{state="idle"}') == 1)
    assert api['selftune_jobs{state="queued"}'] == 0 and api["selftune_jobs_without_lease"] == 0
    assert api["selftune_api_store_call_seconds_count"] > 10

    assert trainer['selftune_trainer_attempts_ended_total{method="supervised",outcome="succeeded"}'] == 1
    assert trainer["selftune_trainer_steps_total"] == 4
    assert trainer["selftune_trainer_checkpoint_seconds_count"] == 2
    assert trainer["selftune_trainer_queue_seconds_count"] == trainer["selftune_trainer_validation_seconds_count"] == 1
    tokens = trainer[f'selftune_trainer_tokens_total{{model="{BASE_ID}",project="proj_default"}}']
    assert tokens == scene.job["trained_tokens"]
    assert trainer["selftune_trainer_tokens_per_second"] == 0 and trainer["selftune_trainer_usable_memory_bytes"] > 0

    after = scrape(settings.inference_metrics_port)
    usage = whole["usage"]
    for kind, count in (("prompt", usage["prompt_tokens"]), ("completion", usage["completion_tokens"])):
        name = f'selftune_inference_tokens_total{{kind="{kind}",model="{model}",project="proj_default"}}'
        assert after[name] - before.get(name, 0) == 2 * count, name
    assert usage["completion_tokens"] == 10
    assert after['selftune_adapter_loads_total{outcome="loaded"}'] >= 1 and after["selftune_inference_ready"] == 1
    assert after['selftune_inference_requests_total{path="/v1/completions",status="400"}'] == 1


def test_vllms_names_that_are_used_are_its_own(scene: Scene) -> None:
    files = [*(ROOT / "deploy").rglob("*.json"), ROOT / "deploy/alerts.yml", ROOT / "docs/observability.md"]
    left_out = {"vllm:lora_requests_info"}  # as the page says
    used = {name for file in files for name in re.findall(r"vllm:\w+", file.read_text())} - left_out
    assert used
    exposed = {name.partition("{")[0] for name in scrape(scene.api.settings.inference_metrics_port)}
    assert used <= exposed | {name.removesuffix("_bucket") for name in exposed}, used - exposed
    assert not left_out & exposed
