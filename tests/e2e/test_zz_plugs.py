"""A short run of the fault suite; `make faults` is the long one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.asking import Asker
from tests.faults.batch_verdict import judge_batches, judge_uploads
from tests.faults.ledger import KnownBatch, KnownFile, KnownUpload, Ledger
from tests.faults.plan import PROCESSES, Kind, draw
from tests.faults.run import run


def test_same_seed_draws_the_same_faults_and_every_kind_of_them() -> None:
    faults = draw(5, 200)
    assert faults == draw(5, 200) != draw(6, 200)
    assert {fault.kind for fault in faults} == set(Kind)
    assert {fault.target for fault in faults if fault.target} == set(PROCESSES)


def answer(custom_id: str, status: int = 200) -> dict[str, Any]:
    body = {"usage": {"completion_tokens": 2}} if status == 200 else {"error": {}}
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}


def unanswered(custom_id: str) -> dict[str, Any]:
    return {"custom_id": custom_id, "response": None, "error": {"code": "batch_cancelled"}}


BATCH = {
    "id": "batch_1", "status": "completed", "metadata": {"tag": "t"}, "in_progress_at": 1, "output_file_id": "out",
    "error_file_id": "err", "request_counts": {"total": 3, "completed": 2, "failed": 1},
}  # fmt: skip
FILES = {"out": [answer("a"), answer("b")], "err": [answer("c", 404)]}


def judged(batches: list[Any], files: dict[str, list[Any]], known: KnownBatch) -> list[str]:
    def serve(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/batches":
            return httpx2.Response(200, json={"data": batches, "has_more": False})
        lines = files[request.url.path.split("/")[-2]]
        return httpx2.Response(200, text="".join(json.dumps(line) + "\n" for line in lines))

    ledger = Ledger(batches={"batch_1": known})
    judge_batches(Asker("http://test", "key", ledger, transport=httpx2.MockTransport(serve)), ledger)
    return ledger.wrong


@pytest.mark.parametrize(
    ("changes", "files", "known", "wrong"),
    [
        ({}, {}, {}, []),
        ({}, {"out": [answer("a"), answer("a")]}, {}, ["not every request once", "not in the order"]),
        ({}, {"out": [answer("b"), answer("a")]}, {}, ["not in the order"]),
        ({}, {"out": [answer("a")]}, {}, ["a batch counts wrongly", "not every request once"]),
        ({}, {"err": [answer("c", 500)]}, {}, ["a request failed"]),
        ({}, {"out": [answer("a"), answer("c")], "err": [answer("b", 404)]}, {}, ["no answer in", "a request failed"]),
        ({}, {"err": [unanswered("c")]}, {}, ["a request failed"]),
        ({"status": "cancelled"}, {"err": [unanswered("c")]}, {"cancel_asked": True, "cancelled": True}, []),
        ({"status": "cancelled"}, {}, {}, ["a batch has another end"]),
        ({"status": "failed"}, {}, {"cancel_asked": True}, ["a batch has another end"]),
        ({}, {}, {"cancel_asked": True, "cancelled": True}, ["a cancelled batch went on"]),
        ({}, {}, {"shown": {**BATCH, "status": "cancelled"}}, ["a batch changed after its end"]),
        ({"metadata": {"tag": "other"}}, {}, {}, ["a batch that nobody made"]),
        ({"id": "batch_2"}, {}, {}, ["a batch is missing"]),
    ],
)  # fmt: skip
def test_verdict_sees_what_is_wrong_with_a_batch(
    changes: dict[str, Any], files: dict[str, Any], known: dict[str, Any], wrong: list[str]
) -> None:
    found = judged(
        [{**BATCH, **changes}], {**FILES, **files}, KnownBatch("t", {"a": True, "b": True, "c": False}, **known)
    )
    assert len(found) == len(wrong) and all(text.startswith(start) for text, start in zip(found, wrong, strict=True))


@pytest.mark.parametrize(
    ("status", "answer", "known", "wrong"),
    [
        (200, {"status": "completed", "file": {"id": "f"}}, {"parts": ["p"], "file_id": "f"}, ""),
        (200, {"status": "completed"}, {"parts": ["p"], "file_id": "f"}, "an upload has lost its file"),
        (200, {"status": "completed", "file": {"id": "g"}}, {"parts": ["p"], "file_id": "f"}, "an upload has made two"),
        (200, {"status": "completed", "file": {"id": "f"}}, {}, "an upload that nobody completed"),
        (400, "Upload u is cancelled", {"cancel_asked": True, "cancelled": True}, ""),
        (400, "Upload u is cancelled", {}, "an upload left its end"),
        (400, "Upload u is expired", {"cancel_asked": True, "cancelled": True}, "an upload left its end"),
        (400, "Upload u is expired", {"parts": ["p"], "file_id": "f"}, "an upload left its end"),
        (400, "Upload u is expired", {"parts": ["p"]}, ""),
        (404, "No such Upload", {}, "an upload has no end"),
    ],
)  # fmt: skip
def test_verdict_sees_what_is_wrong_with_an_upload(status: int, answer: Any, known: dict[str, Any], wrong: str) -> None:
    body = answer if status == 200 else {"error": {"message": answer, "code": "upload_not_pending"}}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(status, json=body))
    ledger = Ledger(uploads={"u": KnownUpload("name", "digest", **known)}, files={"f": KnownFile("digest")})
    judge_uploads(Asker("http://test", "key", ledger, transport=transport), ledger, are_expired=True)
    assert len(ledger.wrong) == bool(wrong) and all(text.startswith(wrong) for text in ledger.wrong)


def test_nothing_acknowledged_is_lost_or_doubled_when_plugs_are_pulled(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = run(12, seed=174254, n_clients=3, say=said.append, kept_logs=tmp_path / "logs")
    assert not outcome.wrong, "\n".join([*said, outcome.summary()])
    assert sum(outcome.pulled.values()) == 12
    assert outcome.ends["succeeded"] >= 3 and outcome.ledger.answers > 0, outcome.summary()
