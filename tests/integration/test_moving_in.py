"""`selftune export-openai` and `import-openai`, against each other on a real API."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import openai
import pytest

from shared.states import JobState
from shared.store.jobs import JobStore
from shared.store.registry import Registry
from tests.api_server import BASE, ROOT, ApiServer, free_port, know_key, make_base, with_store

METHOD = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}}


@pytest.fixture
def target(api: ApiServer, redis_url: str) -> openai.OpenAI:
    """The server that is moved to, with one base, seen through a project's key."""
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    key = know_key(redis_url, "sk-selftune-new-home", project="proj_new")
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)


def selftune(*arguments: str | Path, url: str, key: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def run(target: openai.OpenAI, *arguments: str | Path) -> str:
    done = selftune(*arguments, url=str(target.base_url), key=target.api_key)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def aliases(output: str) -> dict[str, str]:
    return dict(tomllib.loads(output[output.index("[model_aliases]") :])["model_aliases"])


def old_job(job_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": job_id, "object": "fine_tuning.job", "created_at": 1_700_000_000, "model": "gpt-4o-mini-2024-07-18",
        "training_file": "file-train", "validation_file": None, "status": "succeeded", "seed": 7, "method": METHOD,
        "hyperparameters": {"n_epochs": 3}, "user_provided_suffix": "mine", "result_files": ["file-result"],
        "fine_tuned_model": f"ft:gpt-4o-mini:acme::{job_id}", **changes,
    }  # fmt: skip


def write_export(folder: Path, jobs: list[dict[str, Any]], *, page: bool = True) -> Path:
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "file-train").write_text('{"messages": []}\n')
    (folder / "files" / "file-valid.jsonl").write_text("valid\n")
    (folder / "files" / "notes.jsonl").write_text("by its name\n")
    files = [
        {"id": "file-train", "object": "file", "filename": "train.jsonl", "purpose": "fine-tune", "bytes": 17},
        {"id": "file-valid", "object": "file", "filename": "../valid.jsonl", "purpose": "fine-tune"},
        {"id": "file-named", "object": "file", "filename": "notes.jsonl", "purpose": "fine-tune"},
        {"id": "file-result", "object": "file", "filename": "step_metrics.csv", "purpose": "fine-tune-results"},
    ]
    (folder / "files.json").write_text(json.dumps({"object": "list", "data": files} if page else files))
    (folder / "jobs.json").write_text(json.dumps({"object": "list", "data": jobs} if page else jobs))
    return folder


@pytest.mark.parametrize("page", [True, False])
def test_import_brings_everything_once(target: openai.OpenAI, tmp_path: Path, page: bool) -> None:
    jobs = [old_job("ftjob-a", validation_file="file-valid", metadata={"team": "x"}), old_job("ftjob-b", seed=8)]
    export = write_export(tmp_path / "export", jobs, page=page)
    run(target, "import-openai", export)
    assert list(target.fine_tuning.jobs.list()) == []
    first = run(target, "import-openai", export, "--train")
    again = run(target, "import-openai", export, "--train")
    files = {item.filename: item for item in target.files.list()}
    assert len(list(target.files.list())) == 3 and "train.jsonl" in files and "notes.jsonl" in files
    assert target.files.content(files["notes.jsonl"].id).read() == b"by its name\n"
    made = {job.seed: job for job in target.fine_tuning.jobs.list()}
    assert len(list(target.fine_tuning.jobs.list())) == 2
    job = made[7]
    assert (job.model, job.training_file) == (BASE, files["train.jsonl"].id)
    assert job.validation_file is not None and job.to_dict()["user_provided_suffix"] == "mine"
    assert job.metadata == {"team": "x", "openai_job_id": "ftjob-a"}
    assert job.method is not None and job.method.supervised is not None
    assert job.hyperparameters.n_epochs == 3 and job.hyperparameters.batch_size == 4
    assert f"ftjob-a      →  {job.id}  validating_files" in first
    assert f"ftjob-a      →  {job.id}  validating_files" in again
    assert "file-result  →  -" in first
    assert aliases(again) == {"gpt-4o-mini-2024-07-18": BASE}


def test_trained_models_get_their_old_names(target: openai.OpenAI, tmp_path: Path, redis_url: str) -> None:
    follower = old_job("ftjob-next", model="ft:gpt-4o-mini:acme::ftjob-a", created_at=1_800_000_000)
    export = write_export(tmp_path / "export", [follower, old_job("ftjob-a")])
    first = run(target, "import-openai", export, "--train")
    assert "ftjob-next   →  -" in first and "run this again" in first
    [made] = target.fine_tuning.jobs.list()
    with_store(
        redis_url, lambda client: JobStore(client).finish(made.id, JobState.CANCELLED, fine_tuned_model="ft:new:x")
    )
    again = run(target, "import-openai", export)
    assert aliases(again) == {"gpt-4o-mini-2024-07-18": BASE, "ft:gpt-4o-mini:acme::ftjob-a": "ft:new:x"}
    assert "would train on ft:new:x" in again


def test_reinforcement_is_moved_with_its_grader(target: openai.OpenAI, tmp_path: Path) -> None:
    grader = {"type": "string_check", "name": "n", "input": "i", "reference": "r", "operation": "eq"}
    old = {"grader": grader, "hyperparameters": {"eval_samples": 2, "n_epochs": "auto"}, "response_format": None}
    export = write_export(
        tmp_path / "export", [old_job("ftjob-a", method={"type": "reinforcement", "reinforcement": old})]
    )
    run(target, "import-openai", export, "--train")
    [made] = target.fine_tuning.jobs.list()
    assert made.method is not None and made.method.reinforcement is not None
    assert made.method.reinforcement.grader.to_dict() == grader
    chosen = made.method.reinforcement.hyperparameters
    assert chosen is not None and (chosen.eval_samples, chosen.n_epochs) == (2, "auto")


def test_dry_run_changes_nothing(target: openai.OpenAI, tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", [old_job("ftjob-a")])
    before = sorted(export.rglob("*"))
    output = run(target, "import-openai", export, "--train", "--dry-run")
    assert "would be uploaded" in output and f"would train on {BASE}" in output
    assert list(target.files.list()) == [] and sorted(export.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "skipped: its method is 'reinforcement', and"),
        ({"status": "failed"}, "skipped: it ended as failed"),
        ({"training_file": "file-gone"}, "skipped: its training file file-gone is not in the export"),
        ({"model": "ft:unknown:x"}, "skipped: it goes on from ft:unknown:x"),
        ({"hyperparameters": {"n_epochs": 99}, "method": None}, "refused: Invalid value for"),
    ],
)
def test_what_cannot_be_moved_is_listed_with_the_reason(
    target: openai.OpenAI, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    export = write_export(tmp_path / "export", [old_job("ftjob-odd", **changes), old_job("ftjob-good")])
    output = run(target, "import-openai", export, "--train")
    assert "ftjob-odd    →  -" in output and reason in output
    assert len(list(target.fine_tuning.jobs.list())) == 1


def test_export_and_import_agree(target: openai.OpenAI, api: ApiServer, redis_url: str, tmp_path: Path) -> None:
    source = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)
    content = "é\n".encode() * 100_000
    train = source.files.create(file=("train.jsonl", content), purpose="fine-tune").id
    source.files.create(file=("other.txt", b"no"), purpose="user_data")
    for seed in range(3):
        source.fine_tuning.jobs.create(model=BASE, training_file=train, seed=seed, suffix="s", method=METHOD)  # type: ignore[arg-type]
    folder = tmp_path / "new" / "export"
    run(source, "export-openai", folder)
    assert (folder / "files" / train).read_bytes() == content
    (folder / "files" / train).touch()
    assert f"{train}:" not in run(source, "export-openai", folder), "fetched again"
    run(target, "import-openai", folder, "--train")
    [file] = target.files.list()
    assert (file.filename, target.files.content(file.id).read()) == ("train.jsonl", content)
    moved = list(target.fine_tuning.jobs.list())
    assert [job.seed for job in moved] == [2, 1, 0]
    assert {job.training_file for job in moved} == {file.id}
    assert aliases_or_none(run(target, "import-openai", folder)) is None  # the names are the same


def aliases_or_none(output: str) -> dict[str, str] | None:
    return aliases(output) if "[model_aliases]" in output else None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "files.json").unlink(), "files.json: No such file"),
        (lambda folder: (folder / "jobs.json").write_text("{"), "jobs.json: not valid JSON"),
        (lambda folder: (folder / "jobs.json").write_bytes(b'["\xff"]'), "jobs.json: not valid JSON"),
        (lambda folder: (folder / "jobs.json").write_text("[{}]"), "missing required field `id`"),
        (lambda folder: (folder / "jobs.json").write_text("7"), "jobs.json: Expected `array`"),
        (lambda folder: (folder / "files" / "file-train").unlink(), "no content for file-train"),
        (lambda folder: (folder / ".selftune-import.json").write_text("x"), "delete it to start over"),
    ],
)
def test_broken_exports_are_named_before_anything_is_sent(
    target: openai.OpenAI, tmp_path: Path, spoil: Any, message: str
) -> None:
    export = write_export(tmp_path / "export", [old_job("ftjob-a")])
    spoil(export)
    done = selftune("import-openai", export, url=str(target.base_url), key=target.api_key)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert list(target.files.list()) == []


@pytest.mark.parametrize("command", ["import-openai", "export-openai"])
def test_wrong_key_and_absent_server_are_named(target: openai.OpenAI, tmp_path: Path, command: str) -> None:
    export = write_export(tmp_path / "export", [])
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    attempts = [
        (str(target.base_url), "sk-wrong", "refuses the API key"),
        (str(target.base_url), "", "no API key"),
        (nowhere, "sk-x", f"{nowhere} does not answer"),
        (str(target.base_url).removesuffix("/v1/"), target.api_key, "Does the base URL end in /v1"),
        ("nonsense", "sk-x", "base URL"),
    ]
    for url, key, message in attempts:
        done = selftune(command, export, url=url, key=key)
        assert done.returncode == 2, done.stdout
        assert message in done.stderr and "Traceback" not in done.stderr
