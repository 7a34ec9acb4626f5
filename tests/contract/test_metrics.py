"""The documents, the dashboard and the alert rules name the metrics that there are, and all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.inference import metrics as inference_metrics
from services.trainer import metrics as trainer_metrics
from shared.metrics import MOST_LABELS, OTHER, Bounded
from tests.api_server import ApiServer, free_port

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "observability.md"
PROMETHEUS_OWN = {"up"}

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\{[^{}]*\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_RANGES = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()")
_WORDS = {"and", "or", "unless", "bool", "offset"}


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression."""
    for part in (_STRINGS, _LABELS, _RANGES, _GROUPING):
        expression = part.sub(" ", expression)
    return {name for name in _NAME.findall(expression) if name not in _WORDS}


def names_in(text: str) -> dict[str, str]:
    """Return what a scrape exposes, as the documents name it, and the kind of each."""
    kinds = {"counter": "_total"}
    found = {family.name + kinds.get(family.type, ""): family.type for family in text_string_to_metric_families(text)}
    return {name: kind for name, kind in found.items() if name.startswith("selftune_")}


@pytest.fixture(scope="module")
def exposed(valkey_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Scrape the api; the others' registries need no process to be read."""
    port = free_port()
    server = ApiServer(
        tmp_path_factory.mktemp("api"), f"unix://{valkey_folder / 'valkey.sock'}?db=5", api_metrics_port=port
    )
    try:
        api = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    finally:
        server.stop()
    return names_in(api) | names_in(_text(trainer_metrics.REGISTRY)) | names_in(inference_text())


def inference_text() -> str:
    registry = CollectorRegistry()
    numbers = dict.fromkeys(inference_metrics.NUMBERS, 0)
    registry.register(inference_metrics.Residency(names=lambda: ["ft:a"], numbers=lambda: numbers))
    for collector in inference_metrics.OWN:
        registry.register(collector)
    return _text(registry)


def _text(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def test_the_document_lists_every_metric(exposed: dict[str, str]) -> None:
    listed = re.findall(r"^\| `(selftune_\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(exposed)


def test_names_follow_prometheus_conventions(exposed: dict[str, str]) -> None:
    for name, kind in exposed.items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind != "histogram" or name.endswith("_seconds"), name
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|\Z)", name), name


def samples(exposed: dict[str, str]) -> set[str]:
    """Return the names that PromQL may use."""
    histograms = {name for name, kind in exposed.items() if kind == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    return {name for name in exposed if name not in histograms} | parts


def alert_expressions() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    for panel in json.loads((ROOT / "deploy/grafana/selftune.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize("expressions", [alert_expressions, dashboard_expressions])
def test_expressions_name_metrics_that_exist(expressions: object, exposed: dict[str, str]) -> None:
    assert callable(expressions)
    known = samples(exposed) | PROMETHEUS_OWN
    seen = 0
    for where, expression in expressions():
        names = metrics_in(expression)
        assert names, f"{where}: {expression}"
        theirs = {name for name in names if name.startswith(("vllm:", "process_"))}  # compared with a real scrape
        assert names - theirs <= known, f"{where}: {sorted(names - theirs - known)}"
        seen += 1
    assert seen > 10


def test_every_metric_is_on_the_dashboard(exposed: dict[str, str]) -> None:
    shown = set().union(*(metrics_in(expression) for _, expression in dashboard_expressions()))
    missing = [name for name in exposed if not any(sample in shown for sample in (name, f"{name}_bucket"))]
    assert missing == []


def test_alerts_are_explained() -> None:
    text = DOCUMENT.read_text()
    assert [name for name, _ in alert_expressions() if f"`{name}`" not in text] == []


def test_metric_names_are_found_in_promql() -> None:
    expression = (
        'histogram_quantile(0.9, sum by (le) (rate(a_bucket{x=~"b|c", y="{d}"}[5m]))) > 1 and max(v:e) / f == 0'
    )
    assert metrics_in(expression) == {"a_bucket", "v:e", "f"}


def test_outcomes_that_alerts_wait_for_are_there_at_zero() -> None:
    for text, sample in (
        (inference_text(), 'selftune_adapter_loads_total{outcome="refused"}'),
        (_text(trainer_metrics.REGISTRY), 'selftune_trainer_attempts_ended_total{method="dpo",outcome="failed"}'),
    ):
        assert sample in text


def test_gauge_with_lists_in_its_labels_grows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    monkeypatch.setattr(inference_metrics, "REGISTRY", registry)
    gauge = Gauge("vllm:lora_requests_info", "Running stats on lora requests.", ["running", "max"], registry=registry)
    gauge.labels(running="a", max="1").set(1)
    inference_metrics.install(names=list, numbers=dict)
    for number in range(3):
        gauge.labels(running=f"a,{number}", max="1").set_to_current_time()
    assert gauge._metrics == {}
    assert b"lora_requests_info" not in generate_latest(registry)


def test_labels_of_tenants_are_bounded() -> None:
    bounded = Bounded()
    first = [bounded("p", f"m{number}") for number in range(MOST_LABELS)]
    assert first == [("p", f"m{number}") for number in range(MOST_LABELS)]
    assert bounded("p", "one more") == (OTHER, OTHER)
    assert bounded("p", "m0") == ("p", "m0")
