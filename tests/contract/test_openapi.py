"""openapi.yaml: fresh, valid, complete, and exact where Litestar's own export is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_spec_validator import validate

from services.api.auth import PUBLIC
from services.api.openapi import document, serve_document
from services.api.routes import ROUTES

ROOT = Path(__file__).resolve().parent.parent.parent
OPEN = {"health", "readiness", "openapi", "readingPage", "partOfReadingPage"}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return document()


def test_committed_document_is_fresh() -> None:
    exported = subprocess.run(
        [sys.executable, "-m", "services.api.openapi"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert exported.stdout == (ROOT / "openapi.yaml").read_text(encoding="utf-8"), "run `make openapi`"


def test_document_is_valid_and_the_same_twice(spec: dict[str, Any]) -> None:
    validate(spec)
    assert yaml.safe_dump(document()) == yaml.safe_dump(spec)


def test_every_route_has_an_operation_id_and_a_guard(spec: dict[str, Any]) -> None:
    handlers = [*ROUTES, serve_document]
    ids = [handler.operation_id for handler in handlers]
    assert None not in ids and len(set(ids)) == len(ids)
    assert {handler.operation_id for handler in handlers if handler.opt.get(PUBLIC)} == OPEN
    for operations in spec["paths"].values():
        for operation in operations.values():
            assert (operation.get("security") == []) == (operation["operationId"] in OPEN)
            assert "default" in operation["responses"]


def test_constraints_of_a_job_are_in_the_document(spec: dict[str, Any]) -> None:
    schemas = spec["components"]["schemas"]
    assert schemas["CreateJob"]["additionalProperties"] is False
    epochs = schemas["SupervisedHyperparameters"]["properties"]["n_epochs"]
    assert {"enum": ["auto"]} in epochs["anyOf"]
    assert any(choice.get("maximum") == 50 and choice.get("minimum") == 1 for choice in epochs["anyOf"])


def test_openais_paths_are_all_there(spec: dict[str, Any]) -> None:
    methods = {(method, path) for path, operations in spec["paths"].items() for method in operations}
    jobs = "/v1/fine_tuning/jobs"
    completion, response = "/v1/chat/completions/{completion_id}", "/v1/responses/{response_id}"
    assert methods >= {
        ("post", "/v1/files"), ("get", "/v1/files"), ("get", "/v1/files/{file_id}"),
        ("delete", "/v1/files/{file_id}"), ("get", "/v1/files/{file_id}/content"),
        ("post", jobs), ("get", jobs), ("get", jobs + "/{job_id}"), ("post", jobs + "/{job_id}/cancel"),
        ("get", jobs + "/{job_id}/events"), ("get", jobs + "/{job_id}/checkpoints"),
        ("get", "/v1/models"), ("get", "/v1/models/{model}"), ("delete", "/v1/models/{model}"),
        ("get", "/v1/webhook_endpoints"), ("post", "/v1/webhook_endpoints"), ("get", "/v1/webhook_event_types"),
        *((method, "/v1/webhook_endpoints/{webhook_endpoint_id}") for method in ("get", "post", "delete")),
        ("post", "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret"),
        ("post", "/v1/webhook_endpoints/{webhook_endpoint_id}/test"), ("get", "/docs"),
        ("post", "/v1/chat/completions"), ("post", "/v1/completions"), ("post", "/v1/embeddings"),
        ("get", "/v1/chat/completions"), ("get", completion), ("post", completion), ("delete", completion),
        ("get", completion + "/messages"),
        ("post", "/v1/responses"), ("get", response), ("delete", response), ("post", response + "/cancel"),
        ("get", response + "/input_items"), ("post", "/v1/responses/input_tokens"), ("post", "/v1/responses/compact"),
        ("post", "/v1/batches"), ("get", "/v1/batches"), ("get", "/v1/batches/{batch_id}"),
        ("post", "/v1/batches/{batch_id}/cancel"),
        ("post", "/v1/messages"), ("post", "/v1/messages/count_tokens"),
    }  # fmt: skip


def test_paths_of_evals_are_all_there(spec: dict[str, Any]) -> None:
    methods = {(method, path) for path, operations in spec["paths"].items() for method in operations}
    one = "/v1/evals/{eval_id}"
    run = one + "/runs/{run_id}"
    assert methods >= {
        ("post", "/v1/evals"),
        ("get", "/v1/evals"),
        ("get", one),
        ("post", one),
        ("delete", one),
        ("post", one + "/runs"),
        ("get", one + "/runs"),
        ("get", run),
        ("post", run),
        ("post", run + "/cancel"),
        ("delete", run),
        ("get", run + "/output_items"),
        ("get", run + "/output_items/{output_item_id}"),
        ("get", run + "/comparison"),
    }
    ab_run = one + "/ab_runs/{ab_run_id}"
    assert methods >= {
        ("post", one + "/ab_runs"), ("get", one + "/ab_runs"), ("get", ab_run), ("delete", ab_run),
        ("post", ab_run + "/cancel"), ("get", ab_run + "/items"), ("get", ab_run + "/report"),
        ("get", ab_run + "/next"), ("post", ab_run + "/votes"),
    }  # fmt: skip


def test_paths_of_preferences_are_all_there(spec: dict[str, Any]) -> None:
    methods = {(method, path) for path, operations in spec["paths"].items() for method in operations}
    one = "/v1/preferences/{preference_id}"
    assert methods >= {
        ("post", "/v1/preferences"), ("get", "/v1/preferences"), ("get", one), ("delete", one),
        ("post", "/v1/preferences/export"),
    }  # fmt: skip


def test_paths_of_aliases_are_all_there(spec: dict[str, Any]) -> None:
    methods = {(method, path) for path, operations in spec["paths"].items() for method in operations}
    one = "/v1/aliases/{alias}"
    assert methods >= {
        ("post", "/v1/aliases"), ("get", "/v1/aliases"), ("get", one), ("post", one), ("delete", one),
        ("post", one + "/promote"), ("post", one + "/rollback"), ("get", one + "/history"), ("get", one + "/traffic"),
        ("get", one + "/shadow_pairs"), ("delete", one + "/shadow_pairs"),
        ("post", one + "/promotions"), ("get", one + "/promotions"), ("get", one + "/promotions/{promotion_id}"),
        ("post", one + "/promotions/{promotion_id}/cancel"), ("get", one + "/quality"), ("get", one + "/proposals"),
        ("get", one + "/proposals/{proposal_id}"),
        *(("post", one + "/proposals/{proposal_id}/" + verb) for verb in ("approve", "dismiss")),
    }  # fmt: skip


def test_paths_of_the_organization_are_all_there(spec: dict[str, Any]) -> None:
    methods = {(method, path) for path, operations in spec["paths"].items() for method in operations}
    projects, admin_keys = "/v1/organization/projects", "/v1/organization/admin_api_keys"
    one = projects + "/{project_id}"
    keys, accounts = one + "/api_keys", one + "/service_accounts"
    assert methods >= {
        ("post", projects), ("get", projects), ("get", one), ("post", one), ("post", one + "/archive"),
        ("get", one + "/rate_limits"), ("post", one + "/rate_limits/{rate_limit_id}"),
        ("post", keys), ("get", keys), ("get", keys + "/{key_id}"), ("post", keys + "/{key_id}"),
        ("delete", keys + "/{key_id}"), ("post", accounts), ("get", accounts),
        ("get", accounts + "/{service_account_id}"), ("post", accounts + "/{service_account_id}"),
        ("delete", accounts + "/{service_account_id}"), ("post", accounts + "/{service_account_id}/api_keys"),
        ("post", admin_keys), ("get", admin_keys), ("get", admin_keys + "/{key_id}"),
        ("delete", admin_keys + "/{key_id}"),
    }  # fmt: skip
