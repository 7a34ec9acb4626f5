"""What becomes of a job's files before training: formats, rows that are too long, and the look at their tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from shared import ids
from shared.records import JobRecord
from shared.schemas.graders import StringCheckGrader
from shared.schemas.methods import ReinforcementMethod
from shared.schemas.options import TrainingOptions
from shared.settings import Settings
from shared.states import JobState
from tests.api_server import ApiServer
from tests.integration.test_trainer_options import finished, job, submitted
from tests.integration.trainer_stack import Client, TrainerProcess, with_client
from tests.unit.trainer.tiny import preference_rows, tiny_tokenizer, training_rows

T = TypeVar("T")


@pytest.fixture(scope="module")
def server(lasting_settings: Settings) -> Iterator[ApiServer]:
    """The api on the trainer's data folder."""
    server = ApiServer(lasting_settings.home, lasting_settings.redis_url)
    yield server
    server.stop()


def result_of(settings: Settings, scenario: Callable[[Client], Awaitable[T]]) -> T:
    results: list[T] = []

    async def go(client: Client) -> None:
        results.append(await scenario(client))

    with_client(settings, go)
    return results[0]


def looked_at(server: ApiServer, record: JobRecord, **query: Any) -> dict[str, Any]:
    with server.client() as http:
        answer = http.get(f"/v1/fine_tuning/jobs/{record.id}/preview", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def joined(side: dict[str, Any]) -> str:
    return b"".join(bytes(t["bytes"]) if "bytes" in t else t["text"].encode() for t in side["tokens"]).decode()


def trained(side: dict[str, Any]) -> str:
    return "".join(token["text"] for token in side["tokens"] if token["state"] == "trained")


def long_row(words: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "please " * words}, {"role": "assistant", "content": "fruit"}]
    return {"messages": messages}


def test_rows_are_shown_as_they_are_trained_on(
    lasting_trainer: TrainerProcess, lasting_settings: Settings, server: ApiServer
) -> None:
    rows = [*training_rows(10), long_row(200)]
    rows[0]["messages"][0]["content"] = "is 🙂 a dog?"
    options = TrainingOptions(overlong="truncate_prompt", max_length=64)

    async def scenario(client: Client) -> JobRecord:
        training, held_out = await client.upload(rows), await client.upload(training_rows(2))
        return await finished(client, job(training, validation_file=held_out, options=options))

    record = result_of(lasting_settings, scenario)
    first = looked_at(server, record, limit=2)
    assert (first["total_rows"], first["has_more"]) == (11, True)
    assert [(row["row"], row["line"]) for row in first["data"]] == [(0, 1), (1, 2)]
    [side] = first["data"][0]["sides"]
    template = tiny_tokenizer()
    assert joined(side) == template.apply_chat_template(rows[0]["messages"], tokenize=False)
    assert trained(side) == "fruit<|im_end|>"
    [cut] = looked_at(server, record, row=10)["data"][0]["sides"]
    assert joined(cut) == template.apply_chat_template(rows[10]["messages"], tokenize=False)
    assert (cut["n_tokens"], trained(cut)) == (64, "fruit<|im_end|>")
    assert [t["state"] for t in cut["tokens"]].count("cut") == len(cut["tokens"]) - 64 - 1  # the last is behind the end
    assert looked_at(server, record, file="validation")["total_rows"] == 2
    with server.client() as http:
        path = f"/v1/fine_tuning/jobs/{record.id}/preview"
        beyond = http.get(path, params={"row": 11})
        assert (beyond.status_code, beyond.json()["error"]["param"]) == (400, "row")
        assert http.get(f"/v1/fine_tuning/jobs/{ids.new_job_id()}/preview").status_code == 404
        stranger = http.post("/v1/organization/projects", json={"name": "other"}).json()["id"]
        made = http.post(f"/v1/organization/projects/{stranger}/service_accounts", json={"name": "x"}).json()
    with server.client(made["api_key"]["value"]) as http:
        assert http.get(path).status_code == 404


def test_pairs_show_both_sides_and_dropped_rows_are_told(
    lasting_trainer: TrainerProcess, lasting_settings: Settings, server: ApiServer
) -> None:
    rows = preference_rows(12)
    for index in (4, 7):
        rows[index]["input"]["messages"][0]["content"] = "please " * 100
    options = TrainingOptions(overlong="drop", max_length=64)

    async def scenario(client: Client) -> tuple[JobRecord, list[str]]:
        record = await finished(client, job(await client.upload(rows), method="dpo", options=options))
        return record, await client.story(record.id)

    record, story = result_of(lasting_settings, scenario)
    assert any("2 rows of the training file" in line and "lines 5, 8" in line for line in story), story
    kept, dropped = (looked_at(server, record, row=row)["data"][0]["sides"] for row in (0, 4))
    assert [(side["name"], trained(side)) for side in kept] == [
        ("preferred_output", "fruit<|im_end|>"), ("non_preferred_output", "animal<|im_end|>"),
    ]  # fmt: skip
    assert {token["state"] for side in dropped for token in side["tokens"]} == {"cut"}


def test_files_without_conversations_are_trained_on_and_bad_ones_fail_before_the_queue(
    lasting_trainer: TrainerProcess, lasting_settings: Settings, server: ApiServer
) -> None:
    completions = [{"prompt": f"a dog is an {n}", "completion": " animal"} for n in range(12)]

    async def scenario(client: Client) -> tuple[JobRecord, list[JobRecord]]:
        good = await client.upload(completions)
        texts = await client.upload([{"text": "the dog is an animal"}] * 12)
        both = await finished(client, job(good))
        await finished(client, job(texts, validation_file=texts))
        long_answer = [*completions[:10], {"prompt": "dog", "completion": " animal" * 100}]
        bad = [
            job(good, validation_file=texts),
            job(await client.upload([*completions, {"text": "dog"}])),
            job(await client.upload(long_answer)),
            job(await client.upload(long_answer), options=TrainingOptions(overlong="truncate_prompt")),
            job(await client.upload([*training_rows(10), long_row(300)])),
        ]
        return both, [await client.ended(await submitted(client, record)) for record in bad]

    record, failed = result_of(lasting_settings, scenario)
    [side] = looked_at(server, record)["data"][0]["sides"]
    assert trained(side) == " animal<|im_end|>"
    said = [
        "line 1: the training file has",
        "line 13: the file's first line has",
        "line 11: ",
        "line 11: ",
        "line 11: ",
    ]
    for ended, words in zip(failed, said, strict=True):
        assert (ended.status, ended.started) == (JobState.FAILED, False)
        assert ended.error is not None and words in ended.error.message, ended.error
    assert failed[0].error is not None and failed[0].error.param == "validation_file"
    assert failed[3].error is not None and "never cut" in failed[3].error.message
    with server.client() as http:
        refused = http.get(f"/v1/fine_tuning/jobs/{failed[0].id}/preview")
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_rows_that_lack_what_a_grader_names_fail_the_job_before_the_queue(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    rows = [{"messages": [{"role": "user", "content": "dog?"}], "answer": {"kind": "animal"}}] * 10
    grader = StringCheckGrader(
        name="n", input="{{sample.output_text}}", reference="{{item.answer.kind}}", operation="eq"
    )

    async def scenario(client: Client) -> list[JobRecord]:
        good, held_out = await client.upload(rows), await client.upload([rows[0] | {"answer": {}}])
        fields: dict[str, Any] = {"method": "reinforcement", "reinforcement": ReinforcementMethod(grader=grader)}
        asked = [
            job(await client.upload([*rows, {"messages": rows[0]["messages"]}]), **fields),
            job(good, validation_file=held_out, **fields),
        ]
        return [await client.ended(await submitted(client, record)) for record in asked]

    said = [ended.error for ended in result_of(lasting_settings, scenario)]
    assert [(error.param, error.code) for error in said if error] == [
        ("training_file", "invalid_training_file"), ("validation_file", "invalid_validation_file"),
    ]  # fmt: skip
    assert [error.message.partition("file. ")[2] for error in said if error] == [
        f"Line {line}: it has no item.answer.kind, which the grader's template names." for line in (11, 1)
    ]


def test_a_second_job_finds_the_tokens_of_the_first(
    lasting_trainer: TrainerProcess, lasting_settings: Settings
) -> None:
    async def scenario(client: Client) -> list[JobRecord]:
        # No other test of this trainer has so many rows.
        training = await client.upload(training_rows(19))
        same = await client.upload(training_rows(19))
        return [await finished(client, job(file)) for file in (training, training, same)]

    before = set((lasting_settings.home / "tokens").glob("*"))
    records = result_of(lasting_settings, scenario)
    assert len({record.training_tokens for record in records}) == 1
    found = set((lasting_settings.home / "tokens").iterdir())
    pieces = {path for path in found if path.name.startswith("pieces-")}
    assert (len(pieces), len(found - before - pieces)) == (1, 1)
